namespace Tdp.Mmu;

/// <summary>
/// A root of the VM: a direct tree that hardware walks, or a mirror tree that only KVM does (tdp-mmu 1.4). Shared by all vCPUs that want the same role.
/// </summary>
/// <remarks>
/// Life: allocated with two references (one for the vCPU, one for the TDP MMU), used, invalidated under mmu_lock write, zapped, put by the TDP MMU, put to zero
/// by its last user, unlinked, freed after a grace period. A role word with the invalid bit never becomes valid again (I40).
/// </remarks>
public sealed class Root
{
    private readonly SharedCell<uint> _role;

    internal Root(int number, TablePage table, TableRole role, MmuOptions options, SpteFormat format)
    {
        Number = number;
        Table = table;
        Frame = table.Frame;
        IsMirror = role.IsMirror;
        Level = role.Level;
        AddressSpace = role.AddressSpace;
        RawBits = role.IsMirror ? 0 : options.AliasBit.GfnMask;
        AdType = role.IsAdDisabled ? Spte.AdDisabled : role.IsGuestMode && options.DirtyLogSize != 0 ? Spte.AdWriteProtectOnly : 0;
        UseFormat(format);
        ulong owner = (options.VmNumber << 32) | (uint)number;
        _role = new SharedCell<uint>("root_role", owner, role.Value);
        References = new RefCount("root_refs", owner, 2);
        Next = new SharedCell<int>("root_next", owner, -1);
    }

    /// <summary>Order of creation in the VM, from 0, over both kinds.</summary>
    public int Number { get; }

    /// <summary>The root table.</summary>
    public TablePage Table { get; }

    /// <summary>Its frame: what a direct root's EPT pointer holds.</summary>
    public Hpa Frame { get; }

    /// <summary>True for a mirror root.</summary>
    public bool IsMirror { get; }

    /// <summary>Level of the root table.</summary>
    public Level Level { get; }

    /// <summary>Address space.</summary>
    public int AddressSpace { get; }

    /// <summary>The role word, with the invalid bit. Stable for whoever holds mmu_lock in either mode.</summary>
    public TableRole Role => new(_role.Read());

    /// <summary>True once invalidated.</summary>
    public bool IsInvalid
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (_role.Read() & TableRole.Invalid) != 0;
    }

    /// <summary>References now, for reports. No event.</summary>
    public long ReferenceCount => References.Peek();

    /// <summary>Invalidated and not yet zapped. Guarded by slots_lock.</summary>
    public bool IsScheduledForZap { get; internal set; }

    /// <summary>ORed into a frame number when an index is computed, nowhere else: the alias bit for a TD's direct root (tdp-mmu 3.1).</summary>
    internal ulong RawBits { get; }

    /// <summary>Bits 53:52 of the tree's leaves: a nested guest's tree under page-modification logging records by write protection.</summary>
    internal ulong AdType { get; }

    /// <summary>See <see cref="SpteFormat.OrdinaryLeaf"/>.</summary>
    internal ulong OrdinaryLeaf { get; private set; }

    internal RefCount References { get; }

    /// <summary>Slot of the next root in the list, or -1.</summary>
    internal SharedCell<int> Next { get; }

    /// <summary>Its own slot.</summary>
    internal int Slot { get; set; }

    /// <summary>The role without an event, for lists and reports.</summary>
    public TableRole PeekRole() => new(_role.Peek());

    /// <inheritdoc/>
    public override string ToString() => $"{(IsMirror ? 'm' : 'd')}{Number}";

    /// <summary>True when an operation with this mask visits the root (tdp-mmu 1.5).</summary>
    internal bool Matches(RootKinds kinds)
    {
        if ((kinds & RootKinds.Invalid) == RootKinds.None && IsInvalid)
            return false;
        return (kinds & (IsMirror ? RootKinds.Mirror : RootKinds.Direct)) != RootKinds.None;
    }

    /// <summary>The VM builds its leaves in another way now. mmu_lock write.</summary>
    internal void UseFormat(SpteFormat format) => OrdinaryLeaf = format.OrdinaryLeaf(AdType);

    internal void Invalidate() => _role.Write(_role.Peek() | TableRole.Invalid);
}
