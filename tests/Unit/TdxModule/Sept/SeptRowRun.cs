using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>One row at one level in one situation.</summary>
/// <param name="Row">The row.</param>
/// <param name="Setup">How the entry comes into the row's state.</param>
/// <param name="Request">Level that a guest leaf asks for; the entry's own for a host leaf.</param>
/// <param name="Access">Kind of a guest access.</param>
/// <param name="InOrder">Whether the call must take its locks one by one.</param>
internal readonly record struct SeptRowRun(SeptRow Row, SceneSetup Setup, int Request, AccessKind Access = AccessKind.Read, bool InOrder = false)
{
    public static IEnumerable<SeptRowRun> Of(SeptRow row) => Every(row).Where(r => r.Setup.Obstacle is null);

    public static IEnumerable<SeptRowRun> LeftOut(SeptRow row) => Every(row).Where(r => r.Setup.Obstacle is not null);

    /// <summary>Drives the row and compares; returns the answer that came, as the table writes it.</summary>
    public string Check()
    {
        using SeptScene scene = new(Setup);
        try
        {
            string came = Row.Leaf == "GUEST.ACCESS" ? GuestRowCheck.Access(this, scene)
                : Row.Leaf.StartsWith("TDG", StringComparison.Ordinal) ? GuestRowCheck.Call(this, scene)
                : HostRowCheck.Call(this, scene);
            Assert.Empty(scene.Broken());
            return came;
        }
        catch (Xunit.Sdk.XunitException failure)
        {
            throw new Xunit.Sdk.XunitException($"{Row}: {Setup}, level {Request} asked, {Access}, {(InOrder ? "locks in order" : "locks at once")}{Environment.NewLine}{failure.Message}", failure);
        }
    }

    private static IEnumerable<SeptRowRun> Every(SeptRow row)
    {
        bool guest = !row.Leaf.StartsWith("TDH", StringComparison.Ordinal);
        foreach (int root in (int[])[3, 4])
        {
            foreach (int request in row.LevelsUpTo(root))
            {
                foreach (int level in EntryLevels(row, request, root))
                {
                    // The five-level tree is walked once more only where its additional level is the subject.
                    if ((root == 4) != (level == 4) || !Exists(row.From, level))
                        continue;
                    foreach (SceneMode mode in Modes(row, guest))
                    {
                        foreach (SceneChildren children in Children(row, level))
                        {
                            SceneSetup setup = new(row.From, level, mode, children, root, Attributes(row));
                            AccessKind[] kinds = row.Leaf != "GUEST.ACCESS" ? [AccessKind.None] : row.Has("write") ? [AccessKind.Write] : [AccessKind.Read, AccessKind.Fetch];
                            foreach (AccessKind kind in kinds)
                                yield return new SeptRowRun(row, setup, row.Levels == "any" ? level : request, kind);
                            if (!guest && level <= 1)
                                yield return new SeptRowRun(row, setup, level, AccessKind.None, InOrder: true);
                        }
                    }
                }
            }
        }
    }

    // A guest leaf may find the entry at the level it asks for or above; every other leaf reports the entry it asked for. Rows for any level are driven by it.
    private static IEnumerable<int> EntryLevels(SeptRow row, int request, int root)
    {
        if (row.Has("above") && !row.Has("at"))
            return Enumerable.Range(request + 1, root - request);
        return row.Has("above") ? Enumerable.Range(request, root - request + 1) : [request];
    }

    private static bool Exists(SeptState state, int level) => SeptFormat.IsLeaf(state) ? level <= 2 : state == SeptState.FREE || level >= 1;

    private static IEnumerable<SceneMode> Modes(SeptRow row, bool guest)
    {
        bool blocked = row.From is SeptState.NL_BLOCKED or SeptState.BLOCKED or SeptState.PENDING_BLOCKED;
        if (row.Leaf is "TDH.MEM.PAGE.ADD" or "TDH.MR.EXTEND" || row.Has("built"))
            return [SceneMode.Built];
        if (row.Has("tracked"))
            return [SceneMode.Tracked];
        if (row.Has("untracked"))
            return [SceneMode.Untracked, SceneMode.Busy];
        if (guest || row.Has("runs"))
            return blocked ? [SceneMode.Untracked, SceneMode.Tracked] : [SceneMode.Untracked];
        return blocked ? [SceneMode.Built, SceneMode.Untracked, SceneMode.Tracked, SceneMode.Busy] : [SceneMode.Built, SceneMode.Untracked];
    }

    private static IEnumerable<SceneChildren> Children(SeptRow row, int level) => row switch
    {
        { To: "child" } => [SceneChildren.Pending, SceneChildren.Mapped],
        _ when row.Has("differ") => [SceneChildren.None, SceneChildren.Hole],
        _ when row.Has("use") => [SceneChildren.One],
        { Answer: "WALK" } => level == 1 ? [SceneChildren.None, SceneChildren.Mapped] : [SceneChildren.None],
        _ => [SceneChildren.None],
    };

    private static ulong Attributes(SeptRow row) => row.Has("debug") ? SeptScene.Debug : row.Has("no-ve") ? SeptScene.SeptVeDisable : 0;
}
