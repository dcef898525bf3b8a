using System.Globalization;
using System.Text.Json;
using Tdp.Harness.Cli;

namespace Tdp.Harness.Conformance;

/// <summary>
/// One line of a trace, with its place. Members are read through this type, so that a missing or misshapen one is a line that says where and what, and never an exception of the parser.
/// </summary>
/// <param name="File">The file as the user named it.</param>
/// <param name="Line">The line, from 1.</param>
/// <param name="Json">The object.</param>
internal readonly record struct TraceRecord(string File, long Line, JsonElement Json)
{
    /// <summary>The sequence it belongs to.</summary>
    public string Sequence => Text("seq");

    /// <summary>True for the line that begins a sequence.</summary>
    public bool IsHeader => Json.TryGetProperty("t", out _);

    /// <summary>The recorder's hint, or <see langword="null"/>.</summary>
    public string? Note => Json.TryGetProperty("note", out JsonElement note) && note.ValueKind == JsonValueKind.String ? note.GetString() : null;

    /// <summary>The operand object <c>in</c>; an empty one when the record has none.</summary>
    public TraceRecord Inputs => Json.TryGetProperty("in", out JsonElement inputs)
        ? inputs.ValueKind == JsonValueKind.Object ? this with { Json = inputs } : throw Wrong("in", inputs, "an object")
        : this with { Json = s_empty };

    private static readonly JsonElement s_empty = JsonDocument.Parse("{}").RootElement.Clone();

    /// <summary>True when the member is there.</summary>
    public bool Has(string member) => Json.TryGetProperty(member, out _);

    /// <summary>A member, or <see langword="null"/> when it is absent.</summary>
    public JsonElement? Find(string member) => Json.TryGetProperty(member, out JsonElement value) ? value : null;

    /// <summary>A text member that must be there.</summary>
    public string Text(string member)
    {
        JsonElement value = Member(member);
        return value.ValueKind == JsonValueKind.String ? value.GetString()! : throw Wrong(member, value, "a text");
    }

    /// <summary>A number member that must be there: decimal, or 0x in a text.</summary>
    public ulong Number(string member) => Number(member, Member(member));

    /// <summary>A number member, or <paramref name="absent"/>.</summary>
    public ulong Number(string member, ulong absent) => Json.TryGetProperty(member, out JsonElement value) ? Number(member, value) : absent;

    /// <summary>A number member, or <see langword="null"/>.</summary>
    public ulong? OptionalNumber(string member) => Json.TryGetProperty(member, out JsonElement value) ? Number(member, value) : null;

    /// <summary>A number member in a range, or <paramref name="absent"/>.</summary>
    public int Integer(string member, int lowest, int highest, int absent)
    {
        if (!Json.TryGetProperty(member, out JsonElement value))
            return absent;
        ulong number = Number(member, value);
        return (long)number >= lowest && (long)number <= highest
            ? (int)(long)number
            : throw Wrong(member, value, string.Create(CultureInfo.InvariantCulture, $"a number from {lowest} to {highest}"));
    }

    /// <summary>A number member in a range that must be there.</summary>
    public int Integer(string member, int lowest, int highest)
    {
        _ = Member(member);
        return Integer(member, lowest, highest, 0);
    }

    /// <summary>An array member that must be there.</summary>
    public JsonElement Array(string member)
    {
        JsonElement value = Member(member);
        return value.ValueKind == JsonValueKind.Array ? value : throw Wrong(member, value, "an array");
    }

    /// <summary>The value of an element of <paramref name="member"/>: a number, or 0x in a text. Negative numbers come as their 64-bit pattern.</summary>
    public ulong Number(string member, JsonElement value)
    {
        if (value.ValueKind == JsonValueKind.Number)
        {
            if (value.TryGetInt64(out long signed))
                return unchecked((ulong)signed);
            if (value.TryGetUInt64(out ulong number))
                return number;
        }
        else if (value.ValueKind == JsonValueKind.String && TryHex(value.GetString()!, out ulong number))
        {
            return number;
        }

        throw Wrong(member, value, "a whole number or 0x...");
    }

    /// <summary>A key of an object in <paramref name="member"/> that is an address.</summary>
    public ulong Address(string member, JsonProperty property) =>
        TryHex(property.Name, out ulong address) ? address : throw Wrong($"{member}: the key {property.Name} is no address; allowed is 0x...");

    /// <summary>What to throw when the record cannot be understood.</summary>
    public UsageException Wrong(string reason) => new(string.Create(CultureInfo.InvariantCulture, $"{File}:{Line}: {reason}"));

    /// <summary>What to throw when a member has the wrong shape.</summary>
    public UsageException Wrong(string member, JsonElement value, string allowed)
    {
        string text = value.GetRawText();
        return Wrong($"'{member}' is {(text.Length > 40 ? text[..40] + "..." : text)}; allowed is {allowed}");
    }

    private JsonElement Member(string member) => Json.TryGetProperty(member, out JsonElement value) ? value : throw Wrong($"the member '{member}' is missing");

    private static bool TryHex(string text, out ulong value)
    {
        value = 0;
        return text.StartsWith("0x", StringComparison.Ordinal) && ulong.TryParse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out value);
    }
}
