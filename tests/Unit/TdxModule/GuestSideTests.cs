using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam;

/// <summary>The module's side of a running guest: #VE, instruction exits, VMCALL, and the loop over an engine.</summary>
public sealed class GuestSideTests
{
    private const ulong Gpa = 0x4000_0000;
    private const ulong Shared = 1UL << 47;

    [Fact]
    [Trait("spec", "TC53")]
    [Trait("spec", "B09")]
    public void A_second_injected_VE_before_the_first_is_read_is_a_double_fault()
    {
        using ModuleRig rig = Running();
        Vmcs vmcs = rig.EnterTd(0);
        VmExit halt = new() { Reason = ExitReason.Hlt, InstructionLength = 1 };
        Assert.Equal(20, rig.Serve(0, halt).Vector);
        VmEvent second = rig.Serve(0, halt);
        Assert.Equal((8, true, 0u), (second.Vector, second.HasErrorCode, second.ErrorCode));
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.VP_VEINFO_GET));
        Assert.Equal((12UL, 0UL, 1UL), (vmcs.State[Gpr.Rcx], vmcs.State[Gpr.R9], vmcs.State[Gpr.R10]));
        Assert.Equal(TdxStatus.NO_VALID_VE_INFO, rig.Tdcall(0, TdgLeaf.VP_VEINFO_GET));
        Assert.Equal(0UL, vmcs.State[Gpr.Rcx]);
    }

    [Theory]
    [InlineData(true, 6)]
    [InlineData(false, 13)]
    [Trait("spec", "TC60")]
    [Trait("spec", "B01")]
    [Trait("spec", "B02")]
    [Trait("spec", "B04")]
    public void Forbidden_instructions_fault_as_the_profile_says(bool real, int vector)
    {
        using ModuleRig rig = Running(real ? BehaviourProfile.Tdx15 : BehaviourProfile.Documented);
        rig.EnterTd(0);
        foreach (ExitReason reason in (ExitReason[])[ExitReason.Vmxon, ExitReason.Vmread, ExitReason.Invept, ExitReason.Encls, ExitReason.Getsec, ExitReason.Rsm, ExitReason.Enclv])
            Assert.Equal(vector, rig.Serve(0, new VmExit { Reason = reason, InstructionLength = 3 }).Vector);
        Assert.Equal(13, rig.Serve(0, new VmExit { Reason = ExitReason.Enqcmd }).Vector);
        Assert.Equal(6, rig.Serve(0, new VmExit { Reason = ExitReason.Seamcall }).Vector);
    }

    [Fact]
    [Trait("spec", "TC60")]
    [Trait("spec", "G24")]
    public void CPUID_and_MSRs_are_answered_or_become_VE_by_the_tables()
    {
        using ModuleRig rig = Running();
        Vmcs vmcs = rig.EnterTd(0);
        GuestState state = vmcs.State;
        foreach ((uint leaf, bool ve) in ((uint, bool)[])[(0, false), (1, false), (2, true), (6, true), (0xB, true), (0x1F, true), (0x21, false), (0x4000_0000, true), (0x8000_0008, false)])
        {
            state[Gpr.Rax] = leaf;
            state[Gpr.Rcx] = 0;
            ulong rip = state.Rip;
            VmEvent injected = rig.Serve(0, new VmExit { Reason = ExitReason.Cpuid, InstructionLength = 2 });
            Assert.Equal((ve, ve ? rip : rip + 2), (injected.IsValid, state.Rip));
            rig.Tdcall(0, TdgLeaf.VP_VEINFO_GET);
        }

        state[Gpr.Rax] = 0x21;
        state[Gpr.Rcx] = 0;
        rig.Serve(0, new VmExit { Reason = ExitReason.Cpuid, InstructionLength = 2 });
        Assert.Equal((0x65746E49UL, 0x20202020UL, 0x5844546CUL), (state[Gpr.Rbx], state[Gpr.Rcx], state[Gpr.Rdx]));

        foreach ((uint msr, ExitReason reason, int vector) in ((uint, ExitReason, int)[])[(0x17, ExitReason.Rdmsr, 20), (0x8C, ExitReason.Rdmsr, 13), (0x10A, ExitReason.Rdmsr, 0), (0x480, ExitReason.Wrmsr, 13), (0x10, ExitReason.Wrmsr, 20)])
        {
            state[Gpr.Rcx] = msr;
            VmEvent injected = rig.Serve(0, new VmExit { Reason = reason, InstructionLength = 2 });
            Assert.Equal(vector, injected.IsValid ? injected.Vector : 0);
            rig.Tdcall(0, TdgLeaf.VP_VEINFO_GET);
        }

        Assert.False(vmcs.MsrBitmap.Exits(0x10, write: false));
        Assert.True(vmcs.MsrBitmap.Exits(0x10, write: true));
    }

    [Fact]
    [Trait("spec", "TC59")]
    public void VMCALL_shows_the_host_only_the_registers_of_its_mask_and_takes_only_those_back()
    {
        using ModuleRig rig = Running();
        Vmcs vmcs = rig.EnterTd(0);
        GuestState state = vmcs.State;
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RCX, rig.Tdcall(0, TdgLeaf.VP_VMCALL, 0x10));
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RCX, rig.Tdcall(0, TdgLeaf.VP_VMCALL, 0x20));
        for (int i = 0; i < 16; i++)
            state[(Gpr)i] = 0x100 + (ulong)i;
        state.Xmm[2] = System.Runtime.Intrinsics.Vector128.Create(7UL, 8UL);
        state[Gpr.Rax] = (ulong)TdgLeaf.VP_VMCALL;
        state[Gpr.Rcx] = 0x0004_1C00;
        ulong rip = state.Rip;
        SeamRegisters host = rig.Exit(0, new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 });
        Assert.Equal((77UL, 0x0004_1C00UL, 0x10AUL, 0x10BUL, 0x10CUL, 0UL, 0UL), (host.Rax, host.Rcx, host.R10, host.R11, host.R12, host.R13, host.Rbx));
        Assert.Equal(8UL, rig.Module.HostXmm(rig.Lp(0))[2][1]);
        Assert.Equal(rip + 4, state.Rip);

        SeamRegisters answer = new() { Rcx = rig.Vcpus[0].Value, R10 = 0, R11 = 0xAA, R13 = 0xBB, Rbx = 0xCC };
        Assert.True(rig.Module.BeginEnter(rig.Lp(0), ref answer));
        Assert.Equal((0UL, 0x0004_1C00UL, 0UL, 0xAAUL, 0x10DUL, 0x103UL), (state[Gpr.Rax], state[Gpr.Rcx], state[Gpr.R10], state[Gpr.R11], state[Gpr.R13], state[Gpr.Rbx]));
    }

    [Fact]
    [Trait("spec", "TC52")]
    public void A_guest_that_accepts_in_its_VE_handler_gets_through_the_loop_over_the_engine()
    {
        using ModuleRig rig = Running();
        rig.AddTables(Gpa);
        ScriptedGuest guest = new(rig.Machine, GuestStep.Write(Gpa + 8, 42), GuestStep.Read(Gpa + 8));
        SeamRegisters registers = new() { Rcx = rig.Vcpus[0].Value };
        rig.Module.Enter(rig.Lp(0), guest, ref registers);
        Assert.Equal((48UL, 0UL, Gpa), (registers.Rax, registers.Rdx, registers.R8));
        Assert.Equal(2UL, registers.Rcx & 7);
        rig.Aug(Gpa);
        registers = new() { Rcx = rig.Vcpus[0].Value };
        rig.Module.Enter(rig.Lp(0), guest, ref registers);
        Assert.True(guest.IsDone);
        Assert.Equal([42UL], guest.Values);
        Assert.Equal(20, Assert.Single(guest.Events).Vector);
        Assert.Empty(rig.Machine.Findings.All);
    }

    [Fact]
    [Trait("spec", "TC52")]
    [Trait("spec", "B05")]
    public void With_VE_disabled_an_unaccepted_page_is_a_TD_exit_of_type_6()
    {
        using ModuleRig rig = new();
        rig.BuildTd(attributes: 1UL << 28);
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        rig.Aug(Gpa);
        rig.EnterTd(0);
        SeamRegisters exit = rig.Exit(0, new VmExit { Reason = ExitReason.EptViolation, Gpa = Gpa + 0x18, Qualification = 0x182 });
        Assert.Equal((48UL, 0x2UL, 6UL, Gpa), (exit.Rax, exit.Rcx, exit.Rdx, exit.R8));
    }

    [Fact]
    public void A_shared_page_is_reached_through_the_tree_that_the_host_named()
    {
        using ModuleRig rig = Running();
        Hpa data = rig.Page();
        Hpa[] tables = [rig.Page(), rig.Page(), rig.Page(), rig.Page()];
        foreach (Hpa table in tables)
            rig.Machine.Memory.Fill(table, 1UL << 63);
        ulong gpa = Shared | Gpa;
        for (int i = 0; i < 4; i++)
        {
            Level level = new(4 - i);
            rig.Machine.Memory.Entry(tables[i], level.IndexOf(gpa >> 12)).Write(i < 3 ? tables[i + 1].Value | 7 : data.Value | 0x37);
        }

        rig.Must(TdhLeaf.VP_WR, rig.Vcpus[0].Value, 0x002400030000203C, tables[0].Value, ulong.MaxValue);
        Assert.Equal(TdxStatus.METADATA_FIELD_NOT_WRITABLE, rig.Call(TdhLeaf.VP_WR, rig.Vcpus[0].Value, 0x002400030000201A, 0, ulong.MaxValue));
        Assert.Equal(tables[0].Value, rig.Must(TdhLeaf.VP_RD, rig.Vcpus[0].Value, 0x002400030000203C).R8);
        ScriptedGuest guest = new(rig.Machine, GuestStep.Write(gpa, 9));
        SeamRegisters registers = new() { Rcx = rig.Vcpus[0].Value };
        rig.Module.Enter(rig.Lp(0), guest, ref registers);
        Assert.True(guest.IsDone);
        Assert.Equal(9UL, rig.Machine.Memory.Word(data.Value));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "B07")]
    public void A_convertible_access_while_VE_information_is_valid_follows_the_profile(bool real)
    {
        using ModuleRig rig = Running(real ? BehaviourProfile.Tdx15 : BehaviourProfile.Documented);
        rig.EnterTd(0);
        rig.Serve(0, new VmExit { Reason = ExitReason.Hlt, InstructionLength = 1 });
        VmExit violation = new() { Reason = ExitReason.EptViolation, Gpa = Shared | 0x1000, Qualification = 0x181, IsConvertible = true };
        if (real)
            Assert.Equal(48UL, rig.Exit(0, violation).Rax);
        else
            Assert.Equal(8, rig.Serve(0, violation).Vector);
    }

    [Fact]
    [Trait("spec", "TC58")]
    public void The_seventh_fault_at_one_instruction_keeps_the_guest_out_until_its_page_is_mapped()
    {
        using ModuleRig rig = Running(BehaviourProfile.Tdx15);
        rig.AddTables(Gpa);
        VmExit fault = new() { Reason = ExitReason.EptViolation, Gpa = Gpa, Qualification = 0x181 };
        for (int i = 0; i < 7; i++)
        {
            rig.EnterTd(0);
            Assert.Equal(48UL, rig.Exit(0, fault).Rax);
        }

        SeamRegisters registers = new() { Rcx = rig.Vcpus[0].Value };
        Assert.False(rig.Module.BeginEnter(rig.Lp(0), ref registers));
        Assert.Equal((48UL, 2UL, Gpa), (registers.Rax, registers.Rcx, registers.R8));
        Assert.Equal(0u, rig.Module.Td(rig.Tdr)!.RefCount0 + rig.Module.Td(rig.Tdr)!.RefCount1);
    }

    [Fact]
    [Trait("spec", "TC50")]
    [Trait("spec", "TC48")]
    public void A_running_vCPU_keeps_its_TD_and_its_processor()
    {
        using ModuleRig rig = Running();
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.RCX, rig.Call(TdhLeaf.MNG_VPFLUSHDONE, rig.Tdr.Value, lp: 1));
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.RDX, rig.Call(TdhLeaf.MR_EXTEND, Gpa, rig.Tdr.Value, lp: 1));
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.RCX, rig.Call(TdhLeaf.VP_FLUSH, rig.Vcpus[0].Value, lp: 1));
        Assert.Equal(TdxStatus.VCPU_STATE_INCORRECT, rig.Call(TdhLeaf.VP_ENTER, rig.Vcpus[0].Value, lp: 1));
        rig.Must(TdhLeaf.MNG_RD, rig.Tdr.Value, 0x9010000200000001, lp: 1);
        rig.Interrupt(0);
        Assert.Equal(TdxStatus.VCPU_ASSOCIATED, rig.Call(TdhLeaf.VP_ENTER, rig.Vcpus[0].Value, lp: 1));
        rig.Must(TdhLeaf.VP_FLUSH, rig.Vcpus[0].Value);
        SeamRegisters registers = new() { Rcx = rig.Vcpus[0].Value };
        Assert.True(rig.Module.BeginEnter(rig.Lp(1), ref registers));
        rig.Interrupt(1);
    }

    [Fact]
    [Trait("spec", "D34")]
    public void Ports_inject_busy_and_see_calls_and_are_gone_when_removed()
    {
        using ModuleRig rig = Running();
        Ports ports = new();
        rig.Module.BusyInjector = ports;
        rig.Module.Observer = ports;
        TdxStatus status = rig.Module.MemTrack(rig.Lp(1), rig.Tdr);
        Assert.Equal("TDX_OPERAND_BUSY | OPERAND_ID_TD_EPOCH", status.ToString());
        Assert.Equal(["TDH.MEM.TRACK", "TDX_OPERAND_BUSY | OPERAND_ID_TD_EPOCH"], ports.Seen);
        rig.Module.BusyInjector = null;
        rig.Module.Observer = null;
        Assert.Equal(TdxStatus.SUCCESS, rig.Module.MemTrack(rig.Lp(1), rig.Tdr));
        Assert.Equal(2, ports.Seen.Count);
        Assert.Contains(rig.Module.Counts(), count => count is { Leaf: "TDH.MEM.TRACK", Times: 1 } && count.Status.IsBusy);
    }

    [Fact]
    [Trait("spec", "TC68")]
    public void A_report_contains_what_was_measured_and_verifies_on_this_machine_only()
    {
        using ModuleRig rig = Running();
        rig.AddTables(Gpa);
        Hpa[] pages = [rig.Aug(Gpa), rig.Aug(Gpa + 0x1000)];
        rig.EnterTd(0);
        rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa + 0x1000));
        Span<byte> data = rig.Machine.Memory.Frame(pages[0]);
        data[..96].Fill(0x33);
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RDX, rig.Tdcall(0, TdgLeaf.MR_RTMR_EXTEND, Gpa, 4));
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MR_RTMR_EXTEND, Gpa, 2));
        byte[] extended = System.Security.Cryptography.SHA384.HashData([.. new byte[48], .. data[..48]]);

        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MR_REPORT, Gpa + 0x1400, Gpa + 0x40));
        byte[] report = rig.Machine.Memory.Frame(pages[1]).Slice(0x400, 1024).ToArray();
        Assert.Equal(0x81, report[0]);
        Assert.Equal(extended, report[(512 + 208 + 96)..(512 + 208 + 144)]);
        Assert.Equal(rig.Module.Td(rig.Tdr)!.Mrtd, report[528..576]);
        Assert.Equal(data.Slice(0x40, 64).ToArray(), report[128..192]);
        Assert.Equal(System.Security.Cryptography.SHA384.HashData(report.AsSpan(512)), report[80..128]);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MR_VERIFYREPORT, Gpa + 0x1400));
        rig.Machine.Memory.Frame(pages[1])[0x400 + 130] ^= 1;
        Assert.Equal(TdxStatus.INVALID_REPORTMACSTRUCT, rig.Tdcall(0, TdgLeaf.MR_VERIFYREPORT, Gpa + 0x1400));
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ATTR_RD, Gpa + 0x1234));
        Assert.Equal((Gpa + 0x1000, 0UL), (rig.Module.CurrentVmcs(rig.Lp(0))!.State[Gpr.Rcx], rig.Module.CurrentVmcs(rig.Lp(0))!.State[Gpr.Rdx]));
    }

    private static ModuleRig Running(BehaviourProfile? profile = null)
    {
        ModuleRig rig = new(profile);
        rig.BuildTd(vcpus: 1);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        return rig;
    }

    private sealed class Ports : IBusyInjector, IModuleObserver
    {
        public List<string> Seen { get; } = [];

        public bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
        {
            status = TdxStatus.OPERAND_BUSY | OperandId.TD_EPOCH;
            return leaf == TdhLeaf.MEM_TRACK;
        }

        public void Calling(LogicalProcessor lp, in SeamRegisters registers) => Seen.Add(((TdhLeaf)(ushort)registers.Rax).FullName());

        public void Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after) => Seen.Add(after.Status.ToString());

        public void GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited) => Seen.Add(leaf.FullName());
    }
}
