using System;
using System.Linq;
using BenchmarkDotNet.Columns;
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Engines;
using BenchmarkDotNet.Exporters.Json;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;
using BenchmarkDotNet.Toolchains.InProcess.NoEmit;

namespace Tdp.Bench;

/// <summary>
/// The fault-in workloads of the harness under BenchmarkDotNet. <c>--quick</c> runs in this process with few iterations; without it each case gets processes of its own.
/// Everything else on the command line goes to BenchmarkDotNet, such as <c>--filter *Mirror*</c>.
/// </summary>
internal static class Program
{
    private static int Main(string[] args)
    {
        bool quick = args.Contains("--quick", StringComparer.Ordinal);
        string[] rest = [.. args.Where(a => a is not "--quick")];
        if (!rest.Any(a => a is "--filter" or "-f" or "--list"))
        {
            rest = [.. rest, "--filter", "*"];
        }

        Job job = Job.Default.WithStrategy(RunStrategy.Monitoring).WithInvocationCount(1).WithUnrollFactor(1)
            .WithLaunchCount(quick ? 1 : 3).WithWarmupCount(quick ? 1 : 3).WithIterationCount(quick ? 5 : 15).WithId(quick ? "quick" : "full");
        if (quick)
        {
            job = job.WithToolchain(InProcessNoEmitToolchain.Instance);
        }

        ManualConfig config = ManualConfig.CreateMinimumViable().AddJob(job).AddExporter(JsonExporter.FullCompressed)
            .AddColumn(StatisticColumn.Median, StatisticColumn.P95, BaselineRatioColumn.RatioMean)
            .WithArtifactsPath("artifacts/bench").WithOptions(ConfigOptions.JoinSummary);
        Summary[] summaries = [.. BenchmarkSwitcher.FromAssembly(typeof(Program).Assembly).Run(rest, config)];

        // A validation error or a filter that matches nothing ends without a table and without an exception: that is a failure.
        if (summaries.Length == 0 || summaries.Any(s => s.HasCriticalValidationErrors || s.Reports.Length == 0 || s.Reports.Any(r => !r.Success)))
        {
            Console.Error.WriteLine("bench: no results");
            return 1;
        }

        return 0;
    }
}
