namespace Tdp.Module;

// TDH.MEM.PAGE.REMOVE and TDH.MEM.SEPT.REMOVE: the second half (tdx-module 5.7).
public sealed partial class TdxModule
{
    private TdxStatus PageRemove(LpContext ctx, ulong pageInfo, ulong tdr, out ulong rcx, out ulong rdx)
    {
        rcx = rdx = 0;
        TdxStatus status = EnterMem(ctx, tdr, pageInfo, 0, 2, OpStates.Remove, TreeUse.Shared, out MemGate gate);
        if (status.IsError)
            return status;
        status = FindAndLock(gate, out SeptPlace place, ref rcx, ref rdx);
        if (status.IsError)
        {
            Leave(ctx, ref gate);
            return status;
        }

        if (!SeptEntry.IsLeaf(place.Entry))
            return Reject(ctx, ref gate, place, TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, out rcx, out rdx);
        HideAcceptCounter(ref place);
        ulong page = WithoutAcceptCounter(place);
        ulong entry = _pamt.EntryAt(page, place.Level);
        if (_pamt.Lock(entry).TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return Refuse(ctx, ref gate, place, TdxStatus.OPERAND_BUSY | OperandId.RCX);
        status = CheckBlockedAndTracked(gate, place, entry);
        if (status.IsError)
        {
            _pamt.Lock(entry).ReleaseExclusive();
            return status == (TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX)
                ? Refuse(ctx, ref gate, place, status)
                : Reject(ctx, ref gate, place, status, out rcx, out rdx);
        }

        // Nothing points to the page any more when somebody else can take it (TM02).
        StoreEntry(place, SeptEntry.Free);
        Release(ctx, gate.Td, page, entry, place.Level);
        Leave(ctx, ref gate);
        rcx = page;
        return TdxStatus.SUCCESS;
    }

    // REMOVE and DEMOTE report a partly accepted page without its progress, which SEPT.RD and the others show (tdx-module 11, quirk 5). The entry keeps it.
    private static void HideAcceptCounter(ref SeptPlace place) => place.Entry &= ~CounterOf(place);

    /// <summary>Blocked and tracked, where the TD's state asks for it (tdx-module 4.4, 5.3).</summary>
    private TdxStatus CheckBlockedAndTracked(in MemGate gate, in SeptPlace place, ulong pamtEntry)
    {
        if (!TdControl.NeedsTracking(gate.State))
            return TdxStatus.SUCCESS;
        if ((place.Entry & SeptEntry.Blocked) == 0)
            return TdxStatus.GPA_RANGE_NOT_BLOCKED | OperandId.RCX;
        return IsTracked(gate.Td, pamtEntry) ? TdxStatus.SUCCESS : TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX;
    }

    /// <summary>Gives pages back whose PAMT entry the caller holds exclusively: NDA, CHLDCNT, ledger; the lock goes with it.</summary>
    private void Release(LpContext ctx, TdControl td, ulong page, ulong entry, int level)
    {
        ulong frames = 1UL << (9 * level);
        for (ulong i = 0; i < frames; i++)
        {
            Hpa frame = new(page + (i << 12));
            if (Explore.On)
                Touch.Write(ObjectId.Frame(_memory.Record(frame.Frame).Name));
            Machine.Ledger.FromModule(frame);
        }

        td.AddChildren(ctx.Id, -(long)frames);
        _pamt.Lock(entry).ReleaseExclusive(PamtEntry.Freed(_pamt.Word(entry).PlainRead(), level));
    }

    private TdxStatus SeptRemove(LpContext ctx, int version, ref SeamRegisters r)
    {
        ulong pageInfo = r.Rcx;
        ulong tdr = r.Rdx;
        r.Rcx = r.Rdx = 0;
        if (version > 0)
            r.R9 = r.R10 = r.R11 = ulong.MaxValue;
        if (version > 1)
            return TdxStatus.OPERAND_INVALID | OperandId.RAX;
        TdxStatus status = EnterMem(ctx, tdr, pageInfo, 1, ToRoot, OpStates.Read, TreeUse.Exclusive, out MemGate gate);
        if (status.IsError)
            return status;
        status = FindAndLock(gate, out SeptPlace place, ref r.Rcx, ref r.Rdx);
        if (status.IsError)
        {
            Leave(ctx, ref gate);
            return status;
        }

        if (SeptEntry.StateOf(place.Entry) is not (SeptState.NL_MAPPED or SeptState.NL_BLOCKED))
            return Reject(ctx, ref gate, place, TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, out r.Rcx, out r.Rdx);
        ulong page = place.Entry & SeptEntry.Address;
        ulong entry = _pamt.Entry4K(page);
        if (_pamt.Lock(entry).TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return Refuse(ctx, ref gate, place, TdxStatus.OPERAND_BUSY | OperandId.RCX);
        status = CheckBlockedAndTracked(gate, place, entry);
        if (!status.IsError && !IsEmpty(page))
            status = TdxStatus.EPT_PAGE_NOT_FREE | OperandId.RCX;
        if (status.IsError)
        {
            _pamt.Lock(entry).ReleaseExclusive();
            return status == (TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX)
                ? Refuse(ctx, ref gate, place, status)
                : Reject(ctx, ref gate, place, status, out r.Rcx, out r.Rdx);
        }

        StoreEntry(place, SeptEntry.Free);
        gate.Td.CutPath();
        Release(ctx, gate.Td, page, entry, 0);
        Leave(ctx, ref gate);
        r.Rcx = page;
        return TdxStatus.SUCCESS;
    }

    private bool IsEmpty(ulong table)
    {
        for (int i = 0; i < 512; i++)
        {
            if (!SeptEntry.IsFree(_memory.Entry(new Hpa(table), i).PlainRead()))
                return false;
        }

        return true;
    }
}
