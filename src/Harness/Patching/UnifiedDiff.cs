using System.Globalization;

namespace Tdp.Harness.Patching;

/// <summary>A patch does not fit. The message is one line: where in the patch, and what was expected and found.</summary>
public sealed class PatchException(string message) : Exception(message);

/// <summary>
/// A unified diff against the sources that travel inside the tool. It is applied without fuzz: every context and removed line must stand exactly where the hunk says, or where the whole hunk
/// fits exactly once in the file.
/// </summary>
public sealed class UnifiedDiff
{
    private readonly List<FilePatch> _files = [];
    private readonly string _name;

    private UnifiedDiff(string name) => _name = name;

    /// <summary>The files that it changes, as they are named in the sources: <c>src/Mmu/...</c>.</summary>
    public IReadOnlyList<string> Files => _files.ConvertAll(f => f.Path);

    private sealed record FilePatch(string Path, List<Hunk> Hunks);

    private sealed record Hunk(int Line, int OldStart, List<string> Old, List<string> New);

    /// <summary>Reads a patch.</summary>
    /// <param name="text">The text; lines before the first <c>---</c> are a comment.</param>
    /// <param name="name">Its name, for messages.</param>
    /// <exception cref="PatchException">It is no unified diff.</exception>
    public static UnifiedDiff Parse(string text, string name)
    {
        ArgumentNullException.ThrowIfNull(text);
        UnifiedDiff diff = new(name);
        string[] lines = text.Split('\n');
        int at = 0;
        while (at < lines.Length)
        {
            if (!lines[at].StartsWith("--- ", StringComparison.Ordinal))
            {
                at++;
                continue;
            }

            at = diff.File(lines, at);
        }

        return diff._files.Count > 0 ? diff : throw diff.Wrong(0, "there is no file header such as '--- a/src/Mmu/TdpMmu.cs'");
    }

    /// <summary>Applies the patch.</summary>
    /// <param name="sources">Path to text; the changed files are replaced.</param>
    /// <exception cref="PatchException">A hunk does not fit; nothing was replaced.</exception>
    public void Apply(IDictionary<string, string> sources)
    {
        ArgumentNullException.ThrowIfNull(sources);
        Dictionary<string, string> changed = new(StringComparer.Ordinal);
        foreach (FilePatch file in _files)
        {
            if (!sources.TryGetValue(file.Path, out string? text))
            {
                throw Wrong(file.Hunks.Count > 0 ? file.Hunks[0].Line : 1, $"there is no source {file.Path}");
            }

            List<string> lines = [.. text.Split('\n')];
            int moved = 0;
            foreach (Hunk hunk in file.Hunks)
            {
                int place = Place(lines, hunk, moved, file.Path);
                lines.RemoveRange(place, hunk.Old.Count);
                lines.InsertRange(place, hunk.New);
                moved = place - (hunk.OldStart - 1) + hunk.New.Count - hunk.Old.Count;
            }

            changed[file.Path] = string.Join('\n', lines);
        }

        foreach ((string path, string text) in changed)
        {
            sources[path] = text;
        }
    }

    private int Place(List<string> lines, Hunk hunk, int moved, string path)
    {
        int expected = hunk.OldStart - 1 + moved;
        if (Fits(lines, hunk, expected))
        {
            return expected;
        }

        // Elsewhere only if there is no doubt.
        List<int> places = [];
        for (int i = 0; i + hunk.Old.Count <= lines.Count; i++)
        {
            if (Fits(lines, hunk, i))
            {
                places.Add(i);
            }
        }

        return places.Count == 1 ? places[0] : throw Wrong(hunk.Line, $"the hunk fits {(places.Count == 0 ? "nowhere" : $"{places.Count} places")} in {path}; expected at line {expected + 1}: '{hunk.Old[0].Trim()}'");
    }

    private static bool Fits(List<string> lines, Hunk hunk, int at)
    {
        if (at < 0 || at + hunk.Old.Count > lines.Count)
        {
            return false;
        }

        for (int i = 0; i < hunk.Old.Count; i++)
        {
            if (!string.Equals(lines[at + i].TrimEnd('\r'), hunk.Old[i], StringComparison.Ordinal))
            {
                return false;
            }
        }

        return true;
    }

    private int File(string[] lines, int at)
    {
        if (at + 1 >= lines.Length || !lines[at + 1].StartsWith("+++ ", StringComparison.Ordinal))
        {
            throw Wrong(at + 2, "a line '+++ b/...' must follow '---'");
        }

        FilePatch file = new(PathOf(lines[at + 1][4..]), []);
        _files.Add(file);
        at += 2;
        while (at < lines.Length && lines[at].StartsWith("@@", StringComparison.Ordinal))
        {
            at = ReadHunk(lines, at, file);
        }

        return file.Hunks.Count > 0 ? at : throw Wrong(at + 1, "a hunk '@@ -line,count +line,count @@' must follow the file header");
    }

    private int ReadHunk(string[] lines, int at, FilePatch file)
    {
        string[] parts = lines[at].Split(' ', StringSplitOptions.RemoveEmptyEntries);
        if (parts.Length < 4 || !Counts(parts[1], '-', out int start, out int oldCount) || !Counts(parts[2], '+', out _, out int newCount))
        {
            throw Wrong(at + 1, $"'{lines[at]}' is not '@@ -line,count +line,count @@'");
        }

        Hunk hunk = new(at + 1, start, [], []);
        for (at++; at < lines.Length && (hunk.Old.Count < oldCount || hunk.New.Count < newCount); at++)
        {
            string line = lines[at].TrimEnd('\r');
            string rest = line.Length > 0 ? line[1..] : string.Empty;
            switch (line.Length > 0 ? line[0] : ' ')
            {
                case ' ':
                    hunk.Old.Add(rest);
                    hunk.New.Add(rest);
                    break;
                case '-':
                    hunk.Old.Add(rest);
                    break;
                case '+':
                    hunk.New.Add(rest);
                    break;
                case '\\':
                    break;
                default:
                    throw Wrong(at + 1, $"a line of a hunk starts with ' ', '-' or '+', found '{line[0]}'");
            }
        }

        if (hunk.Old.Count != oldCount || hunk.New.Count != newCount || hunk.Old.Count == 0)
        {
            throw Wrong(hunk.Line, $"the hunk says {oldCount} and {newCount} lines and has {hunk.Old.Count} and {hunk.New.Count}");
        }

        file.Hunks.Add(hunk);
        return at;
    }

    private static bool Counts(string text, char sign, out int start, out int count)
    {
        count = 1;
        start = 0;
        string[] parts = text.Length > 0 && text[0] == sign ? text[1..].Split(',') : [];
        return parts.Length is 1 or 2 && int.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out start)
            && (parts.Length == 1 || int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out count));
    }

    private static string PathOf(string text)
    {
        string path = text.Split('\t')[0].TrimEnd('\r', ' ');
        return path.StartsWith("b/", StringComparison.Ordinal) ? path[2..] : path;
    }

    private PatchException Wrong(int line, string message) => new(string.Create(CultureInfo.InvariantCulture, $"{_name}:{line}: {message}"));
}
