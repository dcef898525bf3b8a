using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>The worked traces of tdp-mmu 15, to the bit, with a recording external table in the module's place.</summary>
public sealed class GoldenTraceTests
{
    private const ulong PagePfn = 0x7ABCD;
    private static readonly Gfn Page = new(0x123456);

    [Fact]
    [Trait("spec", "I23")]
    [Trait("spec", "I24")]
    [Trait("spec", "I09")]
    public void First_private_touch_freezes_four_entries_each_for_one_external_call()
    {
        using FakeVm vm = NewVm();
        Root mirror = vm.Vcpus[0].MirrorRoot!;
        var windows = new List<(int Level, Spte Entry)>();
        vm.Answer = _ =>
        {
            // Exactly the entry being changed is frozen while the module works.
            windows.Add(FrozenEntry(vm, mirror));
            return ExternalResult.Ok;
        };
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page));
        Assert.Equal(["SEPT.ADD 0x3", "SEPT.ADD 0x100000002", "SEPT.ADD 0x123400001", "AUG 0x123456000 0x7abcd000"], vm.Calls);
        Assert.Equal([(4, Spte.Frozen), (3, Spte.Frozen), (2, Spte.Frozen), (1, Spte.Frozen)], windows);
        Assert.Equal(0x8600_0000_7ABC_DB37UL, vm.Entry(mirror, Page, 1).Value);
        for (int level = 2; level <= 4; level++)
            Assert.Equal(0x8000_0000_0000_0907UL, vm.Entry(mirror, Page, level).Value & ~Spte.AddressMask);
        Assert.Equal((1L, 1L), (vm.Mmu.Statistics.PfTaken, vm.Mmu.Statistics[MmuCounter.PfFixed]));
        Assert.Equal((1L, 3L), (vm.Mmu.Statistics.Pages(Level.K4), vm.Mmu.Statistics[MmuCounter.Tables]));
        AssertExternalPages(vm, mirror);
        vm.AssertCounts();
        vm.AssertNoFindings();
        vm.TearDown();
    }

    [Fact]
    [Trait("spec", "I12")]
    public void Indexes_of_the_page_are_0_4_0x11A_0x56_and_the_shared_alias_differs_only_at_the_root()
    {
        using FakeVm vm = NewVm();
        vm.Touch(vm.Vcpus[0], Page);
        vm.SetPrivate(Page, false);
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page, Alias.Shared));
        Assert.Equal([0, 4, 0x11A, 0x56], Indexes(vm, vm.Vcpus[0].MirrorRoot!));
        Assert.Equal([256, 4, 0x11A, 0x56], Indexes(vm, vm.Vcpus[0].DirectRoot!));
        vm.TearDown();
    }

    [Fact]
    [Trait("spec", "I30")]
    public void Busy_on_the_third_table_restores_the_entry_and_frees_the_unused_pages()
    {
        using FakeVm vm = NewVm();
        Root mirror = vm.Vcpus[0].MirrorRoot!;
        bool busy = true;
        vm.Answer = call => busy && call == "SEPT.ADD 0x123400001" ? ExternalResult.Busy : ExternalResult.Ok;
        long live = vm.Machine.Frames.Live;
        int stock = Stock(vm);
        Assert.Equal(FaultResult.Retry, vm.Touch(vm.Vcpus[0], Page));
        Assert.Equal(Spte.NonPresent, vm.Entry(mirror, Page, 2));
        Assert.Equal((0L, 2L), (vm.Mmu.Statistics.Pages(Level.K4), vm.Mmu.Statistics[MmuCounter.Tables]));

        // The external page is free again; the table that was never reachable is in stock at once, without a grace period.
        Assert.Equal(live - 1, vm.Machine.Frames.Live);
        Assert.Equal(stock + 1, Stock(vm));
        Assert.Equal(0, vm.Mmu.Rcu.Pending);
        busy = false;
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page));
        Assert.Equal(["SEPT.ADD 0x3", "SEPT.ADD 0x100000002", "SEPT.ADD 0x123400001", "SEPT.ADD 0x123400001", "AUG 0x123456000 0x7abcd000"], vm.Calls);
        vm.AssertCounts();
        vm.AssertNoFindings();
        vm.TearDown();
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    [Trait("spec", "I52")]
    [Trait("spec", "I15")]
    public void A_second_vcpu_that_meets_the_frozen_entry_retries_and_changes_nothing(int level)
    {
        using FakeVm vm = NewVm();
        Root mirror = vm.Vcpus[0].MirrorRoot!;
        var results = new List<FaultResult>();
        long made = 0;
        vm.Answer = call =>
        {
            if (FrozenEntry(vm, mirror).Level == level && results.Count == 0)
            {
                int calls = vm.Calls.Count;
                made = vm.Mmu.TablesMade;
                results.Add(vm.Touch(vm.Vcpus[1], Page));
                Assert.Equal(calls, vm.Calls.Count);
                Assert.Equal(made, vm.Mmu.TablesMade);

                // Under another entry of the level above it goes on.
                if (level == 3)
                    results.Add(vm.Touch(vm.Vcpus[1], new Gfn(0x140000)));
            }

            return ExternalResult.Ok;
        };
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page));
        Assert.Equal(FaultResult.Retry, results[0]);
        Assert.All(results.Skip(1), r => Assert.Equal(FaultResult.Fixed, r));
        Assert.Equal(FaultResult.Spurious, vm.Touch(vm.Vcpus[1], Page));
        Assert.Equal(1, vm.Calls.Count(c => c.StartsWith("AUG 0x123456000", StringComparison.Ordinal)));
        vm.AssertCounts();
        vm.AssertNoFindings();
        vm.TearDown();
    }

    [Fact]
    [Trait("spec", "I58")]
    [Trait("spec", "I59")]
    [Trait("spec", "I65")]
    public void Conversion_to_shared_invalidates_the_partial_huge_ranges_and_zaps_only_the_private_alias()
    {
        using FakeVm vm = NewVm();
        Root mirror = vm.Vcpus[0].MirrorRoot!;
        vm.Touch(vm.Vcpus[0], Page);
        vm.Touch(vm.Vcpus[0], Page + 1);
        vm.Calls.Clear();
        vm.Requests.Clear();
        ulong seq = vm.Mmu.Invalidation.Peek().Seq;
        GfnRange range = GfnRange.Of(Page, 1);
        vm.Exclusive(() =>
        {
            vm.Mmu.Invalidation.Begin(vm.Main);
            vm.Mmu.Invalidation.AddRange(vm.Main, range);
            vm.Slot.AddPartialHugeRanges(vm.Main, vm.Mmu.Invalidation, range);
            vm.Mmu.UnmapAndFlush(vm.Main, range, AliasFilter.Private);
        });
        Assert.Equal((seq, 1UL), vm.Mmu.Invalidation.Peek());
        Assert.Equal(new GfnRange(new Gfn(0x100000), new Gfn(0x140000)), vm.Mmu.Invalidation.PeekRange());
        Assert.Equal(Spte.NonPresent, vm.Entry(mirror, Page, 1));
        Assert.Equal(["REMOVE 0x123456000"], vm.Calls);
        Assert.Equal([VcpuRequest.TlbFlush], vm.Requests);
        Assert.Equal(1, vm.Mmu.Statistics.Pages(Level.K4));

        // Anywhere in the union a fault retries while the conversion is in progress; outside it goes on.
        Assert.Equal(FaultResult.Retry, vm.Touch(vm.Vcpus[0], Page));
        Assert.Equal(FaultResult.Retry, vm.Touch(vm.Vcpus[0], new Gfn(0x13FFFF)));
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], new Gfn(0x140000)));
        vm.SetPrivate(Page, false);
        vm.Exclusive(() =>
        {
            vm.Mmu.Invalidation.End(vm.Main);
            vm.Slot.UpdateMixed(range, gfn => gfn != Page);
        });
        Assert.Equal((seq + 1, 0UL), vm.Mmu.Invalidation.Peek());
        Assert.True(vm.Slot.IsMixed(new Gfn(0x123400), Level.M2));
        Assert.True(vm.Slot.IsMixed(new Gfn(0x100000), Level.G1));
        Assert.False(vm.Slot.IsMixed(new Gfn(0x123600), Level.M2));
        Assert.False(vm.Slot.IsMixed(new Gfn(0x140000), Level.G1));

        vm.Calls.Clear();
        vm.HostLevel = Level.M2;
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page, Alias.Shared));
        Assert.Equal(Level.K4, Assert.Single(vm.Leaves(vm.Vcpus[0].DirectRoot!)).Level);
        Assert.Empty(vm.Calls);
        Assert.Equal(FaultResult.BadAddress, vm.Touch(vm.Vcpus[0], Page));
        Assert.Equal(new MemoryFaultInfo(new Gpa(0x123456000), 0x1000, true), vm.Vcpus[0].MemoryFault);

        // And back: only the shared alias goes, without a single call; the next private touch needs nothing but AUG.
        vm.Exclusive(() => vm.Mmu.UnmapAndFlush(vm.Main, range, AliasFilter.Shared));
        vm.SetPrivate(Page, true);
        vm.Exclusive(() => vm.Slot.UpdateMixed(range, _ => true));
        Assert.False(vm.Slot.IsMixed(new Gfn(0x123400), Level.M2));
        Assert.Empty(vm.Calls);
        Assert.Empty(vm.Leaves(vm.Vcpus[0].DirectRoot!));
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page));
        Assert.Equal(["AUG 0x123456000 0x7abcd000"], vm.Calls);
        vm.AssertCounts();
        vm.AssertNoFindings();
        vm.TearDown();
    }

    [Fact]
    [Trait("spec", "I61")]
    public void Slot_deletion_removes_every_private_leaf_by_its_own_call_and_flushes_once()
    {
        using FakeVm vm = NewVm();
        Gfn[] pages = [Page, Page + 1, new Gfn(0x17FFFF)];
        foreach (Gfn page in pages)
            vm.Touch(vm.Vcpus[0], page);
        Gfn shared = new(0x150000);
        vm.SetPrivate(shared, false);
        vm.Touch(vm.Vcpus[0], shared, Alias.Shared);
        long tables = vm.Mmu.Statistics[MmuCounter.Tables];
        vm.Calls.Clear();
        vm.Requests.Clear();
        vm.Exclusive(() => vm.Mmu.UnmapAndFlush(vm.Main, vm.Slot.Range, AliasFilter.Both));
        Assert.Equal(["REMOVE 0x123456000", "REMOVE 0x123457000", "REMOVE 0x17ffff000"], vm.Calls);
        Assert.Equal([VcpuRequest.TlbFlush], vm.Requests);
        Assert.Equal(0, vm.Mmu.Statistics.Pages(Level.K4));
        Assert.Equal(tables, vm.Mmu.Statistics[MmuCounter.Tables]);
        vm.AssertCounts();
        vm.TearDown();
    }

    private static FakeVm NewVm() => new() { PfnOf = gfn => gfn == Page ? PagePfn : 0x50000 + (gfn.Value & 0xFFFF) };

    private static int Stock(FakeVm vm) => vm.Mmu.TablesInStock;

    private static (int Level, Spte Entry) FrozenEntry(FakeVm vm, Root root)
    {
        var frozen = new List<(int, Spte)>();
        vm.Mmu.ForEachSpte(root, visit =>
        {
            if (visit.Spte.IsFrozen)
                frozen.Add((visit.Level.Value, visit.Spte));
        });
        return frozen.Count == 0 ? (0, default) : frozen[^1];
    }

    private static int[] Indexes(FakeVm vm, Root root)
    {
        var indexes = new List<int>();
        vm.Mmu.ForEachSpte(root, visit => indexes.Add(visit.Index));
        return [.. indexes];
    }

    private static void AssertExternalPages(FakeVm vm, Root mirror)
    {
        var pages = new HashSet<ulong>();
        Assert.Equal(0UL, mirror.Table.ExternalPage.Value);
        vm.Mmu.ForEachSpte(mirror, visit =>
        {
            if (visit.Kind != SpteKind.Table)
                return;
            TablePage child = vm.Mmu.TableOf(visit.Spte);
            Assert.NotEqual(0UL, child.ExternalPage.Value);
            Assert.True(pages.Add(child.ExternalPage.Value));
            Assert.Equal((visit.Gfn, visit.Level.Down), (child.Gfn, child.Level));
            Assert.Equal(visit.Table.Frame.Value + ((ulong)visit.Index << 3), child.ParentEntry.Value);
        });
        Assert.Equal(3, pages.Count);
    }
}
