using System.Globalization;
using System.Linq;

namespace Tdp.Harness.Reports;

/// <summary>Something that the stress of the module found.</summary>
/// <param name="Rule">The rule's number or name.</param>
/// <param name="Sentence">The rule.</param>
/// <param name="Text">What is wrong.</param>
/// <param name="Round">The round in which it was found.</param>
/// <param name="Step">The step of the round, from 1.</param>
/// <param name="Call">The step itself; missing in a parallel round.</param>
/// <param name="Repeat">The command that repeats the round. Even rounds are the same every time; in odd rounds two threads run, and it may take several tries.</param>
internal sealed record ModuleFinding(string Rule, string Sentence, string Text, long Round, long Step, string? Call, string Repeat);

/// <summary>What a stress of the module did and found.</summary>
/// <param name="Seed">The master seed.</param>
/// <param name="Seconds">Wall time.</param>
/// <param name="Steps">Steps performed: calls, guest accesses and exits, interrupts.</param>
/// <param name="StepsPerSecond">Steps per second.</param>
/// <param name="Rounds">Worlds built.</param>
/// <param name="SeamcallCount">SEAMCALLs made.</param>
/// <param name="TdcallCount">TDCALLs that were answered or left the TD by VMCALL.</param>
/// <param name="Seamcalls">SEAMCALLs by leaf and status.</param>
/// <param name="Tdcalls">TDCALLs by leaf and status.</param>
/// <param name="Findings">What was found; empty for a sound module.</param>
/// <param name="Interrupted">The user ended it; the figures are those reached.</param>
/// <param name="Repeat">The command that repeats it.</param>
internal sealed record ModuleStressReport(
    ulong Seed, double Seconds, long Steps, double StepsPerSecond, long Rounds, long SeamcallCount, long TdcallCount, IReadOnlyList<SeamcallCount> Seamcalls, IReadOnlyList<SeamcallCount> Tdcalls,
    IReadOnlyList<ModuleFinding> Findings, bool Interrupted, string Repeat)
{
    /// <summary>Draws the report.</summary>
    public void Draw(Screen screen)
    {
        static string N(long value) => value.ToString("N0", CultureInfo.InvariantCulture);
        screen.Line(string.Create(
            CultureInfo.InvariantCulture,
            $"stress of the module: {N(Steps)} steps in {Seconds:0.0} s ({StepsPerSecond:N0}/s), {N(SeamcallCount)} SEAMCALLs, {N(TdcallCount)} TDCALLs, {N(Rounds)} rounds, seed {Seed}: {Findings.Count} findings"));
        screen.Table("SEAMCALLs", ["leaf", "status", "#count"], Seamcalls.Select(c => (string[])[c.Leaf, c.Status, N(c.Count)]));
        screen.Table("TDCALLs", ["leaf", "status", "#count"], Tdcalls.Select(c => (string[])[c.Leaf, c.Status, N(c.Count)]));
        foreach (ModuleFinding finding in Findings)
        {
            screen.Line($"broken {finding.Rule}: {finding.Sentence}");
            screen.Line($"    {finding.Text}");
            screen.Line($"    round {N(finding.Round)}, step {N(finding.Step)}{(finding.Call is null ? ", two threads" : $": {finding.Call}")}");
            screen.Line($"    repeat: {finding.Repeat}");
        }

        screen.Line($"{(Interrupted ? "interrupted; " : string.Empty)}repeat: {Repeat}");
    }
}
