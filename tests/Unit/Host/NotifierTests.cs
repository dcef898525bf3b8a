using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>The MMU notifier and the host memory behind the shared alias (tdp-mmu 6.6).</summary>
public sealed class NotifierTests
{
    private const ulong Shared = 1UL << 47;

    [Fact]
    [Trait("spec", "I56")]
    [Trait("spec", "I60")]
    public void Taking_host_memory_away_zaps_the_shared_alias_and_no_private_page()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x4000, 0x2000, 0));
        Assert.Equal(Errno.None, bed.Run(bed.Script(
            GuestStep.Accept(0x3000), GuestStep.Accept(0x6000), GuestStep.Write(Shared | 0x4000, 0x11), GuestStep.Write(Shared | 0x5000, 0x22))));
        Assert.Equal(4, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        long removed = bed.Vm.Glue![TdxGlue.GlueCounter.Removed];

        bed.Vm.UserMemory.Discard(bed.Actor, bed.Hva, HostBed.Pages);

        Assert.Equal(2, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        Assert.Equal(removed, bed.Vm.Glue[TdxGlue.GlueCounter.Removed]);
        Assert.Equal(0, bed.Vm.Notifier.Active);
        ScriptedGuest again = bed.Script(GuestStep.Read(Shared | 0x4000), GuestStep.Read(0x3000));
        bed.Vm.VcpuOf(0).ClearSignal();
        Assert.Equal(Errno.None, bed.Run(new FromStart(again)));
        Assert.Equal([0UL, 0UL], again.Values);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I53")]
    [Trait("spec", "I54")]
    public void Between_start_and_end_faults_of_the_range_retry_and_others_do_not()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Vm vm = bed.Vm;
        Vcpu vcpu = vm.VcpuOf(0);
        vcpu.Mmu.Actor = bed.Actor;
        Assert.True(vm.Mmu.ReloadRoots(vcpu.Mmu));
        ulong start = bed.Hva + 0x10_0000, end = bed.Hva + 0x11_0000;
        vm.Notifier.InvalidateRangeStart(bed.Actor, start, end);
        Assert.Equal((1, 1UL), (vm.Notifier.Active, vm.Mmu.Invalidation.Peek().InProgress));
        Assert.Equal(new GfnRange(new Gfn(0x100), new Gfn(0x110)), vm.Mmu.Invalidation.PeekRange());
        Assert.Equal(FaultResult.Retry, Fault(bed, 0x10_0000));
        Assert.Equal(FaultResult.Retry, Fault(bed, 0x10_F000));
        Assert.Equal(FaultResult.Fixed, Fault(bed, 0x11_0000));
        Assert.Equal(FaultResult.Fixed, Fault(bed, 0x0F_F000));

        // A second one nested in the first: the range is the union until both are over (R29).
        vm.Notifier.InvalidateRangeStart(bed.Actor, bed.Hva + 0x20_0000, bed.Hva + 0x20_1000);
        Assert.Equal(FaultResult.Retry, Fault(bed, 0x18_0000));
        vm.Notifier.InvalidateRangeEnd(bed.Actor, bed.Hva + 0x20_0000, bed.Hva + 0x20_1000);
        Assert.Equal(FaultResult.Retry, Fault(bed, 0x10_0000));
        vm.Notifier.InvalidateRangeEnd(bed.Actor, start, end);
        Assert.Equal((0, 0UL), (vm.Notifier.Active, vm.Mmu.Invalidation.Peek().InProgress));
        Assert.Equal(FaultResult.Fixed, Fault(bed, 0x10_0000));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I82")]
    public void Migration_moves_the_content_and_the_guest_follows()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Write(0x9000, 0xCAFE))));
        Hpa before = bed.Vm.UserMemory.Peek(bed.Hva + 0x9000)!.Value;
        bed.Vm.UserMemory.Migrate(bed.Actor, bed.Hva + 0x9000, 1);
        Assert.NotEqual(before, bed.Vm.UserMemory.Peek(bed.Hva + 0x9000)!.Value);
        ScriptedGuest guest = bed.Script(GuestStep.Read(0x9000));
        Assert.Equal(Errno.None, bed.Run(new FromStart(guest)));
        Assert.Equal([0xCAFEUL], guest.Values);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I66")]
    public void Taking_one_page_of_a_huge_mapping_splits_it_for_host_and_guest()
    {
        using HostBed bed = HostBed.OrdinaryVm(isHuge: true);
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Write(0x20_3000, 7), GuestStep.Write(0x20_4000, 8))));
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.M2));
        bed.Vm.UserMemory.Discard(bed.Actor, bed.Hva + 0x20_3000, 1);
        Assert.Equal(0, bed.Vm.Mmu.Statistics.Pages(Level.M2));
        ScriptedGuest guest = bed.Script(GuestStep.Read(0x20_3000), GuestStep.Read(0x20_4000));
        Assert.Equal(Errno.None, bed.Run(new FromStart(guest)));
        Assert.Equal([0UL, 8UL], guest.Values);
        Assert.Equal((0L, 2L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics.Pages(Level.K4)));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "R30")]
    public void A_memslot_update_waits_until_the_notifier_has_ended()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Vm vm = bed.Vm;
        vm.Notifier.InvalidateRangeStart(bed.Actor, bed.Hva, bed.Hva + 0x1000);
        Actor updater = bed.World.Machine.Actors.Create("updater");
        Errno result = Errno.EBUSY;
        updater.Start(a => result = vm.Memory.SetUserMemoryRegion(a, new UserMemoryRegion(1, MemslotFlags.None, 0x4000_0000, 0x1000, bed.Hva)));

        // Bit 63 says that the update has come as far as the wait.
        System.Threading.SpinWait.SpinUntil(() => (vm.SlotsOf(0).Generation & MemslotTable.UpdateInProgress) != 0);
        Assert.Null(vm.SlotsOf(0).Active.ById(1));
        vm.Notifier.InvalidateRangeEnd(bed.Actor, bed.Hva, bed.Hva + 0x1000);
        updater.Join();
        Assert.Equal(Errno.None, result);
        Assert.NotNull(vm.SlotsOf(0).Active.ById(1));
        Assert.Equal(0UL, vm.SlotsOf(0).Generation & MemslotTable.UpdateInProgress);
        bed.TearDown();
    }

    private static FaultResult Fault(HostBed bed, ulong gpa)
    {
        bed.Vm.Srcu.ReadEnter(bed.Actor);
        FaultResult result = bed.Vm.Mmu.HandleFault(bed.Vm.VcpuOf(0).Mmu, new Gpa(gpa), PfErr.Write);
        bed.Vm.Srcu.ReadExit(bed.Actor);
        return result;
    }

    private sealed class FromStart(ScriptedGuest guest) : IVmxEngine
    {
        private bool _started;

        public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
        {
            if (!_started)
                vmcs.State.Rip = 0;
            _started = true;
            return ref guest.Enter(lp, vmcs);
        }
    }
}
