using Tdp.Module;
using Tdp.Platform;
using Tdp.Tests.Unit.Seam.Checklist;

namespace Tdp.Tests.Unit.Seam;

/// <summary>What MR.REPORT looks at in which order, when it stops for an interrupt (tdx-module 9.3), and the pages of PHYMEM leaves (3.4).</summary>
public sealed class ReportOrderTests
{
    private const ulong Data = Steps.Gpa;
    private const ulong Report = Steps.Gpa + 0x1000;
    private const ulong IllegalGpa = 1UL << 49;

    [Fact]
    public void Alignments_come_first_then_the_data_then_R8_and_the_target_last()
    {
        using ModuleRig rig = WithPages();
        TdxStatus rcx = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        TdxStatus rdx = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        TdxStatus r8 = TdxStatus.OPERAND_INVALID | OperandId.R8;
        Assert.Equal(rcx, rig.Tdcall(0, TdgLeaf.MR_REPORT, Report + 64, Data + 1, 1));
        Assert.Equal(rdx, rig.Tdcall(0, TdgLeaf.MR_REPORT, IllegalGpa, Data + 1, 1));
        Assert.Equal(rdx, rig.Tdcall(0, TdgLeaf.MR_REPORT, IllegalGpa, IllegalGpa, 1));
        Assert.Equal(r8, rig.Tdcall(0, TdgLeaf.MR_REPORT, IllegalGpa, Data, 1));
        Assert.Equal(rcx, rig.Tdcall(0, TdgLeaf.MR_REPORT, IllegalGpa, Data));
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MR_REPORT, Report, Data));
    }

    [Fact]
    public void An_interrupt_stops_it_only_while_the_hash_is_to_be_made_and_an_extended_RTMR_is_hashed_again()
    {
        using ModuleRig rig = WithPages();
        Assert.True(IsStoppedByInterrupt(rig));
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MR_REPORT, Report, Data));
        Assert.False(IsStoppedByInterrupt(rig));
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MR_RTMR_EXTEND, Data, 0));
        Assert.True(IsStoppedByInterrupt(rig));
    }

    [Fact]
    public void A_page_is_cleaned_for_the_key_that_the_address_names()
    {
        using ModuleRig rig = Steps.Running();
        int shift = rig.Machine.Description.HkidShift;
        Hpa page = rig.Aug(Steps.Gpa);
        rig.Block(Steps.Gpa);
        rig.Must(TdhLeaf.MEM_PAGE_REMOVE, Steps.Gpa, rig.Tdr.Value);
        Assert.Equal(17, rig.Machine.Memory.Record(page.Frame).Hkid);
        rig.Must(TdhLeaf.PHYMEM_PAGE_WBINVD, page.Value | (18UL << shift));
        Assert.Equal(17, rig.Machine.Memory.Record(page.Frame).Hkid);
        rig.Must(TdhLeaf.PHYMEM_PAGE_WBINVD, page.Value | (17UL << shift));
        Assert.Equal(0, rig.Machine.Memory.Record(page.Frame).Hkid);
    }

    [Fact]
    public void RECLAIM_zeroes_the_registers_it_does_not_use_and_describes_the_page()
    {
        using ModuleRig rig = Steps.Running();
        SeamRegisters call = SeamRegisters.Call(TdhLeaf.PHYMEM_PAGE_RECLAIM, rig.Vcpus[0].Value, 1, 2, 3, 0);
        call.R10 = call.R11 = 4;
        SeamRegisters answer = rig.Raw(0, call);
        Assert.Equal(TdxStatus.LIFECYCLE_STATE_INCORRECT, answer.Status);
        Assert.Equal(((ulong)PageType.TDVPR, rig.Tdr.Value, 0UL), (answer.Rcx, answer.Rdx, answer.R8));
        Assert.Equal((0UL, 0UL, 0UL), (answer.R9, answer.R10, answer.R11));
    }

    // Two accepted pages, and the guest inside.
    private static ModuleRig WithPages()
    {
        ModuleRig rig = Steps.Running();
        rig.Aug(Data);
        rig.Aug(Report);
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Data));
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Report));
        return rig;
    }

    // A stopped call leaves RIP where it is: the guest makes it again after the interrupt.
    private static bool IsStoppedByInterrupt(ModuleRig rig)
    {
        GuestState state = rig.Module.CurrentVmcs(rig.Lp(0))!.State;
        ulong rip = state.Rip;
        rig.Lp(0).PendingInterrupt.Write(0x20);
        rig.Tdcall(0, TdgLeaf.MR_REPORT, Report, Data);
        rig.Lp(0).PendingInterrupt.Write(-1);
        return state.Rip == rip;
    }
}
