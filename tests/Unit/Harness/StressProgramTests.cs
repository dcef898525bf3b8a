using Tdp.Harness.Scenarios;

namespace Tdp.Tests.Unit.Harness;

/// <summary>Stress programs: generation from a seed, text form, shrinking.</summary>
public sealed class StressProgramTests
{
    [Fact]
    public void The_same_seed_gives_the_same_program_and_another_seed_another()
    {
        string first = StressGenerator.Program(7, 2, 2, 50, 1024).ToString();
        Assert.Equal(first, StressGenerator.Program(7, 2, 2, 50, 1024).ToString());
        Assert.NotEqual(first, StressGenerator.Program(8, 2, 2, 50, 1024).ToString());
    }

    [Fact]
    public void Every_kind_of_step_appears_and_every_range_lies_in_the_world()
    {
        StressProgram program = StressGenerator.Program(1, 2, 2, 2000, 1536);
        StressOp[] ops = [.. program.Vcpus.Concat(program.Hosts).SelectMany(t => t)];
        Assert.Equal(Enum.GetValues<StressStep>().Order(), ops.Select(o => o.Step).Distinct().Order());
        Assert.All(ops, op => Assert.True(op.Count >= 1 && op.Page >= 0 && op.Page + op.Count <= 1536, op.ToString()));
        Assert.All(program.Vcpus.SelectMany(t => t), op => Assert.True(op.IsGuest));
        Assert.All(program.Hosts.SelectMany(t => t), op => Assert.False(op.IsGuest));
    }

    [Fact]
    public void The_text_form_reads_back()
    {
        StressProgram program = StressGenerator.Program(3, 3, 2, 20, 512);
        Assert.Equal(program.ToString(), StressProgram.Parse(program.ToString()).ToString());
    }

    [Theory]
    [InlineData("vcpu0: PunchHole(0+1)")]
    [InlineData("host0: WritePrivate(0+1)")]
    [InlineData("vcpu0: WritePrivate(0+0)")]
    [InlineData("somebody: WritePrivate(0+1)")]
    public void A_step_on_the_wrong_kind_of_thread_is_refused(string text) => Assert.Throws<FormatException>(() => StressProgram.Parse(text));

    [Fact]
    public void Shrinking_reaches_the_smallest_program_that_still_contains_the_culprit()
    {
        static bool Fails(StressProgram p) => p.Hosts.Any(t => t.Any(o => o.Step is StressStep.PunchHole)) && p.Vcpus.Any(t => t.Any(o => o.Step is StressStep.MapShared && o.Count > 0));
        StressProgram program = StressGenerator.Program(5, 2, 2, 200, 1024);
        Assert.True(Fails(program));
        while (program.Shrink().FirstOrDefault(Fails) is { } smaller)
        {
            program = smaller;
        }

        Assert.Equal(2, program.Length);
        Assert.Equal([StressStep.MapShared, StressStep.PunchHole], program.Vcpus.Concat(program.Hosts).SelectMany(t => t).Select(o => o.Step));
        Assert.All(program.Vcpus.Concat(program.Hosts).SelectMany(t => t), op => Assert.Equal((0, 1), (op.Page, op.Count)));
    }
}
