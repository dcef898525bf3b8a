using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam;

/// <summary>A processor remembers its last TD and its last walk; nobody may notice.</summary>
public sealed class RememberedWalkTests
{
    private const ulong Gpa = 0x4000_0000;
    private const ulong Second = Gpa + 0x1000;

    [Fact]
    [Trait("spec", "TC22")]
    public void A_blocked_table_ends_the_next_walk_of_a_processor_that_has_just_been_there()
    {
        using ModuleRig rig = Prepared();
        rig.Aug(Gpa);
        rig.Block(Gpa | 1);
        Assert.Equal(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, AugStatus(rig, Second));
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value);
        rig.Must(TdhLeaf.MEM_RANGE_UNBLOCK, Gpa | 1, rig.Tdr.Value);
        Assert.Equal(TdxStatus.SUCCESS, AugStatus(rig, Second));
    }

    [Fact]
    public void A_removed_table_is_not_written_through_a_remembered_walk()
    {
        using ModuleRig rig = Prepared();
        rig.Aug(Gpa);
        Remove(rig, Gpa);
        ulong table = Remove(rig, Gpa | 1, TdhLeaf.MEM_SEPT_REMOVE);
        ulong before = rig.Machine.Memory.Word(table + 8);
        Assert.Equal(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, AugStatus(rig, Second));
        Assert.Equal(before, rig.Machine.Memory.Word(table + 8));
        rig.Must(TdhLeaf.MEM_SEPT_ADD, Gpa | 1, rig.Tdr.Value, rig.Page().Value);
        Hpa page = rig.Aug(Second);
        Assert.Equal(page, EntryOf(rig, Second));
        Assert.Equal(before, rig.Machine.Memory.Word(table + 8));
    }

    [Fact]
    public void A_promoted_region_ends_the_next_walk_above_its_old_table()
    {
        using ModuleRig rig = Prepared();
        Hpa large = rig.LargePage();
        for (ulong i = 0; i < 512; i++)
            rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa + (i << 12), rig.Tdr.Value, large.Value + (i << 12));
        rig.EnterTd(0);
        for (ulong i = 0; i < 512; i++)
            Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa + (i << 12)));
        rig.Interrupt(0);
        rig.Block(Gpa | 1);
        rig.Must(TdhLeaf.MEM_PAGE_PROMOTE, Gpa | 1, rig.Tdr.Value);
        Assert.Equal(TdxStatus.EPT_WALK_FAILED | OperandId.RCX, AugStatus(rig, Second));
        rig.EnterTd(0);
        Assert.Equal(TdxStatus.PAGE_ALREADY_ACCEPTED | 1u, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Second));
    }

    [Fact]
    public void The_same_address_of_another_TD_is_another_walk()
    {
        using ModuleRig rig = Prepared();
        Hpa first = rig.Tdr;
        rig.Aug(Gpa);
        rig.BuildTd(hkid: 18);
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Hpa page = rig.Aug(Second);
        Assert.Equal(page, EntryOf(rig, Second));
        SeamRegisters other = rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_SEPT_RD, Second, first.Value));
        Assert.Equal(0UL, other.Rcx & Hpa.Mask);
    }

    private static ModuleRig Prepared()
    {
        ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        return rig;
    }

    private static TdxStatus AugStatus(ModuleRig rig, ulong gpa) => rig.Call(TdhLeaf.MEM_PAGE_AUG, gpa, rig.Tdr.Value, rig.Page().Value);

    private static Hpa EntryOf(ModuleRig rig, ulong gpa) => new(rig.Must(TdhLeaf.MEM_SEPT_RD, gpa, rig.Tdr.Value).Rcx & Hpa.Mask);

    private static ulong Remove(ModuleRig rig, ulong pageInfo, TdhLeaf leaf = TdhLeaf.MEM_PAGE_REMOVE)
    {
        rig.Block(pageInfo);
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value);
        return rig.Must(leaf, pageInfo, rig.Tdr.Value).Rcx;
    }
}
