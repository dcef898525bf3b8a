namespace Tdp.Harness.Invariants;

/// <summary>
/// Walkers and memory (tdp-mmu 10.4).
/// </summary>
/// <remarks>
/// I45 and I46 hold at any point because a table is unlinked before it is taken apart and freed after a grace period (7.2). I48 is exact at rest; between the write of an entry and the
/// count that follows it is off by that change, at most one per thread.
/// </remarks>
public static class WalkersAndMemory
{
    /// <summary>I45.</summary>
    public static Invariant<TableView> I45 { get; } = new(
        "I45", InvariantTag.Always, InvariantBinding.Table, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "a freed table is out of reach",
        "A freed table is not reachable from any root, and no reader that started before the free can hold a pointer into it.",
        static (in TableView table) => !table.Table.IsFreed || !table.IsReachable);

    /// <summary>I46.</summary>
    public static Invariant<EntryChange> I46 { get; } = new(
        "I46", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.ActingThread,
        "nothing is written behind the remover",
        "No present entry is ever written into a detached table after its remover has passed that entry.",
        static (in EntryChange change) => !change.IsPassed || !change.After.IsPresent);

    /// <summary>I47.</summary>
    public static Invariant<RemovedTable> I47 { get; } = new(
        "I47", InvariantTag.AfterOperation, InvariantBinding.Table, FreeRunJudge.ActingThread,
        "a removed table is empty",
        "After the removal of a table, shared or exclusive, its 512 entries are all non-present.",
        static (in RemovedTable table) => table.Left.IsNone);

    /// <summary>I48.</summary>
    public static Invariant<Sum> I48 { get; } = new(
        "I48", InvariantTag.Always, InvariantBinding.Table, FreeRunJudge.Rest,
        "tables are counted",
        "The table count equals the number of linked tables that are no roots: exactly at rest, else up to the links and removals in flight.",
        static (in Sum sum) => Math.Abs(sum.Kept - sum.Counted) <= sum.Slack);

    /// <summary>I49.</summary>
    public static Invariant<Sum> I49 { get; } = new(
        "I49", InvariantTag.Quiescent, InvariantBinding.Rest, FreeRunJudge.Rest,
        "pages are counted",
        "The page statistics of each level equal the number of present leaves of that level over all roots.",
        static (in Sum sum) => sum.Kept == sum.Counted);

    /// <summary>I50.</summary>
    public static Invariant<WalkTrace> I50 { get; } = new(
        "I50", InvariantTag.Always, InvariantBinding.Walk, FreeRunJudge.Rest,
        "the iterator misses nothing",
        "For a fixed tree the iterator visits every entry of the range once, in pre-order, whether or not it yields; after a yield it skips no goal.",
        static (in WalkTrace walk) => walk.FirstDeviation() < 0);

    /// <summary>I51.</summary>
    public static Invariant<YieldCount> I51 { get; } = new(
        "I51", InvariantTag.Always, InvariantBinding.Walk, FreeRunJudge.Operation | FreeRunJudge.Rest,
        "a yield needs progress",
        "A walk yields only after progress since its last yield, so that a zap of a range ends under permanent contention.",
        static (in YieldCount yields) => yields.Yields <= yields.Goals && (yields.Trace is not { } trace || trace.FirstIdleYield() < 0));

    /// <summary>I52.</summary>
    public static Invariant<FaultView> I52 { get; } = new(
        "I52", InvariantTag.Always, InvariantBinding.FaultEnd, FreeRunJudge.ActingThread,
        "FROZEN ends a fault at once",
        "A fault walk that met FROZEN allocates nothing and changes nothing: it answers RETRY with its books as the module's answers left them.",
        static (in FaultView fault) => fault.ChangesAfterFrozen == 0 && (fault.Result is not FaultResult.Retry || fault.BusyAnswers != 0 || (fault.IsBooked && fault.TablesLost == 0)));

    internal static IReadOnlyList<Invariant> All { get; } = [I45, I46, I47, I48, I49, I50, I51, I52];
}
