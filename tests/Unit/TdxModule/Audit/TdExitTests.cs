using Tdp.Module;
using Tdp.Platform;
using Tdp.Tests.Unit.Seam.Checklist;

namespace Tdp.Tests.Unit.Seam;

/// <summary>TD exits out of the ordinary: what the host sees, and what becomes of the vCPU and the TD (tdx-module 4.10, 8.1, 8.4).</summary>
public sealed class TdExitTests
{
    private const uint MachineCheckInfo = 0x8000_0312;
    private const uint NmiInfo = 0x8000_0202;
    private const ulong NmiUnblocking = 1UL << 12;

    [Fact]
    public void An_exit_that_kills_the_TD_leaves_the_vCPU_active_and_its_last_exit_alone()
    {
        using ModuleRig rig = Steps.Running(vcpus: 2);
        rig.EnterTd(0);
        SeamRegisters exit = rig.Exit(0, new VmExit { Reason = (ExitReason)200, Qualification = 7 });
        Assert.Equal((TdxStatus.NON_RECOVERABLE_TD.Value | 200, 7UL), (exit.Rax, exit.Rcx));
        VcpuView vcpu = rig.Module.Vcpus()[0];
        Assert.Equal((TdVcpuState.ACTIVE, TdExitKind.ASYNC_FAULT, -1), (vcpu.State, vcpu.LastExit, vcpu.InsideLp));
        Assert.True(rig.Td().IsFatal);
        Assert.Equal(0u, rig.Td().RefCount0 + rig.Td().RefCount1);
        Assert.Equal(TdxStatus.TD_FATAL, rig.Call(TdhLeaf.VP_ENTER, rig.Vcpus[1].Value, lp: 1));
    }

    [Theory]
    [InlineData(ExitReason.ExceptionOrNmi, 0UL, MachineCheckInfo, 0u)]
    [InlineData(ExitReason.OtherSmi, 1UL, 0u, 0u)]
    [InlineData(ExitReason.MachineCheck, 0UL, 0u, 1u << 31)]
    public void A_machine_check_makes_the_TD_untouchable_and_its_epoch_count_stays(ExitReason reason, ulong qualification, uint info, uint bits)
    {
        using ModuleRig rig = Steps.Running();
        rig.EnterTd(0);
        SeamRegisters exit = rig.Exit(0, new VmExit { Reason = reason, Qualification = qualification, InterruptInfo = info });
        Assert.Equal(TdxStatus.NON_RECOVERABLE_TD_NON_ACCESSIBLE.Value | (uint)reason | bits, exit.Rax);
        Assert.True(rig.Td().IsFatal);
        Assert.Equal(1u, rig.Td().RefCount0 + rig.Td().RefCount1);
        Assert.Empty(rig.Module.StrayLocks(new HpaRange(rig.Machine.Description.Tdmrs[0].Range.Base, 16 << 20)));
    }

    [Fact]
    public void A_vCPU_of_a_TD_that_died_elsewhere_leaves_at_its_next_exit()
    {
        using ModuleRig rig = Steps.Running(vcpus: 2);
        rig.EnterTd(0);
        rig.EnterTd(1);
        rig.Exit(0, new VmExit { Reason = (ExitReason)200 });
        SeamRegisters exit = rig.Exit(1, new VmExit { Reason = ExitReason.Hlt, InstructionLength = 1 });
        Assert.Equal(TdxStatus.NON_RECOVERABLE_TD_NON_ACCESSIBLE.Value | 12, exit.Rax);
    }

    [Fact]
    public void A_triple_fault_disables_the_vCPU_only()
    {
        using ModuleRig rig = Steps.Running(vcpus: 2);
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.NON_RECOVERABLE_VCPU.Value | 2, rig.Exit(0, new VmExit { Reason = ExitReason.TripleFault }).Rax);
        Assert.Equal(TdVcpuState.DISABLED, rig.Module.Vcpus()[0].State);
        Assert.False(rig.Td().IsFatal);
        Assert.Equal(TdxStatus.VCPU_STATE_INCORRECT, rig.Call(TdhLeaf.VP_ENTER, rig.Vcpus[0].Value));
        rig.EnterTd(1);
    }

    [Fact]
    public void An_exception_is_the_host_s_in_a_debug_TD_and_cannot_happen_in_another()
    {
        VmExit pageFault = new() { Reason = ExitReason.ExceptionOrNmi, InterruptInfo = 0x8000_0B0E };
        using ModuleRig debug = Steps.Running(attributes: 1);
        debug.EnterTd(0);
        SeamRegisters exit = debug.Exit(0, pageFault);
        Assert.Equal((0UL, (ulong)pageFault.InterruptInfo), (exit.Rax, exit.R9));

        using ModuleRig production = Steps.Running();
        production.EnterTd(0);
        Assert.Throws<ArchitecturalFatalException>(() => production.Exit(0, pageFault));
    }

    [Fact]
    public void An_NMI_whose_delivery_faulted_finds_NMIs_unblocked_when_it_is_delivered_again()
    {
        using ModuleRig rig = Steps.Running();
        rig.Aug(Steps.Gpa);
        Vmcs vmcs = rig.EnterTd(0);
        vmcs.State.NmiBlocked = true;
        vmcs.IdtVectoring = VmEvent.NonMaskable();
        rig.Exit(0, new VmExit { Reason = ExitReason.ExceptionOrNmi, InterruptInfo = NmiInfo });
        Assert.False(vmcs.State.NmiBlocked);
        Assert.Equal((true, VmEvent.Nmi), (vmcs.EntryEvent.IsValid, vmcs.EntryEvent.Type));
    }

    [Fact]
    public void A_bus_lock_is_reported_with_the_exit_that_preempted_it_and_alone_when_the_module_served_that()
    {
        using ModuleRig rig = Steps.Running();
        rig.EnterTd(0);
        Assert.Equal(74UL, rig.Exit(0, new VmExit { Reason = ExitReason.BusLock }).Rax);
        rig.EnterTd(0);
        SeamRegisters violation = rig.Exit(0, new VmExit { Reason = (ExitReason)(48 | (1u << 26)), Gpa = Steps.Gpa, Qualification = 0x181 });
        Assert.Equal(48UL | (1UL << 26), violation.Rax);
        Vmcs vmcs = rig.EnterTd(0);
        vmcs.State[Gpr.Rax] = 0;
        SeamRegisters served = rig.Exit(0, new VmExit { Reason = (ExitReason)(10 | (1u << 26)), InstructionLength = 2 });
        Assert.Equal(74UL | (1UL << 26), served.Rax);
        rig.EnterTd(0);
        Assert.Equal(1UL, rig.Interrupt(0).Rax);
    }

    [Theory]
    [InlineData(0UL, false, false)]
    [InlineData(NmiUnblocking, true, false)]
    [InlineData(1UL, false, true)]
    public void A_notification_exit_blocks_NMIs_again_and_kills_a_TD_whose_context_is_lost(ulong qualification, bool blocks, bool kills)
    {
        using ModuleRig rig = Steps.Running();
        Vmcs vmcs = rig.EnterTd(0);
        SeamRegisters exit = rig.Exit(0, new VmExit { Reason = ExitReason.Notify, Qualification = qualification });
        Assert.Equal((kills ? TdxStatus.NON_RECOVERABLE_TD.Value : 0) | 75, exit.Rax);
        Assert.Equal((blocks, kills), (vmcs.State.NmiBlocked, rig.Td().IsFatal));
    }

    [Theory]
    [InlineData(4UL, 0xABCDUL)]
    [InlineData(0UL, 0UL)]
    public void RBP_survives_an_exit_where_the_TD_asked_for_it(ulong flags, ulong expected)
    {
        using ModuleRig rig = new();
        rig.BuildTd(flags: flags);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        SeamRegisters registers = new() { Rcx = rig.Vcpus[0].Value, Rbp = 0xABCD, Rbx = 5 };
        Assert.True(rig.Module.BeginEnter(rig.Lp(0), ref registers));
        rig.Module.CurrentVmcs(rig.Lp(0))!.Exit = new VmExit { Reason = ExitReason.ExternalInterrupt };
        Assert.False(rig.Module.HandleExit(rig.Lp(0), ref registers));
        Assert.Equal((expected, 0UL), (registers.Rbp, registers.Rbx));
    }

    [Fact]
    public void Nothing_of_the_interrupt_information_is_in_R9_of_an_EPT_violation()
    {
        using ModuleRig rig = Steps.Running();
        rig.EnterTd(0);
        Assert.Equal(0UL, rig.Exit(0, new VmExit { Reason = ExitReason.EptViolation, Gpa = Steps.Gpa, Qualification = 0x181, InterruptInfo = NmiInfo }).R9);
    }

    [Fact]
    public void A_suspected_zero_step_is_shown_to_a_guest_that_asked_for_it_with_what_the_exit_said()
    {
        using ModuleRig rig = Steps.Running(profile: BehaviourProfile.Tdx15);
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.VM_WR, 0, 0x9110_0003_0000_0010, 1, 1));
        rig.Interrupt(0);
        for (int i = 0; i < 7; i++)
        {
            rig.EnterTd(0);
            rig.Exit(0, new VmExit { Reason = ExitReason.EptViolation, Gpa = Steps.Gpa + 0x18, Qualification = 0x181, InstructionLength = 3 });
        }

        // Mapped, accepted and reachable: only then is the guest let in, with the news.
        rig.Aug(Steps.Gpa);
        rig.Word(Steps.Gpa) = (rig.Word(Steps.Gpa) & ~(1UL << 56)) | 7;
        Vmcs vmcs = rig.EnterTd(0);
        Assert.Equal((true, (byte)20), (vmcs.EntryEvent.IsValid, (byte)vmcs.EntryEvent.Vector));
        Assert.Equal((48u, 0x181UL, Steps.Gpa + 0x18, 3u), (vmcs.VeInfo!.Reason, vmcs.VeInfo.Qualification, vmcs.VeInfo.Gpa, vmcs.VeInfo.InstructionLength));
    }
}
