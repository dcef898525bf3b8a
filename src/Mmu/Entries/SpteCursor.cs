namespace Tdp.Mmu;

/// <summary>
/// A place on the way from a root down to one page: what a fault needs of a walk. It only goes down; whoever has to go to the side, too, uses
/// <see cref="TdpIterator"/>, which does each step in the same way.
/// </summary>
/// <remarks>
/// <see cref="Old"/> is a snapshot. Stepping down reads the entry again first: between the visit and the step the table may have been unlinked, or one linked, and no new walk
/// may enter an unlinked table (tdp-mmu 3.2, 7.2).
/// </remarks>
internal ref struct SpteCursor
{
    /// <summary>Snapshot of the entry.</summary>
    internal Spte Old;

    private ref ulong _word;
    private ulong _table;
    private int _level;

    /// <summary>Stands on the root's entry for a page.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal SpteCursor(PhysicalMemory memory, Root root, ulong rawGfn)
    {
        _level = root.Level.Value;
        _table = root.Frame.Value;
        _word = ref memory.Word(_table + OffsetOf(rawGfn, _level));
        Old = new SpteRef(ref _word).Read("AtRoot");
    }

    /// <summary>Level of the entry.</summary>
    internal readonly int Level
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => _level;
    }

    /// <summary>The entry's place.</summary>
    internal readonly SpteRef Entry
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(ref _word);
    }

    /// <summary>The table that holds the entry.</summary>
    internal readonly Hpa Table => new(_table);

    /// <summary>True when the snapshot points to a table.</summary>
    internal readonly bool IsTable
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => _level > 1 && (Old.Value & (Spte.PresentBit | Spte.LargeBit)) == Spte.PresentBit;
    }

    /// <summary>True when the snapshot is a present leaf.</summary>
    internal readonly bool IsLeaf => Old.IsPresent && (_level == 1 || (Old.Value & Spte.LargeBit) != 0);

    /// <summary>
    /// From the root down to the entry at level <paramref name="goal"/>, when every table on the way exists: the steps of <see cref="TryStepDown"/> with everything in
    /// registers. Free runs only: each entry is read once, as if nothing could happen between the visit and the step.
    /// </summary>
    /// <returns>The place of the entry, not yet read; null when the walk ends above.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ref ulong Descend(PhysicalMemory memory, Root root, ulong rawGfn, int goal)
    {
        int level = root.Level.Value;
        ulong table = root.Frame.Value;
        while (true)
        {
            ref ulong word = ref memory.Word(table + OffsetOf(rawGfn, level));
            if (level == goal)
                return ref word;
            ulong entry = new AtomicWord(ref word).Read();
            if (!IsTableEntry(entry))
                return ref Unsafe.NullRef<ulong>();
            level--;
            table = entry & Spte.AddressMask;
        }
    }

    /// <summary>One level down towards a page, if the entry (read again) points to a table.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool TryStepDown(PhysicalMemory memory, ulong rawGfn)
    {
        Old = new SpteRef(ref _word).Read();
        if (!IsTable)
            return false;
        _level--;
        _table = Old.Value & Spte.AddressMask;
        _word = ref memory.Word(_table + OffsetOf(rawGfn, _level));
        Old = new SpteRef(ref _word).Read();
        return true;
    }

    /// <summary>Address of the entry.</summary>
    internal readonly ulong AddressFor(ulong rawGfn) => _table + OffsetOf(rawGfn, _level);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsTableEntry(ulong entry) => (entry & (Spte.PresentBit | Spte.LargeBit)) == Spte.PresentBit;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong OffsetOf(ulong rawGfn, int level) => (rawGfn >> (9 * (level - 1)) & 511) << 3;
}
