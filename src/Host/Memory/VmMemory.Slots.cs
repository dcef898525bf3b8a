namespace Tdp.Host;

/// <content>Memory regions: create, delete, move, flags (tdp-mmu 6.5, 6.7, 6.13).</content>
public sealed partial class VmMemory
{
    // KVM_MEM_MAX_NR_PAGES and TASK_SIZE_MAX.
    private const ulong MostPages = (1UL << 31) - 1;
    private const ulong EndOfUserSpace = (1UL << 47) - 0x1000;
    internal const int MaxSlots = 32764;

    /// <summary>Number of the APIC access page's slot (KVM: APIC_ACCESS_PAGE_PRIVATE_MEMSLOT).</summary>
    internal const int ApicAccessSlot = MaxSlots + 1;

    /// <summary>KVM_SET_USER_MEMORY_REGION2: creates, deletes, moves a slot, or changes its flags. Takes slots_lock; waits for SRCU.</summary>
    /// <returns>
    /// -EINVAL impossible or refused change, -EEXIST overlap or file range bound, -EBADF no open file, -ENOMEM, -EIO dead VM. On an error nothing has changed.
    /// </returns>
    public Errno SetUserMemoryRegion(Actor actor, in UserMemoryRegion asked)
    {
        _vm.SlotsLock.Enter(actor);
        try
        {
            if (_vm.IsDead)
                return Errno.EIO;
            Errno valid = Validate(asked);
            if (valid != Errno.None)
                return valid;

            // A file that the flags do not speak of is not looked at.
            UserMemoryRegion region = (asked.Flags & MemslotFlags.GuestMemfd) != 0 ? asked : asked with { Memfd = null, MemfdOffset = 0 };
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

    /// <summary>A slot of the host's own, in every address space, under a number that user space cannot use. Takes slots_lock.</summary>
    /// <returns>-EINVAL it exists, -EEXIST overlap; nothing has changed then.</returns>
    internal Errno CreateInternalSlot(Actor actor, int id, ulong gpa, ulong size, ulong address, MemslotFlags flags)
    {
        _vm.SlotsLock.Enter(actor);
        try
        {
            GfnRange range = GfnRange.Of(new Gfn(gpa >> 12), size >> 12);
            for (int space = 0; space < _vm.AddressSpaces; space++)
            {
                if (_vm.SlotsOf(space).Active.ById(id) is not null)
                    return Errno.EINVAL;
                if (_vm.SlotsOf(space).Active.Overlaps(range, id))
                    return Errno.EEXIST;
            }

            for (int space = 0; space < _vm.AddressSpaces; space++)
            {
                MemslotTable table = _vm.SlotsOf(space);
                Errno created = CreateSlot(actor, table, new UserMemoryRegion(((uint)space << 16) | (uint)id, flags, gpa, size, address));
                if (created != Errno.None)
                    return created;
            }

            return Errno.None;
        }
        finally
        {
            _vm.SlotsLock.Exit(actor);
        }
    }

    // In KVM's order; what asks for a place in the guest's space comes later, see ValidatePlace.
    private Errno Validate(in UserMemoryRegion region)
    {
        bool isMemfd = (region.Flags & MemslotFlags.GuestMemfd) != 0;
        MemslotFlags allowed = MemslotFlags.LogDirtyPages | (_vm.IsTd ? MemslotFlags.None : MemslotFlags.ReadOnly);

        // Private memory can be neither logged nor read-only, and a TD has no read-only slots at all (tdp-mmu 6.13).
        if (isMemfd)
            allowed = _vm.HasPrivateMemory ? MemslotFlags.GuestMemfd : MemslotFlags.None;
        if ((region.Flags & ~allowed) != 0)
            return Errno.EINVAL;
        if (((region.GuestPhysicalAddress | region.MemorySize | region.UserspaceAddress) & 0xFFF) != 0)
            return Errno.EINVAL;
        if (region.UserspaceAddress > EndOfUserSpace || region.MemorySize > EndOfUserSpace - region.UserspaceAddress)
            return Errno.EINVAL;
        if (isMemfd && ((region.MemfdOffset & 0xFFF) != 0 || region.MemfdOffset + region.MemorySize < region.MemfdOffset))
            return Errno.EINVAL;
        if (region.AddressSpace >= _vm.AddressSpaces || region.Slot >= MaxSlots)
            return Errno.EINVAL;
        if (region.GuestPhysicalAddress + region.MemorySize < region.GuestPhysicalAddress)
            return Errno.EINVAL;
        return region.MemorySize >> 12 > MostPages ? Errno.EINVAL : Errno.None;
    }

    // For a slot that is created or moved: it must be where the guest and the host can have frames, and under its natural numbers (I11).
    private Errno ValidatePlace(MemslotTable table, in UserMemoryRegion region)
    {
        ulong first = region.GuestPhysicalAddress >> 12;
        ulong end = first + (region.MemorySize >> 12);
        ulong limit = Math.Min(_vm.Mmu.EndOfGfns, 1UL << (_vm.GpaWidth - 12));
        if (first < limit && table.Active.Overlaps(new GfnRange(new Gfn(first), new Gfn(Math.Min(end, limit))), region.Slot))
            return Errno.EEXIST;
        if (end > limit)
            return Errno.EINVAL;
        return _vm.IsTd && _vm.AliasBit.Of(new Gfn(end - 1).Gpa) == Alias.Shared ? Errno.EINVAL : Errno.None;
    }

    private Errno CreateSlot(Actor actor, MemslotTable table, in UserMemoryRegion region)
    {
        if ((region.Flags & MemslotFlags.GuestMemfd) != 0 && region.Memfd is not { IsClosed: false })
            return Errno.EBADF;
        Errno placed = ValidatePlace(table, region);
        if (placed != Errno.None)
            return placed;
        var slot = new Memslot(_vm, region, region.Flags);
        if (slot.Memfd is { } file)
        {
            Errno bound = file.Bind(actor, slot);
            if (bound != Errno.None)
                return bound;
        }

        Errno prepared = _vm.DirtyLog.Prepare(actor, slot);
        if (prepared != Errno.None)
        {
            slot.Memfd?.Unbind(actor, slot);
            return prepared;
        }

        if (_vm.Attributes is not null)
            slot.Mmu.InitMixed(_isPrivate);
        Publish(actor, table, table.Active.With(slot));
        _vm.DirtyLog.Applied(actor, MemslotFlags.None, slot, isFlagsOnly: false);
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
        _vm.DirtyLog.Applied(actor, old.Flags, null, isFlagsOnly: false);
        return Errno.None;
    }

    private Errno Modify(Actor actor, MemslotTable table, Memslot old, in UserMemoryRegion region)
    {
        if (((old.Flags | region.Flags) & MemslotFlags.GuestMemfd) != 0)
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
        Errno placed = ValidatePlace(table, region);
        if (placed != Errno.None)
            return placed;

        // A tracker knows pages by their place.
        if (_vm.WriteTracking.HasUser)
            return Errno.EINVAL;
        var slot = new Memslot(_vm, region, region.Flags);
        Errno prepared = _vm.DirtyLog.Prepare(actor, slot);
        if (prepared != Errno.None)
            return prepared;
        Publish(actor, table, table.Active.With(old.With(old.Flags | MemslotFlags.Invalid)));
        ZapSlot(actor, old);
        Publish(actor, table, table.Active.With(slot));
        old.DirtyBitmap?.Free();
        _vm.DirtyLog.Applied(actor, old.Flags, slot, isFlagsOnly: false);
        return Errno.None;
    }

    private Errno ChangeFlags(Actor actor, MemslotTable table, Memslot old, MemslotFlags flags)
    {
        Memslot slot = old.With(flags);
        bool logs = (flags & MemslotFlags.LogDirtyPages) != 0;
        if (!logs)
            slot.DirtyBitmap = null;
        Errno prepared = _vm.DirtyLog.Prepare(actor, slot);
        if (prepared != Errno.None)
            return prepared;

        // Before the slot is published: a fault that sees the new slot must keep its leaves at 4K.
        slot.Mmu.IsDirtyLogged = logs;
        Publish(actor, table, table.Active.With(slot));
        if (!logs)
            old.DirtyBitmap?.Free();
        _vm.DirtyLog.Applied(actor, old.Flags, slot, isFlagsOnly: true);
        return Errno.None;
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
