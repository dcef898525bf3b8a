namespace Tdp.Harness.Scenarios;

/// <summary>What the steps of one execution ended with. <see cref="Begun"/> and <see cref="Ended"/> number the beginnings and ends of all steps in the order in which they happened, from 1.</summary>
public sealed class ScenarioHistory
{
    private readonly SyncGate _gate = new();
    private long _clock;

    internal ScenarioHistory(Scenario scenario)
    {
        Init = new StepResult[scenario.Init.Count];
        After = new StepResult[scenario.After.Count];
        Results = new StepResult[scenario.Actors.Count][];
        Begun = new long[scenario.Actors.Count][];
        Ended = new long[scenario.Actors.Count][];
        Failures = new Exception?[scenario.Actors.Count];
        for (int i = 0; i < scenario.Actors.Count; i++)
        {
            int steps = scenario.Actors[i].Steps.Count;
            Results[i] = new StepResult[steps];
            Begun[i] = new long[steps];
            Ended[i] = new long[steps];
            Array.Fill(Results[i], StepResult.NotDone);
        }
    }

    /// <summary>Results of the setup.</summary>
    public StepResult[] Init { get; }

    /// <summary>Results of the steps after the actors.</summary>
    public StepResult[] After { get; }

    /// <summary>Results by actor and step.</summary>
    public StepResult[][] Results { get; }

    /// <summary>When each step began.</summary>
    public long[][] Begun { get; }

    /// <summary>When each step ended; 0: it did not.</summary>
    public long[][] Ended { get; }

    /// <summary>What an actor threw, or <see langword="null"/>.</summary>
    public Exception?[] Failures { get; }

    internal long Now()
    {
        using (_gate.Hold())
        {
            return ++_clock;
        }
    }
}
