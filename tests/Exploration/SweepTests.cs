namespace Tdp.Tests.Exploration;

/// <summary>The sweep against the counts of the design's benchmark model, which were computed independently.</summary>
public sealed class SweepTests
{
    [Theory]
    [InlineData("N2", 0, 4, 250)]
    [InlineData("N3", 0, 1, 68)]
    [InlineData("W2", 0, 4, 180)]
    [InlineData("W3", 0, 0, 1)]
    [Trait("spec", "X2")]
    public void Sweeping_runs_every_schedule_with_so_many_preemptions_once(string bug, int none, int one, int two)
    {
        int[] schedules = [6, 348, 14_370];
        int[] buggy = [none, one, two];
        using var engine = new Engine(M60.Of(bug), new EngineOptions { AllPoints = true, Repetitions = 0 });
        for (int c = 0; c < 3; c++)
        {
            long before = engine.Executions;
            int failures = 0;
            bool isDone = engine.Run(new Sweep(c), 1, long.MaxValue, end =>
            {
                failures += end == ExecutionEnd.Violated ? 1 : 0;
                return true;
            });
            Assert.True(isDone);
            Assert.Equal(schedules[c], engine.Executions - before);
            Assert.Equal(buggy[c], failures);
        }
    }

    [Fact]
    public void A_random_walk_finds_a_lost_update_and_repeats_it()
    {
        using var engine = new Engine(Litmus.Of("lost update", w =>
        {
            SharedCell<long> n = w.Cell("n");
            w.Actor("a", _ => n.Write(n.Read() + 1));
            w.Actor("b", _ => n.Write(n.Read() + 1));
            w.Check(() => n.Peek() == 2 ? null : $"n = {n.Peek()}");
        }));
        int failures = 0;
        engine.Run(new RandomWalk(), 1, 100, end =>
        {
            failures += end == ExecutionEnd.Violated ? 1 : 0;
            return true;
        });
        Assert.InRange(failures, 1, 99);
        Assert.True(engine.Repetitions >= failures);
    }
}
