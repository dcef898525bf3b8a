namespace Tdp.Module;

public readonly partial record struct TdxStatus
{
    /// <summary>Call completed; from VP.ENTER low 32 bits carry the VMX exit reason.</summary>
    public static TdxStatus SUCCESS => new(0x0000000000000000);

    /// <summary>TD exit: VCPU can never be entered again (triple fault).</summary>
    public static TdxStatus NON_RECOVERABLE_VCPU => new(0x4000000100000000);

    /// <summary>TD exit: TD cannot run any more.</summary>
    public static TdxStatus NON_RECOVERABLE_TD => new(0x6000000200000000);

    /// <summary>Stopped for a pending host interrupt; call again with the updated registers to continue.</summary>
    public static TdxStatus INTERRUPTED_RESUMABLE => new(0x8000000300000000);

    /// <summary>Stopped for a pending host interrupt; nothing was committed; call again with the same input.</summary>
    public static TdxStatus INTERRUPTED_RESTARTABLE => new(0x8000000400000000);

    /// <summary>TD exit: memory integrity error or machine check; TD memory must not be touched.</summary>
    public static TdxStatus NON_RECOVERABLE_TD_NON_ACCESSIBLE => new(0x6000000500000000);

    /// <summary>Resumption input does not match the interrupted call.</summary>
    public static TdxStatus INVALID_RESUMPTION => new(0xC000000600000000);

    /// <summary>TD exit: local APIC disabled while stepping mitigation needs it.</summary>
    public static TdxStatus NON_RECOVERABLE_TD_WRONG_APIC_MODE => new(0xE000000700000000);

    /// <summary>TD exit from a guest call on another TD; fault-like.</summary>
    public static TdxStatus CROSS_TD_FAULT => new(0x8000000800000000);

    /// <summary>TD exit from a guest call on another TD; trap-like.</summary>
    public static TdxStatus CROSS_TD_TRAP => new(0x9000000900000000);

    /// <summary>TD exit: TD metadata found corrupted.</summary>
    public static TdxStatus NON_RECOVERABLE_TD_CORRUPTED_MD => new(0x6000000A00000000);

    /// <summary>An operand has an illegal value; operand id in bits 31:0.</summary>
    public static TdxStatus OPERAND_INVALID => new(0xC000010000000000);

    /// <summary>Physical address not covered by an initialised TDMR.</summary>
    public static TdxStatus OPERAND_ADDR_RANGE_ERROR => new(0xC000010100000000);

    /// <summary>A lock could not be taken; operand id in bits 31:0; retry.</summary>
    public static TdxStatus OPERAND_BUSY => new(0x8000020000000000);

    /// <summary>MEM.TRACK: a VCPU still runs with the previous TD epoch.</summary>
    public static TdxStatus PREVIOUS_TLB_EPOCH_BUSY => new(0x8000020100000000);

    /// <summary>Global module lock is taken.</summary>
    public static TdxStatus SYS_BUSY => new(0x8000020200000000);

    /// <summary>Hardware random number not available; retry.</summary>
    public static TdxStatus RND_NO_ENTROPY => new(0x8000020300000000);

    /// <summary>Guest lock attempt lost to a waiting host; internal, guest sees TDX_OPERAND_BUSY.</summary>
    public static TdxStatus OPERAND_BUSY_HOST_PRIORITY => new(0x8000020400000000);

    /// <summary>TD exit: a guest call was refused for host priority longer than HP_LOCK_TIMEOUT.</summary>
    public static TdxStatus HOST_PRIORITY_BUSY_TIMEOUT => new(0x9000020500000000);

    /// <summary>PAMT entry of the page has an unexpected type or size.</summary>
    public static TdxStatus PAGE_METADATA_INCORRECT => new(0xC000030000000000);

    /// <summary>TDR cannot be reclaimed while its child count is not 0.</summary>
    public static TdxStatus TD_ASSOCIATED_PAGES_EXIST => new(0xC000040000000000);

    /// <summary>SYS.INIT called in a wrong system state.</summary>
    public static TdxStatus SYS_INIT_NOT_PENDING => new(0xC000050000000000);

    /// <summary>SYS.LP.INIT has not been done on this LP.</summary>
    public static TdxStatus SYS_LP_INIT_NOT_DONE => new(0xC000050200000000);

    /// <summary>SYS.LP.INIT already done on this LP.</summary>
    public static TdxStatus SYS_LP_INIT_DONE => new(0xC000050300000000);

    /// <summary>Module is not in SYS_READY for this leaf.</summary>
    public static TdxStatus SYS_NOT_READY => new(0xC000050500000000);

    /// <summary>Module is being shut down.</summary>
    public static TdxStatus SYS_SHUTDOWN => new(0xC000050600000000);

    /// <summary>SYS.KEY.CONFIG called in a wrong system state.</summary>
    public static TdxStatus SYS_KEY_CONFIG_NOT_PENDING => new(0xC000050700000000);

    /// <summary>System state does not allow the call (SYS.UPDATE).</summary>
    public static TdxStatus SYS_STATE_INCORRECT => new(0xC000050800000000);

    /// <summary>No usable handoff data for an update.</summary>
    public static TdxStatus SYS_INVALID_HANDOFF => new(0xC000050900000000);

    /// <summary>Module signature not compatible.</summary>
    public static TdxStatus SYS_INCOMPATIBLE_SIGSTRUCT => new(0xC000050A00000000);

    /// <summary>SYS.LP.INIT called in a wrong system state.</summary>
    public static TdxStatus SYS_LP_INIT_NOT_PENDING => new(0xC000050B00000000);

    /// <summary>SYS.CONFIG called in a wrong state or before all LPs are initialised.</summary>
    public static TdxStatus SYS_CONFIG_NOT_PENDING => new(0xC000050C00000000);

    /// <summary>SEAM capabilities missing or differ between LPs.</summary>
    public static TdxStatus INCOMPATIBLE_SEAM_CAPABILITIES => new(0xC000050D00000000);

    /// <summary>TD is marked fatal.</summary>
    public static TdxStatus TD_FATAL => new(0xE000060400000000);

    /// <summary>Debug-only call on a TD without ATTRIBUTES.DEBUG.</summary>
    public static TdxStatus TD_NON_DEBUG => new(0xC000060500000000);

    /// <summary>Not enough TDCX pages for TDCS.</summary>
    public static TdxStatus TDCS_NOT_ALLOCATED => new(0xC000060600000000);

    /// <summary>TD life cycle state does not allow the call.</summary>
    public static TdxStatus LIFECYCLE_STATE_INCORRECT => new(0xC000060700000000);

    /// <summary>TD OP_STATE does not allow the call.</summary>
    public static TdxStatus OP_STATE_INCORRECT => new(0xC000060800000000);

    /// <summary>MR.FINALIZE with no initialised VCPU.</summary>
    public static TdxStatus NO_VCPUS => new(0xC000060900000000);

    /// <summary>Wrong number of TDCX pages (too many, or TDVPS incomplete).</summary>
    public static TdxStatus TDCX_NUM_INCORRECT => new(0xC000061000000000);

    /// <summary>VCPU state does not allow the call.</summary>
    public static TdxStatus VCPU_STATE_INCORRECT => new(0xC000070000000000);

    /// <summary>VCPU is associated with another LP.</summary>
    public static TdxStatus VCPU_ASSOCIATED => new(0x8000070100000000);

    /// <summary>VCPU is not associated with this LP.</summary>
    public static TdxStatus VCPU_NOT_ASSOCIATED => new(0x8000070200000000);

    /// <summary>VEINFO.GET with no #VE information pending.</summary>
    public static TdxStatus NO_VALID_VE_INFO => new(0xC000070400000000);

    /// <summary>VP.INIT beyond TD_PARAMS.MAX_VCPUS.</summary>
    public static TdxStatus MAX_VCPUS_EXCEEDED => new(0xC000070500000000);

    /// <summary>TSC went back since the last TD exit of this VCPU.</summary>
    public static TdxStatus TSC_ROLLBACK => new(0xC000070600000000);

    /// <summary>A TD VMCS field needed for entry was not set.</summary>
    public static TdxStatus TD_VMCS_FIELD_NOT_INITIALIZED => new(0xC000073000000000);

    /// <summary>Memory encryption key could not be generated; retry.</summary>
    public static TdxStatus KEY_GENERATION_FAILED => new(0x8000080000000000);

    /// <summary>TD life cycle is not TD_KEYS_CONFIGURED.</summary>
    public static TdxStatus TD_KEYS_NOT_CONFIGURED => new(0x8000081000000000);

    /// <summary>Key already configured on this package (informational).</summary>
    public static TdxStatus KEY_CONFIGURED => new(0x0000081500000000);

    /// <summary>PHYMEM.CACHE.WB not finished on every package.</summary>
    public static TdxStatus WBCACHE_NOT_COMPLETE => new(0x8000081700000000);

    /// <summary>HKID is not free.</summary>
    public static TdxStatus HKID_NOT_FREE => new(0xC000082000000000);

    /// <summary>No HKID waits for a cache write-back (informational).</summary>
    public static TdxStatus NO_HKID_READY_TO_WBCACHE => new(0x0000082100000000);

    /// <summary>CACHE.WB resume without an interrupted call.</summary>
    public static TdxStatus WBCACHE_RESUME_ERROR => new(0xC000082300000000);

    /// <summary>Some VCPU is still associated with an LP.</summary>
    public static TdxStatus FLUSHVP_NOT_DONE => new(0x8000082400000000);

    /// <summary>Too many HKIDs activated on the platform.</summary>
    public static TdxStatus NUM_ACTIVATED_HKIDS_NOT_SUPPORTED => new(0xC000082500000000);

    /// <summary>Platform CPUID value not acceptable.</summary>
    public static TdxStatus INCORRECT_CPUID_VALUE => new(0xC000090000000000);

    /// <summary>IA32_MISC_ENABLE limits CPUID (BOOT_NT4).</summary>
    public static TdxStatus LIMIT_CPUID_MAXVAL_SET => new(0xC000090100000000);

    /// <summary>CPUID differs between LPs.</summary>
    public static TdxStatus INCONSISTENT_CPUID_FIELD => new(0xC000090200000000);

    /// <summary>Unknown CPUID 0x1F format.</summary>
    public static TdxStatus CPUID_LEAF_1F_FORMAT_UNRECOGNIZED => new(0xC000090400000000);

    /// <summary>Cache write-back scope not supported.</summary>
    public static TdxStatus INVALID_WBINVD_SCOPE => new(0xC000090500000000);

    /// <summary>Package id out of range.</summary>
    public static TdxStatus INVALID_PKG_ID => new(0xC000090600000000);

    /// <summary>Required CPUID leaf missing.</summary>
    public static TdxStatus CPUID_LEAF_NOT_SUPPORTED => new(0xC000090800000000);

    /// <summary>SMRR not locked.</summary>
    public static TdxStatus SMRR_NOT_LOCKED => new(0xC000091000000000);

    /// <summary>SMRR configuration not valid.</summary>
    public static TdxStatus INVALID_SMRR_CONFIGURATION => new(0xC000091100000000);

    /// <summary>SMRR overlaps convertible memory.</summary>
    public static TdxStatus SMRR_OVERLAPS_CMR => new(0xC000091200000000);

    /// <summary>SMRR lock not supported.</summary>
    public static TdxStatus SMRR_LOCK_NOT_SUPPORTED => new(0xC000091300000000);

    /// <summary>SMRR not supported.</summary>
    public static TdxStatus SMRR_NOT_SUPPORTED => new(0xC000091400000000);

    /// <summary>MSR differs from the value sampled at initialisation; MSR number in bits 31:0.</summary>
    public static TdxStatus INCONSISTENT_MSR => new(0xC000092000000000);

    /// <summary>MSR value not acceptable; MSR number in bits 31:0.</summary>
    public static TdxStatus INCORRECT_MSR_VALUE => new(0xC000092100000000);

    /// <summary>TDMR base/size not valid; TDMR index in byte 0.</summary>
    public static TdxStatus INVALID_TDMR => new(0xC0000A0000000000);

    /// <summary>TDMRs not ascending or overlapping; index in byte 0.</summary>
    public static TdxStatus NON_ORDERED_TDMR => new(0xC0000A0100000000);

    /// <summary>Non-reserved part of a TDMR is not convertible memory; index in byte 0.</summary>
    public static TdxStatus TDMR_OUTSIDE_CMRS => new(0xC0000A0200000000);

    /// <summary>TDMR.INIT: nothing left to initialise (informational).</summary>
    public static TdxStatus TDMR_ALREADY_INITIALIZED => new(0x00000A0300000000);

    /// <summary>PAMT area not valid; byte 0 TDMR, byte 1 PAMT level.</summary>
    public static TdxStatus INVALID_PAMT => new(0xC0000A1000000000);

    /// <summary>PAMT area not convertible memory; byte 0 TDMR, byte 1 PAMT level.</summary>
    public static TdxStatus PAMT_OUTSIDE_CMRS => new(0xC0000A1100000000);

    /// <summary>PAMT overlaps another PAMT or available memory; bytes 0..2 TDMR, level, other TDMR.</summary>
    public static TdxStatus PAMT_OVERLAP => new(0xC0000A1200000000);

    /// <summary>Reserved area not valid; byte 0 TDMR, byte 1 area.</summary>
    public static TdxStatus INVALID_RESERVED_IN_TDMR => new(0xC0000A2000000000);

    /// <summary>Reserved areas not ascending; byte 0 TDMR, byte 1 area.</summary>
    public static TdxStatus NON_ORDERED_RESERVED_IN_TDMR => new(0xC0000A2100000000);

    /// <summary>CMR list not valid.</summary>
    public static TdxStatus CMR_LIST_INVALID => new(0xC0000A2200000000);

    /// <summary>Secure EPT walk stopped above the requested level.</summary>
    public static TdxStatus EPT_WALK_FAILED => new(0xC0000B0000000000);

    /// <summary>No accessible leaf maps the GPA (MEM.RD/WR, MR.EXTEND).</summary>
    public static TdxStatus EPT_ENTRY_NOT_PRESENT => new(0xC0000B0300000000);

    /// <summary>Entry must be blocked first while the TD may run.</summary>
    public static TdxStatus GPA_RANGE_NOT_BLOCKED => new(0xC0000B0600000000);

    /// <summary>Entry is already blocked (informational).</summary>
    public static TdxStatus GPA_RANGE_ALREADY_BLOCKED => new(0x00000B0700000000);

    /// <summary>Block happened too recently: TLB tracking not complete.</summary>
    public static TdxStatus TLB_TRACKING_NOT_DONE => new(0xC0000B0800000000);

    /// <summary>The 512 small entries cannot be merged.</summary>
    public static TdxStatus EPT_INVALID_PROMOTE_CONDITIONS => new(0xC0000B0900000000);

    /// <summary>Page is already accessible to the guest; level in bits 31:0 (informational).</summary>
    public static TdxStatus PAGE_ALREADY_ACCEPTED => new(0x00000B0A00000000);

    /// <summary>Requested size is larger than the mapping; level in bits 31:0.</summary>
    public static TdxStatus PAGE_SIZE_MISMATCH => new(0xC0000B0B00000000);

    /// <summary>Secure EPT entry state does not allow the call.</summary>
    public static TdxStatus EPT_ENTRY_STATE_INCORRECT => new(0xC0000B0D00000000);

    /// <summary>SEPT.REMOVE: the page still has entries that are not FREE.</summary>
    public static TdxStatus EPT_PAGE_NOT_FREE => new(0xC0000B0E00000000);

    /// <summary>L2 Secure EPT walk failed; VM index and level in bits 31:0.</summary>
    public static TdxStatus L2_SEPT_WALK_FAILED => new(0xC0000B0F00000000);

    /// <summary>L2 Secure EPT entry not free.</summary>
    public static TdxStatus L2_SEPT_ENTRY_NOT_FREE => new(0xC0000B1000000000);

    /// <summary>L2 page attributes not legal.</summary>
    public static TdxStatus PAGE_ATTR_INVALID => new(0xC0000B1100000000);

    /// <summary>L2 Secure EPT page needed for an aliased entry.</summary>
    public static TdxStatus L2_SEPT_PAGE_NOT_PROVIDED => new(0xC0000B1200000000);

    /// <summary>Unknown or malformed field id.</summary>
    public static TdxStatus METADATA_FIELD_ID_INCORRECT => new(0xC0000C0000000000);

    /// <summary>Field cannot be written by this caller.</summary>
    public static TdxStatus METADATA_FIELD_NOT_WRITABLE => new(0xC0000C0100000000);

    /// <summary>Field cannot be read by this caller.</summary>
    public static TdxStatus METADATA_FIELD_NOT_READABLE => new(0xC0000C0200000000);

    /// <summary>Value not legal for the field.</summary>
    public static TdxStatus METADATA_FIELD_VALUE_NOT_VALID => new(0xC0000C0300000000);

    /// <summary>Metadata list does not fit.</summary>
    public static TdxStatus METADATA_LIST_OVERFLOW => new(0xC0000C0400000000);

    /// <summary>Metadata list header not valid.</summary>
    public static TdxStatus INVALID_METADATA_LIST_HEADER => new(0xC0000C0500000000);

    /// <summary>Metadata list lacks a required field.</summary>
    public static TdxStatus REQUIRED_METADATA_FIELD_MISSING => new(0xC0000C0600000000);

    /// <summary>Write mask not legal for the field.</summary>
    public static TdxStatus METADATA_WR_MASK_NOT_VALID => new(0xC0000C0A00000000);

    /// <summary>Null field id given: first field id of the context returned in RDX (informational).</summary>
    public static TdxStatus METADATA_FIRST_FIELD_ID_IN_CONTEXT => new(0x00000C0B00000000);

    /// <summary>Field is skipped (internal, informational).</summary>
    public static TdxStatus METADATA_FIELD_SKIP => new(0x00000C0C00000000);

    /// <summary>VERIFYREPORT: CPUSVN of the report not acceptable.</summary>
    public static TdxStatus INVALID_CPUSVN => new(0xC000100000000000);

    /// <summary>VERIFYREPORT: MAC or format wrong.</summary>
    public static TdxStatus INVALID_REPORTMACSTRUCT => new(0xC000100100000000);

    /// <summary>Linux only: SEAMCALL set CF (VMfailInvalid).</summary>
    public static TdxStatus SEAMCALL_VMFAILINVALID => new(0x8000FF00FFFF0000);

    /// <summary>Linux only: SEAMCALL raised #GP.</summary>
    public static TdxStatus SEAMCALL_GP => new(0x8000FF000000000D);

    /// <summary>Linux only: SEAMCALL raised #UD.</summary>
    public static TdxStatus SEAMCALL_UD => new(0x8000FF0000000006);
}
