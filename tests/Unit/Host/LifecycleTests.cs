using Tdp.Host;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>A TD's life through the ioctls, and what each step refuses (tdp-mmu 8.8, 5.9, 5.10).</summary>
public sealed class LifecycleTests
{
    private static readonly PageFill Zeroes = static (_, into) => into.Clear();

    [Fact]
    [Trait("spec", "tdp-mmu 8.8")]
    public void Steps_out_of_order_are_refused_with_the_real_errno()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(2, 16 << 20) });
        Actor actor = world.Actor;
        Assert.Equal(Errno.None, Vm.Create(actor, world.Kernel, new VmOptions { Kind = VmKind.Td }, out Vm? vm));
        TrustDomain td = vm!.Td!;
        Assert.Equal(Errno.EIO, vm.CreateVcpu(actor, out _));
        Assert.Equal(Errno.EINVAL, td.Complete(actor));
        Assert.Equal(Errno.EINVAL, td.InitMemoryRegion(actor, 0, 1, true, Zeroes, out _));

        Assert.Equal(Errno.None, td.Initialize(actor, new TdConfiguration { MaxVcpus = 1 }));
        Assert.Equal(Errno.EINVAL, td.Initialize(actor, new TdConfiguration()));
        Assert.Equal(Errno.EIO, td.Complete(actor));

        Assert.Equal(Errno.None, vm.CreateVcpu(actor, out Vcpu? vcpu));
        Assert.Equal(Errno.EINVAL, vcpu!.Run(actor, new ScriptedGuest(world.Machine)));
        Assert.Equal(Errno.None, vcpu.Initialize(actor));
        Assert.Equal(Errno.EINVAL, vcpu.Initialize(actor));
        Assert.Equal(Errno.EINVAL, vcpu.Run(actor, new ScriptedGuest(world.Machine)));

        // MAX_VCPUS is 1: the second one is the module's refusal.
        Assert.Equal(Errno.None, vm.CreateVcpu(actor, out Vcpu? second));
        Assert.Equal(Errno.EIO, second!.Initialize(actor));

        ulong gpa = 0, size = 0x1000;
        Assert.Equal(Errno.EOPNOTSUPP, vm.Memory.PreFault(actor, vcpu, ref gpa, ref size));
        Assert.Equal(Errno.None, td.Complete(actor));
        Assert.Equal(Errno.EINVAL, td.Complete(actor));
        Assert.Equal(Errno.EIO, vm.CreateVcpu(actor, out _));
        Assert.Equal(Errno.EINVAL, td.InitMemoryRegion(actor, 0, 1, true, Zeroes, out _));
        vm.Destroy(actor);
        Assert.Empty(world.Kernel.Audit(isAfterTeardown: true).Disagreements);
        Assert.Empty(world.Machine.Ledger.Leaks);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.8")]
    public void Refused_td_parameters_are_EINVAL_and_everything_goes_back()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) });
        Assert.Equal(Errno.None, Vm.Create(world.Actor, world.Kernel, new VmOptions { Kind = VmKind.Td }, out Vm? vm));
        Assert.Equal(Errno.EINVAL, vm!.Td!.Initialize(world.Actor, new TdConfiguration { Xfam = 0 }));
        Assert.False(vm.Td.IsHkidAssigned);
        Assert.Equal(Errno.None, vm.Td.Initialize(world.Actor, new TdConfiguration()));
        vm.Destroy(world.Actor);
        Assert.Empty(world.Kernel.Audit(isAfterTeardown: true).Disagreements);
        Assert.Empty(world.Module!.Tds());
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.8")]
    public void KeyIDs_run_out_and_come_back()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) with { EndPrivateHkid = 18 } });
        Vm first = CreateTd(world, Errno.None);
        Assert.Equal(new Hkid(17), first.Td!.Hkid);
        Vm second = CreateTd(world, Errno.ENOSPC);
        first.Destroy(world.Actor);
        Assert.Equal(Errno.None, second.Td!.Initialize(world.Actor, new TdConfiguration()));
        second.Destroy(world.Actor);
        Assert.Empty(world.Kernel.Audit(isAfterTeardown: true).Disagreements);
    }

    [Fact]
    [Trait("spec", "R26")]
    [Trait("spec", "I70")]
    public void The_initial_image_is_added_once_measured_and_read_back_by_the_guest()
    {
        using HostBed bed = HostBed.Td(finalize: false);
        TrustDomain td = bed.Vm.Td!;
        Assert.Equal(Errno.None, td.InitMemoryRegion(bed.Actor, 0x10_0000, 3, true, static (page, into) => into.Fill((byte)(page + 1)), out ulong done));
        Assert.Equal(3UL, done);

        // A page that was added before: SPURIOUS in the mirror, -EIO to the caller.
        Assert.Equal(Errno.EIO, td.InitMemoryRegion(bed.Actor, 0x10_2000, 2, true, Zeroes, out done));
        Assert.Equal(0UL, done);
        Assert.Equal(Errno.EINVAL, td.InitMemoryRegion(bed.Actor, 0x10_0800, 1, true, Zeroes, out _));
        Assert.Equal(Errno.EINVAL, td.InitMemoryRegion(bed.Actor, 0x10_0000, 0, true, Zeroes, out _));
        Assert.Equal(Errno.EINVAL, td.InitMemoryRegion(bed.Actor, 1UL << 47, 1, true, Zeroes, out _));
        Assert.Equal(Errno.EINVAL, td.InitMemoryRegion(bed.Actor, 0x4000_0000, 1, true, Zeroes, out _));
        Assert.Equal(3, bed.Vm.Glue![TdxGlue.GlueCounter.Added]);
        Assert.Equal(Errno.None, td.Complete(bed.Actor));

        ScriptedGuest guest = bed.Script(GuestStep.Read(0x10_0000), GuestStep.Read(0x10_1000), GuestStep.Read(0x10_2FF8));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal([0x0101_0101_0101_0101UL, 0x0202_0202_0202_0202UL, 0x0303_0303_0303_0303UL], guest.Values);
        Assert.Empty(guest.Events);
        Assert.Equal(0, bed.Vm.VcpuOf(0).Statistics.PrivateFaults);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.10")]
    public void A_page_whose_attribute_is_shared_cannot_be_part_of_the_image()
    {
        using HostBed bed = HostBed.Td(finalize: false);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x10_1000, 0x1000, 0));
        Assert.Equal(Errno.EINVAL, bed.Vm.Td!.InitMemoryRegion(bed.Actor, 0x10_0000, 3, true, Zeroes, out ulong done));
        Assert.Equal(1UL, done);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.3")]
    public void Before_finalize_a_removal_needs_no_track()
    {
        using HostBed bed = HostBed.Td(finalize: false);
        Assert.Equal(Errno.None, bed.Vm.Td!.InitMemoryRegion(bed.Actor, 0, 4, false, Zeroes, out _));
        Assert.Equal(Errno.None, bed.File!.PunchHole(bed.Actor, 1, 2));
        Assert.Equal(2, bed.Vm.Glue![TdxGlue.GlueCounter.Removed]);
        Assert.Equal(0, bed.Vm.Glue[TdxGlue.GlueCounter.Tracks]);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.9")]
    public void Pre_fault_maps_a_range_without_an_access_and_says_how_far_it_came()
    {
        using HostBed bed = HostBed.Td();
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        ulong gpa = 0x8000, size = 0x5000;
        Assert.Equal(Errno.None, bed.Vm.Memory.PreFault(bed.Actor, vcpu, ref gpa, ref size));
        Assert.Equal((0xD000UL, 0UL), (gpa, size));
        Assert.Equal(5, bed.Vm.Glue![TdxGlue.GlueCounter.Augmented]);
        Assert.Equal(5, bed.Vm.Mmu.Statistics.Pages(Level.K4));

        // Again: spurious, nothing changes. Beyond the slot: memory fault for private, no memory for shared.
        gpa = 0x8000;
        size = 0x1000;
        Assert.Equal(Errno.None, bed.Vm.Memory.PreFault(bed.Actor, vcpu, ref gpa, ref size));
        Assert.Equal(5, bed.Vm.Glue[TdxGlue.GlueCounter.Augmented]);
        gpa = 0x4000_0000;
        size = 0x1000;
        Assert.Equal(Errno.ENOENT, bed.Vm.Memory.PreFault(bed.Actor, vcpu, ref gpa, ref size));
        gpa = 1;
        Assert.Equal(Errno.EINVAL, bed.Vm.Memory.PreFault(bed.Actor, vcpu, ref gpa, ref size));
        gpa = 1UL << 47;
        Assert.Equal(Errno.EINVAL, bed.Vm.Memory.PreFault(bed.Actor, vcpu, ref gpa, ref size));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I62")]
    public void A_punched_page_is_gone_from_both_trees_before_it_is_free_and_comes_back_zero()
    {
        using HostBed bed = HostBed.Td();
        ScriptedGuest first = bed.Script(GuestStep.Accept(0x6000), GuestStep.Write(0x6000, 0xBAD));
        Assert.Equal(Errno.None, bed.Run(first));
        Hpa frame = bed.File!.Peek(6)!.Value;
        Assert.Equal(FrameUse.Module, bed.World.Machine.Ledger.UseOf(frame));
        Assert.Equal(Errno.None, bed.File.PunchHole(bed.Actor, 6, 1));
        Assert.Null(bed.File.Peek(6));
        Assert.NotEqual(FrameUse.Module, bed.World.Machine.Ledger.UseOf(frame));
        Assert.Equal(0, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        Assert.Equal(SeptState.FREE, bed.World.Module!.FindSeptEntry(bed.Vm.Td!.Tdr, new Gpa(0x6000), Level.K4).State);
        Assert.Equal(Errno.EINVAL, bed.File.PunchHole(bed.Actor, HostBed.Pages, 1));
        Assert.Equal(Errno.EINVAL, bed.File.PunchHole(bed.Actor, 0, 0));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.12")]
    public void A_poisoned_page_is_unmapped_answers_EHWPOISON_and_is_never_used_again()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x6000))));
        Hpa frame = bed.File!.Peek(6)!.Value;
        bed.File.Poison(bed.Actor, 6);
        Assert.Equal(Errno.EHWPOISON, bed.File.Lookup(bed.Actor, 6, out _));
        Assert.Equal(0, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        bed.Vm.Destroy(bed.Actor);
        LeakedFrame leak = Assert.Single(bed.World.Machine.Ledger.Leaks);
        Assert.Equal((frame.Frame, "poisoned"), (leak.Frame, leak.Reason));
    }

    [Fact]
    [Trait("spec", "R34")]
    [Trait("spec", "I71")]
    public void A_vcpu_that_cannot_be_flushed_leaks_the_KeyID_and_every_page_with_a_reason()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x6000))));
        bed.World.Module!.BusyInjector = new NoFlush();
        bed.Vm.Destroy(bed.Actor);
        Assert.NotEmpty(bed.World.Machine.Ledger.Leaks);
        Assert.All(bed.World.Machine.Ledger.Leaks, l => Assert.Contains("KeyID", l.Reason, StringComparison.Ordinal));
        Assert.Equal([new Hkid(17)], bed.World.Kernel.Hkids.Leaked);

        // What the module has is either its own by PAMT and leaked in the ledger, or given back: the books still agree.
        Assert.Empty(bed.World.Kernel.Audit(isAfterTeardown: true).Disagreements);
    }

    private static Vm CreateTd(HostWorld world, Errno expected)
    {
        Assert.Equal(Errno.None, Vm.Create(world.Actor, world.Kernel, new VmOptions { Kind = VmKind.Td }, out Vm? vm));
        Assert.Equal(expected, vm!.Td!.Initialize(world.Actor, new TdConfiguration()));
        return vm;
    }

    private sealed class NoFlush : IBusyInjector
    {
        public bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
        {
            status = TdxStatus.FLUSHVP_NOT_DONE;
            return leaf == TdhLeaf.MNG_VPFLUSHDONE;
        }
    }
}
