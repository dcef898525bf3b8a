using System.Globalization;
using System.Linq;
using System.Text;
using Tdp.Harness.Scenarios;

namespace Tdp.Harness.Cli;

/// <summary>Names of stress operations as the command line writes them: <c>write-private</c> for <see cref="StressStep.WritePrivate"/>.</summary>
internal static class StressOperations
{
    private const int Million = 1_000_000;

    /// <summary>Every name.</summary>
    public static string Allowed => string.Join(", ", Enum.GetValues<StressStep>().Select(NameOf));

    /// <summary>The name of a step.</summary>
    public static string NameOf(StressStep step)
    {
        StringBuilder name = new();
        foreach (char c in step.ToString())
        {
            name.Append(char.IsAsciiLetterUpper(c) && name.Length > 0 ? "-" : string.Empty).Append(char.ToLowerInvariant(c));
        }

        return name.ToString();
    }

    /// <summary>Reads <c>all</c> or a list of names: at least one step of a vCPU and one of the host, since both kinds of threads need something to do.</summary>
    /// <param name="text">The text.</param>
    /// <param name="names">The names, or <see langword="null"/> for all.</param>
    public static bool TryParse(string text, out IReadOnlyList<string>? names)
    {
        names = null;
        if (text is "all")
        {
            return true;
        }

        string[] list = text.Split(',', StringSplitOptions.TrimEntries);
        HashSet<StressStep> steps = StepsOf(list);
        names = list;
        return steps.Count == list.Length && steps.Any(s => new StressOp(s, 0, 1).IsGuest) && steps.Any(s => !new StressOp(s, 0, 1).IsGuest);
    }

    /// <summary>The steps with these names; unknown names are left out.</summary>
    public static HashSet<StressStep> StepsOf(IReadOnlyList<string> names) => [.. Enum.GetValues<StressStep>().Where(s => names.Contains(NameOf(s), StringComparer.Ordinal))];

    /// <summary>Reads a percentage from 0% to 50% in millionths.</summary>
    public static bool TryPercent(string text, out int perMillion)
    {
        perMillion = 0;
        if (!text.EndsWith('%') || !decimal.TryParse(text.AsSpan(0, text.Length - 1), NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out decimal percent) || percent is < 0 or > 50)
        {
            return false;
        }

        perMillion = (int)(percent * (Million / 100));
        return true;
    }

    /// <summary>Writes what <see cref="TryPercent"/> reads.</summary>
    public static string Percent(int perMillion) => string.Create(CultureInfo.InvariantCulture, $"{perMillion / (Million / 100m):0.####}%");
}
