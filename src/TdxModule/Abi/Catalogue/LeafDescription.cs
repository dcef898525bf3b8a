namespace Tdp.Module;

/// <summary>What an operand of a leaf stands for: how a person may write it, and what a generator of calls has to draw.</summary>
public enum LeafOperandKind : byte
{
    /// <summary>Any 64-bit value.</summary>
    Word,

    /// <summary>A guest physical address.</summary>
    Gpa,

    /// <summary>A level of the Secure EPT: 4K to 256T, in the module's numbering.</summary>
    Level,

    /// <summary>The root page of a TD.</summary>
    Tdr,

    /// <summary>The root page of a vCPU.</summary>
    Tdvpr,

    /// <summary>A page that nobody uses and that the call will give to a TD.</summary>
    FreePage,

    /// <summary>Any page in a TDMR.</summary>
    Page,

    /// <summary>Memory of the host that the module reads or writes.</summary>
    HostMemory,

    /// <summary>A KeyID in a register of its own.</summary>
    Hkid,

    /// <summary>A KeyID in the upper bits of a physical address; where these are depends on the machine.</summary>
    HkidOfAddress,

    /// <summary>A metadata field id.</summary>
    FieldId,

    /// <summary>One bit.</summary>
    Flag,

    /// <summary>A number.</summary>
    Number,
}

/// <summary>One operand of a leaf (tdx-module 1.6, 1.7).</summary>
/// <param name="Name">Name, lower case.</param>
/// <param name="Register">The register that carries it.</param>
/// <param name="Kind">What it stands for.</param>
/// <param name="Meaning">One line.</param>
public sealed record LeafOperand(string Name, Gpr Register, LeafOperandKind Kind, string Meaning)
{
    /// <summary>Lowest bit of the register that it uses; several operands can share a register.</summary>
    public int Shift { get; init; }

    /// <summary>The bits as the specification writes them, such as <c>51:12</c>; empty for a whole register.</summary>
    public string Bits { get; init; } = string.Empty;

    /// <summary>The value when it is not given; null when it must be given.</summary>
    public ulong? Default { get; init; }

    /// <summary>For a level: the lowest that the leaf takes, in the module's numbering.</summary>
    public int MinLevel { get; init; }

    /// <summary>For a level: the highest that the leaf takes, in the module's numbering; a 4-level Secure EPT ends at 3.</summary>
    public int MaxLevel { get; init; } = 4;

    /// <summary>The first version of the leaf that has it.</summary>
    public int Version { get; init; }
}

/// <summary>How an output register is read.</summary>
public enum ResultKind : byte
{
    /// <summary>A value, written in hex.</summary>
    Word,

    /// <summary>A number, written in decimal.</summary>
    Number,

    /// <summary>A page type (<see cref="PageType"/>).</summary>
    PageType,

    /// <summary>A size in the module's numbering of levels.</summary>
    Size,

    /// <summary>RCX of extended information: a Secure EPT entry as the host sees it (tdx-module 5.4).</summary>
    Entry,

    /// <summary>RDX of extended information: level and state of the entry.</summary>
    EntryState,
}

/// <summary>One result of a leaf that succeeded.</summary>
/// <param name="Name">Name, lower case.</param>
/// <param name="Register">The register that carries it.</param>
/// <param name="Kind">How it is read.</param>
/// <param name="Meaning">One line.</param>
public readonly record struct LeafResult(string Name, Gpr Register, ResultKind Kind, string Meaning);

/// <summary>One status that a leaf can return.</summary>
/// <param name="Status">The status, with its operand.</param>
/// <param name="When">When it is returned.</param>
/// <param name="HasDetails">Bits 31:0 carry something that differs from call to call: a level, an index, an exit reason.</param>
public readonly record struct LeafStatus(TdxStatus Status, string When, bool HasDetails = false)
{
    /// <summary>True when a returned status is this one.</summary>
    public bool Matches(TdxStatus returned) => HasDetails ? returned.Class == Status : returned == Status;
}

/// <summary>
/// One SEAMCALL or TDCALL leaf as data: what it does, its operands, results and statuses (tdx-module 1.6, 1.7 and the tables of each leaf). Immutable.
/// </summary>
public sealed record LeafDescription
{
    /// <summary>Full name, such as <c>TDH.MEM.PAGE.AUG</c>.</summary>
    public required string Name { get; init; }

    /// <summary>True for a TDCALL leaf.</summary>
    public required bool IsGuest { get; init; }

    /// <summary>RAX bits 15:0.</summary>
    public required int Number { get; init; }

    /// <summary>What it does, in one line.</summary>
    public required string Summary { get; init; }

    /// <summary>The highest version that some profile accepts.</summary>
    public int MaxVersion { get; init; }

    /// <summary>Operands, in the order in which people write them.</summary>
    public IReadOnlyList<LeafOperand> Operands { get; init; } = [];

    /// <summary>Results of a success.</summary>
    public IReadOnlyList<LeafResult> Results { get; init; } = [];

    /// <summary>Every status that the leaf can return, in the order of its checks.</summary>
    public required IReadOnlyList<LeafStatus> Statuses { get; init; }

    /// <summary>True when the leaf lists this status.</summary>
    public bool CanReturn(TdxStatus status)
    {
        foreach (LeafStatus known in Statuses)
        {
            if (known.Matches(status))
                return true;
        }

        return false;
    }

    /// <inheritdoc/>
    public override string ToString() => Name;
}
