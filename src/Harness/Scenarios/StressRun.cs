namespace Tdp.Harness.Scenarios;

/// <summary>Runs one stress program from beginning to end in a world of its own: every thread does its steps, then everything is checked at rest and after teardown.</summary>
public static class StressRun
{
    /// <summary>Runs a program.</summary>
    /// <param name="program">What each thread does. Host threads may be missing, vCPUs may not.</param>
    /// <param name="pages">Pages of the world's main slot.</param>
    /// <param name="seed">The master seed.</param>
    /// <param name="tlbMode">TLB retention.</param>
    /// <param name="busyOneIn">One in so many calls that may answer BUSY does so without a reason; 0 for none.</param>
    /// <returns>What was found wrong: empty for a correct host.</returns>
    public static IReadOnlyList<Finding> Execute(StressProgram program, int pages, ulong seed = 1, TlbMode tlbMode = TlbMode.Precise, int busyOneIn = 0)
    {
        ArgumentNullException.ThrowIfNull(program);
        using StressWorld world = new(program.Vcpus.Count, program.Hosts.Count, pages, seed, tlbMode, busyOneIn);
        for (int i = 0; i < world.Threads; i++)
        {
            int thread = i;
            IReadOnlyList<StressOp> ops = i < world.Vcpus ? program.Vcpus[i] : program.Hosts[i - world.Vcpus];
            world.ActorOf(i).Start(_ => world.Perform(thread, ops));
        }

        for (int i = 0; i < world.Threads; i++)
        {
            world.ActorOf(i).Join();
        }

        world.CheckAtRest();
        world.TearDown();
        return world.Findings.All;
    }
}
