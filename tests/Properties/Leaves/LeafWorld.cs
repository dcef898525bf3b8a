using Tdp.Platform;

namespace Tdp.Tests.Properties.Leaves;

/// <summary>
/// Where everything lies in the small world of the model test: one GiB of TD memory whose first megabytes are used, four 4 KiB and two 2 MiB guest
/// addresses, six small and two large pages, two vCPUs, three processors of which the last never enters.
/// </summary>
internal static class LeafWorld
{
    public const ulong Gib = 1UL << 30;
    public const ulong Small2M = 0x20_0000;

    /// <summary>First byte of the only TDMR.</summary>
    public const ulong Start = 4 * Gib;

    /// <summary>The TD's root page; its other control pages follow.</summary>
    public const ulong Tdr = Start;

    public const ulong FirstControl = Start + 0x1000;
    public const ulong FirstVcpu = Start + 0x10_000;
    public const ulong VcpuStride = 0x10_000;
    public const ulong Tables = Start + 0x80_000;
    public const ulong HostPages = Start + 0x10_0000;
    public const ulong SmallPool = Start + Small2M;
    public const ulong LargePool = Start + (2 * Small2M);
    public const ulong End = Start + (4 * Small2M);
    public const ulong Pamt = Start + Gib;
    public const ulong NoTdmr = Start + Gib + 0x4000;

    public const ulong Region = 0x4000_0000;
    public const int Lps = 3;
    public const int HostLp = 2;
    public const int VcpuCount = 2;
    public const int SmallPages = 6;
    public const int Hkid = 17;
    public const ulong Source = HostPages + 0x8000;
    public const ulong SourceWord = 0x5EED_5EED;

    /// <summary>Guest addresses of 4 KiB that steps name: two in each of two neighbouring 2 MiB ranges; the last lies where no table is.</summary>
    public static readonly ulong[] Gpas = [Region, Region + 0x1000, Region + Small2M, Region + Small2M + 0x1F_F000, 0x80_0000_3000];

    /// <summary>Pages that steps offer: small ones, the two large ones, one inside each large one, the TDR, one outside any TDMR, a misaligned one.</summary>
    public static readonly ulong[] Pages =
    [
        SmallPool, SmallPool + 0x1000, SmallPool + 0x2000, SmallPool + 0x3000, SmallPool + 0x4000, SmallPool + 0x5000,
        LargePool, LargePool + Small2M, LargePool + 0x1000, LargePool + Small2M + 0x1F_F000, Tdr, NoTdmr, SmallPool + 8,
    ];

    /// <summary>Pages whose first word is watched.</summary>
    public static readonly ulong[] Watched =
    [
        SmallPool, SmallPool + 0x1000, SmallPool + 0x2000, SmallPool + 0x3000, SmallPool + 0x4000, SmallPool + 0x5000,
        LargePool, LargePool + 0x1000, LargePool + 0x1F_F000, LargePool + Small2M, LargePool + Small2M + 0x1000, LargePool + Small2M + 0x1F_F000,
    ];

    public static ulong Size(int level) => 4096UL << (9 * level);

    public static ulong Align(ulong gpa, int level) => gpa & ~(Size(level) - 1);

    public static ulong Vcpu(int index) => FirstVcpu + ((ulong)index * VcpuStride);

    public static MachineDescription Machine() => new()
    {
        Name = "leaves",
        LogicalProcessors = Lps,
        Memory = [new HpaRange(Start, 2 * Gib)],
        Cmrs = [new HpaRange(Start, 2 * Gib)],
        Tdmrs =
        [
            new TdmrDescription(
                new HpaRange(Start, Gib),
                new HpaRange(Pamt + 0x60_0000, 0x1000),
                new HpaRange(Pamt + 0x50_0000, 0x2000),
                new HpaRange(Pamt + 0x80_0000, 0x40_0000),
                []),
        ],
    };
}
