using Iced.Intel;
using Tdp.Platform;
using Tdp.Sync;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>Exceptions, interrupts, and exits in the middle of their delivery (td-guest 1.7, 1.8).</summary>
public sealed class EventTests
{
    [Fact]
    public void An_exception_pushes_the_frame_of_the_faulting_instruction_with_RF_and_ends_it_by_IRETQ()
    {
        using CpuRig rig = new();
        ulong handler = CpuRig.Code + 0x2000;
        rig.Assemble(handler, a =>
        {
            a.mov(r8, __qword_ptr[rsp + 16]);
            a.mov(r9, __qword_ptr[rsp]);
            a.add(__qword_ptr[rsp], 2);
            a.iretq();
        });
        rig.Gate(6, handler);
        VmExit exit = rig.Run(a =>
        {
            a.stc();
            a.ud2();
            a.setc(bl);
            a.hlt();
        });
        Assert.Equal(ExitReason.Hlt, exit.Reason);
        Assert.Equal(CpuRig.Code + 1, rig.State[Gpr.R9]);
        Assert.Equal(0x1_0003UL, rig.State[Gpr.R8]);
        Assert.Equal(1UL, rig.State[Gpr.Rbx] & 0xFF);
        Assert.Equal(CpuRig.StackTop, rig.State[Gpr.Rsp]);
    }

    [Theory]
    [InlineData(0xE, 0UL)]
    [InlineData(0xF, 0x200UL)]
    public void An_interrupt_gate_clears_IF_and_a_trap_gate_does_not(int type, ulong interrupts)
    {
        using CpuRig rig = new();
        rig.StopHandler(0x80);
        rig.Gate(0x80, CpuRig.Code + 0x3800, type: type);
        rig.State.Rflags |= 0x200;
        rig.Run(a => a.@int(0x80));
        Assert.Equal(interrupts, rig.State.Rflags & 0x200);
        Assert.Equal(CpuRig.Code + 2, rig.Word(rig.State[Gpr.Rsp]));
        Assert.Equal(0x202UL, rig.Word(rig.State[Gpr.Rsp] + 16));
    }

    [Fact]
    public void A_user_may_call_only_gates_of_its_own_privilege()
    {
        using CpuRig rig = new();
        rig.StopHandler(13);
        rig.StopHandler(0x80);
        rig.BecomeUser();
        rig.Run(a => a.@int(0x80));
        Assert.Equal((0x80u * 8) + 2, (uint)rig.Word(rig.State[Gpr.Rsp]));
        rig.BecomeUser();
        rig.Gate(0x80, CpuRig.Code + 0x3800, dpl: 3);
        rig.Run(a => a.@int(0x80));
        Assert.Equal(CpuRig.Code + 0x3800, rig.State.Rip);
    }

    [Fact]
    public void From_user_mode_the_stack_comes_from_the_task_state_and_the_old_one_is_on_it()
    {
        using CpuRig rig = new();
        rig.StopHandler(6);
        rig.BecomeUser();
        rig.State[Gpr.Rsp] = CpuRig.Data + 0x800;
        rig.Run(a => a.ud2());
        Assert.Equal(CpuRig.StackTop - 0x1000 - 40, rig.State[Gpr.Rsp]);
        Assert.Equal(CpuRig.UserCode, rig.Word(rig.State[Gpr.Rsp] + 8));
        Assert.Equal(CpuRig.Data + 0x800, rig.Word(rig.State[Gpr.Rsp] + 24));
        Assert.Equal(CpuRig.UserData, rig.Word(rig.State[Gpr.Rsp] + 32));
        Assert.Equal(0, rig.State.Cpl);
        Assert.Equal(0, rig.State.Ss.Selector);
    }

    [Fact]
    public void Iretq_to_user_mode_changes_privilege_stack_and_flags()
    {
        using CpuRig rig = new();
        ulong handler = rig.StopHandler(13);

        // The user's first instruction is one that it may not execute, so the handler's frame shows the user's state.
        rig.Assemble(CpuRig.Code + 0x1000, a => a.hlt());
        rig.Run(a =>
        {
            a.push(CpuRig.UserData);
            a.push((int)CpuRig.Data + 0x100);
            a.push(0x202);
            a.push(CpuRig.UserCode);
            a.mov(rax, CpuRig.Code + 0x1000);
            a.push(rax);
            a.iretq();
        });
        Assert.Equal(handler, rig.State.Rip);
        ulong frame = rig.State[Gpr.Rsp];
        Assert.Equal((CpuRig.Code + 0x1000, (ulong)CpuRig.UserCode), (rig.Word(frame + 8), rig.Word(frame + 16)));
        Assert.Equal((0x1_0202UL, CpuRig.Data + 0x100, (ulong)CpuRig.UserData), (rig.Word(frame + 24), rig.Word(frame + 32), rig.Word(frame + 40)));
    }

    [Fact]
    public void An_IST_stack_is_used_even_from_the_supervisor()
    {
        using CpuRig rig = new();
        rig.StopHandler(6, ist: 2);
        rig.Run(a => a.ud2());
        Assert.Equal(CpuRig.StackTop - 0x2800 - 40, rig.State[Gpr.Rsp]);
        Assert.Equal(CpuRig.StackTop, rig.Word(rig.State[Gpr.Rsp] + 24));
    }

    [Theory]
    [InlineData(14, 14)]
    [InlineData(14, 13)]
    [InlineData(13, 13)]
    [InlineData(0, 13)]
    public void A_second_fault_of_the_wrong_class_becomes_a_double_fault(int first, int second)
    {
        using CpuRig rig = new();
        rig.StopHandler(8, ist: 1);
        Provoke(rig, first, second);
        Assert.Equal(CpuRig.Code + 0x3000 + (8 * 16), rig.State.Rip);
        Assert.Equal(0UL, rig.Word(rig.State[Gpr.Rsp]));
        Assert.Equal(CpuRig.Code + 0x12, rig.Word(rig.State[Gpr.Rsp] + 8));
    }

    [Fact]
    public void A_page_fault_while_a_protection_fault_is_delivered_is_delivered_itself()
    {
        using CpuRig rig = new();
        rig.StopHandler(8, ist: 1);
        rig.StopHandler(14, ist: 1);
        rig.Gate(13, CpuRig.Code + 0x3800, ist: 3);
        rig.Write(CpuRig.Tss + 0x34, BitConverter.GetBytes(0x5000_0000UL));
        rig.Run(Fault(13));
        Assert.Equal(CpuRig.Code + 0x3000 + (14 * 16), rig.State.Rip);
        Assert.Equal(0x5000_0000UL - 8, rig.State.Cr2);
    }

    [Fact]
    [Trait("spec", "G11")]
    public void A_fault_while_a_double_fault_is_delivered_is_a_triple_fault_and_the_end()
    {
        using CpuRig rig = new();
        VmExit exit = rig.Run(a => a.ud2());
        Assert.Equal(ExitReason.TripleFault, exit.Reason);
        Assert.Equal(ActivityState.Shutdown, rig.State.Activity);
        Assert.Throws<InvalidOperationException>(() => rig.Enter());
    }

    [Fact]
    [Trait("spec", "G10")]
    public void Delivery_that_an_EPT_violation_interrupts_is_reported_and_repeated_exactly_once()
    {
        using CpuRig rig = new(isTd: true);
        ulong handler = CpuRig.Code + 0x2000;
        rig.Assemble(handler, a =>
        {
            a.inc(r15);
            a.iretq();
        });
        rig.Gate(0x40, handler);
        ulong stack = rig.Pte(CpuRig.StackTop - 8) & Hpa.Mask;
        ulong leaf = rig.EptLeaf(stack);
        rig.EptLeaf(stack) = EptEntry.SuppressVe;
        rig.Assemble(CpuRig.Code, a =>
        {
            a.nop();
            a.hlt();
        });
        rig.State.Rflags |= 0x200;
        rig.Vmcs.EntryEvent = VmEvent.Interrupt(0x40);
        VmExit exit = rig.Enter();
        Assert.Equal(ExitReason.EptViolation, exit.Reason);
        Assert.Equal(0x182UL, exit.Qualification & ~0x38UL);
        Assert.Equal(CpuRig.Code, rig.State.Rip);
        Assert.Equal((true, (byte)0x40, (byte)VmEvent.External), (rig.Vmcs.IdtVectoring.IsValid, rig.Vmcs.IdtVectoring.Vector, rig.Vmcs.IdtVectoring.Type));
        rig.EptLeaf(stack) = leaf;
        rig.Vmcs.EntryEvent = rig.Vmcs.IdtVectoring;
        exit = rig.Enter();
        Assert.Equal(ExitReason.Hlt, exit.Reason);
        Assert.Equal(1UL, rig.State[Gpr.R15]);
        Assert.False(rig.Vmcs.IdtVectoring.IsValid);
    }

    [Fact]
    public void A_convertible_violation_during_delivery_is_an_exit_and_no_VE()
    {
        using CpuRig rig = new(isTd: true);
        rig.StopHandler(20);
        rig.StopHandler(0x40);
        ulong shared = CpuRig.SharedBit | 0x7000;
        rig.EptLeaf(shared) = 0;
        rig.Map(CpuRig.Stack + 0x3000, shared);
        rig.Assemble(CpuRig.Code, a => a.hlt());
        rig.Vmcs.EntryEvent = VmEvent.Interrupt(0x40);
        VmExit exit = rig.Enter();
        Assert.Equal(ExitReason.EptViolation, exit.Reason);
        Assert.True(exit.IsConvertible);
        Assert.True(rig.Vmcs.IdtVectoring.IsValid);
        Assert.False(rig.Vmcs.VeInfo!.IsValid);
    }

    [Fact]
    public void NMIs_stay_blocked_from_delivery_to_IRETQ_even_if_that_faults()
    {
        using CpuRig rig = new();
        ulong handler = CpuRig.Code + 0x2000;
        rig.Assemble(handler, a =>
        {
            a.hlt();
            a.iretq();
        });
        rig.Gate(2, handler, ist: 2);
        rig.StopHandler(13);
        rig.Assemble(CpuRig.Code, a => a.hlt());
        rig.Vmcs.EntryEvent = VmEvent.NonMaskable();
        rig.Enter();
        Assert.True(rig.State.NmiBlocked);
        rig.Vmcs.NmiWindowExiting = true;
        rig.State.Rip++;
        rig.Word(rig.State[Gpr.Rsp] + 8) = 0;
        VmExit exit = rig.Enter();
        Assert.Equal(ExitReason.NmiWindow, exit.Reason);
        Assert.False(rig.State.NmiBlocked);
        Assert.Equal(CpuRig.Code + 0x3000 + (13 * 16), rig.State.Rip);
    }

    [Fact]
    public void An_EPT_violation_of_an_IRETQ_that_unblocked_NMIs_says_so_in_bit_12()
    {
        using CpuRig rig = new(isTd: true);
        rig.State.NmiBlocked = true;
        rig.EptLeaf(rig.Pte(CpuRig.StackTop - 8) & Hpa.Mask) = EptEntry.SuppressVe;
        rig.State[Gpr.Rsp] = CpuRig.StackTop - 40;
        VmExit exit = rig.Run(a => a.iretq());
        Assert.Equal(ExitReason.EptViolation, exit.Reason);
        Assert.Equal(0x1181UL, exit.Qualification & ~0x38UL);
        Assert.False(rig.State.NmiBlocked);
    }

    [Fact]
    public void Sti_and_mov_ss_hold_interrupts_for_one_instruction()
    {
        using CpuRig rig = new();
        rig.Vmcs.InterruptWindowExiting = true;
        VmExit exit = rig.Run(a =>
        {
            a.sti();
            a.nop();
            a.nop();
        });
        Assert.Equal(ExitReason.InterruptWindow, exit.Reason);
        Assert.Equal(CpuRig.Code + 2, rig.State.Rip);
        rig.Vmcs.InterruptWindowExiting = false;
        rig.State.Rflags &= ~0x200UL;
        exit = rig.Run(a =>
        {
            a.sti();
            a.hlt();
        });
        Assert.Equal(ExitReason.Hlt, exit.Reason);
        Assert.True(rig.State.StiShadow);
        rig.State.StiShadow = false;
        rig.State.Rip = CpuRig.Code;
        rig.Vmcs.InterruptWindowExiting = true;
        rig.Assemble(CpuRig.Code, a =>
        {
            a.mov(eax, CpuRig.KernelData);
            a.cli();
            a.sti();
            a.mov(ss, eax);
            a.nop();
            a.nop();
        });
        exit = rig.Enter();
        Assert.Equal(ExitReason.InterruptWindow, exit.Reason);
    }

    [Fact]
    public void Single_step_traps_after_each_instruction()
    {
        using CpuRig rig = new();
        ulong handler = CpuRig.Code + 0x2000;
        rig.Assemble(handler, a =>
        {
            a.inc(r15);
            a.mov(r14, __qword_ptr[rsp]);
            a.iretq();
        });
        rig.Gate(1, handler);
        rig.Run(a =>
        {
            a.pushfq();
            a.or(__qword_ptr[rsp], 0x100);
            a.popfq();
            a.nop();
            a.nop();
            a.pushfq();
            a.and(__qword_ptr[rsp], ~0x100);
            a.popfq();
            a.nop();
            a.hlt();
        });
        Assert.Equal(5UL, rig.State[Gpr.R15]);
        Assert.Equal(1UL << 14, rig.State.Dr6 & (1 << 14));
    }

    [Fact]
    public void A_kick_leaves_the_guest_at_the_next_block_and_loses_nothing()
    {
        using CpuRig rig = new();
        Kick kick = new("vcpu", 0);
        Actor actor = rig.Machine.Actors.Create("vcpu0");
        rig.Lp.Running = kick;
        kick.BeginEntry(actor);
        rig.Assemble(CpuRig.Code, a =>
        {
            Label top = a.CreateLabel();
            a.Label(ref top);
            a.inc(rax);
            a.jmp(top);
        });
        Actor other = rig.Machine.Actors.Create("kicker");
        other.Start(_ => kick.Send(null, wait: false));
        VmExit exit = rig.Enter();
        other.Join();
        Assert.Equal(ExitReason.ExternalInterrupt, exit.Reason);
        Assert.Equal(CpuRig.Code, rig.State.Rip);
        Assert.Equal(rig.State[Gpr.Rax] * 2, rig.State.Retired);
    }

    [Fact]
    public void A_host_interrupt_and_an_NMI_exit_with_their_vector()
    {
        using CpuRig rig = new();
        rig.Assemble(CpuRig.Code, a => a.hlt());
        rig.Lp.PendingInterrupt.Write(0x31);
        VmExit exit = rig.Enter();
        Assert.Equal((ExitReason.ExternalInterrupt, 0x8000_0031u), (exit.Reason, exit.InterruptInfo));
        rig.Lp.PendingNmi.Write(true);
        exit = rig.Enter();
        Assert.Equal((ExitReason.ExceptionOrNmi, 0x8000_0202u), (exit.Reason, exit.InterruptInfo));
    }

    private static Action<Assembler> Fault(int vector) => a =>
    {
        a.mov(rax, vector == 14 ? 0x4000_0000UL : 0x8000_0000_0000);
        a.xor(ecx, ecx);
        a.xor(edx, edx);
        a.nop();
        a.nop();
        a.nop();
        a.nop();
        if (vector == 0)
            a.div(ecx);
        else
            a.mov(rbx, __qword_ptr[rax]);
        a.hlt();
    };

    // The handler of the first has an IST whose stack is not mapped (#PF) or no gate at all (#GP).
    private static void Provoke(CpuRig rig, int first, int second)
    {
        if (second == 14)
        {
            rig.Gate(first, CpuRig.Code + 0x3800, ist: 3);
            rig.Write(CpuRig.Tss + 0x34, BitConverter.GetBytes(0x5000_0000UL));
        }

        rig.Run(Fault(first));
    }
}
