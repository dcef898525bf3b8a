namespace Tdp.Mmu;

/// <summary>
/// The one way to walk a KVM tree: pre-order over the entries that cover [goal, end), down to a least level, with yielding (tdp-mmu 3).
/// </summary>
/// <remarks>
/// <see cref="Old"/> is a snapshot; only stepping down and a lost compare-exchange refresh it. Stepping down re-reads the entry first, so no new walk
/// enters a table that was unlinked meanwhile; an old walk may still be inside one (tdp-mmu 7.2).
/// The alias bit of a direct root is ORed in when an index is computed and nowhere else (I11, I12).
/// </remarks>
internal ref struct TdpIterator
{
    /// <summary>Start of the current entry, without the alias bit (in a raw walk over a TD's direct root: with it).</summary>
    internal ulong Gfn;

    /// <summary>The next leaf to reach (KVM: next_last_level_gfn).</summary>
    internal ulong Goal;

    /// <summary>The goal at the last yield: another is allowed only after progress (I51).</summary>
    internal ulong YieldedGoal;

    /// <summary>Snapshot of the current entry.</summary>
    internal Spte Old;

    /// <summary>Level of the current entry.</summary>
    internal int LevelNumber;

    /// <summary>False when the walk is over.</summary>
    internal bool Valid;

    /// <summary>The lock was given up since the snapshot: nothing may be written, the next step restarts from the root.</summary>
    internal bool Yielded;

    private readonly PhysicalMemory _memory;
    private readonly ulong _rawBits;
    private readonly int _rootLevel;
    private readonly int _leastLevel;
    private ref ulong _word;
    private Path _path;

    /// <summary>Begins a walk.</summary>
    /// <param name="memory">The machine's memory.</param>
    /// <param name="root">The root.</param>
    /// <param name="leastLevel">Entries below this level are not visited.</param>
    /// <param name="goal">First frame number, natural.</param>
    /// <param name="rawBits">The root's alias bit, or 0 to walk raw indexes.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal TdpIterator(PhysicalMemory memory, Root root, int leastLevel, ulong goal, ulong rawBits)
    {
        _memory = memory;
        _rawBits = rawBits;
        _rootLevel = root.Level.Value;
        _leastLevel = leastLevel;
        _path[_rootLevel] = root.Frame.Value;
        Goal = goal;
        Restart();
    }

    /// <summary>The place of the current entry.</summary>
    internal readonly SpteRef Entry
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(ref _word);
    }

    /// <summary>Level of the current entry.</summary>
    internal readonly Level Level => new(LevelNumber);

    /// <summary>Address of the table that holds the current entry.</summary>
    internal readonly Hpa Table => new(_path[LevelNumber]);

    /// <summary>Address of the current entry.</summary>
    internal readonly ulong EntryAddress => _path[LevelNumber] + ((ulong)(uint)IndexNow() << 3);

    /// <summary>True when the snapshot is a present leaf.</summary>
    internal readonly bool IsLeaf => Old.IsPresent && (LevelNumber == 1 || (Old.Value & Spte.LargeBit) != 0);

    /// <summary>Entries from the current one to the end of its table or of the range, whichever comes first; at 4K.</summary>
    internal readonly int LeftInTable(ulong end) => (int)Math.Min(512 - (ulong)(uint)IndexNow(), end - Gfn);

    /// <summary>The caller has walked on inside the table by itself and moved <see cref="Gfn"/> along.</summary>
    internal void MoveTo(SpteRef entry, Spte old)
    {
        _word = ref entry.Word;
        Old = old;
        Goal = Gfn;
    }

    /// <summary>
    /// To the next entry in pre-order: down if there is a child, else to the side, else up and to the side. After a yield: from the root again towards the same goal.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void Next()
    {
        if (Yielded || !(TryStepDown() || TryStepSide()))
            NextFromAbove();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Restart()
    {
        Yielded = false;
        YieldedGoal = Goal;
        LevelNumber = _rootLevel;
        Gfn = RoundDown(Goal, LevelNumber);
        Valid = true;
        Look();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryStepDown()
    {
        if (LevelNumber == _leastLevel)
            return false;

        // Read again: between the visit and now the table may have been unlinked, or one linked (R-rule of tdp-mmu 3.2).
        Old = Entry.Read();
        if ((Old.Value & (Spte.PresentBit | Spte.LargeBit)) != Spte.PresentBit)
            return false;
        LevelNumber--;
        _path[LevelNumber] = Old.Value & Spte.AddressMask;
        Gfn = RoundDown(Goal, LevelNumber);
        Look();
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryStepSide()
    {
        if (IndexNow() == 511)
            return false;
        Gfn += 1UL << (9 * (LevelNumber - 1));
        Goal = Gfn;
        _word = ref Unsafe.Add(ref _word, 1);
        Old = Entry.Read();
        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void NextFromAbove()
    {
        if (Yielded)
        {
            Restart();
            return;
        }

        while (LevelNumber < _rootLevel)
        {
            LevelNumber++;
            Gfn = RoundDown(Gfn, LevelNumber);
            Look();
            if (TryStepSide())
                return;
        }

        Valid = false;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Look()
    {
        _word = ref _memory.Word(_path[LevelNumber] + ((ulong)(uint)IndexNow() << 3));
        Old = Entry.Read();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private readonly int IndexNow() => (int)((Gfn | _rawBits) >> (9 * (LevelNumber - 1))) & 511;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong RoundDown(ulong gfn, int level) => gfn & (ulong.MaxValue << (9 * (level - 1)));

    // Tables on the path, by level 1..5.
    [InlineArray(6)]
    private struct Path
    {
        private ulong _first;
    }
}
