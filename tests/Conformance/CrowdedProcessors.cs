using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Conformance;

/// <summary>
/// Makes every call on a machine take its locks one by one in the documented order: the processors' hazard slots have no room for taking them together,
/// which is what a free run does otherwise. Both ways must give the same answers.
/// </summary>
internal static class CrowdedProcessors
{
    private const int Many = 14;

    /// <summary>For the machine's whole life.</summary>
    /// <param name="machine">The machine; nobody runs on it.</param>
    public static WordBlock Crowd(Machine machine)
    {
        var locks = new WordBlock(0, separateLines: false, "test");
        locks[0] = TryLock.Biased;
        foreach (LogicalProcessor lp in machine.Processors)
        {
            for (int i = 0; i < Many; i++)
                Assert.Equal(LockAnswer.Taken, new TryLock(ref locks[0]).TryShared(lp.Hazards, LockSide.Host, out _));
        }

        return locks;
    }
}
