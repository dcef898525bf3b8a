namespace Tdp.Harness.Scenarios;

/// <summary>Runs one stress program from beginning to end in a world of its own: every thread does its steps, then everything is checked at rest and after teardown.</summary>
public static class StressRun
{
    /// <summary>Runs a program.</summary>
    /// <param name="program">What each thread does. Host threads may be missing, vCPUs may not.</param>
    /// <param name="pages">Pages of the world's main slot.</param>
    /// <param name="seed">The master seed.</param>
    /// <param name="tlbMode">TLB retention.</param>
    /// <param name="busyPerMillion">So many of a million calls that may answer BUSY do so without a reason.</param>
    /// <returns>What was found wrong: empty for a correct host.</returns>
    public static IReadOnlyList<Finding> Execute(StressProgram program, int pages, ulong seed = 1, TlbMode tlbMode = TlbMode.Precise, int busyPerMillion = 0)
    {
        ArgumentNullException.ThrowIfNull(program);
        using StressWorld world = new(program.Vcpus.Count, program.Hosts.Count, pages, seed, tlbMode, busyPerMillion);
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
