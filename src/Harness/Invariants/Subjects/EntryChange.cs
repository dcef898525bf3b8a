namespace Tdp.Harness.Invariants;

/// <summary>Who froze an entry, and from what. Default: nobody that is known.</summary>
/// <param name="Actor">The thread that owns the entry until it thaws it.</param>
/// <param name="Before">The entry's value before.</param>
/// <param name="Announced">What the entry will become if the module agrees, as far as the calls made so far tell: the page or the table. 0 while none was made.</param>
/// <param name="IsRefused">The module refused: the entry must become what it was.</param>
public readonly record struct Freeze(Actor? Actor, Spte Before, Hpa Announced, bool IsRefused);

/// <summary>One change of an entry that has just happened.</summary>
/// <param name="At">The entry with its new value.</param>
/// <param name="Before">What it held.</param>
/// <param name="Actor">Who changed it; null when that is not known.</param>
/// <param name="Owner">Who had it frozen when it changed.</param>
/// <param name="HoldsRead">The actor holds mmu_lock for reading.</param>
/// <param name="HoldsWrite">The actor holds mmu_lock for writing.</param>
/// <param name="IsPassed">The table is detached and its remover has been at this entry.</param>
public readonly record struct EntryChange(EntryView At, Spte Before, Actor? Actor, Freeze Owner, bool HoldsRead, bool HoldsWrite, bool IsPassed) : ISubject
{
    /// <summary>What it holds now.</summary>
    public Spte After => At.Value;

    /// <summary>What it was.</summary>
    public SpteKind KindBefore => Before.Kind(At.Level);

    /// <summary>True when it was a leaf and is one.</summary>
    public bool IsLeafToLeaf => KindBefore is SpteKind.Leaf && At.Kind is SpteKind.Leaf;

    /// <inheritdoc/>
    public string Describe()
    {
        string owner = Owner.Actor is { } freezer ? $"; frozen by {freezer} from {SpteText.Of(Owner.Before, At.Level, At.Vm.Mmu.Format)}{(Owner.IsRefused ? ", refused by the module" : string.Empty)}" : string.Empty;
        string held = HoldsWrite ? "mmu_lock write" : HoldsRead ? "mmu_lock read" : "without mmu_lock";
        return $"{Actor?.Name ?? "somebody"} ({held}) changed {SpteText.Of(Before, At.Level, At.Vm.Mmu.Format)} to {At.Describe()}{(IsPassed ? ", which its remover had passed" : string.Empty)}{owner}";
    }
}

/// <summary>A leaf and what the host says of the pages it maps: judged when it is created, and wherever it is met.</summary>
/// <param name="At">The leaf.</param>
/// <param name="Slot">The slot of its first page, or null.</param>
/// <param name="FileFrame">The frame that the slot's file has for the page of a mirror leaf; 0 if none.</param>
/// <param name="Disagreeing">A page whose attribute names the other alias, or null.</param>
/// <param name="IsConverting">A conversion of one of its pages may be in progress.</param>
/// <param name="IsMixed">The MIXED flag of its range is set.</param>
/// <param name="IsAtRest">No operation is in flight.</param>
public readonly record struct LeafView(EntryView At, Memslot? Slot, Hpa FileFrame, Gfn? Disagreeing, bool IsConverting, bool IsMixed, bool IsAtRest) : ISubject
{
    /// <summary>Gathers what there is to know about a leaf. No event, no allocation.</summary>
    public static LeafView Of(in EntryView at, bool isAtRest)
    {
        CheckedVm vm = at.Vm;
        Gfn first = at.Gfn;
        Memslot? slot = vm.SlotOf(first, at.TreeRole.AddressSpace);
        Hpa file = slot?.Memfd is { } memfd ? memfd.Peek(slot.MemfdPageOf(first)) ?? default : default;
        Gfn? disagreeing = null;
        if (vm.Vm?.Attributes is { } attributes)
        {
            for (ulong page = 0; at.Level <= Level.G1 && page < at.Level.Pages && disagreeing is null; page++)
            {
                disagreeing = attributes.PeekPrivate(first + page) == (at.Alias is Alias.Private) ? null : first + page;
            }
        }

        bool isMixed = at.Level > Level.K4 && at.Level <= Level.G1 && slot is not null && slot.Mmu.IsMixed(first, at.Level);
        return new LeafView(at, slot, file, disagreeing, !isAtRest && vm.IsInvalidating(at.Range), isMixed, isAtRest);
    }

    /// <inheritdoc/>
    public string Describe()
    {
        string attribute = Disagreeing is { } page ? $"the attribute of gfn {page} is {(At.Alias is Alias.Private ? "shared" : "private")}" : "the attributes agree";
        string file = Slot?.Memfd is null ? string.Empty : FileFrame.Value == 0 ? ", the file has no page there" : $", the file has page 0x{FileFrame.Frame:x} there";
        return $"{At.Describe()}; {Slot?.ToString() ?? "no slot"}{file}, {attribute}{(IsConverting ? ", an invalidation is in progress" : string.Empty)}{(IsMixed ? ", MIXED" : string.Empty)}";
    }
}

/// <summary>A leaf at the moment it is created, and the invalidation record then.</summary>
/// <param name="At">The leaf, or the frozen entry that is about to become it.</param>
/// <param name="InProgress">Invalidations in progress.</param>
/// <param name="Range">The union of their ranges.</param>
/// <param name="Seq">The sequence now.</param>
/// <param name="Snapshot">The snapshot of the fault that creates it; null when that is not known.</param>
public readonly record struct LeafBirth(EntryView At, ulong InProgress, GfnRange Range, ulong Seq, ulong? Snapshot) : ISubject
{
    /// <summary>Gathers the record. The actor holds mmu_lock, so that it is still.</summary>
    /// <param name="at">The entry.</param>
    /// <param name="actor">Who creates the leaf; null when that is not known.</param>
    public static LeafBirth Of(in EntryView at, Actor? actor)
    {
        Invalidation record = at.Vm.Mmu.Invalidation;
        (ulong seq, ulong inProgress) = record.Peek();
        ulong? snapshot = actor is not null && at.Vm.NotesOf(actor).IsFaulting && at.Vm.FaultingAt(actor, at.Range) is { } vcpu ? vcpu.CurrentFault.Seq : null;
        return new LeafBirth(at, inProgress, record.PeekRange(), seq, snapshot);
    }

    /// <inheritdoc/>
    public string Describe()
        => $"{At.Describe()}; invalidations in progress: {InProgress}{(InProgress == 0 ? string.Empty : $" in {Range}")}, sequence {Seq}, the fault's snapshot {Snapshot?.ToString(System.Globalization.CultureInfo.InvariantCulture) ?? "unknown"}";
}
