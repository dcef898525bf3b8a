using System.Reflection;
using System.Text.RegularExpressions;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>The checklist is whole: every line and every invariant of tdx-module 10 has its own test, which bears its number.</summary>
public sealed class ChecklistCoverageTests
{
    private static readonly IReadOnlyList<MethodInfo> s_tests =
    [
        .. typeof(ChecklistCoverageTests).Assembly.GetTypes()
            .SelectMany(type => type.GetMethods(BindingFlags.Public | BindingFlags.Instance | BindingFlags.DeclaredOnly))
            .Where(method => method.IsDefined(typeof(FactAttribute), inherit: true)),
    ];

    [Fact]
    public void Every_line_and_every_invariant_has_one_test_with_its_number()
    {
        string[] wanted = [.. Enumerable.Range(1, 68).Select(number => $"TC{number:00}"), .. Enumerable.Range(1, 10).Select(number => $"TM{number:00}")];
        Dictionary<string, int> found = s_tests
            .Select(test => Regex.Match(test.Name, "^(T[CM][0-9]{2})_"))
            .Where(match => match.Success)
            .GroupBy(match => match.Groups[1].Value)
            .ToDictionary(group => group.Key, group => group.Count());
        Assert.Equal([], wanted.Where(number => found.GetValueOrDefault(number) != 1));
        Assert.Equal([], found.Keys.Except(wanted));
    }

    [Fact]
    public void A_test_with_a_number_has_it_as_its_trait_too_and_is_not_skipped()
    {
        foreach (MethodInfo test in s_tests.Where(test => Regex.IsMatch(test.Name, "^T[CM][0-9]{2}_")))
        {
            string[] traits = [.. test.GetCustomAttributesData()
                .Where(data => data.AttributeType == typeof(TraitAttribute) && (string?)data.ConstructorArguments[0].Value == "spec")
                .Select(data => (string)data.ConstructorArguments[1].Value!)];
            Assert.True(traits.Contains(test.Name[..4]), $"{test.Name} lacks its trait");
            Assert.Null(test.GetCustomAttribute<FactAttribute>()!.Skip);
        }
    }
}
