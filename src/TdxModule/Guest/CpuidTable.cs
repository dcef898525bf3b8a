namespace Tdp.Module;

/// <summary>
/// A TD's virtual CPUID: 64 (leaf, sub-leaf) pairs with values fixed at MNG.INIT (tdx-module 8.5). Immutable; the dynamic fields are added when a vCPU asks.
/// </summary>
internal sealed class CpuidTable
{
    private const uint NoSubleaf = uint.MaxValue;
    private const uint MaxBasic = 0x23;
    private const uint HypervisorBit = 1u << 31;
    private const uint Monitor = 1u << 3;

    // In lookup order (tdx-module 14, metadata CPUID_VALUES).
    private static readonly (uint Leaf, uint Subleaf)[] s_keys = BuildKeys();

    // What TD_PARAMS may set, by position in CPUID_CONFIG: "direct" bits are taken, "allowed" bits need the processor to have them.
    private static readonly Configurable[] s_configurable =
    [
        new(0x1, NoSubleaf, new(0x0FFF3FFF, 0x00FF0000, 0, 0), new(0, 0, 0x31044D88, 0xB8440000)),
        new(0x4, 0, new(0xFFFFC3FF, 0xFFFFF000, 0xFFFFFFFF, 0xFFFFFFFB), default),
        new(0x4, 1, new(0xFFFFC3FF, 0xFFFFF000, 0xFFFFFFFF, 0xFFFFFFFB), default),
        new(0x4, 2, new(0xFFFFC3FF, 0xFFFFF000, 0xFFFFFFFF, 0xFFFFFFFB), default),
        new(0x4, 3, new(0xFFFFC3FF, 0xFFFFF000, 0xFFFFFFFF, 0x00000007), default),
        new(0x7, 0, default, new(0, 0xDC2B9B18, 0x02417F65, 0x0005411C)),
        new(0x7, 1, default, new(0x00001D30, 0, 0, 0)),
        new(0xA, NoSubleaf, default, default),
        new(0x1C, NoSubleaf, default, new(0x000000FF, 0, 0, 0)),
        new(0x80000008, NoSubleaf, default, new(0, 0x00000200, 0, 0)),
        new(0x7, 2, default, new(0, 0, 0, 0x00000028)),
        new(0x23, 0, default, new(0x0000000F, 0, 0, 0)),
    ];

    private readonly CpuidValues[] _values = new CpuidValues[s_keys.Length];

    public CpuidTable(TdParameters parameters)
    {
        for (int i = 0; i < s_keys.Length; i++)
            _values[i] = Virtualize(s_keys[i].Leaf, s_keys[i].Subleaf, parameters);
    }

    /// <summary>Leaf 1 EAX, which a reset vCPU finds in RDX.</summary>
    public uint Signature => _values[0].Eax;

    /// <summary>Leaf 1 ECX bit 3: MONITOR and MWAIT run natively (profile point B06).</summary>
    public bool HasMonitor => (_values[0].Ecx & Monitor) != 0;

    /// <summary>Number of leaves that TD_PARAMS can configure.</summary>
    public static int ConfigurableCount => s_configurable.Length;

    /// <summary>SYS field CPUID_CONFIG_LEAVES: leaf 31:0, sub-leaf 63:32; all ones beyond the last.</summary>
    public static ulong ConfigurableKey(int index) =>
        index < s_configurable.Length ? s_configurable[index].Leaf | ((ulong)s_configurable[index].Subleaf << 32) : ulong.MaxValue;

    /// <summary>SYS field CPUID_CONFIG_VALUES: directly configurable bits, two elements per leaf.</summary>
    public static ulong ConfigurableBits(int index)
    {
        if (index / 2 >= s_configurable.Length)
            return 0;
        CpuidValues direct = s_configurable[index / 2].Direct;
        return (index & 1) == 0 ? direct.Eax | ((ulong)direct.Ebx << 32) : direct.Ecx | ((ulong)direct.Edx << 32);
    }

    public static bool IsLegalConfig(ReadOnlySpan<uint> config, out ulong failedLeaf)
    {
        for (int i = 0; i < s_configurable.Length; i++)
        {
            CpuidValues mask = s_configurable[i].Direct.Or(s_configurable[i].Allowed);
            CpuidValues asked = new(config[i * 4], config[(i * 4) + 1], config[(i * 4) + 2], config[(i * 4) + 3]);

            // Family, model and stepping are 0 for the processor's own, or in the list of allowed ones, which has the processor's own alone.
            bool foreignModel = i == 0 && (asked.Eax & 0x0FFF3FFF) != 0 && asked.Eax != NativeCpuid.Find(1, 0).Eax;
            if (asked.Exceeds(mask) || foreignModel)
            {
                failedLeaf = s_configurable[i].Leaf | ((ulong)s_configurable[i].Subleaf << 32);
                return false;
            }
        }

        failedLeaf = 0;
        return true;
    }

    /// <summary>The lookup index of a leaf, folded into its range first; -1 when the guest gets #VE for it (tdx-module 8.5 steps 1 and 2).</summary>
    public static int Find(uint leaf, uint subleaf)
    {
        // Hypervisor leaves are never folded.
        if (leaf >> 28 != 4 && (leaf is > MaxBasic and < 0x8000_0000 or > 0x8000_0008))
            leaf = MaxBasic;
        for (int i = 0; i < s_keys.Length; i++)
        {
            if (s_keys[i].Leaf == leaf && (s_keys[i].Subleaf == NoSubleaf || s_keys[i].Subleaf == subleaf))
                return IsFaulting(leaf) ? -1 : i;
        }

        return -1;
    }

    /// <summary>Number of lookup entries.</summary>
    public static int Count => s_keys.Length;

    /// <summary>A lookup entry: leaf, sub-leaf (all ones for none), and whether it faults.</summary>
    public static (uint Leaf, uint Subleaf, bool Faults) KeyAt(int index) => (s_keys[index].Leaf, s_keys[index].Subleaf, IsFaulting(s_keys[index].Leaf));

    /// <summary>Values of a lookup entry.</summary>
    public CpuidValues ValuesAt(int index) => _values[index];

    private static bool IsFaulting(uint leaf) => leaf is 0x6 or 0x1F or 0x8000_0006;

    private static (uint Leaf, uint Subleaf)[] BuildKeys()
    {
        var keys = new List<(uint, uint)>
        {
            (0x1, NoSubleaf), (0x4, 0), (0x4, 1), (0x4, 2), (0x4, 3), (0x7, 0), (0x7, 1), (0xA, NoSubleaf), (0x1C, NoSubleaf), (0x80000008, NoSubleaf),
            (0x0, NoSubleaf), (0x3, NoSubleaf), (0x4, 4), (0x6, NoSubleaf), (0x7, 2), (0x8, NoSubleaf),
        };
        for (uint subleaf = 0; subleaf <= 0x12; subleaf++)
            keys.Add((0xD, subleaf));
        foreach (uint leaf in (ReadOnlySpan<uint>)[0xE, 0x11, 0x12, 0x13])
            keys.Add((leaf, NoSubleaf));
        keys.AddRange([(0x14, 0), (0x14, 1), (0x15, NoSubleaf), (0x19, NoSubleaf), (0x1D, 0), (0x1D, 1), (0x1E, NoSubleaf)]);
        for (uint subleaf = 0; subleaf <= 5; subleaf++)
            keys.Add((0x1F, subleaf));
        keys.AddRange(
        [
            (0x20, NoSubleaf), (0x21, 0), (0x80000000, NoSubleaf), (0x80000001, NoSubleaf), (0x80000006, NoSubleaf), (0x80000007, NoSubleaf),
            (0x22, NoSubleaf), (0x23, 0), (0x23, 1), (0x23, 2), (0x23, 3), (0x5, NoSubleaf),
        ]);
        return [.. keys];
    }

    private static CpuidValues Virtualize(uint leaf, uint subleaf, TdParameters parameters)
    {
        CpuidValues native = NativeCpuid.Find(leaf, subleaf == NoSubleaf ? 0 : subleaf);
        for (int i = 0; i < s_configurable.Length; i++)
        {
            Configurable entry = s_configurable[i];
            if (entry.Leaf != leaf || entry.Subleaf != subleaf)
                continue;
            CpuidValues asked = new(
                parameters.CpuidConfig[i * 4],
                parameters.CpuidConfig[(i * 4) + 1],
                parameters.CpuidConfig[(i * 4) + 2],
                parameters.CpuidConfig[(i * 4) + 3]);
            CpuidValues configured = native.Without(entry.Direct.Or(entry.Allowed)).Or(asked.And(entry.Direct)).Or(asked.And(entry.Allowed).And(native));
            native = leaf == 1 && (asked.Eax & entry.Direct.Eax) == 0 ? configured with { Eax = native.Eax } : configured;
        }

        return leaf switch
        {
            0x1 => native with { Ecx = (native.Ecx | HypervisorBit) & ~(1u << 27), Ebx = native.Ebx & 0x00FF_FFFF },
            0x15 => new CpuidValues(1, (uint)parameters.TscFrequency, 25_000_000, 0),
            0x21 => new CpuidValues(0, 0x65746E49, 0x20202020, 0x5844546C),
            0x0 => native with { Eax = MaxBasic },
            0x80000000 => new CpuidValues(0x8000_0008, 0, 0, 0),
            0x3 or 0x8 or 0xE or 0x11 or 0x12 or 0x13 or 0x19 or 0x20 or 0x22 => default,
            0x4 when subleaf == 4 => default,
            0xA or 0x23 when (parameters.Attributes & TdParameters.Perfmon) == 0 => default,
            _ => native,
        };
    }

    private readonly record struct Configurable(uint Leaf, uint Subleaf, CpuidValues Direct, CpuidValues Allowed);
}

/// <summary>What CPUID returns.</summary>
/// <param name="Eax">EAX.</param>
/// <param name="Ebx">EBX.</param>
/// <param name="Ecx">ECX.</param>
/// <param name="Edx">EDX.</param>
internal readonly record struct CpuidValues(uint Eax, uint Ebx, uint Ecx, uint Edx)
{
    public CpuidValues Or(CpuidValues other) => new(Eax | other.Eax, Ebx | other.Ebx, Ecx | other.Ecx, Edx | other.Edx);

    public CpuidValues And(CpuidValues other) => new(Eax & other.Eax, Ebx & other.Ebx, Ecx & other.Ecx, Edx & other.Edx);

    public CpuidValues Without(CpuidValues other) => new(Eax & ~other.Eax, Ebx & ~other.Ebx, Ecx & ~other.Ecx, Edx & ~other.Edx);

    public bool Exceeds(CpuidValues mask) => this.Without(mask) != default;
}
