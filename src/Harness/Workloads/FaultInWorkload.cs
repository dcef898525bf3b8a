namespace Tdp.Harness.Workloads;

/// <summary>
/// Faults pages into one tree through the public entry points of the product, all its own checks on. Host pages and guest_memfd pages exist before the clock starts; tables come from a warm stock after the
/// first round.
/// </summary>
public abstract class FaultInWorkload : IDisposable
{
    /// <summary>Bytes of the MMU's own record of a table.</summary>
    protected const int TableRecordBytes = 48;

    /// <summary>What the row calls it: direct or mirror.</summary>
    public abstract string Root { get; }

    /// <summary>One actor per faulting thread.</summary>
    public abstract IReadOnlyList<Actor> Actors { get; }

    /// <summary>Bytes of tables and bookkeeping now; the simulator's own frame ledger apart.</summary>
    public abstract long BookkeepingBytes { get; }

    /// <summary>What was found wrong so far; must stay empty.</summary>
    public abstract FindingLog Findings { get; }

    /// <summary>Makes the workload of a root.</summary>
    /// <param name="root">direct or mirror.</param>
    /// <param name="threads">Faulting threads.</param>
    /// <param name="span">Pages that the run spans, counted from 0.</param>
    /// <param name="zeroing">Mirror only: ACCEPT zeroes the page, as the architecture says.</param>
    public static FaultInWorkload Make(string root, int threads, long span, bool zeroing)
        => root is "direct" ? new DirectFaultIn(threads, span) : new MirrorFaultIn(threads, span, zeroing);

    /// <summary>Faults pages in, as one thread of a run.</summary>
    /// <param name="actor">The thread's actor.</param>
    /// <param name="thread">Its number.</param>
    /// <param name="pages">Page numbers, counted from 0.</param>
    /// <returns>Faults taken.</returns>
    public abstract long FaultIn(Actor actor, int thread, ReadOnlySpan<uint> pages);

    /// <summary>Takes every page out again. No thread may be faulting.</summary>
    public abstract void Reset();

    /// <inheritdoc/>
    public abstract void Dispose();

    /// <summary>Stops the run when a step was refused.</summary>
    protected static void Require(Errno errno, string step)
    {
        if (errno != Errno.None)
        {
            throw new InvalidOperationException($"{step} failed: {errno}");
        }
    }

    /// <summary>Takes one fault to its end.</summary>
    protected static void Handle(TdpMmu mmu, MmuVcpu vcpu, Gpa gpa, ulong error)
    {
        FaultResult result;
        do
        {
            result = mmu.HandleFault(vcpu, gpa, error);
        }
        while (result is FaultResult.Retry);
        if (result is not (FaultResult.Fixed or FaultResult.Spurious))
        {
            throw new InvalidOperationException($"the fault at {gpa} ended with {result}");
        }
    }
}
