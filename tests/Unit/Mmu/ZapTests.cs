using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>Zaps, yielding, and what becomes of removed tables (tdp-mmu 3.3, 4.6, 6.2, 7.2).</summary>
public sealed class ZapTests
{
    [Fact]
    [Trait("spec", "I50")]
    [Trait("spec", "I51")]
    public void A_zap_under_permanent_contention_ends_and_skips_nothing()
    {
        using var vm = new FakeVm(td: false);
        ulong[] pages = [0, 1, 511, 512, 513, 5000, 0x3FFFF, 0x40000, 0x7FFFF];
        foreach (ulong page in pages)
            Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + page)));
        vm.Mmu.NeedResched = static () => true;
        vm.Exclusive(() => Assert.True(vm.Mmu.UnmapRange(vm.Main, vm.Slot.Range, AliasFilter.Shared) || vm.Requests.Contains(VcpuRequest.TlbFlush)));
        Assert.Empty(vm.Leaves(vm.Vcpus[0].DirectRoot!));
        Assert.NotEqual(0, vm.Mmu.Statistics[MmuCounter.Yields]);

        // What was zapped before the lock was given up was flushed before, too.
        Assert.Contains(VcpuRequest.TlbFlush, vm.Requests);
        vm.AssertCounts();
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "I59")]
    public void A_huge_leaf_that_only_overlaps_the_range_is_zapped_whole()
    {
        using var vm = new FakeVm(td: false) { HostLevel = Level.M2 };
        vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart));
        vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + 512));
        Assert.Equal(2, vm.Mmu.Statistics.Pages(Level.M2));
        vm.Exclusive(() => Assert.True(vm.Mmu.UnmapRange(vm.Main, GfnRange.Of(new Gfn(FakeVm.SlotStart + 511), 1), AliasFilter.Shared)));
        Assert.Equal(new Gfn(FakeVm.SlotStart + 512), Assert.Single(vm.Leaves(vm.Vcpus[0].DirectRoot!)).Gfn);
        vm.AssertCounts();
    }

    [Fact]
    [Trait("spec", "I57")]
    public void Leaves_of_an_invalid_root_are_zapped_without_a_flush()
    {
        using var vm = new FakeVm(td: false);
        vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart));
        vm.Exclusive(() =>
        {
            vm.Mmu.InvalidateRoots(vm.Main, RootKinds.Direct);
            Assert.False(vm.Mmu.UnmapRange(vm.Main, vm.Slot.Range, AliasFilter.Shared));
        });
        Assert.Empty(vm.Leaves(vm.Vcpus[0].DirectRoot!));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "I47")]
    public void A_removed_table_holds_nothing_present_and_is_freed_after_a_grace_period(bool shared)
    {
        using var vm = new FakeVm(td: false);
        Gfn gfn = new(FakeVm.SlotStart + 3);
        vm.Touch(vm.Vcpus[0], gfn);
        Root root = vm.Vcpus[0].DirectRoot!;
        TablePage table = vm.Mmu.TableOf(vm.Entry(root, gfn, 2));
        Actor reader = vm.Machine.Actors.Create("reader");
        vm.Mmu.Rcu.ReadEnter(reader);
        int stock = vm.Mmu.TablesInStock;
        if (shared)
            vm.Mmu.MmuLock.EnterRead(vm.Main);
        else
            vm.Mmu.MmuLock.EnterWrite(vm.Main);
        Assert.True(vm.ZapTable(table));
        if (shared)
            vm.Mmu.MmuLock.ExitRead(vm.Main);
        else
            vm.Mmu.MmuLock.ExitWrite(vm.Main);
        Spte[] left = [.. Enumerable.Range(0, 512).Select(i => table[i])];
        Assert.Equal(Spte.Frozen, left[3]);
        Assert.All(left, e => Assert.False(e.IsPresent));

        // Shared removal freezes every entry: a walker that is still inside can write none of them (I46).
        Assert.Equal(shared ? 512 : 1, left.Count(e => e.IsFrozen));
        Assert.Equal((1, stock), (vm.Mmu.Rcu.Pending, vm.Mmu.TablesInStock));
        vm.Mmu.Rcu.ReadExit(reader);
        vm.Mmu.Rcu.Barrier(vm.Main);
        Assert.Equal((0, stock + 1), (vm.Mmu.Rcu.Pending, vm.Mmu.TablesInStock));
        vm.AssertCounts();
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "I46")]
    public void A_present_entry_written_into_a_detached_table_is_found()
    {
        using var vm = new FakeVm(td: false);
        Gfn gfn = new(FakeVm.SlotStart + 3);
        vm.Touch(vm.Vcpus[0], gfn);
        TablePage table = vm.Mmu.TableOf(vm.Entry(vm.Vcpus[0].DirectRoot!, gfn, 2));
        vm.Exclusive(() => vm.ZapTable(table));
        vm.Machine.Memory.Table(table.Frame)[9] = 0x8600_0000_7ABC_DB77;
        vm.Mmu.Rcu.Barrier(vm.Main);
        Assert.Equal("I46", Assert.Single(vm.Machine.Findings.All).Rule);
    }

    [Fact]
    [Trait("spec", "I45")]
    public void A_write_into_a_freed_table_is_found_when_it_is_used_again()
    {
        using var vm = new FakeVm(td: false);
        Gfn gfn = new(FakeVm.SlotStart + 3);
        vm.Touch(vm.Vcpus[0], gfn);
        TablePage table = vm.Mmu.TableOf(vm.Entry(vm.Vcpus[0].DirectRoot!, gfn, 2));
        Hpa frame = table.Frame;
        vm.Exclusive(() => vm.ZapTable(table));
        vm.Mmu.Rcu.Barrier(vm.Main);
        vm.Machine.Memory.Table(frame)[9] = 0x8600_0000_7ABC_DB77;
        foreach (MmuVcpu vcpu in vm.Vcpus)
            vm.Mmu.DestroyVcpu(vcpu);
        vm.Mmu.Destroy(vm.Main);
        Assert.Contains(vm.Machine.Findings.All, f => f.Rule == "I45");
    }

    [Fact]
    [Trait("spec", "I18")]
    public void Replacing_a_leaf_by_a_leaf_of_another_page_stops_the_host()
    {
        using var vm = new FakeVm(td: false) { MapWritable = false };
        Gfn gfn = new(FakeVm.SlotStart);
        vm.Touch(vm.Vcpus[0], gfn, access: PfErr.User);
        vm.PfnOf = _ => 0x51234;
        vm.MapWritable = true;
        Assert.Throws<HostBugException>(() => vm.Touch(vm.Vcpus[0], gfn));
    }

    [Fact]
    [Trait("spec", "I17")]
    public void A_write_fault_whose_page_became_writable_upgrades_the_leaf_in_place()
    {
        using var vm = new FakeVm(td: false) { MapWritable = false };
        Gfn gfn = new(FakeVm.SlotStart);
        vm.Touch(vm.Vcpus[0], gfn, access: PfErr.User);
        Assert.Equal(0x8000_0000_0000_0000UL, vm.Entry(vm.Vcpus[0].DirectRoot!, gfn, 1).Value & ~0x7FFF_FFFF_FFFF_FFFFUL);
        Assert.False(vm.Entry(vm.Vcpus[0].DirectRoot!, gfn, 1).IsHostWritable);
        vm.MapWritable = true;
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], gfn));
        Assert.True(vm.Entry(vm.Vcpus[0].DirectRoot!, gfn, 1) is { IsHostWritable: true, IsMmuWritable: true, IsWritable: true, IsDirty: true });
        Assert.Empty(vm.Requests);
        Assert.Empty(vm.RangeFlushes);
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "I81")]
    public void A_module_error_kills_the_vm_restores_the_entry_and_tells_the_vcpus()
    {
        using var vm = new FakeVm();
        Gfn gfn = new(0x123456);
        vm.Answer = call => call.StartsWith("AUG", StringComparison.Ordinal) ? ExternalResult.Error : ExternalResult.Ok;
        Assert.Equal(FaultResult.Retry, vm.Touch(vm.Vcpus[0], gfn));
        Assert.Equal(Spte.NonPresent, vm.Entry(vm.Vcpus[0].MirrorRoot!, gfn, 1));
        Assert.Equal(0, vm.Mmu.Statistics.Pages(Level.K4));
        Assert.True(vm.Mmu.Death.IsDead);
        Assert.Equal("the fake module refused", vm.Mmu.Death.Reason);
        Assert.Equal([VcpuRequest.VmDead], vm.Requests);
    }

    [Fact]
    [Trait("spec", "I29")]
    public void A_removal_that_the_module_refuses_is_a_dead_vm()
    {
        using var vm = new FakeVm();
        Gfn gfn = new(0x123456);
        vm.Touch(vm.Vcpus[0], gfn);
        vm.Answer = call => call.StartsWith("REMOVE", StringComparison.Ordinal) ? ExternalResult.Busy : ExternalResult.Ok;
        vm.Exclusive(() => vm.Mmu.UnmapAndFlush(vm.Main, vm.Slot.Range, AliasFilter.Private));
        Assert.True(vm.Mmu.Death.IsDead);

        // The error came before the statistics, as in the newest protocol.
        Assert.Equal(1, vm.Mmu.Statistics.Pages(Level.K4));
    }
}
