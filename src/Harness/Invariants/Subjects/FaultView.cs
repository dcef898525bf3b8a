namespace Tdp.Harness.Invariants;

/// <summary>A fault that has ended: its answer, and what the thread that took it did on the way.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Vcpu">The vCPU.</param>
/// <param name="Addr">The address, with the alias bit.</param>
/// <param name="ErrorCode">See <see cref="PfErr"/>.</param>
/// <param name="IsPrefetch">Not caused by an access.</param>
/// <param name="Result">The answer.</param>
public readonly record struct FaultView(CheckedVm Vm, MmuVcpu? Vcpu, Gpa Addr, ulong ErrorCode, bool IsPrefetch, FaultResult Result) : ISubject
{
    /// <summary>Change of the thread's page statistics during the fault, all levels.</summary>
    public long Pages { get; init; }

    /// <summary>Change of the thread's table count during the fault.</summary>
    public long Tables { get; init; }

    /// <summary>Pages that the module took from this fault.</summary>
    public int Mapped { get; init; }

    /// <summary>Tables that the module took from this fault.</summary>
    public int Linked { get; init; }

    /// <summary>Calls of this fault that the module answered BUSY.</summary>
    public int BusyAnswers { get; init; }

    /// <summary>Every entry that the fault froze and the module refused is what it was.</summary>
    public bool IsRestored { get; init; }

    /// <summary>Tables that left the vCPU's cache and are neither linked nor back in the stock.</summary>
    public int TablesLost { get; init; }

    /// <summary>Entries that the fault changed, or tables that it took, after it had met FROZEN.</summary>
    public int ChangesAfterFrozen { get; init; }

    /// <summary>The thread repaired something on the fast path.</summary>
    public bool WasFast { get; init; }

    /// <summary>For SPURIOUS: the entry that the fault looked at last; none when it is not known, or may have changed since.</summary>
    public EntryView Found { get; init; }

    /// <summary>What the memory-fault exit will report; meaningful with <see cref="FaultResult.BadAddress"/>.</summary>
    public MemoryFaultInfo Reported { get; init; }

    /// <summary>The attribute cannot have changed since the fault read it.</summary>
    public bool IsAttributeStill { get; init; }

    /// <summary>The attribute is PRIVATE.</summary>
    public bool IsAttributePrivate { get; init; }

    /// <summary>The slot can back the alias that the access names.</summary>
    public bool CanBack { get; init; }

    /// <summary>Faults that the observer has seen end on this thread.</summary>
    public long Taken { get; init; }

    /// <summary>What the thread's counters say of the same faults: pf_fixed, pf_spurious and pf_emulate.</summary>
    public long Counted { get; init; }

    /// <summary>The access names the private alias of a TD.</summary>
    public bool IsPrivate => (ErrorCode & PfErr.PrivateAccess) != 0;

    /// <summary>The statistics moved exactly by what the module took (a private fault), or not at all (a shared one that did nothing).</summary>
    public bool IsBooked => IsPrivate ? Pages == Mapped && Tables == Linked : Result is not FaultResult.Retry || Pages == 0;

    /// <summary>True when a leaf allows the access, or any leaf does for a prefetch.</summary>
    public bool IsAllowedBy(in EntryView entry) => entry.Kind is SpteKind.Leaf
        && (IsPrefetch || ((ErrorCode & PfErr.Fetch) != 0 ? entry.Value.IsExecutable : (ErrorCode & PfErr.Write) != 0 ? entry.Value.IsWritable : (entry.Value.Value & Spte.Readable) != 0));

    /// <inheritdoc/>
    public string Describe()
    {
        string fault = $"{(IsPrefetch ? "prefetch" : "fault")} of vCPU {Vcpu?.Id} at {Addr}, error code 0x{ErrorCode:x}: {Result}";
        string books = $"; pages {Pages:+0;-0;0}, tables {Tables:+0;-0;0}, the module took {Mapped} pages and {Linked} tables, {BusyAnswers} answers BUSY{(TablesLost == 0 ? string.Empty : $", {TablesLost} tables lost")}{(IsRestored ? string.Empty : ", a refused entry is not what it was")}";
        string found = Found.IsNone ? string.Empty : $"; found {Found.Describe()}";
        string exit = Result is FaultResult.BadAddress ? $"; reports gpa {Reported.Gpa}, {Reported.Size} bytes, {(Reported.IsPrivate ? "private" : "shared")}; the attribute is {(IsAttributePrivate ? "private" : "shared")}{(CanBack ? string.Empty : ", the slot cannot back the access")}" : string.Empty;
        return $"{fault}{books}{(ChangesAfterFrozen == 0 ? string.Empty : $"; {ChangesAfterFrozen} changes after it met FROZEN")}{(WasFast ? "; repaired on the fast path" : string.Empty)}{found}{exit}; {Taken} faults taken, {Counted} counted as fixed, spurious or emulated";
    }
}

/// <summary>The invalidation record, when it changes and at rest.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="InProgress">Invalidations in progress, as a signed number.</param>
/// <param name="Range">The union of their ranges; empty when none was added.</param>
/// <param name="IsEnding">One of them is just ending.</param>
/// <param name="IsAtRest">No operation is in flight: begun and ended must balance.</param>
public readonly record struct InvalidationView(CheckedVm Vm, long InProgress, GfnRange Range, bool IsEnding, bool IsAtRest) : ISubject
{
    /// <summary>Reads the record.</summary>
    public static InvalidationView Of(CheckedVm vm, bool isEnding, bool isAtRest)
    {
        ArgumentNullException.ThrowIfNull(vm);
        return new InvalidationView(vm, (long)vm.Mmu.Invalidation.Peek().InProgress, vm.Mmu.Invalidation.PeekRange(), isEnding, isAtRest);
    }

    /// <inheritdoc/>
    public string Describe() => $"{InProgress} invalidations in progress, range {(Range.IsEmpty ? "not set" : Range.ToString())}{(IsEnding ? ", one is ending" : string.Empty)}{(IsAtRest ? ", nothing is in flight" : string.Empty)}";
}

/// <summary>The MIXED flag of one huge range of a slot.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Slot">The slot.</param>
/// <param name="Range">The huge range; wholly inside the slot.</param>
/// <param name="Level">2M or 1G.</param>
/// <param name="IsFlagged">The flag.</param>
/// <param name="IsMixed">Its pages have different attributes.</param>
/// <param name="IsConverting">A conversion that touches it is in progress.</param>
public readonly record struct MixedView(CheckedVm Vm, Memslot Slot, GfnRange Range, Level Level, bool IsFlagged, bool IsMixed, bool IsConverting) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => $"{Slot}, {Level} range {Range}: MIXED is {(IsFlagged ? "set" : "clear")}, its attributes are {(IsMixed ? "mixed" : "equal")}{(IsConverting ? ", a conversion is in progress" : string.Empty)}";
}
