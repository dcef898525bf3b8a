namespace Tdp.Module;

// TDG.* (tdx-module 1.7, 5.10, 8, 9).
public static partial class LeafCatalogue
{
    private static LeafOperand Zero => new("zero", Gpr.Rcx, LeafOperandKind.Number, "must be 0") { Default = 0 };

    private static LeafStatus[] ZeroRcx => [Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "RCX is not 0")];

    private static LeafDescription[] GuestLeaves() =>
    [
        Guest(
            TdgLeaf.VP_VMCALL,
            "leaves the TD and shows the host the registers of a mask",
            [
                new LeafOperand("mask", Gpr.Rcx, LeafOperandKind.Word, "registers that pass: bit n is general register n, bit 16 + n is XMM n"),
                Passed("r10", Gpr.R10), Passed("r11", Gpr.R11), Passed("r12", Gpr.R12), Passed("r13", Gpr.R13), Passed("r14", Gpr.R14), Passed("r15", Gpr.R15),
            ],
            None,
            [
                Is(TdxStatus.SUCCESS, "the TD was left; the answer comes with the next VP.ENTER"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "the mask has RAX, RCX, RSP, a reserved bit, or RBP where the TD forbids it"),
            ]),
        Guest(
            TdgLeaf.VP_INFO,
            "tells the guest about itself",
            [],
            [
                new LeafResult("gpaw", Gpr.Rcx, ResultKind.Number, "guest physical address width"), new LeafResult("attributes", Gpr.Rdx, ResultKind.Word, "ATTRIBUTES"),
                new LeafResult("vcpus", Gpr.R8, ResultKind.Word, "NUM_VCPUS in 31:0, MAX_VCPUS in 63:32"), new LeafResult("index", Gpr.R9, ResultKind.Number, "index of this vCPU"),
            ],
            Ok),
        Guest(
            TdgLeaf.MR_RTMR_EXTEND,
            "extends a run-time measurement register",
            [
                new LeafOperand("gpa", Gpr.Rcx, LeafOperandKind.Gpa, "48 bytes of private memory, aligned to 64"),
                new LeafOperand("index", Gpr.Rdx, LeafOperandKind.Number, "the register, 0..3"),
            ],
            None,
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "not aligned, or not private"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RDX, "not 0..3"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.RTMR, "another vCPU uses the registers"),
            ]),
        Guest(
            TdgLeaf.VP_VEINFO_GET,
            "reads what the last #VE was about, and allows the next one",
            [],
            [
                new LeafResult("reason", Gpr.Rcx, ResultKind.Number, "exit reason"), new LeafResult("qualification", Gpr.Rdx, ResultKind.Word, "exit qualification"),
                new LeafResult("gla", Gpr.R8, ResultKind.Word, "linear address"), new LeafResult("gpa", Gpr.R9, ResultKind.Word, "guest physical address"),
                new LeafResult("length", Gpr.R10, ResultKind.Word, "instruction length in 31:0, information in 63:32"),
            ],
            Ok,
            [Is(TdxStatus.NO_VALID_VE_INFO, "there is nothing to read")]),
        Guest(
            TdgLeaf.MR_REPORT,
            "writes a TDREPORT",
            [
                new LeafOperand("report", Gpr.Rcx, LeafOperandKind.Gpa, "1024 bytes, aligned to 1024"), new LeafOperand("data", Gpr.Rdx, LeafOperandKind.Gpa, "64 bytes of report data, aligned to 64"),
                new LeafOperand("subtype", Gpr.R8, LeafOperandKind.Number, "must be 0") { Default = 0 },
            ],
            None,
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "the report's address is not aligned or beyond the guest's width"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RDX, "the data's address is not aligned or beyond the guest's width"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.R8, "the subtype is not 0"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.RTMR, "another vCPU extends a register"),
            ]),
        Guest(
            TdgLeaf.VP_CPUIDVE_SET,
            "makes every CPUID a #VE",
            [new LeafOperand("levels", Gpr.Rcx, LeafOperandKind.Number, "bit 0 at CPL 0, bit 1 at CPL 1 to 3")],
            None,
            Ok,
            [Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "another bit is set")]),
        Guest(
            TdgLeaf.MEM_PAGE_ACCEPT,
            "accepts a pending page, which becomes zero and accessible",
            [Gpa(), Level(0, 1)],
            None,
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "level out of range, address not aligned to it, or not private"),
                Class(TdxStatus.PAGE_ALREADY_ACCEPTED, "the page is accessible already; bits 31:0 are its level"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.RCX, "the host uses the entry, or has lost it before"),
                Class(TdxStatus.PAGE_SIZE_MISMATCH, "the host mapped smaller pages there; bits 31:0 are the requested level"),
            ]),
        Guest(TdgLeaf.VM_RD, "reads a metadata field of the TD", [Field(), Zero], [ValueResult, NextResult], Ok, ZeroRcx, FieldRead) with { MaxVersion = 1 },
        Guest(TdgLeaf.VM_WR, "writes a metadata field of the TD", [Field(), Value(), Mask(), Zero], [OldResult], Ok, ZeroRcx, FieldWrite, WriteMaskAndRace),
        Guest(TdgLeaf.VP_RD, "reads a metadata field of this vCPU", [Field(), Zero], [ValueResult, NextResult], Ok, ZeroRcx, FieldRead),
        Guest(TdgLeaf.VP_WR, "writes a metadata field of this vCPU", [Field(), Value(), Mask(), Zero], [OldResult], Ok, ZeroRcx, FieldWrite),
        Guest(TdgLeaf.SYS_RD, "reads a metadata field of the module", [Field()], [ValueResult, NextResult], Ok, FieldRead),
        Guest(
            TdgLeaf.MR_VERIFYREPORT,
            "checks the MAC of a report of this machine",
            [new LeafOperand("gpa", Gpr.Rcx, LeafOperandKind.Gpa, "REPORTMACSTRUCT in private memory, aligned to 256")],
            None,
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "not aligned, or not private"),
                Is(TdxStatus.INVALID_CPUSVN, "another CPU security version"),
                Is(TdxStatus.INVALID_REPORTMACSTRUCT, "not a report of this machine"),
            ]),
        Guest(
            TdgLeaf.MEM_PAGE_ATTR_RD,
            "reads size and attributes of a mapping",
            [new LeafOperand("gpa", Gpr.Rcx, LeafOperandKind.Gpa, "private guest physical address")],
            [new LeafResult("mapping", Gpr.Rcx, ResultKind.Word, "its address, level in 2:0, pending in 62"), new LeafResult("attributes", Gpr.Rdx, ResultKind.Word, "16 bits per VM")],
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "not private"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.RCX, "the host uses the entry, or has lost it before"),
            ]),
        Guest(
            TdgLeaf.MEM_PAGE_ATTR_WR,
            "writes attributes of L2 VMs",
            [
                Gpa(), Level(0, 2), new LeafOperand("attributes", Gpr.Rdx, LeafOperandKind.Word, "16 bits per VM; none can be set without L2 VMs") { Default = 0 },
                new LeafOperand("mask", Gpr.R8, LeafOperandKind.Word, "bits to write, and flags") { Default = 0 },
            ],
            None,
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RDX, "an attribute of a VM that does not exist"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.R8, "a mask bit of a VM that does not exist"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "level out of range, address not aligned to it, or not private"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.RCX, "the host uses the entry, or has lost it before"),
                Class(TdxStatus.PAGE_SIZE_MISMATCH, "the host mapped smaller pages there; bits 31:0 are the requested level"),
            ]),
    ];

    private static LeafOperand Passed(string name, Gpr register) => new(name, register, LeafOperandKind.Word, $"{name.ToUpperInvariant()}, if the mask passes it") { Default = 0 };
}
