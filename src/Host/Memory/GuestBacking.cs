namespace Tdp.Host;

/// <summary>
/// What stands behind the guest's frame numbers: slots, attributes, guest_memfd and host memory, in the order of KVM's faultin_pfn (tdp-mmu 5.4).
/// </summary>
/// <remarks>
/// Runs inside the vCPU's SRCU section and without mmu_lock. Conversions, punch holes, notifiers and memslot updates may run beside it; whatever it finds is
/// therefore only valid if the MMU's invalidation check, made afterwards under mmu_lock against the snapshot taken before, passes (I53, I54).
/// </remarks>
internal sealed class GuestBacking : IGuestBacking
{
    private readonly Vm _vm;
    private readonly MemoryAttributes? _attributes;
    private readonly MemslotTable _ordinary;
    private readonly MemslotTable _smm;

    public GuestBacking(Vm vm)
    {
        _vm = vm;
        _attributes = vm.Attributes;
        _ordinary = vm.SlotsOf(0);
        _smm = vm.SlotsOf(vm.AddressSpaces - 1);
    }

    public FaultResult Resolve(ref Fault fault)
    {
        MmuVcpu vcpu = fault.Vcpu;
        LookupCache cache = CacheOf(vcpu);

        // Step 1, a frame number with the alias bit, cannot be: Gfn values come from AliasBit.Strip (I11).
        Memslot? slot = FindSlot(cache, vcpu, fault.Gfn);

        // Step 3: the access must name the alias that the attribute says.
        if (_attributes is not null && fault.IsPrivate != _attributes.IsPrivate(fault.Gfn, ref cache.Attributes))
            return MemoryFault(ref fault);
        if (slot is null)
            return NoSlot(ref fault);
        fault.Slot = slot.Mmu;

        // Steps 5 and 6, in one test.
        if ((slot.Flags & (MemslotFlags.Invalid | MemslotFlags.ApicAccess)) != 0 && IsEndedBySlot(slot, fault.Prefetch, out FaultResult ended))
            return ended;

        // Step 7: only to keep away from a contended lock; a miss here is caught under it.
        Invalidation invalidation = vcpu.Mmu.Invalidation;
        if (invalidation.MustRetry(fault.Seq, fault.Gfn))
            return FaultResult.Retry;
        FaultResult result = fault.IsPrivate ? FromMemfd(ref fault, slot) : FromHost(ref fault, slot);
        if (result != FaultResult.Continue)
            return result;

        // Step 10.
        return invalidation.MustRetry(fault.Seq, fault.Gfn) ? FaultResult.Retry : FaultResult.Continue;
    }

    public MmuSlot? SlotOf(MmuVcpu vcpu, Gfn gfn) => FindSlot(CacheOf(vcpu), vcpu, gfn)?.Mmu;

    public bool IsPrivate(Gfn gfn) => _attributes is not null && _attributes.IsPrivate(gfn);

    public Level MaxHostLevel(MmuSlot slot, Gfn gfn)
    {
        // The slot may have been replaced since the fault found it; then the fault's page is about to be zapped and 4K is always right.
        Memslot? current = _vm.SlotsOf(slot.AddressSpace).Active.ById(slot.Id);
        return current is not null && current.Contains(gfn) ? _vm.UserMemory.LevelOf(current.HvaOf(gfn)) : Level.K4;
    }

    public void MarkDirty(Actor actor, MmuSlot slot, Gfn gfn) => _vm.DirtyLog.Mark(actor, slot, gfn);

    public ulong SlotGeneration(MmuVcpu vcpu) => _vm.SlotsOf(vcpu.IsSmm ? 1 : 0).Generation;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static LookupCache CacheOf(MmuVcpu vcpu) => vcpu.LookupState is { } state ? Unsafe.As<LookupCache>(state) : NewCache(vcpu);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static LookupCache NewCache(MmuVcpu vcpu)
    {
        var cache = new LookupCache();
        vcpu.LookupState = cache;
        return cache;
    }

    // The vCPU keeps the slot it used last, good as long as the set it came from is the published one.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private Memslot? FindSlot(LookupCache cache, MmuVcpu vcpu, Gfn gfn)
    {
        MemslotSet set = (vcpu.IsSmm ? _smm : _ordinary).Active;
        if (ReferenceEquals(set, cache.LastSet) && cache.LastSlot is { } last && last.Contains(gfn))
            return last;
        return FindSlotSlowly(cache, set, gfn);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Memslot? FindSlotSlowly(LookupCache cache, MemslotSet set, Gfn gfn)
    {
        Memslot? slot = set.Find(gfn);
        if (slot is not null)
        {
            cache.LastSet = set;
            cache.LastSlot = slot;
        }

        return slot;
    }

    // Step 5: the slot is being deleted; its SRCU grace period waits for us, so nobody may loop on this for ever (I75).
    // Step 6: the APIC access page of a VM whose APICv is off is emulated, without an MMIO entry that would have to be found again when it comes back.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool IsEndedBySlot(Memslot slot, bool isPrefetch, out FaultResult result)
    {
        result = slot.IsInvalid ? (isPrefetch ? FaultResult.Again : FaultResult.Retry) : FaultResult.Emulate;
        return slot.IsInvalid || !_vm.Apicv.IsActive;
    }

    // Step 8, private: the slot must have a file; any error of the file becomes a memory-fault exit with that errno.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static FaultResult FromMemfd(ref Fault fault, Memslot slot)
    {
        if (slot.Memfd is not { } file)
            return MemoryFault(ref fault);
        Errno result = file.Lookup(fault.Vcpu.Actor, slot.MemfdPageOf(fault.Gfn), out Hpa frame);
        if (result != Errno.None)
            return FileFault(ref fault, result);
        fault.Pfn = frame.Frame;

        // A slot with a file is never read-only (tdp-mmu 6.5).
        fault.MapWritable = true;

        // The order that the file returns is always 0 today (tdp-mmu 5.4 step 8, decisions D04).
        fault.MaxLevel = Level.K4;
        return FaultResult.Continue;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static FaultResult FileFault(ref Fault fault, Errno error)
    {
        MemoryFault(ref fault);
        return (FaultResult)(-(int)error);
    }

    // Steps 8 and 9, shared: the host's own page tables. Almost always the page is there and writable, and a slot is not read-only.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private FaultResult FromHost(ref Fault fault, Memslot slot)
    {
        const ulong Usable = HostMemory.Present | HostMemory.Writable;
        if (slot.HostTable is null || (slot.Flags & MemslotFlags.ReadOnly) != 0)
            return FromHostSlowly(ref fault, slot);
        ulong word = slot.HostWord(fault.Gfn).Read();
        if ((word & Usable) != Usable)
            return FromHostSlowly(ref fault, slot);
        fault.Pfn = (word & Hpa.Mask) >> 12;
        fault.MapWritable = true;

        // A 4K host mapping allows only 4K. Had the host merged it since, a notifier would make this fault retry; so the host's tables
        // are read again under mmu_lock only for a huge one.
        if ((word & HostMemory.Huge) == 0)
            fault.MaxLevel = Level.K4;
        return FaultResult.Continue;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult FromHostSlowly(ref Fault fault, Memslot slot)
    {
        bool isReadOnlySlot = (slot.Flags & MemslotFlags.ReadOnly) != 0;
        if (slot.UserspaceAddress == 0)
            return HostFailure(ref fault);
        Vcpu vcpu = _vm.VcpuOf(fault.Vcpu.Id);
        ulong hva = slot.HvaOf(fault.Gfn);
        bool write = fault.Write && !isReadOnlySlot;
        Errno result = _vm.UserMemory.TryResolve(fault.Vcpu.Actor, hva, write, out Hpa frame, out bool isWritable, out Level level, mayWait: false);
        if (result == Errno.EAGAIN)
        {
            // Reading it in takes time. There is no in-kernel APIC that could tell the guest to do something else meanwhile, so the vCPU waits, unless a signal comes.
            if (vcpu.IsSignalPending)
                return FaultResult.Interrupted;
            vcpu.CountHostRead();
            result = _vm.UserMemory.TryResolve(fault.Vcpu.Actor, hva, write, out frame, out isWritable, out level);
        }

        switch (result)
        {
            case Errno.None when fault.Write && isReadOnlySlot:
                // A write to a read-only slot is MMIO.
                return FaultResult.Emulate;
            case Errno.None:
                fault.Pfn = frame.Frame;
                fault.MapWritable = isWritable && !isReadOnlySlot;
                if (level == Level.K4)
                    fault.MaxLevel = Level.K4;
                return FaultResult.Continue;
            case Errno.ENOMEM:
                return FaultResult.NoMemory;
            case Errno.EHWPOISON:
                // The VMM's thread gets SIGBUS, which ends KVM_RUN before the access is tried again.
                vcpu.RaiseBusError(hva);
                return FaultResult.Retry;
            default:
                return HostFailure(ref fault);
        }
    }

    // Step 9: the host's own mapping does not serve the access. -EFAULT without a memory-fault exit: there is nothing that user space could convert.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static FaultResult HostFailure(ref Fault fault)
    {
        fault.Vcpu.MemoryFault = default;
        return FaultResult.BadAddress;
    }

    // Step 4: nothing is there. A private access cannot be served; a shared one is MMIO.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult NoSlot(ref Fault fault)
    {
        if (fault.IsPrivate)
            return MemoryFault(ref fault);
        if (!_vm.Mmu.CanHoldMmio(fault.Gfn))
            return FaultResult.Emulate;
        fault.Slot = null;
        fault.SlotGeneration = SlotGeneration(fault.Vcpu);
        return FaultResult.Continue;
    }

    // KVM_EXIT_MEMORY_FAULT: natural address, 4 KiB, flag of the access (I64).
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static FaultResult MemoryFault(ref Fault fault)
    {
        fault.Vcpu.MemoryFault = new MemoryFaultInfo(fault.Gfn.Gpa, 4096, fault.IsPrivate);
        return FaultResult.BadAddress;
    }
}
