using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>The fault path beyond the first touch (tdp-mmu 5).</summary>
public sealed class FaultTests
{
    private static readonly Gfn Page = new(FakeVm.SlotStart + 5);

    [Fact]
    [Trait("spec", "I53")]
    [Trait("spec", "I54")]
    public void An_answer_older_than_an_invalidation_is_thrown_away()
    {
        using var vm = new FakeVm(td: false);
        bool invalidated = false;
        vm.AfterLookup = () =>
        {
            if (invalidated)
                return;
            invalidated = true;
            vm.Exclusive(() =>
            {
                vm.Mmu.Invalidation.Begin(vm.Main);
                vm.Mmu.Invalidation.AddRange(vm.Main, GfnRange.Of(new Gfn(0x1), 1));
                vm.Mmu.Invalidation.End(vm.Main);
            });
        };
        Assert.Equal(FaultResult.Retry, vm.Touch(vm.Vcpus[0], Page));
        Assert.Empty(vm.Leaves(vm.Vcpus[0].DirectRoot!));
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page));
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "I55")]
    public void An_invalidation_that_ends_without_having_begun_or_without_a_range_is_noticed()
    {
        using var vm = new FakeVm(td: false);
        vm.Exclusive(() =>
        {
            vm.Mmu.Invalidation.Begin(vm.Main);
            vm.Mmu.Invalidation.End(vm.Main);
        });
        Assert.Equal("I81", Assert.Single(vm.Machine.Findings.All).Rule);
        Assert.Throws<InvalidOperationException>(() => vm.Exclusive(() => vm.Mmu.Invalidation.End(vm.Main)));
    }

    [Fact]
    [Trait("spec", "I67")]
    public void A_fault_that_somebody_has_fixed_is_spurious()
    {
        using var vm = new FakeVm(td: false);
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page));
        Assert.Equal(FaultResult.Spurious, vm.Touch(vm.Vcpus[1], Page, access: PfErr.Fetch));
        Assert.Equal(1, vm.Mmu.Statistics[MmuCounter.PfSpurious]);
        Assert.Equal(2, vm.Mmu.Statistics.PfTaken);
    }

    [Fact]
    [Trait("spec", "I79")]
    public void The_fast_page_fault_gives_W_back_and_records_the_page()
    {
        using var vm = new FakeVm(td: false);
        Root root = vm.Vcpus[0].DirectRoot!;
        vm.Touch(vm.Vcpus[0], Page);
        vm.Slot.IsDirtyLogged = true;
        vm.Mmu.MmuLock.EnterRead(vm.Main);
        Assert.True(vm.Mmu.WriteProtectSlot(vm.Main, vm.Slot, Level.K4));
        vm.Mmu.MmuLock.ExitRead(vm.Main);
        Assert.True(vm.Entry(root, Page, 1) is { IsWritable: false, IsMmuWritable: true });

        // mmu_lock is taken by somebody else for the whole time: the fast path does not need it.
        vm.Mmu.MmuLock.EnterWrite(vm.Main);
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], Page, access: PfErr.Present | PfErr.Write));
        vm.Mmu.MmuLock.ExitWrite(vm.Main);
        Assert.True(vm.Entry(root, Page, 1).IsWritable);
        Assert.Equal([Page.Value], vm.Dirty);
        Assert.Equal(1, vm.Mmu.Statistics[MmuCounter.PfFast]);
    }

    [Fact]
    public void A_write_to_a_tracked_page_is_refused_and_keeps_its_leaf_read_only()
    {
        using var vm = new FakeVm(td: false) { HostLevel = Level.M2 };
        vm.Exclusive(() => vm.Slot.TrackWrites(Page, 1));
        Assert.Equal(FaultResult.WriteProtected, vm.Touch(vm.Vcpus[0], Page));
        SpteVisit leaf = Assert.Single(vm.Leaves(vm.Vcpus[0].DirectRoot!));
        Assert.True(leaf is { Level.Value: 1, Spte: { IsHostWritable: true, IsMmuWritable: false, IsWritable: false } });
        Assert.Equal(FaultResult.WriteProtected, vm.Touch(vm.Vcpus[0], Page, access: PfErr.Present | PfErr.Write));
    }

    [Fact]
    [Trait("spec", "I66")]
    public void Levels_are_limited_by_host_slot_and_mixed_attributes()
    {
        using var vm = new FakeVm(td: false) { HostLevel = Level.G1 };
        vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart));
        Assert.Equal(Level.G1, vm.Leaves(vm.Vcpus[0].DirectRoot!).Single().Level);
        vm.Slot.AddDisallow(new Gfn(FakeVm.SlotStart + 0x40000), Level.G1, 1);
        vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + 0x40000));
        Assert.Equal(Level.M2, vm.Leaves(vm.Vcpus[0].DirectRoot!)[^1].Level);
        vm.Slot.IsDirtyLogged = true;
        vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + 0x40200));
        Assert.Equal(Level.K4, vm.Leaves(vm.Vcpus[0].DirectRoot!)[^1].Level);
        vm.AssertCounts();
    }

    [Fact]
    public void A_huge_mapping_that_replaces_a_table_flushes_its_range_and_frees_the_table()
    {
        using var vm = new FakeVm(td: false);
        vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + 1));
        vm.HostLevel = Level.M2;
        Assert.Equal(FaultResult.Fixed, vm.Touch(vm.Vcpus[0], new Gfn(FakeVm.SlotStart + 2)));
        Assert.Equal([GfnRange.Of(new Gfn(FakeVm.SlotStart), 512)], vm.RangeFlushes);
        Assert.Equal((0L, 1L), (vm.Mmu.Statistics.Pages(Level.K4), vm.Mmu.Statistics.Pages(Level.M2)));
        Assert.Equal(1, vm.Mmu.Rcu.Pending);
        vm.AssertCounts();
        vm.AssertNoFindings();
    }

    [Fact]
    public void An_address_without_slot_becomes_an_mmio_entry_and_its_misconfiguration_is_emulated()
    {
        using var vm = new FakeVm(td: false) { Generation = 8 };
        Gfn hole = new(0xF0000);
        Assert.Equal(FaultResult.Emulate, vm.Touch(vm.Vcpus[0], hole));
        Assert.True(vm.Mmu.Format.IsMmio(vm.Entry(vm.Vcpus[0].DirectRoot!, hole, 1)));
        Assert.Equal(FaultResult.Emulate, vm.Mmu.HandleFault(vm.Vcpus[1], hole.Gpa, PfErr.Rsvd));
        Assert.Equal(1, vm.Mmu.Statistics[MmuCounter.MmioCached]);

        // After a slot change the generation differs: the entry is written anew.
        vm.Generation = 16;
        Assert.Equal(FaultResult.Emulate, vm.Mmu.HandleFault(vm.Vcpus[1], hole.Gpa, PfErr.Rsvd));
        Assert.True(SpteFormat.IsMmioCurrent(vm.Entry(vm.Vcpus[0].DirectRoot!, hole, 1), 16));
        Assert.Equal(2, vm.Mmu.Statistics[MmuCounter.MmioCreated]);

        // An address whose entry is no MMIO entry has been fixed meanwhile.
        vm.Touch(vm.Vcpus[0], Page);
        Assert.Equal(FaultResult.Retry, vm.Mmu.HandleFault(vm.Vcpus[0], Page.Gpa, PfErr.Rsvd));
        vm.AssertNoFindings();
    }

    [Fact]
    [Trait("spec", "I68")]
    public void A_private_access_that_would_have_to_be_emulated_is_a_memory_fault()
    {
        using var vm = new FakeVm();
        Assert.Equal(FaultResult.BadAddress, vm.Mmu.HandleFault(vm.Vcpus[0], new Gpa(0xF0000000), PfErr.Rsvd | PfErr.PrivateAccess));
        Assert.Equal("I81", Assert.Single(vm.Machine.Findings.All).Rule);
    }

    [Fact]
    public void A_prefetch_leaves_Accessed_clear_and_tells_the_level()
    {
        using var vm = new FakeVm(td: false) { HostLevel = Level.M2 };
        Assert.Equal(FaultResult.Fixed, vm.Mmu.Prefetch(vm.Vcpus[0], Page.Gpa, 0, out Level level));
        Assert.Equal(Level.M2, level);
        Assert.False(vm.Leaves(vm.Vcpus[0].DirectRoot!).Single().Spte.IsAccessed);
        Assert.Equal(0, vm.Mmu.Statistics.PfTaken);
    }

    [Fact]
    [Trait("spec", "I70")]
    public void The_initial_image_maps_given_pages_as_prefetched_and_refuses_them_twice()
    {
        using var vm = new FakeVm();
        Gfn gfn = new(0x123456);
        Assert.Equal(FaultResult.Fixed, vm.Mmu.MapPrivatePfn(vm.Vcpus[0], vm.Slot, gfn, 0x7ABCD));
        Assert.Equal(0x8600_0000_7ABC_DA37UL, vm.Entry(vm.Vcpus[0].MirrorRoot!, gfn, 1).Value);
        Assert.Equal(FaultResult.IoError, vm.Mmu.MapPrivatePfn(vm.Vcpus[0], vm.Slot, gfn, 0x7ABCD));
        int busy = 3;
        vm.Answer = _ => busy-- > 0 ? ExternalResult.Busy : ExternalResult.Ok;
        Assert.Equal(FaultResult.Fixed, vm.Mmu.MapPrivatePfn(vm.Vcpus[0], vm.Slot, gfn + 1, 0x7ABCE));
        vm.AssertCounts();
    }

    [Fact]
    [Trait("spec", "I44")]
    public void Aging_reads_and_clears_the_shared_alias_only()
    {
        using var vm = new FakeVm();
        Gfn shared = new(0x150000);
        vm.SetPrivate(shared, false);
        vm.Touch(vm.Vcpus[0], new Gfn(0x123456));
        vm.Touch(vm.Vcpus[0], shared, Alias.Shared);
        var mirror = vm.Content(vm.Vcpus[0].MirrorRoot!);
        Assert.True(vm.Mmu.TestAge(vm.Main, vm.Slot.Range, AliasFilter.Shared));
        Assert.True(vm.Mmu.Age(vm.Main, vm.Slot.Range, AliasFilter.Shared));
        Assert.False(vm.Mmu.Age(vm.Main, vm.Slot.Range, AliasFilter.Shared));
        Assert.Equal(mirror, vm.Content(vm.Vcpus[0].MirrorRoot!));
        vm.AssertNoFindings();
        Assert.False(vm.Mmu.Age(vm.Main, vm.Slot.Range, AliasFilter.Private));
        Assert.Equal("I81", Assert.Single(vm.Machine.Findings.All).Rule);
    }
}
