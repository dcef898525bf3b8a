namespace Tdp.Mmu;

/// <summary>Which roots an operation visits (KVM: kvm_tdp_mmu_root_types; tdp-mmu 1.5).</summary>
[Flags]
public enum RootKinds
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary>Permission to visit invalid roots, too; selects nothing by itself.</summary>
    Invalid = 1,

    /// <summary>Direct roots.</summary>
    Direct = 2,

    /// <summary>Mirror roots.</summary>
    Mirror = 4,

    /// <summary>Direct and mirror roots that are valid.</summary>
    Valid = 6,

    /// <summary>Every root.</summary>
    All = 7,
}

/// <summary>Which alias an operation is about (KVM: kvm_gfn_range_filter).</summary>
[Flags]
public enum AliasFilter
{
    /// <summary>None: a WARN in a VM with a mirror.</summary>
    None = 0,

    /// <summary>The shared alias: direct roots.</summary>
    Shared = 1,

    /// <summary>The private alias: mirror roots.</summary>
    Private = 2,

    /// <summary>Both.</summary>
    Both = 3,
}

/// <summary>The role word of a table (tdp-mmu 1.3): everything that must be equal for two users to share a root.</summary>
/// <param name="Value">The 32 bits.</param>
public readonly record struct TableRole(uint Value)
{
    /// <summary>Bit 11: the root was invalidated. Only roots carry it.</summary>
    public const uint Invalid = 1 << 11;

    /// <summary>Bit 16: A/D type "disabled".</summary>
    public const uint AdDisabled = 1 << 16;

    /// <summary>Bit 17: nested guest.</summary>
    public const uint GuestMode = 1 << 17;

    /// <summary>Bit 19: mirror.</summary>
    public const uint IsMirrorBit = 1 << 19;

    /// <summary>Bits 31:24: address space.</summary>
    public const uint SmmUnit = 1 << 24;

    private const uint Direct = 1 << 7;
    private const uint AccessAll = 7 << 8;
    private const uint EferNx = 1 << 12;
    private const uint Cr0Wp = 1 << 13;

    /// <summary>Level of the entries in the table.</summary>
    public Level Level => new((int)(Value & 15));

    /// <summary>True for a mirror tree.</summary>
    public bool IsMirror => (Value & IsMirrorBit) != 0;

    /// <summary>True for an invalidated root.</summary>
    public bool IsInvalid => (Value & Invalid) != 0;

    /// <summary>True when entries are of A/D type "disabled".</summary>
    public bool IsAdDisabled => (Value & AdDisabled) != 0;

    /// <summary>True for a nested guest's tree.</summary>
    public bool IsGuestMode => (Value & GuestMode) != 0;

    /// <summary>Address space: 0, or 1 in SMM.</summary>
    public int AddressSpace => (Value >> 24) != 0 ? 1 : 0;

    /// <summary>The role of a child table: one level below, valid.</summary>
    public TableRole Child => new((Value & ~Invalid) - 1);

    /// <summary>The wanted role of a root.</summary>
    public static TableRole Root(Level level, bool mirror, bool adEnabled, bool smm = false, bool guestMode = false) =>
        new((uint)level.Value | Direct | AccessAll | EferNx | Cr0Wp | (mirror ? IsMirrorBit : 0) | (adEnabled ? 0 : AdDisabled)
            | (smm ? SmmUnit : 0) | (guestMode ? GuestMode : 0));
}
