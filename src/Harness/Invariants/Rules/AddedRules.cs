namespace Tdp.Harness.Invariants;

/// <summary>Rules added so that every oracle of the race museum has a number (tdp-mmu 10.7), and the module's rule that the sweep of a VM judges on the way.</summary>
/// <remarks>
/// I81 and I82 are asserted inside the rooms, at every WARN, BUG, hand-over and translation; those report under the number by themselves. The predicates here are what a checker asks on top: whether
/// anything of the kind has happened, and whether a translation that would be used still stands for the same page.
/// </remarks>
public static class AddedRules
{
    /// <summary>I79.</summary>
    public static Invariant<DirtyView> I79 { get; } = new(
        "I79", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.Operation,
        "no write is lost to the dirty log",
        "After a dirty-log harvest that has returned every page that the guest wrote before is recorded, and every page that it can still write without a record is trapped.",
        static (in DirtyView page) => page.IsRecorded || (!page.WasWritten && !page.IsWritableUnseen));

    /// <summary>I80.</summary>
    public static Invariant<SeamcallView> I80 { get; } = new(
        "I80", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "the module has nothing to complain about",
        "No TDH.MEM call of the host answers anything but SUCCESS or BUSY, except where a failure is injected or the step is defined to fail.",
        static (in SeamcallView call) => call.Status is not { } status || !IsMem(call.Leaf) || status == TdxStatus.SUCCESS || status.IsBusy);

    /// <summary>I81.</summary>
    public static Invariant<Health> I81 { get; } = new(
        "I81", InvariantTag.Always, InvariantBinding.Everywhere, FreeRunJudge.ActingThread | FreeRunJudge.Rest,
        "no WARN, no BUG",
        "No warning and no bug check fires, no VM dies that should live, and no count goes below zero.",
        static (in Health health) => health.Warnings == 0 && (health.Death is null || health.IsDeathDeclared) && health.Negative is null);

    /// <summary>I82.</summary>
    public static Invariant<HeldFrame> I82 { get; } = new(
        "I82", InvariantTag.Always, InvariantBinding.HandOver, FreeRunJudge.ActingThread | FreeRunJudge.Rest,
        "nothing is used after it was handed back",
        "No slot, file, binding, root, table or page frame is read or written by code that got it before it was handed back.",
        static (in HeldFrame held) => (held.Then is null || held.Then == held.Now) && (held.Expected is null || held.Expected == held.Use));

    /// <summary>TM01.</summary>
    public static Invariant<ModulePage> TM01 { get; } = new(
        "TM01", InvariantTag.Quiescent, InvariantBinding.Rest, FreeRunJudge.Rest,
        "PAMT and ledger agree",
        "The module's record of page ownership agrees with the platform's ledger and with the tree that holds the page.",
        static (in ModulePage page) => page.Recorded is { } record && record.Type == page.Type && record.Owner == page.Tdr && page.Vm.Machine.Ledger.UseOf(page.Page) is FrameUse.Module);

    internal static IReadOnlyList<Invariant> All { get; } = [I79, I80, I81, I82];

    private static bool IsMem(TdhLeaf leaf) => leaf
        is TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_RANGE_UNBLOCK or TdhLeaf.MEM_TRACK or TdhLeaf.MEM_PAGE_REMOVE
        or TdhLeaf.MEM_SEPT_REMOVE or TdhLeaf.MEM_PAGE_PROMOTE or TdhLeaf.MEM_PAGE_DEMOTE or TdhLeaf.MEM_PAGE_RELOCATE or TdhLeaf.MEM_SEPT_RD or TdhLeaf.MEM_RD or TdhLeaf.MEM_WR;
}

/// <summary>A frame that something still refers to.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Page">The frame.</param>
/// <param name="Then">Its generation when the reference was made; null when that is not known.</param>
/// <param name="Now">Its generation now.</param>
/// <param name="Expected">Who must have it; null when anybody may.</param>
/// <param name="Use">Who has it.</param>
/// <param name="Holder">What refers to it; an entry, or none for a translation.</param>
public readonly record struct HeldFrame(CheckedVm Vm, Hpa Page, uint? Then, uint Now, FrameUse? Expected, FrameUse Use, EntryView Holder) : ISubject
{
    /// <inheritdoc/>
    public string Describe()
        => $"frame 0x{Page.Frame:x} is {Use} at generation {Now}{(Then is { } then ? $", a translation was made at generation {then}" : string.Empty)}{(Expected is { } expected ? $", its user takes it for {expected}" : string.Empty)}{(Holder.IsNone ? string.Empty : $"; {Holder.Describe()}")}";
}

/// <summary>A page that a TD's Secure EPT names.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Tdr">The TD.</param>
/// <param name="Page">The page.</param>
/// <param name="Type">What it is in the tree.</param>
/// <param name="Recorded">What PAMT says.</param>
public readonly record struct ModulePage(CheckedVm Vm, Hpa Tdr, Hpa Page, PageType Type, PamtView? Recorded) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => $"the Secure EPT of TD {Tdr} has {SpteText.OfPage(Vm.Machine, Vm.Module, Page)} as {Type}";
}
