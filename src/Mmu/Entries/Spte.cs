namespace Tdp.Mmu;

/// <summary>What an entry is, for code that must handle all three (house: the three-way state as a type).</summary>
public enum SpteKind : byte
{
    /// <summary>Not present: a hole, FROZEN, or an MMIO entry.</summary>
    Absent,

    /// <summary>Points to a table of the level below.</summary>
    Table,

    /// <summary>Maps memory.</summary>
    Leaf,
}

/// <summary>
/// The 64-bit value of an entry of a KVM tree, in the bit layout of EPT plus KVM's software bits (tdp-mmu 2.1). A value, not a place: the place is
/// <see cref="SpteRef"/>.
/// </summary>
/// <param name="Value">The bits.</param>
public readonly record struct Spte(ulong Value)
{
    /// <summary>Bit 0, R.</summary>
    public const ulong Readable = 1;

    /// <summary>Bit 1, W.</summary>
    public const ulong WritableBit = 2;

    /// <summary>Bit 2, X.</summary>
    public const ulong ExecutableBit = 4;

    /// <summary>Bits 2:0.</summary>
    public const ulong Rwx = 7;

    /// <summary>Bits 5:3 = 6: write-back.</summary>
    public const ulong WriteBack = 6 << 3;

    /// <summary>Bit 6: the guest's PAT is ignored.</summary>
    public const ulong IgnorePat = 1 << 6;

    /// <summary>Bit 7: a leaf above 4K. To be asked of present entries only: FROZEN has it set.</summary>
    public const ulong LargeBit = 1 << 7;

    /// <summary>Bit 8, A.</summary>
    public const ulong AccessedBit = 1 << 8;

    /// <summary>Bit 9, D.</summary>
    public const ulong DirtyBit = 1 << 9;

    /// <summary>Bit 11: the only definition of "present" for KVM.</summary>
    public const ulong PresentBit = 1 << 11;

    /// <summary>Bits 53:52: A/D type. 0 enabled, 1 disabled, 2 write-protect only.</summary>
    public const ulong AdTypeMask = 3UL << 52;

    /// <summary>A/D type 1: the hardware maintains neither bit.</summary>
    public const ulong AdDisabled = 1UL << 52;

    /// <summary>A/D type 2: dirty logging must write-protect.</summary>
    public const ulong AdWriteProtectOnly = 2UL << 52;

    /// <summary>R and X at bits 54 and 56 while the entry is access-tracked (tdp-mmu 2.5).</summary>
    public const ulong SavedRx = 5UL << SavedShift;

    /// <summary>Bit 57: the host maps the page writable.</summary>
    public const ulong HostWritable = 1UL << 57;

    /// <summary>Bit 58: the MMU may set W without mmu_lock.</summary>
    public const ulong MmuWritable = 1UL << 58;

    /// <summary>Bit 63: a violation here is an exit, not #VE in the guest.</summary>
    public const ulong SuppressVe = 1UL << 63;

    /// <summary>Bits 51:12.</summary>
    public const ulong AddressMask = Hpa.Mask;

    /// <summary>
    /// A hole (KVM: SHADOW_NONPRESENT_VALUE), 0x8000000000000000: bit 63 makes a touch an EPT violation exit.
    /// </summary>
    public static readonly Spte NonPresent = new(NonPresentValue);

    /// <summary>
    /// The lock-out value of the update protocol (KVM: FROZEN_SPTE, up to v6.10 REMOVED_SPTE), 0x80000000000005A0. Only the thread that froze an
    /// entry may change it (I15); every other one reads it and gives up or waits (tdp-mmu 4.10).
    /// </summary>
    public static readonly Spte Frozen = new(FrozenValue);

    internal const ulong NonPresentValue = 0x8000_0000_0000_0000;
    internal const ulong FrozenValue = 0x8000_0000_0000_05A0;

    /// <summary>Fills a table that was given back, so that whoever still looks into it is seen (I45). Not present, not FROZEN, not MMIO.</summary>
    internal const ulong PoisonValue = 0x8000_0DEA_DF4E_E000;

    private const int SavedShift = 54;

    /// <summary>True when bit 11 is set.</summary>
    public bool IsPresent
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (Value & PresentBit) != 0;
    }

    /// <summary>True for <see cref="Frozen"/>.</summary>
    public bool IsFrozen
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Value == FrozenValue;
    }

    /// <summary>The number of the 4 KiB frame in bits 51:12.</summary>
    public ulong Pfn => (Value & AddressMask) >> 12;

    /// <summary>The address in bits 51:12: of the child table, or of the memory mapped.</summary>
    public Hpa Address
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(Value & AddressMask);
    }

    /// <summary>W.</summary>
    public bool IsWritable => (Value & WritableBit) != 0;

    /// <summary>X.</summary>
    public bool IsExecutable => (Value & ExecutableBit) != 0;

    /// <summary>Bit 8.</summary>
    public bool IsAccessed => (Value & AccessedBit) != 0;

    /// <summary>Bit 9.</summary>
    public bool IsDirty => (Value & DirtyBit) != 0;

    /// <summary>Bit 58.</summary>
    public bool IsMmuWritable => (Value & MmuWritable) != 0;

    /// <summary>Bit 57.</summary>
    public bool IsHostWritable => (Value & HostWritable) != 0;

    /// <summary>A/D type "enabled".</summary>
    public bool IsAdEnabled => (Value & AdTypeMask) != AdDisabled;

    /// <summary>Access-tracked: A/D type "disabled" and no rights left (tdp-mmu 2.5).</summary>
    public bool IsAccessTracked => (Value & AdTypeMask) == AdDisabled && (Value & Rwx) == 0;

    /// <summary>True when a present entry is a leaf at <paramref name="level"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsLast(Level level) => level.Value == 1 || (Value & LargeBit) != 0;

    /// <summary>True when present and a leaf at <paramref name="level"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsLeaf(Level level) => IsPresent && IsLast(level);

    /// <summary>What the entry is at <paramref name="level"/>.</summary>
    public SpteKind Kind(Level level) => !IsPresent ? SpteKind.Absent : IsLast(level) ? SpteKind.Leaf : SpteKind.Table;

    /// <summary>
    /// True when somebody else may change a present leaf without mmu_lock in a way that must not be lost: the fast page fault sets W, the hardware sets
    /// D, access tracking is on (KVM: spte_needs_atomic_update; tdp-mmu 2.5). A alone never asks for it.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool NeedsAtomicUpdate(Level level) => IsLeaf(level) && (Value & Settled) != (WritableBit | DirtyBit | MmuWritable) && IsUnsettled();

    // An ordinary writable leaf: there is nothing left that anybody could set.
    private const ulong Settled = WritableBit | DirtyBit | MmuWritable | AdTypeMask;

    private bool IsUnsettled()
    {
        if ((Value & (WritableBit | MmuWritable)) == MmuWritable)
            return true;
        return (Value & AdTypeMask) == AdDisabled || (Value & (WritableBit | DirtyBit)) == WritableBit;
    }

    /// <summary>W implies MMU-writable implies host-writable (I16).</summary>
    public bool HoldsWritableRules
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (Value & MmuWritable) != 0 ? (Value & HostWritable) != 0 : (Value & WritableBit) == 0;
    }

    /// <summary>The entry with A cleared, or, where the hardware keeps no A, with its rights put aside so that the next access faults (tdp-mmu 2.5).</summary>
    public Spte MarkForAccessTracking()
    {
        if (IsAdEnabled)
            return new Spte(Value & ~AccessedBit);
        if (IsAccessTracked)
            return this;
        return new Spte((Value | ((Value & (Readable | ExecutableBit)) << SavedShift)) & ~(Rwx | AccessedBit));
    }

    /// <summary>The entry with the rights that <see cref="MarkForAccessTracking"/> put aside; W is not among them.</summary>
    public Spte RestoreFromAccessTracking() => new((Value & ~SavedRx & ~Rwx) | ((Value & SavedRx) >> SavedShift));

    /// <summary>The entry with X granted or refused, wherever X is kept now (KVM: make_spte_executable and its opposite).</summary>
    public Spte WithExecute(bool allowed)
    {
        ulong bit = IsAccessTracked ? ExecutableBit << SavedShift : ExecutableBit;
        return new Spte(allowed ? Value | bit : Value & ~bit);
    }

    /// <inheritdoc/>
    public override string ToString() => Value switch
    {
        NonPresentValue => "NONPRESENT",
        FrozenValue => "FROZEN",
        PoisonValue => "POISON",
        _ => $"0x{Value:x16}",
    };
}
