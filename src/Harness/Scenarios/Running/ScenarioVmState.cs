namespace Tdp.Harness.Scenarios;

/// <summary>One VM of an execution: the VM, the guests of its vCPUs, and the memory behind its slots.</summary>
internal sealed class ScenarioVmState
{
    private readonly Dictionary<int, SlotState> _slots = [];
    private readonly Dictionary<int, ulong[]> _harvests = [];

    public ScenarioVmState(Vm vm, int firstProcessor)
    {
        Vm = vm;
        FirstProcessor = firstProcessor;
    }

    /// <summary>The memory behind one slot.</summary>
    /// <param name="Declared">The slot as declared.</param>
    /// <param name="HostAddress">Where its host memory begins.</param>
    /// <param name="File">Its guest_memfd, or <see langword="null"/>.</param>
    internal sealed record SlotState(ScenarioSlot Declared, ulong HostAddress, GuestMemfd? File)
    {
        /// <summary>The argument of the ioctl that creates it.</summary>
        public UserMemoryRegion Region => new(
            (uint)((Declared.AddressSpace << 16) | Declared.Id),
            (File is null ? MemslotFlags.None : MemslotFlags.GuestMemfd) | (Declared.IsLogged ? MemslotFlags.LogDirtyPages : MemslotFlags.None)
                | (Declared.IsReadOnly ? MemslotFlags.ReadOnly : MemslotFlags.None),
            Declared.Range.Start.Value << 12,
            Declared.Range.Pages << 12,
            HostAddress,
            File);
    }

    /// <summary>The VM.</summary>
    public Vm Vm { get; }

    /// <summary>The processor of its vCPU 0.</summary>
    public int FirstProcessor { get; }

    /// <summary>The guests of its vCPUs.</summary>
    public List<ScenarioGuest> Guests { get; } = [];

    /// <summary>The actors of its vCPUs.</summary>
    public List<Actor> VcpuActors { get; } = [];

    /// <summary>The slots by number.</summary>
    public IReadOnlyDictionary<int, SlotState> Slots => _slots;

    /// <summary>The pages of a slot that a harvest of its dirty log has named, one bit each.</summary>
    public ulong[] HarvestOf(int slot) => _harvests.TryGetValue(slot, out ulong[]? words) ? words : _harvests[slot] = new ulong[(_slots[slot].Declared.Range.Pages + 63) >> 6];

    /// <summary>True when it has been destroyed.</summary>
    public bool IsDestroyed { get; private set; }

    /// <summary>Adds a slot's memory.</summary>
    public void Add(SlotState slot) => _slots.Add(slot.Declared.Id, slot);

    /// <summary>The declared slot that holds a frame; where slots overlap (other address space), the first declared.</summary>
    public SlotState? SlotAt(Gfn gfn)
    {
        foreach (SlotState slot in _slots.Values)
        {
            if (slot.Declared.Range.Contains(gfn))
            {
                return slot;
            }
        }

        return null;
    }

    /// <summary>The slot as the VM has it now, or <see langword="null"/>.</summary>
    public Memslot? Live(int id) => Vm.SlotsOf(_slots[id].Declared.AddressSpace).Active.ById(id);

    /// <summary>The host address behind a frame of a slot.</summary>
    public static ulong AddressOf(SlotState slot, Gfn gfn) => slot.HostAddress + ((gfn - slot.Declared.Range.Start) << 12);

    /// <summary>Destroys the VM. No vCPU runs.</summary>
    public void Destroy(Actor director)
    {
        if (!IsDestroyed)
        {
            IsDestroyed = true;
            Vm.Destroy(director);
        }
    }
}
