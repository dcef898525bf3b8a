namespace Tdp.Module;

// TDH.MEM.PAGE.PROMOTE and TDH.MEM.PAGE.DEMOTE: 512 small pages into one and back (tdx-module 5.7, 5.8). Both stop without effect for a pending interrupt.
public sealed partial class TdxModule
{
    private TdxStatus PagePromote(LpContext ctx, int version, ref SeamRegisters r)
    {
        ulong pageInfo = r.Rcx;
        ulong tdr = r.Rdx;
        r.Rcx = r.Rdx = 0;
        if (version > 0)
            r.R9 = r.R10 = r.R11 = ulong.MaxValue;
        if (version > 1)
            return TdxStatus.OPERAND_INVALID | OperandId.RAX;
        TdxStatus status = EnterMem(ctx, tdr, pageInfo, 1, 2, OpStates.Change, TreeUse.Shared, out MemGate gate);
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
        ulong table = place.Entry & SeptEntry.Address;
        ulong tablePamt = _pamt.Entry4K(table);
        if (_pamt.Lock(tablePamt).TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return Refuse(ctx, ref gate, place, TdxStatus.OPERAND_BUSY | OperandId.RCX);
        bool pageBusy = false;
        status = CheckBlockedAndTracked(gate, place, tablePamt);
        if (!status.IsError)
            status = Merge(ctx, gate.Td, place, table, out pageBusy);
        if (status.IsError)
        {
            _pamt.Lock(tablePamt).ReleaseExclusive();
            if (pageBusy || status == (TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX))
                return Refuse(ctx, ref gate, place, status);
            if (status != TdxStatus.INTERRUPTED_RESTARTABLE)
                return Reject(ctx, ref gate, place, status, out r.Rcx, out r.Rdx);
            r.Rcx = pageInfo;
            r.Rdx = tdr;
            return Refuse(ctx, ref gate, place, status);
        }

        Release(ctx, gate.Td, table, tablePamt, 0);
        Leave(ctx, ref gate);
        r.Rcx = table;
        return TdxStatus.SUCCESS;
    }

    // Locks and compares the children, then merges their PAMT entries and stores the large leaf, which unlocks the parent.
    private TdxStatus Merge(LpContext ctx, TdControl td, in SeptPlace parent, ulong table, out bool pageBusy)
    {
        pageBusy = false;
        int small = parent.Level - 1;
        ulong first = 0;
        TdxStatus status = TdxStatus.SUCCESS;
        int locked = 0;
        for (; locked < 512; locked++)
        {
            SeptPlace child = new() { At = table + ((ulong)locked << 3), Level = small };
            child.Entry = Septe(child.At).Read();
            if (!TryLockEntry(ref child))
            {
                status = TdxStatus.OPERAND_BUSY | OperandId.RCX;
                break;
            }

            ulong clean = child.Entry & ~CounterOf(child);
            if (locked == 0)
                first = clean;
            if (locked == 0
                ? (first & SeptEntry.Address & ((1UL << ((9 * parent.Level) + 12)) - 1)) != 0 || !SeptEntry.StateOf(first).IsMergeable()
                : clean != first + ((ulong)locked << ((9 * small) + 12)))
            {
                locked++;
                status = TdxStatus.EPT_INVALID_PROMOTE_CONDITIONS | OperandId.RCX;
                break;
            }
        }

        ulong page = first & SeptEntry.Address;
        if (!status.IsError && IsInterruptPending(ctx.Lp))
            status = TdxStatus.INTERRUPTED_RESTARTABLE;
        if (!status.IsError)
        {
            ulong large = _pamt.EntryAt(page, parent.Level);
            if (!TryTakeLarge(ctx, page, large, parent.Level))
            {
                pageBusy = true;
                status = TdxStatus.OPERAND_BUSY | OperandId.RCX;
            }
            else
            {
                JoinPamt(page, small, 512);

                // BEPOCH of the large entry keeps what an earlier life left (tdx-module 11, quirk 10).
                _pamt.Lock(large).ReleaseExclusive(PamtEntry.Content(PageType.REG, td.Tdr.Frame, parent.Level));
                StoreEntry(parent, first);
                td.CutPath();
                return TdxStatus.SUCCESS;
            }
        }

        while (locked-- > 0)
            Septe(table + ((ulong)locked << 3)).And(~SeptEntry.Lock);
        return status;
    }

    private TdxStatus PageDemote(LpContext ctx, ref SeamRegisters r)
    {
        ulong pageInfo = r.Rcx;
        ulong tdr = r.Rdx;
        ulong table = r.R8;
        r.Rcx = r.Rdx = 0;
        ulong tdrPage = tdr & ~1UL;
        if ((tdrPage & 0xFFE) != 0 || tdrPage >> Machine.Description.PhysicalAddressBits != 0)
            return TdxStatus.OPERAND_INVALID | OperandId.RDX;
        TdxStatus status = EnterMem(ctx, tdrPage, pageInfo, 1, 2, OpStates.Change, TreeUse.Shared, out MemGate gate);
        if (status.IsError)
            return status;
        status = FindAndLock(gate, out SeptPlace place, ref r.Rcx, ref r.Rdx);
        if (status.IsError)
        {
            Leave(ctx, ref gate);
            return status;
        }

        if (!SeptEntry.IsLeaf(place.Entry))
            return Reject(ctx, ref gate, place, TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, out r.Rcx, out r.Rdx);
        HideAcceptCounter(ref place);
        ulong page = WithoutAcceptCounter(place);
        ulong large = _pamt.EntryAt(page, place.Level);
        status = CheckBlockedAndTracked(gate, place, large);
        if (status.IsError)
        {
            return status == (TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX)
                ? Refuse(ctx, ref gate, place, status)
                : Reject(ctx, ref gate, place, status, out r.Rcx, out r.Rdx);
        }

        status = _pamt.LockFree(ctx.Slot, table, OperandId.R8, 0, out PageHold hold);
        if (status.IsError)
            return Refuse(ctx, ref gate, place, status);
        if (IsInterruptPending(ctx.Lp))
        {
            r.Rcx = pageInfo;
            r.Rdx = tdr;
            _pamt.Release(ctx.Slot, ref hold);
            return Refuse(ctx, ref gate, place, TdxStatus.INTERRUPTED_RESTARTABLE);
        }

        bool alone = TryTakeLarge(ctx, page, large, place.Level);
        if (!alone || !TrySplitPamt(gate.Td, page, place.Level - 1))
        {
            if (alone)
                _pamt.Lock(large).ReleaseExclusive();
            _pamt.Release(ctx.Slot, ref hold);
            return Refuse(ctx, ref gate, place, TdxStatus.OPERAND_BUSY | OperandId.RCX);
        }

        FillTable(place, page, table);
        _pamt.Lock(large).ReleaseExclusive(PamtEntry.Freed(_pamt.Word(large).PlainRead(), place.Level));
        _pamt.Release(ctx.Slot, ref hold, PamtEntry.Content(PageType.EPT, gate.Td.Tdr.Frame));
        gate.Td.AddChildren(ctx.Id, 1);
        Machine.Ledger.ToModule(new Hpa(table), new Hkid(gate.Td.Hkid), gate.Td.Tdr);
        StoreEntry(place, SeptEntry.NlMapped | table);
        Leave(ctx, ref gate);
        return TdxStatus.SUCCESS;
    }

    // Under the explorer nobody goes the short way, so nobody can have locked a small entry without the large one.
    private bool TryTakeLarge(LpContext ctx, ulong page, ulong large, int level)
    {
        if (_pamt.Lock(large).TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return false;
        if (level < 2 || Explore.On || _pamt.IsUnlockedBelow1G(page))
            return true;
        _pamt.Lock(large).ReleaseExclusive();
        return false;
    }

    // The large entry is held alone. A call that goes the short way (TryAssignAtOnce) may have locked a 4 KiB entry below it and not yet seen that the page is
    // part of a large one: its lock counts as if it shared the large entry, and to write over it would let it take the page from under its new owner (TM02).
    private bool TrySplitPamt(TdControl td, ulong page, int small)
    {
        for (ulong i = 0; i < 512; i++)
        {
            ulong entry = _pamt.EntryAt(page + (i << ((9 * small) + 12)), small);
            ulong seen = _pamt.Word(entry).PlainRead();
            if ((seen & TryLock.Exclusive) != 0 || !_pamt.Word(entry).CompareExchange(ref seen, PamtEntry.Content(PageType.REG, td.Tdr.Frame, small)))
            {
                JoinPamt(page, small, i);
                return false;
            }

            _pamt.Bepoch(entry).PlainWrite(0);
        }

        return true;
    }

    // The first entries of a large page's parts become free ones that the large entry covers. Nobody gets at them: the large entry is held alone.
    private void JoinPamt(ulong page, int small, ulong count)
    {
        for (ulong i = 0; i < count; i++)
        {
            ulong entry = _pamt.EntryAt(page + (i << ((9 * small) + 12)), small);
            _pamt.Word(entry).PlainWrite(PamtEntry.Freed(_pamt.Word(entry).PlainRead(), small));
        }
    }

    private void FillTable(in SeptPlace place, ulong page, ulong table)
    {
        int small = place.Level - 1;
        ulong bits = (place.Entry & SeptEntry.Pending) != 0 ? SeptEntry.PendingLeaf : SeptEntry.MappedLeaf;
        for (int i = 0; i < 512; i++)
            _memory.Entry(new Hpa(table), i).PlainWrite(bits | (page + ((ulong)i << ((9 * small) + 12))));
    }

    /// <summary>An external event waits for the processor: interruptible leaves stop (tdx-module 5.7; decisions D33).</summary>
    private static bool IsInterruptPending(LogicalProcessor lp) => lp.PendingInterrupt.Read() >= 0 || lp.PendingNmi.Read();
}
