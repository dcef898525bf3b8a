using Tdp.Module;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// What a call that succeeds does to the module's state and to RCX, written down from tdx-module 3.3 and 5.7 as an edit of a copy.
/// </summary>
internal static class SeptEffect
{
    /// <summary>Edits <paramref name="state"/>; returns RCX after the call.</summary>
    /// <param name="leaf">The leaf.</param>
    /// <param name="scene">Where it works.</param>
    /// <param name="from">State of the entry before.</param>
    /// <param name="level">Level of the entry.</param>
    /// <param name="offered">The page in R8.</param>
    /// <param name="state">The copy.</param>
    public static ulong Apply(string leaf, SeptScene scene, SeptState from, int level, ulong offered, ModuleState state)
    {
        ulong tdr = scene.Tdr;
        long units = 1L << (9 * level);
        PageRow regular = new(PageType.REG, tdr, 0, 0);
        switch (leaf)
        {
            case "TDH.MEM.PAGE.ADD" or "TDH.MEM.PAGE.AUG":
                state.Set(tdr, scene.Gpa, level, SeptFormat.Word(leaf == "TDH.MEM.PAGE.ADD" ? SeptState.MAPPED : SeptState.PENDING, offered));
                state.Pages[(offered, level)] = regular;
                state.AddChildren(tdr, units);
                return 0;
            case "TDH.MEM.SEPT.ADD" when from == SeptState.FREE:
                state.Set(tdr, scene.Gpa, level, SeptFormat.Word(SeptState.NL_MAPPED, offered));
                state.Pages[(offered, 0)] = new PageRow(PageType.EPT, tdr, 0, 0);
                state.AddChildren(tdr, 1);
                return 0;
            case "TDH.MEM.RANGE.BLOCK":
                (ulong Page, int Level) target = SeptFormat.IsLeaf(from) ? (scene.Page, level) : (scene.Table, 0);
                state.Set(tdr, scene.Gpa, level, SeptFormat.Word(Blocked(from), target.Page));
                state.Pages[target] = state.Pages[target] with { Bepoch = state.Tds[tdr].Epoch };
                return 0;
            case "TDH.MEM.RANGE.UNBLOCK":
                state.Set(tdr, scene.Gpa, level, SeptFormat.Word(Open(from), SeptFormat.IsLeaf(from) ? scene.Page : scene.Table));
                return 0;
            case "TDH.MEM.PAGE.REMOVE":
                state.Set(tdr, scene.Gpa, level, SeptFormat.Free);
                state.Pages.Remove((scene.Page, level));
                state.AddChildren(tdr, -units);
                return scene.Page;
            case "TDH.MEM.SEPT.REMOVE":
                state.Set(tdr, scene.Gpa, level, SeptFormat.Free);
                state.Pages.Remove((scene.Table, 0));
                state.AddChildren(tdr, -1);
                return scene.Table;
            case "TDH.MEM.PAGE.PROMOTE":
                Promote(scene, level, state);
                return scene.Table;
            case "TDH.MEM.PAGE.DEMOTE":
                Demote(scene, from, level, offered, state);
                return 0;
            case "TDH.MEM.PAGE.RELOCATE":
                state.Set(tdr, scene.Gpa, level, SeptFormat.Word(Open(from), offered));
                state.Pages.Remove((scene.Page, 0));
                state.Pages[(offered, 0)] = regular;
                return scene.Page;
            case "TDG.MEM.PAGE.ACCEPT":
                state.Set(tdr, scene.Gpa, level, SeptFormat.Word(SeptState.MAPPED, scene.Page));
                return 0;
            default:
                return 0;
        }
    }

    public static SeptState Blocked(SeptState state) => state switch
    {
        SeptState.NL_MAPPED => SeptState.NL_BLOCKED,
        SeptState.MAPPED => SeptState.BLOCKED,
        SeptState.PENDING => SeptState.PENDING_BLOCKED,
        _ => throw new ArgumentOutOfRangeException(nameof(state)),
    };

    public static SeptState Open(SeptState state) => state switch
    {
        SeptState.NL_BLOCKED => SeptState.NL_MAPPED,
        SeptState.BLOCKED or SeptState.MAPPED => SeptState.MAPPED,
        SeptState.PENDING_BLOCKED or SeptState.PENDING => SeptState.PENDING,
        _ => throw new ArgumentOutOfRangeException(nameof(state)),
    };

    private static void Promote(SeptScene scene, int level, ModuleState state)
    {
        ulong size = 4096UL << (9 * (level - 1));
        SeptState child = SeptFormat.StateOf(state.Entries[(scene.Tdr, scene.Gpa, level - 1)]);
        for (ulong i = 0; i < 512; i++)
        {
            state.Set(scene.Tdr, scene.Gpa + (i * size), level - 1, SeptFormat.Free);
            state.Pages.Remove((scene.Page + (i * size), level - 1));
        }

        state.Set(scene.Tdr, scene.Gpa, level, SeptFormat.Word(child, scene.Page));
        state.Pages[(scene.Page, level)] = new PageRow(PageType.REG, scene.Tdr, 0, 0);
        state.Pages.Remove((scene.Table, 0));
        state.AddChildren(scene.Tdr, -1);
    }

    private static void Demote(SeptScene scene, SeptState from, int level, ulong table, ModuleState state)
    {
        ulong size = 4096UL << (9 * (level - 1));
        state.Pages.Remove((scene.Page, level));
        for (ulong i = 0; i < 512; i++)
        {
            state.Set(scene.Tdr, scene.Gpa + (i * size), level - 1, SeptFormat.Word(Open(from), scene.Page + (i * size)));
            state.Pages[(scene.Page + (i * size), level - 1)] = new PageRow(PageType.REG, scene.Tdr, 0, 0);
        }

        state.Set(scene.Tdr, scene.Gpa, level, SeptFormat.Word(SeptState.NL_MAPPED, table));
        state.Pages[(table, 0)] = new PageRow(PageType.EPT, scene.Tdr, 0, 0);
        state.AddChildren(scene.Tdr, 1);
    }
}
