using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>Lines 9 to 14, 49 to 51 and 61 to 66: a TD's beginning and end (tdx-module 3, 4).</summary>
public sealed class LifeCycleChecklist
{
    private const ulong Gpa = Steps.Gpa;

    [Fact]
    [Trait("spec", "TC09")]
    public void TC09_A_KeyID_in_use_is_not_free()
    {
        using ModuleRig rig = new();
        rig.Must(TdhLeaf.MNG_CREATE, rig.Page().Value, 17);
        Assert.Equal(TdxStatus.HKID_NOT_FREE, rig.Call(TdhLeaf.MNG_CREATE, rig.Page().Value, 17));

        // So is the module's own.
        Assert.Equal(TdxStatus.HKID_NOT_FREE, rig.Call(TdhLeaf.MNG_CREATE, rig.Page().Value, 16));
        rig.Must(TdhLeaf.MNG_CREATE, rig.Page().Value, 18);
    }

    [Fact]
    [Trait("spec", "TC10")]
    public void TC10_A_reserved_or_used_page_becomes_no_TDR()
    {
        using ModuleRig rig = Steps.Running();
        TdxStatus incorrect = TdxStatus.PAGE_METADATA_INCORRECT | OperandId.RCX;
        Hpa reserved = new(rig.Machine.Description.Tdmrs[0].Reserved[0].Base);
        Assert.Equal(PageType.RSVD, rig.Module.Pamt(reserved)!.Value.Type);
        Hpa[] used = [reserved, rig.Vcpus[0], rig.Aug(Gpa), new(rig.Td().Eptp & ~0xFFFUL)];
        Assert.All(used, page => Assert.Equal(incorrect, rig.Call(TdhLeaf.MNG_CREATE, page.Value, 18)));
        rig.Must(TdhLeaf.MNG_CREATE, rig.Page().Value, 18);
    }

    [Fact]
    [Trait("spec", "TC11")]
    public void TC11_Control_pages_wait_for_the_keys_of_every_package()
    {
        using ModuleRig rig = new();
        Hpa tdr = rig.Page();
        Hpa page = rig.Page();
        rig.Must(TdhLeaf.MNG_CREATE, tdr.Value, 17);
        Assert.Equal(TdxStatus.TD_KEYS_NOT_CONFIGURED, rig.Call(TdhLeaf.MNG_ADDCX, page.Value, tdr.Value));
        rig.Must(TdhLeaf.MNG_KEY_CONFIG, tdr.Value, lp: 0);
        Assert.Equal(TdxStatus.TD_KEYS_NOT_CONFIGURED, rig.Call(TdhLeaf.MNG_ADDCX, page.Value, tdr.Value));
        rig.Must(TdhLeaf.MNG_KEY_CONFIG, tdr.Value, lp: rig.Machine.Processors.Count - 1);
        rig.Must(TdhLeaf.MNG_ADDCX, page.Value, tdr.Value);
    }

    [Fact]
    [Trait("spec", "TC12")]
    public void TC12_Five_control_pages_are_too_few()
    {
        using ModuleRig rig = WithKeys(out Hpa tdr);
        for (int i = 0; i < 5; i++)
        {
            rig.Must(TdhLeaf.MNG_ADDCX, rig.Page().Value, tdr.Value);
            Assert.Equal(TdxStatus.TDCS_NOT_ALLOCATED, rig.Call(TdhLeaf.MNG_INIT, tdr.Value, rig.Parameters().Value));
        }

        rig.Must(TdhLeaf.MNG_ADDCX, rig.Page().Value, tdr.Value);
        rig.Must(TdhLeaf.MNG_INIT, tdr.Value, rig.Parameters().Value);
    }

    [Fact]
    [Trait("spec", "TC13")]
    public void TC13_No_vCPUs_and_a_wide_GPA_over_four_levels_are_invalid_parameters()
    {
        using ModuleRig rig = WithControlPages(out Hpa tdr);
        Hpa parameters = rig.Parameters();
        rig.Machine.Memory.Word(parameters.Value + 16) = 0;
        Assert.Equal(0xC000_0100_0000_0044, rig.Ask(TdhLeaf.MNG_INIT, tdr.Value, parameters.Value).Rax);
        Assert.Equal(0xC000_0100_0000_0043, rig.Ask(TdhLeaf.MNG_INIT, tdr.Value, rig.Parameters(flags: 5, eptp: 0x1E).Value).Rax);
        rig.Must(TdhLeaf.MNG_INIT, tdr.Value, rig.Parameters(flags: 5, eptp: 0x26).Value);
    }

    [Fact]
    [Trait("spec", "TC14")]
    public void TC14_A_TD_is_initialised_once()
    {
        using ModuleRig rig = Steps.Initialized();
        Assert.Equal(TdxStatus.OP_STATE_INCORRECT, rig.Call(TdhLeaf.MNG_INIT, rig.Tdr.Value, rig.Parameters().Value));
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Assert.Equal(TdxStatus.OP_STATE_INCORRECT, rig.Call(TdhLeaf.MNG_INIT, rig.Tdr.Value, rig.Parameters().Value));
    }

    [Fact]
    [Trait("spec", "TC49")]
    public void TC49_A_TD_that_is_not_finalised_is_not_entered()
    {
        using ModuleRig rig = Steps.Initialized();
        Assert.Equal(TdxStatus.OP_STATE_INCORRECT, rig.Call(TdhLeaf.VP_ENTER, rig.Vcpus[0].Value));
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        rig.EnterTd(0);
    }

    [Fact]
    [Trait("spec", "TC50")]
    public void TC50_A_vCPU_belongs_to_one_processor_until_it_is_flushed_there()
    {
        using ModuleRig rig = Steps.Running();
        ulong vcpu = rig.Vcpus[0].Value;
        rig.EnterTd(0);
        rig.Interrupt(0);
        Assert.Equal(TdxStatus.VCPU_ASSOCIATED, rig.Call(TdhLeaf.VP_ENTER, vcpu, lp: 1));
        Assert.Equal(TdxStatus.VCPU_NOT_ASSOCIATED, rig.Call(TdhLeaf.VP_FLUSH, vcpu, lp: 1));
        rig.Must(TdhLeaf.VP_FLUSH, vcpu, lp: 0);
        rig.EnterTd(0, lp: 1);
        Assert.Equal(1, Assert.Single(rig.Module.Vcpus()).AssociatedLp);
    }

    [Fact]
    [Trait("spec", "TC51")]
    public void TC51_A_TD_without_vCPUs_is_not_finalised()
    {
        using ModuleRig rig = Steps.Initialized(vcpus: 0);
        Assert.Equal(TdxStatus.NO_VCPUS, rig.Call(TdhLeaf.MR_FINALIZE, rig.Tdr.Value));
        rig.AddVcpu(0);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
    }

    [Fact]
    [Trait("spec", "TC61")]
    public void TC61_A_KeyID_is_freed_after_the_write_back_of_every_package()
    {
        using ModuleRig rig = Steps.Running();
        int lastLp = rig.Machine.Processors.Count - 1;
        Assert.Equal(TdxStatus.NO_HKID_READY_TO_WBCACHE, rig.Call(TdhLeaf.PHYMEM_CACHE_WB));
        rig.Stop();
        Assert.Equal(TdxStatus.WBCACHE_NOT_COMPLETE, rig.Call(TdhLeaf.MNG_KEY_FREEID, rig.Tdr.Value));
        rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: 0);
        Assert.Equal(TdxStatus.WBCACHE_NOT_COMPLETE, rig.Call(TdhLeaf.MNG_KEY_FREEID, rig.Tdr.Value));
        rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: lastLp);
        rig.Must(TdhLeaf.MNG_KEY_FREEID, rig.Tdr.Value);
        Assert.Equal(TdxStatus.NO_HKID_READY_TO_WBCACHE, rig.Call(TdhLeaf.PHYMEM_CACHE_WB));
    }

    [Fact]
    [Trait("spec", "TC62")]
    public void TC62_The_flush_is_not_done_while_a_vCPU_is_associated()
    {
        using ModuleRig rig = Steps.Running(vcpus: 2);
        Assert.Equal(TdxStatus.FLUSHVP_NOT_DONE, rig.Call(TdhLeaf.MNG_VPFLUSHDONE, rig.Tdr.Value));
        rig.Must(TdhLeaf.VP_FLUSH, rig.Vcpus[0].Value, lp: 0);
        Assert.Equal(TdxStatus.FLUSHVP_NOT_DONE, rig.Call(TdhLeaf.MNG_VPFLUSHDONE, rig.Tdr.Value));
        rig.Must(TdhLeaf.VP_FLUSH, rig.Vcpus[1].Value, lp: 1);
        rig.Must(TdhLeaf.MNG_VPFLUSHDONE, rig.Tdr.Value);
    }

    [Fact]
    [Trait("spec", "TC63")]
    public void TC63_A_page_of_a_living_TD_is_described_and_not_reclaimed()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        Hpa page = rig.Aug(Gpa, 1);
        for (int stage = 0; stage < 2; stage++)
        {
            SeamRegisters answer = rig.Ask(TdhLeaf.PHYMEM_PAGE_RECLAIM, page.Value);
            Assert.Equal(TdxStatus.LIFECYCLE_STATE_INCORRECT, answer.Status);
            Assert.Equal(((ulong)PageType.REG, rig.Tdr.Value, 1UL), (answer.Rcx, answer.Rdx, answer.R8));
            if (stage == 0)
                rig.Stop();
        }

        rig.OnEachPackage(lp => rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: lp));
        rig.Must(TdhLeaf.MNG_KEY_FREEID, rig.Tdr.Value);
        rig.Must(TdhLeaf.PHYMEM_PAGE_RECLAIM, page.Value);
    }

    [Fact]
    [Trait("spec", "TC64")]
    public void TC64_The_root_page_is_reclaimed_last()
    {
        using ModuleRig rig = Steps.Running();
        rig.Stop(free: true);
        List<Hpa> pages = [];
        rig.Module.ForEachPamtEntry(new HpaRange(0, rig.Machine.Memory.Top), (Hpa page, in PamtView view) =>
        {
            if (view.Owner == rig.Tdr)
                pages.Add(page);
        });
        Assert.Equal(rig.Td().ChildCount, pages.Count);
        foreach (Hpa page in pages)
        {
            Assert.Equal(TdxStatus.TD_ASSOCIATED_PAGES_EXIST, rig.Call(TdhLeaf.PHYMEM_PAGE_RECLAIM, rig.Tdr.Value));
            rig.Must(TdhLeaf.PHYMEM_PAGE_RECLAIM, page.Value);
        }

        rig.Must(TdhLeaf.PHYMEM_PAGE_RECLAIM, rig.Tdr.Value);
        Assert.Empty(rig.Module.Tds());
    }

    [Fact]
    [Trait("spec", "TC65")]
    public void TC65_After_the_flush_every_memory_leaf_finds_no_keys()
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Aug(Gpa);
        rig.Stop();
        foreach (TdhLeaf leaf in Enum.GetValues<TdhLeaf>().Where(leaf => leaf.ToString().StartsWith("MEM_", StringComparison.Ordinal)))
        {
            ulong rcx = leaf == TdhLeaf.MEM_TRACK ? rig.Tdr.Value : Gpa;
            Assert.Equal((leaf, TdxStatus.TD_KEYS_NOT_CONFIGURED), (leaf, rig.Call(leaf, rcx, rig.Tdr.Value, page.Value, page.Value)));
        }
    }

    [Fact]
    [Trait("spec", "TC66")]
    public void TC66_A_page_in_use_is_not_written_back_alone()
    {
        using ModuleRig rig = Steps.Running();
        ulong key = 17UL << rig.Machine.Description.HkidShift;
        Hpa page = rig.Aug(Gpa);
        Assert.Equal(TdxStatus.PAGE_METADATA_INCORRECT | OperandId.RCX, rig.Call(TdhLeaf.PHYMEM_PAGE_WBINVD, page.Value | key));
        rig.Block(Gpa);
        rig.Must(TdhLeaf.MEM_PAGE_REMOVE, Gpa, rig.Tdr.Value);
        rig.Must(TdhLeaf.PHYMEM_PAGE_WBINVD, page.Value | key);
    }

    private static ModuleRig WithKeys(out Hpa tdr)
    {
        ModuleRig rig = new();
        Hpa page = rig.Page();
        rig.Must(TdhLeaf.MNG_CREATE, page.Value, 17);
        rig.OnEachPackage(lp => rig.Must(TdhLeaf.MNG_KEY_CONFIG, page.Value, lp: lp));
        tdr = page;
        return rig;
    }

    private static ModuleRig WithControlPages(out Hpa tdr)
    {
        ModuleRig rig = WithKeys(out tdr);
        for (int i = 0; i < 6; i++)
            rig.Must(TdhLeaf.MNG_ADDCX, rig.Page().Value, tdr.Value);
        return rig;
    }
}
