namespace Tdp.Harness.Invariants;

/// <summary>
/// Roots (tdp-mmu 10.3).
/// </summary>
/// <remarks>
/// Why they hold at any point: a reference is taken before a vCPU shows the root as loaded and put after it stopped showing it, so counting the loaded ones can only come out too small; the
/// list is written under the pages lock, one word at a time, with the new root complete. Between the last put and the removal from the list an invalid root has no reference (1.4 step 5),
/// so I38 asks invalid roots only for the references of those who have them loaded.
/// </remarks>
public static class RootRules
{
    /// <summary>I37.</summary>
    public static Invariant<RootView> I37 { get; } = new(
        "I37", InvariantTag.Always, InvariantBinding.Root, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "one valid root per role",
        "There is at most one valid root per role word, and a TD has at most one valid mirror and one valid direct root per address space.",
        static (in RootView root) => root.Role.IsInvalid || !root.IsListed || (root.Twins <= 1 && (!root.Vm.HasMirror || root.SameKind <= 1)));

    /// <summary>I38.</summary>
    public static Invariant<RootView> I38 { get; } = new(
        "I38", InvariantTag.Always, InvariantBinding.Root, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "references cover the users",
        "Every root in the list is referenced; a valid one at least once more than there are vCPUs that have it loaded.",
        static (in RootView root) => !root.IsListed || root.References >= root.Loaded + (root.Role.IsInvalid ? 0 : 1));

    /// <summary>I39.</summary>
    public static Invariant<RootView> I39 { get; } = new(
        "I39", InvariantTag.Always, InvariantBinding.Root, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "a root goes in order",
        "A root is freed only after it was invalidated, emptied and taken off the list.",
        static (in RootView root) => root.IsListed ? !root.Root.Table.IsFreed : root.Role.IsInvalid && root.References == 0 && root.Mapped.IsNone);

    /// <summary>I40.</summary>
    public static Invariant<RootView> I40 { get; } = new(
        "I40", InvariantTag.Always, InvariantBinding.Root, FreeRunJudge.Rest,
        "invalid is for ever",
        "The invalid bit of a role never goes back to 0, and is written only under mmu_lock write, or when nobody uses the VM any more.",
        static (in RootView root) => (!root.WasInvalid || root.Role.IsInvalid) && (!root.IsValidityChanging || root.MayInvalidate));

    /// <summary>I41.</summary>
    public static Invariant<RootView> I41 { get; } = new(
        "I41", InvariantTag.Always, InvariantBinding.Root, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "the mirror root stays valid",
        "No mirror root is invalid while a vCPU exists that can run.",
        static (in RootView root) => !root.Root.IsMirror || !root.Role.IsInvalid || root.Loaded == 0);

    /// <summary>I42.</summary>
    public static Invariant<VcpuEntryView> I42 { get; } = new(
        "I42", InvariantTag.Always, InvariantBinding.Root, FreeRunJudge.ActingThread | FreeRunJudge.Rest,
        "mirror before direct",
        "A vCPU of a TD that has the direct root loaded has the mirror root loaded.",
        static (in VcpuEntryView vcpu) => !vcpu.Vm.HasMirror || !vcpu.HasDirect || vcpu.HasMirror);

    /// <summary>I43.</summary>
    public static Invariant<Aftermath> I43 { get; } = new(
        "I43", InvariantTag.AfterOperation, InvariantBinding.Vcpu, FreeRunJudge.Operation,
        "a fast zap leaves nothing to run on",
        "After a fast zap no vCPU in the guest uses a root that was invalid when it started, and every entry under such roots is non-present.",
        static (in Aftermath after) => after.Left.IsNone && after.InsideOnOldRoot < 0);

    /// <summary>I44.</summary>
    public static Invariant<Aftermath> I44 { get; } = new(
        "I44", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.Operation,
        "the mirror is not touched",
        "A fast zap, dirty logging, write protection, splitting and huge-page recovery leave the mirror tree and the module as they were.",
        static (in Aftermath after) => after.Gone.IsNone && after.Left.IsNone && after.SeptLeft is null);

    internal static IReadOnlyList<Invariant> All { get; } = [I37, I38, I39, I40, I41, I42, I43, I44];
}
