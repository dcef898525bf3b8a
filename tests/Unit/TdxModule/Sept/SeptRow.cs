using System.IO;
using Tdp.Module;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// One row of the transition table for stage 1 (tdx-module 5.3, section 14): leaf, state found, condition, and what must come of it. The table is data
/// beside this file; a <c>+</c> behind a number marks the second outcome that the same row of the specification names in its note.
/// </summary>
/// <param name="Id">Number of the row among the stage 1 rows.</param>
/// <param name="Leaf">Full name of the leaf, or GUEST.ACCESS.</param>
/// <param name="Levels">Levels of the operand: a number, a range that may end in <c>root</c>, or <c>any</c>.</param>
/// <param name="From">State of the entry before.</param>
/// <param name="When">Conditions, words separated by blanks; empty for none.</param>
/// <param name="To">State afterwards; <c>=</c> for no change, <c>= moved</c> for another page behind the same state, <c>child</c> for that of child 0.</param>
/// <param name="Answer">Status with its operand; EXIT and the kind; VE, DF, OK; WALK when the walk goes on below the entry.</param>
/// <param name="Unreachable">Why no sequence of stage 1 leaves leads to the state; empty when one does.</param>
public sealed record SeptRow(string Id, string Leaf, string Levels, SeptState From, string When, string To, string Answer, string Unreachable)
{
    /// <summary>Rows that the specification's table has for stage 1, not counting second outcomes.</summary>
    public const int Expected = 173;

    private static readonly Lazy<IReadOnlyList<SeptRow>> s_all = new(Read);

    public static IReadOnlyList<SeptRow> All => s_all.Value;

    public static SeptRow Find(string id)
    {
        foreach (SeptRow row in All)
        {
            if (row.Id == id)
                return row;
        }

        throw new ArgumentException($"there is no row {id}", nameof(id));
    }

    public bool Has(string condition) => $" {When} ".Contains($" {condition} ", StringComparison.Ordinal);

    /// <summary>Levels of the range up to a root.</summary>
    public IEnumerable<int> LevelsUpTo(int root)
    {
        int dash = Levels.IndexOf('-', StringComparison.Ordinal);
        int first = Levels == "any" ? 0 : Number(dash < 0 ? Levels : Levels[..dash], root);
        int last = Levels == "any" ? root : Number(dash < 0 ? Levels : Levels[(dash + 1)..], root);
        for (int level = first; level <= last; level++)
            yield return level;
    }

    public override string ToString() => $"{Id} {Leaf} {From} {When}".TrimEnd();

    private static int Number(string text, int root) => text == "root" ? root : int.Parse(text, System.Globalization.CultureInfo.InvariantCulture);

    private static List<SeptRow> Read()
    {
        List<SeptRow> rows = [];
        foreach (string line in TestData.Lines("sept-rows.csv"))
        {
            string[] cells = line.Split(',');
            rows.Add(new SeptRow(cells[0], cells[1], cells[2], Enum.Parse<SeptState>(cells[3]), cells[4], cells[5], cells[6], cells[7]));
        }

        return rows;
    }
}

/// <summary>Tables that lie beside the tests and travel inside their assembly.</summary>
internal static class TestData
{
    /// <summary>The lines of a table without its header.</summary>
    public static IEnumerable<string> Lines(string file)
    {
        using Stream stream = typeof(TestData).Assembly.GetManifestResourceStream(file) ?? throw new InvalidOperationException($"{file} is not embedded");
        using StreamReader reader = new(stream);
        _ = reader.ReadLine();
        while (reader.ReadLine() is { } line)
        {
            if (line.Length != 0)
                yield return line;
        }
    }
}
