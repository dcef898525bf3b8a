using System.Globalization;
using System.IO;
using Tdp.Harness.Cli;
using Tdp.Harness.Patching;
using Tdp.Harness.Reports;
using Tdp.Harness.Scenarios;

namespace Tdp.Harness.ScenarioFiles;

/// <summary>What <c>tdpmmu scenario run</c> found in one file.</summary>
/// <param name="File">The file, or the name of a built-in scenario.</param>
/// <param name="Name">The scenario's name.</param>
/// <param name="Spec">The ids that it shows.</param>
/// <param name="Runs">Executions.</param>
/// <param name="Failed">Those that were not clean.</param>
/// <param name="Needs">interleaving: a free run shows the required outcome only by chance.</param>
/// <param name="Failures">What the first failed execution found.</param>
/// <param name="Results">Results of its steps, or of the last execution's.</param>
/// <param name="Repeat">The command that repeats it.</param>
internal sealed record ScenarioFileReport(
    string File, string Name, IReadOnlyList<string> Spec, int Runs, int Failed, string? Needs, IReadOnlyList<ScenarioFailure> Failures, IReadOnlyList<string> Results, string Repeat);

/// <summary><c>tdpmmu scenario check|run|list|show</c>.</summary>
internal static class ScenarioVerb
{
    /// <summary>Reads files and says what is wrong with them.</summary>
    /// <returns>0, or 2 when a file is no scenario.</returns>
    public static int Check(IReadOnlyList<string> files, Screen screen)
    {
        int code = ExitCode.Ok;
        foreach (string file in files)
        {
            if (Read(file, screen) is { } scenario)
            {
                int steps = scenario.Init.Count + scenario.After.Count;
                foreach (ScenarioActor actor in scenario.Actors)
                {
                    steps += actor.Steps.Count;
                }

                screen.Line(string.Create(CultureInfo.InvariantCulture, $"{file}: ok: {scenario.Name}, {scenario.Actors.Count} actors, {steps} steps, {scenario.Requirements.Count} requirements"));
            }
            else
            {
                code = ExitCode.Usage;
            }
        }

        return code;
    }

    /// <summary>Executes scenarios on real threads.</summary>
    /// <returns>0 when every execution was clean, 1 when one was not, 2 when a file is no scenario, 130 or 143 when the user ended a clean run.</returns>
    public static int Run(ScenarioSettings settings, Screen screen, Interruption interruption)
    {
        CommandLine.RequireSupportedHost();
        List<(string File, Scenario Scenario)> scenarios = [];
        foreach (string file in settings.Files)
        {
            if (Read(file, screen) is not { } scenario)
            {
                return ExitCode.Usage;
            }

            scenarios.Add((file, scenario));
        }

        List<ScenarioFileReport> reports = [];
        bool failed = false;
        foreach ((string file, Scenario scenario) in scenarios)
        {
            if (interruption.Token.IsCancellationRequested)
            {
                break;
            }

            ScenarioReport report = Execute(file, scenario, settings, screen, interruption);
            failed |= report.Failed > 0;
            string repeat = string.Create(CultureInfo.InvariantCulture, $"tdpmmu scenario run {file} --repeat {settings.Repeat} --seed {settings.Seed}");
            reports.Add(new ScenarioFileReport(file, scenario.Name, scenario.Spec, report.Runs, report.Failed, scenario.NeedsInterleaving ? "interleaving" : null, report.Failures, report.Results, repeat));
            if (!settings.Json)
            {
                Draw(reports[^1], screen);
            }
        }

        if (settings.Json)
        {
            screen.WriteJson(reports);
        }

        return failed ? ExitCode.Failed : interruption.ExitCode(ExitCode.Ok);
    }

    /// <summary>Lists the scenarios that travel inside the tool.</summary>
    public static int List(bool json, Screen screen)
    {
        List<Scenario> scenarios = [];
        foreach (string name in BuiltInScenarios.Names)
        {
            scenarios.Add(Scenario.Parse(BuiltInScenarios.Text(name)!, name));
        }

        if (json)
        {
            screen.WriteJson(scenarios.ConvertAll(s => new { File = s.File, s.Name, s.Spec, s.About, Needs = s.NeedsInterleaving ? "interleaving" : null, Patch = s.Patch.Length > 0 ? s.Patch : null }));
            return ExitCode.Ok;
        }

        screen.Table(string.Empty, ["name", "shows", "needs", "what"], scenarios.ConvertAll(s => (string[])
        [
            s.File, string.Join(' ', s.Spec), string.Join(' ', Needs(s)), s.About,
        ]));
        return ExitCode.Ok;
    }

    /// <summary>Prints the text of a scenario that travels inside the tool.</summary>
    public static int Show(string name, Screen screen)
    {
        screen.Out.Write(BuiltInScenarios.Text(name) ?? throw new UsageException($"NAME {name}: no such scenario; allowed is {string.Join(", ", BuiltInScenarios.Names)}"));
        return ExitCode.Ok;
    }

    private static List<string> Needs(Scenario scenario)
    {
        List<string> needs = scenario.NeedsInterleaving ? ["interleaving"] : [];
        if (scenario.Patch.Length > 0)
        {
            needs.Add("patch");
        }

        return needs;
    }

    private static ScenarioReport Execute(string file, Scenario scenario, ScenarioSettings settings, Screen screen, Interruption interruption)
    {
        List<UnifiedDiff> patches = [];
        foreach (string id in (string[])[scenario.Generation, scenario.Requires, scenario.Patch])
        {
            if (id.Length > 0)
            {
                patches.Add(Patch(id, file));
            }
        }

        if (patches.Count > 0)
        {
            screen.Progress($"{file}: compiling the rooms with {string.Join(", ", patches.ConvertAll(p => string.Join(", ", p.Files)))} patched");
            try
            {
                return PatchedScenario.Execute(Text(file), file, patches, settings.Seed, settings.Repeat);
            }
            catch (PatchException e)
            {
                throw new UsageException(e.Message);
            }
        }

        // A line now and then on long runs, none on short ones.
        int tenth = Math.Max(settings.Repeat / 10, 1000);
        return ScenarioRuns.Execute(scenario, settings.Seed, settings.Repeat, progress: (done, failed) =>
        {
            if (done % tenth == 0 && done < settings.Repeat)
            {
                screen.Progress(string.Create(CultureInfo.InvariantCulture, $"  {file}: {done:N0} of {settings.Repeat:N0}, {failed:N0} failed"));
            }
        }, stop: interruption.Token);
    }

    // Beside the scenario, or inside the tool.
    private static UnifiedDiff Patch(string id, string file)
    {
        string beside = Path.Combine(Path.GetDirectoryName(file) ?? string.Empty, id + ".patch");
        string? text = File.Exists(beside) ? File.ReadAllText(beside) : BuiltInScenarios.Patch(id);
        if (text is null)
        {
            throw new UsageException($"{file}: patch {id}: there is neither {beside} nor a built-in patch of that name; built in are {string.Join(", ", BuiltInScenarios.Patches)}");
        }

        try
        {
            return UnifiedDiff.Parse(text, id + ".patch");
        }
        catch (PatchException e)
        {
            throw new UsageException(e.Message);
        }
    }

    private static void Draw(ScenarioFileReport report, Screen screen)
    {
        string often = report.Failed == 0
            ? string.Create(CultureInfo.InvariantCulture, $"ok, {report.Runs:N0} of {report.Runs:N0}")
            : string.Create(CultureInfo.InvariantCulture, $"failed {report.Failed:N0} of {report.Runs:N0}");
        screen.Line($"{report.File}: {often}{(report.Needs is null ? string.Empty : " (needs an interleaving: a free run meets it by chance)")}");
        if (report.Failed == 0)
        {
            return;
        }

        foreach (ScenarioFailure failure in report.Failures)
        {
            screen.Line($"    {failure}");
        }

        foreach (string result in report.Results)
        {
            screen.Line($"    {result}");
        }

        screen.Line($"    repeat: {report.Repeat}");
    }

    private static Scenario? Read(string file, Screen screen)
    {
        Scenario? scenario = null;
        try
        {
            scenario = Scenario.Parse(Text(file), file);
        }
        catch (ScenarioException e)
        {
            foreach (ScenarioError error in e.Errors)
            {
                screen.Progress($"tdpmmu: {error}");
            }
        }

        return scenario;
    }

    private static string Text(string file)
    {
        if (File.Exists(file))
        {
            try
            {
                return File.ReadAllText(file);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                throw new UsageException($"FILE {file}: {e.Message.ReplaceLineEndings(" ")}");
            }
        }

        return BuiltInScenarios.Text(file) ?? throw new UsageException(Directory.Exists(file)
            ? $"FILE {file}: is a folder; allowed is a scenario file"
            : $"FILE {file}: no such file, and no such built-in scenario; built in are {Range(BuiltInScenarios.Names)}");
    }

    private static string Range(IReadOnlyList<string> names) => names.Count > 4 ? $"{names[0]}, {names[1]}, ... {names[^1]} (tdpmmu scenario list)" : string.Join(", ", names);
}
