using System.Numerics;

namespace Tdp.Host;

/// <summary>
/// Dirty logging of one VM: which pages the guest has written, slot by slot in bitmaps, or vCPU by vCPU in rings (tdp-mmu 6.7; KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG,
/// KVM_RESET_DIRTY_RINGS and their capabilities).
/// </summary>
/// <remarks>
/// A write becomes visible in one of two ways. Without a page-modification log W is taken from the leaves: the first write faults, gets W back and is recorded. With one, Dirty is
/// cleared instead: the first write makes the CPU set it again and list the page, and the host empties that list at every exit. In both, what records is armed
/// <em>before</em> the flush and the flush is made before the ioctl returns, so a write after the return is recorded, whoever made it (I79).
/// Bitmaps and slots change under slots_lock; bits are set by vCPUs at any time and taken under mmu_lock write.
/// </remarks>
public sealed class DirtyLog
{
    /// <summary>KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: GET only reads, CLEAR protects again.</summary>
    public const ulong ManualProtect = 1;

    /// <summary>KVM_DIRTY_LOG_INITIALLY_SET: a slot starts with every page dirty and nothing is protected for it.</summary>
    public const ulong InitiallySet = 2;

    /// <summary>Entries of the CPU's page-modification log.</summary>
    public const int PmlEntries = 512;

    private readonly Vm _vm;
    private readonly SharedCell<ulong> _options;
    private readonly SharedCell<int> _loggedSlots;
    private MmuVcpu? _splitTables;

    internal DirtyLog(Vm vm)
    {
        _vm = vm;
        _options = new SharedCell<ulong>("manual_dirty_log_protect", (ulong)vm.Number);
        _loggedSlots = new SharedCell<int>("nr_memslots_dirty_logging", (ulong)vm.Number);
    }

    /// <summary>Entries of each vCPU's ring; 0: the VM uses bitmaps.</summary>
    public uint RingEntries { get; private set; }

    /// <summary>True while some slot is logged and the CPU keeps a page-modification log: vCPUs run with it switched on.</summary>
    public bool IsCpuLogging => _vm.HasPml && _loggedSlots.Read() != 0;

    private bool IsInitiallySet => _options.Read() == (ManualProtect | InitiallySet);

    /// <summary>KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0, <see cref="ManualProtect"/>, or both options.</summary>
    /// <returns>-EINVAL for any other combination.</returns>
    public Errno EnableManualProtect(ulong options)
    {
        if (options is not (0 or ManualProtect or (ManualProtect | InitiallySet)))
            return Errno.EINVAL;
        _options.Write(options);
        return Errno.None;
    }

    /// <summary>KVM_CAP_DIRTY_LOG_RING: every vCPU gets a ring of <paramref name="bytes"/> bytes, and there are no bitmaps any more. Once, before the first vCPU.</summary>
    /// <returns>-EINVAL size, or not now; -E2BIG more than 65536 entries.</returns>
    public Errno EnableRing(Actor actor, uint bytes)
    {
        if (bytes == 0 || !BitOperations.IsPow2(bytes) || bytes < ReservedEntries * DirtyRing.EntryBytes || bytes < 4096)
            return Errno.EINVAL;
        if (bytes > DirtyRing.MostEntries * DirtyRing.EntryBytes)
            return Errno.E2BIG;
        _vm.Lock.Enter(actor);
        bool isLate = RingEntries != 0 || _vm.Vcpus.Length != 0;
        if (!isLate)
            RingEntries = bytes / DirtyRing.EntryBytes;
        _vm.Lock.Exit(actor);
        return isLate ? Errno.EINVAL : Errno.None;
    }

    /// <summary>
    /// KVM_GET_DIRTY_LOG: one bit per page of the slot that was written since the last time. Unless <see cref="ManualProtect"/> is on, the bits are taken and their pages
    /// armed again. Takes slots_lock and mmu_lock.
    /// </summary>
    /// <param name="actor">Who asks.</param>
    /// <param name="id">Slot; bits 31:16 choose the address space.</param>
    /// <param name="into">One word per 64 pages; words beyond the slot stay as they are.</param>
    /// <returns>-EINVAL no such slot number, -ENOENT the slot does not log, -ENXIO the VM uses rings, -EFAULT too small, -EIO dead VM.</returns>
    public Errno Get(Actor actor, uint id, Span<ulong> into)
    {
        _vm.SlotsLock.Enter(actor);
        try
        {
            Errno found = Find(id, out Memslot? slot);
            if (found != Errno.None)
                return found;
            WordRun bitmap = slot!.DirtyBitmap!;
            if ((ulong)into.Length < bitmap.Length)
                return Errno.EFAULT;
            EmptyCpuLogs(actor);
            if ((_options.Read() & ManualProtect) != 0)
            {
                for (ulong word = 0; word < bitmap.Length; word++)
                    into[(int)word] = bitmap[word].Read();
                return Errno.None;
            }

            bool flush = false;
            _vm.Mmu.MmuLock.EnterWrite(actor);
            for (ulong word = 0; word < bitmap.Length; word++)
            {
                into[(int)word] = 0;
                if (bitmap[word].Read() == 0)
                    continue;

                // Linearizes here for these 64 pages: a write from now on sets the bit for the next harvest.
                ulong taken = bitmap[word].Exchange(0);
                into[(int)word] = taken;
                flush = true;
                Arm(actor, slot, word << 6, taken);
            }

            _vm.Mmu.MmuLock.ExitWrite(actor);
            if (flush)
                _vm.Mmu.FlushRemoteTlbs(actor, slot.Range);
            return Errno.None;
        }
        finally
        {
            _vm.SlotsLock.Exit(actor);
        }
    }

    /// <summary>KVM_CLEAR_DIRTY_LOG: takes the given bits, as far as they are set, and arms their pages again. Takes slots_lock and mmu_lock.</summary>
    /// <param name="actor">Who asks.</param>
    /// <param name="id">Slot; bits 31:16 choose the address space.</param>
    /// <param name="firstPage">Page of bit 0, a multiple of 64.</param>
    /// <param name="pages">How many; a multiple of 64 unless it reaches the end of the slot.</param>
    /// <param name="bits">One word per 64 pages.</param>
    /// <returns>-EINVAL range or slot number, -ENOENT the slot does not log, -ENXIO the VM uses rings, -EFAULT too few words, -EIO dead VM.</returns>
    public Errno Clear(Actor actor, uint id, ulong firstPage, uint pages, ReadOnlySpan<ulong> bits)
    {
        _vm.SlotsLock.Enter(actor);
        try
        {
            Errno found = Find(id, out Memslot? slot);
            if ((firstPage & 63) != 0 && found is Errno.None or Errno.ENOENT)
                return Errno.EINVAL;
            if (found != Errno.None)
                return found;
            if (firstPage > slot!.Pages || pages > slot.Pages - firstPage || (pages < slot.Pages - firstPage && (pages & 63) != 0))
                return Errno.EINVAL;
            ulong words = ((ulong)pages + 63) >> 6;
            if ((ulong)bits.Length < words)
                return Errno.EFAULT;
            EmptyCpuLogs(actor);
            WordRun bitmap = slot.DirtyBitmap!;
            bool flush = false;
            _vm.Mmu.MmuLock.EnterWrite(actor);
            for (ulong i = 0; i < words; i++)
            {
                ulong wanted = bits[(int)i];
                if (wanted == 0)
                    continue;
                ulong word = (firstPage >> 6) + i;
                ulong taken = bitmap[word].And(~wanted) & wanted;
                if (taken == 0)
                    continue;
                flush = true;
                Arm(actor, slot, word << 6, taken);
            }

            _vm.Mmu.MmuLock.ExitWrite(actor);
            if (flush)
                _vm.Mmu.FlushRemoteTlbs(actor, slot.Range);
            return Errno.None;
        }
        finally
        {
            _vm.SlotsLock.Exit(actor);
        }
    }

    /// <summary>
    /// KVM_RESET_DIRTY_RINGS: frees the entries of every ring that user space has taken and arms their pages again. Takes slots_lock, and mmu_lock per run of pages.
    /// </summary>
    /// <returns>-EINVAL when the VM has no rings, -EIO dead VM.</returns>
    public Errno ResetRings(Actor actor, out int freed)
    {
        freed = 0;
        if (_vm.IsDead)
            return Errno.EIO;
        if (RingEntries == 0)
            return Errno.EINVAL;
        _vm.SlotsLock.Enter(actor);
        foreach (Vcpu vcpu in _vm.Vcpus)
            freed += Reset(actor, vcpu.DirtyRing!);
        _vm.SlotsLock.Exit(actor);
        if (freed != 0)
            _vm.Mmu.FlushRemoteTlbs(actor);
        return Errno.None;
    }

    /// <summary>The page was or may now be written (KVM: mark_page_dirty_in_slot). Inside SRCU. Goes to the ring of the vCPU that runs on the actor, or into the slot's bitmap.</summary>
    internal void Mark(Actor actor, MmuSlot slot, Gfn gfn)
    {
        Memslot? current = _vm.SlotsOf(slot.AddressSpace).Active.ById(slot.Id);
        if (current is null || (current.Flags & MemslotFlags.LogDirtyPages) == 0 || !current.Contains(gfn))
            return;
        ulong page = gfn - current.BaseGfn;
        if (RingEntries != 0)
            MarkInRing(actor, current, page);
        else if (current.DirtyBitmap is { } bitmap)
            bitmap[page >> 6].Or(1UL << (int)(page & 63));
    }

    /// <summary>Provides the bitmap of a slot that is to be published. slots_lock is the caller's.</summary>
    /// <returns>-ENOMEM.</returns>
    internal Errno Prepare(Actor actor, Memslot slot)
    {
        bool logs = (slot.Flags & MemslotFlags.LogDirtyPages) != 0;
        if (logs && slot.DirtyBitmap is null && RingEntries == 0)
        {
            slot.DirtyBitmap = WordRun.TryCreate(_vm.Kernel.Machine, actor, (slot.Pages + 63) >> 6);
            if (slot.DirtyBitmap is null)
                return Errno.ENOMEM;
            if (IsInitiallySet)
                SetAll(slot.DirtyBitmap, slot.Pages);
        }

        // Shared with the slot that this one replaces: nothing of it may change before success is certain.
        slot.Mmu.IsDirtyLogged = logs;
        return Errno.None;
    }

    /// <summary>A slot was published, replaced or removed (KVM: kvm_mmu_slot_apply_flags). slots_lock is the caller's; no lock inside it.</summary>
    /// <param name="actor">Who.</param>
    /// <param name="before">Flags of the slot until now.</param>
    /// <param name="slot">The slot, or null when it is gone.</param>
    /// <param name="isFlagsOnly">Nothing but the flags has changed.</param>
    internal void Applied(Actor actor, MemslotFlags before, Memslot? slot, bool isFlagsOnly)
    {
        MemslotFlags after = slot?.Flags ?? MemslotFlags.None;
        bool logs = (after & MemslotFlags.LogDirtyPages) != 0;
        if (((before ^ after) & MemslotFlags.LogDirtyPages) != 0)
            CountSlot(actor, logs ? 1 : -1);
        if (!isFlagsOnly || (after & MemslotFlags.ReadOnly) != 0)
            return;
        TdpMmu mmu = _vm.Mmu;
        if (!logs)
        {
            mmu.MmuLock.EnterRead(actor);
            mmu.RecoverHuge(actor, slot!.Mmu);
            mmu.MmuLock.ExitRead(actor);
            return;
        }

        // Every page counts as dirty: the first harvest arms them.
        if (IsInitiallySet)
            return;
        mmu.MmuLock.EnterRead(actor);
        if (_vm.Options.EagerPageSplit)
            mmu.TrySplitHuge(actor, SplitTables(actor), slot!.Mmu, slot.Range, Level.K4, shared: true);
        if (_vm.HasPml)
        {
            mmu.ClearDirtySlot(actor, slot!.Mmu);
            mmu.WriteProtectSlot(actor, slot.Mmu, Level.M2);
        }
        else
        {
            mmu.WriteProtectSlot(actor, slot!.Mmu, Level.K4);
        }

        mmu.MmuLock.ExitRead(actor);

        // Always, and outside mmu_lock: what was cleared may still be in a TLB even if a concurrent fault had cleared it before us.
        mmu.FlushRemoteTlbs(actor, slot.Range);
    }

    /// <summary>Gives back what the log itself holds; no vCPU exists any more.</summary>
    internal void Free(Actor actor)
    {
        if (_splitTables is not { } tables)
            return;
        tables.Actor = actor;
        _vm.Mmu.DestroyVcpu(tables);
        _splitTables = null;
    }

    /// <summary>A ring for a new vCPU, if the VM uses rings.</summary>
    /// <returns>-ENOMEM.</returns>
    internal Errno MakeRing(Actor actor, ulong owner, out DirtyRing? ring)
    {
        ring = null;
        if (RingEntries == 0)
            return Errno.None;
        ring = DirtyRing.TryCreate(_vm.Kernel.Machine, actor, RingEntries, ReservedEntries, owner);
        return ring is null ? Errno.ENOMEM : Errno.None;
    }

    private uint ReservedEntries => DirtyRing.Reserved + (_vm.HasPml ? (uint)PmlEntries : 0);

    // kvm_arch_mmu_enable_log_dirty_pt_masked. mmu_lock write; the caller flushes.
    private void Arm(Actor actor, Memslot slot, ulong firstPage, ulong mask)
    {
        TdpMmu mmu = _vm.Mmu;
        if (IsInitiallySet)
        {
            // Nothing was split or protected when logging began: huge leaves that cover these pages are dealt with now.
            Gfn first = slot.BaseGfn + firstPage + (ulong)BitOperations.TrailingZeroCount(mask);
            Gfn last = slot.BaseGfn + firstPage + (ulong)BitOperations.Log2(mask);
            if (_vm.Options.EagerPageSplit)
                mmu.TrySplitHuge(actor, SplitTables(actor), slot.Mmu, new GfnRange(first, last + 1), Level.K4, shared: false);
            mmu.WriteProtectGfn(actor, slot.Mmu, first, Level.M2);
            if (first.AlignDown(Level.M2) != last.AlignDown(Level.M2))
                mmu.WriteProtectGfn(actor, slot.Mmu, last, Level.M2);
        }

        mmu.ClearDirtyMasked(actor, slot.Mmu, slot.BaseGfn + firstPage, mask, writeProtect: !_vm.HasPml);
    }

    // Pages of one slot that lie close together are armed together: one pass of the MMU per 64 pages (kvm_dirty_ring_reset).
    private int Reset(Actor actor, DirtyRing ring)
    {
        int freed = 0;
        DirtyGfn current = default;
        ulong mask = 0;
        while (ring.TryFree(out DirtyGfn page))
        {
            freed++;
            if (mask != 0 && page.Slot == current.Slot && TryJoin(page.Offset, ref current, ref mask))
                continue;
            if (mask != 0)
                ArmRun(actor, current, mask);
            current = page;
            mask = 1;
        }

        if (mask != 0)
            ArmRun(actor, current, mask);
        return freed;
    }

    // The mask counts from current.Offset; a page a little before it moves the mask up.
    private static bool TryJoin(ulong offset, ref DirtyGfn current, ref ulong mask)
    {
        long delta = (long)(offset - current.Offset);
        if (delta is >= 0 and < 64)
        {
            mask |= 1UL << (int)delta;
            return true;
        }

        if (delta is <= -64 or >= 0 || (mask << (int)-delta) >> (int)-delta != mask)
            return false;
        mask = (mask << (int)-delta) | 1;
        current = current with { Offset = offset };
        return true;
    }

    // The slot may be gone or another one since the entry was made: user space wrote the ring's memory, so nothing in it is trusted.
    private void ArmRun(Actor actor, DirtyGfn first, ulong mask)
    {
        int addressSpace = (int)(first.Slot >> 16);
        if (addressSpace >= _vm.AddressSpaces || _vm.SlotsOf(addressSpace).Active.ById((int)(first.Slot & 0xFFFF)) is not { } slot)
            return;
        if (first.Offset >= slot.Pages || slot.Pages - first.Offset <= (ulong)BitOperations.Log2(mask))
            return;
        _vm.Mmu.MmuLock.EnterWrite(actor);
        Arm(actor, slot, first.Offset, mask);
        _vm.Mmu.MmuLock.ExitWrite(actor);
    }

    private void MarkInRing(Actor actor, Memslot slot, ulong page)
    {
        if (_vm.RunningOn(actor) is not { DirtyRing: { } ring } vcpu)
        {
            _vm.Mmu.Warn($"page {page} of {slot} was dirtied by {actor}, which runs no vCPU");
            return;
        }

        if (!ring.Push(((uint)slot.AddressSpace << 16) | (uint)slot.Id, page))
            _vm.Mmu.Warn($"the dirty ring of vCPU {vcpu.Id} is full");
        if (ring.IsSoftFull)
            vcpu.Kick.Post(actor, VcpuSet.DirtyRingSoftFull);
    }

    private Errno Find(uint id, out Memslot? slot)
    {
        slot = null;
        if (_vm.IsDead)
            return Errno.EIO;
        if (RingEntries != 0)
            return Errno.ENXIO;
        if (id >> 16 >= _vm.AddressSpaces || (id & 0xFFFF) >= VmMemory.MaxSlots)
            return Errno.EINVAL;
        slot = _vm.SlotsOf((int)(id >> 16)).Active.ById((int)(id & 0xFFFF));
        return slot?.DirtyBitmap is null ? Errno.ENOENT : Errno.None;
    }

    // What vCPUs have in their page-modification logs reaches the bitmap at their next exit: make them leave. Nobody waits: a page that comes late is in the next harvest.
    private void EmptyCpuLogs(Actor actor)
    {
        if (!_vm.HasPml)
            return;
        foreach (Vcpu vcpu in _vm.Vcpus)
            vcpu.Kick.Send(actor, wait: false);
    }

    // The first and the last logged slot switch the CPU's log. With the wait nobody runs without the log once leaves are being armed: a page dirtied in between would keep
    // Dirty without ever having been listed.
    private void CountSlot(Actor actor, int delta)
    {
        // A full barrier, before the vCPUs are looked at: one that is being created reads the count after it has become visible.
        int before = _loggedSlots.Read();
        _loggedSlots.Swap(before + delta);
        if (_vm.HasPml && (before == 0 || before + delta == 0))
            _vm.VcpuSet.RequestAll(actor, VcpuSet.UpdateDirtyLogging, wait: true);
    }

    private MmuVcpu SplitTables(Actor actor)
    {
        _splitTables ??= new MmuVcpu(_vm.Mmu, actor, -1);
        _splitTables.Actor = actor;
        return _splitTables;
    }

    private static void SetAll(WordRun bitmap, ulong pages)
    {
        for (ulong word = 0; word < pages >> 6; word++)
            bitmap[word].Write(ulong.MaxValue);
        if ((pages & 63) != 0)
            bitmap[pages >> 6].Write((1UL << (int)(pages & 63)) - 1);
    }
}
