namespace Tdp.Host;

/// <summary>
/// The per-VM memory attributes: for every guest frame whether the VM's owner considers it private (KVM_MEMORY_ATTRIBUTE_PRIVATE, bit 3; tdp-mmu 6.10).
/// A frame without a record is shared.
/// </summary>
/// <remarks>
/// A sparse bitmap: top words -> directory frame -> bitmap frame of 32,768 guest frames. Faults read it without a lock; a read that is too early or too
/// late is caught by the invalidation check of the fault (tdp-mmu 7.6). Writers hold slots_lock. Directories and bitmaps live as long as the VM,
/// which is why a vCPU may keep the address of the last bitmap it used (<see cref="Cache"/>).
/// </remarks>
public sealed class MemoryAttributes
{
    /// <summary>KVM_MEMORY_ATTRIBUTE_PRIVATE.</summary>
    public const ulong Private = 1 << 3;

    private const int LeafBits = 15;
    private const int DirectoryBits = 9;
    private const ulong PresentBit = 1;
    private readonly PhysicalMemory _memory;
    private readonly HostFrames _frames;
    private readonly WordRun _top;
    private readonly List<Hpa> _owned = [];

    private MemoryAttributes(Machine machine, HostFrames frames, WordRun top)
    {
        _memory = machine.Memory;
        _frames = frames;
        _top = top;
    }

    /// <summary>Makes the attributes of a VM: everything shared.</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="frames">Where bitmap frames come from.</param>
    /// <param name="actor">Who asks.</param>
    /// <param name="gpaWidth">Guest-physical bits, 48 or 52.</param>
    /// <returns>Null when there is no memory.</returns>
    public static MemoryAttributes? TryCreate(Machine machine, HostFrames frames, Actor actor, int gpaWidth)
    {
        WordRun? top = WordRun.TryCreate(machine, actor, 1UL << (gpaWidth - 12 - LeafBits - DirectoryBits));
        return top is null ? null : new MemoryAttributes(machine, frames, top);
    }

    /// <summary>True when the frame is private. One to four loads.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsPrivate(Gfn gfn, ref Cache cache)
    {
        ulong chunk = gfn.Value >> LeafBits;
        if (cache.Chunk != chunk + 1)
            return IsPrivateSlowly(gfn, ref cache);
        return (Bitmap(cache.Leaf, gfn).Read() & (1UL << ((int)gfn.Value & 63))) != 0;
    }

    /// <summary>True when the frame is private; for callers without a cache.</summary>
    public bool IsPrivate(Gfn gfn)
    {
        var cache = default(Cache);
        return IsPrivate(gfn, ref cache);
    }

    /// <summary>True when the frame is private; no event, for checkers. While a conversion stores, either answer is possible for its range.</summary>
    public bool PeekPrivate(Gfn gfn)
    {
        ulong chunk = gfn.Value >> LeafBits;
        ulong directory = chunk >> DirectoryBits < _top.Length ? _top.Peek(chunk >> DirectoryBits) : 0;
        ulong leaf = directory == 0 ? 0 : _memory.Entry(new Hpa(directory & Hpa.Mask), (int)(chunk & 511)).Peek() & Hpa.Mask;
        return leaf != 0 && (Bitmap(leaf, gfn).Peek() & (1UL << ((int)gfn.Value & 63))) != 0;
    }

    /// <summary>True when every frame of the range has the attribute.</summary>
    public bool IsAll(GfnRange range, bool isPrivate)
    {
        for (ulong gfn = range.Start.Value; gfn < range.End.Value;)
        {
            ulong count = WordSpan(gfn, range.End.Value, out ulong mask);
            ulong word = WordOf(gfn);
            if ((isPrivate ? word & mask : ~word & mask) != mask)
                return false;
            gfn += count;
        }

        return true;
    }

    /// <summary>True when the frames of the range have different attributes.</summary>
    public bool IsMixed(GfnRange range) => !IsAll(range, isPrivate: true) && !IsAll(range, isPrivate: false);

    /// <summary>Provides storage for the whole range, so that <see cref="Store"/> cannot fail. Caller holds slots_lock.</summary>
    /// <returns>False when there is no memory; nothing is changed then.</returns>
    public bool Reserve(Actor actor, GfnRange range)
    {
        for (ulong chunk = range.Start.Value >> LeafBits; chunk <= (range.End.Value - 1) >> LeafBits; chunk++)
        {
            AtomicWord top = _top[chunk >> DirectoryBits];
            ulong directory = top.Read();
            if (directory == 0)
            {
                if (!TryTakeFrame(actor, out directory))
                    return false;
                top.Write(directory);
            }

            AtomicWord entry = _memory.Entry(new Hpa(directory & Hpa.Mask), (int)(chunk & 511));
            if (entry.Read() == 0)
            {
                if (!TryTakeFrame(actor, out ulong leaf))
                    return false;
                entry.Write(leaf);
            }
        }

        return true;
    }

    /// <summary>Stores the attribute of every frame of a reserved range. Caller holds slots_lock; faults read meanwhile (R08).</summary>
    public void Store(GfnRange range, bool isPrivate)
    {
        for (ulong gfn = range.Start.Value; gfn < range.End.Value;)
        {
            ulong count = WordSpan(gfn, range.End.Value, out ulong mask);
            AtomicWord word = Bitmap(LeafOf(gfn), new Gfn(gfn));
            if (isPrivate)
                word.Or(mask);
            else
                word.And(~mask);
            gfn += count;
        }
    }

    /// <summary>Gives all memory back, when the VM is gone.</summary>
    public void Free(Actor actor)
    {
        foreach (Hpa frame in _owned)
            _frames.Give(actor, frame, FrameUse.Kernel);
        _owned.Clear();
        _top.Free();
    }

    // Frames of the range that share the bitmap word of gfn, as a count and a mask.
    private static ulong WordSpan(ulong gfn, ulong end, out ulong mask)
    {
        int bit = (int)(gfn & 63);
        ulong count = Math.Min(64 - (ulong)bit, end - gfn);
        mask = (count == 64 ? ulong.MaxValue : (1UL << (int)count) - 1) << bit;
        return count;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private AtomicWord Bitmap(ulong leaf, Gfn gfn) => _memory.Entry(new Hpa(leaf), (int)(gfn.Value >> 6) & 511);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool IsPrivateSlowly(Gfn gfn, ref Cache cache)
    {
        ulong leaf = LeafOf(gfn.Value);
        if (leaf == 0)
            return false;
        cache = new Cache { Chunk = (gfn.Value >> LeafBits) + 1, Leaf = leaf };
        return (Bitmap(leaf, gfn).Read() & (1UL << ((int)gfn.Value & 63))) != 0;
    }

    private ulong WordOf(ulong gfn)
    {
        ulong leaf = LeafOf(gfn);
        return leaf == 0 ? 0 : Bitmap(leaf, new Gfn(gfn)).Read();
    }

    private ulong LeafOf(ulong gfn)
    {
        ulong chunk = gfn >> LeafBits;
        if (chunk >> DirectoryBits >= _top.Length)
            return 0;
        ulong directory = _top[chunk >> DirectoryBits].Read();
        return directory == 0 ? 0 : _memory.Entry(new Hpa(directory & Hpa.Mask), (int)(chunk & 511)).Read() & Hpa.Mask;
    }

    private bool TryTakeFrame(Actor actor, out ulong entry)
    {
        entry = 0;
        if (!_frames.TryTakeZeroed(actor, FrameUse.Kernel, out Hpa frame))
            return false;
        _owned.Add(frame);
        entry = frame.Value | PresentBit;
        return true;
    }

    /// <summary>The bitmap that a vCPU used last. Default: none.</summary>
    public struct Cache
    {
        internal ulong Chunk;
        internal ulong Leaf;
    }
}
