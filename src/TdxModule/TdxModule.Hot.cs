namespace Tdp.Module;

// Typed entries of the leaves on the fault and zap paths: the same leaf with the same checks, without register marshalling. With a port installed or
// before SYS_READY they go through the dispatcher like any other call.
public sealed partial class TdxModule
{
    /// <summary>TDH.MEM.PAGE.AUG (tdx-module 5.7).</summary>
    /// <param name="lp">The calling processor, outside any TD.</param>
    /// <param name="pageInfo">GPA and level, 4 KiB or 2 MiB: <see cref="PageInfo.Of"/>.</param>
    /// <param name="tdr">The TD.</param>
    /// <param name="page">The free page; must be aligned to the level.</param>
    /// <param name="rcx">Extended information: the entry.</param>
    /// <param name="rdx">Extended information: level and state.</param>
    /// <returns>The status.</returns>
    public TdxStatus MemPageAug(LogicalProcessor lp, ulong pageInfo, Hpa tdr, Hpa page, out ulong rcx, out ulong rdx)
    {
        LpContext ctx = _lps[lp.Id];
        if (_guarded || !lp.VmxOn || ctx.Current is not null)
            return Marshal(lp, TdhLeaf.MEM_PAGE_AUG, pageInfo, tdr.Value, page.Value, out rcx, out rdx);
        lp.Spend(SimClock.ModuleCallTicks);
        rcx = rdx = 0;
        if (!TryAugAtOnce(ctx, pageInfo, tdr.Value, page.Value))
            return AugInOrderCounted(ctx, pageInfo, tdr.Value, page.Value, out rcx, out rdx);
        ctx.CountSuccess((int)TdhLeaf.MEM_PAGE_AUG);
        return TdxStatus.SUCCESS;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus AugInOrderCounted(LpContext ctx, ulong pageInfo, ulong tdr, ulong page, out ulong rcx, out ulong rdx)
    {
        TdxStatus status = AugInOrder(ctx, pageInfo, tdr, page, out rcx, out rdx);
        ctx.Count((int)TdhLeaf.MEM_PAGE_AUG, status);
        return status;
    }

    /// <summary>TDH.MEM.SEPT.ADD, version 0, without "allow existing" (tdx-module 5.7). Parameters as for <see cref="MemPageAug"/>; level 2 MiB or above.</summary>
    public TdxStatus MemSeptAdd(LogicalProcessor lp, ulong pageInfo, Hpa tdr, Hpa page, out ulong rcx, out ulong rdx) =>
        Marshal(lp, TdhLeaf.MEM_SEPT_ADD, pageInfo, tdr.Value, page.Value, out rcx, out rdx);

    /// <summary>TDH.MEM.RANGE.BLOCK (tdx-module 5.7). Takes the Secure EPT tree exclusively: busy while any other leaf uses the tree.</summary>
    public TdxStatus MemRangeBlock(LogicalProcessor lp, ulong pageInfo, Hpa tdr, out ulong rcx, out ulong rdx)
    {
        if (MustMarshal(lp))
            return Marshal(lp, TdhLeaf.MEM_RANGE_BLOCK, pageInfo, tdr.Value, 0, out rcx, out rdx);
        LpContext ctx = Begin(lp);
        TdxStatus status = RangeBlock(ctx, pageInfo, tdr.Value, out rcx, out rdx);
        ctx.Count((int)TdhLeaf.MEM_RANGE_BLOCK, status);
        return status;
    }

    /// <summary>TDH.MEM.TRACK (tdx-module 6.2).</summary>
    public TdxStatus MemTrack(LogicalProcessor lp, Hpa tdr)
    {
        if (MustMarshal(lp))
            return Marshal(lp, TdhLeaf.MEM_TRACK, tdr.Value, 0, 0, out _, out _);
        LpContext ctx = Begin(lp);
        TdxStatus status = Track(ctx, tdr.Value);
        ctx.Count((int)TdhLeaf.MEM_TRACK, status);
        return status;
    }

    /// <summary>TDH.MEM.PAGE.REMOVE (tdx-module 5.7). On success RCX is the page's address.</summary>
    public TdxStatus MemPageRemove(LogicalProcessor lp, ulong pageInfo, Hpa tdr, out ulong rcx, out ulong rdx)
    {
        if (MustMarshal(lp))
            return Marshal(lp, TdhLeaf.MEM_PAGE_REMOVE, pageInfo, tdr.Value, 0, out rcx, out rdx);
        LpContext ctx = Begin(lp);
        TdxStatus status = PageRemove(ctx, pageInfo, tdr.Value, out rcx, out rdx);
        ctx.Count((int)TdhLeaf.MEM_PAGE_REMOVE, status);
        return status;
    }

    /// <summary>TDH.PHYMEM.PAGE.WBINVD (tdx-module 3.4).</summary>
    /// <param name="lp">The calling processor.</param>
    /// <param name="page">The page, given back before.</param>
    /// <param name="hkid">The KeyID whose lines are written back.</param>
    public TdxStatus PhymemPageWbinvd(LogicalProcessor lp, Hpa page, Hkid hkid)
    {
        ulong operand = page.Value | ((ulong)hkid.Value << Machine.Description.HkidShift);
        if (MustMarshal(lp))
            return Marshal(lp, TdhLeaf.PHYMEM_PAGE_WBINVD, operand, 0, 0, out _, out _);
        LpContext ctx = Begin(lp);
        TdxStatus status = PageWbinvd(ctx, operand);
        ctx.Count((int)TdhLeaf.PHYMEM_PAGE_WBINVD, status);
        return status;
    }

    /// <summary>
    /// TDG.MEM.PAGE.ACCEPT by the vCPU that is inside its TD on <paramref name="lp"/>, as if it had executed TDCALL, without an instruction stream: for
    /// benchmarks. Interrupted 2 MiB accepts and calls that would exit return <c>INTERRUPTED_RESUMABLE</c> and do nothing else.
    /// </summary>
    /// <param name="lp">The processor.</param>
    /// <param name="pageInfo">GPA and level, 4 KiB or 2 MiB.</param>
    /// <returns>What the guest would find in RAX.</returns>
    public TdxStatus GuestPageAccept(LogicalProcessor lp, ulong pageInfo)
    {
        TdVcpu vcpu = _lps[lp.Id].Current ?? throw new InvalidOperationException($"LP {lp.Id} is not inside a TD.");
        return PageAccept(lp, vcpu, pageInfo, out TdxStatus status, out _) == GuestCallEnd.Answered ? status : TdxStatus.INTERRUPTED_RESUMABLE;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool MustMarshal(LogicalProcessor lp) => _guarded || !lp.VmxOn || _lps[lp.Id].Current is not null;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private LpContext Begin(LogicalProcessor lp)
    {
        lp.Spend(SimClock.ModuleCallTicks);
        return _lps[lp.Id];
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus Marshal(LogicalProcessor lp, TdhLeaf leaf, ulong first, ulong second, ulong third, out ulong rcx, out ulong rdx)
    {
        SeamRegisters registers = SeamRegisters.Call(leaf, first, second, third);
        Seamcall(lp, ref registers);
        rcx = registers.Rcx;
        rdx = registers.Rdx;
        return registers.Status;
    }
}
