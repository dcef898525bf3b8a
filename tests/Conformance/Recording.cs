using System.IO;
using System.IO.Compression;
using System.Linq;
using System.Text.Json.Nodes;
using System.Threading;
using Tdp.Harness.Conformance;

namespace Tdp.Tests.Conformance;

/// <summary>The committed recordings, and pieces of them.</summary>
internal static class Recording
{
    public static string Folder(string kind) => Path.Combine(AppContext.BaseDirectory, "data", kind);

    public static string[] Files(string kind) => [.. Directory.GetFiles(Folder(kind), "*.jsonl.gz").Order(StringComparer.Ordinal)];

    public static IEnumerable<string> Lines(string path)
    {
        using FileStream stream = File.OpenRead(path);
        using var gzip = new GZipStream(stream, CompressionMode.Decompress);
        using var reader = new StreamReader(gzip);
        while (reader.ReadLine() is { } line)
            yield return line;
    }

    /// <summary>The lines of one sequence, header first.</summary>
    public static JsonObject[] Sequence(string kind, string file, string name) =>
        [.. Lines(Path.Combine(Folder(kind), file)).Where(l => l.StartsWith($"{{\"seq\":\"{name}\",", StringComparison.Ordinal)).Select(l => JsonNode.Parse(l)!.AsObject())];

    public static ReplayRun Replay(string path)
    {
        var run = new ReplayRun();
        run.Replay(path, CancellationToken.None);
        return run;
    }

    public static ReplayRun Replay(IEnumerable<JsonObject> lines)
    {
        string path = Path.GetTempFileName();
        try
        {
            File.WriteAllLines(path, lines.Select(l => l.ToJsonString()));
            return Replay(path);
        }
        finally
        {
            File.Delete(path);
        }
    }
}
