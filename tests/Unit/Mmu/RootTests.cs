using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>Roots: sharing, references, invalidation, fast zap, destruction (tdp-mmu 1.4, 6.3, 6.4).</summary>
public sealed class RootTests
{
    [Fact]
    [Trait("spec", "I37")]
    [Trait("spec", "I38")]
    [Trait("spec", "I42")]
    public void Vcpus_of_one_role_share_one_mirror_and_one_direct_root()
    {
        using var vm = new FakeVm();
        Assert.Same(vm.Vcpus[0].MirrorRoot, vm.Vcpus[1].MirrorRoot);
        Assert.Same(vm.Vcpus[0].DirectRoot, vm.Vcpus[1].DirectRoot);

        // Newest first; the mirror was made first. One reference for the TDP MMU and one per vCPU.
        Assert.Equal(["d1", "m0"], vm.Mmu.Roots.Select(r => r.ToString()));
        Assert.All(vm.Mmu.Roots, r => Assert.Equal(3, r.ReferenceCount));
        vm.Mmu.UnloadRoots(vm.Vcpus[1]);
        Assert.Equal([2L, 3L], vm.Mmu.Roots.Select(r => r.ReferenceCount));
        Assert.NotNull(vm.Vcpus[1].MirrorRoot);
        vm.TearDown();
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "I43")]
    [Trait("spec", "I44")]
    [Trait("spec", "I60")]
    public void Fast_zap_empties_the_direct_root_and_leaves_the_mirror_bit_identical()
    {
        using var vm = new FakeVm();
        Root mirror = vm.Vcpus[0].MirrorRoot!;
        Root old = vm.Vcpus[0].DirectRoot!;
        for (ulong i = 0; i < 8; i++)
        {
            Gfn gfn = new(FakeVm.SlotStart + (i * 77));
            vm.SetPrivate(gfn, i % 2 == 0);
            Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], gfn, i % 2 == 0 ? Alias.Private : Alias.Shared));
        }

        var before = vm.Content(mirror);
        int calls = vm.Calls.Count;
        vm.Mmu.ZapAllFast(vm.Main);
        Assert.Equal(before, vm.Content(mirror));
        Assert.Equal(calls, vm.Calls.Count);
        Assert.Equal([VcpuRequest.FreeObsoleteRoots], vm.Requests);
        Assert.True(old.IsInvalid && !old.IsScheduledForZap);
        Assert.Empty(vm.Content(old));
        Assert.Equal(2, old.ReferenceCount);

        // A vCPU that has not reloaded yet can only retry, for the private alias too; after the reload it has a new direct root and the same mirror.
        Assert.Equal(FaultResult.Retry, vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + 1000)));
        foreach (MmuVcpu vcpu in vm.Vcpus)
        {
            Assert.True(vm.Mmu.FreeObsoleteRoots(vcpu));
            Assert.True(vm.Mmu.ReloadRoots(vcpu));
            Assert.False(vm.Mmu.FreeObsoleteRoots(vcpu));
        }

        Assert.NotSame(old, vm.Vcpus[0].DirectRoot);
        Assert.Same(mirror, vm.Vcpus[0].MirrorRoot);
        Assert.DoesNotContain(old, vm.Mmu.Roots);
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + 77), Alias.Shared));
        vm.AssertCounts();
        vm.AssertNoFindings();
        vm.TearDown();
    }

    [Fact]
    [Trait("spec", "I39")]
    [Trait("spec", "I71")]
    public void Destruction_takes_the_mirror_apart_from_the_bottom_and_gives_every_frame_back()
    {
        using var vm = new FakeVm();
        vm.Touch(vm.Vcpus[0], new Gfn(0x123456));
        vm.Exclusive(() => vm.Mmu.UnmapAndFlush(vm.Main, vm.Slot.Range, AliasFilter.Private));
        vm.Calls.Clear();
        vm.TearDown();
        Assert.Equal(["FREE 0x123400000", "FREE 0x100000001", "FREE 0x2"], vm.Calls);
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "I38")]
    public void A_valid_root_outlives_the_last_vcpu_that_used_it()
    {
        using var vm = new FakeVm(td: false);
        vm.Mmu.UnloadRoots(vm.Vcpus[0]);
        vm.Mmu.UnloadRoots(vm.Vcpus[1]);

        // The TDP MMU's own reference is left: the next vCPU of the role finds the root with what it maps.
        Root root = Assert.Single(vm.Mmu.Roots);
        Assert.Equal(1, root.ReferenceCount);
        var later = new MmuVcpu(vm.Mmu, vm.Main, 7);
        Assert.True(vm.Mmu.LoadRoot(later, mirror: false));
        Assert.Same(root, later.DirectRoot);
        vm.Mmu.DestroyVcpu(later);
        vm.TearDown();
        vm.AssertNoFindings();
    }

    [Fact]
    public void A_mask_that_selects_nothing_warns()
    {
        using var vm = new FakeVm();
        vm.Exclusive(() => vm.Mmu.InvalidateRoots(vm.Main, RootKinds.Invalid));
        Assert.NotEqual(0, vm.Mmu.Warnings);
        Assert.Equal(RootKinds.None, vm.Mmu.KindsOf(AliasFilter.None));
        Assert.Equal(RootKinds.Valid, vm.Mmu.KindsOf(AliasFilter.Both));
        Assert.All(vm.Machine.Findings.All, f => Assert.Equal("I81", f.Rule));
    }
}
