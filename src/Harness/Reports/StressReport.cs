using System.Globalization;
using System.Linq;
using Tdp.Harness.Invariants;

namespace Tdp.Harness.Reports;

/// <summary>One rule that did not hold, with the first few places.</summary>
/// <param name="Rule">The rule's number.</param>
/// <param name="Sentence">The rule.</param>
/// <param name="Count">How often it was found broken.</param>
/// <param name="Details">The first places.</param>
internal sealed record BrokenRule(string Rule, string Sentence, long Count, IReadOnlyList<string> Details)
{
    private const int DetailsShown = 5;

    /// <summary>Sorts findings by rule, in the order in which the rules were first broken.</summary>
    public static IReadOnlyList<BrokenRule> From(IReadOnlyList<Finding> findings)
        => [.. findings.GroupBy(f => f.Rule, StringComparer.Ordinal).Select(g => new BrokenRule(g.Key, Catalogue.SentenceOf(g.Key), g.Count(), [.. g.Take(DetailsShown).Select(f => f.Text)]))];
}

/// <summary>How often a run has judged one rule.</summary>
/// <param name="Rule">The rule's number.</param>
/// <param name="Times">How often.</param>
/// <param name="Note">Why it was never judged, where there is a reason besides this run.</param>
internal sealed record RuleCount(string Rule, long Times, string Note)
{
    /// <summary>Counts every rule of the catalogue.</summary>
    public static IReadOnlyList<RuleCount> From(Verdicts verdicts)
        => [.. Catalogue.All.Select(rule => new RuleCount(rule.Id, verdicts.Times(rule), rule.Note))];
}

/// <summary>Resident memory of the process at three times of a run: it should not grow after the warm-up.</summary>
/// <param name="StartBytes">When the world had been built.</param>
/// <param name="WarmBytes">After a tenth of the run.</param>
/// <param name="WarmOperations">Operations that had been performed then.</param>
/// <param name="EndBytes">At the last rendezvous.</param>
internal sealed record MemoryReport(long StartBytes, long WarmBytes, long WarmOperations, long EndBytes);

/// <summary>What a stress run did and found.</summary>
/// <param name="Seed">The master seed.</param>
/// <param name="Vcpus">Faulting threads.</param>
/// <param name="HostThreads">Threads that zap, convert, notify and change slots.</param>
/// <param name="Seconds">Wall time.</param>
/// <param name="Operations">Steps performed.</param>
/// <param name="OperationsPerSecond">Steps per second, all threads.</param>
/// <param name="Rendezvous">How often everything was stopped and checked.</param>
/// <param name="Accesses">Guest pages touched.</param>
/// <param name="PagesAccepted">Pages accepted by the guest.</param>
/// <param name="GuestConversions">MapGPA calls that succeeded.</param>
/// <param name="Faults">Faults by kind.</param>
/// <param name="Statistics">KVM's statistics of the VM at the end of the run, before it was torn down.</param>
/// <param name="Seamcalls">SEAMCALLs by leaf and status.</param>
/// <param name="InjectedBusy">BUSY answers of the module that had no reason but the injection.</param>
/// <param name="Memory">Resident memory of the process over the run.</param>
/// <param name="Checks">How often each rule was judged: a rule that was never judged has not been shown to hold.</param>
/// <param name="Broken">Rules that did not hold.</param>
/// <param name="Failure">What stopped the run, if something did.</param>
/// <param name="Frames">What became of the frames; missing when the VM could not be torn down.</param>
/// <param name="Interrupted">The user ended it; the figures are those reached.</param>
/// <param name="Repeat">The command that repeats it. The seed fixes the steps and the injections, not the order in which threads meet.</param>
internal sealed record StressReport(
    ulong Seed, int Vcpus, int HostThreads, double Seconds, long Operations, double OperationsPerSecond, long Rendezvous, long Accesses, long PagesAccepted, long GuestConversions,
    IReadOnlyDictionary<string, long> Faults, IReadOnlyDictionary<string, long> Statistics, IReadOnlyList<SeamcallCount> Seamcalls, long InjectedBusy, MemoryReport Memory, IReadOnlyList<RuleCount> Checks, IReadOnlyList<BrokenRule> Broken, string? Failure, FrameReport? Frames, bool Interrupted, string Repeat)
{
    /// <summary>Draws the report.</summary>
    public void Draw(Screen screen)
    {
        static string N(long value) => value.ToString("N0", CultureInfo.InvariantCulture);
        screen.Line(string.Create(CultureInfo.InvariantCulture, $"stress: {N(Operations)} operations in {Seconds:0.0} s ({OperationsPerSecond:N0}/s) on {Vcpus} vCPUs and {HostThreads} host threads, {N(Rendezvous)} times at rest, seed {Seed}"));
        screen.Table("faults", ["kind", "#count"], Faults.Select(f => (string[])[f.Key, N(f.Value)]));
        screen.Table("statistics", ["name", "#value"], Statistics.Select(s => (string[])[s.Key, N(s.Value)]));
        screen.Table("guest", ["what", "#count"], [["pages touched", N(Accesses)], ["pages accepted", N(PagesAccepted)], ["conversions asked for", N(GuestConversions)]]);
        screen.Line($"BUSY answers injected: {N(InjectedBusy)}");
        screen.Line($"resident memory: {N(Memory.StartBytes >> 20)} MiB at the start, {N(Memory.WarmBytes >> 20)} MiB after {Memory.WarmOperations:N0} operations, {N(Memory.EndBytes >> 20)} MiB at the end");
        screen.Table("SEAMCALLs", ["leaf", "status", "#count"], Seamcalls.Select(c => (string[])[c.Leaf, c.Status, N(c.Count)]));
        DrawChecks(screen);
        if (Frames is { } frames)
        {
            screen.Line(frames.ToString());
        }

        foreach (BrokenRule rule in Broken)
        {
            screen.Line($"broken {rule.Rule} ({N(rule.Count)} times): {rule.Sentence}");
            foreach (string detail in rule.Details)
            {
                screen.Line($"    {detail}");
            }
        }

        if (Failure is not null)
        {
            screen.Line($"failed: {Failure}");
        }

        screen.Line($"{(Interrupted ? "interrupted; " : string.Empty)}repeat: {Repeat}");
    }

    // Six rules a line; those that were never judged by themselves, because a run that does not exercise a rule shows nothing about it.
    private void DrawChecks(Screen screen)
    {
        const int PerLine = 6;
        RuleCount[] judged = [.. Checks.Where(c => c.Times > 0)];
        screen.Line(string.Create(CultureInfo.InvariantCulture, $"invariants judged: {judged.Length} of {Checks.Count}, {judged.Sum(c => c.Times):N0} times"));
        for (int i = 0; i < judged.Length; i += PerLine)
        {
            screen.Line("  " + string.Join("  ", judged.Skip(i).Take(PerLine).Select(c => string.Create(CultureInfo.InvariantCulture, $"{c.Rule,-4} {c.Times,13:N0}"))));
        }

        foreach (RuleCount never in Checks.Where(c => c.Times == 0))
        {
            screen.Line($"  never in this run: {never.Rule}{(never.Note.Length == 0 ? string.Empty : $" ({never.Note})")}");
        }
    }
}
