using System.Globalization;
using System.Threading;

namespace Tdp.Harness.Scenarios;

/// <summary>Executes scenarios on real threads, as often as asked.</summary>
public static class ScenarioRuns
{
    /// <summary>After this time without an end an execution counts as hanging.</summary>
    public static readonly TimeSpan Patience = TimeSpan.FromSeconds(20);

    /// <summary>Executes a scenario.</summary>
    /// <param name="scenario">The scenario.</param>
    /// <param name="seed">The master seed; execution <c>i</c> draws its injections from stream <c>i</c> of it.</param>
    /// <param name="repeat">How often.</param>
    /// <param name="progress">Told after each execution, with the number done and the number that failed.</param>
    /// <param name="patience">How long one execution may take; <see langword="null"/>: <see cref="Patience"/>.</param>
    /// <param name="stop">Ends the run after the current execution.</param>
    public static ScenarioReport Execute(Scenario scenario, ulong seed, int repeat, Action<int, int>? progress = null, TimeSpan? patience = null, CancellationToken stop = default)
    {
        ArgumentNullException.ThrowIfNull(scenario);
        ScenarioWorld world = new(scenario, seed);
        int runs = 0;
        int failed = 0;
        bool hangs = false;
        ScenarioVerdict? shown = null;
        while (runs < repeat && !stop.IsCancellationRequested && !hangs)
        {
            ScenarioVerdict verdict = Execute(world, patience ?? Patience, out hangs);
            runs++;
            if (!verdict.IsClean && failed++ == 0)
            {
                shown = verdict;
            }
            else if (failed == 0)
            {
                shown = verdict;
            }

            progress?.Invoke(runs, failed);
        }

        // The threads of an execution that hangs still use its memory; both end with the process.
        if (!hangs)
        {
            world.Dispose();
        }

        return new ScenarioReport(scenario.Name, runs, failed, shown?.Failures ?? [], shown?.Results ?? []);
    }

    private static ScenarioVerdict Execute(ScenarioWorld world, TimeSpan patience, out bool hangs)
    {
        ScenarioVerdict? verdict = null;
        Exception? thrown = null;
        Thread runner = new(() =>
        {
            try
            {
                verdict = world.Execute();
            }
            catch (Exception e)
            {
                // Not swallowed: it is this execution's failure.
                thrown = e;
            }
        })
        {
            IsBackground = true,
            Name = "scenario",
        };
        runner.Start();
        hangs = !runner.Join(patience);
        if (hangs)
        {
            return new ScenarioVerdict([new ScenarioFailure("hang", $"no end within {patience.TotalSeconds.ToString(CultureInfo.InvariantCulture)} s; {Where(world)}", 0)], []);
        }

        if (thrown is not null)
        {
            world.Abandon();
            return new ScenarioVerdict([new ScenarioFailure("crash", $"{thrown.GetType().Name}: {thrown.Message.ReplaceLineEndings(" ")}", 0)], []);
        }

        return verdict!;
    }

    private static string Where(ScenarioWorld world)
    {
        List<string> places = [];
        ScenarioHistory history = world.History;
        for (int i = 0; i < history.Ended.Length; i++)
        {
            int step = Array.FindIndex(history.Ended[i], e => e == 0);
            if (step >= 0)
            {
                ScenarioActor actor = world.Scenario.Actors[i];
                places.Add(string.Create(CultureInfo.InvariantCulture, $"{actor.Name}.{step + 1} {actor.Steps[step]}"));
            }
        }

        return places.Count == 0 ? "every actor has ended, the setup or the end hangs" : "waiting for " + string.Join(", ", places);
    }
}
