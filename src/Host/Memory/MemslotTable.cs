namespace Tdp.Host;

/// <summary>An immutable snapshot of the slots of one address space, in ascending order of guest frames.</summary>
public sealed class MemslotSet
{
    /// <summary>No slots.</summary>
    public static readonly MemslotSet Empty = new([]);

    private readonly Memslot[] _slots;
    private readonly Memslot?[] _byId;

    internal MemslotSet(IEnumerable<Memslot> slots)
    {
        var sorted = new List<Memslot>(slots);
        sorted.Sort(static (a, b) => a.BaseGfn.CompareTo(b.BaseGfn));
        _slots = [.. sorted];
        int ids = 0;
        foreach (Memslot slot in _slots)
            ids = Math.Max(ids, slot.Id + 1);
        _byId = new Memslot?[ids];
        foreach (Memslot slot in _slots)
            _byId[slot.Id] = slot;
    }

    /// <summary>The slots.</summary>
    public IReadOnlyList<Memslot> Slots => _slots;

    /// <summary>The slot that holds a frame, or null. Binary search.</summary>
    public Memslot? Find(Gfn gfn)
    {
        int low = 0, high = _slots.Length - 1;
        while (low <= high)
        {
            int middle = (low + high) >> 1;
            Memslot slot = _slots[middle];
            if (slot.Contains(gfn))
                return slot;
            if (gfn < slot.BaseGfn)
                high = middle - 1;
            else
                low = middle + 1;
        }

        return null;
    }

    /// <summary>The slot of a number, or null.</summary>
    public Memslot? ById(int id) => (uint)id < (uint)_byId.Length ? _byId[id] : null;

    /// <summary>True when a slot other than number <paramref name="id"/> shares a frame with the range.</summary>
    public bool Overlaps(GfnRange range, int id)
    {
        foreach (Memslot slot in _slots)
        {
            if (slot.Id != id && slot.Range.Overlaps(range))
                return true;
        }

        return false;
    }

    internal MemslotSet With(Memslot slot)
    {
        var slots = new List<Memslot>(_slots);
        slots.RemoveAll(s => s.Id == slot.Id);
        slots.Add(slot);
        return new MemslotSet(slots);
    }

    internal MemslotSet Without(int id)
    {
        var slots = new List<Memslot>(_slots);
        slots.RemoveAll(s => s.Id == id);
        return new MemslotSet(slots);
    }
}

/// <summary>
/// The slots of one address space of a VM: two sets of which one is published, as in KVM (tdp-mmu 6.5).
/// </summary>
/// <remarks>
/// Readers are inside an SRCU section and use what they found to its end. The writer holds slots_lock: it fills the other set, waits until no MMU notifier
/// is between start and end, publishes, and waits for all SRCU sections, after which nobody can see the old set. Linearizes at the write of
/// the published index.
/// </remarks>
public sealed class MemslotTable
{
    /// <summary>Bit 63 of the generation: an update is in progress.</summary>
    public const ulong UpdateInProgress = 1UL << 63;

    private readonly MemslotSet[] _sets = [MemslotSet.Empty, MemslotSet.Empty];

    // What _active selects, so that a fault in a free run needs one load. Written before _active; whoever reads it early sees a set that is about to be published.
    private MemslotSet _current = MemslotSet.Empty;
    private readonly SharedCell<int> _active;
    private readonly SharedCell<ulong> _generation;

    /// <summary>Makes the table of an address space.</summary>
    /// <param name="owner">For the names of its cells.</param>
    /// <param name="generation">First generation: different for each address space, so that none of one space is ever one of another.</param>
    internal MemslotTable(ulong owner, ulong generation)
    {
        _active = new SharedCell<int>("memslots", owner);
        _generation = new SharedCell<ulong>("memslot_generation", owner, generation);
    }

    /// <summary>The published set. The caller is inside an SRCU section, holds slots_lock, or is alone.</summary>
    public MemslotSet Active
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Explore.On ? _sets[_active.Read()] : _current;
    }

    /// <summary>The published set without an event: for checkers.</summary>
    public MemslotSet PeekActive => Explore.On ? _sets[_active.Peek()] : _current;

    /// <summary>Generation; bit 63 while an update is in progress.</summary>
    public ulong Generation => _generation.Read();

    /// <summary>Publishes another set (KVM: kvm_swap_active_memslots). Caller holds slots_lock and slots_arch_lock; the latter is dropped before
    /// waiting.</summary>
    internal void Swap(Actor actor, Vm vm, MemslotSet next)
    {
        int inactive = _active.Read() ^ 1;
        _sets[inactive] = next;
        _generation.Write(_generation.Read() | UpdateInProgress);

        // A notifier between start and end must see the same slots in both, or begin and end of the invalidation would not balance (R30).
        vm.Notifier.WhenIdle(actor, () =>
        {
            _current = next;
            _active.Write(inactive);
        });
        vm.SlotsArchLock.Exit(actor);
        vm.Srcu.Synchronize(actor);
        _sets[inactive ^ 1] = next;
        ulong generation = (_generation.Read() & ~UpdateInProgress) + (ulong)vm.AddressSpaces;

        // MMIO entries hold the low bits only: when these wrap, entries of long ago would look current (tdp-mmu 2.6).
        if ((generation & ((1UL << SpteFormat.MmioGenerationBits) - (ulong)vm.AddressSpaces)) == 0)
            vm.Mmu.ZapAllFast(actor);
        _generation.Write(generation);
    }
}
