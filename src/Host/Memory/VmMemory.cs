namespace Tdp.Host;

/// <summary>
/// The memory ioctls of a VM: memory regions (tdp-mmu 6.5), attributes (6.10), pre-fault (5.9), and the invalidation protocol they share with guest_memfd and
/// the notifier (6.6, 7.6).
/// </summary>
public sealed class VmMemory
{
    private const MemslotFlags UserFlags = MemslotFlags.LogDirtyPages | MemslotFlags.ReadOnly | MemslotFlags.GuestMemfd;
    private const int MaxSlots = 32764;
    private readonly Vm _vm;
    private readonly Func<Gfn, bool> _isPrivate;

    internal VmMemory(Vm vm)
    {
        _vm = vm;
        _isPrivate = gfn => vm.Attributes!.IsPrivate(gfn);
    }

    /// <summary>Conversions that changed something, to shared and to private, and the pages they covered.</summary>
    public (long ToShared, long ToPrivate, long Pages) Conversions { get; private set; }

    /// <summary>KVM_SET_USER_MEMORY_REGION2: creates, deletes, moves a slot, or changes its flags. Takes slots_lock; waits for SRCU.</summary>
    /// <returns>
    /// -EINVAL impossible or refused change, -EEXIST overlap or file range bound, -ENOMEM, -EIO dead VM. On an error nothing has changed.
    /// </returns>
    public Errno SetUserMemoryRegion(Actor actor, in UserMemoryRegion region)
    {
        _vm.SlotsLock.Enter(actor);
        try
        {
            if (_vm.IsDead)
                return Errno.EIO;
            Errno valid = Validate(region);
            if (valid != Errno.None)
                return valid;
            MemslotTable table = _vm.SlotsOf(region.AddressSpace);
            Memslot? old = table.Active.ById(region.Slot);
            if (region.MemorySize == 0)
                return old is null ? Errno.EINVAL : Delete(actor, table, old);
            if (old is null)
                return CreateSlot(actor, table, region);
            return Modify(actor, table, old, region);
        }
        finally
        {
            _vm.SlotsLock.Exit(actor);
        }
    }

    /// <summary>
    /// KVM_SET_MEMORY_ATTRIBUTES: makes a range private or shared (conversion, tdp-mmu 6.10). Zaps the old alias only and the range only (I58, I59); content is not
    /// copied. Takes slots_lock, and mmu_lock twice.
    /// </summary>
    /// <param name="actor">Who; in a TD it stands on a processor.</param>
    /// <param name="gpa">First byte, page-aligned, natural.</param>
    /// <param name="size">Bytes, a multiple of 4096.</param>
    /// <param name="attributes"><see cref="MemoryAttributes.Private"/> or 0.</param>
    /// <returns>-EINVAL bad range or attribute, -ENOMEM with nothing changed, -EIO dead VM.</returns>
    public Errno SetAttributes(Actor actor, ulong gpa, ulong size, ulong attributes)
    {
        if (_vm.IsDead)
            return Errno.EIO;
        if (_vm.Attributes is null || (attributes & ~MemoryAttributes.Private) != 0 || size == 0 || ((gpa | size) & 0xFFF) != 0
            || gpa + size < gpa || gpa + size > 1UL << _vm.GpaWidth || _vm.AliasBit.Of(new Gpa(gpa + size - 1)) == Alias.Shared
            || _vm.AliasBit.Of(new Gpa(gpa)) == Alias.Shared)
            return Errno.EINVAL;
        bool toPrivate = attributes != 0;
        GfnRange range = GfnRange.Of(new Gfn(gpa >> 12), size >> 12);
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
    /// <returns>Success if at least one page was done; -EINVAL, -EOPNOTSUPP before finalize, -EAGAIN on a dying slot, -ENOENT MMIO, -EFAULT, -EINTR, -EIO.</returns>
    public Errno PreFault(Actor actor, Vcpu vcpu, ref ulong gpa, ref ulong size)
    {
        if (((gpa | size) & 0xFFF) != 0 || size == 0 || gpa + size < gpa)
            return Errno.EINVAL;
        if (_vm.Td is { IsPreFaultAllowed: false })
            return Errno.EOPNOTSUPP;
        vcpu.Mutex.Enter(actor);
        Actor before = vcpu.Mmu.Actor;
        vcpu.Mmu.Actor = actor;
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
    /// First half of an invalidation that is not a conversion's: count up, range, unmap, flush, all under mmu_lock write (tdp-mmu 6.12). Faults on the range retry until
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

    private Errno Validate(in UserMemoryRegion region)
    {
        if ((region.Flags & ~UserFlags) != 0 || region.AddressSpace >= _vm.AddressSpaces || region.Slot >= MaxSlots)
            return Errno.EINVAL;
        if (((region.GuestPhysicalAddress | region.MemorySize | region.UserspaceAddress) & 0xFFF) != 0)
            return Errno.EINVAL;
        bool isMemfd = (region.Flags & MemslotFlags.GuestMemfd) != 0;
        if (isMemfd != (region.Memfd is not null && region.MemorySize != 0) && (region.MemorySize != 0 || isMemfd))
            return Errno.EINVAL;

        // Private memory can be neither logged nor read-only, and a TD has no read-only slots at all (tdp-mmu 6.13).
        if (isMemfd && (region.Flags & (MemslotFlags.LogDirtyPages | MemslotFlags.ReadOnly)) != 0)
            return Errno.EINVAL;
        if (_vm.IsTd && (region.Flags & MemslotFlags.ReadOnly) != 0)
            return Errno.EINVAL;
        ulong end = region.GuestPhysicalAddress + region.MemorySize;
        if (end < region.GuestPhysicalAddress || end > 1UL << _vm.GpaWidth || end >> 12 > _vm.Mmu.EndOfGfns)
            return Errno.EINVAL;
        if (_vm.IsTd && region.MemorySize != 0
            && (_vm.AliasBit.Of(new Gpa(region.GuestPhysicalAddress)) == Alias.Shared || _vm.AliasBit.Of(new Gpa(end - 1)) == Alias.Shared))
            return Errno.EINVAL;
        return isMemfd && (region.MemfdOffset & 0xFFF) != 0 ? Errno.EINVAL : Errno.None;
    }

    private Errno CreateSlot(Actor actor, MemslotTable table, in UserMemoryRegion region)
    {
        var slot = new Memslot(_vm, region, region.Flags);
        if (table.Active.Overlaps(slot.Range, slot.Id))
            return Errno.EEXIST;
        if (slot.Memfd is { } file)
        {
            Errno bound = file.Bind(actor, slot);
            if (bound != Errno.None)
                return bound;
        }

        Errno prepared = PrepareDirtyLog(actor, slot);
        if (prepared != Errno.None)
        {
            slot.Memfd?.Unbind(actor, slot);
            return prepared;
        }

        if (_vm.Attributes is not null)
            slot.Mmu.InitMixed(_isPrivate);
        Publish(actor, table, table.Active.With(slot));
        return Errno.None;
    }

    // DELETE: nobody may install a mapping of the slot once it is INVALID everywhere, so what is zapped then stays zapped (I61).
    private Errno Delete(Actor actor, MemslotTable table, Memslot old)
    {
        Publish(actor, table, table.Active.With(old.With(old.Flags | MemslotFlags.Invalid)));
        ZapSlot(actor, old);
        Publish(actor, table, table.Active.Without(old.Id));
        old.Memfd?.Unbind(actor, old);
        old.DirtyBitmap?.Free();
        return Errno.None;
    }

    private Errno Modify(Actor actor, MemslotTable table, Memslot old, in UserMemoryRegion region)
    {
        if (old.Memfd is not null || region.Memfd is not null)
            return Errno.EINVAL;
        if (region.MemorySize >> 12 != old.Pages || region.UserspaceAddress != old.UserspaceAddress
            || ((region.Flags ^ old.Flags) & MemslotFlags.ReadOnly) != 0)
            return Errno.EINVAL;
        bool isMove = region.GuestPhysicalAddress >> 12 != old.BaseGfn.Value;
        if (!isMove && region.Flags == old.Flags)
            return Errno.None;
        return isMove ? Move(actor, table, old, region) : ChangeFlags(actor, table, old, region.Flags);
    }

    private Errno Move(Actor actor, MemslotTable table, Memslot old, in UserMemoryRegion region)
    {
        var slot = new Memslot(_vm, region, region.Flags);
        if (table.Active.Overlaps(slot.Range, slot.Id))
            return Errno.EEXIST;
        Errno prepared = PrepareDirtyLog(actor, slot);
        if (prepared != Errno.None)
            return prepared;
        Publish(actor, table, table.Active.With(old.With(old.Flags | MemslotFlags.Invalid)));
        ZapSlot(actor, old);
        Publish(actor, table, table.Active.With(slot));
        old.DirtyBitmap?.Free();
        return Errno.None;
    }

    private Errno ChangeFlags(Actor actor, MemslotTable table, Memslot old, MemslotFlags flags)
    {
        Memslot slot = old.With(flags);
        bool logs = (flags & MemslotFlags.LogDirtyPages) != 0;
        if (!logs)
            slot.DirtyBitmap = null;
        Errno prepared = PrepareDirtyLog(actor, slot);
        if (prepared != Errno.None)
            return prepared;

        // Before the slot is published: a fault that sees the new slot must keep its leaves at 4K.
        slot.Mmu.IsDirtyLogged = logs;
        Publish(actor, table, table.Active.With(slot));
        if (logs)
            ArmDirtyLog(actor, slot.Mmu);
        else
            old.DirtyBitmap?.Free();
        return Errno.None;
    }

    // There is no page-modification log: W goes from every leaf, and the flush is always made, outside mmu_lock (tdp-mmu 6.7).
    private void ArmDirtyLog(Actor actor, MmuSlot slot)
    {
        _vm.Mmu.MmuLock.EnterRead(actor);
        _vm.Mmu.WriteProtectSlot(actor, slot, Level.K4);
        _vm.Mmu.MmuLock.ExitRead(actor);
        _vm.Mmu.FlushRemoteTlbs(actor);
    }

    private Errno PrepareDirtyLog(Actor actor, Memslot slot)
    {
        bool logs = (slot.Flags & MemslotFlags.LogDirtyPages) != 0;
        slot.Mmu.IsDirtyLogged = logs;
        if (!logs || slot.DirtyBitmap is not null)
            return Errno.None;
        slot.DirtyBitmap = WordRun.TryCreate(_vm.Kernel.Machine, actor, (slot.Pages + 63) >> 6);
        return slot.DirtyBitmap is null ? Errno.ENOMEM : Errno.None;
    }

    private void Publish(Actor actor, MemslotTable table, MemslotSet next)
    {
        // Released inside, before the wait for SRCU.
        _vm.SlotsArchLock.Enter(actor);
        table.Swap(actor, _vm, next);
    }

    // No invalidation in progress is needed: faults that see the INVALID slot retry, older ones have left their SRCU section (tdp-mmu 6.5).
    private void ZapSlot(Actor actor, Memslot slot)
    {
        if (!_vm.IsTd && _vm.Options.SlotZapAllQuirk)
        {
            _vm.Mmu.ZapAllFast(actor);
            return;
        }

        _vm.Mmu.MmuLock.EnterWrite(actor);
        if (_vm.Mmu.UnmapRange(actor, slot.Range, AliasFilter.Both, addressSpace: slot.AddressSpace))
            _vm.Mmu.FlushRemoteTlbs(actor);
        _vm.Mmu.MmuLock.ExitWrite(actor);
    }
}
