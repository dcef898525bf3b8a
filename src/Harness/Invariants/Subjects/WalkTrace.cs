namespace Tdp.Harness.Invariants;

/// <summary>A recorded walk of the MMU's iterator over a tree that did not change, and the same tree read the simple way.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Range">The pages walked, natural.</param>
/// <param name="Steps">What the walk showed, in order.</param>
/// <param name="Expected">The entries it must visit, in pre-order: those that cover a page of the range, down to its least level.</param>
public readonly record struct WalkTrace(CheckedVm Vm, GfnRange Range, IReadOnlyList<WalkStep> Steps, IReadOnlyList<WalkStep> Expected) : ISubject
{
    /// <summary>
    /// The first expected visit that the walk left out, made twice, or made in another order; -1 when there is none. After a yield the walk begins again at the root,
    /// towards the same goal: the entries on the way down to the goal are then visited again, and only they.
    /// </summary>
    public int FirstDeviation()
    {
        int next = 0;
        bool isReturning = false;
        foreach (WalkStep step in Steps)
        {
            if (next < Expected.Count && step.Gfn == Expected[next].Gfn && step.Level == Expected[next].Level)
            {
                if (step.IsYield)
                {
                    isReturning = true;
                }
                else
                {
                    next++;
                    isReturning = false;
                }

                continue;
            }

            // On the way back to the goal: an entry above it that has been visited already.
            bool isAbove = isReturning && next < Expected.Count && step.Level > Expected[next].Level && step.Gfn == (Expected[next].Gfn & ~(step.Level.Pages - 1));
            if (!isAbove)
            {
                return next;
            }
        }

        return next == Expected.Count ? -1 : next;
    }

    /// <summary>The first yield that came without progress since the one before; -1 when there is none.</summary>
    public int FirstIdleYield()
    {
        ulong yielded = ulong.MaxValue;
        for (int i = 0; i < Steps.Count; i++)
        {
            if (!Steps[i].IsYield)
            {
                continue;
            }

            if (Steps[i].Goal == yielded)
            {
                return i;
            }

            yielded = Steps[i].Goal;
        }

        return -1;
    }

    /// <inheritdoc/>
    public string Describe()
    {
        int at = FirstDeviation();
        int idle = FirstIdleYield();
        string expected = at < 0 ? string.Empty : at < Expected.Count ? $"; gfn 0x{Expected[at].Gfn:x}, {Expected[at].Level} was expected next" : "; it went on after its end";
        return $"a walk over {Range} of {Steps.Count} steps for {Expected.Count} entries{expected}{(idle < 0 ? string.Empty : $"; step {idle} yields again at goal 0x{Steps[idle].Goal:x}")}";
    }
}

/// <summary>How often an operation gave mmu_lock up, and how often it may have.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Range">The pages.</param>
/// <param name="Yields">Times that it gave the lock up.</param>
/// <param name="Goals">Different goals that it can have had: pages, and one per tree.</param>
/// <param name="Trace">The walk itself where it was recorded.</param>
public readonly record struct YieldCount(CheckedVm Vm, GfnRange Range, long Yields, long Goals, WalkTrace? Trace) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => Trace?.Describe() ?? $"an operation over {Range} gave mmu_lock up {Yields} times, for at most {Goals} goals";
}
