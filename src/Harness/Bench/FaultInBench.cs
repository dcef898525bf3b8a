using System.Diagnostics;
using Tdp.Harness.Reports;
using Tdp.Harness.Workloads;

namespace Tdp.Harness.Bench;

/// <summary>Measures fault-in workloads against the floor of the same order, in the same process.</summary>
internal static class FaultInBench
{
    private const int Rounds = 7;
    private const int WarmRounds = 3;
    private const ulong Seed = 1;
    private static readonly TimeSpan WarmTime = TimeSpan.FromMilliseconds(400);

    /// <summary>
    /// Measures the product, not its checkers: what compares every access with the ledger is compiled out. The product's own checks stay. Must be called before any room is used, because the switch is read once.
    /// </summary>
    public static void SwitchCheckersOff() => AppContext.SetSwitch("TdpMmu.Checks", false);

    /// <summary>The floor: nanoseconds per page on one thread, median of several rounds.</summary>
    public static double FloorNs(PageOrder order, int pages)
    {
        uint[] sequence = PageSequence.Make(order, 1, pages, Seed)[0];
        using Floor floor = new(PageSequence.Span(order, 1, pages));
        double Round()
        {
            floor.Reset();
            long start = Stopwatch.GetTimestamp();
            long installed = floor.FaultIn(sequence);
            double ns = Stopwatch.GetElapsedTime(start).TotalNanoseconds / sequence.Length;
            return installed == sequence.Length ? ns : throw new InvalidOperationException($"the floor installed {installed} of {sequence.Length} leaves");
        }

        return Median(Round);
    }

    /// <summary>One row.</summary>
    /// <param name="root">direct or mirror.</param>
    /// <param name="order">The order of the pages.</param>
    /// <param name="threads">Faulting threads.</param>
    /// <param name="pages">Pages per thread.</param>
    /// <param name="zeroing">Mirror only: ACCEPT zeroes.</param>
    /// <param name="floorNs">The floor of this order.</param>
    public static BenchRow Measure(string root, PageOrder order, int threads, int pages, bool zeroing, double floorNs)
    {
        uint[][] sequences = PageSequence.Make(order, threads, pages, Seed);
        using FaultInWorkload workload = FaultInWorkload.Make(root, threads, PageSequence.Span(order, threads, pages), zeroing);
        double allocated = 0;
        double bytesPerPage = 0;
        double Round()
        {
            Measurement measured = MeasuredRun.Execute(workload.Actors, (actor, thread) => workload.FaultIn(actor, thread, sequences[thread]));
            allocated = (double)measured.AllocatedBytes / measured.Operations;
            long mapped = order is PageOrder.Overlap ? pages : (long)pages * threads;
            bytesPerPage = (double)workload.BookkeepingBytes / mapped;
            workload.Reset();
            return measured.NanosecondsPerOperation(threads);
        }

        double ns = Median(Round);
        if (workload.Findings.Count > 0)
        {
            throw new InvalidOperationException($"{workload.Findings.All[0].Rule} does not hold: {workload.Findings.All[0].Text}");
        }

        return new BenchRow(root, Name(order), threads, floorNs, ns, ns / floorNs, 1e9 * threads / ns, bytesPerPage, allocated, root is "mirror" ? zeroing : null);
    }

    /// <summary>The order's name on the command line.</summary>
    public static string Name(PageOrder order) => order switch { PageOrder.Random => "random", PageOrder.Overlap => "overlap", _ => "seq" };

    // The first rounds run while the JIT still works on the code.
    private static double Median(Func<double> round)
    {
        Stopwatch warm = Stopwatch.StartNew();
        for (int i = 0; i < WarmRounds || warm.Elapsed < WarmTime; i++)
        {
            round();
        }

        double[] figures = new double[Rounds];
        for (int i = 0; i < figures.Length; i++)
        {
            figures[i] = round();
        }

        Array.Sort(figures);
        return figures[figures.Length / 2];
    }
}
