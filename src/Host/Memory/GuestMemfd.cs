namespace Tdp.Host;

/// <summary>Modes of fallocate(2) that a guest_memfd knows.</summary>
[Flags]
public enum FallocateMode
{
    /// <summary>Default mode: would change the size, which is refused.</summary>
    None = 0,

    /// <summary>FALLOC_FL_KEEP_SIZE.</summary>
    KeepSize = 1,

    /// <summary>FALLOC_FL_PUNCH_HOLE.</summary>
    PunchHole = 2,
}

/// <summary>
/// A guest_memfd file: private guest memory that no host mapping ever shows (tdp-mmu 6.12). Page i of the file backs guest frame base + i - offset of
/// the slot that is bound to it.
/// </summary>
/// <remarks>
/// The index holds one word per page; it changes from 0 to a frame by compare-exchange (first use) and back only under the invalidate lock
/// held exclusively, after every binding VM has unmapped the page. Lookups hold the lock shared (tdp-mmu 5.4).
/// Frames come from the actor's own list, so that faults of different vCPUs never meet at an allocator.
/// </remarks>
public sealed class GuestMemfd
{
    private const ulong Present = 1;
    private const ulong Poisoned = 2;
    private readonly Machine _machine;
    private readonly HostFrames _frames;
    private readonly WordRun _index;
    private readonly List<Binding> _bindings = [];
    private bool _isClosed;

    private GuestMemfd(HostKernel kernel, Vm vm, WordRun index, ulong pages)
    {
        _machine = kernel.Machine;
        _frames = kernel.Frames;
        _index = index;
        Vm = vm;
        Pages = pages;
        InvalidateLock = new RwLock(kernel.Machine.Actors, "gmem-invalidate", (ulong)vm.Number);
    }

    /// <summary>The VM that the file was made for; only its slots can be bound.</summary>
    public Vm Vm { get; }

    /// <summary>Size in pages.</summary>
    public ulong Pages { get; }

    /// <summary>Shared by lookups, exclusive for truncation and the initial image; outside mmu_lock (tdp-mmu 7.1).</summary>
    public RwLock InvalidateLock { get; }

    /// <summary>True once the file has been closed: lookups answer -EFAULT.</summary>
    public bool IsClosed => _isClosed;

    /// <summary>Makes a file of <paramref name="bytes"/> bytes for a VM (KVM_CREATE_GUEST_MEMFD).</summary>
    /// <returns>Null with -EINVAL (size) or -ENOMEM.</returns>
    public static Errno Create(Actor actor, Vm vm, ulong bytes, out GuestMemfd? file)
    {
        file = null;
        if (bytes == 0 || (bytes & 0xFFF) != 0 || !vm.HasPrivateMemory)
            return Errno.EINVAL;
        WordRun? index = WordRun.TryCreate(vm.Kernel.Machine, actor, bytes >> 12);
        if (index is null)
            return Errno.ENOMEM;
        file = new GuestMemfd(vm.Kernel, vm, index, bytes >> 12);
        vm.AddFile(file);
        return Errno.None;
    }

    /// <summary>
    /// The frame of a page, allocated and zeroed at first use. The order is always 0 (4K). Takes the invalidate lock shared.
    /// </summary>
    /// <returns>-EFAULT closed or beyond the end, -EHWPOISON, -ENOMEM.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Errno Lookup(Actor actor, ulong page, out Hpa frame)
    {
        InvalidateLock.EnterRead(actor);
        Errno result = LookupLocked(actor, page, out frame);
        InvalidateLock.ExitRead(actor);
        return result;
    }

    /// <summary>As <see cref="Lookup"/>, for callers that hold the invalidate lock.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Errno LookupLocked(Actor actor, ulong page, out Hpa frame)
    {
        if (page < Pages)
        {
            ulong word = _index[page].Read();
            if ((word & (Present | Poisoned)) == Present)
            {
                frame = new Hpa(word & Hpa.Mask);
                return Errno.None;
            }
        }

        return Populate(actor, page, out frame);
    }

    /// <summary>The frame of a page if there is one; for checkers and reports, no event and no allocation.</summary>
    public Hpa? Peek(ulong page)
    {
        ulong word = page < Pages ? _index.Peek(page) : 0;
        return (word & Present) != 0 ? new Hpa(word & Hpa.Mask) : null;
    }

    /// <summary>Puts one particular free frame of the machine behind a page that has none yet; for tests that replay a worked trace (decisions D26).</summary>
    /// <returns>False when the frame is not free or the page has one.</returns>
    public bool Place(Actor actor, ulong page, Hpa frame)
    {
        if (page >= Pages || _index[page].Read() != 0 || !_machine.Frames.TryTakeExactly(actor, FrameUse.GuestMemfd, frame))
            return false;
        _machine.Memory.Zero(frame);
        _index[page].Write(frame.Value | Present);
        return true;
    }

    /// <summary>A memory error hit the page: it is unmapped from every binding, and later lookups answer -EHWPOISON (tdp-mmu 6.12).</summary>
    public void Poison(Actor actor, ulong page)
    {
        InvalidateLock.EnterRead(actor);
        List<Binding> bindings = Intersecting(page, page + 1);
        foreach (Binding binding in bindings)
            binding.Vm.Memory.BeginInvalidation(actor, binding.RangeOf(page, page + 1), AliasFilter.Private);
        _index[page].Or(Poisoned);
        foreach (Binding binding in bindings)
            binding.Vm.Memory.EndInvalidation(actor);

        InvalidateLock.ExitRead(actor);
    }

    /// <summary>
    /// fallocate(PUNCH_HOLE): unmaps the pages from every bound VM, then frees them, all between begin and end of the invalidation, so the Secure
    /// EPT has lost a page before its frame is free (I62). Takes the invalidate lock exclusively.
    /// </summary>
    /// <returns>-EINVAL outside the file, -EIO when a VM is dead.</returns>
    public Errno PunchHole(Actor actor, ulong page, ulong count)
    {
        if (count == 0 || page >= Pages || count > Pages - page)
            return Errno.EINVAL;
        InvalidateLock.EnterWrite(actor);
        Truncate(actor, page, page + count);
        InvalidateLock.ExitWrite(actor);
        return Vm.IsDead ? Errno.EIO : Errno.None;
    }

    /// <summary>
    /// fallocate(2): with <see cref="FallocateMode.PunchHole"/> takes pages away, without it provides them. KEEP_SIZE is required: the file's size never changes.
    /// </summary>
    /// <param name="actor">Who; stands on a processor.</param>
    /// <param name="mode">What to do.</param>
    /// <param name="offset">First byte, page-aligned.</param>
    /// <param name="length">Bytes, a multiple of 4096. A hole may reach beyond the end of the file, where nothing is.</param>
    /// <returns>-EBADF closed, -EINVAL empty or unaligned, or pages beyond the end wanted; -EFBIG wrap, -EOPNOTSUPP mode, -ENOMEM, -EHWPOISON.</returns>
    public Errno Fallocate(Actor actor, FallocateMode mode, ulong offset, ulong length)
    {
        const ulong LargestFile = 1UL << 63;
        if (_isClosed)
            return Errno.EBADF;
        if (length == 0 || length >= LargestFile || offset >= LargestFile)
            return Errno.EINVAL;
        if (offset + length >= LargestFile)
            return Errno.EFBIG;
        if ((mode & FallocateMode.KeepSize) == 0 || (mode & ~(FallocateMode.KeepSize | FallocateMode.PunchHole)) != 0)
            return Errno.EOPNOTSUPP;
        if (((offset | length) & 0xFFF) != 0)
            return Errno.EINVAL;
        ulong first = offset >> 12, end = (offset + length) >> 12;
        return (mode & FallocateMode.PunchHole) != 0 ? Punch(actor, first, end) : Provide(actor, first, end);
    }

    /// <summary>Memory management wants to move a page (migrate_folio). Private memory cannot be moved behind the module's back: a WARN, nothing happens.</summary>
    /// <returns>-EINVAL always.</returns>
    public Errno MigratePage(ulong page)
    {
        Vm.Mmu.Warn($"page 0x{page:x} of a guest_memfd was to be migrated");
        return Errno.EINVAL;
    }

    /// <summary>
    /// KVM_SET_MEMORY_ATTRIBUTES2, conversion in place (tdp-mmu 6.11). This host keeps attributes per VM (decisions D02), so the ioctl does not exist.
    /// </summary>
    /// <returns>-ENOTTY always.</returns>
    public Errno SetAttributesInPlace(ulong offset, ulong length, ulong attributes)
    {
        _ = (offset, length, attributes);
        return Errno.ENOTTY;
    }

    /// <summary>
    /// Last close: every page is unmapped from every binding and freed, the bindings are dropped (tdp-mmu 6.12 "release", 8.8 step 1). Takes
    /// slots_lock and the invalidate lock.
    /// </summary>
    public void Close(Actor actor)
    {
        Vm.SlotsLock.Enter(actor);
        InvalidateLock.EnterWrite(actor);
        if (!_isClosed)
        {
            _isClosed = true;
            Truncate(actor, 0, Pages);
            _bindings.Clear();
        }

        InvalidateLock.ExitWrite(actor);
        Vm.SlotsLock.Exit(actor);
    }

    /// <summary>Gives the index back, after <see cref="Close"/> and after every vCPU is gone.</summary>
    internal void FreeIndex() => _index.Free();

    internal Errno Bind(Actor actor, Memslot slot)
    {
        ulong end = slot.MemfdPage + slot.Pages;
        if (!ReferenceEquals(slot.Vm, Vm) || end > Pages || end < slot.MemfdPage)
            return Errno.EINVAL;
        InvalidateLock.EnterWrite(actor);
        bool isTaken = false;
        foreach (Binding binding in _bindings)
            isTaken |= slot.MemfdPage < binding.End && binding.First < end;
        if (!isTaken && !_isClosed)
            _bindings.Add(new Binding(Vm, slot.MemfdPage, end, slot.BaseGfn));
        InvalidateLock.ExitWrite(actor);

        // Newest code: -EEXIST for a range that is bound already (tdp-mmu 6.5).
        return _isClosed ? Errno.EBADF : isTaken ? Errno.EEXIST : Errno.None;
    }

    internal void Unbind(Actor actor, Memslot slot)
    {
        InvalidateLock.EnterWrite(actor);
        _bindings.RemoveAll(b => b.First == slot.MemfdPage && b.Base == slot.BaseGfn);
        InvalidateLock.ExitWrite(actor);
    }

    private Errno Punch(Actor actor, ulong first, ulong end)
    {
        end = Math.Min(end, Pages);
        if (first >= end)
            return Errno.None;
        InvalidateLock.EnterWrite(actor);
        Truncate(actor, first, end);
        InvalidateLock.ExitWrite(actor);
        return Errno.None;
    }

    private Errno Provide(Actor actor, ulong first, ulong end)
    {
        if (end > Pages)
            return Errno.EINVAL;
        Errno result = Errno.None;
        InvalidateLock.EnterRead(actor);
        for (ulong page = first; page < end && result == Errno.None; page++)
            result = LookupLocked(actor, page, out _);
        InvalidateLock.ExitRead(actor);
        return result;
    }

    private List<Binding> Intersecting(ulong page, ulong end) => _bindings.FindAll(b => b.First < end && page < b.End);

    private void Truncate(Actor actor, ulong page, ulong end)
    {
        List<Binding> bindings = Intersecting(page, end);
        foreach (Binding binding in bindings)
            binding.Vm.Memory.BeginInvalidation(actor, binding.RangeOf(page, end), AliasFilter.Private);
        for (ulong i = page; i < end; i++)
        {
            ulong word = _index[i].Exchange(0);
            if ((word & Present) != 0)
                FreeFrame(actor, new Hpa(word & Hpa.Mask), (word & Poisoned) != 0);
        }

        foreach (Binding binding in bindings)
            binding.Vm.Memory.EndInvalidation(actor);
    }

    private void FreeFrame(Actor actor, Hpa frame, bool isPoisoned)
    {
        // A complete removal has handed the frame back to the file. After any other the module may still have it, or its lines: never use it again.
        FrameUse use = _machine.Ledger.UseOf(frame);
        if (use != FrameUse.GuestMemfd)
            _machine.Ledger.Leak(frame, use == FrameUse.Module ? "the TDX module did not give it back" : "its removal from the TD was not completed");
        else if (isPoisoned)
            _machine.Ledger.Leak(frame, "poisoned");
        else
            _frames.Give(actor, frame, FrameUse.GuestMemfd);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno Populate(Actor actor, ulong page, out Hpa frame)
    {
        frame = default;
        if (_isClosed || page >= Pages)
            return Errno.EFAULT;
        ulong word = _index[page].Read();
        if ((word & Poisoned) != 0)
            return Errno.EHWPOISON;
        if ((word & Present) == 0)
        {
            if (!_frames.TryTakeZeroed(actor, FrameUse.GuestMemfd, out Hpa taken))
                return Errno.ENOMEM;

            // Linearizes at this exchange: another vCPU may have populated the page meanwhile, then its frame counts.
            if (!_index[page].CompareExchange(ref word, taken.Value | Present))
                _frames.Give(actor, taken, FrameUse.GuestMemfd);
            else
                word = taken.Value | Present;
        }

        frame = new Hpa(word & Hpa.Mask);
        return Errno.None;
    }

    private readonly record struct Binding(Vm Vm, ulong First, ulong End, Gfn Base)
    {
        public GfnRange RangeOf(ulong page, ulong end) =>
            new(Base + (Math.Max(page, First) - First), Base + (Math.Min(end, End) - First));
    }
}
