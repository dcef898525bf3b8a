using System.Buffers.Binary;

namespace Tdp.Module;

/// <summary>TD_PARAMS as MNG.INIT accepted them (tdx-module 4.6). Immutable.</summary>
internal sealed record TdParameters
{
    public const int Bytes = 1024;
    public const ulong Debug = 1;
    public const ulong SeptVeDisable = 1UL << 28;
    public const ulong Migratable = 1UL << 29;
    public const ulong Pks = 1UL << 30;
    public const ulong KeyLocker = 1UL << 31;
    public const ulong Perfmon = 1UL << 63;
    public const ulong AttributesFixed0 = 0x8000_0000_7000_0001;
    public const ulong XfamFixed0 = 0x0006_DBE7;
    public const ulong XfamFixed1 = 3;
    /// <summary>IA32_ARCH_CAPABILITIES bits that TD_PARAMS may ask for: SSB_NO, RRSBA, BHI_NO, PBRSB_NO.</summary>
    public const ulong ArchCapabilitiesConfigurable = 0x118_0010;

    public const ulong FlagGpaw = 1;
    public const ulong FlagFlexiblePendingVe = 2;
    public const ulong FlagNoRbpMod = 4;
    public static readonly TdParameters None = new();
    private const ulong RestrictedRsb = 1UL << 19;
    private const ulong XapicDisable = 1UL << 21;

    // The simulated processor: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, MDS_NO, PSCHANGE_MC_NO, TAA_NO, PBRSB_NO.
    private const ulong NativeArchCapabilities = 0x16B | (1UL << 24);

    public ulong Attributes { get; init; }

    public ulong Xfam { get; init; }

    public uint MaxVcpus { get; init; }

    public ulong EptpControls { get; init; }

    public ulong ConfigFlags { get; init; }

    public int TscFrequency { get; init; }

    public byte[] MrConfigId { get; init; } = new byte[48];

    public byte[] MrOwner { get; init; } = new byte[48];

    public byte[] MrOwnerConfig { get; init; } = new byte[48];

    /// <summary>IA32_ARCH_CAPABILITIES_CONFIG, 0 unless MSR_CONFIG_CTLS has bit 0.</summary>
    public ulong ArchCapabilitiesConfig { get; init; }

    /// <summary>IA32_ARCH_CAPABILITIES as the guest reads it.</summary>
    public ulong ArchCapabilities =>
        (NativeArchCapabilities & ~ArchCapabilitiesConfigurable)
        | (NativeArchCapabilities & ArchCapabilitiesConfig)
        | (ArchCapabilitiesConfig & RestrictedRsb)
        | XapicDisable;

    /// <summary>12 x {EAX, EBX, ECX, EDX}.</summary>
    public uint[] CpuidConfig { get; init; } = new uint[48];

    public bool HasGpaw => (ConfigFlags & FlagGpaw) != 0;

    public bool NoRbpMod => (ConfigFlags & FlagNoRbpMod) != 0;

    /// <summary>TDX level of the root's entries.</summary>
    public int RootLevel => (int)((EptpControls >> 3) & 7);

    /// <summary>Checks the structure in the order of the module and keeps it (tdx-module 4.6, "order of evaluation").</summary>
    /// <param name="bytes">The 1024 bytes.</param>
    /// <param name="xfamSupported">XFAM bits that the processor has.</param>
    /// <param name="physicalBits">MAXPA.</param>
    /// <param name="result">The parameters on success.</param>
    /// <param name="failedLeaf">For CPUID_CONFIG: leaf 31:0 and sub-leaf 63:32.</param>
    public static TdxStatus Parse(ReadOnlySpan<byte> bytes, ulong xfamSupported, int physicalBits, out TdParameters? result, out ulong? failedLeaf)
    {
        result = null;
        failedLeaf = null;
        var parameters = new TdParameters
        {
            Attributes = Qword(bytes, 0),
            Xfam = Qword(bytes, 8),
            MaxVcpus = BinaryPrimitives.ReadUInt16LittleEndian(bytes[16..]),
            EptpControls = Qword(bytes, 24),
            ConfigFlags = Qword(bytes, 32),
            TscFrequency = BinaryPrimitives.ReadUInt16LittleEndian(bytes[40..]),
            MrConfigId = bytes.Slice(80, 48).ToArray(),
            MrOwner = bytes.Slice(128, 48).ToArray(),
            MrOwnerConfig = bytes.Slice(176, 48).ToArray(),
            ArchCapabilitiesConfig = Qword(bytes, 224),
        };
        for (int i = 0; i < 48; i++)
            parameters.CpuidConfig[i] = BinaryPrimitives.ReadUInt32LittleEndian(bytes[(256 + (i * 4))..]);

        TdxStatus status = parameters.CheckAttributes(xfamSupported);
        if (!status.IsError && bytes[18] > 3)
            status = TdxStatus.OPERAND_INVALID | OperandId.NUM_L2_VMS;
        if (!status.IsError && bytes[18] > 0)
            status = TdxStatus.TDCS_NOT_ALLOCATED; // L2 VMs need further pages, which stage 1 does not give out (decisions 11.6).
        if (!status.IsError && !IsZero(bytes.Slice(20, 4)))
            status = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        if (!status.IsError)
            status = parameters.CheckControls(physicalBits);
        if (!status.IsError && (!IsZero(bytes.Slice(42, 38)) || (bytes[19] & ~1) != 0 || !IsZero(bytes.Slice(232, 24))))
            status = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        if (!status.IsError && !CpuidTable.IsLegalConfig(parameters.CpuidConfig, out ulong leaf))
        {
            failedLeaf = leaf;
            status = TdxStatus.OPERAND_INVALID | OperandId.CPUID_CONFIG;
        }

        if (!status.IsError && !IsZero(bytes.Slice(448, 576)))
            status = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        ulong configurable = (bytes[19] & 1) != 0 ? ArchCapabilitiesConfigurable : 0;
        if (!status.IsError && (parameters.ArchCapabilitiesConfig & ~configurable) != 0)
            status = TdxStatus.OPERAND_INVALID | OperandId.IA32_ARCH_CAPABILITIES_CONFIG;
        if (!status.IsError)
            result = parameters;
        return status;
    }

    private TdxStatus CheckAttributes(ulong xfamSupported)
    {
        bool migratable = (Attributes & Migratable) != 0;
        if ((Attributes & ~AttributesFixed0) != 0 || (migratable && (Attributes & (Debug | Perfmon)) != 0))
            return TdxStatus.OPERAND_INVALID | OperandId.ATTRIBUTES;
        bool avx = (Xfam & 4) != 0;
        ulong avx512 = Xfam & 0xE0;
        bool cetOk = ((Xfam >> 11) & 1) == ((Xfam >> 12) & 1);
        bool amxOk = ((Xfam >> 17) & 1) == ((Xfam >> 18) & 1);
        if ((Xfam & ~(XfamFixed0 & xfamSupported)) != 0 || (Xfam & XfamFixed1) != XfamFixed1 || !cetOk || !amxOk || avx512 is not (0 or 0xE0) || (avx512 != 0 && !avx))
            return TdxStatus.OPERAND_INVALID | OperandId.XFAM;
        return MaxVcpus == 0 ? TdxStatus.OPERAND_INVALID | OperandId.MAX_VCPUS : TdxStatus.SUCCESS;
    }

    private TdxStatus CheckControls(int physicalBits)
    {
        if ((ConfigFlags & ~7UL) != 0)
            return TdxStatus.OPERAND_INVALID | OperandId.EXEC_CONTROLS;
        int length = RootLevel;
        bool five = length == 4;
        if ((EptpControls & ~0x38UL) != 6 || (length != 3 && !five) || (five && physicalBits < 49) || (HasGpaw && !five))
            return TdxStatus.OPERAND_INVALID | OperandId.EPTP_CONTROLS;
        return TscFrequency is < 4 or > 400 ? TdxStatus.OPERAND_INVALID | OperandId.TSC_FREQUENCY : TdxStatus.SUCCESS;
    }

    private static bool IsZero(ReadOnlySpan<byte> bytes) => bytes.IndexOfAnyExcept((byte)0) < 0;

    private static ulong Qword(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt64LittleEndian(bytes[offset..]);
}
