namespace Tdp.Module;

/// <summary>
/// Every leaf of this module, described once (tdx-module 1.6, 1.7). Whoever needs operands, registers or statuses by name reads them here: help texts, the
/// seamcall session, generators of calls. What a leaf really returns is compared with it by the stress of the module.
/// </summary>
public static partial class LeafCatalogue
{
    private static readonly Dictionary<string, LeafDescription> s_byName = new(StringComparer.OrdinalIgnoreCase);
    private static readonly Dictionary<int, LeafDescription> s_host = [];
    private static readonly Dictionary<int, LeafDescription> s_guest = [];

    static LeafCatalogue()
    {
        All = [.. MemoryLeaves(), .. PageLeaves(), .. TdLeaves(), .. VcpuLeaves(), .. SystemLeaves(), .. GuestLeaves()];
        foreach (LeafDescription leaf in All)
        {
            s_byName.Add(leaf.Name, leaf);
            (leaf.IsGuest ? s_guest : s_host).Add(leaf.Number, leaf);
        }
    }

    /// <summary>All leaves: memory, physical pages, TDs, vCPUs, the system, the guest.</summary>
    public static IReadOnlyList<LeafDescription> All { get; }

    /// <summary>The leaf with this full name, in any case; null when there is none.</summary>
    public static LeafDescription? Find(string name) => s_byName.GetValueOrDefault(name);

    /// <summary>The description of a host leaf; null for a number that this module does not have.</summary>
    public static LeafDescription? Of(TdhLeaf leaf) => s_host.GetValueOrDefault((int)leaf);

    /// <summary>The description of a guest leaf; null for a number that this module does not have.</summary>
    public static LeafDescription? Of(TdgLeaf leaf) => s_guest.GetValueOrDefault((int)leaf);

    private static LeafDescription Host(TdhLeaf leaf, string summary, LeafOperand[] operands, LeafResult[] results, params LeafStatus[][] statuses) =>
        new() { Name = leaf.FullName(), IsGuest = false, Number = (int)leaf, Summary = summary, Operands = operands, Results = results, Statuses = [.. Dispatcher(), .. Flat(statuses)] };

    private static LeafDescription Guest(TdgLeaf leaf, string summary, LeafOperand[] operands, LeafResult[] results, params LeafStatus[][] statuses) => new()
    {
        Name = leaf.FullName(),
        IsGuest = true,
        Number = (int)leaf,
        Summary = summary,
        Operands = operands,
        Results = results,
        Statuses = [Is(TdxStatus.OPERAND_INVALID | OperandId.RAX, "a reserved bit of RAX is set, or the version is not 0"), .. Flat(statuses)],
    };

    private static LeafStatus[] Flat(LeafStatus[][] statuses)
    {
        List<LeafStatus> flat = [];
        foreach (LeafStatus[] some in statuses)
        {
            foreach (LeafStatus status in some)
            {
                // Two checks of one leaf can have the same answer: the first says when.
                if (!flat.Exists(known => known.Status == status.Status))
                    flat.Add(status);
            }
        }

        return [.. flat];
    }

    private static LeafStatus Is(TdxStatus status, string when) => new(status, when);

    private static LeafStatus Class(TdxStatus status, string when) => new(status, when, HasDetails: true);

    private static LeafOperand Gpa(string meaning = "private guest physical address, aligned to the level") => new("gpa", Gpr.Rcx, LeafOperandKind.Gpa, meaning) { Bits = "51:12" };

    private static LeafOperand Level(int min, int max) => new("level", Gpr.Rcx, LeafOperandKind.Level, min == max ? $"{Platform.Level.FromTdx(min)} only" : $"{Platform.Level.FromTdx(min)} to {(max == 4 ? "that of the root" : Platform.Level.FromTdx(max).ToString())}")
    {
        Bits = "2:0",
        MinLevel = min,
        MaxLevel = max,
        Default = (ulong)min,
    };

    private static LeafOperand Tdr(Gpr register) => new("tdr", register, LeafOperandKind.Tdr, "root page of the TD");

    private static LeafOperand Tdvpr(Gpr register) => new("vcpu", register, LeafOperandKind.Tdvpr, "root page of the vCPU (TDVPR)");

    private static LeafOperand Free(string name, Gpr register, string meaning) => new(name, register, LeafOperandKind.FreePage, meaning);

    private static LeafOperand Field() => new("field", Gpr.Rdx, LeafOperandKind.FieldId, "metadata field id; all ones is the null id");

    private static LeafOperand Value() => new("value", Gpr.R8, LeafOperandKind.Word, "new value");

    private static LeafOperand Mask() => new("mask", Gpr.R9, LeafOperandKind.Word, "bits to write") { Default = ulong.MaxValue };

    private static LeafResult[] None => [];

    private static LeafResult ValueResult => new("value", Gpr.R8, ResultKind.Word, "the field's value");

    private static LeafResult OldResult => new("old", Gpr.R8, ResultKind.Word, "the value before");

    private static LeafResult NextResult => new("next", Gpr.Rdx, ResultKind.Word, "the next field id of the context, all ones at the end");

    private static LeafStatus[] Ok => [Is(TdxStatus.SUCCESS, "done")];

    private static LeafStatus[] Dispatcher() =>
    [
        Is(TdxStatus.OPERAND_INVALID | OperandId.RAX, "a reserved bit of RAX is set, or the leaf has no such version"),
        Is(TdxStatus.SYS_SHUTDOWN, "the module has been shut down"),
        Is(TdxStatus.SYS_NOT_READY, "the module is not up yet"),
    ];

    // tdx-module 3.2: an explicit physical operand, to the judgement of its type.
    private static LeafStatus[] PageOf(OperandId operand, string what, string wanted) =>
    [
        Is(TdxStatus.OPERAND_INVALID | operand, $"the address of {what} is not aligned, has KeyID bits, or is beyond the physical width"),
        Is(TdxStatus.OPERAND_ADDR_RANGE_ERROR | operand, $"{what} is in no initialised TDMR"),
        Is(TdxStatus.OPERAND_BUSY | operand, $"the PAMT entry of {what}, or one above it, is locked"),
        Is(TdxStatus.PAGE_METADATA_INCORRECT | operand, $"{what} is not {wanted}"),
    ];

    private static LeafStatus[] FreePageOf(OperandId operand) => PageOf(operand, "the new page", "free at that size");

    // tdx-module 4.3.
    private static LeafStatus[] TdGate(OperandId operand, bool sharesOpState) =>
    [
        .. PageOf(operand, "the TDR", "a TD root page"),
        Is(TdxStatus.TD_FATAL, "the TD is dead"),
        Is(TdxStatus.TD_KEYS_NOT_CONFIGURED, "the TD's key is not configured, or no longer"),
        Is(TdxStatus.TDCS_NOT_ALLOCATED, "the TD has fewer than 6 TDCX pages"),
        .. sharesOpState ? new[] { Is(TdxStatus.OPERAND_BUSY | OperandId.OP_STATE, "the TD's operation state is being changed") } : [],
        Is(TdxStatus.OP_STATE_INCORRECT, "the leaf is not allowed in the TD's operation state"),
    ];

    private static LeafStatus[] VcpuGate(OperandId operand) =>
    [
        .. PageOf(operand, "the TDVPR", "a vCPU root page"),
        Is(TdxStatus.OPERAND_BUSY | OperandId.TDR, "the vCPU's TD is locked"),
        Is(TdxStatus.TD_FATAL, "the TD is dead"),
        Is(TdxStatus.TD_KEYS_NOT_CONFIGURED, "the TD's key is not configured, or no longer"),
        Is(TdxStatus.TDCS_NOT_ALLOCATED, "the TD has fewer than 6 TDCX pages"),
        Is(TdxStatus.OPERAND_BUSY | OperandId.OP_STATE, "the TD's operation state is being changed"),
        Is(TdxStatus.OP_STATE_INCORRECT, "the leaf is not allowed in the TD's operation state"),
    ];
}
