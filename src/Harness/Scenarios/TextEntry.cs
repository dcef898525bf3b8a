using System.Globalization;
using System.Text;

namespace Tdp.Harness.Scenarios;

/// <summary>
/// How the tool talks to a copy of the rooms that it compiled in memory: text in, text out, because the copy's types are not the tool's. The first word of a request says what to do; what follows the
/// first line is its argument.
/// </summary>
public static class TextEntry
{
    /// <summary>Pages of the world in which a program runs.</summary>
    public const int ProgramPages = 1024;

    /// <summary>Performs one request.</summary>
    /// <param name="request">
    /// <c>fault</c>: one scripted private fault, from the violation to teardown. <c>program</c>, then the lines of a <see cref="StressProgram"/>: runs it. <c>scenario SEED REPEAT FILE</c>, then the
    /// text of a <see cref="Scenario"/>: executes it that often. <c>module-fuzz</c>, then seed and number of rounds: garbage for the module, until the first finding.
    /// </param>
    /// <returns>For a scenario the text of a <see cref="ScenarioReport"/>; otherwise a first line that begins with <c>ok</c> if nothing is wrong, or one line per finding.</returns>
    /// <exception cref="FormatException">The request is something else.</exception>
    public static string Execute(string request)
    {
        ArgumentNullException.ThrowIfNull(request);
        int end = request.IndexOf('\n', StringComparison.Ordinal);
        string verb = end < 0 ? request : request[..end];
        switch (verb)
        {
            case "fault":
                return ScriptedFault.Run();
            case "program" when end >= 0:
                IReadOnlyList<Finding> findings = StressRun.Execute(StressProgram.Parse(request[(end + 1)..]), ProgramPages);
                if (findings.Count == 0)
                {
                    return "ok";
                }

                StringBuilder report = new();
                foreach (Finding finding in findings)
                {
                    report.Append(finding.Rule).Append(": ").Append(finding.Text).Append('\n');
                }

                return report.ToString();
            case "module-fuzz" when end >= 0:
                return Fuzz(request[(end + 1)..]);
            default:
                string[] words = verb.Split(' ', 4);
                if (words is ["scenario", _, _, _] && end >= 0)
                {
                    Scenario scenario = Scenario.Parse(request[(end + 1)..], words[3]);
                    return ScenarioRuns.Execute(scenario, ulong.Parse(words[1], CultureInfo.InvariantCulture), int.Parse(words[2], CultureInfo.InvariantCulture)).Write();
                }

                throw new FormatException($"'{verb}' is not a request: fault, program with the lines of a program, module-fuzz with seed and rounds, or scenario SEED REPEAT FILE with its text");
        }
    }

    private static string Fuzz(string argument)
    {
        string[] words = argument.Split(' ', StringSplitOptions.RemoveEmptyEntries);
        ulong seed = ulong.Parse(words[0], CultureInfo.InvariantCulture);
        long rounds = long.Parse(words[1], CultureInfo.InvariantCulture);
        for (long number = 0; number < rounds; number++)
        {
            FuzzRound round = new(seed, number);
            round.Run(FuzzRound.Steps, static () => false);
            foreach (FuzzFinding finding in round.Found)
                return $"{finding.Rule}: round {number}, step {finding.Step}: {finding.Text}";
        }

        return "ok";
    }
}
