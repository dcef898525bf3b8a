using Tdp.Host;
using Tdp.Mmu;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>The run loop: signals, requests, progress, death (tdp-mmu 7.3, 7.4; decisions D23).</summary>
public sealed class VcpuLoopTests
{
    private const ulong Shared = 1UL << 47;

    [Fact]
    [Trait("spec", "D23")]
    public void A_thousand_identical_exits_end_the_run_with_a_message()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Run(new Stuck(Shared | 0xF000_0000)));
        VcpuRunState run = bed.Vm.VcpuOf(0).RunState;
        Assert.Equal(UserExit.InternalError, run.Exit);
        Assert.Equal("vCPU 0 makes no progress: 1000 identical exits with reason 48 at GPA 0x8000f0000000", run.Message);
        Assert.True(bed.Vm.IsDead);
        Assert.Equal(Errno.EIO, bed.Run(bed.Script()));
        Assert.Equal(Vcpu.MostIdenticalExits, bed.Vm.VcpuOf(0).Statistics.Exits);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I76")]
    public void A_signal_makes_a_running_vcpu_return_EINTR()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        Actor actor = bed.World.Machine.Actors.Create("vcpu0");
        Errno result = Errno.None;
        actor.Start(a =>
        {
            bed.World.Kernel.Processors.Bind(a, 0);
            result = vcpu.Run(a, new Spinning());
            bed.World.Kernel.Processors.Unbind(a);
        });
        System.Threading.SpinWait.SpinUntil(() => vcpu.Kick.Mode == TargetMode.Inside);
        vcpu.Signal(bed.Actor);
        actor.Join();
        Assert.Equal(Errno.EINTR, result);
        Assert.Equal(TargetMode.Outside, vcpu.Kick.Mode);
        Assert.True(vcpu.IsSignalPending);
        vcpu.ClearSignal();
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I27")]
    [Trait("spec", "I73")]
    public void A_waiting_request_returns_only_after_the_guest_was_left_and_a_dead_vm_enters_no_more()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        Actor actor = bed.World.Machine.Actors.Create("vcpu0");
        Spinning guest = new();
        Errno result = Errno.None;
        actor.Start(a =>
        {
            bed.World.Kernel.Processors.Bind(a, 0);
            result = vcpu.Run(a, guest);
            bed.World.Kernel.Processors.Unbind(a);
        });
        System.Threading.SpinWait.SpinUntil(() => vcpu.Kick.Mode == TargetMode.Inside);
        int before = guest.Entries;
        bed.Vm.Mmu.FlushRemoteTlbs(bed.Actor);
        System.Threading.SpinWait.SpinUntil(() => guest.Entries > before);
        bed.Vm.Kill(bed.Actor, "enough");
        actor.Join();
        int entries = guest.Entries;
        Assert.Equal(Errno.EIO, result);
        Assert.Equal(Errno.EIO, vcpu.Run(bed.Actor, guest));
        Assert.Equal(entries, guest.Entries);
        Assert.True(vcpu.Statistics.TlbFlushes >= 1);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "R12")]
    [Trait("spec", "I43")]
    [Trait("spec", "I44")]
    public void A_fast_zap_gives_the_vcpu_a_new_direct_root_and_leaves_the_mirror_alone()
    {
        using HostBed bed = HostBed.Td();
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x4000, 0x1000, 0));
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000), GuestStep.Write(Shared | 0x4000, 0x33))));
        Root direct = vcpu.Mmu.DirectRoot!, mirror = vcpu.Mmu.MirrorRoot!;
        bed.Vm.Memory.ZapAllFast(bed.Actor);
        Assert.True(direct.PeekRole().IsInvalid);
        Assert.False(mirror.PeekRole().IsInvalid);
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.K4));

        ScriptedGuest guest = bed.Script(GuestStep.Read(Shared | 0x4000));
        Assert.Equal(Errno.None, bed.Run(new Restarted(guest)));
        Assert.Equal([0x33UL], guest.Values);
        Assert.NotSame(direct, vcpu.Mmu.DirectRoot);
        Assert.Same(mirror, vcpu.Mmu.MirrorRoot);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "R10")]
    [Trait("spec", "I75")]
    public void A_private_fault_on_a_slot_that_is_being_deleted_leaves_the_local_retry_loop()
    {
        using HostBed bed = HostBed.Td();
        Vm vm = bed.Vm;
        Actor runner = bed.World.Machine.Actors.Create("vcpu0");
        Errno result = Errno.None;
        bool held = false;

        // The vCPU stands in a fault, with SRCU held, while the slot becomes INVALID: it must let the deletion finish, then report. Busy as long as there is any slot:
        // a fault that found it valid must not get its page at the last moment.
        bed.World.Module!.BusyInjector = new AlwaysBusy(() => held = true, () => vm.SlotsOf(0).Active.ById(0) is not null);
        runner.Start(a =>
        {
            bed.World.Kernel.Processors.Bind(a, 0);
            result = vm.VcpuOf(0).Run(a, bed.Script(GuestStep.Accept(0x3000)));
            bed.World.Kernel.Processors.Unbind(a);
        });
        System.Threading.SpinWait.SpinUntil(() => System.Threading.Volatile.Read(ref held));
        Assert.Equal(Errno.None, vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { MemorySize = 0, Flags = MemslotFlags.None, Memfd = null }));
        runner.Join();
        Assert.Equal(Errno.EFAULT, result);
        Assert.Equal(UserExit.MemoryFault, vm.VcpuOf(0).RunState.Exit);
        bed.World.Module.BusyInjector = null;
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.6")]
    public void A_vcpu_that_moves_to_another_processor_is_flushed_on_the_old_one()
    {
        using HostBed bed = HostBed.Td(extraProcessors: 1);
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000))));
        Assert.Equal(0, bed.World.Module!.Vcpus()[0].AssociatedLp);
        bed.World.Kernel.Processors.Bind(bed.Actor, 1);
        ScriptedGuest guest = bed.Script(GuestStep.Read(0x3000));
        Assert.Equal(Errno.None, bed.Vm.VcpuOf(0).Run(bed.Actor, new Restarted(guest)));
        Assert.Equal(1, bed.World.Module.Vcpus()[0].AssociatedLp);
        Assert.Equal([0UL], guest.Values);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I57")]
    public void An_ordinary_vcpu_that_returns_to_a_processor_finds_no_translation_from_before_a_flush_served_elsewhere()
    {
        using HostBed bed = HostBed.OrdinaryVm(vcpus: 2);
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Write(0x9000, 0xCAFE))));
        RunOn(bed, 1, GuestStep.Read(0x9000));

        // The page moves; the flush request is served where the vCPU runs next, which is not where it ran first.
        bed.Vm.UserMemory.Migrate(bed.Actor, bed.Hva + 0x9000, 1);
        RunOn(bed, 1, GuestStep.Write(0x9000, 0xBEEF));
        Assert.Equal([0xBEEFUL], RunOn(bed, 0, GuestStep.Read(0x9000)));
        bed.TearDown();
    }

    private static IReadOnlyList<ulong> RunOn(HostBed bed, int processor, GuestStep step)
    {
        bed.World.Kernel.Processors.Bind(bed.Actor, processor);
        ScriptedGuest guest = bed.Script(step);
        Assert.Equal(Errno.None, bed.Vm.VcpuOf(0).Run(bed.Actor, new Restarted(guest)));
        return guest.Values;
    }

    private sealed class Stuck(ulong gpa) : IVmxEngine
    {
        public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
        {
            vmcs.EntryEvent = default;
            vmcs.Exit = new VmExit { Reason = ExitReason.EptViolation, Gpa = gpa, Qualification = 0x181 };
            return ref vmcs.Exit;
        }
    }

    private sealed class Spinning : IVmxEngine
    {
        private int _entries;

        public int Entries => System.Threading.Volatile.Read(ref _entries);

        public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
        {
            System.Threading.Interlocked.Increment(ref _entries);
            while (!lp.ShouldExit)
                System.Threading.Thread.SpinWait(1);
            vmcs.Exit = new VmExit { Reason = ExitReason.ExternalInterrupt };
            return ref vmcs.Exit;
        }
    }

    private sealed class Restarted(ScriptedGuest guest) : IVmxEngine
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

    // Until the condition fails, no private page can be mapped.
    private sealed class AlwaysBusy(Action met, Func<bool> holds) : IBusyInjector
    {
        public bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
        {
            status = TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE;
            if (leaf != TdhLeaf.MEM_SEPT_ADD || !holds())
                return false;
            met();
            return true;
        }
    }
}
