namespace Tdp.Module;

// TDH.MEM.RANGE.BLOCK, RANGE.UNBLOCK, MEM.TRACK: the first half of taking a page away from a running TD (tdx-module 5.7, 6).
public sealed partial class TdxModule
{
    private TdxStatus RangeBlock(LpContext ctx, ulong pageInfo, ulong tdr, out ulong rcx, out ulong rdx)
    {
        rcx = rdx = 0;
        TdxStatus status = EnterMem(ctx, tdr, pageInfo, 0, ToRoot, OpStates.Change, TreeUse.Exclusive, out MemGate gate);
        if (status.IsError)
            return status;
        if (TryBlockAtOnce(gate))
        {
            Leave(ctx, ref gate);
            return TdxStatus.SUCCESS;
        }

        status = FindAndLock(gate, out SeptPlace place, ref rcx, ref rdx);
        if (status.IsError)
        {
            Leave(ctx, ref gate);
            return status;
        }

        SeptState state = SeptEntry.StateOf(place.Entry);
        if (state.IsBlocked())
            return Reject(ctx, ref gate, place, TdxStatus.GPA_RANGE_ALREADY_BLOCKED | OperandId.RCX, out rcx, out rdx);
        if (state is not (SeptState.MAPPED or SeptState.PENDING or SeptState.NL_MAPPED))
            return Reject(ctx, ref gate, place, TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, out rcx, out rdx);

        // The entry must be non-present before TD_EPOCH is read: if a TRACK slips in between, BEPOCH is later than necessary, never too early
        // (tdx-module 6.5; I26). The exchange is the fence between the two. The entry stays locked until BEPOCH stands, because REMOVE reads it.
        ulong blocked = (place.Entry & ~(SeptEntry.Rwx | CounterOf(place))) | SeptEntry.Blocked;
        Septe(place.At).Exchange(blocked | SeptEntry.Lock);
        ulong epoch = EpochWord.Epoch(gate.Td.Epoch.Read());
        _pamt.Bepoch(TargetPamt(place)).Write(epoch);
        StoreEntry(place, blocked);
        if (state == SeptState.NL_MAPPED)
            gate.Td.CutPath();
        Leave(ctx, ref gate);
        return TdxStatus.SUCCESS;
    }

    // In free runs the entry is blocked by one compare-exchange: the tree is held alone, so only a guest's ACCEPT or a walk competes for it, and REMOVE, which
    // reads BEPOCH, cannot run. The exchange orders the entry before the read of TD_EPOCH as above.
    private bool TryBlockAtOnce(in MemGate gate)
    {
        if (Explore.On || !WalkTo(gate.Td, gate.Gpa, gate.Level, out SeptPlace place))
            return false;
        ulong seen = place.Entry;
        if ((seen & (SeptEntry.Lock | SeptEntry.HostPriority)) != 0
            || SeptEntry.StateOf(seen) is not (SeptState.MAPPED or SeptState.PENDING or SeptState.NL_MAPPED)
            || !Septe(place.At).CompareExchange(ref seen, (seen & ~(SeptEntry.Rwx | CounterOf(place))) | SeptEntry.Blocked))
            return false;
        ulong epoch = EpochWord.Epoch(gate.Td.Epoch.Read());
        _pamt.Bepoch(TargetPamt(place)).Write(epoch);
        if (!SeptEntry.IsLeaf(place.Entry))
            gate.Td.CutPath();
        return true;
    }

    private static ulong CounterOf(in SeptPlace place) =>
        place.Level == 1 && (place.Entry & SeptEntry.Pending) != 0 ? SeptEntry.AcceptCounter : 0;

    private TdxStatus RangeUnblock(LpContext ctx, ulong pageInfo, ulong tdr, out ulong rcx, out ulong rdx)
    {
        rcx = rdx = 0;
        TdxStatus status = EnterMem(ctx, tdr, pageInfo, 0, ToRoot, OpStates.Change, TreeUse.Exclusive, out MemGate gate);
        if (status.IsError)
            return status;
        status = FindAndLock(gate, out SeptPlace place, ref rcx, ref rdx);
        if (status.IsError)
        {
            Leave(ctx, ref gate);
            return status;
        }

        if (!SeptEntry.StateOf(place.Entry).IsBlocked())
            return Reject(ctx, ref gate, place, TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, out rcx, out rdx);

        // The only leaf that blames the tree here (tdx-module 11, quirk 3).
        if (TdControl.NeedsTracking(gate.State) && !IsTracked(gate.Td, TargetPamt(place)))
            return Refuse(ctx, ref gate, place, TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.SEPT_TREE);
        StoreEntry(place, Unblocked(place.Entry));
        Leave(ctx, ref gate);
        return TdxStatus.SUCCESS;
    }

    private static ulong Unblocked(ulong entry)
    {
        ulong open = entry & ~SeptEntry.Blocked;
        return (open & SeptEntry.Pending) != 0 ? open : open | SeptEntry.Rwx;
    }

    private bool IsTracked(TdControl td, ulong pamtEntry) => EpochWord.IsTracked(td.Epoch.Read(), _pamt.Bepoch(pamtEntry).Read());

    private TdxStatus Track(LpContext ctx, ulong tdr)
    {
        // The tree's place in the group is left to OP_STATE: TRACK does not touch the Secure EPT (tdx-module 6.2).
        if (!TryEnterMemAtOnce(ctx, tdr, 0, 0, 0, OpStates.Track, TreeUse.None, out MemGate gate))
        {
            TdxStatus status = EnterTd(ctx, tdr, OperandId.RCX, OpStates.Track, out gate);
            if (status.IsError)
                return status;
        }

        TdxStatus result = AdvanceEpoch(ctx, gate.Td);
        Leave(ctx, ref gate);
        return result;
    }

    private static TdxStatus AdvanceEpoch(LpContext ctx, TdControl td)
    {
        TryLock epochLock = new(ref td.EpochLock);
        if (epochLock.TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return TdxStatus.OPERAND_BUSY | OperandId.TD_EPOCH;
        TdxStatus status = TdxStatus.SUCCESS;
        AtomicWord word = td.Epoch;
        ulong seen = word.Read();
        while (true)
        {
            // Exits lower the counts beside us; entries are kept out by the lock.
            ulong next = EpochWord.Epoch(seen) + 1;
            if (EpochWord.Count(seen, next) != 0)
            {
                status = TdxStatus.PREVIOUS_TLB_EPOCH_BUSY;
                break;
            }

            if (next > uint.MaxValue)
                throw new ArchitecturalFatalException("TD_EPOCH has left the 32 bits that the simulator keeps (D15).");
            if (word.CompareExchange(ref seen, (seen & ~0xFFFF_FFFFUL) | next))
                break;
        }

        epochLock.ReleaseExclusive();
        return status;
    }
}
