namespace Tdp.Module;

/// <summary>How a leaf uses the Secure EPT tree (tdx-module 7.4).</summary>
internal enum TreeUse : byte
{
    /// <summary>Not at all.</summary>
    None,

    /// <summary>Beside other users.</summary>
    Shared,

    /// <summary>Alone.</summary>
    Exclusive,
}

/// <summary>
/// What a TDH.MEM leaf holds while it works: TDR shared, OP_STATE shared, the tree. Lives on the caller's stack. In free runs the shared holds are
/// taken together (<see cref="SharedGroup"/>); otherwise one by one in the documented order.
/// </summary>
internal struct MemGate
{
    public TdControl Td;

    /// <summary>TD state word as checked.</summary>
    public ulong State;

    /// <summary>Hazard holds taken together; 0 when taken one by one.</summary>
    public uint Group;

    public PageHold Tdr;
    public int OpState;
    public int Tree;
    public bool HasOpState;
    public TreeUse TreeUse;
    public ulong Gpa;
    public int Level;
}

// The checks that all TDH.MEM leaves share (tdx-module 4.3, 5.6 steps 2 to 5).
public sealed partial class TdxModule
{
    /// <summary>Level limit "the entries of the root".</summary>
    private const int ToRoot = -1;

    private TdxStatus EnterMem(LpContext ctx, ulong tdr, ulong pageInfo, int minLevel, int maxLevel, uint allowed, TreeUse tree, out MemGate gate)
    {
        if (TryEnterMemAtOnce(ctx, tdr, pageInfo, minLevel, maxLevel, allowed, tree, out gate))
            return TdxStatus.SUCCESS;
        return EnterMemInOrder(ctx, tdr, pageInfo, minLevel, maxLevel, allowed, tree, out gate);
    }

    // Everything shared with one fence, if nothing is unusual; a failure of any kind is left to the ordered way, which names it.
    private bool TryEnterMemAtOnce(
        LpContext ctx,
        ulong tdr,
        ulong pageInfo,
        int minLevel,
        int maxLevel,
        uint allowed,
        TreeUse tree,
        out MemGate gate)
    {
        gate = default;
        if (Explore.On || ((tdr != ctx.LastTdr || ctx.LastTd is null) && !FindTd(ctx, tdr)))
            return false;
        TdControl td = ctx.LastTd!;
        ref ulong tdrLock = ref _memory.Word(td.TdrEntry);
        ref ulong treeLock = ref td.OpStateLock;
        if (tree == TreeUse.Shared)
            treeLock = ref td.SeptTreeLock;

        // The entries above the TDR are not shared here: who wants one of them alone looks for held TDRs below it (Pamt.LockFree).
        // Who wants the tree alone has its compare-exchange for a fence.
        uint holds;
        if (tree != TreeUse.Exclusive)
        {
            if (!SharedGroup.TryTake(ctx.Slot, ref tdrLock, ref td.OpStateLock, ref treeLock, out holds))
                return false;
        }
        else if (!TryTakeTreeAlone(ctx, td, ref tdrLock, out holds))
        {
            return false;
        }

        // Judged under the lock: the page may have stopped being this TD's root (see LpContext.LastTdr).
        ulong state = td.State.Read();
        if (TdControl.IsOpen(state, allowed)
            && PageInfo.IsLegal(pageInfo, minLevel, maxLevel == ToRoot ? td.RootLevel : maxLevel)
            && (pageInfo & td.IllegalGpaBits) == 0)
        {
            gate.Td = td;
            gate.State = state;
            gate.Group = holds;
            gate.TreeUse = tree;
            gate.Gpa = PageInfo.GpaOf(pageInfo);
            gate.Level = PageInfo.LevelOf(pageInfo);
            return true;
        }

        if (tree == TreeUse.Exclusive)
            new TryLock(ref td.SeptTreeLock).ReleaseExclusive();
        SharedGroup.Release(ctx.Slot, holds);
        return false;
    }

    // What the page's entry says now is only a hint for the next calls on this processor.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool FindTd(LpContext ctx, ulong tdr)
    {
        if ((tdr & 0xFFF) != 0 || !_pamt.Covers(tdr) || PamtEntry.TypeOf(_pamt.Word(_pamt.Entry4K(tdr)).Read()) != PageType.TDR)
            return false;
        if (_tds.Find(_memory.Record(tdr >> 12).Tag) is not { } td || td.Tdr.Value != tdr)
            return false;
        ctx.LastTd = td;
        ctx.LastTdr = tdr;
        return true;
    }

    private static bool TryTakeTreeAlone(LpContext ctx, TdControl td, ref ulong tdrLock, out uint holds)
    {
        if (!SharedGroup.TryPublish(ctx.Slot, ref tdrLock, ref td.OpStateLock, ref td.OpStateLock, out holds))
            return false;
        TryLock treeLock = new(ref td.SeptTreeLock);
        bool taken = treeLock.TryExclusive(ctx.Slot, LockSide.Host) == LockAnswer.Taken;
        if (taken && SharedGroup.IsGranted(ref tdrLock, ref td.OpStateLock, ref td.OpStateLock))
            return true;
        if (taken)
            treeLock.ReleaseExclusive();
        SharedGroup.Release(ctx.Slot, holds);
        return false;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus EnterMemInOrder(LpContext ctx, ulong tdr, ulong pageInfo, int minLevel, int maxLevel, uint allowed, TreeUse tree, out MemGate gate)
    {
        TdxStatus status = EnterTd(ctx, tdr, OperandId.RDX, allowed, out gate);
        if (status.IsError)
            return status;
        status = CheckPageInfo(gate.Td, pageInfo, minLevel, maxLevel);
        if (!status.IsError)
            status = TakeTree(ctx, tree, ref gate);
        if (status.IsError)
        {
            Leave(ctx, ref gate);
            return status;
        }

        gate.Gpa = PageInfo.GpaOf(pageInfo);
        gate.Level = PageInfo.LevelOf(pageInfo);
        return TdxStatus.SUCCESS;
    }

    private static TdxStatus CheckPageInfo(TdControl td, ulong pageInfo, int minLevel, int maxLevel)
    {
        bool legal = PageInfo.IsLegal(pageInfo, minLevel, maxLevel == ToRoot ? td.RootLevel : maxLevel) && (pageInfo & td.IllegalGpaBits) == 0;
        return legal ? TdxStatus.SUCCESS : TdxStatus.OPERAND_INVALID | OperandId.RCX;
    }

    private static TdxStatus TakeTree(LpContext ctx, TreeUse tree, ref MemGate gate)
    {
        TryLock treeLock = new(ref gate.Td.SeptTreeLock);
        LockAnswer answer = tree switch
        {
            TreeUse.Shared => treeLock.TryShared(ctx.Slot, LockSide.Host, out gate.Tree),
            TreeUse.Exclusive => treeLock.TryExclusive(ctx.Slot, LockSide.Host),
            _ => LockAnswer.Taken,
        };
        if (answer != LockAnswer.Taken)
            return TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE;
        gate.TreeUse = tree;
        return TdxStatus.SUCCESS;
    }

    /// <summary>The TD gate with the TDR and OP_STATE shared (tdx-module 4.3 steps 1 to 9); the tree is not touched.</summary>
    private TdxStatus EnterTd(LpContext ctx, ulong tdr, OperandId operand, uint allowed, out MemGate gate)
    {
        gate = default;
        TdxStatus status = LockTdr(ctx, tdr, operand, exclusive: false, out gate.Tdr, out TdControl? td);
        if (td is null)
            return status;
        gate.Td = td;
        status = CheckOpen(td, out ulong state);
        if (!status.IsError)
        {
            gate.HasOpState = new TryLock(ref td.OpStateLock).TryShared(ctx.Slot, LockSide.Host, out gate.OpState) == LockAnswer.Taken;
            status = gate.HasOpState ? CheckOpState(state, allowed) : TdxStatus.OPERAND_BUSY | OperandId.OP_STATE;
        }

        gate.State = state;
        if (status.IsError)
            Leave(ctx, ref gate);
        return status;
    }

    /// <summary>The TD gate with the TDR exclusive, which stands for OP_STATE and the tree as well (PAGE.ADD, MR.*, MNG.INIT).</summary>
    private TdxStatus EnterTdAlone(LpContext ctx, ulong tdr, OperandId operand, uint allowed, out MemGate gate)
    {
        gate = default;
        TdxStatus status = LockTdr(ctx, tdr, operand, exclusive: true, out gate.Tdr, out TdControl? td);
        if (td is null)
            return status;
        gate.Td = td;
        status = CheckOpen(td, out gate.State);
        if (!status.IsError)
            status = CheckOpState(gate.State, allowed);
        if (status.IsError)
            Leave(ctx, ref gate);
        return status;
    }

    /// <summary>Steps 1 to 4 of the gate. <paramref name="td"/> is null exactly on failure.</summary>
    private TdxStatus LockTdr(LpContext ctx, ulong tdr, OperandId operand, bool exclusive, out PageHold hold, out TdControl? td)
    {
        td = null;
        TdxStatus status = _pamt.LockExplicit(ctx.Slot, tdr, operand, 0, exclusive, out hold, out ulong word);
        if (status.IsError)
            return status;
        if (hold.Level != 0 || PamtEntry.TypeOf(word) != PageType.TDR)
        {
            _pamt.Release(ctx.Slot, ref hold);
            return TdxStatus.PAGE_METADATA_INCORRECT | operand;
        }

        td = _tds[_memory.Record(tdr >> 12).Tag];
        return TdxStatus.SUCCESS;
    }

    // Steps 5 to 7.
    private static TdxStatus CheckOpen(TdControl td, out ulong state)
    {
        state = td.State.Read();
        if (TdControl.IsFatal(state))
            return TdxStatus.TD_FATAL;
        if (TdControl.LifecycleOf(state) != TdLifecycle.KEYS_CONFIGURED)
            return TdxStatus.TD_KEYS_NOT_CONFIGURED;
        return TdControl.PagesOf(state) < TdControl.MinPages ? TdxStatus.TDCS_NOT_ALLOCATED : TdxStatus.SUCCESS;
    }

    private static TdxStatus CheckOpState(ulong state, uint allowed) =>
        ((allowed >> (int)TdControl.OpStateOf(state)) & 1) != 0 ? TdxStatus.SUCCESS : TdxStatus.OP_STATE_INCORRECT;

    private void Leave(LpContext ctx, ref MemGate gate)
    {
        if (gate.TreeUse == TreeUse.Exclusive)
            new TryLock(ref gate.Td.SeptTreeLock).ReleaseExclusive();
        if (gate.Group != 0)
        {
            SharedGroup.Release(ctx.Slot, gate.Group);
            return;
        }

        if (gate.TreeUse == TreeUse.Shared)
            new TryLock(ref gate.Td.SeptTreeLock).ReleaseShared(ctx.Slot, gate.Tree);
        if (gate.HasOpState)
            new TryLock(ref gate.Td.OpStateLock).ReleaseShared(ctx.Slot, gate.OpState);
        _pamt.Release(ctx.Slot, ref gate.Tdr);
    }
}
