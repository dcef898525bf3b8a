namespace Tdp.Mmu;

/// <content>The fault path, in the exact order of tdp-mmu 5.</content>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Handles one EPT violation or MMIO misconfiguration of a vCPU (KVM: kvm_mmu_page_fault; tdp-mmu 5.2). No lock may be held; takes mmu_lock read.
    /// </summary>
    /// <param name="vcpu">The vCPU; its roots must be loaded.</param>
    /// <param name="addr">Faulting address, with the alias bit.</param>
    /// <param name="errorCode">See <see cref="PfErr"/>. A TD's private access carries <see cref="PfErr.PrivateAccess"/> and write.</param>
    /// <returns>
    /// Retry, Emulate, WriteProtected, Fixed, Spurious, or a negative errno for user space; with <see cref="FaultResult.BadAddress"/> the vCPU's
    /// <see cref="MmuVcpu.MemoryFault"/> says what the exit reports.
    /// </returns>
    public FaultResult HandleFault(MmuVcpu vcpu, Gpa addr, ulong errorCode)
    {
        if (vcpu.DirectRoot is null)
            return NoRoot();
        if ((errorCode & PfErr.Rsvd) != 0)
        {
            FaultResult found = HandleMisconfiguration(vcpu, addr, errorCode);
            if (found != FaultResult.Invalid)
                return found;
        }

        ref Fault fault = ref Decode(vcpu, addr, errorCode);
        if (Checks.On && FaultObserver is not null)
            return HandleObserved(ref fault);
        FaultResult result = Resolve(ref fault);
        if (result == FaultResult.Fixed)
        {
            Statistics.Add(vcpu.Actor, MmuCounter.PfFixed);
            return result;
        }

        return Finish(vcpu, addr, errorCode, result);
    }

    /// <summary>
    /// One prefetching fault (KVM_PRE_FAULT_MEMORY; tdp-mmu 5.9): like an access that never happened, so Accessed stays clear. The caller loops while the
    /// answer is Retry. No lock may be held.
    /// </summary>
    /// <param name="vcpu">The vCPU; its roots must be loaded.</param>
    /// <param name="addr">Address, with the alias bit.</param>
    /// <param name="errorCode">See <see cref="PfErr"/>.</param>
    /// <param name="level">Level of the mapping: progress goes to its end.</param>
    public FaultResult Prefetch(MmuVcpu vcpu, Gpa addr, ulong errorCode, out Level level)
    {
        if (vcpu.DirectRoot is null)
        {
            level = Level.K4;
            return NoRoot();
        }

        ref Fault fault = ref Decode(vcpu, addr, errorCode);
        fault.Prefetch = true;
        if (Checks.On && FaultObserver is not null)
            FaultObserver.Began(fault);
        FaultResult result = Resolve(ref fault);
        if (Checks.On && FaultObserver is not null)
            FaultObserver.Ended(fault, result);
        level = fault.GoalLevel;
        return result;
    }

    /// <summary>
    /// Maps a given page at 4K in the mirror, for the initial image (KVM: kvm_tdp_mmu_map_private_pfn; tdp-mmu 5.10). slots_lock is the caller's; takes
    /// mmu_lock read. Loops while the answer is Retry.
    /// </summary>
    /// <returns>Fixed, or an errno: -EIO when the page was mapped already or the VM is dead, -ENOMEM.</returns>
    public FaultResult MapPrivatePfn(MmuVcpu vcpu, MmuSlot slot, Gfn gfn, ulong pfn)
    {
        if (!_hasMirror)
        {
            Warn("a private page was given to a VM without mirror");
            return FaultResult.IoError;
        }

        if (!ReloadRoots(vcpu) || !vcpu.TopUp())
            return FaultResult.NoMemory;
        var spin = default(Spin);
        while (true)
        {
            if (Death.IsDead)
                return FaultResult.IoError;
            ref Fault fault = ref Decode(vcpu, gfn.Gpa, PfErr.GuestFinal | PfErr.PrivateAccess);
            fault.Prefetch = true;
            fault.MaxLevel = Level.K4;
            fault.Slot = slot;
            fault.Pfn = pfn;
            fault.MapWritable = true;
            MmuLock.EnterRead(vcpu.Actor);
            fault.Seq = Invalidation.Snapshot();
            FaultResult result = Invalidation.MustRetry(fault.Seq, gfn) ? FaultResult.Retry : Map(ref fault, vcpu.MirrorRoot!);
            MmuLock.ExitRead(vcpu.Actor);
            if (result == FaultResult.Fixed)
                return result;
            if (result != FaultResult.Retry)
                return FaultResult.IoError;
            spin.Once(vcpu.Actor, ObjectId.Lock("mmu_lock", Options.VmNumber));
            if (!vcpu.TopUp())
                return FaultResult.NoMemory;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal ref Fault Decode(MmuVcpu vcpu, Gpa addr, ulong errorCode)
    {
        ref Fault fault = ref vcpu.Fault;
        fault.Begin(addr, errorCode, new Gfn((addr.Value >> 12) & ~_aliasGfnMask));
        return ref fault;
    }

    // KVM: kvm_tdp_mmu_page_fault, tdp-mmu 5.3.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private FaultResult Resolve(ref Fault fault)
    {
        // Only a fault on an entry that grants something (or on one that gave its rights up for access tracking) can be tracked or fast.
        if (fault.Present || !_adEnabled)
        {
            FaultResult without = TrackedOrFast(ref fault);
            if (without != FaultResult.Invalid)
                return without;
        }

        return ResolveSlow(ref fault);
    }

    // Steps 3 to 8: everything that needs a new mapping.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal FaultResult ResolveSlow(ref Fault fault)
    {
        MmuVcpu vcpu = fault.Vcpu;
        if (!vcpu.TopUp())
            return FaultResult.NoMemory;

        // The snapshot comes first: whatever the backing answers is at least as new (I54).
        fault.Seq = Invalidation.Snapshot();
        FaultResult result = _backing.Resolve(ref fault);
        if (result != FaultResult.Continue)
            return result;

        MmuLock.EnterRead(vcpu.Actor);
        Root root = (fault.Addr.Value >> 12 & _aliasGfnMask) == _aliasGfnMask ? vcpu.DirectRoot! : vcpu.MirrorRoot!;
        if (IsStale(ref fault))
            result = FaultResult.Retry;
        else
            result = Map(ref fault, root);
        MmuLock.ExitRead(vcpu.Actor);
        return result;
    }

    // Only the direct root is examined, for a private fault too: a mirror root is never invalidated while vCPUs can run (I41).
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool IsStale(ref Fault fault) =>
        fault.Vcpu.DirectRoot!.IsInvalid || (fault.Slot is not null && Invalidation.MustRetry(fault.Seq, fault.Gfn));

    // The rest of HandleFault with somebody watching.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult HandleObserved(ref Fault fault)
    {
        FaultObserver!.Began(fault);
        FaultResult result = Resolve(ref fault);
        if (result == FaultResult.Fixed)
            Statistics.Add(fault.Vcpu.Actor, MmuCounter.PfFixed);
        else
            result = Finish(fault.Vcpu, fault.Addr, fault.ErrorCode, result);
        FaultObserver.Ended(fault, result);
        return result;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult NoRoot()
    {
        Warn("a fault of a vCPU without a direct root");
        return FaultResult.Retry;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult Finish(MmuVcpu vcpu, Gpa addr, ulong errorCode, FaultResult result)
    {
        bool isPrivate = (errorCode & PfErr.PrivateAccess) != 0;
        switch (result)
        {
            case FaultResult.Invalid or FaultResult.Continue:
                return EndedBadly(vcpu, addr, result);
            case FaultResult.Emulate when isPrivate:
                return RefuseToEmulate(vcpu, addr);
            case FaultResult.Emulate:
                Statistics.Add(vcpu.Actor, MmuCounter.PfEmulate);
                return result;
            case FaultResult.Spurious:
                Statistics.Add(vcpu.Actor, MmuCounter.PfSpurious);
                return result;
            case FaultResult.Retry:
                Statistics.Add(vcpu.Actor, MmuCounter.PfRetry);
                return result;
            default:
                Statistics.Add(vcpu.Actor, MmuCounter.PfOther);
                return result;
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult EndedBadly(MmuVcpu vcpu, Gpa addr, FaultResult result)
    {
        Bug(vcpu.Actor, $"a fault at {addr} ended as {result}");
        return FaultResult.IoError;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult RefuseToEmulate(MmuVcpu vcpu, Gpa addr)
    {
        Warn($"emulation of a private access at {addr}");
        vcpu.MemoryFault = new MemoryFaultInfo(Options.AliasBit.Strip(addr).Gpa, 4096, true);
        return FaultResult.BadAddress;
    }
}
