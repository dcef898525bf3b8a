using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Host;

/// <summary>MMIO entries with their generations, and what a fault does where there is no memory (tdp-mmu 2.6, 5.2, 5.4).</summary>
public sealed class MmioTests
{
    private const ulong Nowhere = 0x4000_0000;

    [Fact]
    [Trait("spec", "tdp-mmu 2.6")]
    public void A_slot_change_makes_every_mmio_entry_old_and_the_next_touch_rewrites_it()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Assert.Equal(FaultResult.Emulate, Fault(bed, Nowhere, PfErr.User));
        Assert.Equal(1, bed.Vm.Mmu.Statistics[MmuCounter.MmioCreated]);
        Assert.Equal(FaultResult.Emulate, Fault(bed, Nowhere, PfErr.Rsvd));
        Assert.Equal((1L, 1L), (bed.Vm.Mmu.Statistics[MmuCounter.MmioCreated], bed.Vm.Mmu.Statistics[MmuCounter.MmioCached]));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(1, MemslotFlags.None, 0x8000_0000, 0x1000, bed.Hva)));
        Assert.Equal(FaultResult.Emulate, Fault(bed, Nowhere, PfErr.Rsvd));
        Assert.Equal((2L, 1L), (bed.Vm.Mmu.Statistics[MmuCounter.MmioCreated], bed.Vm.Mmu.Statistics[MmuCounter.MmioCached]));

        // A slot where the entry is: the misconfiguration leads to the normal path, which finds memory.
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(2, MemslotFlags.None, Nowhere, 0x1000, bed.Hva + 0x1000)));
        Assert.Equal(FaultResult.Fixed, Fault(bed, Nowhere, PfErr.Rsvd));
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 2.6")]
    public void What_is_learned_while_slots_change_is_neither_remembered_nor_believed()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Fault(bed, 0x1000, PfErr.Write);

        // The notifier holds the update up after it has marked the generation.
        bed.Vm.Notifier.InvalidateRangeStart(bed.Actor, bed.Hva, bed.Hva + 0x1000);
        Tdp.Sync.Actor updater = bed.World.Machine.Actors.Create("updater");
        updater.Start(a => bed.Vm.Memory.SetUserMemoryRegion(a, new UserMemoryRegion(1, MemslotFlags.None, Nowhere, 0x1000, bed.Hva + 0x2000)));
        System.Threading.SpinWait.SpinUntil(() => (bed.Vm.SlotsOf(0).Generation & MemslotTable.UpdateInProgress) != 0);
        Assert.Equal(FaultResult.Emulate, Fault(bed, Nowhere, PfErr.User));
        Assert.Equal(1, bed.Vm.Mmu.Statistics[MmuCounter.MmioCreated]);
        Assert.Equal(FaultResult.Emulate, Fault(bed, Nowhere, PfErr.Rsvd));

        // Looked up again, not taken from what the vCPU remembers: the slot might have been published in between.
        Assert.Equal((0L, 2L), (bed.Vm.Mmu.Statistics[MmuCounter.MmioCached], bed.Vm.Mmu.Statistics[MmuCounter.PfEmulate]));
        bed.Vm.Notifier.InvalidateRangeEnd(bed.Actor, bed.Hva, bed.Hva + 0x1000);
        updater.Join();
        Assert.Equal(FaultResult.Fixed, Fault(bed, Nowhere, PfErr.Rsvd));
        bed.TearDown();
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    [Trait("spec", "tdp-mmu 2.6")]
    [Trait("spec", "tdp-mmu 6.4")]
    public void When_the_19_bits_of_the_generation_wrap_every_direct_root_is_zapped(bool td)
    {
        const ulong Last = (1UL << SpteFormat.MmioGenerationBits) - 4;
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(2, 64 << 20) });
        var options = new VmOptions { Kind = td ? VmKind.Td : VmKind.Default, FirstMemslotGeneration = Last };
        Assert.Equal(Errno.None, Vm.Create(world.Actor, world.Kernel, options, out Vm? created));
        Vm vm = created!;
        if (td)
            Assert.Equal(Errno.None, vm.Td!.Initialize(world.Actor, new TdConfiguration()));
        Assert.Equal(Errno.None, vm.CreateVcpu(world.Actor, out Vcpu? vcpu));
        ulong hva = vm.UserMemory.Map(world.Actor, 16);
        Assert.True(vm.Mmu.ReloadRoots(vcpu!.Mmu));
        Root before = vcpu.Mmu.DirectRoot!;
        int updates = 0;
        while (!before.IsInvalid)
        {
            Assert.Equal(Errno.None, vm.Memory.SetUserMemoryRegion(world.Actor, new UserMemoryRegion((uint)updates, MemslotFlags.None, Nowhere + ((ulong)updates << 16), 0x1000, hva)));
            updates++;
        }

        // Two address spaces: steps of two. One: steps of one.
        Assert.Equal(td ? 4 : 2, updates);
        Assert.Equal(1UL << SpteFormat.MmioGenerationBits, vm.SlotsOf(0).Generation);
        if (td)
            Assert.False(vcpu.Mmu.MirrorRoot!.IsInvalid);
        vm.Destroy(world.Actor);
        Assert.Empty(world.Kernel.Audit(isAfterTeardown: true).Disagreements);
    }

    [Fact]
    [Trait("spec", "D35")]
    [Trait("spec", "tdp-mmu 2.6")]
    public void What_was_mmio_in_one_address_space_is_not_believed_in_the_other()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(0x1_0000, MemslotFlags.None, Nowhere, 0x1000, bed.Hva)));
        Assert.NotEqual(bed.Vm.SlotsOf(0).Generation, bed.Vm.SlotsOf(1).Generation);
        Assert.Equal(FaultResult.Emulate, Fault(bed, Nowhere, PfErr.User));
        Assert.Equal(Errno.None, bed.Vm.VcpuOf(0).SetSmm(bed.Actor, true));

        // Forged: the other space's tree has such an entry, too; what the vCPU remembers is of the first space.
        Assert.Equal(FaultResult.Fixed, Fault(bed, Nowhere, PfErr.User));
        Assert.Equal(FaultResult.Retry, Fault(bed, Nowhere, PfErr.Rsvd));
        bed.TearDown();
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "tdp-mmu 5.4")]
    public void Without_caching_or_beyond_the_host_s_frames_nothing_is_left_behind(bool caching)
    {
        using HostBed bed = HostBed.OrdinaryVm(options: new VmOptions { Kind = VmKind.Default, MmioCaching = caching });
        Assert.Equal(FaultResult.Emulate, Fault(bed, Nowhere, PfErr.User));
        Assert.Equal(caching ? 1 : 0, bed.Vm.Mmu.Statistics[MmuCounter.MmioCreated]);
        long tables = bed.Vm.Mmu.Statistics[MmuCounter.Tables];
        Assert.Equal(FaultResult.Emulate, Fault(bed, 1UL << 49, PfErr.User));
        Assert.Equal((tables, caching ? 1L : 0), (bed.Vm.Mmu.Statistics[MmuCounter.Tables], bed.Vm.Mmu.Statistics[MmuCounter.MmioCreated]));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 2.6")]
    [Trait("spec", "tdp-mmu 2.5")]
    public void A_td_is_refused_on_a_host_that_cannot_have_one()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) });
        Assert.Equal(Errno.EOPNOTSUPP, Vm.Create(world.Actor, world.Kernel, new VmOptions { Kind = VmKind.Td, MmioCaching = false }, out _));
        Assert.Equal(Errno.EOPNOTSUPP, Vm.Create(world.Actor, world.Kernel, new VmOptions { Kind = VmKind.Td, AdEnabled = false }, out _));
    }

    private static FaultResult Fault(HostBed bed, ulong gpa, ulong error)
    {
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        vcpu.Mmu.Actor = bed.Actor;
        bed.Vm.Mmu.FreeObsoleteRoots(vcpu.Mmu);
        Assert.True(bed.Vm.Mmu.ReloadRoots(vcpu.Mmu));
        bed.Vm.Srcu.ReadEnter(bed.Actor);
        FaultResult result = bed.Vm.Mmu.HandleFault(vcpu.Mmu, new Gpa(gpa), error);
        bed.Vm.Srcu.ReadExit(bed.Actor);
        return result;
    }
}
