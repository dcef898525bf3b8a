namespace Tdp.Host;

/// <summary>
/// The address space of the user-space VMM: host virtual addresses and the frames behind them. It backs the shared alias of a TD and all memory of an
/// ordinary VM, and it is what an MMU notifier is about (tdp-mmu 6.6).
/// </summary>
/// <remarks>
/// One page-table word per 4 KiB page: present 0, writable 1, swapped 2, poisoned 3, huge 7 (the page is part of a 2 MiB frame), frame 51:12. A fault fills a word from 0 or from
/// "swapped" by compare-exchange under no lock; unmapping holds mmap_lock for write and calls the notifier around it. Frames found by <see cref="TryResolve"/> carry no
/// reference: the caller must check for an invalidation before it uses them (tdp-mmu 5.4 step 10, 5.3 step 6).
/// </remarks>
public sealed partial class HostMemory
{
    /// <summary>Page-table word: there is a frame.</summary>
    internal const ulong Present = 1;

    /// <summary>Page-table word: the host's own mapping is writable.</summary>
    internal const ulong Writable = 2;

    /// <summary>Page-table word: the page is part of a 2 MiB frame.</summary>
    internal const ulong Huge = 1 << 7;

    private const ulong FirstAddress = 0x7F00_0000_0000;
    private readonly Machine _machine;
    private readonly HostFrames _frames;
    private Region[] _regions = [];
    private ulong _next = FirstAddress;

    /// <summary>Makes an empty address space.</summary>
    public HostMemory(HostKernel kernel, ulong owner)
    {
        _machine = kernel.Machine;
        _frames = kernel.Frames;
        MmapLock = new RwLock(kernel.Machine.Actors, "mmap", owner);
    }

    /// <summary>mmap_lock: held for write while mappings go away, for read by the VMM's own accesses.</summary>
    public RwLock MmapLock { get; }

    /// <summary>The notifier of the VM whose slots show this memory; null before there is one.</summary>
    public MmuNotifier? Notifier { get; set; }

    /// <summary>Maps anonymous memory: zero pages, allocated at first touch.</summary>
    /// <param name="actor">Who asks.</param>
    /// <param name="pages">Length in 4 KiB pages.</param>
    /// <param name="isHuge">True: aligned 2 MiB blocks are backed by 2 MiB frames where there are any.</param>
    /// <returns>The first address, 2 MiB-aligned; 0 when there is no memory.</returns>
    public ulong Map(Actor actor, ulong pages, bool isHuge = false)
    {
        WordRun? table = WordRun.TryCreate(_machine, actor, pages);
        if (table is null)
            return 0;
        MmapLock.EnterWrite(actor);
        ulong address = _next;
        _next += ((pages << 12) + 0x20_0000 + 0x1F_FFFF) & ~0x1F_FFFFUL;

        // A new array each time: faults read the old or the new one, without the lock.
        _regions = [.. _regions, new Region(address, pages, isHuge, table)];
        MmapLock.ExitWrite(actor);
        return address;
    }

    /// <summary>
    /// The frame behind an address (get_user_pages): allocated, zeroed and entered if there is none yet.
    /// </summary>
    /// <param name="actor">Who asks.</param>
    /// <param name="address">Host virtual address.</param>
    /// <param name="write">The access writes; a read-only page then fails.</param>
    /// <param name="frame">The 4 KiB frame.</param>
    /// <param name="isWritable">Whether the host's own mapping is writable.</param>
    /// <param name="level">Size of the host's mapping: 4K or 2M.</param>
    /// <param name="mayWait">False: a page that has been swapped out is not read in.</param>
    /// <returns>-EFAULT no mapping or not writable, -ENOMEM, -EHWPOISON, -EAGAIN the page would have to be read in.</returns>
    public Errno TryResolve(Actor actor, ulong address, bool write, out Hpa frame, out bool isWritable, out Level level, bool mayWait = true)
    {
        if (Find(address) is not { } region)
        {
            frame = default;
            isWritable = false;
            level = Level.K4;
            return Errno.EFAULT;
        }

        ulong page = (address - region.Start) >> 12;
        ulong word = region.Table[page].Read();
        if ((word & Present) == 0)
        {
            Errno result = (word & (Swapped | Poisoned)) == 0 ? Fault(actor, region, page, ref word) : FaultPaged(actor, region, page, ref word, mayWait);
            if (result != Errno.None)
            {
                frame = default;
                isWritable = false;
                level = Level.K4;
                return result;
            }
        }

        frame = new Hpa(word & Hpa.Mask);
        isWritable = (word & Writable) != 0;
        level = (word & Huge) != 0 ? Level.M2 : Level.K4;
        return write && !isWritable ? Errno.EFAULT : Errno.None;
    }

    /// <summary>Size of the host's mapping at an address; 4K when there is none. Read without a lock (tdp-mmu 5.7 step 3).</summary>
    public Level LevelOf(ulong address)
    {
        if (Find(address) is not { } region)
            return Level.K4;
        return (region.Table[(address - region.Start) >> 12].Read() & (Present | Huge)) == (Present | Huge) ? Level.M2 : Level.K4;
    }

    /// <summary>The table that holds the words of all these pages, and the index of the first; null when they do not lie in one mapping.</summary>
    internal WordRun? TableOf(ulong address, ulong pages, out ulong index)
    {
        index = 0;
        if (Find(address) is not { } region || pages > region.Pages - ((address - region.Start) >> 12))
            return null;
        index = (address - region.Start) >> 12;
        return region.Table;
    }

    /// <summary>The frame behind an address if there is one; no event, for checkers.</summary>
    public Hpa? Peek(ulong address)
    {
        ulong word = Find(address) is { } region ? region.Table.Peek((address - region.Start) >> 12) : 0;
        return (word & Present) != 0 ? new Hpa(word & Hpa.Mask) : null;
    }

    /// <summary>Takes pages away (munmap of the content, MADV_DONTNEED): the notifier unmaps them from the guest, then the frames are freed.</summary>
    /// <param name="actor">Who asks.</param>
    /// <param name="address">First byte, page-aligned.</param>
    /// <param name="pages">Length.</param>
    public void Discard(Actor actor, ulong address, ulong pages) => Change(actor, address, pages, static (_, _) => 0);

    /// <summary>Makes pages read-only in the host's own tables (mprotect); the guest's mappings go first.</summary>
    public void Protect(Actor actor, ulong address, ulong pages) => Change(actor, address, pages, static (_, word) => word & ~Writable);

    /// <summary>Moves pages to other frames (migration, compaction), content included; the guest's mappings go first.</summary>
    public void Migrate(Actor actor, ulong address, ulong pages) => Change(actor, address, pages, MoveFrame);

    /// <summary>The VMM reads guest memory through its own mapping. Holds mmap_lock, so the frames stay.</summary>
    /// <returns>-EFAULT or -ENOMEM; what was read until then is in the span.</returns>
    public Errno Read(Actor actor, ulong address, Span<byte> into)
    {
        MmapLock.EnterRead(actor);
        Errno result = Errno.None;
        for (int done = 0; done < into.Length && result == Errno.None;)
        {
            int count = (int)Math.Min((ulong)(into.Length - done), 0x1000 - (address & 0xFFF));
            result = TryResolve(actor, address, write: false, out Hpa frame, out _, out _);
            if (result == Errno.None)
                _machine.Memory.Frame(frame).Slice((int)(address & 0xFFF), count).CopyTo(into[done..]);
            done += count;
            address += (ulong)count;
        }

        MmapLock.ExitRead(actor);
        return result;
    }

    /// <summary>The VMM writes guest memory through its own mapping. Holds mmap_lock, so the frames stay.</summary>
    /// <returns>-EFAULT or -ENOMEM; what was written until then stays.</returns>
    public Errno Write(Actor actor, ulong address, ReadOnlySpan<byte> from)
    {
        MmapLock.EnterRead(actor);
        Errno result = Errno.None;
        while (from.Length > 0 && result == Errno.None)
        {
            int count = (int)Math.Min((ulong)from.Length, 0x1000 - (address & 0xFFF));
            result = TryResolve(actor, address, write: true, out Hpa frame, out _, out _);
            if (result == Errno.None)
            {
                from[..count].CopyTo(_machine.Memory.Frame(frame)[(int)(address & 0xFFF)..]);
                _machine.Ledger.ContentChanged(frame);
            }

            from = from[count..];
            address += (ulong)count;
        }

        MmapLock.ExitRead(actor);
        return result;
    }

    /// <summary>The process ends: every frame and table is freed. The notifier must be gone, or must have been told (tdp-mmu 6.1 op 2).</summary>
    public void Free(Actor actor)
    {
        foreach (Region region in _regions)
        {
            for (ulong page = 0; page < region.Pages; page++)
            {
                ulong word = region.Table[page].Exchange(0);
                if ((word & (Present | Swapped)) != 0)
                    Release(actor, word);
            }

            region.Table.Free();
        }

        _regions = [];
    }

    private Region? Find(ulong address)
    {
        foreach (Region region in _regions)
        {
            if (address - region.Start < region.Pages << 12)
                return region;
        }

        return null;
    }

    private void Change(Actor actor, ulong address, ulong pages, Func<Actor, ulong, ulong> change)
    {
        MmapLock.EnterWrite(actor);
        if (Find(address) is not { } region)
        {
            MmapLock.ExitWrite(actor);
            return;
        }

        ulong first = (address - region.Start) >> 12;
        ulong end = Math.Min(first + pages, region.Pages);

        // A 2 MiB mapping that is touched is split first, so the notifier hears of all of it.
        ulong widerFirst = IsHuge(region, first) ? first & ~511UL : first;
        ulong widerEnd = IsHuge(region, end - 1) ? Math.Min((end + 511) & ~511UL, region.Pages) : end;
        Notifier?.InvalidateRangeStart(actor, region.Start + (widerFirst << 12), region.Start + (widerEnd << 12));
        for (ulong page = widerFirst; page < widerEnd; page++)
            region.Table[page].And(~Huge);
        for (ulong page = first; page < end; page++)
        {
            AtomicWord entry = region.Table[page];
            ulong word = entry.Read();
            if ((word & (Present | Swapped)) == 0)
                continue;

            // No fault changes a present word, but one may read a swapped page in meanwhile: then the change is made to what it put there.
            ulong replacement = change(actor, word);
            while (!entry.CompareExchange(ref word, replacement))
                replacement = change(actor, word);
            if ((replacement & Poisoned) != 0)
                _machine.Ledger.Leak(new Hpa(word & Hpa.Mask), "poisoned");
            else if ((word & Hpa.Mask) != (replacement & Hpa.Mask))
                Release(actor, word);
        }

        Notifier?.InvalidateRangeEnd(actor, region.Start + (widerFirst << 12), region.Start + (widerEnd << 12));
        MmapLock.ExitWrite(actor);
    }

    private static bool IsHuge(Region region, ulong page) => (region.Table[page].Read() & Huge) != 0;

    private ulong MoveFrame(Actor actor, ulong word)
    {
        if ((word & Present) == 0)
            return word;
        if (!_frames.TryTake(actor, FrameUse.HostShared, out Hpa target, out _))
            return word;
        _machine.Memory.Copy(new Hpa(word & Hpa.Mask), target);
        return target.Value | (word & Writable) | Present;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno Fault(Actor actor, Region region, ulong page, ref ulong word)
    {
        if (region.IsHuge && TryFaultHuge(actor, region, page))
        {
            // A discard may have emptied it again at once.
            word = region.Table[page].Read();
            if ((word & Present) != 0)
                return Errno.None;
        }

        if (!_frames.TryTakeZeroed(actor, FrameUse.HostShared, out Hpa frame))
            return Errno.ENOMEM;
        ulong filled = frame.Value | Present | Writable;
        if (region.Table[page].CompareExchange(ref word, filled))
            word = filled;
        else
            _frames.Give(actor, frame, FrameUse.HostShared);
        return Errno.None;
    }

    // A whole block is filled under mmap_lock: a discard in its middle would leave a block that claims to be one frame and is not.
    private bool TryFaultHuge(Actor actor, Region region, ulong page)
    {
        ulong first = page & ~511UL;
        if (first + 512 > region.Pages)
            return false;
        bool isHeld = MmapLock.IsReadHeld(actor);
        if (!isHeld)
            MmapLock.EnterRead(actor);
        bool done = TryFillBlock(actor, region, first);
        if (!isHeld)
            MmapLock.ExitRead(actor);
        return done;
    }

    // A block that is still empty gets one aligned run. Its words are filled one by one; a racing 4K fault makes the rest of the block 4K pages.
    private bool TryFillBlock(Actor actor, Region region, ulong first)
    {
        for (ulong i = 0; i < 512; i++)
        {
            if (region.Table[first + i].Read() != 0)
                return false;
        }

        if (!_machine.Frames.TryTakeRun(actor, FrameUse.HostShared, 512, 512, out Hpa run))
            return false;
        bool isWhole = true;
        for (ulong i = 0; i < 512; i++)
        {
            Hpa frame = run + (i << 12);
            if (_machine.Memory.Record(frame.Frame).Generation != 1)
                _machine.Memory.Zero(frame);
            ulong expected = 0;
            if (!region.Table[first + i].CompareExchange(ref expected, frame.Value | Present | Writable))
            {
                isWhole = false;
                _frames.Give(actor, frame, FrameUse.HostShared);
            }
        }

        // The block is huge only from here on: a fault that looked before mapped it in 4K pages, which is right, too.
        for (ulong i = 0; isWhole && i < 512; i++)
            region.Table[first + i].Or(Huge);
        return true;
    }

    private sealed record Region(ulong Start, ulong Pages, bool IsHuge, WordRun Table);
}
