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
        Old = new SpteRef(ref _word).Read();
    }

    private SpteCursor(ref ulong word, ulong table, int level, Spte old)
    {
        _word = ref word;
        _table = table;
        _level = level;
        Old = old;
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
    /// From the root down to the entry at level <paramref name="goal"/>, by the steps of <see cref="TryStepDown"/> with everything in registers.
    /// </summary>
    /// <returns>The place of the entry, not yet read; or null where the walk stopped above: then <paramref name="stop"/> tells where.</returns>
    internal static ref ulong Descend(PhysicalMemory memory, Root root, ulong rawGfn, int goal, ref SpteCursor stop)
    {
        int level = root.Level.Value;
        ulong table = root.Frame.Value;
        ref ulong word = ref memory.Word(table + OffsetOf(rawGfn, level));
        while (level != goal)
        {
            ulong entry = new AtomicWord(ref word).Read();
            if (!IsTableEntry(entry))
            {
                stop = new SpteCursor(ref word, table, level, new Spte(entry));
                return ref Unsafe.NullRef<ulong>();
            }

            entry = new AtomicWord(ref word).Read();
            if (!IsTableEntry(entry))
            {
                stop = new SpteCursor(ref Unsafe.NullRef<ulong>(), table, level, new Spte(entry));
                return ref Unsafe.NullRef<ulong>();
            }

            level--;
            table = entry & Spte.AddressMask;
            word = ref memory.Word(table + OffsetOf(rawGfn, level));
        }

        return ref word;
    }

    /// <summary>True when the table that the walk was about to enter had gone by the time it was entered.</summary>
    internal readonly bool IsLost => Unsafe.IsNullRef(ref _word);

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
