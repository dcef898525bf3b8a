using System.Globalization;
using System.Linq;
using Tdp.Harness.Reports;

namespace Tdp.Harness.Conformance;

/// <summary>One row of the table of results.</summary>
/// <param name="Recording">What was recorded: the TDX module or the TDP MMU.</param>
/// <param name="Operation">Leaf or operation.</param>
/// <param name="Status">The recorded status or result.</param>
/// <param name="Calls">Records compared.</param>
/// <param name="Matches">Records answered as recorded.</param>
/// <param name="Mismatches">Records answered in another way.</param>
internal sealed record ReplayRow(string Recording, string Operation, string Status, long Calls, long Matches, long Mismatches);

/// <summary>Records that a rule of the recording says not to compare.</summary>
/// <param name="Rule">The rule.</param>
/// <param name="Records">How many.</param>
internal sealed record ExcludedRecords(string Rule, long Records);

/// <summary>What a replay found.</summary>
/// <param name="Files">The trace files.</param>
/// <param name="Operations">Counts by operation and recorded status.</param>
/// <param name="Excluded">What was not compared, by rule.</param>
/// <param name="Mismatches">Every mismatch.</param>
/// <param name="Calls">Records compared.</param>
/// <param name="Mismatched">Records answered in another way.</param>
/// <param name="Interrupted">The replay was ended by a signal.</param>
/// <param name="StoppedAtFirst">The replay ended at the first mismatch.</param>
/// <param name="Repeat">The command that repeats it.</param>
internal sealed record ReplayReport(
    IReadOnlyList<ReplayedFile> Files, IReadOnlyList<ReplayRow> Operations, IReadOnlyList<ExcludedRecords> Excluded, IReadOnlyList<ReplayMismatch> Mismatches, long Calls, long Mismatched, bool Interrupted,
    bool StoppedAtFirst, string Repeat)
{
    private const int SequencesShown = 10;

    /// <summary>The report of a run.</summary>
    public static ReplayReport From(ReplayRun run, bool interrupted, string repeat) => new(
        run.Files,
        [.. run.Outcomes.Select(o => new ReplayRow(o.Key.Kind, o.Key.Operation, o.Key.Outcome, o.Value.Calls, o.Value.Calls - o.Value.Mismatches, o.Value.Mismatches))],
        [.. run.Excluded.Select(e => new ExcludedRecords(e.Key, e.Value))],
        run.Mismatches,
        run.Calls,
        run.Mismatches.Count,
        interrupted,
        run.StopsAtFirst && run.Mismatches.Count > 0,
        repeat);

    /// <summary>Draws it. The last line is the verdict.</summary>
    public void Draw(Screen screen)
    {
        DrawMismatches(screen);
        foreach (IGrouping<string, ReplayRow> recording in Operations.GroupBy(o => o.Recording, StringComparer.Ordinal))
            screen.Table(recording.Key, ["operation", "recorded status", "#calls", "#matches", "#mismatches"], recording.Select(r => (string[])[r.Operation, r.Status, N(r.Calls), N(r.Matches), N(r.Mismatches)]));
        screen.Table("files", ["file", "recording", "#sequences", "#calls", "#mismatches", "#excluded"], Files.Select(f => (string[])[f.File, f.Kind, N(f.Sequences), N(f.Calls), N(f.Mismatches), N(f.Excluded)]));
        foreach (ExcludedRecords excluded in Excluded)
            screen.Line($"not compared, {N(excluded.Records)} {(excluded.Records == 1 ? "record" : "records")}: {excluded.Rule}");
        if (Interrupted)
            screen.Line("interrupted: what follows counts what was replayed before");
        else if (StoppedAtFirst)
            screen.Line("stopped at the first mismatch");
        screen.Line(string.Create(CultureInfo.InvariantCulture, $"{Calls} calls, {Mismatched} mismatches"));
    }

    private void DrawMismatches(Screen screen)
    {
        // Later mismatches of a sequence often follow from its first.
        int shown = 0;
        foreach (IGrouping<(string File, string Sequence), ReplayMismatch> sequence in Mismatches.GroupBy(m => (m.File, m.Sequence)))
        {
            if (++shown > SequencesShown)
            {
                int more = Mismatches.GroupBy(m => (m.File, m.Sequence)).Count() - SequencesShown;
                screen.Line(string.Create(CultureInfo.InvariantCulture, $"{more} more {(more == 1 ? "sequence has" : "sequences have")} mismatches; --json lists all of them"));
                screen.Line();
                return;
            }

            Draw(screen, sequence.First());
            int later = sequence.Count() - 1;
            if (later > 0)
                screen.Line(string.Create(CultureInfo.InvariantCulture, $"    {later} more in sequence {sequence.Key.Sequence}; --json lists all of them"));
            screen.Line();
        }
    }

    private static void Draw(Screen screen, ReplayMismatch mismatch)
    {
        string by = mismatch.By is null ? string.Empty : $" on {mismatch.By}";
        screen.Line(string.Create(CultureInfo.InvariantCulture, $"mismatch at {mismatch.File}:{mismatch.Line}: {mismatch.Sequence} #{mismatch.Index}, {mismatch.Operation}{by}"));
        foreach (ReplayOperand operand in mismatch.Operands)
            screen.Line($"    {operand.Name} {operand.Value}{(operand.Meaning is null ? string.Empty : $": {operand.Meaning}")}");
        if (mismatch.Note is not null)
            screen.Line($"    note: {mismatch.Note}");
        screen.Table(string.Empty, ["answer", "recorded", "simulated", " "], mismatch.Answers.Select(a => (string[])[a.What, a.Recorded, a.Simulated, a.Differs ? "differs" : string.Empty]));
        foreach (string entry in mismatch.Entries)
            screen.Line($"    {entry}");
    }

    private static string N(long value) => value.ToString("N0", CultureInfo.InvariantCulture);
}
