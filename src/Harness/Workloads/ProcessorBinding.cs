using System.Runtime.InteropServices;

namespace Tdp.Harness.Workloads;

/// <summary>
/// Keeps a measured thread on a processor of its own. Two threads that the operating system has put on one processor are found and parted only after
/// milliseconds, which is as long as a whole round: the round then shows half the rate.
/// </summary>
internal static class ProcessorBinding
{
    private const int MaskBytes = 128;
    private static readonly int[] Allowed = FindAllowed();

    /// <summary>Binds the calling thread to the <paramref name="number"/>-th processor that the process may use. Does nothing when there are not as many.</summary>
    public static void Bind(int number)
    {
        if (number >= Allowed.Length)
        {
            return;
        }

        byte[] mask = new byte[MaskBytes];
        mask[Allowed[number] >> 3] = (byte)(1 << (Allowed[number] & 7));

        // Refused (a sandbox may): the thread stays where the system puts it, and the figures are only noisier.
        _ = sched_setaffinity(0, MaskBytes, mask);
    }

    private static int[] FindAllowed()
    {
        byte[] mask = new byte[MaskBytes];
        if (sched_getaffinity(0, MaskBytes, mask) < 0)
        {
            return [];
        }

        List<int> allowed = [];
        for (int cpu = 0; cpu < MaskBytes * 8; cpu++)
        {
            if ((mask[cpu >> 3] & (1 << (cpu & 7))) != 0)
            {
                allowed.Add(cpu);
            }
        }

        return [.. allowed];
    }

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    private static extern int sched_setaffinity(int pid, nint bytes, byte[] mask);

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    private static extern int sched_getaffinity(int pid, nint bytes, [Out] byte[] mask);
}
