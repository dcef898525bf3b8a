namespace Tdp.Module;

// TDH.MEM.*, TDH.MR.* (tdx-module 5.6, 5.7) and TDH.PHYMEM.* (3.4).
public static partial class LeafCatalogue
{
    private static LeafStatus[] PageInfoAndTree =>
    [
        Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "level out of range, address not aligned to it, or not private"),
        Is(TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE, "the Secure EPT is in use the other way"),
        Is(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, "the walk stopped above the level; RCX and RDX say where"),
        Is(TdxStatus.OPERAND_BUSY | OperandId.RCX, "the entry, or the page it points to, is locked"),
        Is(TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, "the entry is in a state that the leaf cannot use; RCX and RDX describe it"),
    ];

    private static LeafStatus[] NotBlocked =>
    [
        Is(TdxStatus.GPA_RANGE_NOT_BLOCKED | OperandId.RCX, "the TD may run and the entry is not blocked"),
        Is(TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX, "no TRACK since the block, or a vCPU still runs in the old epoch"),
    ];

    private static LeafStatus[] Restartable => [Is(TdxStatus.INTERRUPTED_RESTARTABLE, "an interrupt is pending; nothing was changed")];

    private static LeafDescription[] MemoryLeaves() =>
    [
        Host(
            TdhLeaf.MEM_SEPT_ADD,
            "adds a Secure EPT page below an entry",
            [
                Gpa(), Level(1, 4), Tdr(Gpr.Rdx), Free("page", Gpr.R8, "free page that becomes the Secure EPT page; all ones for none (version 1)"),
                new LeafOperand("allow_existing", Gpr.Rdx, LeafOperandKind.Flag, "success if there is a Secure EPT page already") { Bits = "0", Default = 0 },
                new LeafOperand("l2_1", Gpr.R9, LeafOperandKind.Word, "page for L2 VM 1, or all ones") { Default = ulong.MaxValue, Version = 1 },
                new LeafOperand("l2_2", Gpr.R10, LeafOperandKind.Word, "page for L2 VM 2, or all ones") { Default = ulong.MaxValue, Version = 1 },
                new LeafOperand("l2_3", Gpr.R11, LeafOperandKind.Word, "page for L2 VM 3, or all ones") { Default = ulong.MaxValue, Version = 1 },
            ],
            None,
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            FreePageOf(OperandId.R8),
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.R9, "version 1: the TD has no L2 VM that could use the page"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.R10, "version 1: the TD has no L2 VM that could use the page"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.R11, "version 1: the TD has no L2 VM that could use the page"),
            ]) with { MaxVersion = 1 },
        Host(
            TdhLeaf.MEM_PAGE_ADD,
            "gives a page with content to a TD that is being built, and measures that it did",
            [Gpa(), Level(0, 0), Tdr(Gpr.Rdx), Free("page", Gpr.R8, "free page that becomes private"), new LeafOperand("source", Gpr.R9, LeafOperandKind.HostMemory, "host page that is copied")],
            None,
            Ok,
            TdGate(OperandId.RDX, sharesOpState: false),
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "level out of range, address not aligned to it, or not private"),
                Is(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, "the walk stopped above the level; RCX and RDX say where"),
                Is(TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, "the entry is not free; RCX and RDX describe it"),
                Is(TdxStatus.OPERAND_INVALID | OperandId.R9, "the source is not aligned, has a private KeyID, or is not memory"),
            ],
            FreePageOf(OperandId.R8)),
        Host(
            TdhLeaf.MEM_PAGE_AUG,
            "gives a free page to a TD as pending: the guest must accept it",
            [Gpa(), Level(0, 1), Tdr(Gpr.Rdx), Free("page", Gpr.R8, "free page or 2M range that becomes private; its content stays")],
            None,
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            FreePageOf(OperandId.R8)),
        Host(
            TdhLeaf.MEM_RANGE_BLOCK,
            "forbids new translations through an entry",
            [Gpa(), Level(0, 4), Tdr(Gpr.Rdx)],
            None,
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            [Is(TdxStatus.GPA_RANGE_ALREADY_BLOCKED | OperandId.RCX, "the entry is blocked already; RCX and RDX describe it")]),
        Host(
            TdhLeaf.MEM_RANGE_UNBLOCK,
            "takes a block back",
            [Gpa(), Level(0, 4), Tdr(Gpr.Rdx)],
            None,
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            [Is(TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.SEPT_TREE, "no TRACK since the block, or a vCPU still runs in the old epoch")]),
        Host(
            TdhLeaf.MEM_TRACK,
            "starts a new TLB-tracking epoch",
            [Tdr(Gpr.Rcx)],
            None,
            Ok,
            TdGate(OperandId.RCX, sharesOpState: true),
            [
                Is(TdxStatus.OPERAND_BUSY | OperandId.TD_EPOCH, "a vCPU is just entering"),
                Is(TdxStatus.PREVIOUS_TLB_EPOCH_BUSY, "a vCPU that entered before the last TRACK has not left yet"),
            ]),
        Host(
            TdhLeaf.MEM_PAGE_REMOVE,
            "takes a private page back",
            [Gpa(), Level(0, 2), Tdr(Gpr.Rdx)],
            [new LeafResult("page", Gpr.Rcx, ResultKind.Word, "the page that is free again")],
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            NotBlocked),
        Host(
            TdhLeaf.MEM_SEPT_REMOVE,
            "takes an empty Secure EPT page back",
            [Gpa(), Level(1, 4), Tdr(Gpr.Rdx)],
            [new LeafResult("page", Gpr.Rcx, ResultKind.Word, "the page that is free again")],
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            NotBlocked,
            [Is(TdxStatus.EPT_PAGE_NOT_FREE | OperandId.RCX, "an entry of the page is not free")]) with { MaxVersion = 1 },
        Host(
            TdhLeaf.MEM_SEPT_RD,
            "reads a Secure EPT entry",
            [Gpa(), Level(0, 4), Tdr(Gpr.Rdx), new LeafOperand("l2", Gpr.Rdx, LeafOperandKind.Flag, "L2 attributes too; debug TDs only") { Bits = "0", Default = 0 }],
            [new LeafResult("entry", Gpr.Rcx, ResultKind.Entry, "the entry as the host may see it"), new LeafResult("state", Gpr.Rdx, ResultKind.EntryState, "its level and state")],
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree),
        Host(
            TdhLeaf.MEM_PAGE_PROMOTE,
            "merges 512 consecutive pages into one",
            [Gpa(), Level(1, 2), Tdr(Gpr.Rdx)],
            [new LeafResult("page", Gpr.Rcx, ResultKind.Word, "the Secure EPT page that is free again")],
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            NotBlocked,
            [Is(TdxStatus.EPT_INVALID_PROMOTE_CONDITIONS | OperandId.RCX, "the pages are not all alike and consecutive")],
            Restartable) with { MaxVersion = 1 },
        Host(
            TdhLeaf.MEM_PAGE_DEMOTE,
            "splits a large page into 512",
            [
                Gpa(), Level(1, 2), Tdr(Gpr.Rdx), Free("page", Gpr.R8, "free page that becomes the Secure EPT page"),
                new LeafOperand("flag", Gpr.Rdx, LeafOperandKind.Flag, "reserved for L2 VMs") { Bits = "0", Default = 0 },
            ],
            None,
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            NotBlocked,
            FreePageOf(OperandId.R8),
            Restartable),
        Host(
            TdhLeaf.MEM_PAGE_RELOCATE,
            "moves a private page to another physical page",
            [Gpa(), Level(0, 0), Tdr(Gpr.Rdx), Free("page", Gpr.R8, "free page that the content moves to")],
            [new LeafResult("page", Gpr.Rcx, ResultKind.Word, "the old page, which is free again")],
            Ok,
            TdGate(OperandId.RDX, sharesOpState: true),
            PageInfoAndTree,
            NotBlocked,
            FreePageOf(OperandId.R8)),
        Host(
            TdhLeaf.MEM_RD,
            "reads 8 bytes of a debug TD's private memory",
            [new LeafOperand("gpa", Gpr.Rcx, LeafOperandKind.Gpa, "private guest physical address, a multiple of 8"), Tdr(Gpr.Rdx)],
            [new LeafResult("value", Gpr.R8, ResultKind.Word, "the 8 bytes")],
            Ok,
            DebugAccess),
        Host(
            TdhLeaf.MEM_WR,
            "writes 8 bytes of a debug TD's private memory",
            [new LeafOperand("gpa", Gpr.Rcx, LeafOperandKind.Gpa, "private guest physical address, a multiple of 8"), Tdr(Gpr.Rdx), new LeafOperand("value", Gpr.R8, LeafOperandKind.Word, "the new 8 bytes")],
            [new LeafResult("old", Gpr.R8, ResultKind.Word, "the 8 bytes before")],
            Ok,
            DebugAccess),
        Host(
            TdhLeaf.MR_EXTEND,
            "measures 256 bytes of a page that was added",
            [new LeafOperand("gpa", Gpr.Rcx, LeafOperandKind.Gpa, "private guest physical address, a multiple of 256"), Tdr(Gpr.Rdx)],
            None,
            Ok,
            TdGate(OperandId.RDX, sharesOpState: false),
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "the address is not a multiple of 256, or not private"),
                Is(TdxStatus.EPT_ENTRY_NOT_PRESENT | OperandId.RCX, "there is no accessible page; RCX and RDX say what there is"),
                Is(TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, "the page is not mapped"),
            ]),
        Host(
            TdhLeaf.MR_FINALIZE,
            "closes the measurement; from now on the TD may run",
            [Tdr(Gpr.Rcx)],
            None,
            Ok,
            TdGate(OperandId.RCX, sharesOpState: false),
            [Is(TdxStatus.NO_VCPUS, "the TD has no vCPU")]),
    ];

    private static LeafStatus[] DebugAccess =>
    [
        .. TdGate(OperandId.RDX, sharesOpState: true),
        Is(TdxStatus.TD_NON_DEBUG, "the TD is not a debug TD"),
        Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "the address is not a multiple of 8, or not private"),
        Is(TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE, "the Secure EPT is in use the other way"),
        Is(TdxStatus.EPT_ENTRY_NOT_PRESENT | OperandId.RCX, "there is no accessible page; RCX and RDX say what there is"),
        Is(TdxStatus.OPERAND_BUSY | OperandId.RCX, "the entry is locked"),
        Is(TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, "the page is not mapped"),
    ];

    private static LeafDescription[] PageLeaves() =>
    [
        Host(
            TdhLeaf.PHYMEM_PAGE_RDMD,
            "reads the PAMT entry of a page",
            [new LeafOperand("page", Gpr.Rcx, LeafOperandKind.Page, "the page")],
            [
                new LeafResult("type", Gpr.Rcx, ResultKind.PageType, "what the page is used for"), new LeafResult("owner", Gpr.Rdx, ResultKind.Word, "root page of the TD that has it"),
                new LeafResult("size", Gpr.R8, ResultKind.Size, "size of the entry that covers it"), new LeafResult("bepoch", Gpr.R9, ResultKind.Word, "epoch of the last block"),
            ],
            Ok,
            PageOf(OperandId.RCX, "the page", "in use")[..3]),
        Host(
            TdhLeaf.PHYMEM_PAGE_RECLAIM,
            "takes a page back from a TD whose KeyID is free again",
            [new LeafOperand("page", Gpr.Rcx, LeafOperandKind.Page, "the page; a TD's root page last")],
            [
                new LeafResult("type", Gpr.Rcx, ResultKind.PageType, "what the page was used for"), new LeafResult("owner", Gpr.Rdx, ResultKind.Word, "root page of the TD that had it"),
                new LeafResult("size", Gpr.R8, ResultKind.Size, "its size"),
            ],
            Ok,
            PageOf(OperandId.RCX, "the page", "in use"),
            [
                Is(TdxStatus.OPERAND_BUSY | OperandId.TDR, "the owner's root page is locked"),
                Is(TdxStatus.LIFECYCLE_STATE_INCORRECT, "the owner's KeyID has not been freed"),
                Is(TdxStatus.TD_ASSOCIATED_PAGES_EXIST, "the TD still has pages"),
            ]),
        Host(
            TdhLeaf.PHYMEM_PAGE_WBINVD,
            "writes the cache lines of a free page back",
            [
                new LeafOperand("page", Gpr.Rcx, LeafOperandKind.Page, "the page, given back before"),
                new LeafOperand("hkid", Gpr.Rcx, LeafOperandKind.HkidOfAddress, "the KeyID whose lines are written back") { Bits = "KeyID", Default = 0 },
            ],
            None,
            Ok,
            PageOf(OperandId.RCX, "the page", "free")),
        Host(
            TdhLeaf.PHYMEM_CACHE_WB,
            "writes the caches of this package back",
            [new LeafOperand("resume", Gpr.Rcx, LeafOperandKind.Number, "0 starts, 1 goes on after an interruption") { Default = 0 }],
            None,
            Ok,
            [
                Is(TdxStatus.OPERAND_INVALID | OperandId.RCX, "neither 0 nor 1"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.WBCACHE, "another processor of the package does it"),
                Is(TdxStatus.OPERAND_BUSY | OperandId.KOT, "the key ownership table is being changed"),
                Is(TdxStatus.WBCACHE_RESUME_ERROR, "nothing was interrupted"),
                Is(TdxStatus.NO_HKID_READY_TO_WBCACHE, "no KeyID waits for it"),
                Is(TdxStatus.INTERRUPTED_RESUMABLE, "an interrupt is pending; call again with 1"),
            ]),
    ];
}
