namespace Tdp.Cpu;

/// <summary>Rights of a linear page, accumulated over the guest's page-table levels.</summary>
[Flags]
internal enum PageRights : byte
{
    None = 0,
    Write = 1,
    User = 2,
    NoExecute = 4,
    Global = 8,
    Dirty = 16,
}

/// <summary>A linear page and the guest-physical page behind it.</summary>
internal struct LinearEntry
{
    /// <summary>Linear page | 1; 0 when empty.</summary>
    public ulong Key;

    /// <summary>Guest-physical address of the 4 KiB page, with its alias bit.</summary>
    public ulong Gpa;

    public PageRights Rights;

    /// <summary>Level of the guest's leaf: 1, 2 or 3.</summary>
    public byte Level;
}

/// <summary>
/// What the vCPU remembers of the guest's own page tables: linear to guest-physical, 4 KiB at a time, direct-mapped. It may be stale until the guest
/// invalidates (td-guest 1.4); global pages outlive a change of CR3.
/// </summary>
internal sealed class LinearTlb
{
    private const int Entries = 1024;
    private readonly LinearEntry[] _entries = new LinearEntry[Entries];

    public bool TryFind(ulong linear, out LinearEntry entry)
    {
        entry = _entries[(int)(linear >> 12) & (Entries - 1)];
        return entry.Key == ((linear & ~0xFFFUL) | 1);
    }

    public void Add(ulong linear, in LinearEntry entry)
    {
        ref LinearEntry slot = ref _entries[(int)(linear >> 12) & (Entries - 1)];
        slot = entry;
        slot.Key = (linear & ~0xFFFUL) | 1;
    }

    public void Clear() => Array.Clear(_entries);

    public void ClearNonGlobal()
    {
        foreach (ref LinearEntry entry in _entries.AsSpan())
        {
            if ((entry.Rights & PageRights.Global) == 0)
                entry = default;
        }
    }

    /// <summary>Drops the page that contains the address, whatever its size. True when that was more than one 4 KiB entry can be.</summary>
    public bool Drop(ulong linear)
    {
        bool large = false;
        foreach (ref LinearEntry entry in _entries.AsSpan())
        {
            if (entry.Key == 0)
                continue;
            ulong reach = ~((1UL << ((9 * (entry.Level - 1)) + 12)) - 1);
            if (((entry.Key ^ linear) & reach & ~0xFFFUL) != 0)
                continue;
            large |= entry.Level > 1;
            entry = default;
        }

        return large;
    }
}
