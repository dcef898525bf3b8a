using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>Lines 1 to 8 of the checklist: dispatcher and bring-up (tdx-module 1.3, 2).</summary>
public sealed class BringUpChecklist
{
    private const ulong Gib = 1UL << 30;

    [Fact]
    [Trait("spec", "TC01")]
    public void TC01_Memory_leaves_before_the_system_is_ready_are_not_ready()
    {
        TdhLeaf[] leaves = [.. Enum.GetValues<TdhLeaf>().Where(leaf => leaf.ToString().StartsWith("MEM_", StringComparison.Ordinal))];
        Assert.Equal(14, leaves.Length);
        using ModuleRig rig = new(bringUp: false);
        AssertNotReady("before SYS.INIT");
        rig.Must(TdhLeaf.SYS_INIT);
        AssertNotReady("after SYS.INIT");
        for (int i = 0; i < rig.Machine.Processors.Count; i++)
            rig.Must(TdhLeaf.SYS_LP_INIT, lp: i);
        AssertNotReady("after LP.INIT");
        rig.Must(TdhLeaf.SYS_CONFIG, rig.WriteTdmrs().Value, (ulong)rig.Machine.Description.Tdmrs.Count, 16);
        AssertNotReady("after SYS.CONFIG");
        rig.Must(TdhLeaf.SYS_KEY_CONFIG);
        AssertNotReady("with the key of one package");
        rig.Must(TdhLeaf.SYS_KEY_CONFIG, lp: rig.Machine.Processors.Count - 1);
        Assert.DoesNotContain(leaves, leaf => rig.Call(leaf) == TdxStatus.SYS_NOT_READY);

        void AssertNotReady(string when)
        {
            foreach (TdhLeaf leaf in leaves)
                Assert.True(rig.Call(leaf) == TdxStatus.SYS_NOT_READY, $"{leaf} {when}");
        }
    }

    [Fact]
    [Trait("spec", "TC02")]
    public void TC02_An_unknown_leaf_of_a_ready_system_is_an_invalid_RAX()
    {
        using ModuleRig rig = new();
        HashSet<ushort> known = [.. Enum.GetValues<TdhLeaf>().Select(leaf => (ushort)leaf)];
        for (ushort number = 0; number < 200; number++)
        {
            // Leaves of migration, service TDs and L2 VMs are unknown to a module without them.
            if (!known.Contains(number))
                Assert.Equal(0xC000_0100_0000_0000, rig.Raw(0, new SeamRegisters { Rax = number }).Rax);
        }

        Assert.Equal(0xC000_0100_0000_0000, rig.Raw(0, new SeamRegisters { Rax = 0xFFFF }).Rax);
    }

    [Fact]
    [Trait("spec", "TC03")]
    public void TC03_AUG_has_no_version_1()
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Page();
        Assert.Equal(0xC000_0100_0000_0000, rig.Ask(TdhLeaf.MEM_PAGE_AUG, Steps.Gpa, rig.Tdr.Value, page.Value, version: 1).Rax);
        rig.Must(TdhLeaf.MEM_PAGE_AUG, Steps.Gpa, rig.Tdr.Value, page.Value);
    }

    [Fact]
    [Trait("spec", "TC04")]
    public void TC04_Configuration_before_every_processor_is_initialised_is_not_pending()
    {
        using ModuleRig rig = new(bringUp: false);
        rig.Must(TdhLeaf.SYS_INIT);
        ulong array = rig.WriteTdmrs().Value;
        ulong count = (ulong)rig.Machine.Description.Tdmrs.Count;
        for (int i = 0; i < rig.Machine.Processors.Count; i++)
        {
            Assert.Equal(TdxStatus.SYS_CONFIG_NOT_PENDING, rig.Call(TdhLeaf.SYS_CONFIG, array, count, 16));
            rig.Must(TdhLeaf.SYS_LP_INIT, lp: i);
        }

        rig.Must(TdhLeaf.SYS_CONFIG, array, count, 16);
        Assert.Equal(TdxStatus.SYS_CONFIG_NOT_PENDING, rig.Call(TdhLeaf.SYS_CONFIG, array, count, 16));
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(1, 0)]
    [InlineData(1, 1)]
    [InlineData(0, 2)]
    [Trait("spec", "TC05")]
    public void TC05_A_PAMT_area_one_page_short_is_invalid_by_TDMR_and_level(int tdmr, int level)
    {
        using ModuleRig rig = Steps.Configurable();
        ulong array = rig.WriteTdmrs().Value;
        ulong count = (ulong)rig.Machine.Description.Tdmrs.Count;
        ref ulong size = ref rig.Machine.Memory.Word(rig.Machine.Memory.Word(array + ((ulong)tdmr * 8)) + 56 - ((ulong)level * 16));
        size -= 4096;
        Assert.Equal(TdxStatus.INVALID_PAMT.Value | (uint)tdmr | ((uint)level << 8), rig.Ask(TdhLeaf.SYS_CONFIG, array, count, 16).Rax);
        size += 4096;
        rig.Must(TdhLeaf.SYS_CONFIG, array, count, 16);
    }

    [Fact]
    [Trait("spec", "TC06")]
    public void TC06_A_processor_is_initialised_once()
    {
        using ModuleRig rig = new(bringUp: false);
        rig.Must(TdhLeaf.SYS_INIT);
        rig.Must(TdhLeaf.SYS_LP_INIT, lp: 1);
        Assert.Equal(TdxStatus.SYS_LP_INIT_DONE, rig.Call(TdhLeaf.SYS_LP_INIT, lp: 1));
        rig.Must(TdhLeaf.SYS_LP_INIT, lp: 0);
    }

    [Fact]
    [Trait("spec", "TC07")]
    public void TC07_A_GiB_takes_256_calls_and_RDX_moves_with_the_last()
    {
        using ModuleRig rig = Partly(out ulong start);
        for (int i = 1; i <= 256; i++)
            Assert.Equal(i < 256 ? start : start + Gib, rig.Must(TdhLeaf.SYS_TDMR_INIT, start).Rdx);
        Assert.Equal(TdxStatus.TDMR_ALREADY_INITIALIZED, rig.Call(TdhLeaf.SYS_TDMR_INIT, start));
    }

    [Fact]
    [Trait("spec", "TC08")]
    public void TC08_A_page_of_a_partly_initialised_GiB_is_out_of_range()
    {
        using ModuleRig rig = Partly(out ulong start);
        for (int i = 0; i < 256; i++)
        {
            Assert.Equal(TdxStatus.OPERAND_ADDR_RANGE_ERROR | OperandId.RCX, rig.Call(TdhLeaf.MNG_CREATE, start, 17));
            rig.Must(TdhLeaf.SYS_TDMR_INIT, start);
        }

        rig.Must(TdhLeaf.MNG_CREATE, start + 0x10_0000, 17);
        Assert.Equal(TdxStatus.OPERAND_ADDR_RANGE_ERROR | OperandId.RCX, rig.Call(TdhLeaf.MNG_CREATE, start + Gib, 18));
    }

    // Everything but SYS.TDMR.INIT is done, whose calls cover as much as the real module's.
    private static ModuleRig Partly(out ulong start)
    {
        ModuleRig rig = Steps.Configurable(new TdxModuleOptions());
        rig.Must(TdhLeaf.SYS_CONFIG, rig.WriteTdmrs().Value, (ulong)rig.Machine.Description.Tdmrs.Count, 16);
        rig.OnEachPackage(lp => rig.Must(TdhLeaf.SYS_KEY_CONFIG, lp: lp));
        start = rig.Machine.Description.Tdmrs[0].Range.Base;
        return rig;
    }
}
