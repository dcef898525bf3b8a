using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam;

/// <summary>Bring-up in right and wrong orders (tdx-module 2), and what only one of the two profiles allows.</summary>
public sealed class BringUpTests
{
    [Fact]
    [Trait("spec", "TC01")]
    [Trait("spec", "TC02")]
    public void An_unknown_leaf_is_not_ready_before_the_system_is_and_invalid_afterwards()
    {
        using ModuleRig rig = new(bringUp: false);
        Assert.Equal(TdxStatus.SYS_NOT_READY, rig.Call((TdhLeaf)500));
        Assert.Equal(TdxStatus.SYS_NOT_READY, rig.Call(TdhLeaf.MEM_PAGE_AUG));
        rig.BringUp();
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RAX, rig.Call((TdhLeaf)500));
        Assert.Equal(SystemState.SYS_READY, rig.Module.State);
    }

    [Fact]
    [Trait("spec", "TC03")]
    public void A_version_that_a_leaf_does_not_have_is_invalid()
    {
        using ModuleRig rig = new();
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RAX, rig.Call(TdhLeaf.MEM_PAGE_AUG, version: 1));
    }

    [Fact]
    [Trait("spec", "TC04")]
    [Trait("spec", "TC06")]
    [Trait("spec", "B12")]
    public void Configuration_waits_for_every_processor_of_the_real_module_and_for_the_online_ones_of_the_documents()
    {
        using ModuleRig real = new(BehaviourProfile.Tdx15, bringUp: false);
        using ModuleRig documented = new(BehaviourProfile.Documented, bringUp: false);
        foreach (ModuleRig rig in (ModuleRig[])[real, documented])
        {
            rig.Lp(rig.Machine.Processors.Count - 1).VmxOn = false;
            rig.Must(TdhLeaf.SYS_INIT);
            for (int i = 0; i < rig.Machine.Processors.Count - 1; i++)
                rig.Must(TdhLeaf.SYS_LP_INIT, lp: i);
            Assert.Equal(TdxStatus.SYS_LP_INIT_DONE, rig.Call(TdhLeaf.SYS_LP_INIT));
        }

        int late = real.Machine.Processors.Count - 1;
        ulong tdmrs = (ulong)real.Machine.Description.Tdmrs.Count;
        Assert.Equal(TdxStatus.SYS_CONFIG_NOT_PENDING, real.Call(TdhLeaf.SYS_CONFIG, real.WriteTdmrs().Value, tdmrs, 16));
        documented.Must(TdhLeaf.SYS_CONFIG, documented.WriteTdmrs().Value, tdmrs, 16);
        documented.Lp(late).VmxOn = true;
        documented.Must(TdhLeaf.SYS_LP_INIT, lp: late);
    }

    [Fact]
    [Trait("spec", "TC05")]
    public void A_PAMT_area_one_page_short_is_refused_by_TDMR_and_level()
    {
        using ModuleRig rig = new(bringUp: false);
        rig.Must(TdhLeaf.SYS_INIT);
        for (int i = 0; i < rig.Machine.Processors.Count; i++)
            rig.Must(TdhLeaf.SYS_LP_INIT, lp: i);
        Hpa array = rig.WriteTdmrs();
        ulong second = rig.Machine.Memory.Word(array.Value + 8);
        rig.Machine.Memory.Word(second + 56) -= 4096;
        TdxStatus status = rig.Call(TdhLeaf.SYS_CONFIG, array.Value, (ulong)rig.Machine.Description.Tdmrs.Count, 16);
        Assert.Equal(TdxStatus.INVALID_PAMT.Value | 1, status.Value);
        rig.Machine.Memory.Word(second + 56) += 4096;
        rig.Must(TdhLeaf.SYS_CONFIG, array.Value, (ulong)rig.Machine.Description.Tdmrs.Count, 16);
    }

    [Fact]
    [Trait("spec", "TC07")]
    [Trait("spec", "TC08")]
    public void A_GiB_is_usable_only_when_its_last_part_is_initialised()
    {
        using ModuleRig rig = new(options: new TdxModuleOptions { TdmrInitPages = 1024 }, bringUp: false);
        rig.Must(TdhLeaf.SYS_INIT);
        for (int i = 0; i < rig.Machine.Processors.Count; i++)
            rig.Must(TdhLeaf.SYS_LP_INIT, lp: i);
        rig.Must(TdhLeaf.SYS_CONFIG, rig.WriteTdmrs().Value, (ulong)rig.Machine.Description.Tdmrs.Count, 16);
        rig.OnEachPackage(lp => rig.Must(TdhLeaf.SYS_KEY_CONFIG, lp: lp));
        ulong start = rig.Machine.Description.Tdmrs[0].Range.Base;
        for (int i = 1; i <= 256; i++)
        {
            Assert.Null(rig.Module.Pamt(new Hpa(start)));
            Assert.Equal(TdxStatus.OPERAND_ADDR_RANGE_ERROR | OperandId.RCX, rig.Call(TdhLeaf.MNG_CREATE, start, 17));
            Assert.Equal(i < 256 ? start : start + (1UL << 30), rig.Must(TdhLeaf.SYS_TDMR_INIT, start).Rdx);
        }

        Assert.Equal(TdxStatus.TDMR_ALREADY_INITIALIZED, rig.Call(TdhLeaf.SYS_TDMR_INIT, start));
        rig.Must(TdhLeaf.MNG_CREATE, rig.Page().Value, 17);
    }

    [Fact]
    [Trait("spec", "B13")]
    public void Topology_enumeration_and_VP_INIT_version_1_belong_to_the_documented_profile()
    {
        using ModuleRig documented = new(BehaviourProfile.Documented);
        documented.BuildTd(vcpus: 0);
        documented.AddVcpu(0, version: 1);
        Assert.Equal(1UL << 20, documented.Must(TdhLeaf.SYS_RD, rdx: 0x0A00000300000008).R8 & (1UL << 20));

        using ModuleRig real = new(BehaviourProfile.Tdx15);
        Assert.Equal(0UL, real.Must(TdhLeaf.SYS_RD, rdx: 0x0A00000300000008).R8 & (1UL << 20));
        Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.RAX, real.Call(TdhLeaf.VP_INIT, version: 1));
    }

    [Fact]
    public void The_fields_of_the_system_can_be_read_from_first_to_last()
    {
        using ModuleRig rig = new();
        SeamRegisters at = rig.Raw(0, SeamRegisters.Call(TdhLeaf.SYS_RD, rdx: ulong.MaxValue));
        Assert.Equal(TdxStatus.METADATA_FIRST_FIELD_ID_IN_CONTEXT, at.Status);
        Assert.Equal(0x0000000200000000UL, at.Rdx);
        int read = 0;
        for (; at.Rdx != ulong.MaxValue; read++)
            at = rig.Must(TdhLeaf.SYS_RD, rdx: at.Rdx);
        Assert.Equal(354, read);
        Assert.Equal(64UL, rig.Must(TdhLeaf.SYS_RD, rdx: 0x9100000100000008).R8);
        Assert.Equal(16UL, rig.Must(TdhLeaf.SYS_RD, rdx: 0x9100000100000010).R8);
        Assert.Equal(TdxStatus.METADATA_FIELD_ID_INCORRECT, rig.Call(TdhLeaf.SYS_RD, rdx: 0x9100000100000018));
    }

    [Fact]
    public void A_processor_outside_VMX_operation_gets_what_Linux_makes_of_an_undefined_opcode()
    {
        using ModuleRig rig = new();
        rig.Lp(1).VmxOn = false;
        Assert.Equal("TDX_SEAMCALL_UD", rig.Call(TdhLeaf.SYS_LP_SHUTDOWN, lp: 1).ToString());
    }

    [Theory]
    [InlineData(0x8000020000000092, "TDX_OPERAND_BUSY | OPERAND_ID_SEPT_TREE", true)]
    [InlineData(0x8000020100000000, "TDX_PREVIOUS_TLB_EPOCH_BUSY", false)]
    [InlineData(0xC0000B0D00000001, "TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX", false)]
    [InlineData(0x00000B0A00000001, "TDX_PAGE_ALREADY_ACCEPTED | 0x1", false)]
    [InlineData(0x0000000000000000, "TDX_SUCCESS", false)]
    public void A_status_is_decoded_for_people(ulong value, string text, bool busy)
    {
        TdxStatus status = new(value);
        Assert.Equal(text, status.ToString());
        Assert.Equal(busy, status.IsBusy);
        Assert.Equal(value >> 63 != 0, status.IsError);
    }
}
