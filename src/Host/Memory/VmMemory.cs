namespace Tdp.Host;

/// <summary>
/// The memory ioctls of a VM: memory regions (tdp-mmu 6.5), attributes (6.10), pre-fault (5.9), and the invalidation protocol they share with guest_memfd and
/// the notifier (6.6, 7.6).
/// </summary>
public sealed partial class VmMemory
{
    private readonly Vm _vm;
    private readonly Func<Gfn, bool> _isPrivate;

    internal VmMemory(Vm vm)
    {
        _vm = vm;
        _isPrivate = gfn => vm.Attributes!.IsPrivate(gfn);
    }

    /// <summary>Conversions that changed something, to shared and to private, and the pages they covered.</summary>
    public (long ToShared, long ToPrivate, long Pages) Conversions { get; private set; }

    /// <summary>
    /// KVM_SET_MEMORY_ATTRIBUTES: makes a range private or shared (conversion, tdp-mmu 6.10). Zaps the old alias only and the range only (I58, I59);
    /// content is not
    /// copied. Takes slots_lock, and mmu_lock twice.
    /// </summary>
    /// <param name="actor">Who; in a TD it stands on a processor.</param>
    /// <param name="gpa">First byte, page-aligned, natural.</param>
    /// <param name="size">Bytes, a multiple of 4096. Frames that no address of the guest names, beyond its width or under the alias bit, have no attribute: as in KVM they are no error.</param>
    /// <param name="attributes"><see cref="MemoryAttributes.Private"/> or 0; an ordinary VM knows only 0, which changes nothing.</param>
    /// <returns>-EINVAL bad range or attribute, -ENOMEM with nothing changed, -EIO dead VM.</returns>
    public Errno SetAttributes(Actor actor, ulong gpa, ulong size, ulong attributes)
    {
        if (_vm.IsDead)
            return Errno.EIO;
        if ((attributes & ~(_vm.HasPrivateMemory ? MemoryAttributes.Private : 0)) != 0 || size == 0 || gpa + size < gpa || ((gpa | size) & 0xFFF) != 0)
            return Errno.EINVAL;
        ulong end = Math.Min(gpa + size, _vm.AliasBit.GpaMask);
        if (_vm.Attributes is null || gpa >= end)
            return Errno.None;
        bool toPrivate = attributes != 0;
        var range = new GfnRange(new Gfn(gpa >> 12), new Gfn(end >> 12));
        _vm.SlotsLock.Enter(actor);
        try
        {
            if (_vm.Attributes.IsAll(range, toPrivate))
                return Errno.None;
            if (!_vm.Attributes.Reserve(actor, range))
                return Errno.ENOMEM;
            Convert(actor, range, toPrivate);
            (long shared, long @private, long pages) = Conversions;
            Conversions = (shared + (toPrivate ? 0 : 1), @private + (toPrivate ? 1 : 0), pages + (long)range.Pages);
            return _vm.IsDead ? Errno.EIO : Errno.None;
        }
        finally
        {
            _vm.SlotsLock.Exit(actor);
        }
    }

    /// <summary>
    /// KVM_PRE_FAULT_MEMORY on one vCPU: maps pages as if they had been read, with Accessed clear (tdp-mmu 5.9). The caller may not run the vCPU meanwhile.
    /// </summary>
    /// <param name="actor">Who; in a TD it stands on a processor.</param>
    /// <param name="vcpu">Whose roots are used.</param>
    /// <param name="gpa">First byte, page-aligned; advanced by what was done.</param>
    /// <param name="size">Bytes; reduced by what was done.</param>
    /// <returns>Success if at least one page was done; -EINVAL, -EOPNOTSUPP before finalize, -EAGAIN on a dying slot, -ENOENT MMIO, -EFAULT, -EINTR,
    /// -EIO.</returns>
    public Errno PreFault(Actor actor, Vcpu vcpu, ref ulong gpa, ref ulong size)
    {
        if (_vm.IsDead)
            return Errno.EIO;
        if (((gpa | size) & 0xFFF) != 0 || gpa + size <= gpa)
            return Errno.EINVAL;
        if (_vm.Td is { IsPreFaultAllowed: false })
            return Errno.EOPNOTSUPP;
        vcpu.Mutex.Enter(actor);
        Actor before = vcpu.Mmu.Actor;
        vcpu.Mmu.Actor = actor;
        _vm.SetRunning(actor, vcpu);
        _vm.Srcu.ReadEnter(actor);
        ulong start = gpa;
        Errno result = Errno.None;
        while (size != 0 && result == Errno.None)
        {
            result = PreFaultOne(actor, vcpu, gpa, out ulong end);
            if (result != Errno.None)
                break;
            ulong step = Math.Min(end - gpa, size);
            gpa += step;
            size -= step;
        }

        _vm.Srcu.ReadExit(actor);
        _vm.SetRunning(actor, null);
        vcpu.Mmu.Actor = before;
        vcpu.Mutex.Exit(actor);
        return gpa != start ? Errno.None : result;
    }

    /// <summary>
    /// kvm_mmu_zap_all_fast: every direct root becomes invalid and its SPTEs go; vCPUs build new roots. In a TD the mirror and the module see nothing of it
    /// (I44, I60). Takes slots_lock.
    /// </summary>
    public void ZapAllFast(Actor actor)
    {
        _vm.SlotsLock.Enter(actor);
        _vm.Mmu.ZapAllFast(actor);
        _vm.SlotsLock.Exit(actor);
    }

    /// <summary>
    /// First half of an invalidation that is not a conversion's: count up, range, unmap, flush, all under mmu_lock write (tdp-mmu 6.12). Faults on the
    /// range retry until
    /// <see cref="EndInvalidation"/>.
    /// </summary>
    internal void BeginInvalidation(Actor actor, GfnRange range, AliasFilter aliases)
    {
        TdpMmu mmu = _vm.Mmu;
        _vm.Srcu.ReadEnter(actor);
        mmu.MmuLock.EnterWrite(actor);
        mmu.Invalidation.Begin(actor);
        mmu.Invalidation.AddRange(actor, range);
        bool flush = false;
        foreach (Memslot slot in _vm.SlotsOf(0).Active.Slots)
        {
            GfnRange part = slot.Range.Intersect(range);
            if (!part.IsEmpty)
                flush |= mmu.UnmapRange(actor, part, aliases);
        }

        if (flush)
            mmu.FlushRemoteTlbs(actor);
        mmu.MmuLock.ExitWrite(actor);
        _vm.Srcu.ReadExit(actor);
    }

    /// <summary>Second half: the sequence moves.</summary>
    internal void EndInvalidation(Actor actor)
    {
        _vm.Mmu.MmuLock.EnterWrite(actor);
        _vm.Mmu.Invalidation.End(actor);
        _vm.Mmu.MmuLock.ExitWrite(actor);
    }

    private void Convert(Actor actor, GfnRange range, bool toPrivate)
    {
        TdpMmu mmu = _vm.Mmu;
        IReadOnlyList<Memslot> slots = _vm.SlotsOf(0).Active.Slots;
        bool isInvalidating = false;
        bool flush = false;

        // Pre (tdp-mmu 6.10 step 3): from here to post every fault on the range retries, so none can use an old or half-written attribute.
        foreach (Memslot slot in slots)
        {
            GfnRange part = slot.Range.Intersect(range);
            if (part.IsEmpty)
                continue;
            if (!isInvalidating)
            {
                isInvalidating = true;
                mmu.MmuLock.EnterWrite(actor);
                mmu.Invalidation.Begin(actor);
            }

            mmu.Invalidation.AddRange(actor, part);
            slot.Mmu.AddPartialHugeRanges(actor, mmu.Invalidation, part);
            flush |= mmu.UnmapRange(actor, part, toPrivate ? AliasFilter.Shared : AliasFilter.Private);
        }

        if (isInvalidating)
        {
            if (flush)
                mmu.FlushRemoteTlbs(actor);
            mmu.MmuLock.ExitWrite(actor);
        }

        // Outside mmu_lock: it may take long (R08).
        _vm.Attributes!.Store(range, toPrivate);
        if (!isInvalidating)
            return;

        // Post: linearizes at the write of the sequence.
        mmu.MmuLock.EnterWrite(actor);
        mmu.Invalidation.End(actor);
        foreach (Memslot slot in slots)
        {
            GfnRange part = slot.Range.Intersect(range);
            if (!part.IsEmpty)
                slot.Mmu.UpdateMixed(part, _isPrivate);
        }

        mmu.MmuLock.ExitWrite(actor);
    }

    private Errno PreFaultOne(Actor actor, Vcpu vcpu, ulong gpa, out ulong end)
    {
        end = gpa;
        TdpMmu mmu = _vm.Mmu;

        // No frame number reaches so far: no slot and no attribute, MMIO that cannot even be remembered.
        if (gpa >> 52 != 0)
            return vcpu.IsSignalPending ? Errno.EINTR : Errno.ENOENT;
        if (_vm.IsTd && _vm.AliasBit.Of(new Gpa(gpa)) == Alias.Shared)
            return Errno.EINVAL;
        bool isPrivate = _vm.Attributes is { } attributes && attributes.IsPrivate(new Gfn(gpa >> 12));
        ulong error = PfErr.GuestFinal | (isPrivate ? PfErr.PrivateAccess : 0);
        Gpa address = _vm.AliasBit.Apply(new Gfn(gpa >> 12), isPrivate ? Alias.Private : Alias.Shared);
        var spin = default(Spin);
        while (true)
        {
            if (vcpu.IsSignalPending)
                return Errno.EINTR;
            if (_vm.IsDead)
                return Errno.EIO;

            // The direct root may have been invalidated while we looped: reload it each time.
            mmu.FreeObsoleteRoots(vcpu.Mmu);
            if (!mmu.ReloadRoots(vcpu.Mmu))
                return Errno.ENOMEM;
            FaultResult result = mmu.Prefetch(vcpu.Mmu, address, error, out Level level);
            switch (result)
            {
                case FaultResult.Retry:
                    spin.Once(actor, ObjectId.Lock("mmu_lock", (ulong)_vm.Number));
                    continue;
                case FaultResult.Fixed or FaultResult.Spurious or FaultResult.WriteProtected:
                    end = (gpa & ~(level.Bytes - 1)) + level.Bytes;
                    return Errno.None;
                case FaultResult.Emulate:
                    return Errno.ENOENT;
                case < 0:
                    return (Errno)(-(int)result);
                default:
                    mmu.Warn($"a pre-fault of 0x{gpa:x} answered {result}");
                    return Errno.EIO;
            }
        }
    }
}
