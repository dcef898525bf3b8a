using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>The NX huge page workaround, its switch and the recovery of its tables (tdp-mmu 6.9).</summary>
public sealed class NxTests
{
    private const ulong Pages2M = 512;

    [Fact]
    [Trait("spec", "tdp-mmu 6.9")]
    public void Recovery_takes_the_oldest_tables_first_and_lets_the_next_data_access_map_huge_again()
    {
        using FakeVm vm = HugeVm();
        Root root = vm.Vcpus[0].DirectRoot!;
        for (ulong i = 0; i < 3; i++)
        {
            Assert.Equal(FaultResult.Fixed, Fetch(vm, i * Pages2M));
            Assert.Equal(Level.K4, LevelAt(vm, root, i * Pages2M));
        }

        Assert.Equal([Base(0), Base(1), Base(2)], vm.Mmu.NxList.Select(t => t.Gfn));
        Assert.Equal(3, vm.Mmu.Statistics[MmuCounter.NxSplits]);
        vm.Requests.Clear();

        Assert.Equal(2, vm.Mmu.RecoverNxPages(vm.Main, 2, static _ => false));

        Assert.Equal([VcpuRequest.TlbFlush], vm.Requests);
        Assert.Equal([Base(2)], vm.Mmu.NxList.Select(t => t.Gfn));
        Assert.Equal(1, vm.Mmu.Statistics[MmuCounter.NxSplits]);
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Base(0)));
        Spte huge = vm.Entry(root, Base(0), 2);
        Assert.True(huge.IsLeaf(Level.M2));
        Assert.False(huge.IsExecutable);
        vm.AssertCounts();
        vm.TearDown();
        Assert.Equal(0, vm.Mmu.Statistics[MmuCounter.NxSplits]);
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.9")]
    public void A_table_of_a_dirty_logged_slot_leaves_the_list_and_stays()
    {
        using FakeVm vm = HugeVm();
        Root root = vm.Vcpus[0].DirectRoot!;
        Fetch(vm, 0);
        TablePage table = vm.Mmu.NxList[0];
        vm.Requests.Clear();
        Assert.Equal(0, vm.Mmu.RecoverNxPages(vm.Main, 10, t => t == table));
        Assert.Empty(vm.Mmu.NxList);
        Assert.Empty(vm.Requests);
        Assert.Equal(Level.K4, LevelAt(vm, root, 0));

        // Its mark is gone with it: nothing holds a data access at 4K any more.
        Assert.False(table.IsNxHugePageDisallowed);
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Base(0) + 7));
        Assert.Equal(Level.M2, LevelAt(vm, root, 0));
        vm.TearDown();
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 7.2")]
    public void Recovery_flushes_before_it_gives_way_and_no_table_is_freed_before_the_flush()
    {
        using FakeVm vm = HugeVm();
        for (ulong i = 0; i < 3; i++)
            Fetch(vm, i * Pages2M);
        vm.Requests.Clear();
        vm.Mmu.NeedResched = () => true;
        int pendingAtFlush = 0;
        vm.OnRequest = request => pendingAtFlush = request == VcpuRequest.TlbFlush && vm.Mmu.Rcu.IsReading(vm.Main) ? pendingAtFlush + 1 : -99;
        Assert.Equal(3, vm.Mmu.RecoverNxPages(vm.Main, 3, static _ => false));
        Assert.Equal([VcpuRequest.TlbFlush, VcpuRequest.TlbFlush, VcpuRequest.TlbFlush], vm.Requests);
        Assert.Equal(3, pendingAtFlush);
        Assert.Equal(2, vm.Mmu.Statistics[MmuCounter.Yields]);
        vm.Mmu.NeedResched = null;
        vm.OnRequest = null;
        vm.TearDown();
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "R15")]
    public void A_table_whose_entry_was_linked_again_is_left_alone()
    {
        using FakeVm vm = HugeVm();
        Root root = vm.Vcpus[0].DirectRoot!;
        Fetch(vm, 0);
        TablePage old = vm.Mmu.NxList[0];
        ref ulong word = ref vm.Word(root, Base(0), 2);
        ulong before = word;

        // Somebody zapped the table and another one was linked in its place.
        word = Spte.NonPresent.Value;
        Fetch(vm, 0);
        Assert.NotEqual(before, word);
        vm.Mmu.MmuLock.EnterRead(vm.Main);
        Assert.False(vm.ZapTable(old));
        vm.Mmu.MmuLock.ExitRead(vm.Main);
        Assert.NotEqual(Spte.NonPresent.Value, word);
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 7.2")]
    public void Zapping_a_table_outside_an_rcu_section_stops_the_run()
    {
        using FakeVm vm = HugeVm();
        Fetch(vm, 0);
        TablePage table = vm.Mmu.NxList[0];
        vm.Exclusive(() => Assert.Throws<InvalidOperationException>(() => vm.Mmu.ZapTable(vm.Main, table)));
        vm.Exclusive(() => Assert.Throws<InvalidOperationException>(() => vm.Mmu.RecoverNxPage(vm.Main, static _ => false, out _)));
        Assert.Single(vm.Mmu.NxList);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.4")]
    public void Switching_the_workaround_zaps_everything_direct_and_builds_other_leaves()
    {
        using FakeVm vm = HugeVm();
        vm.Touch(vm.Vcpus[0], Base(0));
        Root before = vm.Vcpus[0].DirectRoot!;
        Assert.False(vm.Entry(before, Base(0), 2).IsExecutable);
        vm.Requests.Clear();
        vm.Mmu.SetNxHugePages(vm.Main, false);
        Assert.True(before.IsInvalid);
        Assert.Equal([VcpuRequest.FreeObsoleteRoots], vm.Requests);
        Assert.Equal(0, vm.Mmu.Statistics.Pages(Level.M2));
        Assert.Equal(FaultResult.Retry, vm.Touch(vm.Vcpus[0], Base(0)));
        Assert.True(vm.Mmu.FreeObsoleteRoots(vm.Vcpus[0]));
        Assert.True(vm.Mmu.ReloadRoots(vm.Vcpus[0]));
        Assert.Equal(FaultResult.Fixed, Fetch(vm, 0));
        Spte leaf = vm.Entry(vm.Vcpus[0].DirectRoot!, Base(0), 2);
        Assert.True(leaf.IsLeaf(Level.M2) && leaf.IsExecutable);
        Assert.Empty(vm.Mmu.NxList);
        Assert.True(vm.Mmu.FreeObsoleteRoots(vm.Vcpus[1]));
        vm.TearDown();
        vm.AssertNoFindings();
    }

    private static FakeVm HugeVm() => new(td: false, new MmuOptions { NxHugePages = true }) { HostLevel = Level.M2 };

    private static Gfn Base(ulong index) => new(FakeVm.SlotStart + (index * Pages2M));

    private static FaultResult Fetch(FakeVm vm, ulong offset) => vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + offset), access: PfErr.Fetch);

    private static Level LevelAt(FakeVm vm, Root root, ulong offset) =>
        vm.Entry(root, new Gfn(FakeVm.SlotStart + offset), 2).IsLeaf(Level.M2) ? Level.M2 : Level.K4;
}
