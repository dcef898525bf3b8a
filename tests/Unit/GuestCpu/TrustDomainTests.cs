using Tdp.Cpu;
using Tdp.Platform;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>What is different in a TD: aliases, the CPU's own #VE, exits by instruction (td-guest 1.5, 4.1, 5.3).</summary>
public sealed class TrustDomainTests
{
    private const ulong Window = 0x40_0000_0000;
    private const ulong Mmio = CpuRig.SharedBit | 0xF000_0000;

    [Fact]
    [Trait("spec", "G13")]
    [Trait("spec", "G14")]
    [Trait("spec", "G92")]
    public void The_alias_bit_in_the_leaf_alone_decides_which_tree_translates()
    {
        using CpuRig rig = new(isTd: true);
        const ulong Page = 0x300_0000;
        rig.Machine.Memory.Word(rig.Back(Page)) = 1;
        rig.Machine.Memory.Word(rig.Back(Page | CpuRig.SharedBit)) = 2;
        rig.Map(Window, Page);
        rig.Map(Window + 0x1000, Page | CpuRig.SharedBit);
        rig.Run(a =>
        {
            a.mov(rax, Window);
            a.mov(rcx, __qword_ptr[rax]);
            a.mov(rdx, __qword_ptr[rax + 0x1000]);
            a.hlt();
        });
        Assert.Equal((1UL, 2UL), (rig.State[Gpr.Rcx], rig.State[Gpr.Rdx]));
    }

    [Fact]
    [Trait("spec", "G15")]
    public void Address_bits_above_the_shared_bit_are_reserved_to_the_guest()
    {
        using CpuRig rig = new(isTd: true);
        rig.StopHandler(14);
        rig.Map(Window, 1UL << 50);
        rig.Run(a =>
        {
            a.mov(rax, Window + 0x18);
            a.mov(__qword_ptr[rax], rcx);
            a.hlt();
        });
        Assert.Equal(Window + 0x18, rig.State.Cr2);
        Assert.Equal(0xBu, (uint)rig.Word(rig.State[Gpr.Rsp]));
    }

    [Theory]
    [InlineData(SharedFetchPolicy.PageFault)]
    [InlineData(SharedFetchPolicy.Allow)]
    [Trait("spec", "G17")]
    public void Code_in_shared_memory_follows_the_policy(SharedFetchPolicy policy)
    {
        using CpuRig rig = new(isTd: true, options: new GuestCpuOptions { SharedFetch = policy });
        rig.StopHandler(14);
        rig.Machine.Memory.At(rig.Back(Mmio)) = 0xF4;
        rig.Map(Window, Mmio);
        rig.Run(a =>
        {
            a.mov(rax, Window);
            a.jmp(rax);
        });
        if (policy == SharedFetchPolicy.Allow)
        {
            Assert.Equal(Window, rig.State.Rip);
            return;
        }

        Assert.Equal(Window, rig.State.Cr2);
        Assert.Equal(0x19u, (uint)rig.Word(rig.State[Gpr.Rsp]));
    }

    [Theory]
    [InlineData(0UL, true)]
    [InlineData(EptEntry.SuppressVe, false)]
    [Trait("spec", "G33")]
    public void Bit_63_of_the_shared_entry_alone_decides_between_VE_and_exit(ulong leaf, bool converts)
    {
        using CpuRig rig = new(isTd: true);
        rig.StopHandler(20);
        rig.EptLeaf(Mmio) = leaf;
        rig.Map(Window, Mmio);
        VmExit exit = rig.Run(a =>
        {
            a.mov(rax, Window + 0x10);
            a.mov(ecx, __dword_ptr[rax]);
            a.hlt();
        });
        VeInfo area = rig.Vmcs.VeInfo!;
        Assert.Equal(converts, area.IsValid);
        if (!converts)
        {
            Assert.Equal(ExitReason.EptViolation, exit.Reason);
            Assert.Equal((0x181UL, Mmio + 0x10, Window + 0x10), (exit.Qualification, exit.Gpa, exit.Gla));
            Assert.Equal(CpuRig.Code + 10, rig.State.Rip);
            return;
        }

        Assert.Equal(CpuRig.Code + 0x3000 + (20 * 16), rig.State.Rip);
        Assert.Equal(CpuRig.Code + 10, rig.Word(rig.State[Gpr.Rsp]));
        Assert.Equal((48u, 0x181UL, Window + 0x10, Mmio + 0x10), (area.Reason, area.Qualification, area.Gla, area.Gpa));
    }

    [Fact]
    [Trait("spec", "G37")]
    public void The_length_of_an_EPT_violation_VE_is_poison()
    {
        using CpuRig rig = new(isTd: true);
        rig.StopHandler(20);
        rig.EptLeaf(Mmio) = 0;
        rig.Map(Window, Mmio);
        rig.Run(a =>
        {
            a.mov(rax, Window);
            a.mov(__byte_ptr[rax], cl);
            a.hlt();
        });
        Assert.Equal(0xCCu, rig.Vmcs.VeInfo!.InstructionLength);
        Assert.Equal(0x182UL, rig.Vmcs.VeInfo.Qualification);
    }

    [Fact]
    [Trait("spec", "G42")]
    public void A_convertible_violation_while_VE_information_is_unread_is_an_exit()
    {
        using CpuRig rig = new(isTd: true);
        rig.StopHandler(20);
        rig.EptLeaf(Mmio) = 0;
        rig.Map(Window, Mmio);
        rig.Vmcs.VeInfo!.IsValid = true;
        VmExit exit = rig.Run(a =>
        {
            a.mov(rax, Window);
            a.mov(ecx, __dword_ptr[rax]);
        });
        Assert.Equal(ExitReason.EptViolation, exit.Reason);
        Assert.True(exit.IsConvertible);
        Assert.Equal(CpuRig.Code + 10, rig.State.Rip);
    }

    [Fact]
    [Trait("spec", "G50")]
    public void A_store_that_straddles_from_RAM_into_MMIO_names_the_second_page_and_changes_nothing()
    {
        using CpuRig rig = new(isTd: true);
        rig.StopHandler(20);
        rig.Map(Window, rig.NewGpa());
        rig.EptLeaf(Mmio) = 0;
        rig.Map(Window + 0x1000, Mmio);
        rig.Word(Window + 0xFF8) = 0x5555_5555_5555_5555;
        rig.Run(a =>
        {
            a.mov(rcx, Window + 0xFFF);
            a.mov(__word_ptr[rcx], ax);
            a.hlt();
        });
        Assert.Equal((Mmio, Window + 0x1000), (rig.Vmcs.VeInfo!.Gpa, rig.Vmcs.VeInfo.Gla));
        Assert.Equal(0x5555_5555_5555_5555UL, rig.Word(Window + 0xFF8));
    }

    [Fact]
    [Trait("spec", "G40")]
    public void Maskable_interrupts_can_be_held_while_VE_information_is_unread()
    {
        using CpuRig rig = new(isTd: true);
        rig.Vmcs.HoldInterruptsWhileVeValid = true;
        rig.Vmcs.InterruptWindowExiting = true;
        rig.Vmcs.VeInfo!.IsValid = true;
        rig.State.Rflags |= 0x200;
        Assert.Equal(ExitReason.Hlt, rig.Run(a => a.hlt()).Reason);
        rig.Vmcs.VeInfo.IsValid = false;
        Assert.Equal(ExitReason.InterruptWindow, rig.Run(a => a.hlt()).Reason);
    }

    public static TheoryData<string, ExitReason, ulong> Exits => new()
    {
        { "F4", ExitReason.Hlt, 0 },
        { "0FA2", ExitReason.Cpuid, 0 },
        { "0F01C1", ExitReason.Vmcall, 0 },
        { "0F08", ExitReason.Invd, 0 },
        { "0F09", ExitReason.Wbinvd, 0 },
        { "F30F09", ExitReason.Wbinvd, 0 },
        { "0F01C8", ExitReason.Monitor, 0 },
        { "0F01C9", ExitReason.Mwait, 0 },
        { "0F32", ExitReason.Rdmsr, 0 },
        { "0F30", ExitReason.Wrmsr, 0 },
        { "0F33", ExitReason.Rdpmc, 0 },
        { "E6E9", ExitReason.IoInstruction, 0x00E9_0040 },
        { "EE", ExitReason.IoInstruction, 0x1234_0000 },
        { "66ED", ExitReason.IoInstruction, 0x1234_0009 },
        { "ED", ExitReason.IoInstruction, 0x1234_000B },
        { "E5F4", ExitReason.IoInstruction, 0x00F4_004B },
        { "6E", ExitReason.IoInstruction, 0x1234_0010 },
        { "F36D", ExitReason.IoInstruction, 0x1234_003B },
        { "660F01CC", ExitReason.Tdcall, 0 },
        { "660F01CF", ExitReason.Seamcall, 0 },
        { "0F01C0", ExitReason.Enclv, 0 },
        { "0F01CF", ExitReason.Encls, 0 },
        { "0F37", ExitReason.Getsec, 0 },
        { "0FAA", ExitReason.Rsm, 0 },
        { "0F01C5", ExitReason.Pconfig, 0 },
        { "0F01D4", ExitReason.Vmfunc, 0 },
        { "0F01C2", ExitReason.Vmlaunch, 0 },
        { "0F01C3", ExitReason.Vmresume, 0 },
        { "0F01C4", ExitReason.Vmxoff, 0 },
        { "0F78D8", ExitReason.Vmread, 0 },
        { "0F79D8", ExitReason.Vmwrite, 0 },
        { "0FC73B", ExitReason.Vmptrst, 0 },
        { "0FC733", ExitReason.Vmptrld, 0 },
        { "660FC733", ExitReason.Vmclear, 0 },
        { "F30FC733", ExitReason.Vmxon, 0 },
        { "660F38800B", ExitReason.Invept, 0 },
        { "660F38810B", ExitReason.Invvpid, 0 },
        { "F20F38F80B", ExitReason.Enqcmd, 0 },
        { "F30F38F80B", ExitReason.Enqcmds, 0 },
    };

    [Theory]
    [MemberData(nameof(Exits))]
    [Trait("spec", "G18")]
    [Trait("spec", "G19")]
    public void An_instruction_that_exits_leaves_RIP_at_itself_and_reports_its_length(string bytes, ExitReason reason, ulong qualification)
    {
        using CpuRig rig = new(isTd: true);
        byte[] code = Convert.FromHexString(bytes);
        rig.Write(CpuRig.Code, code);
        rig.State[Gpr.Rdx] = 0x1234;
        rig.State[Gpr.Rcx] = 3;
        VmExit exit = rig.Enter();
        Assert.Equal((reason, qualification, (uint)code.Length), (exit.Reason, exit.Qualification, exit.InstructionLength));
        Assert.Equal(CpuRig.Code, rig.State.Rip);
    }

    [Theory]
    [InlineData("F4", 13)]
    [InlineData("0F32", 13)]
    [InlineData("0F30", 13)]
    [InlineData("0F09", 13)]
    [InlineData("0F08", 13)]
    [InlineData("E6E9", 13)]
    [InlineData("6D", 13)]
    [InlineData("0F20D8", 13)]
    [InlineData("0F01D1", 6)]
    [InlineData("660F01CC", 13)]
    [InlineData("0F01C8", 6)]
    [InlineData("FA", 13)]
    [Trait("spec", "G28")]
    public void Privilege_is_checked_before_any_exit(string bytes, int vector)
    {
        using CpuRig rig = new(isTd: true);
        ulong handler = rig.StopHandler(vector);
        rig.Write(CpuRig.Code, Convert.FromHexString(bytes));
        rig.BecomeUser();
        rig.Enter();
        Assert.Equal(handler, rig.State.Rip);
    }

    [Theory]
    [InlineData("660F01CC")]
    [InlineData("660F01CF")]
    [InlineData("0F01CF")]
    [InlineData("0F01D7")]
    [InlineData("0F37")]
    [InlineData("0F01C5")]
    [Trait("spec", "G28")]
    public void In_an_ordinary_VM_instructions_of_TDX_and_SGX_do_not_exist(string bytes)
    {
        using CpuRig rig = new();
        ulong handler = rig.StopHandler(6);
        rig.Write(CpuRig.Code, Convert.FromHexString(bytes));
        rig.Enter();
        Assert.Equal(handler, rig.State.Rip);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Enclu_exits_only_when_the_module_asks_for_it(bool asked)
    {
        using CpuRig rig = new(isTd: true);
        rig.StopHandler(6);
        rig.Vmcs.EncluFaults = asked;
        rig.Write(CpuRig.Code, [0x0F, 0x01, 0xD7]);
        Assert.Equal(asked ? ExitReason.SimulatorEnclu : ExitReason.Hlt, rig.Enter().Reason);
    }

    [Fact]
    public void A_change_of_an_owned_control_register_bit_exits_and_any_other_does_not()
    {
        using CpuRig rig = new(isTd: true);
        rig.Vmcs.Cr4Owned = 1 << 6;
        VmExit exit = rig.Run(a =>
        {
            a.mov(rax, cr4);
            a.or(eax, 0x100);
            a.mov(cr4, rax);
            a.and(eax, ~0x40);
            a.mov(cr4, rax);
        });
        Assert.Equal(ExitReason.CrAccess, exit.Reason);
        Assert.Equal(4UL, exit.Qualification);
        Assert.Equal(0x7E0UL, rig.State.Cr4);
    }
}
