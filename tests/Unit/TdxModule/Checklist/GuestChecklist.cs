using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>Lines 52 to 60, 67 and 68: what the guest meets, and what is measured (tdx-module 8, 9).</summary>
public sealed class GuestChecklist
{
    private const ulong Gpa = Steps.Gpa;
    private const int VirtualizationException = 20;
    private const int DoubleFault = 8;
    private static readonly VmExit s_halt = new() { Reason = ExitReason.Hlt, InstructionLength = 1 };

    [Fact]
    [Trait("spec", "TC52")]
    public void TC52_A_private_page_faults_to_the_host_to_the_guest_or_to_the_host_with_type_6()
    {
        VmExit read = new() { Reason = ExitReason.EptViolation, Gpa = Gpa + 0x123, Qualification = 0x181 };
        using ModuleRig rig = Steps.Running();
        Vmcs vmcs = rig.EnterTd(0);
        SeamRegisters free = rig.Exit(0, read);
        Assert.Equal((48UL, 1UL, 0UL, Gpa), (free.Rax, free.Rcx, free.Rdx, free.R8));
        rig.Aug(Gpa);
        rig.EnterTd(0);
        Assert.Equal(VirtualizationException, rig.Serve(0, read).Vector);
        Assert.Equal(48u, vmcs.VeInfo!.Reason);
        Assert.Equal(Gpa + 0x123, vmcs.VeInfo.Gpa);

        using ModuleRig disabled = Steps.Running(attributes: 1UL << 28);
        disabled.Aug(Gpa);
        disabled.EnterTd(0);
        SeamRegisters pending = disabled.Exit(0, read);
        Assert.Equal((48UL, 1UL, 6UL, Gpa), (pending.Rax, pending.Rcx, pending.Rdx, pending.R8));
    }

    [Fact]
    [Trait("spec", "TC53")]
    public void TC53_A_second_VE_before_the_first_is_read_is_a_double_fault_and_information_is_read_once()
    {
        using ModuleRig rig = Steps.Running();
        Vmcs vmcs = rig.EnterTd(0);
        Assert.Equal(VirtualizationException, rig.Serve(0, s_halt).Vector);
        VmEvent second = rig.Serve(0, s_halt);
        Assert.Equal((DoubleFault, true, 0u), (second.Vector, second.HasErrorCode, second.ErrorCode));
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.VP_VEINFO_GET));
        Assert.Equal(12UL, vmcs.State[Gpr.Rcx]);
        Assert.Equal(TdxStatus.NO_VALID_VE_INFO, rig.Tdcall(0, TdgLeaf.VP_VEINFO_GET, rcx: 1, rdx: 2, r8: 3, r9: 4));
        Assert.Equal((0UL, 0UL, 0UL, 0UL, 0UL), (vmcs.State[Gpr.Rcx], vmcs.State[Gpr.Rdx], vmcs.State[Gpr.R8], vmcs.State[Gpr.R9], vmcs.State[Gpr.R10]));
        Assert.Equal(VirtualizationException, rig.Serve(0, s_halt).Vector);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [Trait("spec", "TC54")]
    public void TC54_An_accepted_page_is_accepted_already_at_its_level(int level)
    {
        using ModuleRig rig = Steps.Running(lowestTable: level + 1);
        rig.Aug(Gpa, level);
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa | (uint)level));
        Assert.Equal(0x0000_0B0A_0000_0000UL | (uint)level, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa | (uint)level).Value);
    }

    [Fact]
    [Trait("spec", "TC55")]
    public void TC55_A_large_accept_over_small_pages_is_a_size_mismatch()
    {
        using ModuleRig rig = Steps.Running();
        rig.Aug(Gpa);
        rig.EnterTd(0);
        Assert.Equal(0xC000_0B0B_0000_0001, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa | 1).Value);
    }

    [Fact]
    [Trait("spec", "TC56")]
    public void TC56_A_small_accept_inside_a_large_page_asks_the_host_to_split_it()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        rig.Aug(Gpa, 1);
        rig.EnterTd(0);
        SeamRegisters exit = rig.ExitingTdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa + 0x5000);
        Assert.Equal((48UL, 2UL, Gpa + 0x5000), (exit.Rax, exit.Rcx & 0x3F, exit.R8));
        ulong information = exit.Rdx >> 32;
        Assert.Equal((1UL, 0UL, 1UL, 2UL, 1UL), (exit.Rdx & 15, information & 7, (information >> 3) & 7, (information >> 6) & 0xFF, (information >> 14) & 1));
    }

    [Fact]
    [Trait("spec", "TC57")]
    public void TC57_AUG_leaves_the_content_and_ACCEPT_clears_it()
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Page();
        new Random(57).NextBytes(rig.Machine.Memory.Frame(page));
        byte[] before = rig.Machine.Memory.Frame(page).ToArray();
        rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa, rig.Tdr.Value, page.Value);
        Assert.Equal(before, rig.Machine.Memory.Frame(page).ToArray());
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        Assert.Equal(new byte[4096], rig.Machine.Memory.Frame(page).ToArray());
    }

    [Theory]
    [InlineData(6, true)]
    [InlineData(7, false)]
    [Trait("spec", "TC58")]
    public void TC58_Six_faults_at_one_instruction_are_counted_and_the_seventh_keeps_the_guest_out(int faults, bool enters)
    {
        using ModuleRig rig = Steps.Running();
        VmExit fault = new() { Reason = ExitReason.EptViolation, Gpa = Gpa + 0x18, Qualification = 0x181 };
        for (int i = 0; i < faults; i++)
        {
            rig.EnterTd(0);
            Assert.Equal(48UL, rig.Exit(0, fault).Rax);
        }

        SeamRegisters registers = new() { Rcx = rig.Vcpus[0].Value };
        Assert.Equal(enters, rig.Module.BeginEnter(rig.Lp(0), ref registers));
        if (enters)
            return;
        Assert.Equal((48UL, 2UL, 0UL, Gpa), (registers.Rax, registers.Rcx, registers.Rdx, registers.R8));
        Assert.Equal(TdVcpuState.READY, Assert.Single(rig.Module.Vcpus()).State);

        // The page must be there, and reachable: pending is not enough for the real module.
        rig.Aug(Gpa);
        registers = new() { Rcx = rig.Vcpus[0].Value };
        Assert.True(rig.Module.BeginEnter(rig.Lp(0), ref registers));
    }

    [Fact]
    [Trait("spec", "TC59")]
    public void TC59_A_VMCALL_that_names_RSP_is_refused_without_an_exit()
    {
        using ModuleRig rig = Steps.Running();
        Vmcs vmcs = rig.EnterTd(0);
        ulong rip = vmcs.State.Rip;
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RCX, rig.Tdcall(0, TdgLeaf.VP_VMCALL, 0x0000_0010));
        Assert.Equal(rip + 4, vmcs.State.Rip);
        Assert.Equal(TdVcpuState.ACTIVE, Assert.Single(rig.Module.Vcpus()).State);
        Assert.Equal(77UL, rig.ExitingTdcall(0, TdgLeaf.VP_VMCALL, 0x0000_FC00).Rax);
    }

    [Theory]
    [InlineData(true, 6)]
    [InlineData(false, 13)]
    [Trait("spec", "TC60")]
    public void TC60_Instructions_become_faults_or_VE_by_their_class(bool real, int forbidden)
    {
        using ModuleRig rig = Steps.Running(profile: real ? BehaviourProfile.Tdx15 : BehaviourProfile.Documented);
        Vmcs vmcs = rig.EnterTd(0);
        Assert.Equal(forbidden, rig.Serve(0, new VmExit { Reason = ExitReason.Vmxon, InstructionLength = 4 }).Vector);
        AssertVe(s_halt, 12);
        vmcs.State[Gpr.Rax] = 2;
        AssertVe(new VmExit { Reason = ExitReason.Cpuid, InstructionLength = 2 }, 10);
        vmcs.State[Gpr.Rcx] = 0x17;
        AssertVe(new VmExit { Reason = ExitReason.Rdmsr, InstructionLength = 2 }, 31);

        void AssertVe(VmExit exit, ulong reason)
        {
            Assert.Equal(VirtualizationException, rig.Serve(0, exit).Vector);
            Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.VP_VEINFO_GET));
            Assert.Equal(reason, vmcs.State[Gpr.Rcx]);
        }
    }

    [Fact]
    [Trait("spec", "TC67")]
    public void TC67_The_measurement_of_an_added_and_extended_page_is_the_hash_of_its_records()
    {
        using ModuleRig rig = Steps.Initialized();
        Hpa source = rig.Page();
        new Random(67).NextBytes(rig.Machine.Memory.Frame(source));
        rig.Must(TdhLeaf.MEM_PAGE_ADD, Gpa, rig.Tdr.Value, rig.Page().Value, source.Value);
        byte[] stream = new byte[128 + (16 * (128 + 256))];
        Write(0, "MEM.PAGE.ADD", Gpa);
        for (int i = 0; i < 16; i++)
        {
            int at = 128 + (i * (128 + 256));
            ulong chunk = Gpa + ((ulong)i * 256);
            rig.Must(TdhLeaf.MR_EXTEND, chunk, rig.Tdr.Value);
            Write(at, "MR.EXTEND", chunk);
            rig.Machine.Memory.Frame(source).Slice(i * 256, 256).CopyTo(stream.AsSpan(at + 128));
        }

        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Assert.Equal(SHA384.HashData(stream), rig.Td().Mrtd);

        void Write(int at, string name, ulong gpa)
        {
            Encoding.ASCII.GetBytes(name, stream.AsSpan(at));
            BinaryPrimitives.WriteUInt64LittleEndian(stream.AsSpan(at + 16), gpa);
        }
    }

    [Fact]
    [Trait("spec", "TC68")]
    public void TC68_There_are_four_runtime_measurements()
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Aug(Gpa);
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        rig.Machine.Memory.Frame(page)[..48].Fill(0x68);
        byte[] expected = new byte[4 * 48];
        for (int i = 0; i < 4; i++)
        {
            Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MR_RTMR_EXTEND, Gpa, (ulong)i));
            SHA384.HashData([.. new byte[48], .. rig.Machine.Memory.Frame(page)[..48]]).CopyTo(expected, i * 48);
        }

        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RDX, rig.Tdcall(0, TdgLeaf.MR_RTMR_EXTEND, Gpa, 4));
        Assert.Equal(expected, rig.Module.Contents(rig.Tdr).Rtmr.ToArray());
    }
}
