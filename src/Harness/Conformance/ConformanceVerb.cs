using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Linq;
using Tdp.Harness.Cli;
using Tdp.Harness.Reports;

namespace Tdp.Harness.Conformance;

/// <summary><c>tdpmmu conformance replay</c>.</summary>
internal static class ConformanceVerb
{
    private const int RecordsBetweenLooks = 256;
    private static readonly TimeSpan s_progressEvery = TimeSpan.FromSeconds(2);

    /// <summary>Runs it.</summary>
    /// <returns>0 when every record was answered as recorded, 1 when one was not, 130 or 143 when the user ended a run without mismatches.</returns>
    public static int Replay(ReplaySettings settings, Screen screen, Interruption interruption)
    {
        CommandLine.RequireSupportedHost();
        foreach (string path in settings.Files)
        {
            // A name that is mistyped should not cost the replay of the others.
            if (!File.Exists(path))
                throw new UsageException($"FILE {path}: {(Directory.Exists(path) ? "is a folder; allowed is a trace file" : "no such file")}");
        }

        Stopwatch clock = Stopwatch.StartNew();
        TimeSpan next = s_progressEvery;
        var run = new ReplayRun
        {
            StopsAtFirst = settings.StopAtFirst,
            Progress = (path, records) =>
            {
                if (records % RecordsBetweenLooks != 0 || clock.Elapsed < next)
                    return;
                next = clock.Elapsed + s_progressEvery;
                screen.Progress(string.Create(CultureInfo.InvariantCulture, $"  {path}: {records:N0} records"));
            },
        };
        foreach (string path in settings.Files)
            run.Replay(path, interruption.Token);
        bool interrupted = run.IsPartial && interruption.Token.IsCancellationRequested;
        ReplayReport report = ReplayReport.From(run, interrupted, Command(settings));
        if (settings.Json)
            screen.WriteJson(report);
        else
            report.Draw(screen);
        return report.Mismatched > 0 ? ExitCode.Failed : interruption.ExitCode(ExitCode.Ok);
    }

    private static string Command(ReplaySettings settings)
        => $"tdpmmu conformance replay {string.Join(' ', settings.Files.Select(f => f.Contains(' ', StringComparison.Ordinal) ? $"'{f}'" : f))}{(settings.StopAtFirst ? " --stop-at-first" : string.Empty)}";
}
