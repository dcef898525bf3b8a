using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// The machine of these tests: one GiB for control pages, Secure EPT pages and small pages, and one GiB without any reserved area, because only such a one
/// can become a 1 GiB page. The PAMT lies in a third.
/// </summary>
internal static class SeptMachine
{
    private const ulong Gib = 1UL << 30;
    private const ulong Mib = 1UL << 20;

    /// <summary>First byte of the GiB that holds control pages and small pages.</summary>
    public const ulong Small = 4 * Gib;

    /// <summary>First byte of the GiB that nothing uses until a test does.</summary>
    public const ulong Whole = 5 * Gib;

    private const ulong Pamt = 6 * Gib;

    public static MachineDescription Describe() => new()
    {
        Name = "sept",
        LogicalProcessors = 4,
        Memory = [new HpaRange(Small, 3 * Gib)],
        Cmrs = [new HpaRange(Small, 3 * Gib)],
        Tdmrs = [Tdmr(Small, Pamt), Tdmr(Whole, Pamt + (16 * Mib))],
    };

    private static TdmrDescription Tdmr(ulong start, ulong pamt) => new(
        new HpaRange(start, Gib),
        new HpaRange(pamt + (6 * Mib), 0x1000),
        new HpaRange(pamt + (5 * Mib), 0x2000),
        new HpaRange(pamt, 4 * Mib),
        []);
}
