using Tdp.Host;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Host;

/// <summary>Memory regions: what is refused, and what a change does (tdp-mmu 6.5, 6.13).</summary>
public sealed class MemslotTests
{
    private const ulong Mib = 1 << 20;

    [Fact]
    [Trait("spec", "tdp-mmu 6.5")]
    public void Impossible_regions_are_refused_and_change_nothing()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        ulong hva = bed.Hva;
        (UserMemoryRegion Region, Errno Expected)[] cases =
        [
            (new(1, MemslotFlags.None, 16 * Mib + 1, Mib, hva), Errno.EINVAL),
            (new(1, MemslotFlags.None, 16 * Mib, Mib + 7, hva), Errno.EINVAL),
            (new(1, MemslotFlags.None, 16 * Mib, Mib, hva + 1), Errno.EINVAL),
            (new(1, MemslotFlags.Invalid, 16 * Mib, Mib, hva), Errno.EINVAL),
            (new(1, MemslotFlags.None, ulong.MaxValue - 0xFFF, 0x2000, hva), Errno.EINVAL),
            (new(1, MemslotFlags.None, 1UL << 48, Mib, hva), Errno.EINVAL),
            (new(2 << 16, MemslotFlags.None, 16 * Mib, Mib, hva), Errno.EINVAL),
            (new(40_000, MemslotFlags.None, 16 * Mib, Mib, hva), Errno.EINVAL),
            (new(1, MemslotFlags.GuestMemfd, 16 * Mib, Mib, hva), Errno.EINVAL),
            (new(1, MemslotFlags.None, 0, Mib, hva), Errno.EEXIST),
            (new(1, MemslotFlags.None, (HostBed.Pages << 12) - 4096, Mib, hva), Errno.EEXIST),
            (new(5, MemslotFlags.None, 0, 0, 0), Errno.EINVAL),
            (bed.Ram with { MemorySize = Mib }, Errno.EINVAL),
            (bed.Ram with { UserspaceAddress = hva + Mib }, Errno.EINVAL),
            (bed.Ram with { Flags = MemslotFlags.ReadOnly }, Errno.EINVAL),
        ];
        ulong generation = bed.Vm.SlotsOf(0).Generation;
        Assert.All(cases, c => Assert.Equal((c.Region, c.Expected), (c.Region, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, c.Region))));
        Assert.Equal(generation, bed.Vm.SlotsOf(0).Generation);
        Assert.Single(bed.Vm.SlotsOf(0).Active.Slots);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.13")]
    public void A_td_refuses_read_only_slots_the_alias_bit_and_changes_of_private_slots()
    {
        using HostBed bed = HostBed.Td();
        const ulong Alias = 1UL << 47;
        (UserMemoryRegion Region, Errno Expected)[] cases =
        [
            (new(1, MemslotFlags.ReadOnly, 32 * Mib, Mib, bed.Hva), Errno.EINVAL),
            (new(1, MemslotFlags.GuestMemfd | MemslotFlags.LogDirtyPages, 32 * Mib, Mib, bed.Hva, bed.File), Errno.EINVAL),
            (new(1, MemslotFlags.GuestMemfd | MemslotFlags.ReadOnly, 32 * Mib, Mib, bed.Hva, bed.File), Errno.EINVAL),
            (new(1, MemslotFlags.None, Alias, Mib, bed.Hva), Errno.EINVAL),
            (new(1, MemslotFlags.None, Alias - Mib, 2 * Mib, bed.Hva), Errno.EINVAL),
            (new(1, MemslotFlags.GuestMemfd, 32 * Mib, Mib, bed.Hva, bed.File), Errno.EEXIST),
            (new(1, MemslotFlags.GuestMemfd, 32 * Mib, Mib, bed.Hva, bed.File, (HostBed.Pages << 12) - 4096), Errno.EINVAL),
            (new(1 << 16, MemslotFlags.None, 32 * Mib, Mib, bed.Hva), Errno.EINVAL),
            (bed.Ram with { GuestPhysicalAddress = 64 * Mib }, Errno.EINVAL),
            (bed.Ram with { UserspaceAddress = bed.Hva + 4096 }, Errno.EINVAL),
        ];
        Assert.All(cases, c => Assert.Equal((c.Region, c.Expected), (c.Region, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, c.Region))));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 1.6")]
    public void The_generation_grows_by_the_number_of_address_spaces()
    {
        using HostBed vm = HostBed.OrdinaryVm();
        ulong before = vm.Vm.SlotsOf(0).Generation;
        Assert.Equal(Errno.None, vm.Vm.Memory.SetUserMemoryRegion(vm.Actor, new(1, MemslotFlags.None, 64 * Mib, Mib, vm.Hva)));
        Assert.Equal(before + 2, vm.Vm.SlotsOf(0).Generation);

        // DELETE publishes twice: the INVALID copy, then the set without it.
        Assert.Equal(Errno.None, vm.Vm.Memory.SetUserMemoryRegion(vm.Actor, new(1, MemslotFlags.None, 64 * Mib, 0, 0)));
        Assert.Equal(before + 6, vm.Vm.SlotsOf(0).Generation);
        vm.TearDown();

        using HostBed td = HostBed.Td();
        before = td.Vm.SlotsOf(0).Generation;
        Assert.Equal(Errno.None, td.Vm.Memory.SetUserMemoryRegion(td.Actor, new(1, MemslotFlags.None, 64 * Mib, Mib, td.Hva)));
        Assert.Equal(before + 1, td.Vm.SlotsOf(0).Generation);
        td.TearDown();
    }

    [Fact]
    [Trait("spec", "I61")]
    public void A_moved_slot_is_empty_at_its_old_place_and_shows_the_same_memory_at_the_new_one()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Write(0x5000, 0xFEED))));
        Assert.Equal(UserExit.ScriptEnd, bed.Vm.VcpuOf(0).RunState.Exit);
        const ulong Elsewhere = 0x4000_0000;
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { GuestPhysicalAddress = Elsewhere }));
        Assert.Null(bed.Vm.SlotsOf(0).Active.Find(new Gfn(5)));

        bed.Vm.VcpuOf(0).Vmcs!.State.Rip = 0;
        ScriptedGuest guest = bed.Script(GuestStep.Read(Elsewhere + 0x5000));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal([0xFEEDUL], guest.Values);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.7")]
    public void Dirty_logging_records_every_page_that_is_written_from_then_on()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Write(0x1000, 1), GuestStep.Write(0x2000, 1))));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { Flags = MemslotFlags.LogDirtyPages }));
        bed.Vm.VcpuOf(0).Vmcs!.State.Rip = 0;
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Read(0x1000), GuestStep.Write(0x2000, 2), GuestStep.Write(0x7000, 2), GuestStep.Write(0x40000, 2))));
        WordRun bitmap = bed.Vm.SlotsOf(0).Active.ById(0)!.DirtyBitmap!;
        Assert.Equal((1UL << 2) | (1UL << 7), bitmap[0].Read());
        Assert.Equal(1UL, bitmap[1].Read());
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram));
        Assert.Null(bed.Vm.SlotsOf(0).Active.ById(0)!.DirtyBitmap);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.7")]
    public void When_dirty_logging_ends_what_it_had_split_is_mapped_huge_again()
    {
        using HostBed bed = HostBed.OrdinaryVm(isHuge: true);
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Write(0x1000, 1))));
        Assert.Equal((1L, 0L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics.Pages(Level.K4)));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { Flags = MemslotFlags.LogDirtyPages }));
        bed.Vm.VcpuOf(0).Vmcs!.State.Rip = 0;
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Write(0x1000, 2))));
        Assert.Equal((0L, 512L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics.Pages(Level.K4)));

        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram));
        Assert.Equal((1L, 0L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics.Pages(Level.K4)));
        bed.Vm.VcpuOf(0).Vmcs!.State.Rip = 0;
        ScriptedGuest guest = bed.Script(GuestStep.Write(0x3000, 3), GuestStep.Read(0x1000));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal([2UL], guest.Values);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.5")]
    public void A_deletion_may_keep_the_flags_of_the_creation_and_names_no_file()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { MemorySize = 0, Memfd = null }));
        Assert.Empty(bed.Vm.SlotsOf(0).Active.Slots);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { MemorySize = 0 }));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.12")]
    public void A_deleted_slot_frees_its_range_of_the_file_for_another_slot()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { MemorySize = 0, Flags = MemslotFlags.None, Memfd = null }));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { Id = 3 }));
        bed.TearDown();
    }
}
