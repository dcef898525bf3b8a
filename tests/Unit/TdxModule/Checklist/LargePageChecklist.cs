using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>Lines 39 to 45: promotion, demotion, relocation, and what the host may read (tdx-module 5.7, 5.8).</summary>
public sealed class LargePageChecklist
{
    private const ulong Gpa = Steps.Gpa;

    [Fact]
    [Trait("spec", "TC39")]
    public void TC39_One_pending_page_among_accepted_ones_forbids_the_promotion_and_unlocks_all()
    {
        using ModuleRig rig = Steps.Running();
        rig.AugConsecutive(i => i != 300);
        rig.Block(Gpa | 1);
        Assert.Equal(TdxStatus.EPT_INVALID_PROMOTE_CONDITIONS | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_PROMOTE, Gpa | 1, rig.Tdr.Value));
        for (int i = 0; i < 512; i++)
            Assert.Equal(0UL, rig.Word(Gpa + ((ulong)i << 12)) & (1UL << 11));
        Assert.Equal(SeptState.NL_BLOCKED, rig.Entry(Gpa, Level.M2).State);
    }

    [Fact]
    [Trait("spec", "TC40")]
    public void TC40_512_pending_pages_become_one_pending_large_page()
    {
        using ModuleRig rig = Steps.Running();
        Hpa large = rig.AugConsecutive(_ => false);
        Hpa table = rig.Entry(Gpa, Level.M2).Hpa;
        long children = rig.Td().ChildCount;
        rig.Block(Gpa | 1);
        Assert.Equal(table.Value, rig.Must(TdhLeaf.MEM_PAGE_PROMOTE, Gpa | 1, rig.Tdr.Value).Rcx);
        SeptView leaf = rig.Entry(Gpa, Level.M2);
        Assert.Equal((SeptState.PENDING, large, Level.M2), (leaf.State, leaf.Hpa, leaf.Level));
        Assert.Equal(children - 1, rig.Td().ChildCount);
        SeamRegisters metadata = rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, large.Value);
        Assert.Equal(((ulong)PageType.REG, rig.Tdr.Value, 1UL), (metadata.Rcx, metadata.Rdx, metadata.R8));
        Assert.Equal((ulong)PageType.NDA, rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, table.Value).Rcx);
    }

    [Fact]
    [Trait("spec", "TC41")]
    public void TC41_A_blocked_pending_large_page_becomes_512_pending_pages()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        Hpa large = rig.Aug(Gpa, 1);
        long children = rig.Td().ChildCount;
        Hpa table = rig.Page();
        rig.Block(Gpa | 1);
        rig.Must(TdhLeaf.MEM_PAGE_DEMOTE, Gpa | 1, rig.Tdr.Value, table.Value);
        Assert.Equal((SeptState.NL_MAPPED, table), (rig.Entry(Gpa, Level.M2).State, rig.Entry(Gpa, Level.M2).Hpa));
        Assert.Equal(children + 1, rig.Td().ChildCount);
        for (ulong i = 0; i < 512; i++)
        {
            SeptView child = rig.Entry(Gpa + (i << 12));
            Assert.Equal((SeptState.PENDING, new Hpa(large.Value + (i << 12))), (child.State, child.Hpa));
            Assert.Equal(((ulong)PageType.REG, 0UL), (rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, child.Hpa.Value).Rcx, rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, child.Hpa.Value).R8));
        }
    }

    [Fact]
    [Trait("spec", "TC42")]
    public void TC42_A_page_does_not_move_to_where_it_is()
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Aug(Gpa);
        rig.Block(Gpa);
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.R8, rig.Call(TdhLeaf.MEM_PAGE_RELOCATE, Gpa, rig.Tdr.Value, page.Value));
    }

    [Fact]
    [Trait("spec", "TC43")]
    public void TC43_A_blocked_page_moves_with_its_content_and_is_mapped_again()
    {
        using ModuleRig rig = Steps.Running();
        Hpa old = rig.Aug(Gpa);
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        rig.Interrupt(0);
        new Random(43).NextBytes(rig.Machine.Memory.Frame(old));
        byte[] content = rig.Machine.Memory.Frame(old).ToArray();
        Hpa target = rig.Page();
        rig.Block(Gpa);
        Assert.Equal(old.Value, rig.Must(TdhLeaf.MEM_PAGE_RELOCATE, Gpa, rig.Tdr.Value, target.Value).Rcx);
        Assert.Equal((SeptState.MAPPED, target), (rig.Entry(Gpa).State, rig.Entry(Gpa).Hpa));
        Assert.Equal(content, rig.Machine.Memory.Frame(target).ToArray());
        Assert.Equal(PageType.NDA, rig.Module.Pamt(old)!.Value.Type);
    }

    [Fact]
    [Trait("spec", "TC44")]
    public void TC44_A_part_of_a_large_page_is_not_removed()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        rig.Aug(Gpa, 1);
        SeamRegisters answer = rig.Ask(TdhLeaf.MEM_PAGE_REMOVE, Gpa + 0x3000, rig.Tdr.Value);
        Assert.Equal(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, answer.Status);
        Assert.Equal(1UL, answer.Rdx & 7);
    }

    [Fact]
    [Trait("spec", "TC45")]
    public void TC45_The_host_reads_accepted_pages_of_debug_TDs_only()
    {
        using ModuleRig production = Steps.Running();
        production.Aug(Gpa);
        Assert.Equal(TdxStatus.TD_NON_DEBUG, production.Call(TdhLeaf.MEM_RD, Gpa, production.Tdr.Value));

        using ModuleRig debug = Steps.Running(attributes: 1);
        Hpa page = debug.Aug(Gpa);
        Assert.Equal(TdxStatus.EPT_ENTRY_NOT_PRESENT | OperandId.RCX, debug.Call(TdhLeaf.MEM_RD, Gpa, debug.Tdr.Value));
        debug.EnterTd(0);
        Assert.Equal(TdxStatus.SUCCESS, debug.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        debug.Machine.Memory.Word(page.Value + 8) = 0x1234;
        Assert.Equal(0x1234UL, debug.Must(TdhLeaf.MEM_RD, Gpa + 8, debug.Tdr.Value, lp: 1).R8);
    }
}
