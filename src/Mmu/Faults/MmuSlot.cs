namespace Tdp.Mmu;

/// <summary>
/// What the MMU keeps for one memslot: large-page limits with the MIXED flag, write tracking, dirty logging (KVM: kvm_arch_memory_slot;
/// tdp-mmu 1.6, 5.7). The Host's memslot owns one.
/// </summary>
/// <remarks>Limits and tracking are written under mmu_lock write (or before the slot is published) and read under mmu_lock in either mode.</remarks>
public sealed class MmuSlot
{
    private const uint MixedFlag = 1u << 31;
    private readonly uint[][] _limits = new uint[2][];
    private ushort[]? _tracked;

    /// <summary>Makes the record of a slot.</summary>
    /// <param name="id">Slot number.</param>
    /// <param name="addressSpace">0, or 1 in SMM.</param>
    /// <param name="range">The pages.</param>
    /// <param name="hostGfn">User address of the first page, in pages: when it is not aligned like the frame numbers no huge page is possible.</param>
    /// <param name="hasGuestMemfd">Private memory can stand behind the slot.</param>
    public MmuSlot(int id, int addressSpace, GfnRange range, ulong hostGfn, bool hasGuestMemfd = false)
    {
        Id = id;
        AddressSpace = addressSpace;
        Range = range;
        HasGuestMemfd = hasGuestMemfd;
        for (Level level = Level.M2; level <= Level.G1; level = level.Up)
        {
            var limits = new uint[IndexOf(range.End + ulong.MaxValue, level) + 1];
            ulong within = level.Pages - 1;
            if ((range.Start.Value & within) != 0)
                limits[0] = 1;
            if ((range.End.Value & within) != 0)
                limits[^1] = 1;
            if (((range.Start.Value ^ hostGfn) & within) != 0)
                Array.Fill(limits, 1u);
            _limits[level.Value - 2] = limits;
        }
    }

    /// <summary>Slot number.</summary>
    public int Id { get; }

    /// <summary>Address space: 0, or 1 in SMM.</summary>
    public int AddressSpace { get; }

    /// <summary>The pages.</summary>
    public GfnRange Range { get; }

    /// <summary>Private memory can stand behind the slot.</summary>
    public bool HasGuestMemfd { get; }

    /// <summary>KVM_MEM_LOG_DIRTY_PAGES: leaves stay at 4K and gains of W are recorded. Set before the flag change is published.</summary>
    public bool IsDirtyLogged
    {
        get;
        set
        {
            field = value;
            WatchesWrites = value || _tracked is not null;
        }
    }

    /// <summary>Somebody must hear of new writable leaves: the dirty log or a write tracker. One test for the path where nobody must.</summary>
    internal bool WatchesWrites { get; private set; }

    /// <summary>How many reasons forbid a huge page of this level around the page, the MIXED flag apart.</summary>
    public uint DisallowCount(Gfn gfn, Level level) => Limit(gfn, level) & ~MixedFlag;

    /// <summary>True when the huge range around the page mixes private and shared attributes (I65).</summary>
    public bool IsMixed(Gfn gfn, Level level) => (Limit(gfn, level) & MixedFlag) != 0;

    /// <summary>Adds to the reasons against a huge page of this level around the page.</summary>
    public void AddDisallow(Gfn gfn, Level level, int delta)
    {
        ref uint limit = ref Limit(gfn, level);
        limit = (limit & MixedFlag) | (uint)((int)(limit & ~MixedFlag) + delta);
    }

    /// <summary>Sets the MIXED flag as the attributes of the whole slot require it; for a new slot (KVM: init_memslot_memory_attributes).</summary>
    public void InitMixed(Func<Gfn, bool> isPrivate) => UpdateMixed(Range, isPrivate);

    /// <summary>
    /// Recomputes the MIXED flags after the attributes of <paramref name="range"/> (inside the slot) became equal: fully covered huge ranges are not mixed,
    /// head and tail are tested, lower levels first (tdp-mmu 6.10 step 5). mmu_lock write.
    /// </summary>
    public void UpdateMixed(GfnRange range, Func<Gfn, bool> isPrivate)
    {
        bool whole = range == Range;
        for (Level level = Level.M2; level <= Level.G1; level = level.Up)
        {
            ulong pages = level.Pages;
            Gfn gfn = range.Start.AlignDown(level);
            for (; gfn < range.End; gfn += pages)
            {
                bool covered = gfn >= range.Start && gfn + pages <= range.End;
                if (covered && !whole)
                    SetMixed(gfn, level, false);
                else if (gfn >= Range.Start && gfn + pages <= Range.End)
                    SetMixed(gfn, level, HasSeveral(gfn, level, isPrivate));
            }
        }
    }

    /// <summary>
    /// Adds to the invalidation in progress those huge ranges that the conversion covers only in part and that may still be mapped huge: until the new
    /// attributes are stored no fault may build a huge page across the edge (tdp-mmu 6.10 step 3). mmu_lock write.
    /// </summary>
    public void AddPartialHugeRanges(Actor actor, Invalidation invalidation, GfnRange range)
    {
        for (Level level = Level.M2; level <= Level.G1; level = level.Up)
        {
            ulong pages = level.Pages;
            Gfn head = range.Start.AlignDown(level);
            Gfn tail = range.End.AlignDown(level);
            if ((head != range.Start || head + pages > range.End) && Fits(head, pages) && !IsMixed(head, level))
                invalidation.AddRange(actor, GfnRange.Of(head, pages));
            if (tail != head && tail < range.End && Fits(tail, pages) && !IsMixed(tail, level))
                invalidation.AddRange(actor, GfnRange.Of(tail, pages));
        }
    }

    /// <summary>True while writes to the page are tracked: it must not be mapped writable.</summary>
    public bool IsWriteTracked(Gfn gfn) => _tracked is { } tracked && tracked[gfn - Range.Start] != 0;

    /// <summary>One more (or less) tracker of writes to the page; each also forbids huge pages around it. mmu_lock write.</summary>
    public void TrackWrites(Gfn gfn, int delta)
    {
        _tracked ??= new ushort[Range.Pages];
        WatchesWrites = true;
        _tracked[gfn - Range.Start] = (ushort)(_tracked[gfn - Range.Start] + delta);
        AddDisallow(gfn, Level.M2, delta);
        AddDisallow(gfn, Level.G1, delta);
    }

    /// <summary>The largest level up to <paramref name="max"/> that nothing forbids around the page.</summary>
    internal Level LargestAllowed(Gfn gfn, Level max)
    {
        Level level = max > Level.G1 ? Level.G1 : max;
        while (level > Level.K4 && Limit(gfn, level) != 0)
            level = level.Down;
        return level;
    }

    private bool Fits(Gfn gfn, ulong pages) => gfn >= Range.Start && gfn + pages <= Range.End;

    private bool HasSeveral(Gfn gfn, Level level, Func<Gfn, bool> isPrivate)
    {
        bool first = isPrivate(gfn);
        ulong step = level.Down.Pages;
        for (ulong i = 0; i < level.Pages; i += step)
        {
            if ((level > Level.M2 && IsMixed(gfn + i, level.Down)) || isPrivate(gfn + i) != first)
                return true;
        }

        return false;
    }

    private void SetMixed(Gfn gfn, Level level, bool mixed)
    {
        ref uint limit = ref Limit(gfn, level);
        limit = mixed ? limit | MixedFlag : limit & ~MixedFlag;
    }

    private ref uint Limit(Gfn gfn, Level level) => ref _limits[level.Value - 2][IndexOf(gfn, level)];

    private ulong IndexOf(Gfn gfn, Level level)
    {
        int shift = 9 * (level.Value - 1);
        return (gfn.Value >> shift) - (Range.Start.Value >> shift);
    }
}
