namespace Tdp.Module;

// TDH.MNG.*, TDH.VP.* (tdx-module 4.5 to 4.10) and TDH.SYS.* (2.2).
public static partial class LeafCatalogue
{
    private static LeafStatus[] FieldRead =>
    [
        Is(TdxStatus.METADATA_FIRST_FIELD_ID_IN_CONTEXT, "the null id was given; RDX is the first id"),
        Is(TdxStatus.METADATA_FIELD_ID_INCORRECT, "no such field"),
        Is(TdxStatus.METADATA_FIELD_NOT_READABLE, "the caller may not read it"),
    ];

    private static LeafStatus[] FieldWrite =>
    [
        Is(TdxStatus.METADATA_FIELD_ID_INCORRECT, "no such field"),
        Is(TdxStatus.METADATA_FIELD_NOT_READABLE, "a CPUID field that always faults"),
        Is(TdxStatus.METADATA_FIELD_NOT_WRITABLE, "the caller may write none of the bits"),
        Is(TdxStatus.METADATA_FIELD_VALUE_NOT_VALID, "not a value that the field can take"),
    ];

    private static LeafStatus[] WriteMaskAndRace =>
    [
        Is(TdxStatus.METADATA_WR_MASK_NOT_VALID, "the field can only be written as a whole"),
        Is(TdxStatus.OPERAND_BUSY | OperandId.METADATA_FIELD, "another processor wrote the field at the same time"),
    ];

    private static LeafStatus[] VcpuForFields =>
    [
        Is(TdxStatus.TDCX_NUM_INCORRECT, "the vCPU has fewer than 6 pages"),
        Is(TdxStatus.VCPU_STATE_INCORRECT, "the vCPU is not initialised, or inside its TD"),
        Is(TdxStatus.VCPU_ASSOCIATED, "the vCPU is associated with another processor"),
    ];

    private static LeafDescription[] TdLeaves() =>
    [
        Host(
            TdhLeaf.MNG_CREATE,
            "makes a TD",
            [Free("tdr", Gpr.Rcx, "free page that becomes the TD's root page"), new LeafOperand("hkid", Gpr.Rdx, LeafOperandKind.Hkid, "a free private KeyID")],
            None,
            Ok,
            [Is(TdxStatus.OPERAND_INVALID | OperandId.RDX, "not a private KeyID")],
            FreePageOf(OperandId.RCX),
            [Is(TdxStatus.OPERAND_BUSY | OperandId.KOT, "the key ownership table is in use"), Is(TdxStatus.HKID_NOT_FREE, "the KeyID is in use")]),
        Host(
            TdhLeaf.MNG_KEY_CONFIG,
            "programs the TD's key on this package",
            [Tdr(Gpr.Rcx)],
            None,
            Ok,
            PageOf(OperandId.RCX, "the TDR", "a TD root page"),
            [
                Is(TdxStatus.TD_FATAL, "the TD is dead"),
                Is(TdxStatus.LIFECYCLE_STATE_INCORRECT, "all packages have the key already"),
                Is(TdxStatus.KEY_CONFIGURED, "this package has the key already"),
            ]),
        Host(
            TdhLeaf.MNG_ADDCX,
            "gives a TD one of its control pages",
            [Free("page", Gpr.Rcx, "free page that becomes a TDCX page"), Tdr(Gpr.Rdx)],
            None,
            Ok,
            PageOf(OperandId.RDX, "the TDR", "a TD root page"),
            [
                Is(TdxStatus.TD_FATAL, "the TD is dead"),
                Is(TdxStatus.TD_KEYS_NOT_CONFIGURED, "the TD's key is not configured, or no longer"),
                Is(TdxStatus.TDCX_NUM_INCORRECT, "the TD has 9 pages already"),
            ],
            FreePageOf(OperandId.RCX),
            [Is(TdxStatus.OP_STATE_INCORRECT, "pages 7 to 9 come before MNG.INIT")]),
        Host(
            TdhLeaf.MNG_INIT,
            "initialises a TD from its parameters",
            [Tdr(Gpr.Rcx), new LeafOperand("params", Gpr.Rdx, LeafOperandKind.HostMemory, "TD_PARAMS: 1024 bytes, aligned to 1024")],
            None,
            Ok,
            TdGate(OperandId.RCX, sharesOpState: false),
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RDX, "TD_PARAMS is not aligned, not host memory, or a reserved field is not 0"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.ATTRIBUTES, "ATTRIBUTES"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.XFAM, "XFAM"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.MAX_VCPUS, "MAX_VCPUS is 0"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.NUM_L2_VMS, "more than 3 L2 VMs"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.EXEC_CONTROLS, "CONFIG_FLAGS"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.EPTP_CONTROLS, "EPTP_CONTROLS, or GPAW without 5 levels"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.TSC_FREQUENCY, "TSC_FREQUENCY is not 4..400"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.CPUID_CONFIG, "a CPUID bit that cannot be configured; RCX says which leaf"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.IA32_ARCH_CAPABILITIES_CONFIG, "IA32_ARCH_CAPABILITIES_CONFIG"),
            ]),
        Host(
            TdhLeaf.MNG_RD,
            "reads a metadata field of a TD",
            [Tdr(Gpr.Rcx), Field()],
            [ValueResult, NextResult],
            Ok,
            TdGate(OperandId.RCX, sharesOpState: true),
            FieldRead) with { MaxVersion = 1 },
        Host(
            TdhLeaf.MNG_WR,
            "writes a metadata field of a TD",
            [Tdr(Gpr.Rcx), Field(), Value(), Mask()],
            [OldResult],
            Ok,
            TdGate(OperandId.RCX, sharesOpState: true),
            FieldWrite,
            WriteMaskAndRace),
        Host(
            TdhLeaf.MNG_VPFLUSHDONE,
            "ends the use of a TD's memory: no vCPU is associated any more",
            [Tdr(Gpr.Rcx)],
            None,
            Ok,
            PageOf(OperandId.RCX, "the TDR", "a TD root page"),
            [
                Is(TdxStatus.OPERAND_BUSY | OperandId.KOT, "the key ownership table is in use"),
                Is(TdxStatus.LIFECYCLE_STATE_INCORRECT, "done before"),
                Is(TdxStatus.FLUSHVP_NOT_DONE, "a vCPU is still associated with a processor"),
            ]),
        Host(
            TdhLeaf.MNG_KEY_FREEID,
            "frees a TD's KeyID",
            [Tdr(Gpr.Rcx)],
            None,
            Ok,
            PageOf(OperandId.RCX, "the TDR", "a TD root page"),
            [
                Is(TdxStatus.LIFECYCLE_STATE_INCORRECT, "VPFLUSHDONE comes first"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.KOT, "the key ownership table is in use"),
                Is(TdxStatus.WBCACHE_NOT_COMPLETE, "a package has not written its caches back"),
            ]),
        Host(TdhLeaf.MNG_KEY_RECLAIMID, "does nothing; kept for old hosts", [new LeafOperand("tdr", Gpr.Rcx, LeafOperandKind.Tdr, "ignored") { Default = 0 }], None, Ok),
    ];

    private static LeafDescription[] VcpuLeaves() =>
    [
        Host(
            TdhLeaf.VP_CREATE,
            "makes a vCPU",
            [Free("vcpu", Gpr.Rcx, "free page that becomes the vCPU's root page"), Tdr(Gpr.Rdx)],
            None,
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            FreePageOf(OperandId.RCX)),
        Host(
            TdhLeaf.VP_ADDCX,
            "gives a vCPU one of its pages",
            [Free("page", Gpr.Rcx, "free page that becomes a TDCX page"), Tdvpr(Gpr.Rdx)],
            None,
            Ok,
            VcpuGate(OperandId.RDX),
            [Is(TdxStatus.VCPU_STATE_INCORRECT, "the vCPU is initialised already"), Is(TdxStatus.TDCX_NUM_INCORRECT, "the vCPU has 15 pages already")],
            FreePageOf(OperandId.RCX)),
        Host(
            TdhLeaf.VP_INIT,
            "initialises a vCPU and associates it with this processor",
            [
                Tdvpr(Gpr.Rcx), new LeafOperand("rcx_in", Gpr.Rdx, LeafOperandKind.Word, "what the guest finds in RCX and R8") { Default = 0 },
                new LeafOperand("x2apic", Gpr.R8, LeafOperandKind.Number, "x2APIC id") { Default = 0, Version = 1 },
            ],
            None,
            Ok,
            VcpuGate(OperandId.RCX),
            [
                Is(TdxStatus.TDCX_NUM_INCORRECT, "the vCPU has fewer than 6 pages"),
                Is(TdxStatus.VCPU_STATE_INCORRECT, "the vCPU is initialised already"),
                Is(TdxStatus.MAX_VCPUS_EXCEEDED, "the TD has MAX_VCPUS vCPUs already"),
            ]) with { MaxVersion = 1 },
        Host(
            TdhLeaf.VP_ENTER,
            "runs a vCPU on this processor until the guest leaves its TD",
            [
                new LeafOperand("vcpu", Gpr.Rcx, LeafOperandKind.Tdvpr, "root page of the vCPU (TDVPR)") { Bits = "51:12" },
                new LeafOperand("hint", Gpr.Rcx, LeafOperandKind.Flag, "host recoverability hint, after a trap-like exit") { Bits = "52", Shift = 52, Default = 0 },
                new LeafOperand("resume_l1", Gpr.Rcx, LeafOperandKind.Flag, "after an exit of an L2 VM") { Bits = "53", Shift = 53, Default = 0 },
            ],
            None,
            [
                Class(TdxStatus.SUCCESS, "the guest was entered, or a TD exit whose reason is in bits 31:0"),
                Class(TdxStatus.NON_RECOVERABLE_VCPU, "the vCPU can never run again (triple fault)"),
                Class(TdxStatus.NON_RECOVERABLE_TD, "the TD is dead: an exit that a production TD cannot have"),
                Class(TdxStatus.NON_RECOVERABLE_TD_NON_ACCESSIBLE, "the TD is dead and its memory must not be touched: machine check"),
                Class(TdxStatus.HOST_PRIORITY_BUSY_TIMEOUT, "the guest lost a lock to the host for too long"),
            ],
            VcpuGate(OperandId.RCX),
            [
                Is(TdxStatus.TDCX_NUM_INCORRECT, "the vCPU has fewer than 6 pages"),
                Is(TdxStatus.VCPU_STATE_INCORRECT, "the vCPU is not ready"),
                Is(TdxStatus.VCPU_ASSOCIATED, "the vCPU is associated with another processor"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.TD_EPOCH, "a TRACK is under way"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE, "faults are recorded (zero-step) and the Secure EPT is in use"),
            ]),
        Host(
            TdhLeaf.VP_FLUSH,
            "drops a vCPU's translations on this processor and ends its association",
            [Tdvpr(Gpr.Rcx)],
            None,
            Ok,
            PageOf(OperandId.RCX, "the TDVPR", "a vCPU root page"),
            [
                Is(TdxStatus.OPERAND_BUSY | OperandId.TDR, "the vCPU's TD is locked"),
                Is(TdxStatus.TD_KEYS_NOT_CONFIGURED, "the TD's key is not configured, or no longer"),
                Is(TdxStatus.TDCX_NUM_INCORRECT, "the vCPU has fewer than 6 pages"),
                Is(TdxStatus.VCPU_NOT_ASSOCIATED, "the vCPU is not associated with this processor"),
            ]),
        Host(
            TdhLeaf.VP_RD,
            "reads a metadata field of a vCPU; associates it with this processor",
            [Tdvpr(Gpr.Rcx), Field()],
            [ValueResult, NextResult],
            Ok,
            VcpuGate(OperandId.RCX),
            VcpuForFields,
            FieldRead) with { MaxVersion = 1 },
        Host(
            TdhLeaf.VP_WR,
            "writes a metadata field of a vCPU; associates it with this processor",
            [Tdvpr(Gpr.Rcx), Field(), Value(), Mask()],
            [OldResult],
            Ok,
            VcpuGate(OperandId.RCX),
            VcpuForFields,
            FieldWrite,
            [Class(TdxStatus.TD_VMCS_FIELD_NOT_INITIALIZED, "posted interrupts need vector and descriptor first")]),
    ];

    private static LeafDescription[] SystemLeaves() =>
    [
        Host(
            TdhLeaf.SYS_INIT,
            "starts the module; once, on any processor",
            [new LeafOperand("attributes", Gpr.Rcx, LeafOperandKind.Number, "must be 0") { Default = 0 }],
            None,
            Ok,
            [
                Is(TdxStatus.SYS_BUSY, "another processor changes the system state"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "the attributes are not 0"),
                Is(TdxStatus.SYS_INIT_NOT_PENDING, "done before"),
            ]),
        Host(
            TdhLeaf.SYS_LP_INIT,
            "initialises this processor",
            [],
            None,
            Ok,
            [
                Is(TdxStatus.SYS_BUSY, "another processor changes the system state"),
                Is(TdxStatus.SYS_LP_INIT_NOT_PENDING, "SYS.INIT comes first, or it is too late"),
                Is(TdxStatus.SYS_LP_INIT_DONE, "done before"),
            ]),
        Host(
            TdhLeaf.SYS_INFO,
            "writes TDSYSINFO and the list of convertible memory",
            [
                new LeafOperand("info", Gpr.Rcx, LeafOperandKind.HostMemory, "buffer of 1024 bytes, aligned to 1024"),
                new LeafOperand("bytes", Gpr.Rdx, LeafOperandKind.Number, "its size") { Default = 1024 },
                new LeafOperand("cmrs", Gpr.R8, LeafOperandKind.HostMemory, "buffer of 32 entries, aligned to 512"),
                new LeafOperand("entries", Gpr.R9, LeafOperandKind.Number, "its size") { Default = 32 },
            ],
            [new LeafResult("bytes", Gpr.Rdx, ResultKind.Number, "bytes written"), new LeafResult("entries", Gpr.R9, ResultKind.Number, "entries written")],
            Ok,
            [
                Is(TdxStatus.SYS_LP_INIT_NOT_DONE, "this processor has not been initialised"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "the first buffer is not aligned or not host memory"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RDX, "fewer than 1024 bytes"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.R8, "the second buffer is not aligned or not host memory"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.R9, "fewer than 32 entries"),
            ]),
        Host(
            TdhLeaf.SYS_RD,
            "reads a metadata field of the module",
            [Field()],
            [ValueResult, NextResult],
            Ok,
            [Is(TdxStatus.SYS_LP_INIT_NOT_DONE, "this processor has not been initialised")],
            FieldRead),
        Host(
            TdhLeaf.SYS_CONFIG,
            "gives the module its TDMRs, their PAMT and a KeyID",
            [
                new LeafOperand("array", Gpr.Rcx, LeafOperandKind.HostMemory, "addresses of the TDMR_INFO structures, aligned to 512"),
                new LeafOperand("count", Gpr.Rdx, LeafOperandKind.Number, "how many, 1..64"), new LeafOperand("hkid", Gpr.R8, LeafOperandKind.Hkid, "a private KeyID for the module itself"),
            ],
            None,
            Ok,
            [
                Is(TdxStatus.SYS_BUSY, "another processor changes the system state"),
                Is(TdxStatus.SYS_CONFIG_NOT_PENDING, "wrong state, or a processor has not been initialised"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "the array or a structure is not aligned or not host memory"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RDX, "not 1..64"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.R8, "not a private KeyID"),
                Class(TdxStatus.INVALID_TDMR, "base or size of TDMR n (byte 0)"),
                Class(TdxStatus.NON_ORDERED_TDMR, "TDMR n is not above the one before"),
                Class(TdxStatus.NON_ORDERED_RESERVED_IN_TDMR, "reserved area m (byte 1) of TDMR n is not above the one before"),
                Class(TdxStatus.INVALID_RESERVED_IN_TDMR, "reserved area m of TDMR n is not aligned or not inside"),
                Class(TdxStatus.INVALID_PAMT, "PAMT area m (byte 1) of TDMR n is not aligned, too small, or beyond the physical width"),
                Class(TdxStatus.PAMT_OVERLAP, "a PAMT area overlaps another one or usable memory of a TDMR"),
                Class(TdxStatus.PAMT_OUTSIDE_CMRS, "a PAMT area is not convertible memory"),
                Class(TdxStatus.TDMR_OUTSIDE_CMRS, "usable memory of TDMR n is not convertible memory"),
            ]),
        Host(
            TdhLeaf.SYS_KEY_CONFIG,
            "programs the module's key on this package",
            [],
            None,
            Ok,
            [
                Is(TdxStatus.SYS_BUSY, "another processor changes the system state"),
                Is(TdxStatus.SYS_KEY_CONFIG_NOT_PENDING, "SYS.CONFIG comes first, or it is done"),
                Is(TdxStatus.KEY_CONFIGURED, "this package has the key already"),
            ]),
        Host(
            TdhLeaf.SYS_TDMR_INIT,
            "initialises the PAMT of the next part of a TDMR",
            [new LeafOperand("tdmr", Gpr.Rcx, LeafOperandKind.Page, "base of the TDMR")],
            [new LeafResult("next", Gpr.Rdx, ResultKind.Word, "everything below this address can be used")],
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "not the base of a TDMR"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.RCX, "another processor initialises this TDMR"),
                Is(TdxStatus.TDMR_ALREADY_INITIALIZED, "the whole TDMR is done"),
            ]),
        Host(TdhLeaf.SYS_LP_SHUTDOWN, "does nothing; kept for old hosts", [], None, Ok),
        Host(
            TdhLeaf.SYS_SHUTDOWN,
            "shuts the module down for good",
            [new LeafOperand("handoff", Gpr.Rcx, LeafOperandKind.Number, "version of the handoff data, 0") { Default = 0 }],
            None,
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "no such handoff version"),
                Is(TdxStatus.SYS_BUSY, "another processor is inside a TD or changes the system state"),
            ]),
    ];
}
