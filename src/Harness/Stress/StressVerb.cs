using System.Globalization;
using System.Linq;
using Tdp.Harness.Cli;
using Tdp.Harness.Reports;
using Tdp.Harness.Scenarios;

namespace Tdp.Harness.Stress;

/// <summary><c>tdpmmu stress</c>.</summary>
internal static class StressVerb
{
    private const int Pages = 2048;
    private static readonly TimeSpan ProgressEvery = TimeSpan.FromSeconds(10);

    /// <summary>Runs it.</summary>
    /// <returns>0 clean, 1 when a rule was broken or the run failed, 130 or 143 when the user ended a clean run.</returns>
    public static int Run(StressSettings settings, Screen screen, Interruption interruption)
    {
        CommandLine.RequireSupportedHost();
        int hosts = Math.Clamp((settings.Vcpus + 1) / 2, 1, 4);
        using StressWorld world = new(settings.Vcpus, hosts, Pages, settings.Seed, busyPerMillion: settings.BusyPerMillion);
        using VmMeters meters = new(world.World.Vm, world.World.Module);
        screen.Progress(string.Create(CultureInfo.InvariantCulture, $"stress: {settings.Vcpus} vCPUs, {hosts} host threads, seed {settings.Seed}, {Limit(settings)}"));
        TimeSpan next = ProgressEvery;
        ResidentMemory memory = ResidentMemory.Begin(settings);
        void Report(StressProgress progress)
        {
            memory.Note(progress);
            if (progress.Elapsed >= next)
            {
                next += ProgressEvery;
                screen.Progress(string.Create(CultureInfo.InvariantCulture, $"  {progress.Elapsed.TotalSeconds:0} s, {progress.Operations:N0} operations, {progress.Operations / progress.Elapsed.TotalSeconds:N0}/s, {world.Findings.Count} findings"));
            }
        }

        StressOutcome outcome = new StressDriver(world, settings.Seed, new StressLimits(settings.Duration, settings.Iterations, settings.Ops is { } ops ? StressOperations.StepsOf(ops) : null)).Run(Report, interruption.Token);
        SortedDictionary<string, long> statistics = meters.Read();
        IReadOnlyList<SeamcallCount> seamcalls = Counts.Calls(world.World.Module.Counts(), guest: false);
        if (outcome.Failure is null)
        {
            world.TearDown();
        }

        StressReport report = Make(settings, world, outcome, seamcalls, statistics, memory.Take());
        if (settings.Json)
        {
            screen.WriteJson(report);
        }
        else
        {
            report.Draw(screen);
        }

        if (report.Broken.Count > 0 || report.Failure is not null)
        {
            screen.Progress(report.Broken.Count > 0 ? $"tdpmmu: {report.Broken[0].Rule} does not hold: {report.Broken[0].Sentence}" : $"tdpmmu: {report.Failure}");
            return ExitCode.Failed;
        }

        return interruption.ExitCode(ExitCode.Ok);
    }

    private static string Choices(StressSettings settings)
        => (settings.Ops is { } ops ? $" --ops {string.Join(',', ops)}" : string.Empty)
            + (settings.BusyPerMillion == new StressSettings(null, null, 1, 1, false).BusyPerMillion ? string.Empty : $" --busy {StressOperations.Percent(settings.BusyPerMillion)}");

    private static string Limit(StressSettings settings)
        => settings.Iterations is { } iterations ? string.Create(CultureInfo.InvariantCulture, $"{iterations:N0} operations") : Quantities.Duration(settings.Duration ?? TimeSpan.Zero);

    private static StressReport Make(StressSettings settings, StressWorld world, StressOutcome outcome, IReadOnlyList<SeamcallCount> seamcalls, IReadOnlyDictionary<string, long> statistics, MemoryReport memory)
    {
        double seconds = outcome.Progress.Elapsed.TotalSeconds;
        string repeat = string.Create(
            CultureInfo.InvariantCulture,
            $"tdpmmu stress {(settings.Iterations is { } n ? $"--iterations {n}" : $"--duration {Quantities.Duration(settings.Duration ?? TimeSpan.Zero)}")} --vcpus {settings.Vcpus} --seed {settings.Seed}{Choices(settings)}");
        return new StressReport(
            settings.Seed,
            settings.Vcpus,
            world.Threads - world.Vcpus,
            seconds,
            outcome.Progress.Operations,
            outcome.Progress.Operations / Math.Max(seconds, 0.001),
            outcome.Progress.Rendezvous,
            world.Guests.Sum(g => g.Accesses),
            world.Guests.Sum(g => g.Accepts),
            world.Guests.Sum(g => g.Conversions),
            Counts.Faults(Counts.Vcpus(world.World.Vm), Counts.Mmu(world.World.Vm)),
            statistics,
            seamcalls,
            world.InjectedBusy,
            memory,
            RuleCount.From(world.Checked.Verdicts),
            BrokenRule.From(world.Findings.All),
            outcome.Failure,
            world.Frames is { } audit ? FrameReport.From(audit, world.World.Machine.Ledger.Leaks) : null,
            outcome.Interrupted,
            repeat);
    }
}
