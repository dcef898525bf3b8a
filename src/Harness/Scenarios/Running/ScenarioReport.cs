using System.Globalization;
using System.Text;

namespace Tdp.Harness.Scenarios;

/// <summary>What several executions of one scenario came to.</summary>
/// <param name="Name">The scenario.</param>
/// <param name="Runs">Executions.</param>
/// <param name="Failed">Those that were not clean.</param>
/// <param name="Failures">What the first of them found.</param>
/// <param name="Results">Results of the steps: of the first failed execution, or of the last.</param>
public sealed record ScenarioReport(string Name, int Runs, int Failed, IReadOnlyList<ScenarioFailure> Failures, IReadOnlyList<string> Results)
{
    /// <summary>The report as text, for a copy of the rooms that was compiled in memory.</summary>
    public string Write()
    {
        StringBuilder text = new(string.Create(CultureInfo.InvariantCulture, $"report {Name} {Runs} {Failed}\n"));
        foreach (ScenarioFailure failure in Failures)
        {
            text.Append(CultureInfo.InvariantCulture, $"failure {failure.Rule} {failure.Line} {failure.Text.ReplaceLineEndings(" ")}\n");
        }

        foreach (string result in Results)
        {
            text.Append("result ").Append(result.ReplaceLineEndings(" ")).Append('\n');
        }

        return text.ToString();
    }

    /// <summary>Reads what <see cref="Write"/> writes.</summary>
    /// <exception cref="FormatException">The text is something else.</exception>
    public static ScenarioReport Parse(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        List<ScenarioFailure> failures = [];
        List<string> results = [];
        string[] head = [];
        foreach (string line in text.Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            string[] words = line.Split(' ', 4);
            switch (words[0])
            {
                case "report" when words.Length == 4:
                    head = words;
                    break;
                case "failure" when words.Length == 4:
                    failures.Add(new ScenarioFailure(words[1], words[3], int.Parse(words[2], CultureInfo.InvariantCulture)));
                    break;
                case "result":
                    results.Add(line["result ".Length..]);
                    break;
                default:
                    throw new FormatException($"'{line}' is not a line of a scenario's report");
            }
        }

        if (head.Length != 4)
        {
            throw new FormatException("a scenario's report starts with 'report NAME RUNS FAILED'");
        }

        return new ScenarioReport(head[1], int.Parse(head[2], CultureInfo.InvariantCulture), int.Parse(head[3], CultureInfo.InvariantCulture), failures, results);
    }
}
