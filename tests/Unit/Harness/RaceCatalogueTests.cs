using System.Globalization;
using System.IO;
using Tdp.Harness.Patching;
using Tdp.Harness.ScenarioFiles;
using Tdp.Harness.Scenarios;
using Tdp.Tests.Unit.House;

namespace Tdp.Tests.Unit.Harness;

/// <summary>The race catalogue (tdp-mmu 11): R01 to R35, each a scenario file that runs on real threads and ends as required. Those that take a patch run on a patched build.</summary>
public sealed class RaceCatalogueTests
{
    /// <summary>Scenarios that run on the sources as they are.</summary>
    public static TheoryData<string> Unpatched() => [.. BuiltInScenarios.Names.Where(n => Parse(n).Patch.Length == 0)];

    /// <summary>Scenarios that inject a fault by a patch.</summary>
    public static TheoryData<string> Patched() => [.. BuiltInScenarios.Names.Where(n => Parse(n).Patch.Length > 0)];

    [Fact]
    [Trait("spec", "tdp-mmu 11")]
    public void All_35_races_have_a_file_that_names_its_race_and_the_rules_at_stake()
    {
        string[] expected = [.. Enumerable.Range(1, 35).Select(i => string.Create(CultureInfo.InvariantCulture, $"R{i:00}"))];
        Assert.Equal(expected, BuiltInScenarios.Names);
        Assert.All(BuiltInScenarios.Names, name =>
        {
            Scenario scenario = Parse(name);
            Assert.Equal(name, scenario.Name);
            Assert.Equal(name, scenario.Spec[0]);
            Assert.NotEmpty(scenario.About);
            Assert.NotEmpty(scenario.Requirements);
            Assert.NotEmpty(scenario.Actors.Concat(scenario.After.Count > 0 ? [new ScenarioActor("after", 1, -1, [])] : []));
        });
    }

    [Fact]
    public void The_files_in_the_folder_are_those_inside_the_tool()
    {
        string folder = Repository.Path("src/Harness/Scenarios");
        Assert.Equal(Directory.GetFiles(folder, "*.scenario").Select(f => Path.GetFileNameWithoutExtension(f)).Order(StringComparer.Ordinal), BuiltInScenarios.Names);
        Assert.Equal(Directory.GetFiles(folder, "*.patch").Select(f => Path.GetFileNameWithoutExtension(f)).Order(StringComparer.Ordinal), BuiltInScenarios.Patches);
    }

    [Theory]
    [MemberData(nameof(Unpatched))]
    [Trait("spec", "tdp-mmu 11")]
    [Trait("spec", "R01")]
    [Trait("spec", "R02")]
    [Trait("spec", "R03")]
    [Trait("spec", "R04")]
    [Trait("spec", "R05")]
    [Trait("spec", "R06")]
    [Trait("spec", "R07")]
    [Trait("spec", "R08")]
    [Trait("spec", "R09")]
    [Trait("spec", "R10")]
    [Trait("spec", "R11")]
    [Trait("spec", "R12")]
    [Trait("spec", "R13")]
    [Trait("spec", "R14")]
    [Trait("spec", "R15")]
    [Trait("spec", "R16")]
    [Trait("spec", "R17")]
    [Trait("spec", "R18")]
    [Trait("spec", "R19")]
    [Trait("spec", "R20")]
    [Trait("spec", "R24")]
    [Trait("spec", "R25")]
    [Trait("spec", "R26")]
    [Trait("spec", "R27")]
    [Trait("spec", "R28")]
    [Trait("spec", "R29")]
    [Trait("spec", "R30")]
    [Trait("spec", "R31")]
    [Trait("spec", "R32")]
    [Trait("spec", "R33")]
    [Trait("spec", "R35")]
    public void A_race_ends_as_required(string name)
    {
        ScenarioReport report = ScenarioRuns.Execute(Parse(name), seed: 1, repeat: 30);
        Assert.True(report.Failed == 0, $"{report.Failed} of {report.Runs}: {string.Join("; ", report.Failures)}; {string.Join("; ", report.Results)}");
        Assert.Equal(30, report.Runs);
    }

    [Theory]
    [MemberData(nameof(Patched))]
    [Trait("spec", "R21")]
    [Trait("spec", "R22")]
    [Trait("spec", "R23")]
    [Trait("spec", "R34")]
    public void An_injected_fault_has_the_consequence_that_is_required(string name)
    {
        Scenario scenario = Parse(name);
        UnifiedDiff patch = UnifiedDiff.Parse(BuiltInScenarios.Patch(scenario.Patch)!, scenario.Patch + ".patch");
        ScenarioReport report = PatchedScenario.Execute(BuiltInScenarios.Text(name)!, name, [patch], seed: 1, repeat: 5);
        Assert.True(report.Failed == 0, $"{report.Failed} of {report.Runs}: {string.Join("; ", report.Failures)}; {string.Join("; ", report.Results)}");
        Assert.Equal(5, report.Runs);
    }

    [Theory]
    [MemberData(nameof(Patched))]
    public void Without_its_patch_an_injected_fault_does_not_show(string name)
    {
        // The same steps on the sources as they are: the requirements ask for a refusal that does not come, or allow the clean outcome, too. Never another finding.
        ScenarioReport report = ScenarioRuns.Execute(Parse(name), seed: 1, repeat: 5);
        Assert.All(report.Failures, f => Assert.Equal("require", f.Rule));
    }

    [Fact]
    public void A_requirement_of_each_race_can_fail()
    {
        // A catalogue that could not fail would prove nothing: with the first requirement turned round, no execution is clean.
        foreach (string name in BuiltInScenarios.Names.Where(n => Parse(n).Patch.Length == 0))
        {
            Scenario scenario = Parse(name);
            Scenario turned = scenario with { Requirements = [Turned(scenario.Requirements[0])] };
            ScenarioReport report = ScenarioRuns.Execute(turned, seed: 1, repeat: 1);
            Assert.True(report.Failed == 1, $"{name}: {turned.Requirements[0]} holds, too");
        }
    }

    // not (a and b or c) = (not a or not b) and not c
    private static Requirement Turned(Requirement requirement)
    {
        IEnumerable<IEnumerable<Clause>> products = [[]];
        foreach (IReadOnlyList<Clause> alternative in requirement.Alternatives)
        {
            products = products.SelectMany(_ => alternative, (chosen, clause) => chosen.Append(Turned(clause)));
        }

        return new Requirement([.. products.Select(p => (IReadOnlyList<Clause>)[.. p])], requirement.Line);
    }

    private static Clause Turned(Clause clause) => clause with
    {
        Comparison = clause.Comparison switch
        {
            Comparison.Equal => Comparison.NotEqual,
            Comparison.NotEqual => Comparison.Equal,
            Comparison.Less => Comparison.AtLeast,
            Comparison.AtMost => Comparison.Greater,
            Comparison.Greater => Comparison.AtMost,
            _ => Comparison.Less,
        },
    };

    private static Scenario Parse(string name) => Scenario.Parse(BuiltInScenarios.Text(name)!, name);
}
