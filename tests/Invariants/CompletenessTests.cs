using System.Globalization;
using System.Reflection;

namespace Tdp.Tests.Invariants;

/// <summary>The catalogue has every number, with the tags of the specification, and every number has a test that breaks it.</summary>
public sealed class CompletenessTests
{
    // The tags as the list of invariants has them; typed from it, not from the catalogue.
    private const string Always = "I01 I02 I03 I04 I05 I06 I07 I08 I09 I10 I11 I12 I14 I15 I16 I17 I18 I22 I23 I24 I25 I26 I27 I28 I29 I31 I32 I33 I34 I35 I37 I38 I39 I40 I41 I42 I45 I46 I48 I50 I51 I52 I53 I54 I55 I63 I64 I65 I66 I67 I68 I69 I70 I72 I73 I78 I80 I81 I82";
    private const string Quiescent = "I13 I19 I20 I21 I49";
    private const string AfterOperation = "I30 I36 I43 I44 I47 I56 I57 I58 I59 I60 I61 I62 I71 I79";
    private const string Liveness = "I74 I75 I76 I77";

    // Those that the acting thread can judge alone.
    private const string ActingThread = "I14 I15 I18 I23 I24 I25 I26 I27 I28 I29 I69 I70 I80 I81";

    // After which kind of event an explored run judges them.
    private static readonly Dictionary<InvariantBinding, string> Bindings = new()
    {
        [InvariantBinding.Entry] = "I01 I03 I04 I05 I06 I07 I08 I12 I14 I15 I16 I17 I18 I46 I53 I54 I63 I66",
        [InvariantBinding.Table] = "I02 I09 I10 I45 I48",
        [InvariantBinding.Seamcall] = "I22 I23 I24 I26 I27 I28 I29 I31 I32 I33 I35 I36 I69 I70 I72 I80",
        [InvariantBinding.Root] = "I25 I37 I38 I39 I40 I41 I42 I77",
        [InvariantBinding.Vcpu] = "I43 I64 I73",
        [InvariantBinding.FaultEnd] = "I52 I67 I68 I78",
        [InvariantBinding.HandOver] = "I34 I57 I82",
        [InvariantBinding.Invalidation] = "I55 I65",
        [InvariantBinding.Everywhere] = "I11 I81",
    };

    private static IEnumerable<string> Numbers => Enumerable.Range(1, 82).Select(n => "I" + n.ToString("00", CultureInfo.InvariantCulture));

    [Fact]
    public void Every_number_is_in_the_catalogue_once_and_in_order()
        => Assert.Equal(Numbers, Catalogue.All.Select(i => i.Id).Where(id => id.StartsWith('I')));

    [Theory]
    [InlineData(InvariantTag.Always, Always)]
    [InlineData(InvariantTag.Quiescent, Quiescent)]
    [InlineData(InvariantTag.AfterOperation, AfterOperation)]
    [InlineData(InvariantTag.Liveness, Liveness)]
    public void Every_rule_has_the_tag_of_the_specification(InvariantTag tag, string rules)
        => Assert.Equal(rules.Split(' '), Catalogue.All.Where(i => i.Tag == tag && i.Id.StartsWith('I')).Select(i => i.Id));

    [Fact]
    public void Every_rule_is_bound_to_the_events_of_the_decisions()
    {
        foreach ((InvariantBinding binding, string rules) in Bindings)
        {
            Assert.Equal(rules.Split(' '), Catalogue.All.Where(i => rules.Contains(i.Id, StringComparison.Ordinal)).Where(i => i.Binding == binding || (i.Id is "I47" && binding is InvariantBinding.Table)).Select(i => i.Id));
        }
    }

    [Fact]
    public void What_the_acting_thread_can_judge_alone_is_judged_by_it()
        => Assert.All(ActingThread.Split(' '), id => Assert.True(Catalogue.Get(id).IsActingThread, id));

    [Fact]
    public void Every_rule_says_who_judges_it_in_a_free_run_or_why_nobody_can()
        => Assert.All(Catalogue.All, rule => Assert.True(rule.FreeRun != FreeRunJudge.None || rule.Note.Length > 0, rule.Id));

    [Fact]
    public void Every_number_has_a_test_that_breaks_it()
    {
        MethodInfo[] tests = [.. typeof(CompletenessTests).Assembly.GetTypes().SelectMany(t => t.GetMethods(BindingFlags.Instance | BindingFlags.Public)).Where(m => m.GetCustomAttributes<BreaksAttribute>().Any())];
        Assert.All(tests, t => Assert.True(t.GetCustomAttribute<FactAttribute>() is { Skip: null }, $"{t.Name} is no test that runs"));
        Assert.All(tests, t => Assert.Subset(Specs(t), t.GetCustomAttributes<BreaksAttribute>().Select(b => b.Rule).ToHashSet(StringComparer.Ordinal)));
        HashSet<string> broken = [.. tests.SelectMany(t => t.GetCustomAttributes<BreaksAttribute>()).Select(b => b.Rule)];
        Assert.Equal([], Numbers.Where(n => !broken.Contains(n)));
        Assert.Equal([], broken.Where(b => !Catalogue.All.Any(i => i.Id == b)));
    }

    private static HashSet<string> Specs(MethodInfo test)
        => [.. test.GetCustomAttributesData().Where(a => a.AttributeType == typeof(TraitAttribute)).Select(a => (string)a.ConstructorArguments[1].Value!)];
}
