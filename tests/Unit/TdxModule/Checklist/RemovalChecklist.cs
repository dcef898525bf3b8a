using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>Lines 29 to 38: removal, TLB tracking, unblocking (tdx-module 5.7, 6).</summary>
public sealed class RemovalChecklist
{
    private const ulong Gpa = Steps.Gpa;

    [Fact]
    [Trait("spec", "TC29")]
    public void TC29_Only_a_TD_that_runs_asks_for_a_block_before_the_removal()
    {
        using ModuleRig building = Steps.Initialized();
        Hpa added = building.Page();
        building.Must(TdhLeaf.MEM_PAGE_ADD, Gpa, building.Tdr.Value, added.Value, building.Page().Value);
        Assert.Equal(added.Value, building.Must(TdhLeaf.MEM_PAGE_REMOVE, Gpa, building.Tdr.Value).Rcx);

        using ModuleRig running = Steps.Initialized();
        running.Must(TdhLeaf.MEM_PAGE_ADD, Gpa, running.Tdr.Value, running.Page().Value, running.Page().Value);
        running.Must(TdhLeaf.MR_FINALIZE, running.Tdr.Value);
        Assert.Equal(TdxStatus.GPA_RANGE_NOT_BLOCKED | OperandId.RCX, running.Call(TdhLeaf.MEM_PAGE_REMOVE, Gpa, running.Tdr.Value));
    }

    [Fact]
    [Trait("spec", "TC30")]
    public void TC30_A_block_without_a_track_is_not_enough()
    {
        using ModuleRig rig = Steps.Running();
        rig.Aug(Gpa);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value);
        SeamRegisters answer = rig.Ask(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value);
        Assert.Equal(TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX, answer.Status);
        Assert.Equal((0UL, 0UL), (answer.Rcx, answer.Rdx));
    }

    [Fact]
    [Trait("spec", "TC31")]
    public void TC31_Block_track_and_remove_give_the_page_back_when_nobody_is_inside()
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Aug(Gpa);
        rig.Block(Gpa);
        Assert.Equal(page.Value, rig.Must(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value).Rcx);
        Assert.Equal((ulong)PageType.NDA, rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, page.Value).Rcx);
        Assert.Equal(SeptState.FREE, rig.Entry(Gpa).State);
    }

    [Fact]
    [Trait("spec", "TC32")]
    public void TC32_A_vCPU_that_entered_before_the_track_must_leave_first()
    {
        using ModuleRig rig = Steps.Running(vcpus: 2);
        rig.Aug(Gpa);
        rig.EnterTd(0);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value, lp: 2);
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value, lp: 2);

        // Who enters after it does not count.
        rig.EnterTd(1);
        Assert.Equal(TdxStatus.TLB_TRACKING_NOT_DONE | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value, lp: 2));
        rig.Interrupt(0);
        rig.Must(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value, lp: 2);
    }

    [Fact]
    [Trait("spec", "TC33")]
    public void TC33_Even_unblocking_waits_for_a_track()
    {
        using ModuleRig rig = Steps.Running();
        rig.Aug(Gpa);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value);
        Assert.Equal(0xC000_0B08_0000_0092, rig.Ask(TdhLeaf.MEM_RANGE_UNBLOCK, Gpa, rig.Tdr.Value).Rax);
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value);
        rig.Must(TdhLeaf.MEM_RANGE_UNBLOCK, Gpa, rig.Tdr.Value);
    }

    [Fact]
    [Trait("spec", "TC34")]
    public void TC34_A_second_track_waits_for_who_entered_before_the_first()
    {
        using ModuleRig rig = Steps.Running();
        rig.EnterTd(0);
        ulong epoch = rig.Td().Epoch;
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value, lp: 1);
        Assert.Equal(0x8000_0201_0000_0000, rig.Ask(TdhLeaf.MEM_TRACK, rig.Tdr.Value, lp: 1).Rax);
        Assert.Equal(epoch + 1, rig.Td().Epoch);
        rig.Interrupt(0);
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value, lp: 1);
    }

    [Fact]
    [Trait("spec", "TC35")]
    public void TC35_A_pending_page_is_pending_again_after_a_block()
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Aug(Gpa);
        rig.Block(Gpa);
        Assert.Equal(SeptState.PENDING_BLOCKED, rig.Entry(Gpa).State);
        rig.Must(TdhLeaf.MEM_RANGE_UNBLOCK, Gpa, rig.Tdr.Value);
        Assert.Equal((SeptState.PENDING, page), (rig.Entry(Gpa).State, rig.Entry(Gpa).Hpa));
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
    }

    [Fact]
    [Trait("spec", "TC36")]
    public void TC36_A_block_forgets_how_far_an_accept_had_come()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        Hpa page = rig.Aug(Gpa, 1);
        Vmcs vmcs = rig.EnterTd(0);

        // An interrupt stops the accept after its first page, and the guest would make the call again.
        rig.Lp(0).PendingInterrupt.Write(0x20);
        vmcs.State[Gpr.Rax] = (ulong)TdgLeaf.MEM_PAGE_ACCEPT;
        vmcs.State[Gpr.Rcx] = Gpa | 1;
        Assert.False(rig.Serve(0, new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 }).IsValid);
        rig.Lp(0).PendingInterrupt.Write(-1);
        rig.Interrupt(0);
        Assert.NotEqual(0, rig.Entry(Gpa, Level.M2).AcceptedPages);

        rig.Block(Gpa | 1);
        rig.Must(TdhLeaf.MEM_RANGE_UNBLOCK, Gpa | 1, rig.Tdr.Value);
        Assert.Equal(0, rig.Entry(Gpa, Level.M2).AcceptedPages);
        for (ulong i = 0; i < 512; i++)
            rig.Machine.Memory.Word(page.Value + (i << 12)) = ~i;
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa | 1));
        for (ulong i = 0; i < 512; i++)
            Assert.Equal(0UL, rig.Machine.Memory.Word(page.Value + (i << 12)));
    }

    [Theory]
    [InlineData(SeptState.PENDING)]
    [InlineData(SeptState.MAPPED)]
    [InlineData(SeptState.PENDING_BLOCKED)]
    [InlineData(SeptState.BLOCKED)]
    [InlineData(SeptState.NL_MAPPED)]
    [InlineData(SeptState.NL_BLOCKED)]
    [Trait("spec", "TC37")]
    public void TC37_A_table_that_is_not_empty_stays(SeptState child)
    {
        bool tables = child is SeptState.NL_MAPPED or SeptState.NL_BLOCKED;
        using ModuleRig rig = Steps.Running(lowestTable: tables ? 2 : 1);
        Level parent = tables ? Level.G1 : Level.M2;
        ulong last = tables ? Gpa + (511UL << 21) : Gpa + (511UL << 12);
        if (tables)
            rig.Must(TdhLeaf.MEM_SEPT_ADD, last | 1, rig.Tdr.Value, rig.Page().Value);
        else
            rig.Aug(last);
        if (child is SeptState.MAPPED or SeptState.BLOCKED)
        {
            rig.EnterTd(0);
            Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, last));
            rig.Interrupt(0);
        }

        if (child is SeptState.PENDING_BLOCKED or SeptState.BLOCKED or SeptState.NL_BLOCKED)
            rig.Must(TdhLeaf.MEM_RANGE_BLOCK, last | (tables ? 1UL : 0), rig.Tdr.Value);
        Assert.Equal(child, rig.Entry(last, parent.Down).State);
        rig.Block(Gpa | (uint)parent.Tdx);
        Assert.Equal(TdxStatus.EPT_PAGE_NOT_FREE | OperandId.RCX, rig.Call(TdhLeaf.MEM_SEPT_REMOVE, Gpa | (uint)parent.Tdx, rig.Tdr.Value));
        Assert.Equal(SeptState.NL_BLOCKED, rig.Entry(Gpa, parent).State);
    }

    [Fact]
    [Trait("spec", "TC38")]
    public void TC38_Below_a_blocked_table_the_walk_fails_at_the_table()
    {
        using ModuleRig rig = Steps.Running();
        rig.Aug(Gpa);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa | 1, rig.Tdr.Value);
        SeamRegisters answer = rig.Ask(TdhLeaf.MEM_SEPT_RD, Gpa, rig.Tdr.Value);
        Assert.Equal(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, answer.Status);
        Assert.Equal(0x8101UL, answer.Rdx);
        Assert.Equal(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa + 0x1000, rig.Tdr.Value, rig.Page().Value));
    }
}
