using System.Globalization;
using System.IO;
using System.IO.Compression;
using System.Text.Json;

namespace Tdp.Tests.Conformance;

/// <summary>One line of a recorded trace: the header of a sequence or one call with the real module's answer.</summary>
internal sealed class TraceLine(JsonElement json, string text)
{
    public string Text { get; } = text;

    public string Sequence { get; } = json.GetProperty("seq").GetString()!;

    public bool IsHeader => json.TryGetProperty("t", out _);

    public string Base => json.GetProperty("base").GetString()!;

    public int Index => json.GetProperty("i").GetInt32();

    public int Lp => json.GetProperty("lp").GetInt32();

    public string Operation => json.GetProperty("op").GetString()!;

    public int Version => json.TryGetProperty("v", out JsonElement v) ? v.GetInt32() : 0;

    public string Result => json.GetProperty("r").GetString()!;

    public bool StopsToBeRepeated => json.TryGetProperty("again", out _);

    public bool Flushes => json.TryGetProperty("inv", out JsonElement inv) && inv.GetInt32() != 0;

    public ulong? Rax => Optional("rax");

    public ulong? HitAt => Optional("hpa");

    public (int Vector, int Type)? Injected =>
        json.TryGetProperty("inj", out JsonElement inj) ? (inj[0].GetInt32(), inj[1].GetInt32()) : null;

    public ulong RawRax => Hex(json.GetProperty("raxin").GetString()!);

    public string Data => json.GetProperty("data").GetString()!;

    public int Length => json.GetProperty("len").GetInt32();

    public JsonElement? Delta(string name) => json.TryGetProperty(name, out JsonElement delta) ? delta : null;

    public ulong In(string name) => json.GetProperty("in").TryGetProperty(name, out JsonElement value)
        ? value.ValueKind == JsonValueKind.Number ? value.GetUInt64() : Hex(value.GetString()!)
        : 0;

    public string InText(string name) => json.GetProperty("in").GetProperty(name).GetString()!;

    public bool Has(string name) => json.GetProperty("in").TryGetProperty(name, out _);

    public IEnumerable<(string Register, ulong Value)> Outputs()
    {
        if (!json.TryGetProperty("out", out JsonElement outputs))
            yield break;
        foreach (JsonProperty property in outputs.EnumerateObject())
            yield return (property.Name, Hex(property.Value.GetString()!));
    }

    public static ulong Hex(string text) => ulong.Parse(text.AsSpan(2), NumberStyles.HexNumber, CultureInfo.InvariantCulture);

    /// <summary>The lines of a trace, plain or gzip.</summary>
    public static IEnumerable<TraceLine> Read(string path)
    {
        using Stream file = File.OpenRead(path);
        using Stream stream = path.EndsWith(".gz", StringComparison.Ordinal) ? new GZipStream(file, CompressionMode.Decompress) : file;
        using var reader = new StreamReader(stream);
        while (reader.ReadLine() is { } text)
        {
            using JsonDocument document = JsonDocument.Parse(text);
            yield return new TraceLine(document.RootElement.Clone(), text);
        }
    }

    private ulong? Optional(string name) => json.TryGetProperty(name, out JsonElement value) ? Hex(value.GetString()!) : null;
}
