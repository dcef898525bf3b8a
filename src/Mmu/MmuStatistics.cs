namespace Tdp.Mmu;

/// <summary>What the MMU counts, per actor and summed on read (performance: no shared statistics line).</summary>
public enum MmuCounter
{
    /// <summary>Leaves at 4K.</summary>
    Pages4K,

    /// <summary>Leaves at 2M.</summary>
    Pages2M,

    /// <summary>Leaves at 1G.</summary>
    Pages1G,

    /// <summary>Linked tables, roots not counted.</summary>
    Tables,

    /// <summary>pf_fixed.</summary>
    PfFixed,

    /// <summary>pf_spurious.</summary>
    PfSpurious,

    /// <summary>pf_emulate of the normal path.</summary>
    PfEmulate,

    /// <summary>MMIO misconfigurations that were emulated without the normal path; the kernel counts them under pf_emulate, too.</summary>
    MmioCached,

    /// <summary>Faults with any other answer: write-protected, or an errno.</summary>
    PfOther,

    /// <summary>Faults that answered RETRY.</summary>
    PfRetry,

    /// <summary>pf_fast: repaired without mmu_lock, or found repaired there.</summary>
    PfFast,

    /// <summary>pf_mmio_spte_created.</summary>
    MmioCreated,

    /// <summary>Remote TLB flushes of the whole VM.</summary>
    FlushAll,

    /// <summary>Remote TLB flushes of a range.</summary>
    FlushRange,

    /// <summary>Times a walk gave mmu_lock up.</summary>
    Yields,

    /// <summary>Leaves removed by zaps of any kind.</summary>
    Zapped,

    /// <summary>nx_lpage_splits: tables on the list of NX recovery now.</summary>
    NxSplits,

    /// <summary>Tables that were taken apart and unlinked.</summary>
    TablesRemoved,

    /// <summary>Number of counters.</summary>
    Count,
}

/// <summary>Sums of the MMU's counters. Exact at quiescence (I48, I49).</summary>
public sealed class MmuStatistics
{
    private readonly ActorCounters _counters = new((int)MmuCounter.Count);

    /// <summary>Sum over all actors.</summary>
    public long this[MmuCounter counter] => _counters.Sum((int)counter);

    /// <summary>pf_taken: faults that took the normal path, whatever their answer.</summary>
    public long PfTaken =>
        this[MmuCounter.PfFixed] + this[MmuCounter.PfSpurious] + this[MmuCounter.PfEmulate] + this[MmuCounter.PfRetry] + this[MmuCounter.PfOther];

    /// <summary>One actor's share.</summary>
    public long Of(Actor actor, MmuCounter counter) => _counters.Of(actor, (int)counter);

    /// <summary>Leaves at a level, 4K to 1G.</summary>
    public long Pages(Level level) => _counters.Sum((int)MmuCounter.Pages4K + level.Value - 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void Add(Actor actor, MmuCounter counter, long delta = 1) => _counters.Add(actor, (int)counter, delta);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void AddPages(Actor actor, int level, long delta) => _counters.Add(actor, (int)MmuCounter.Pages4K + level - 1, delta);
}
