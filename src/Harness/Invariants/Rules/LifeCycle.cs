namespace Tdp.Harness.Invariants;

/// <summary>
/// Life cycle and liveness (tdp-mmu 10.6).
/// </summary>
/// <remarks>
/// The liveness rules cannot be judged at one instant. Under a scheduler it is the scheduler that finds a cycle of waiting actors or endless retries; in a free run the director of the run
/// compares two looks. I77 is a safety rule although the list calls it liveness: it is judged wherever mmu_lock is known to be free or held.
/// </remarks>
public static class LifeCycle
{
    /// <summary>I69.</summary>
    public static Invariant<SeamcallView> I69 { get; } = new(
        "I69", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "leaves with the KeyID, tables without",
        "Leaves are removed only while the TD has its KeyID; tables are reclaimed only when it has none.",
        static (in SeamcallView call) => !call.IsCalling || (call.IsRemovalStep ? call.HasHkid : !call.IsSeptPage || !call.HasHkid));

    /// <summary>I70.</summary>
    public static Invariant<SeamcallView> I70 { get; } = new(
        "I70", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "ADD before finalize, AUG after",
        "No page is augmented before the TD is finalized, and none is added after.",
        static (in SeamcallView call) => !call.IsCalling || !call.IsMap || call.TdState is TdState.Runnable == call.Leaf is TdhLeaf.MEM_PAGE_AUG);

    /// <summary>I71.</summary>
    public static Invariant<FrameBooks> I71 { get; } = new(
        "I71", InvariantTag.AfterOperation, InvariantBinding.Teardown, FreeRunJudge.Teardown,
        "nothing is left behind",
        "When a VM is gone the module owns no page on its behalf, or the page is recorded as leaked together with a logged error.",
        static (in FrameBooks books) => books.Problem is null && (books.Leaked == 0 || books.LeaksLogged));

    /// <summary>I72.</summary>
    public static Invariant<SeamcallView> I72 { get; } = new(
        "I72", InvariantTag.Always, InvariantBinding.Seamcall, FreeRunJudge.ActingThread,
        "a processor is initialized before it calls",
        "No SEAMCALL is made on a processor before its LP.INIT and none after shutdown, but for the calls of bring-up themselves and PHYMEM.PAGE.RDMD of the machine-check handler.",
        static (in SeamcallView call) => !call.IsCalling || call.Leaf is TdhLeaf.PHYMEM_PAGE_RDMD || (!call.IsShutDown && (call.IsProcessorReady || call.Leaf is TdhLeaf.SYS_INIT or TdhLeaf.SYS_LP_INIT)));

    /// <summary>I73.</summary>
    public static Invariant<VcpuEntryView> I73 { get; } = new(
        "I73", InvariantTag.Always, InvariantBinding.Vcpu, FreeRunJudge.ActingThread,
        "a dead VM stays out",
        "A dead VM performs no further guest entry: a vCPU that looks after the VM has died does not enter.",
        static (in VcpuEntryView vcpu) => !vcpu.IsEntering || !vcpu.WasVmDead)
    {
        Note = "needs a VM that dies and is run again",
    };

    /// <summary>I74.</summary>
    public static Invariant<StallView> I74 { get; } = new(
        "I74", InvariantTag.Liveness, InvariantBinding.Progress, FreeRunJudge.Watch,
        "faults end",
        "With finitely many invalidations every fault loop ends; with BUSY injected with a probability below 1 every map and link ends.",
        static (in StallView stall) => !stall.IsStuck || stall.UnansweredKick >= 0 || stall.SrcuWaiter || stall.RetryingFault < 0);

    /// <summary>I75.</summary>
    public static Invariant<StallView> I75 { get; } = new(
        "I75", InvariantTag.Liveness, InvariantBinding.Progress, FreeRunJudge.Watch,
        "nobody retries inside SRCU against its waiter",
        "No thread waits for SRCU while another loops on RETRY holding SRCU.",
        static (in StallView stall) => !stall.IsStuck || !stall.SrcuWaiter || stall.SrcuHolder < 0);

    /// <summary>I76.</summary>
    public static Invariant<StallView> I76 { get; } = new(
        "I76", InvariantTag.Liveness, InvariantBinding.Progress, FreeRunJudge.Watch,
        "a kick is answered",
        "A kick that is waited for always completes: a vCPU that is refused entry comes to a point with interrupts on.",
        static (in StallView stall) => !stall.IsStuck || stall.UnansweredKick < 0);

    /// <summary>I77.</summary>
    public static Invariant<SeptZapFlag> I77 { get; } = new(
        "I77", InvariantTag.Liveness, InvariantBinding.Root, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "the lock-out ends with the lock",
        "wait_for_sept_zap is false whenever mmu_lock is not held for writing.",
        static (in SeptZapFlag flag) => !flag.IsSet || flag.IsWriteHeld);

    /// <summary>I78.</summary>
    public static Invariant<FaultView> I78 { get; } = new(
        "I78", InvariantTag.Always, InvariantBinding.FaultEnd, FreeRunJudge.ActingThread,
        "faults are counted",
        "pf_taken is at least pf_fixed, pf_spurious and pf_emulate together: per vCPU, slow path only.",
        static (in FaultView fault) => fault.Taken >= fault.Counted);

    internal static IReadOnlyList<Invariant> All { get; } = [I69, I70, I71, I72, I73, I74, I75, I76, I77, I78];
}
