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

    /// <summary>Guest-physical address of the page, with its alias bit.</summary>
    public ulong Gpa;

    public PageRights Rights;

    /// <summary>Level of the guest's leaf: 1, 2 or 3.</summary>
    public byte Level;
}

/// <summary>
/// What the vCPU remembers of the guest's own page tables: linear to guest-physical, direct-mapped, in pages of 4 KiB and of 2 MiB (a page of 1 GiB is kept as
/// pieces of 2 MiB). It may be stale until the guest invalidates (td-guest 1.4); global pages outlive a change of CR3.
/// </summary>
internal sealed class LinearTlb
{
    private const int Entries = 1024;
    private const int LargeEntries = 64;
    private const int LargeShift = 21;
    private const ulong LargeMask = (1UL << LargeShift) - 1;
    private readonly LinearEntry[] _entries = new LinearEntry[Entries];
    private readonly LinearEntry[] _large = new LinearEntry[LargeEntries];
    private bool _hasLarge;
    private bool _hasHuge;

    /// <summary>Finds the entry of a linear address. The reference stays valid until the next change.</summary>
    /// <returns>A null reference when there is none.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref LinearEntry Find(ulong linear)
    {
        ref LinearEntry entry = ref _entries[(int)(linear >> 12) & (Entries - 1)];
        if (entry.Key == ((linear & ~0xFFFUL) | 1))
            return ref entry;
        if (!_hasLarge)
            return ref Unsafe.NullRef<LinearEntry>();
        entry = ref _large[(int)(linear >> LargeShift) & (LargeEntries - 1)];
        return ref entry.Key == ((linear & ~LargeMask) | 1) ? ref entry : ref Unsafe.NullRef<LinearEntry>();
    }

    /// <summary>The guest-physical address behind a linear one that the entry covers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong GpaOf(in LinearEntry entry, ulong linear) => entry.Gpa | (linear & (entry.Level > 1 ? LargeMask : 0xFFF));

    /// <summary>Adds what a walk found for an address.</summary>
    /// <param name="linear">The address.</param>
    /// <param name="gpa">Its guest-physical address.</param>
    /// <param name="rights">Accumulated rights.</param>
    /// <param name="level">Level of the leaf.</param>
    public ref LinearEntry Add(ulong linear, ulong gpa, PageRights rights, int level)
    {
        bool large = level > 1;
        _hasLarge |= large;
        _hasHuge |= level > 2;
        ulong mask = large ? LargeMask : 0xFFF;
        ref LinearEntry entry = ref large
            ? ref _large[(int)(linear >> LargeShift) & (LargeEntries - 1)]
            : ref _entries[(int)(linear >> 12) & (Entries - 1)];
        entry = new LinearEntry { Key = (linear & ~mask) | 1, Gpa = gpa & ~mask, Rights = rights, Level = (byte)level };
        return ref entry;
    }

    public void Clear()
    {
        Array.Clear(_entries);
        Array.Clear(_large);
        _hasLarge = _hasHuge = false;
    }

    public void ClearNonGlobal()
    {
        ClearNonGlobal(_entries);
        ClearNonGlobal(_large);
    }

    /// <summary>
    /// Drops the page that contains the address, whatever its size. Returns the reach in bytes within which a front cache may hold pieces of it; entries pushed out
    /// of here count, too.
    /// </summary>
    public ulong Drop(ulong linear)
    {
        ref LinearEntry small = ref _entries[(int)(linear >> 12) & (Entries - 1)];
        if (small.Key == ((linear & ~0xFFFUL) | 1))
            small = default;
        foreach (ref LinearEntry entry in _large.AsSpan())
        {
            ulong reach = ~((1UL << ((9 * (entry.Level - 1)) + 12)) - 1);
            if (entry.Key == 0 || ((entry.Key ^ linear) & reach & ~LargeMask) != 0)
                continue;
            entry = default;
        }

        return _hasHuge ? 1UL << 30 : _hasLarge ? 1UL << LargeShift : 0x1000;
    }

    private static void ClearNonGlobal(LinearEntry[] entries)
    {
        foreach (ref LinearEntry entry in entries.AsSpan())
        {
            if ((entry.Rights & PageRights.Global) == 0)
                entry = default;
        }
    }
}
