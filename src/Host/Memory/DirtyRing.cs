namespace Tdp.Host;

/// <summary>One page that a vCPU dirtied (KVM: struct kvm_dirty_gfn without its flags).</summary>
/// <param name="Slot">Slot number; bits 31:16 are the address space.</param>
/// <param name="Offset">Page within the slot.</param>
public readonly record struct DirtyGfn(uint Slot, ulong Offset);

/// <summary>
/// The dirty ring of one vCPU: instead of a bitmap per slot, the vCPU lists the pages it dirties in memory that it shares with user space (KVM_CAP_DIRTY_LOG_RING;
/// tdp-mmu 6.7).
/// </summary>
/// <remarks>
/// Three parties, one direction each. The vCPU appends (<see cref="Push"/>): the entry's offset first, then the word with slot and flag DIRTY, so whoever sees the flag sees the entry.
/// User space collects (<see cref="Harvest"/>) in order and sets RESET in every entry it has taken. KVM_RESET_DIRTY_RINGS frees what is marked so, protects the pages again, and
/// makes room. Nobody overtakes: dirty index - reset index never exceeds the size, because the vCPU stops running at the soft limit, which keeps room for what
/// it may still have in its page-modification log.
/// </remarks>
public sealed class DirtyRing
{
    /// <summary>KVM_DIRTY_GFN_F_DIRTY: the entry names a page.</summary>
    public const ulong FlagDirty = 1;

    /// <summary>KVM_DIRTY_GFN_F_RESET: user space has taken it.</summary>
    public const ulong FlagReset = 2;

    /// <summary>Bytes of an entry.</summary>
    public const uint EntryBytes = 16;

    /// <summary>Most entries of a ring.</summary>
    public const uint MostEntries = 65536;

    /// <summary>Entries kept free besides those for the page-modification log.</summary>
    public const uint Reserved = 64;

    private const int SlotShift = 32;
    private readonly WordRun _entries;
    private readonly uint _mask;
    private readonly SharedCell<uint> _dirty;
    private readonly SharedCell<uint> _reset;
    private uint _fetch;

    private DirtyRing(WordRun entries, uint count, uint softLimit, ulong owner)
    {
        _entries = entries;
        _mask = count - 1;
        SoftLimit = softLimit;
        _dirty = new SharedCell<uint>("dirty_index", owner);
        _reset = new SharedCell<uint>("reset_index", owner);
    }

    /// <summary>Number of entries, a power of two.</summary>
    public uint Size => _mask + 1;

    /// <summary>Used entries at which the vCPU stops running.</summary>
    public uint SoftLimit { get; }

    /// <summary>Entries that are not reset yet.</summary>
    public uint Used => _dirty.Peek() - _reset.Peek();

    /// <summary>True at the soft limit: the vCPU does not run until rings have been reset.</summary>
    public bool IsSoftFull => _dirty.Read() - _reset.Read() >= SoftLimit;

    /// <summary>Allocates a ring.</summary>
    /// <returns>Null when there is no memory.</returns>
    internal static DirtyRing? TryCreate(Machine machine, Actor actor, uint entries, uint reserved, ulong owner)
    {
        WordRun? words = WordRun.TryCreate(machine, actor, 2UL * entries);
        return words is null ? null : new DirtyRing(words, entries, entries - reserved, owner);
    }

    /// <summary>Appends a page. The vCPU's own actor. Linearizes at the store of the entry's first word.</summary>
    /// <returns>False when the ring was full, which the soft limit should have prevented: an entry is lost.</returns>
    internal bool Push(uint slot, ulong offset)
    {
        uint index = _dirty.Read();
        bool hasRoom = index - _reset.Read() < Size;
        ulong at = 2UL * (index & _mask);
        _entries[at + 1].Write(offset);
        _entries[at].Write(((ulong)slot << SlotShift) | FlagDirty);
        _dirty.Write(index + 1);
        return hasRoom;
    }

    /// <summary>User space: takes every page that is listed now, in order. One harvester at a time; the vCPU may run.</summary>
    /// <param name="into">Receives the pages.</param>
    /// <returns>How many.</returns>
    public int Harvest(List<DirtyGfn> into)
    {
        int taken = 0;
        while (true)
        {
            ulong at = 2UL * (_fetch & _mask);
            ulong word = _entries[at].Read();
            if ((word & (FlagDirty | FlagReset)) != FlagDirty)
                return taken;
            into.Add(new DirtyGfn((uint)(word >> SlotShift), _entries[at + 1].Read()));
            _entries[at].Write(word | FlagReset);
            _fetch++;
            taken++;
        }
    }

    /// <summary>The oldest entry that user space has taken, and frees it. slots_lock is the caller's.</summary>
    /// <returns>False when there is none.</returns>
    internal bool TryFree(out DirtyGfn page)
    {
        page = default;
        uint index = _reset.Read();
        if (index == _dirty.Read())
            return false;
        ulong at = 2UL * (index & _mask);
        ulong word = _entries[at].Read();
        if ((word & FlagReset) == 0)
            return false;
        page = new DirtyGfn((uint)(word >> SlotShift), _entries[at + 1].Read());
        _entries[at].Write(0);
        _reset.Write(index + 1);
        return true;
    }

    /// <summary>Gives the memory back; the vCPU is gone.</summary>
    internal void Free() => _entries.Free();
}
