namespace Tdp.Platform;

/// <summary>A range of physical addresses.</summary>
/// <param name="Base">First byte.</param>
/// <param name="Size">Length in bytes.</param>
public readonly record struct HpaRange(ulong Base, ulong Size)
{
    /// <summary>One past the last byte.</summary>
    public ulong End => Base + Size;

    /// <summary>True when the byte lies in the range.</summary>
    public bool Contains(ulong address) => address >= Base && address - Base < Size;
}

/// <summary>A TDMR with the places of its three PAMT areas (tdx-module 2.3).</summary>
/// <param name="Range">Base and size, 1 GiB aligned.</param>
/// <param name="Pamt1G">Area of the 1 GiB entries.</param>
/// <param name="Pamt2M">Area of the 2 MiB entries.</param>
/// <param name="Pamt4K">Area of the 4 KiB entries.</param>
/// <param name="Reserved">Reserved areas, as absolute addresses, ascending.</param>
public sealed record TdmrDescription(HpaRange Range, HpaRange Pamt1G, HpaRange Pamt2M, HpaRange Pamt4K, IReadOnlyList<HpaRange> Reserved);

/// <summary>
/// Everything that distinguishes one simulated machine from another (decisions D26). Immutable; a <see cref="Machine"/> is built from it.
/// </summary>
public sealed record MachineDescription
{
    private const ulong Gib = 1UL << 30;
    private const ulong Mib = 1UL << 20;

    /// <summary>Name for reports.</summary>
    public required string Name { get; init; }

    /// <summary>Logical processors, 1..64 less those used by other actors.</summary>
    public required int LogicalProcessors { get; init; }

    /// <summary>Packages; logical processors are dealt out in equal consecutive runs.</summary>
    public int Packages { get; init; } = 2;

    /// <summary>MAXPHYADDR of the host. Above the alias bit, or whole-root zaps would miss the shared half (tdp-mmu 3.1).</summary>
    public int PhysicalAddressBits { get; init; } = 52;

    /// <summary>KeyID bits at the top of a physical address.</summary>
    public int HkidBits { get; init; } = 6;

    /// <summary>First private KeyID.</summary>
    public int FirstPrivateHkid { get; init; } = 16;

    /// <summary>One past the last private KeyID.</summary>
    public int EndPrivateHkid { get; init; } = 64;

    /// <summary>Memory that exists.</summary>
    public required IReadOnlyList<HpaRange> Memory { get; init; }

    /// <summary>Convertible memory ranges, ascending.</summary>
    public required IReadOnlyList<HpaRange> Cmrs { get; init; }

    /// <summary>TDMRs that the host will configure, ascending.</summary>
    public required IReadOnlyList<TdmrDescription> Tdmrs { get; init; }

    /// <summary>Where the module itself lives; never addressable by anybody else.</summary>
    public HpaRange Seamrr { get; init; } = new(0x3F_0000_0000, 32 * Mib);

    /// <summary>TSC rate.</summary>
    public ulong TscHz { get; init; } = 1_000_000_000;

    /// <summary>True on parts where a partial write to private memory poisons the line (tdp-mmu 9.4).</summary>
    public bool PartialWriteErratum { get; init; }

    /// <summary>Bit position of the KeyID in a physical address.</summary>
    public int HkidShift => PhysicalAddressBits - HkidBits;

    /// <summary>The package of a logical processor.</summary>
    public int PackageOf(int lp) => lp * Packages / LogicalProcessors;

    /// <summary>
    /// The default machine (decisions D22): two packages, one logical processor more than vCPUs, one CMR at 4 GiB, whole TDMRs of 1 GiB whose
    /// PAMT lies in a reserved area at their end, private KeyIDs [16, 64).
    /// </summary>
    /// <param name="vcpus">vCPUs that will run, 1..32.</param>
    /// <param name="memoryBytes">Memory that guests need in all; the machine has at least twice that and 2 GiB.</param>
    public static MachineDescription Default(int vcpus, ulong memoryBytes)
    {
        ulong gibs = Math.Clamp((memoryBytes * 9 / 4 / Gib) + 1, 2, 60);
        var tdmrs = new List<TdmrDescription>();
        for (ulong i = 0; i < gibs; i++)
            tdmrs.Add(SelfContainedTdmr((4 + i) * Gib));
        return new MachineDescription
        {
            Name = "default",
            LogicalProcessors = Math.Max(2, vcpus + 1),
            Memory = [new HpaRange(4 * Gib, gibs * Gib)],
            Cmrs = [new HpaRange(4 * Gib, gibs * Gib)],
            Tdmrs = tdmrs,
        };
    }

    /// <summary>The machine on which the real module's answers were recorded: 4 logical processors, two TDMRs, KeyIDs [32, 64), 2.5 GHz.</summary>
    public static MachineDescription Conformance() => new()
    {
        Name = "conformance",
        LogicalProcessors = 4,
        FirstPrivateHkid = 32,
        EndPrivateHkid = 64,
        Memory = [new HpaRange(0, 8 * Gib)],
        Cmrs = [new HpaRange(4 * Gib, 4 * Gib)],
        TscHz = 2_500_000_000,
        Tdmrs =
        [
            new TdmrDescription(
                new HpaRange(0x1_0000_0000, Gib),
                new HpaRange(0x1_4000_0000, 0x1000),
                new HpaRange(0x1_4010_0000, 0x2000),
                new HpaRange(0x1_4080_0000, 4 * Mib),
                []),
            new TdmrDescription(
                new HpaRange(0x1_8000_0000, 2 * Gib),
                new HpaRange(0x1_4100_0000, 0x1000),
                new HpaRange(0x1_4110_0000, 0x4000),
                new HpaRange(0x1_4200_0000, 8 * Mib),
                [new HpaRange(0x1_C000_0000, 2 * Mib)]),
        ],
    };

    /// <summary>A machine whose memory contains the frames of the worked traces of tdp-mmu 15 (host frame 0x7abcd).</summary>
    public static MachineDescription Golden15(int vcpus = 2) => new()
    {
        Name = "golden-15",
        LogicalProcessors = vcpus + 1,
        Memory = [new HpaRange(Gib, 2 * Gib)],
        Cmrs = [new HpaRange(Gib, 2 * Gib)],
        Tdmrs = [SelfContainedTdmr(Gib), SelfContainedTdmr(2 * Gib)],
    };

    // PAMT of 1 GiB: 4 MiB + 8 KiB + 4 KiB, in the last 8 MiB, which are reserved in the TDMR and still convertible memory.
    private static TdmrDescription SelfContainedTdmr(ulong start)
    {
        ulong area = start + Gib - (8 * Mib);
        return new TdmrDescription(
            new HpaRange(start, Gib),
            new HpaRange(area + (4 * Mib) + 0x2000, 0x1000),
            new HpaRange(area + (4 * Mib), 0x2000),
            new HpaRange(area, 4 * Mib),
            [new HpaRange(area, 8 * Mib)]);
    }
}
