namespace Tdp.Module;

/// <summary>Fields of the whole module, in table order (tdx-module 1.9a, 2.4).</summary>
internal static class SysFields
{
    private const ulong M1 = 0xFF;
    private const ulong M2 = 0xFFFF;
    private const ulong M4 = 0xFFFF_FFFF;
    private const ulong M8 = ulong.MaxValue;

    // Id, fields, elements, bytes, stride; masks: host production read, write; host debug read, write; guest read, write.
    public static readonly FieldEntry[] Table =
    [
        new(0x0000000200000000, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // NUM_PKGS
        new(0x0000000200000001, 8, 1, 4, 1, M4, 0, M4, 0, 0, 0), // PKG_FMS
        new(0x0800000200000000, 1, 1, 4, 1, M4, 0, M4, 0, M4, 0), // VENDOR_ID
        new(0x8800000200000001, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // BUILD_DATE
        new(0x8800000100000002, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // BUILD_NUM
        new(0x0800000100000003, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // MINOR_VERSION
        new(0x0800000100000004, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // MAJOR_VERSION
        new(0x0800000100000005, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // UPDATE_VERSION
        new(0x0800000100000006, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // INTERNAL_VERSION
        new(0x8900000100000000, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // MODULE_HV
        new(0x8900000100000001, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // MIN_UPDATE_HV
        new(0x8900000000000002, 1, 1, 1, 1, M1, 0, M1, 0, 0, 0), // NO_DOWNGRADE
        new(0x8900000100000003, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // NUM_HANDOFF_PAGES
        new(0x8900000000000004, 1, 1, 1, 1, M1, 0, M1, 0, 0, 0), // HANDOFF_DATA_VALID
        new(0x8900000100000005, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // HANDOFF_DATA_HV
        new(0x8900000200000006, 1, 1, 4, 1, M4, 0, M4, 0, 0, 0), // HANDOFF_DATA_SIZE
        new(0x0A00000200000000, 1, 1, 4, 1, M4, 0, M4, 0, M4, 0), // SYS_ATTRIBUTES
        new(0x0A00000000000001, 1, 1, 1, 1, M1, 0, M1, 0, M1, 0), // NUM_TDX_FEATURES
        new(0x0A00000300000008, 1, 1, 8, 1, M8, 0, M8, 0, M8, 0), // TDX_FEATURES0
        new(0x9000000100000000, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // NUM_CMRS
        new(0x9000000300000080, 32, 1, 8, 1, M8, 0, M8, 0, 0, 0), // CMR_BASE
        new(0x9000000300000100, 32, 1, 8, 1, M8, 0, M8, 0, 0, 0), // CMR_SIZE
        new(0x9100000100000008, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // MAX_TDMRS
        new(0x9100000100000009, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // MAX_RESERVED_PER_TDMR
        new(0x9100000100000010, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // PAMT_4K_ENTRY_SIZE
        new(0x9100000100000011, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // PAMT_2M_ENTRY_SIZE
        new(0x9100000100000012, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // PAMT_1G_ENTRY_SIZE
        new(0x9800000100000000, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // TDR_BASE_SIZE
        new(0x9800000100000100, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // TDCS_BASE_SIZE
        new(0x9800000100000101, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // TDCS_SIZE_PER_L2_VM
        new(0x9800000100000200, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // TDVPS_BASE_SIZE
        new(0x9800000100000201, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // TDVPS_SIZE_PER_L2_VM
        new(0x1900000300000000, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // ATTRIBUTES_FIXED0
        new(0x1900000300000001, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // ATTRIBUTES_FIXED1
        new(0x1900000300000002, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // XFAM_FIXED0
        new(0x1900000300000003, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // XFAM_FIXED1
        new(0x9900000100000004, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // NUM_CPUID_CONFIG
        new(0x9900000300000006, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // CONFIG_FLAGS_FIXED0
        new(0x9900000300000007, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // CONFIG_FLAGS_FIXED1
        new(0x9900000300000400, 32, 1, 8, 1, M8, 0, M8, 0, 0, 0), // CPUID_CONFIG_LEAVES
        new(0x9900000300000500, 32, 2, 8, 1, M8, 0, M8, 0, 0, 0), // CPUID_CONFIG_VALUES
        new(0x9900000300000600, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // IA32_ARCH_CAPABILITIES_CONFIG_MASK
        new(0x9900000100000800, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // NUM_ALLOWED_FMS
        new(0x9900000100000801, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // NUM_DISALLOWED_FMS
        new(0x9900000300000810, 64, 1, 8, 1, M8, 0, M8, 0, 0, 0), // ALLOWED_FMS
        new(0x9900000300000850, 64, 1, 8, 1, M8, 0, M8, 0, 0, 0), // DISALLOWED_FMS
        new(0xA000000300000000, 1, 1, 8, 1, M8, 0, M8, 0, M8, 0), // MIG_ATTRIBUTES
        new(0x2000000100000001, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // MIN_EXPORT_VERSION
        new(0x2000000100000002, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // MAX_EXPORT_VERSION
        new(0x2000000100000003, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // MIN_IMPORT_VERSION
        new(0x2000000100000004, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // MAX_IMPORT_VERSION
        new(0xA000000100000010, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // MAX_MIGS
        new(0xA000000000000020, 1, 1, 1, 1, M1, 0, M1, 0, 0, 0), // NUM_IMMUTABLE_STATE_PAGES
        new(0xA000000000000021, 1, 1, 1, 1, M1, 0, M1, 0, 0, 0), // NUM_TD_STATE_PAGES
        new(0xA000000000000022, 1, 1, 1, 1, M1, 0, M1, 0, 0, 0), // NUM_VP_STATE_PAGES
        new(0xA100000100000000, 1, 1, 2, 1, M2, 0, M2, 0, 0, 0), // MAX_SERV_TDS
        new(0xA100000300000001, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // SERVTD_ATTR_FIXED0
        new(0xA100000300000002, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // SERVTD_ATTR_FIXED1
        new(0xA200000100000000, 1, 1, 2, 1, M2, 0, M2, 0, M2, 0), // GUEST_L2_GPA_ATTR_MASK
        new(0xA200000300000001, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // VM_CTLS_FIXED0
        new(0xA200000300000002, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // VM_CTLS_FIXED1
        new(0xA200000300000003, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // VPCU_L2_CTLS_FIXED0
        new(0xA200000300000004, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // VCPU_L2_CTLS_FIXED1
        new(0xA200000300000005, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // VPCU_L2_DEBUG_CTLS_FIXED0
        new(0xA200000300000006, 1, 1, 8, 1, M8, 0, M8, 0, 0, 0), // VCPU_L2_DEBUG_CTLS_FIXED1
    ];
}
