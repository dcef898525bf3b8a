namespace Tdp.Harness.Invariants;

/// <summary>
/// Mirror and module (tdp-mmu 10.2).
/// </summary>
/// <remarks>
/// The "always" rules about calls (I23 to I29, I31, I32, I35) are judged by the thread that calls, on what its own locks keep still: the mirror entry it has frozen, the
/// removal state that only mmu_lock write changes, the KeyID. I22 and I33 speak of entries that nobody is changing: what stands above them can only go away under mmu_lock write, after
/// the entry itself. The rules that compare the two trees (I19 to I21) are for rest: during a removal the mirror is ahead of the module (4.9).
/// </remarks>
public static class MirrorAndModule
{
    /// <summary>I19.</summary>
    public static Invariant<MirrorPair> I19 { get; } = new(
        "I19", InvariantTag.Quiescent, InvariantBinding.Rest, FreeRunJudge.Rest,
        "every mirror leaf is in the Secure EPT",
        "For every present mirror leaf the module has a 4K Secure EPT leaf in the same place that maps the same page, MAPPED or PENDING.",
        static (in MirrorPair pair) => !pair.HasMirrorLeaf
            || (pair.Sept is { State: SeptState.MAPPED or SeptState.PENDING } sept && sept.Level == Level.K4 && sept.Hpa == pair.Mirror.Value.Address));

    /// <summary>I20.</summary>
    public static Invariant<MirrorPair> I20 { get; } = new(
        "I20", InvariantTag.Quiescent, InvariantBinding.Rest, FreeRunJudge.Rest,
        "every Secure EPT leaf is in the mirror",
        "For every Secure EPT leaf that is not FREE there is a present mirror leaf in the same place that maps the same page: with I19, an exact bijection.",
        static (in MirrorPair pair) => !pair.HasSeptLeaf || (pair.HasMirrorLeaf && pair.Mirror.Value.Address == pair.Sept!.Value.Hpa));

    /// <summary>I21.</summary>
    public static Invariant<MirrorPair> I21 { get; } = new(
        "I21", InvariantTag.Quiescent, InvariantBinding.Rest, FreeRunJudge.Rest,
        "the same tables in both trees",
        "Mirror tables and Secure EPT pages stand in the same places, and each Secure EPT page is the mirror table's external page; the Secure EPT root is the module's own.",
        static (in MirrorPair pair) => pair.HasMirrorTable == pair.HasSeptPage
            && (!pair.HasMirrorTable || (pair.Sept is { State: SeptState.NL_MAPPED } sept && sept.Hpa == pair.Vm.TableBehind(pair.Mirror.Value).ExternalPage)));

    /// <summary>I22.</summary>
    public static Invariant<MirrorPair> I22 { get; } = new(
        "I22", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread | FreeRunJudge.Sample | FreeRunJudge.Rest,
        "a mirror leaf has its Secure EPT pages",
        "Whenever a mirror leaf is present and its entry is not being changed, the module has every Secure EPT page above it.",
        static (in MirrorPair pair) => !pair.HasMirrorLeaf || pair.IsChanging || !pair.EndsAbove);

    /// <summary>I23.</summary>
    public static Invariant<SeamcallView> I23 { get; } = new(
        "I23", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "a page is mapped behind a frozen entry",
        "The module receives AUG or ADD only for a place whose mirror entry the caller has frozen.",
        static (in SeamcallView call) => !call.IsCalling || !call.IsMap || IsFrozenByCaller(call, Level.K4));

    /// <summary>I24.</summary>
    public static Invariant<SeamcallView> I24 { get; } = new(
        "I24", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "a table is added behind a frozen entry",
        "The module receives SEPT.ADD only for a place whose mirror entry the caller has frozen.",
        static (in SeamcallView call) => !call.IsCalling || call.Leaf is not TdhLeaf.MEM_SEPT_ADD || IsFrozenByCaller(call, Level.FromTdx((int)(call.Registers.Rcx & 7))));

    /// <summary>I25.</summary>
    public static Invariant<SeamcallView> I25 { get; } = new(
        "I25", InvariantTag.Always, InvariantBinding.Root, FreeRunJudge.ActingThread,
        "removal holds mmu_lock for writing",
        "BLOCK, TRACK and REMOVE are issued only by a thread that holds mmu_lock for writing.",
        static (in SeamcallView call) => !call.IsCalling || !call.IsRemovalStep || call.HoldsWrite);

    /// <summary>I26.</summary>
    public static Invariant<SeamcallView> I26 { get; } = new(
        "I26", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread | FreeRunJudge.Rest,
        "block, track, kick, remove, write back, reuse",
        "A private page is blocked, then tracked, then every vCPU is kicked, then it is removed, written back and only then reused.",
        static (in SeamcallView call) => !call.IsCalling || (call.Leaf is TdhLeaf.MEM_PAGE_REMOVE ? IsReadyToGo(call) : !call.IsPageUnwritten));

    /// <summary>I27.</summary>
    public static Invariant<SeamcallView> I27 { get; } = new(
        "I27", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "a kick between two tracks",
        "Between two accepted tracks of a TD there is a completed kick of all its vCPUs.",
        static (in SeamcallView call) => !call.IsCalling || call.Leaf is not TdhLeaf.MEM_TRACK || call.Tracks == 0 || call.Lagging == 0);

    /// <summary>I28.</summary>
    public static Invariant<SeamcallView> I28 { get; } = new(
        "I28", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "no vCPU is two epochs behind",
        "TRACK never answers PREVIOUS_TLB_EPOCH_BUSY.",
        static (in SeamcallView call) => call.Leaf is not TdhLeaf.MEM_TRACK || call.Status?.Class != TdxStatus.PREVIOUS_TLB_EPOCH_BUSY);

    /// <summary>I29.</summary>
    public static Invariant<SeamcallView> I29 { get; } = new(
        "I29", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "the second attempt succeeds",
        "A removal step that is repeated under wait_for_sept_zap, with every vCPU locked out, is not answered BUSY.",
        static (in SeamcallView call) => !call.IsRemovalStep || !call.IsWaitingForSeptZap || call.Status is not { IsBusy: true });

    /// <summary>I30.</summary>
    public static Invariant<FaultView> I30 { get; } = new(
        "I30", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.ActingThread,
        "a refused update leaves no trace",
        "After a map or link that the module answered BUSY, the mirror entry, the page statistics and the tables are what they were, and the unused table and its external page are free again.",
        static (in FaultView fault) => fault.BusyAnswers == 0 || (fault.IsRestored && fault.IsBooked && fault.TablesLost == 0));

    /// <summary>I31.</summary>
    public static Invariant<PageUse> I31 { get; } = new(
        "I31", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread | FreeRunJudge.Sample | FreeRunJudge.Rest,
        "a private page is mapped once",
        "At most one mirror leaf of a TD maps a page, and no page is in a mirror leaf and in a valid direct leaf at once, unless the VM is dead.",
        static (in PageUse page) => page.IsVmDead || (page.Other.IsNone && !page.IsTaken));

    /// <summary>I32.</summary>
    public static Invariant<LeafView> I32 { get; } = new(
        "I32", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread | FreeRunJudge.Rest,
        "private pages come from the slot's file",
        "A page given to AUG or ADD, or mapped by a mirror leaf, is the one that the guest_memfd bound to the slot has at that index.",
        static (in LeafView leaf) => !leaf.At.IsMirror || leaf.Slot?.Memfd is null || leaf.FileFrame == leaf.At.Value.Address);

    /// <summary>I33.</summary>
    public static Invariant<LeafView> I33 { get; } = new(
        "I33", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread | FreeRunJudge.Rest,
        "mirror leaves lie in slots with a file",
        "A present mirror leaf lies in a slot with guest_memfd.",
        static (in LeafView leaf) => !leaf.At.IsMirror || leaf.Slot?.Memfd is not null);

    /// <summary>I34.</summary>
    public static Invariant<PageAccess> I34 { get; } = new(
        "I34", InvariantTag.Always, InvariantBinding.HandOver, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "the host keeps its hands off",
        "KVM neither reads nor writes nor maps for the shared alias a page that the module owns.",
        static (in PageAccess access) => !access.IsByHost || !IsModules(access));

    /// <summary>I35.</summary>
    public static Invariant<SeamcallView> I35 { get; } = new(
        "I35", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "only the guest accepts",
        "No operation of KVM changes a page from PENDING to MAPPED, and an accept changes nothing in the mirror.",
        static (in SeamcallView call) => !call.IsMirrorChangedByGuest && (call.IsCalling || call.Status != TdxStatus.SUCCESS || call.StateBefore is not SeptState.PENDING || call.StateAfter is not SeptState.MAPPED));

    /// <summary>I36.</summary>
    public static Invariant<SeamcallView> I36 { get; } = new(
        "I36", InvariantTag.AfterOperation, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "a page that comes back is pending",
        "A page that was removed and is augmented again is PENDING: the guest must accept it again.",
        static (in SeamcallView call) => call.Leaf is not TdhLeaf.MEM_PAGE_AUG || call.Status != TdxStatus.SUCCESS || !call.IsAgain || call.StateAfter is SeptState.PENDING || (call.MayBeAccepted && call.StateAfter is SeptState.MAPPED));

    internal static IReadOnlyList<Invariant> All { get; } = [I19, I20, I21, I22, I23, I24, I25, I26, I27, I28, I29, I30, I31, I32, I33, I34, I35, I36];

    private static bool IsFrozenByCaller(in SeamcallView call, Level level)
        => call.HoldsRead && !call.Entry.IsNone && call.Entry.Level == level && call.Entry.Value.IsFrozen && (call.Freezer is null || ReferenceEquals(call.Freezer, call.Caller));

    // Before the TD runs there is nothing to track; KVM then only blocks and removes.
    private static bool IsReadyToGo(in SeamcallView call)
        => call.TdState is not TdState.Runnable || (call.BlockedAt >= 0 && call.Tracks > call.BlockedAt && call.Lagging == 0);

    private static bool IsModules(in PageAccess access)
        => access.Machine.Ledger.UseOf(access.Page) is FrameUse.Module || access.Module?.Pamt(access.Page) is { Type: not (PageType.NDA or PageType.RSVD) };
}
