using System.Globalization;

namespace Tdp.Harness.Cli;

/// <summary>Reads and writes the numbers of the command line: sizes with K, M, G (powers of 1024), durations with ms, s, m, h, and words in decimal or 0x form.</summary>
internal static class Quantities
{
    /// <summary>Reads a size in bytes, such as <c>64M</c>.</summary>
    public static bool TrySize(string text, out ulong bytes)
    {
        bytes = 0;
        if (text.Length == 0)
        {
            return false;
        }

        int shift = char.ToUpperInvariant(text[^1]) switch { 'K' => 10, 'M' => 20, 'G' => 30, _ => 0 };
        ReadOnlySpan<char> digits = shift == 0 ? text : text.AsSpan(0, text.Length - 1);
        if (!ulong.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out ulong number) || number > ulong.MaxValue >> shift)
        {
            return false;
        }

        bytes = number << shift;
        return true;
    }

    /// <summary>Reads a duration, such as <c>500ms</c>, <c>30s</c>, <c>5m</c>, <c>1h</c>.</summary>
    public static bool TryDuration(string text, out TimeSpan duration)
    {
        (string unit, double seconds) = text switch
        {
            _ when text.EndsWith("ms", StringComparison.Ordinal) => ("ms", 0.001),
            _ when text.EndsWith('s') => ("s", 1.0),
            _ when text.EndsWith('m') => ("m", 60.0),
            _ when text.EndsWith('h') => ("h", 3600.0),
            _ => (string.Empty, 0.0),
        };
        duration = TimeSpan.Zero;
        if (unit.Length == 0 || !uint.TryParse(text.AsSpan(0, text.Length - unit.Length), NumberStyles.None, CultureInfo.InvariantCulture, out uint number))
        {
            return false;
        }

        duration = TimeSpan.FromSeconds(number * seconds);
        return true;
    }

    /// <summary>Reads a 64-bit word, decimal or with 0x.</summary>
    public static bool TryWord(string text, out ulong value)
        => text.StartsWith("0x", StringComparison.OrdinalIgnoreCase)
            ? ulong.TryParse(text.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out value)
            : ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value);

    /// <summary>Writes a size the way <see cref="TrySize"/> reads it, with the largest unit that divides it.</summary>
    public static string Size(ulong bytes)
    {
        (int shift, string unit) = bytes switch
        {
            0 => (0, string.Empty),
            _ when (bytes & ((1UL << 30) - 1)) == 0 => (30, "G"),
            _ when (bytes & ((1UL << 20) - 1)) == 0 => (20, "M"),
            _ when (bytes & ((1UL << 10) - 1)) == 0 => (10, "K"),
            _ => (0, string.Empty),
        };
        return string.Create(CultureInfo.InvariantCulture, $"{bytes >> shift}{unit}");
    }

    /// <summary>Writes a duration the way <see cref="TryDuration"/> reads it.</summary>
    public static string Duration(TimeSpan duration)
    {
        long ms = (long)duration.TotalMilliseconds;
        return ms % 1000 != 0 ? string.Create(CultureInfo.InvariantCulture, $"{ms}ms") : string.Create(CultureInfo.InvariantCulture, $"{ms / 1000}s");
    }
}
