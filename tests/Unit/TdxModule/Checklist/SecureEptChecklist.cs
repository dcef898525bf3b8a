using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>Lines 15 to 28: how pages come into a TD, and their first block (tdx-module 5.3 to 5.9).</summary>
public sealed class SecureEptChecklist
{
    private const ulong Gpa = Steps.Gpa;

    [Fact]
    [Trait("spec", "TC15")]
    public void TC15_Tables_of_every_level_and_a_page_build_a_TD_and_count_one_each()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        long children = rig.Td().ChildCount;
        for (int level = 3; level >= 1; level--)
        {
            ulong start = Gpa & ~((1UL << (12 + (9 * level))) - 1);
            rig.Must(TdhLeaf.MEM_SEPT_ADD, start | (uint)level, rig.Tdr.Value, rig.Page().Value);
            Assert.Equal(++children, rig.Td().ChildCount);
        }

        rig.Must(TdhLeaf.MEM_PAGE_ADD, Gpa, rig.Tdr.Value, rig.Page().Value, rig.Page().Value);
        Assert.Equal(children + 1, rig.Td().ChildCount);
        Assert.Equal((SeptState.MAPPED, Level.K4), (rig.Entry(Gpa).State, rig.Entry(Gpa).Level));
    }

    [Fact]
    [Trait("spec", "TC16")]
    public void TC16_Nothing_is_added_to_a_finalised_TD()
    {
        using ModuleRig rig = Steps.Running();
        Assert.Equal(TdxStatus.OP_STATE_INCORRECT, rig.Call(TdhLeaf.MEM_PAGE_ADD, Gpa, rig.Tdr.Value, rig.Page().Value, rig.Page().Value));
        Assert.Equal(SeptState.FREE, rig.Entry(Gpa).State);
    }

    [Fact]
    [Trait("spec", "TC17")]
    public void TC17_A_page_may_be_augmented_before_the_TD_is_finalised()
    {
        using ModuleRig rig = Steps.Initialized();
        Hpa page = rig.Aug(Gpa);
        Assert.Equal((SeptState.PENDING, page), (rig.Entry(Gpa).State, rig.Entry(Gpa).Hpa));
    }

    [Fact]
    [Trait("spec", "TC18")]
    public void TC18_Only_4_KiB_pages_are_added()
    {
        using ModuleRig rig = Steps.Initialized(lowestTable: 2);
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_ADD, Gpa | 1, rig.Tdr.Value, rig.LargePage().Value, rig.LargePage().Value));
    }

    [Theory]
    [InlineData(4UL, 0x1EUL, 47)]
    [InlineData(5UL, 0x26UL, 51)]
    [Trait("spec", "TC19")]
    public void TC19_A_shared_address_is_no_private_one(ulong flags, ulong eptp, int sharedBit)
    {
        using ModuleRig rig = new();
        rig.BuildTd(flags: flags, eptp: eptp);
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa | (1UL << sharedBit), rig.Tdr.Value, rig.Page().Value));
        Assert.Equal(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa | (1UL << (sharedBit - 1)), rig.Tdr.Value, rig.Page().Value));
    }

    [Fact]
    [Trait("spec", "TC20")]
    public void TC20_A_large_page_is_aligned_on_both_sides()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        Hpa page = rig.LargePage();
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RCX, rig.Call(TdhLeaf.MEM_PAGE_AUG, (Gpa + 0x1000) | 1, rig.Tdr.Value, page.Value));
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.R8, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa | 1, rig.Tdr.Value, page.Value + 0x1000));
        rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa | 1, rig.Tdr.Value, page.Value);
    }

    [Theory]
    [InlineData(4)]
    [InlineData(3)]
    [InlineData(2)]
    [Trait("spec", "TC21")]
    public void TC21_Without_a_table_the_walk_fails_at_the_free_entry(int lowestTable)
    {
        using ModuleRig rig = Steps.Running(lowestTable: lowestTable);
        SeamRegisters answer = rig.Ask(TdhLeaf.MEM_PAGE_AUG, Gpa, rig.Tdr.Value, rig.Page().Value);
        Assert.Equal(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, answer.Status);
        Assert.Equal((1UL << 63, (ulong)lowestTable - 1), (answer.Rcx, answer.Rdx));
    }

    [Fact]
    [Trait("spec", "TC22")]
    public void TC22_A_mapped_entry_is_in_the_wrong_state_for_another_page()
    {
        using ModuleRig rig = Steps.Initialized();
        rig.Must(TdhLeaf.MEM_PAGE_ADD, Gpa, rig.Tdr.Value, rig.Page().Value, rig.Page().Value);
        SeamRegisters answer = rig.Ask(TdhLeaf.MEM_PAGE_AUG, Gpa, rig.Tdr.Value, rig.Page().Value);
        Assert.Equal(TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, answer.Status);
        Assert.Equal(0x400UL, answer.Rdx);
    }

    [Fact]
    [Trait("spec", "TC23")]
    public void TC23_A_large_page_has_no_used_page_in_it()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        rig.AddTables(Gpa + Steps.LargeBytes);
        Hpa large = rig.LargePage();
        rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa + Steps.LargeBytes, rig.Tdr.Value, large.Value + 0x1F_F000);
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa | 1, rig.Tdr.Value, large.Value));
        rig.Block(Gpa + Steps.LargeBytes);
        rig.Must(TdhLeaf.MEM_PAGE_REMOVE, Gpa + Steps.LargeBytes, rig.Tdr.Value);
        rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa | 1, rig.Tdr.Value, large.Value);
    }

    [Fact]
    [Trait("spec", "TC24")]
    public void TC24_A_page_inside_a_large_one_is_not_free()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        rig.AddTables(Gpa + Steps.LargeBytes);
        Hpa large = rig.Aug(Gpa, 1);
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa + Steps.LargeBytes, rig.Tdr.Value, large.Value + 0x1_2000));
    }

    [Fact]
    [Trait("spec", "TC25")]
    public void TC25_A_page_is_mapped_once()
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Aug(Gpa);
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa + 0x1000, rig.Tdr.Value, page.Value));
        Assert.Equal(SeptState.FREE, rig.Entry(Gpa + 0x1000).State);
    }

    [Fact]
    [Trait("spec", "TC26")]
    public void TC26_A_large_page_counts_512()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        long children = rig.Td().ChildCount;
        rig.Aug(Gpa, 1);
        Assert.Equal(children + 512, rig.Td().ChildCount);
    }

    [Fact]
    [Trait("spec", "TC27")]
    public void TC27_A_second_table_is_refused_or_left_unused_when_existing_ones_are_allowed()
    {
        using ModuleRig rig = Steps.Running();
        Hpa spare = rig.Page();
        SeptView before = rig.Entry(Gpa, Level.M2);
        long children = rig.Td().ChildCount;
        Assert.Equal(TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, rig.Call(TdhLeaf.MEM_SEPT_ADD, Gpa | 1, rig.Tdr.Value, spare.Value));
        rig.Must(TdhLeaf.MEM_SEPT_ADD, Gpa | 1, rig.Tdr.Value | 1, spare.Value);
        Assert.Equal((before, children, PageType.NDA), (rig.Entry(Gpa, Level.M2), rig.Td().ChildCount, rig.Module.Pamt(spare)!.Value.Type));
    }

    [Fact]
    [Trait("spec", "TC28")]
    public void TC28_A_free_range_is_in_the_wrong_state_for_a_block_and_a_blocked_one_is_blocked_already()
    {
        using ModuleRig rig = Steps.Running();
        Assert.Equal(TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, rig.Call(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value));
        rig.Aug(Gpa);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value);
        Assert.Equal(0x0000_0B07_0000_0001UL, rig.Ask(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value).Rax);
    }
}
