namespace Tdp.Harness.Scenarios;

/// <summary>One thing that is not as it must be.</summary>
/// <param name="Rule">The rule: an invariant such as <c>I57</c>, <c>require</c> for a requirement of the scenario, <c>setup</c>, or <c>crash</c>.</param>
/// <param name="Text">What was found.</param>
/// <param name="Line">Line of the scenario's text, or 0.</param>
public readonly record struct ScenarioFailure(string Rule, string Text, int Line)
{
    /// <inheritdoc/>
    public override string ToString() => Line == 0 ? $"{Rule}: {Text}" : $"{Rule} (line {Line}): {Text}";
}

/// <summary>How one execution ended.</summary>
/// <param name="Failures">What is wrong; empty for a clean execution.</param>
/// <param name="Results">One line per step with its result, in the order of the scenario.</param>
public sealed record ScenarioVerdict(IReadOnlyList<ScenarioFailure> Failures, IReadOnlyList<string> Results)
{
    /// <summary>True when nothing is wrong.</summary>
    public bool IsClean => Failures.Count == 0;

    /// <summary>The rules that were broken, each once: two executions fail the same way when these are equal.</summary>
    public string Signature
    {
        get
        {
            SortedSet<string> rules = new(StringComparer.Ordinal);
            foreach (ScenarioFailure failure in Failures)
            {
                rules.Add(failure.Rule);
            }

            return string.Join(' ', rules);
        }
    }
}
