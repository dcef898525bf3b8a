namespace Tdp.Module;

/// <summary>Fields of a TD, in table order: TDR, then TDCS (tdx-module 1.9a).</summary>
internal static class TdFields
{
    private const ulong M1 = 0xFF;
    private const ulong M2 = 0xFFFF;
    private const ulong M4 = 0xFFFF_FFFF;
    private const ulong M8 = ulong.MaxValue;

    // Id, fields, elements, bytes, stride; masks: host production read, write; host debug read, write; guest read, write.
    public static readonly FieldEntry[] Table =
    [
        new(0x8010000000000001, 1, 1, 1, 1, M1, 0, M1, 0, 0, 0), // FATAL
        new(0x8010000200000002, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // NUM_TDCX
        new(0x8010000300000004, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // CHLDCNT
        new(0x8010000200000005, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // LIFECYCLE_STATE
        new(0x8010000300000010, 9, 1, 8, 1, M8, 0, M8, 0, 0, 0), // TDCX_PA
        new(0x8010000300000020, 1, 4, 8, 1, M8, 0, M8, 0, M8, 0), // TD_UUID
        new(0x8110000100000001, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // HKID
        new(0x8110000300000002, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // PKG_CONFIG_BITMAP
        new(0x8210000100000000, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // HANDOFF_VERSION
        new(0x8210000300000001, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // SEAMDB_INDEX
        new(0x8210000300000002, 1, 4, 8, 1, 0, 0, 0, 0, 0, 0), // SEAMDB_NONCE
        new(0x9010000200000001, 1, 1, 4, 1, M4, 0, M4, 0, M4, 0), // NUM_VCPUS
        new(0x9010000200000002, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // NUM_ASSOC_VCPUS
        new(0x9010000200000004, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // OP_STATE
        new(0x9010000100000005, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // NUM_L2_VMS
        new(0x1110000300000000, 1, 1, 8, 1, M8, 0, M8, 0, M8, 0), // ATTRIBUTES
        new(0x1110000300000001, 1, 1, 8, 1, M8, 0, M8, 0, M8, 0), // XFAM
        new(0x1110000200000002, 1, 1, 4, 1, M4, 0, M4, 0, M4, 0), // MAX_VCPUS
        new(0x1110000000000003, 1, 1, 1, 1, M1, 0, M1, 0, M1, 0), // GPAW
        new(0x1110000300000004, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // EPTP
        new(0x111000030000000A, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // TSC_OFFSET
        new(0x111000030000000B, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // TSC_MULTIPLIER
        new(0x111000010000000C, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // TSC_FREQUENCY
        new(0x111000030000000D, 1, 1, 8, 1, 0, 0, 0, 0, 0, 0), // VIRTUAL_TSC
        new(0x911000010000000E, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // NUM_CPUID_VALUES
        new(0x911000020000000F, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // XBUFF_SIZE
        new(0x9110000300000010, 1, 1, 8, 1, 0, 0, M8, 1, 1, 1), // NOTIFY_ENABLES
        new(0x9110000300000011, 1, 1, 8, 1, M8, M8, M8, M8, 0, 0), // HP_LOCK_TIMEOUT
        new(0x9110000300000012, 4, 1, 8, 1, M8, 1, M8, 1, 0, 0), // VM_CTLS
        new(0x1110000300000016, 1, 1, 8, 1, M8, 0, M8, 0, M8, 0), // CONFIG_FLAGS
        new(0x1110000300000017, 1, 1, 8, 1, 0, 0, M8, 0, M8, 1), // TD_CTLS
        new(0x9110000000000080, 80, 1, 1, 1, 0, 0, M1, 0, 0, 0), // CPUID_VALID
        new(0x9110000200000800, 19, 1, 4, 1, M4, 0, M4, 0, 0, 0), // XBUFF_OFFSETS
        new(0x9210000300000000, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // TD_EPOCH
        new(0x9210000100000001, 2, 1, 2, 1, M2, 0, M2, 0, 0, 0), // REFCOUNT
        new(0x1310000300000000, 1, 6, 8, 1, M8, 0, M8, 0, M8, 0), // MRTD
        new(0x1310000300000010, 1, 6, 8, 1, M8, 0, M8, 0, M8, 0), // MRCONFIGID
        new(0x1310000300000018, 1, 6, 8, 1, M8, 0, M8, 0, M8, 0), // MROWNER
        new(0x1310000300000020, 1, 6, 8, 1, M8, 0, M8, 0, M8, 0), // MROWNERCONFIG
        new(0x1310000300000040, 4, 6, 8, 1, 0, 0, M8, 0, M8, 0), // RTMR
        new(0x9410000300000000, 64, 2, 8, 1, M8, 0, M8, 0, 0, 0), // CPUID_VALUES
        new(0x961000030000010A, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_ARCH_CAPABILITIES
        new(0x9610000300000480, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_BASIC
        new(0x9610000300000485, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_MISC
        new(0x9610000300000486, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_CR0_FIXED0
        new(0x9610000300000487, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_CR0_FIXED1
        new(0x9610000300000488, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_CR4_FIXED0
        new(0x9610000300000489, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_CR4_FIXED1
        new(0x961000030000048B, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_PROCBASED_CTLS2
        new(0x961000030000048C, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_EPT_VPID_CAP
        new(0x961000030000048D, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_TRUE_PINBASED_CTLS
        new(0x961000030000048E, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_TRUE_PROCBASED_CTLS
        new(0x961000030000048F, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_TRUE_EXIT_CTLS
        new(0x9610000300000490, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_TRUE_ENTRY_CTLS
        new(0x9610000300000491, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_VMFUNC
        new(0x9610000300000492, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_PROCBASED_CTLS3
        new(0x9610000300000493, 1, 1, 8, 1, 0, 0, M8, 0, 0, 0), // VIRTUAL_IA32_VMX_EXIT_CTLS2
        new(0x9810000000000001, 1, 1, 1, 1, M1, 0, M1, 0, 0, 0), // MIG_DEC_KEY_SET
        new(0x9810000200000002, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // EXPORT_COUNT
        new(0x9810000200000003, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // IMPORT_COUNT
        new(0x9810000200000004, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // MIG_EPOCH
        new(0x9810000300000005, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // BW_EPOCH
        new(0x9810000300000006, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // TOTAL_MB_COUNT
        new(0x9810000300000010, 1, 4, 8, 1, 0, 0, M8, 0, 0, 0), // MIG_DEC_KEY
        new(0x9810000300000014, 1, 4, 8, 1, 0, 0, M8, 0, 0, 0), // MIG_DEC_WORKING_KEY
        new(0x9810000300000018, 1, 4, 8, 1, 0, 0, M8, 0, 0, 0), // MIG_ENC_KEY
        new(0x981000030000001C, 1, 4, 8, 1, 0, 0, M8, 0, 0, 0), // MIG_ENC_WORKING_KEY
        new(0x9810000100000020, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // MIG_VERSION
        new(0x9810000100000021, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // MIG_WORKING_VERSION
        new(0x9810000300000030, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // DIRTY_COUNT
        new(0x9810000300000031, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // MIG_COUNT
        new(0x9810000100000032, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // NUM_MIGS
        new(0x9810000200000034, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // NUM_MIGRATED_VCPUS
        new(0x9810000300000040, 1, 4, 8, 1, M8, 0, M8, 0, M8, 0), // PRE_IMPORT_UUID
        new(0x9910000300000000, 1, 6, 8, 1, M8, 0, M8, 0, M8, 0), // SERVTD_HASH
        new(0x9910000100000006, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // SERVTD_NUM
        new(0x9910000300000080, 1, 16, 8, 1, M8, 0, M8, 0, M8, 0), // SERVTD_BINDINGS_TABLE
        new(0x9A10000300000000, 512, 1, 8, 1, M8, 0, M8, 0, 0, 0), // MIGSC_LINKS
        new(0x2010000300000000, 512, 1, 8, 1, 0, 0, M8, 0, 0, 0), // MSR_BITMAPS
        new(0x2110000300000000, 512, 1, 8, 1, 0, 0, M8, 0, 0, 0), // SEPT_ROOT
    ];
}
