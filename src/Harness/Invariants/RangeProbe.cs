namespace Tdp.Harness.Invariants;

/// <summary>
/// Looks at one range of a running VM: which leaves are there now. It holds mmu_lock for reading and an RCU section, so nothing can be zapped while it looks, and faults only add.
/// </summary>
public static class RangeProbe
{
    /// <summary>The leaves that map a frame number of the range, in every root of the alias, valid or not.</summary>
    /// <param name="vm">The VM.</param>
    /// <param name="actor">Who looks; holds no lock of the MMU.</param>
    /// <param name="range">Natural frame numbers.</param>
    /// <param name="alias">Which alias.</param>
    public static List<TreeEntry> Leaves(Vm vm, Actor actor, GfnRange range, Alias alias)
    {
        ArgumentNullException.ThrowIfNull(vm);
        return Leaves(vm.Mmu, actor, range, alias);
    }

    /// <summary>As <see cref="Leaves(Vm, Actor, GfnRange, Alias)"/>, for an MMU.</summary>
    public static List<TreeEntry> Leaves(TdpMmu mmu, Actor actor, GfnRange range, Alias alias)
    {
        ArgumentNullException.ThrowIfNull(mmu);
        List<TreeEntry> found = [];
        mmu.MmuLock.EnterRead(actor);
        mmu.Rcu.ReadEnter(actor);
        foreach (Root root in mmu.ListedRoots)
        {
            if (root.IsMirror == (alias is Alias.Private))
            {
                ulong raw = alias is Alias.Shared ? mmu.Options.AliasBit.GfnMask : 0;
                Collect(mmu, root, root.Table, root.Level, 0, range.Start.Value | raw, range.End.Value | raw, found);
            }
        }

        mmu.Rcu.ReadExit(actor);
        mmu.MmuLock.ExitRead(actor);
        return found;
    }

    private static void Collect(TdpMmu mmu, Root root, TablePage table, Level level, ulong first, ulong start, ulong end, List<TreeEntry> found)
    {
        ulong span = level.Pages;
        int from = start <= first ? 0 : (int)Math.Min((start - first) / span, 512);
        for (int index = from; index < 512; index++)
        {
            ulong raw = first + ((ulong)index * span);
            if (raw >= end)
            {
                return;
            }

            Spte spte = table.Peek(index);
            switch (spte.Kind(level))
            {
                case SpteKind.Leaf:
                    found.Add(new TreeEntry(root, table, index, raw, level, spte));
                    break;
                case SpteKind.Table when TreeWalk.TableBehind(mmu, spte) is { IsNone: false } child:
                    Collect(mmu, root, child, level.Down, raw, start, end, found);
                    break;
                default:
                    break;
            }
        }
    }
}
