using Tdp.Module;
using Tdp.Tests.Unit.Seam.Checklist;

namespace Tdp.Tests.Unit.Seam;

/// <summary>What SYS.CONFIG says about PAMT areas and reserved areas: which TDMR, which level, which other TDMR (tdx-module 2.3, checks 4 to 8).</summary>
public sealed class SysConfigTests
{
    private const ulong Gib = 1UL << 30;

    // Offsets of the fields of TDMR_INFO.
    private const ulong Pamt1G = 16;
    private const ulong Pamt2M = 32;
    private const ulong Pamt4K = 48;

    [Theory]
    [InlineData(1, Pamt4K, 0, Pamt4K, 0, 0x00_00_01)]
    [InlineData(1, Pamt2M, 0, Pamt4K, 0, 0x00_01_01)]
    [InlineData(1, Pamt1G, 0, Pamt4K, 0, 0x00_02_01)]
    [InlineData(1, Pamt2M, 1, Pamt4K, 0, 0x01_00_01)]
    [InlineData(1, Pamt1G, 1, Pamt2M, 0, 0x01_01_01)]
    [InlineData(0, Pamt1G, 0, Pamt4K, 0x10000, 0x00_00_00)]
    public void A_PAMT_over_another_names_both_TDMRs_and_the_level(int tdmr, ulong field, int otherTdmr, ulong otherField, ulong offset, uint details)
    {
        using ModuleRig rig = Steps.Configurable();
        ulong array = rig.WriteTdmrs().Value;
        Field(rig, array, tdmr, field) = Field(rig, array, otherTdmr, otherField) + offset;
        Assert.Equal(TdxStatus.PAMT_OVERLAP.Value | details, Configure(rig, array));
    }

    [Theory]
    [InlineData(0, Pamt4K, 0, 0x00_00_00)]
    [InlineData(1, Pamt2M, 0, 0x00_01_01)]
    [InlineData(0, Pamt2M, 1, 0x01_01_00)]
    public void A_PAMT_over_memory_of_a_TDMR_names_whose_PAMT_lies_in_whose_memory(int tdmr, ulong field, int memoryOf, uint details)
    {
        using ModuleRig rig = Steps.Configurable();
        ulong array = rig.WriteTdmrs().Value;
        Field(rig, array, tdmr, field) = rig.Machine.Description.Tdmrs[memoryOf].Range.Base + 0x1000;
        Assert.Equal(TdxStatus.PAMT_OVERLAP.Value | details, Configure(rig, array));
    }

    [Theory]
    [InlineData(Pamt4K, 0)]
    [InlineData(Pamt2M, 1)]
    [InlineData(Pamt1G, 2)]
    public void A_PAMT_outside_convertible_memory_names_its_level(ulong field, uint level)
    {
        using ModuleRig rig = Steps.Configurable();
        ulong array = rig.WriteTdmrs().Value;
        Field(rig, array, 1, field) = Gib;
        Assert.Equal(TdxStatus.PAMT_OUTSIDE_CMRS.Value | (level << 8) | 1, Configure(rig, array));
    }

    [Fact]
    public void A_reserved_area_that_wraps_around_is_invalid_before_it_is_out_of_order()
    {
        using ModuleRig rig = Steps.Configurable();
        ulong array = rig.WriteTdmrs().Value;
        Field(rig, array, 1, 80) = 0x1000;
        Field(rig, array, 1, 88) = ulong.MaxValue & ~0xFFFUL;
        Assert.Equal(TdxStatus.INVALID_RESERVED_IN_TDMR.Value | (1u << 8) | 1, Configure(rig, array));
        Field(rig, array, 1, 88) = 0x1000;
        Assert.Equal(TdxStatus.NON_ORDERED_RESERVED_IN_TDMR.Value | (1u << 8) | 1, Configure(rig, array));
    }

    private static ref ulong Field(ModuleRig rig, ulong array, int tdmr, ulong offset) =>
        ref rig.Machine.Memory.Word(rig.Machine.Memory.Word(array + ((ulong)tdmr * 8)) + offset);

    private static ulong Configure(ModuleRig rig, ulong array) => rig.Ask(TdhLeaf.SYS_CONFIG, array, (ulong)rig.Machine.Description.Tdmrs.Count, 16).Rax;
}
