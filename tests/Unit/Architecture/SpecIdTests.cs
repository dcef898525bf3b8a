using System.Globalization;
using System.IO;
using System.Text.RegularExpressions;
using Xunit.Abstractions;

namespace Tdp.Tests.Unit.House;

/// <summary>Tests say which rule they show; the rules are numbered, and a number that does not exist is a typing error.</summary>
public sealed class SpecIdTests(ITestOutputHelper output)
{
    private static readonly Dictionary<string, int> Highest = new(StringComparer.Ordinal)
    {
        ["I"] = 82,
        ["T"] = 9,
        ["TM"] = 10,
        ["TC"] = 68,
        ["R"] = 35,
        ["G"] = 92,
        ["B"] = 13,
        ["D"] = 36,
        ["FP"] = 6,
        ["ZP"] = 8,
        ["DP"] = 513,
        ["X"] = 9,
        ["PF"] = 11,
    };

    [Fact]
    public void Every_rule_that_a_test_names_exists()
    {
        Assert.All(Named(), named => Assert.True(Exists(named.Id), $"{named.File} names '{named.Id}'"));
    }

    [Fact]
    public void The_rules_without_a_test_are_listed()
    {
        HashSet<string> named = [.. Named().Select(n => n.Id)];
        foreach ((string kind, int highest) in Highest.Where(h => h.Key is "I" or "TM" or "TC" or "R" or "G" or "B"))
        {
            string[] missing = [.. Enumerable.Range(1, highest).Select(n => kind + n.ToString("00", CultureInfo.InvariantCulture)).Where(id => !named.Contains(id))];
            output.WriteLine($"{kind}: {highest - missing.Length} of {highest} have a test; without one: {string.Join(' ', missing)}");
            Assert.True(missing.Length <= highest);
        }
    }

    // Traces are cited as "td-guest T1" and "tdp-mmu 15.3", steps as "TDH.MEM.TRACK step 4".
    private static bool Exists(string id)
        => Regex.IsMatch(id, @"^(td-guest|tdp-mmu|tdx-module|performance) ([TG])?\d+(\.\d+)*$|^TD[HG](\.[A-Z0-9]+)+( step \d+[a-z]?)?$|^inferred$", RegexOptions.None, TimeSpan.FromSeconds(1))
            || (Regex.Match(id, @"^([A-Z]+)(\d+)$", RegexOptions.None, TimeSpan.FromSeconds(1)) is { Success: true } match
                && Highest.TryGetValue(match.Groups[1].Value, out int highest)
                && int.Parse(match.Groups[2].Value, CultureInfo.InvariantCulture) <= highest);

    private static IEnumerable<(string File, string Id)> Named()
        => Directory.EnumerateFiles(Repository.Path("tests"), "*.cs", SearchOption.AllDirectories)
            .Where(f => !f.Contains("/obj/", StringComparison.Ordinal))
            .SelectMany(f => Regex.Matches(File.ReadAllText(f), @"Trait\(""spec"",\s*""([^""]*)""\)", RegexOptions.None, TimeSpan.FromSeconds(5)).Select(m => (Path.GetFileName(f), m.Groups[1].Value)));
}
