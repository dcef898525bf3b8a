using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam;

/// <summary>
/// Details in which the code of the real module 1.5.01 says more than its documents, and which the recordings happen not to show: another recording could.
/// </summary>
public sealed class RealModuleTests
{
    private const ulong Gpa = 0x4000_0000;
    private const ulong Debug = 1;

    [Fact]
    [Trait("spec", "tdx-module 5.7")]
    public void SEPT_RD_of_L2_attributes_answers_that_there_are_none()
    {
        using ModuleRig rig = new();
        rig.BuildTd(attributes: Debug);
        rig.AddTables(Gpa);
        SeamRegisters plain = rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_SEPT_RD, Gpa | 1, rig.Tdr.Value, 0x77));
        SeamRegisters withL2 = rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_SEPT_RD, Gpa | 1, rig.Tdr.Value | 1, 0x77));
        Assert.Equal((plain.Rcx, plain.Rdx, 0x77UL), (withL2.Rcx, withL2.Rdx, plain.R8));
        Assert.Equal(0UL, withL2.R8);
        Assert.True(withL2.Status.IsSuccess);
    }

    [Fact]
    [Trait("spec", "tdx-module 5.7")]
    public void SEPT_RD_of_L2_attributes_is_refused_to_the_host_of_a_production_TD()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa);
        SeamRegisters answer = rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_SEPT_RD, Gpa | 1, rig.Tdr.Value | 1, 0x77));
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RDX, answer.Status);
        Assert.Equal((0UL, 0UL, 0x77UL), (answer.Rcx, answer.Rdx, answer.R8));
    }

    [Fact]
    [Trait("spec", "tdx-module 3.2")]
    public void Two_MiB_with_a_used_page_are_busy_only_while_somebody_named_a_page_in_them()
    {
        using ModuleRig rig = new();

        // A TD with its root and its vCPU's root in 2 MiB ranges of their own.
        ulong roots = Next2M(rig);
        rig.BuildTd(vcpus: 0, hkid: 18);
        ulong vcpus = Next2M(rig);
        Hpa vcpu = rig.AddVcpu(2);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        ulong own = Next2M(rig);
        rig.BuildTd(vcpus: 0);
        rig.AddTables(Gpa, lowest: 2);
        rig.AddVcpu(1);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, Aug(roots));
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, Aug(vcpus));
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.R8, Aug(own));

        // While the other TD's vCPU runs, VP.ENTER's operand is its TDVPR; it came to the TDR from there.
        SeamRegisters enter = new() { Rcx = vcpu.Value };
        Assert.True(rig.Module.BeginEnter(rig.Lp(2), ref enter), enter.Status.ToString());
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, Aug(roots));
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.R8, Aug(vcpus));
        rig.Interrupt(2);
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, Aug(vcpus));

        TdxStatus Aug(ulong range) => rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa | 1, rig.Tdr.Value, range);
    }

    [Fact]
    [Trait("spec", "tdx-module 7.6")]
    public void An_entry_that_the_zero_step_filter_stops_is_an_exit_of_a_guest_that_did_not_run()
    {
        using ModuleRig rig = new();
        rig.BuildTd(vcpus: 2);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        SeamRegisters enter = SeamRegisters.Call(TdhLeaf.VP_ENTER, rig.Vcpus[0].Value);
        enter.Rbp = 0x55;
        enter.Rbx = 0x66;
        int faults = 0;
        while (true)
        {
            SeamRegisters before = enter;
            if (!rig.Module.BeginEnter(rig.Lp(0), ref before))
            {
                Assert.Equal((ulong)ExitReason.EptViolation, before.Rax);
                Assert.Equal((2UL, 0UL, 0x5000UL, 0UL, 0UL, 0x55UL), (before.Rcx, before.Rdx, before.R8, before.R9, before.Rbx, before.Rbp));
                break;
            }

            Assert.True(++faults < 32);
            rig.Exit(0, new VmExit { Reason = ExitReason.EptViolation, Qualification = 1, Gpa = 0x5123 });
        }

        Assert.True(faults > rig.Module.Options.EpfThreshold);

        // Stopped entries drop only what their epoch made stale. Another vCPU of the TD that ran here meanwhile is dealt with when this one does run.
        rig.Must(TdhLeaf.VP_FLUSH, rig.Vcpus[1].Value, lp: 1);
        rig.EnterTd(1, lp: 0);
        rig.Interrupt(0);
        ulong flushes = rig.Lp(0).Tlb.Flushes;
        AssertStopped(flushes);
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value);
        AssertStopped(flushes + 1);
        AssertStopped(flushes + 1);
        rig.AddTables(0);
        rig.Aug(0x5000);
        rig.EnterTd(1, lp: 0);
        Assert.True(rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, 0x5000).IsSuccess);
        rig.Interrupt(0);
        flushes = rig.Lp(0).Tlb.Flushes;
        rig.EnterTd(0);
        Assert.Equal(flushes + 1, rig.Lp(0).Tlb.Flushes);

        // A VMCALL from the same instruction, and the page goes away again: the host's answer to the call is never delivered.
        GuestState state = rig.Module.CurrentVmcs(rig.Lp(0))!.State;
        state[Gpr.Rax] = (ulong)TdgLeaf.VP_VMCALL;
        state[Gpr.Rcx] = 0;
        rig.Exit(0, new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 });
        Assert.Equal(TdExitKind.TDVMCALL, Row(rig, 0).LastExit);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, 0x5000, rig.Tdr.Value);
        AssertStopped(rig.Lp(0).Tlb.Flushes);
        Assert.Equal(TdExitKind.ASYNC_FAULT, Row(rig, 0).LastExit);

        void AssertStopped(ulong expected)
        {
            SeamRegisters registers = enter;
            Assert.False(rig.Module.BeginEnter(rig.Lp(0), ref registers));
            Assert.Equal(expected, rig.Lp(0).Tlb.Flushes);
        }
    }

    [Fact]
    [Trait("spec", "D33")]
    public void TD_PARAMS_in_a_page_of_the_module_are_what_the_module_keeps_there_if_memory_is_flat_and_otherwise_zero()
    {
        foreach (bool flat in (bool[])[true, false])
        {
            using ModuleRig rig = new(options: new TdxModuleOptions { TdmrInitPages = 262144, MemoryIsFlat = flat });
            Hpa running = rig.BuildTd(vcpus: 1, hkid: 18);
            Hpa vcpu = rig.Vcpus[0];
            rig.Must(TdhLeaf.MR_FINALIZE, running.Value);
            Hpa tdr = rig.Page();
            rig.Must(TdhLeaf.MNG_CREATE, tdr.Value, 19);
            rig.OnEachPackage(lp => rig.Must(TdhLeaf.MNG_KEY_CONFIG, tdr.Value, lp: lp));
            Hpa first = rig.Page();
            rig.Must(TdhLeaf.MNG_ADDCX, first.Value, tdr.Value);
            for (int i = 1; i < 6; i++)
                rig.Must(TdhLeaf.MNG_ADDCX, rig.Page().Value, tdr.Value);
            OperandId refused = flat ? OperandId.ATTRIBUTES : OperandId.XFAM;

            // Six TDCS pages counted in the TDR; a vCPU that is associated, counted in the first page of the TDCS; no vCPU yet; no #VE yet.
            AssertRefused(running, refused);
            AssertRefused(tdr, refused);
            AssertRefused(running + 4096, refused);
            AssertRefused(first, OperandId.XFAM);
            AssertRefused(vcpu, OperandId.XFAM);

            // An EPT violation shown to the guest, and what remains of it in the page when the TD is gone.
            rig.AddTables(0);
            rig.Aug(0x5000);
            rig.EnterTd(0);
            Assert.Equal(20, rig.Serve(0, new VmExit { Reason = ExitReason.EptViolation, Qualification = 1, Gpa = 0x5000 }).Vector);
            rig.Interrupt(0);
            AssertRefused(vcpu, refused);
            rig.Must(TdhLeaf.VP_FLUSH, vcpu.Value);
            rig.Must(TdhLeaf.MNG_VPFLUSHDONE, running.Value);
            rig.OnEachPackage(lp => rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: lp));
            rig.Must(TdhLeaf.MNG_KEY_FREEID, running.Value);
            rig.Must(TdhLeaf.PHYMEM_PAGE_RECLAIM, vcpu.Value);
            AssertRefused(vcpu, refused);

            void AssertRefused(Hpa where, OperandId operand) =>
                Assert.Equal(TdxStatus.OPERAND_INVALID | operand, rig.Call(TdhLeaf.MNG_INIT, tdr.Value, where.Value));
        }
    }

    private static VcpuView Row(ModuleRig rig, int vcpu)
    {
        foreach (VcpuView view in rig.Module.Vcpus())
        {
            if (view.Tdvpr == rig.Vcpus[vcpu])
                return view;
        }

        throw new InvalidOperationException("no such vCPU");
    }

    // The next pages that are handed out begin a 2 MiB range.
    private static ulong Next2M(ModuleRig rig) => rig.LargePage().Value + 0x20_0000;
}
