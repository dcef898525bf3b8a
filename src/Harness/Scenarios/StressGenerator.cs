namespace Tdp.Harness.Scenarios;

/// <summary>
/// Draws stress steps from a seed. Ranges come from a few hot spots as often as from anywhere, because races need neighbours: faults that meet in one table, a zap that meets the fault
/// it invalidates, a conversion of a page that is being touched.
/// </summary>
public static class StressGenerator
{
    /// <summary>Draws one step of a vCPU.</summary>
    /// <param name="stream">Purpose <c>program</c>, one stream per thread.</param>
    /// <param name="pages">Pages of the world's memory.</param>
    /// <param name="allowed">The steps that may be drawn; <see langword="null"/> for all. At least one must be a vCPU's.</param>
    public static StressOp Guest(SeedStream stream, int pages, IReadOnlySet<StressStep>? allowed = null)
    {
        ArgumentNullException.ThrowIfNull(stream);
        while (true)
        {
            StressOp op = Guest(stream, pages);
            if (allowed is null || allowed.Contains(op.Step))
            {
                return op;
            }
        }
    }

    /// <summary>Draws one step of a host thread.</summary>
    /// <param name="stream">Purpose <c>program</c>, one stream per thread.</param>
    /// <param name="pages">Pages of the world's memory.</param>
    /// <param name="allowed">The steps that may be drawn; <see langword="null"/> for all. At least one must be a host thread's.</param>
    public static StressOp Host(SeedStream stream, int pages, IReadOnlySet<StressStep>? allowed = null)
    {
        ArgumentNullException.ThrowIfNull(stream);
        while (true)
        {
            StressOp op = Host(stream, pages);
            if (allowed is null || allowed.Contains(op.Step))
            {
                return op;
            }
        }
    }

    private static StressOp Guest(SeedStream stream, int pages)
    {
        ulong dice = stream.Below(100);
        StressStep step = dice switch
        {
            < 46 => StressStep.WritePrivate,
            < 58 => StressStep.ReadPrivate,
            < 74 => StressStep.WriteShared,
            < 84 => StressStep.ReadShared,
            < 92 => StressStep.MapShared,
            _ => StressStep.MapPrivate,
        };
        return Range(stream, step, pages, step is StressStep.MapShared or StressStep.MapPrivate ? 16 : 4);
    }

    private static StressOp Host(SeedStream stream, int pages)
    {
        ulong dice = stream.Below(100);
        StressStep step = dice switch
        {
            < 16 => StressStep.ConvertShared,
            < 32 => StressStep.ConvertPrivate,
            < 48 => StressStep.PunchHole,
            < 68 => StressStep.Notify,
            < 72 => StressStep.FlipSlot,
            < 76 => StressStep.FastZap,
            < 80 => StressStep.Age,
            < 82 => StressStep.TestAge,
            < 86 => StressStep.PreFault,
            < 88 => StressStep.FlipLog,
            < 90 => StressStep.Harvest,
            < 91 => StressStep.Signal,
            _ => StressStep.Interrupt,
        };
        return Range(stream, step, pages, 32);
    }

    /// <summary>Draws a whole program.</summary>
    /// <param name="seed">The master seed.</param>
    /// <param name="vcpus">How many vCPUs.</param>
    /// <param name="hosts">How many host threads.</param>
    /// <param name="stepsPerThread">Steps of each thread.</param>
    /// <param name="pages">Pages of the world's memory.</param>
    public static StressProgram Program(ulong seed, int vcpus, int hosts, int stepsPerThread, int pages)
    {
        List<IReadOnlyList<StressOp>> guestThreads = [];
        List<IReadOnlyList<StressOp>> hostThreads = [];
        for (int thread = 0; thread < vcpus + hosts; thread++)
        {
            SeedStream stream = new(seed, "program", (ulong)thread);
            StressOp[] ops = new StressOp[stepsPerThread];
            for (int i = 0; i < ops.Length; i++)
            {
                ops[i] = thread < vcpus ? Guest(stream, pages) : Host(stream, pages);
            }

            (thread < vcpus ? guestThreads : hostThreads).Add(ops);
        }

        return new StressProgram(guestThreads, hostThreads);
    }

    private static StressOp Range(SeedStream stream, StressStep step, int pages, int longest)
    {
        int page = stream.Below(2) == 0 ? (int)stream.Below((ulong)pages) : HotSpot(stream, pages);
        int count = 1 + (int)stream.Below((ulong)longest);
        return new StressOp(step, page, Math.Min(count, pages - page));
    }

    // The first pages, and the pages around each border of two tables.
    private static int HotSpot(SeedStream stream, int pages)
    {
        int borders = Math.Max(1, pages / 512);
        int border = (int)stream.Below((ulong)borders) * 512;
        return Math.Clamp(border - 4 + (int)stream.Below(8), 0, pages - 1);
    }
}
