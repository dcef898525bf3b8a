using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <summary>One word of a scenario line with its place. Words are separated by blanks; a word in double quotes may contain blanks and <c>#</c>.</summary>
/// <param name="Text">The word, without quotes.</param>
/// <param name="Line">Line, from 1.</param>
/// <param name="Column">Column of its first character, from 1.</param>
/// <param name="IsQuoted">It stood in quotes: never a key, a name or a number.</param>
internal readonly record struct ScenarioWord(string Text, int Line, int Column, bool IsQuoted)
{
    /// <summary>What stands before the first <c>=</c>, or the whole word.</summary>
    public string Key => Equal < 0 ? Text : Text[..Equal];

    /// <summary>What stands behind the first <c>=</c>, with the place of its first character.</summary>
    public ScenarioWord Value => Equal < 0 ? default : new ScenarioWord(Text[(Equal + 1)..], Line, Column + Equal + 1, IsQuoted);

    /// <summary>True for <c>key=value</c>.</summary>
    public bool IsPair => Equal > 0;

    private int Equal => IsQuoted || Text is null ? -1 : Text.IndexOf('=', StringComparison.Ordinal);

    /// <summary>Reads a number, decimal or with 0x.</summary>
    public bool TryNumber(out ulong value) => TryNumber(Text, out value);

    /// <summary>Reads a number, decimal or with 0x.</summary>
    public static bool TryNumber(ReadOnlySpan<char> text, out ulong value)
        => text.StartsWith("0x", StringComparison.OrdinalIgnoreCase)
            ? ulong.TryParse(text[2..], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out value)
            : ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value);

    /// <summary>Splits a line into words. What follows a <c>#</c> outside of quotes is a comment.</summary>
    /// <param name="line">The line.</param>
    /// <param name="number">Its number, from 1.</param>
    /// <param name="words">Receives the words.</param>
    /// <param name="openQuote">Column of a quote that is not closed on the line, or 0.</param>
    public static void Split(string line, int number, List<ScenarioWord> words, out int openQuote)
    {
        openQuote = 0;
        int at = 0;
        while (at < line.Length && line[at] != '#')
        {
            if (char.IsWhiteSpace(line[at]))
            {
                at++;
                continue;
            }

            int start = at;
            if (line[at] == '"')
            {
                int end = line.IndexOf('"', at + 1);
                if (end < 0)
                {
                    openQuote = start + 1;
                    return;
                }

                words.Add(new ScenarioWord(line[(at + 1)..end], number, start + 1, IsQuoted: true));
                at = end + 1;
                continue;
            }

            while (at < line.Length && !char.IsWhiteSpace(line[at]) && line[at] != '#')
            {
                at++;
            }

            words.Add(new ScenarioWord(line[start..at], number, start + 1, IsQuoted: false));
        }
    }
}
