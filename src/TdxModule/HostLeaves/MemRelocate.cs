namespace Tdp.Module;

// TDH.MEM.PAGE.RELOCATE: the page behind a GPA is replaced, content kept (tdx-module 5.7).
public sealed partial class TdxModule
{
    private TdxStatus PageRelocate(LpContext ctx, ulong pageInfo, ulong tdr, ulong target, out ulong rcx, out ulong rdx)
    {
        rcx = rdx = 0;
        TdxStatus status = EnterMem(ctx, tdr, pageInfo, 0, 0, OpStates.Change, TreeUse.Shared, out MemGate gate);
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
        ulong page = place.Entry & SeptEntry.Address;
        if (page == target)
            return Refuse(ctx, ref gate, place, TdxStatus.OPERAND_INVALID | OperandId.R8);
        ulong entry = _pamt.Entry4K(page);
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

        status = AssignInOrder(ctx, ref gate, target, OperandId.R8, PageType.REG, 0);
        if (status.IsError)
        {
            _pamt.Lock(entry).ReleaseExclusive();
            return Refuse(ctx, ref gate, place, status);
        }

        bool pending = (place.Entry & SeptEntry.Pending) != 0;
        if (!pending)
            _memory.Copy(new Hpa(page), new Hpa(target));
        Machine.Ledger.ContentChanged(new Hpa(target));
        StoreEntry(place, (pending ? SeptEntry.PendingLeaf : SeptEntry.MappedLeaf) | target);
        Release(ctx, gate.Td, page, entry, 0);
        Leave(ctx, ref gate);
        rcx = page;
        return TdxStatus.SUCCESS;
    }
}
