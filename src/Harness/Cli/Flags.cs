using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace Tdp.Harness.Cli;

/// <summary>
/// Makes options whose errors name the flag, the value and what is allowed. Every option has a twin in the environment (<c>--page-count</c> is <c>TDPMMU_PAGE_COUNT</c>)
/// that counts when the flag is not given, so that a test run can be steered without touching its command line.
/// </summary>
internal static class Flags
{
    private delegate bool Reader<T>(string text, out T value);

    /// <summary>A whole number in a range.</summary>
    public static Option<int> Number(string name, string description, int lowest, int highest, int otherwise)
        => Make(name, "N", description, string.Create(CultureInfo.InvariantCulture, $"a number from {lowest} to {highest}"), otherwise, (string text, out int value) =>
            int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value) && value >= lowest && value <= highest);

    /// <summary>A size in bytes in a range, a multiple of 2M.</summary>
    public static Option<ulong?> Size(string name, string description, ulong lowest, ulong highest)
        => Make(name, "SIZE", description, $"a size from {Quantities.Size(lowest)} to {Quantities.Size(highest)} in steps of 2M, such as 64M", default(ulong?), (string text, out ulong? value) =>
        {
            bool read = Quantities.TrySize(text, out ulong bytes) && bytes >= lowest && bytes <= highest && bytes % (2UL << 20) == 0;
            value = bytes;
            return read;
        });

    /// <summary>A 64-bit word, decimal or 0x.</summary>
    public static Option<ulong> Word(string name, string description, ulong otherwise)
        => Make(name, "N", description, "a 64-bit number, decimal or 0x...", otherwise, (string text, out ulong value) => Quantities.TryWord(text, out value));

    /// <summary>A duration, or not given.</summary>
    public static Option<TimeSpan?> Duration(string name, string description)
        => Make(name, "T", description, "a duration above 0, such as 500ms, 30s, 5m, 1h", default(TimeSpan?), (string text, out TimeSpan? value) =>
        {
            bool read = Quantities.TryDuration(text, out TimeSpan span) && span > TimeSpan.Zero;
            value = span;
            return read;
        });

    /// <summary>A count above 0, or not given.</summary>
    public static Option<long?> Count(string name, string description)
        => Make(name, "N", description, "a number above 0", default(long?), (string text, out long? value) =>
        {
            bool read = long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out long number) && number > 0;
            value = number;
            return read;
        });

    /// <summary>A number from 0 up, or not given.</summary>
    public static Option<long?> Whole(string name, string description)
        => Make(name, "N", description, "a number from 0 up", default(long?), (string text, out long? value) =>
        {
            bool read = long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out long number);
            value = number;
            return read;
        });

    /// <summary>One word out of a few, or not given.</summary>
    public static Option<string?> Choice(string name, string description, params string[] words)
        => Make(name, string.Join('|', words), description, string.Join(" or ", words), default(string?), (string text, out string? value) =>
        {
            value = text;
            return Array.IndexOf(words, text) >= 0;
        });

    /// <summary>A path that will be written.</summary>
    public static Option<string?> Path(string name, string description)
        => Make(name, "FILE", description, "a file name", default(string?), (string text, out string? value) =>
        {
            value = text;
            return text.Length > 0;
        });

    /// <summary>Any text that <paramref name="check"/> accepts.</summary>
    public static Option<string?> Text(string name, string helpName, string description, string allowed, Func<string, bool> check)
        => Make(name, helpName, description, allowed, default(string?), (string text, out string? value) =>
        {
            value = text;
            return check(text);
        });

    /// <summary>A switch.</summary>
    public static Option<bool> Switch(string name, string description)
    {
        return new Option<bool>(name) { Description = description, Arity = ArgumentArity.Zero, DefaultValueFactory = _ => FromEnvironment(name) is "1" or "true" };
    }

    private static Option<T> Make<T>(string name, string helpName, string description, string allowed, T otherwise, Reader<T> read)
    {
        T Default(ArgumentResult result)
        {
            if (FromEnvironment(name) is not { Length: > 0 } text)
            {
                return otherwise;
            }

            if (!read(text, out T fromEnvironment))
            {
                result.AddError($"{Variable(name)}={text}: allowed is {allowed}");
            }

            return fromEnvironment;
        }

        return new Option<T>(name)
        {
            Description = description,
            HelpName = helpName,
            Arity = ArgumentArity.ExactlyOne,
            DefaultValueFactory = Default,
            CustomParser = result =>
            {
                string text = result.Tokens.Count == 0 ? string.Empty : result.Tokens[^1].Value;
                if (!read(text, out T value))
                {
                    result.AddError($"{name} {text}: allowed is {allowed}");
                }

                return value;
            },
        };
    }

    private static string Variable(string flag) => "TDPMMU_" + flag.TrimStart('-').Replace('-', '_').ToUpperInvariant();

    private static string? FromEnvironment(string flag) => System.Environment.GetEnvironmentVariable(Variable(flag));
}
