using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Recorded.Mmu;

/// <summary>
/// The interleaving points of one mirror fault and one private zap, event by event (tdp-mmu 12: FP0..FP6, ZP0..ZP8). A change of these lists is a change of what
/// the explorer can interleave.
/// </summary>
public sealed class MirrorEventTests
{
    private const ulong Page = 0x123456;

    [Fact]
    [Trait("spec", "I14")]
    [Trait("spec", "I23")]
    public void A_mirror_fault_is_these_events_and_no_others()
    {
        using var vm = new RecordedVm();
        Assert.Equal(FaultResult.Fixed, vm.Touch(Page + 1));
        vm.TakeEvents();
        Mark.At(vm.Vcpu.Actor, "EPT violation");
        Assert.Equal(FaultResult.Fixed, vm.Touch(Page));
        string[] expected =
        [
            "EPT violation", // FP0
            "Read invalidate in Snapshot",
            "Read attribute in Attribute", // FP1
            "Read gmem in Lookup", // FP2
            "LockShared mmu_lock in ResolveSlow",
            "Read root_role in IsInvalid",
            "Read invalidate in MustRetry",
            "Read invalidate in MustRetry",
            "Read rcu in Map",
            "Read spte(mirror, 512G, gfn 0x0) in AtRoot",
            "Read spte(mirror, 512G, gfn 0x0) in TryStepDown",
            "Read spte(mirror, 1G, gfn 0x100000) in TryStepDown",
            "Read spte(mirror, 1G, gfn 0x100000) in TryStepDown",
            "Read spte(mirror, 2M, gfn 0x123400) in TryStepDown",
            "Read spte(mirror, 2M, gfn 0x123400) in TryStepDown",
            "Read spte(mirror, 4K, gfn 0x123456) in TryStepDown",
            "Update spte(mirror, 4K, gfn 0x123456) in SetOrdinaryMirrorLeaf: NONPRESENT -> FROZEN", // FP3
            "TDH.MEM.PAGE.AUG", // FP4
            "TDH.MEM.PAGE.AUG returned",
            "Write spte(mirror, 4K, gfn 0x123456) in SetOrdinaryMirrorLeaf: FROZEN -> leaf", // FP5
            "Read rcu in Map",
            "LockRelease mmu_lock in ResolveSlow", // FP6
        ];
        Assert.Equal(expected, vm.TakeEvents());
    }

    [Fact]
    public void A_private_zap_is_these_events_and_no_others()
    {
        using var vm = new RecordedVm();
        Assert.Equal(FaultResult.Fixed, vm.Touch(Page));
        vm.TakeEvents();
        Zap(vm, GfnRange.Of(new Gfn(Page), 1));
        string[] expected =
        [
            "LockExclusive mmu_lock in Zap", // ZP0
            "Write invalidate_start in Begin",
            "Write invalidate_end in Begin",
            "Write invalidate in Begin",
            "Write invalidate_start in AddRange",
            "Write invalidate_end in AddRange", // ZP1
            "Read rcu in NextRoot",
            "Read tdp_mmu_roots in FirstInList",
            "Read root_next in NextInList", // the direct root is newer and does not match
            "Read root_refs in NextRoot",
            "Update root_refs in NextRoot",
            "Read rcu in NextRoot",
            "Read root_role in IsInvalid",
            "Read rcu in ZapLeafsOf",
            "Read spte(mirror, 512G, gfn 0x0) in Look",
            "Read mmu_lock in YieldIfNeeded",
            "Read spte(mirror, 512G, gfn 0x0) in TryStepDown",
            "Read spte(mirror, 1G, gfn 0x100000) in Look",
            "Read mmu_lock in YieldIfNeeded",
            "Read spte(mirror, 1G, gfn 0x100000) in TryStepDown",
            "Read spte(mirror, 2M, gfn 0x123400) in Look",
            "Read mmu_lock in YieldIfNeeded",
            "Read spte(mirror, 2M, gfn 0x123400) in TryStepDown",
            "Read spte(mirror, 4K, gfn 0x123456) in Look",
            "Read mmu_lock in YieldIfNeeded",
            "Write spte(mirror, 4K, gfn 0x123456) in WriteExclusive: leaf -> NONPRESENT", // ZP2
            "TDH.MEM.RANGE.BLOCK", // ZP3
            "TDH.MEM.RANGE.BLOCK returned",
            "TDH.MEM.TRACK", // ZP4
            "TDH.MEM.TRACK returned",
            "Update vcpu in OutsideGuestMode", // ZP5
            "Update vcpu in Kick",
            "TDH.MEM.PAGE.REMOVE", // ZP6
            "TDH.MEM.PAGE.REMOVE returned",
            "Read spte(mirror, 4K, gfn 0x123457) in TryStepSide",
            "Read rcu in ZapLeafsOf",
            "Read rcu in NextRoot",
            "Read root_next in NextInList",
            "Read rcu in NextRoot",
            "Read root_refs in PutRoot",
            "Update root_refs in PutRoot",
            "Update vcpu in TlbFlush", // ZP7
            "Update vcpu in Kick",
            "LockRelease mmu_lock in Zap", // ZP8
        ];
        Assert.Equal(expected, vm.TakeEvents());
    }

    [Fact]
    [Trait("spec", "I15")]
    public void Each_frozen_window_of_a_first_touch_holds_exactly_one_call()
    {
        using var vm = new RecordedVm();
        vm.TakeEvents();
        Assert.Equal(FaultResult.Fixed, vm.Touch(Page));
        string[] windows = [.. vm.TakeEvents().Where(e => e.Contains("FROZEN", StringComparison.Ordinal) || e.StartsWith("TDH", StringComparison.Ordinal))];
        Assert.Equal(16, windows.Length);
        for (int i = 0; i < windows.Length; i += 4)
        {
            string entry = windows[i].Split(" in ")[0]["Update ".Length..];
            Assert.EndsWith("NONPRESENT -> FROZEN", windows[i], StringComparison.Ordinal);
            Assert.Equal(i < 12 ? "TDH.MEM.SEPT.ADD" : "TDH.MEM.PAGE.AUG", windows[i + 1]);
            Assert.StartsWith($"Write {entry}", windows[i + 3], StringComparison.Ordinal);
            Assert.EndsWith(i < 12 ? "FROZEN -> table" : "FROZEN -> leaf", windows[i + 3], StringComparison.Ordinal);
        }
    }

    private static void Zap(RecordedVm vm, GfnRange range)
    {
        vm.Mmu.MmuLock.EnterWrite(vm.Zapper);
        vm.Mmu.Invalidation.Begin(vm.Zapper);
        vm.Mmu.Invalidation.AddRange(vm.Zapper, range);
        vm.Mmu.UnmapAndFlush(vm.Zapper, range, AliasFilter.Private);
        vm.Mmu.MmuLock.ExitWrite(vm.Zapper);
    }
}
