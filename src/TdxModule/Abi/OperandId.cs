namespace Tdp.Module;

/// <summary>What a status blames: bits 31:0 of an operand error (tdx-module 1.5). Registers carry their encoding number.</summary>
public enum OperandId : uint
{
    /// <summary>RAX.</summary>
    RAX = 0,

    /// <summary>RCX.</summary>
    RCX = 1,

    /// <summary>RDX.</summary>
    RDX = 2,

    /// <summary>RBX.</summary>
    RBX = 3,

    /// <summary>RBP.</summary>
    RBP = 5,

    /// <summary>RSI.</summary>
    RSI = 6,

    /// <summary>RDI.</summary>
    RDI = 7,

    /// <summary>R8.</summary>
    R8 = 8,

    /// <summary>R9.</summary>
    R9 = 9,

    /// <summary>R10.</summary>
    R10 = 10,

    /// <summary>R11.</summary>
    R11 = 11,

    /// <summary>R12.</summary>
    R12 = 12,

    /// <summary>R13.</summary>
    R13 = 13,

    /// <summary>R14.</summary>
    R14 = 14,

    /// <summary>R15.</summary>
    R15 = 15,

    /// <summary>TD_PARAMS.ATTRIBUTES.</summary>
    ATTRIBUTES = 64,

    /// <summary>TD_PARAMS.XFAM.</summary>
    XFAM = 65,

    /// <summary>TD_PARAMS.CONFIG_FLAGS.</summary>
    EXEC_CONTROLS = 66,

    /// <summary>TD_PARAMS.EPTP_CONTROLS.</summary>
    EPTP_CONTROLS = 67,

    /// <summary>TD_PARAMS.MAX_VCPUS.</summary>
    MAX_VCPUS = 68,

    /// <summary>TD_PARAMS.CPUID_CONFIG.</summary>
    CPUID_CONFIG = 69,

    /// <summary>TD_PARAMS.TSC_FREQUENCY.</summary>
    TSC_FREQUENCY = 70,

    /// <summary>TD_PARAMS.NUM_L2_VMS.</summary>
    NUM_L2_VMS = 71,

    /// <summary>TD_PARAMS.IA32_ARCH_CAPABILITIES_CONFIG.</summary>
    IA32_ARCH_CAPABILITIES_CONFIG = 72,

    /// <summary>An address inside a TDMR_INFO.</summary>
    TDMR_INFO_PA = 96,

    /// <summary>The TD root page, found through an owner field.</summary>
    TDR = 128,

    /// <summary>A TDCX page.</summary>
    TDCX = 129,

    /// <summary>The vCPU root page.</summary>
    TDVPR = 130,

    /// <summary>A private page found through the Secure EPT.</summary>
    REG_PAGE = 132,

    /// <summary>The TD's control structure.</summary>
    TDCS = 144,

    /// <summary>The vCPU's state.</summary>
    TDVPS = 145,

    /// <summary>The Secure EPT as a whole.</summary>
    SEPT_TREE = 146,

    /// <summary>One Secure EPT entry.</summary>
    SEPT_ENTRY = 147,

    /// <summary>The run-time measurement registers.</summary>
    RTMR = 168,

    /// <summary>The TLB-tracking epoch.</summary>
    TD_EPOCH = 169,

    /// <summary>Virtual APIC page address of an L2 VM.</summary>
    L2_VAPIC_GPA = 170,

    /// <summary>The TD's operation state.</summary>
    OP_STATE = 172,

    /// <summary>A metadata field that changed underneath a write.</summary>
    METADATA_FIELD = 176,

    /// <summary>The module.</summary>
    SYS = 184,

    /// <summary>A TDMR.</summary>
    TDMR = 185,

    /// <summary>The key ownership table.</summary>
    KOT = 186,

    /// <summary>The key encryption table.</summary>
    KET = 187,

    /// <summary>The package's cache write-back.</summary>
    WBCACHE = 188,
}
