using System.Diagnostics;
using System.Threading;

namespace Tdp.Harness.Workloads;

/// <summary>What a measured run gave.</summary>
/// <param name="Elapsed">From the common start to the end of the last thread.</param>
/// <param name="Operations">Sum of what the bodies returned.</param>
/// <param name="AllocatedBytes">Managed bytes the bodies allocated, all threads together.</param>
public readonly record struct Measurement(TimeSpan Elapsed, long Operations, long AllocatedBytes)
{
    /// <summary>Nanoseconds per operation and thread.</summary>
    public double NanosecondsPerOperation(int threads) => Elapsed.TotalNanoseconds * threads / Math.Max(1, Operations);
}

/// <summary>Runs one body per thread from a common start. Each thread has a processor of its own where there are enough; threads exist and have touched their stacks before the clock starts.</summary>
public static class MeasuredRun
{
    /// <summary>Runs the bodies, each as an actor of its own.</summary>
    /// <param name="actors">One actor per thread; none of them may be in use.</param>
    /// <param name="body">Actor and thread number to the number of operations done.</param>
    public static Measurement Execute(IReadOnlyList<Actor> actors, Func<Actor, int, long> body)
    {
        ArgumentNullException.ThrowIfNull(actors);
        ArgumentNullException.ThrowIfNull(body);
        int ready = 0;
        bool go = false;
        long[] ends = new long[actors.Count];
        long[] operations = new long[actors.Count];
        long[] allocated = new long[actors.Count];
        for (int i = 0; i < actors.Count; i++)
        {
            int thread = i;
            actors[i].Start(actor =>
            {
                ProcessorBinding.Bind(thread);
                Interlocked.Increment(ref ready);
                while (!Volatile.Read(ref go))
                {
                    Thread.SpinWait(8);
                }

                long before = GC.GetAllocatedBytesForCurrentThread();
                long done = body(actor, thread);
                ends[thread] = Stopwatch.GetTimestamp();
                allocated[thread] = GC.GetAllocatedBytesForCurrentThread() - before;
                operations[thread] = done;
            });
        }

        SpinWait wait = default;
        while (Volatile.Read(ref ready) < actors.Count)
        {
            wait.SpinOnce();
        }

        long start = Stopwatch.GetTimestamp();
        Volatile.Write(ref go, true);
        foreach (Actor actor in actors)
        {
            actor.Join();
        }

        long end = start;
        long sum = 0;
        long bytes = 0;
        for (int i = 0; i < ends.Length; i++)
        {
            end = Math.Max(end, ends[i]);
            sum += operations[i];
            bytes += allocated[i];
        }

        return new Measurement(Stopwatch.GetElapsedTime(start, end), sum, bytes);
    }
}
