using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>PROMOTE, DEMOTE and RELOCATE beyond the transition table: which children may be merged, interruption, competing locks, contents, stale epochs.</summary>
public sealed class SplitAndJoinTests
{
    private static readonly TdxStatus s_conditions = Statuses.Parse("EPT_INVALID_PROMOTE_CONDITIONS|RCX");
    private static readonly TdxStatus s_busy = Statuses.Parse("OPERAND_BUSY|RCX");

    // A free-running AUG or SEPT.ADD locks the entry of its 4 KiB page first and finds out afterwards that the page is part of a larger one. A DEMOTE that wrote over
    // that lock would hand the page to both.
    [Theory]
    [InlineData(SeptState.PENDING, 1)]
    [InlineData(SeptState.PENDING_BLOCKED, 1)]
    [InlineData(SeptState.PENDING_BLOCKED, 2)]
    [Trait("spec", "TM02")]
    [Trait("spec", "TM07")]
    public void DEMOTE_is_busy_while_somebody_has_locked_a_small_entry_of_the_page(SeptState state, int level)
    {
        using SeptScene scene = new(new SceneSetup(state, level, SceneMode.Built));
        ulong table = scene.Rig.Page().Value;
        Hpa inside = new(scene.Page + 0x12_3000);
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.Page, true, inside, level: Level.K4)!.Value;
        ModuleState before = scene.Snapshot();
        Assert.Equal(s_busy, scene.Rig.Call(TdhLeaf.MEM_PAGE_DEMOTE, scene.Operand, scene.Tdr, table));
        Assert.Empty(ModuleState.Differences(before, scene.Snapshot()));
        scene.Rig.Module.Release(held);
        scene.Rig.Must(TdhLeaf.MEM_PAGE_DEMOTE, scene.Operand, scene.Tdr, table);
        Assert.Empty(scene.Broken());
    }

    [Fact]
    [Trait("spec", "TM02")]
    public void PROMOTE_to_1G_is_busy_while_somebody_has_locked_a_small_entry_of_the_range()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.NL_MAPPED, 2, SceneMode.Built, SceneChildren.Pending));
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.Page, true, new Hpa(scene.Page + 0x3FFF_F000), level: Level.K4)!.Value;
        ModuleState before = scene.Snapshot();
        SeamRegisters after = scene.Rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr));
        Assert.Equal((s_busy, 0UL, 0UL), (after.Status, after.Rcx, after.Rdx));
        Assert.Empty(ModuleState.Differences(before, scene.Snapshot()));
        scene.Rig.Module.Release(held);
        scene.Rig.Must(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr);
        Assert.Empty(scene.Broken());
    }
}
