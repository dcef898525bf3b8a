using Tdp.Harness.Scenarios;

namespace Tdp.Tests.Unit.Harness;

/// <summary>Scenarios are executed as written: steps end as the specification says, requirements judge, and every execution of a world is like the first.</summary>
public sealed class ScenarioRunTests
{
    [Fact]
    public void A_conversion_and_a_fault_leave_the_page_with_one_owner_every_time()
    {
        using ScenarioWorld world = new(Scenario.Parse("""
            tdpmmu-scenario 1
            scenario fault-vs-convert
            init map gfn=0x200 accepted
            actor A vcpu0 write gfn=0x200
            actor B host convert gfn=0x200 to=shared
            after vcpu0 read gfn=0x200
            require B = ok
            require A = ok|memory-fault
            require after = memory-fault
            require mirror gfn=0x200 = none and sept gfn=0x200 = FREE and attribute gfn=0x200 = shared
            require calls MEM.PAGE.REMOVE SUCCESS >= 1
            """));
        for (int i = 0; i < 50; i++)
        {
            ScenarioVerdict verdict = world.Execute();
            Assert.Empty(verdict.Failures);
        }
    }

    [Fact]
    public void A_requirement_that_does_not_hold_fails_with_its_line_and_what_was_found()
    {
        using ScenarioWorld world = new(Scenario.Parse("""
            tdpmmu-scenario 1
            scenario wrong
            actor A vcpu0 write gfn=0x200
            require A = memory-fault or mirror gfn=0x200 = none
            """));
        ScenarioFailure failure = Assert.Single(world.Execute().Failures);
        Assert.Equal("require", failure.Rule);
        Assert.Equal(4, failure.Line);
        Assert.Contains("found ok, leaf at 0x200", failure.Text, StringComparison.Ordinal);
    }
}
