using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Threading;
using BenchmarkDotNet.Attributes;
using Tdp.Harness.Bench;
using Tdp.Harness.Workloads;

namespace Tdp.Bench;

/// <summary>Faults 131,072 pages per thread in, each thread in a range of its own, against the floor: the tightest walk and compare-exchange on one thread.</summary>
[MemoryDiagnoser]
public class FaultInBenchmarks
{
    /// <summary>Pages that each thread faults in.</summary>
    public const int Pages = 1 << 17;

    private readonly PageOrder _order = PageOrder.Sequential;
    private uint[][] _sequences = [];
    private Floor? _floor;
    private FaultInWorkload? _direct;
    private FaultInWorkload? _mirror;
    private long _contentions;

    /// <summary>1 and 2 threads, and as many as there are processors.</summary>
    public static IEnumerable<int> ThreadCounts => Environment.ProcessorCount > 2 ? [1, 2, Math.Min(Environment.ProcessorCount, 32)] : [1, 2];

    /// <summary>Faulting threads.</summary>
    [ParamsSource(nameof(ThreadCounts))]
    public int Threads { get; set; }

    /// <summary>Builds everything that is not measured.</summary>
    [GlobalSetup]
    public void Setup()
    {
        FaultInBench.SwitchCheckersOff();
        _sequences = PageSequence.Make(_order, Threads, Pages, 1);
        long span = PageSequence.Span(_order, Threads, Pages);
        _floor = new Floor(span);
        _direct = FaultInWorkload.Make("direct", Threads, span, zeroing: true);
        _mirror = FaultInWorkload.Make("mirror", Threads, span, zeroing: false);
        WarmUp();
        _contentions = Monitor.LockContentionCount;
    }

    /// <summary>Empties the trees.</summary>
    [IterationSetup]
    public void Empty()
    {
        _floor!.Reset();
        _direct!.Reset();
        _mirror!.Reset();
    }

    /// <summary>Gives the memory back, and says how often a monitor was contended: the fault paths use none.</summary>
    [GlobalCleanup]
    public void Cleanup()
    {
        Console.WriteLine($"// monitor contentions: {Monitor.LockContentionCount - _contentions}");
        _floor!.Dispose();
        _direct!.Dispose();
        _mirror!.Dispose();
    }

    /// <summary>The yardstick, on one thread.</summary>
    [Benchmark(Baseline = true, OperationsPerInvoke = Pages)]
    public long FloorOneThread() => _floor!.FaultIn(_sequences[0]);

    /// <summary>Write faults of an ordinary VM.</summary>
    [Benchmark(OperationsPerInvoke = Pages)]
    public long Direct() => Run(_direct!);

    /// <summary>Private faults of a TD with AUG and ACCEPT; pages are not zeroed.</summary>
    [Benchmark(OperationsPerInvoke = Pages)]
    public long Mirror() => Run(_mirror!);

    // One call is one iteration, so the JIT must have finished before the first: a second of rounds for each workload.
    private void WarmUp()
    {
        foreach (FaultInWorkload workload in new[] { _direct!, _mirror! })
        {
            Stopwatch clock = Stopwatch.StartNew();
            while (clock.ElapsedMilliseconds < 1000)
            {
                _floor!.Reset();
                _floor.FaultIn(_sequences[0]);
                Run(workload);
                workload.Reset();
            }
        }
    }

    private long Run(FaultInWorkload workload) => MeasuredRun.Execute(workload.Actors, (actor, thread) => workload.FaultIn(actor, thread, _sequences[thread])).Operations;
}
