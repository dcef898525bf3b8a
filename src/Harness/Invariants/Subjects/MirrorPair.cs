namespace Tdp.Harness.Invariants;

/// <summary>One place of the private half: what the mirror has there and what the module has there.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Mirror">The mirror entry, or none.</param>
/// <param name="Sept">The Secure EPT entry; null when it is FREE or the walk ends above.</param>
/// <param name="IsChanging">The mirror entry is being changed just now.</param>
/// <param name="EndsAbove">The Secure EPT has no page in which the entry could lie: the module's walk ends above.</param>
public readonly record struct MirrorPair(CheckedVm Vm, EntryView Mirror, SeptView? Sept, bool IsChanging, bool EndsAbove) : ISubject
{
    /// <summary>True when the mirror has a leaf here.</summary>
    public bool HasMirrorLeaf => !Mirror.IsNone && Mirror.Kind is SpteKind.Leaf;

    /// <summary>True when the mirror has a table here.</summary>
    public bool HasMirrorTable => !Mirror.IsNone && Mirror.Kind is SpteKind.Table;

    /// <summary>True when the module has a Secure EPT page here.</summary>
    public bool HasSeptPage => Sept is { State: SeptState.NL_MAPPED or SeptState.NL_BLOCKED };

    /// <summary>True when the module has a leaf here that is not FREE.</summary>
    public bool HasSeptLeaf => Sept is not null && !HasSeptPage;

    /// <summary>The pair for one mirror entry, looked up in the module. No allocation.</summary>
    public static MirrorPair Of(in EntryView mirror, bool isChanging)
    {
        CheckedVm vm = mirror.Vm;
        SeptView found = vm.Module!.FindSeptEntry(vm.LiveTd!.Tdr, mirror.Gfn.Gpa, mirror.Level);
        bool endsAbove = found.Level > mirror.Level;
        return new MirrorPair(vm, mirror, endsAbove || found.State is SeptState.FREE ? null : found, isChanging, endsAbove);
    }

    /// <inheritdoc/>
    public string Describe()
    {
        string sept = Sept is { } view ? $"GPA {view.Gpa}: {SpteText.Of(view)}, {SpteText.OfPage(Vm.Machine, Vm.Module, view.Hpa)}" : EndsAbove ? "the Secure EPT ends above" : "the Secure EPT is FREE there";
        return Mirror.IsNone ? $"{sept}; the mirror has nothing there" : $"{Mirror.Describe()}; {sept}";
    }
}

/// <summary>A page and the leaves that map it.</summary>
/// <param name="Leaf">A mirror leaf that maps it, or is about to.</param>
/// <param name="Other">Another leaf of it, or none.</param>
/// <param name="IsTaken">The module has it already although it is about to be given.</param>
/// <param name="IsVmDead">The VM is dead: an unfinished removal may have left both.</param>
public readonly record struct PageUse(EntryView Leaf, EntryView Other, bool IsTaken, bool IsVmDead) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => $"{Leaf.Describe()}; {(Other.IsNone ? IsTaken ? "the module has the page already" : "no other leaf maps the page" : $"the same page: {Other.Describe()}")}";
}

/// <summary>An access to a page by code of the host.</summary>
/// <param name="Machine">The machine.</param>
/// <param name="Module">Its module, for reports.</param>
/// <param name="Page">The page.</param>
/// <param name="Actor">Who.</param>
/// <param name="IsByHost">Neither the module nor a guest did it.</param>
/// <param name="What">What was done.</param>
public readonly record struct PageAccess(Machine Machine, TdxModule? Module, Hpa Page, Actor? Actor, bool IsByHost, string What) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => $"{Actor?.Name ?? "the host"}: {What}; {SpteText.OfPage(Machine, Module, Page)}";
}

/// <summary>One SEAMCALL of a VM's host, when it is made or when it has returned.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Leaf">The leaf.</param>
/// <param name="Processor">The calling processor.</param>
/// <param name="Caller">The actor on it, or null.</param>
/// <param name="Registers">Registers at the call.</param>
/// <param name="Status">The answer; null when the call is just being made.</param>
public readonly record struct SeamcallView(CheckedVm Vm, TdhLeaf Leaf, int Processor, Actor? Caller, SeamRegisters Registers, TdxStatus? Status) : ISubject
{
    /// <summary>The caller holds mmu_lock for reading.</summary>
    public bool HoldsRead { get; init; }

    /// <summary>The caller holds mmu_lock for writing.</summary>
    public bool HoldsWrite { get; init; }

    /// <summary>For a call about a private page: the mirror entry in its place.</summary>
    public EntryView Entry { get; init; }

    /// <summary>Who froze that entry, where that is known.</summary>
    public Actor? Freezer { get; init; }

    /// <summary>The TD has a KeyID.</summary>
    public bool HasHkid { get; init; }

    /// <summary>The TD's state as the host keeps it.</summary>
    public TdState TdState { get; init; }

    /// <summary>How often the TD was tracked so far.</summary>
    public long Tracks { get; init; }

    /// <summary>For REMOVE: the number of tracks when the page was blocked, or -1 if it is not blocked.</summary>
    public long BlockedAt { get; init; }

    /// <summary>vCPUs that entered before the last track and have not left since: 0 after a completed kick.</summary>
    public uint Lagging { get; init; }

    /// <summary>wait_for_sept_zap is set.</summary>
    public bool IsWaitingForSeptZap { get; init; }

    /// <summary>For a call that gives the module a page: the page was removed and not written back since.</summary>
    public bool IsPageUnwritten { get; init; }

    /// <summary>For an AUG: the page in this place was removed before.</summary>
    public bool IsAgain { get; init; }

    /// <summary>Another processor is inside a TD and may accept at any moment.</summary>
    public bool MayBeAccepted { get; init; }

    /// <summary>State of the Secure EPT entry at the call.</summary>
    public SeptState StateBefore { get; init; }

    /// <summary>State of the Secure EPT entry at the return.</summary>
    public SeptState StateAfter { get; init; }

    /// <summary>The mirror entry changed while the guest, or the module on its behalf, was at work on this processor.</summary>
    public bool IsMirrorChangedByGuest { get; init; }

    /// <summary>For RECLAIM: the page is a Secure EPT page of this TD.</summary>
    public bool IsSeptPage { get; init; }

    /// <summary>LP.INIT has succeeded on the processor.</summary>
    public bool IsProcessorReady { get; init; }

    /// <summary>The module is shut down.</summary>
    public bool IsShutDown { get; init; }

    /// <summary>True when the call is just being made.</summary>
    public bool IsCalling => Status is null;

    /// <summary>True for BLOCK, TRACK and REMOVE.</summary>
    public bool IsRemovalStep => Leaf is TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_TRACK or TdhLeaf.MEM_PAGE_REMOVE;

    /// <summary>True for AUG and ADD.</summary>
    public bool IsMap => Leaf is TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_PAGE_ADD;

    /// <inheritdoc/>
    public string Describe()
    {
        string call = $"{Leaf.FullName()} on LP {Processor} by {Caller?.Name ?? "nobody"} ({(HoldsWrite ? "mmu_lock write" : HoldsRead ? "mmu_lock read" : "without mmu_lock")}), rcx 0x{Registers.Rcx:x} rdx 0x{Registers.Rdx:x} r8 0x{Registers.R8:x}";
        string answer = Status is { } status ? $" -> {status}, Secure EPT {StateBefore} -> {StateAfter}" : string.Empty;
        string removal = IsRemovalStep ? $"; blocked {(BlockedAt < 0 ? "never" : $"after track {BlockedAt}")}, tracked {Tracks} times, {Lagging} vCPUs have not left since the last track{(IsWaitingForSeptZap ? ", vCPUs are locked out" : string.Empty)}" : string.Empty;
        string state = $"; TD {TdState}{(HasHkid ? string.Empty : ", no KeyID")}{(IsPageUnwritten ? ", the page was removed and not written back" : string.Empty)}{(IsAgain ? ", the page had been removed before" : string.Empty)}";
        string entry = Entry.IsNone ? string.Empty : $"; {Entry.Describe()}{(Freezer is null ? string.Empty : $", frozen by {Freezer}")}";
        return $"{call}{answer}{removal}{state}{entry}";
    }
}
