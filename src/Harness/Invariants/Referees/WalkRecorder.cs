namespace Tdp.Harness.Invariants;

/// <summary>Has the MMU's iterator walk over a tree that stands still, and reads the same tree the simple way beside it (I50, I51).</summary>
public static class WalkRecorder
{
    /// <summary>Records one walk.</summary>
    /// <param name="vm">The VM; nobody changes the tree.</param>
    /// <param name="actor">Who walks; holds no lock of the MMU.</param>
    /// <param name="root">The tree.</param>
    /// <param name="range">The pages, natural.</param>
    /// <param name="leastLevel">Entries below it are not visited.</param>
    /// <param name="yields">The walk is asked to give the lock up at every step.</param>
    public static WalkTrace Record(CheckedVm vm, Actor actor, Root root, GfnRange range, Level leastLevel, bool yields)
    {
        ArgumentNullException.ThrowIfNull(vm);
        ArgumentNullException.ThrowIfNull(root);
        List<WalkStep> steps = [];
        TdpMmu mmu = vm.Mmu;
        Func<bool>? before = mmu.NeedResched;
        mmu.NeedResched = yields ? static () => true : before;
        mmu.MmuLock.EnterRead(actor);
        try
        {
            mmu.Walk(actor, root, range, leastLevel, steps.Add);
        }
        finally
        {
            mmu.MmuLock.ExitRead(actor);
            mmu.NeedResched = before;
        }

        List<WalkStep> expected = [];
        Expect(vm, root.Table, root.IsMirror ? 0 : vm.AliasMask, 0, range, leastLevel, expected);
        return new WalkTrace(vm, range, steps, expected);
    }

    /// <summary>A range that covers everything mapped in a tree, and a little more.</summary>
    public static GfnRange RangeOf(CheckedVm vm, Root root)
    {
        ArgumentNullException.ThrowIfNull(vm);
        ArgumentNullException.ThrowIfNull(root);
        ulong start = ulong.MaxValue;
        ulong end = 0;
        foreach (TreeEntry entry in TreeWalk.Read(vm.Mmu, root))
        {
            if (entry.Spte.Kind(entry.Level) is SpteKind.Leaf)
            {
                ulong gfn = entry.RawGfn & ~vm.AliasMask;
                start = Math.Min(start, gfn);
                end = Math.Max(end, gfn + entry.Level.Pages);
            }
        }

        return end == 0 ? GfnRange.Of(new Gfn(0), 1) : new GfnRange(new Gfn(start), new Gfn(Math.Min(end + 1, vm.Mmu.EndOfGfns)));
    }

    // Pre-order over the entries that cover a page of the range. The alias bit selects the half of the root's indexes; below it there is no difference.
    private static void Expect(CheckedVm vm, TablePage table, ulong rawBits, ulong first, GfnRange range, Level leastLevel, List<WalkStep> into)
    {
        ulong pages = table.Level.Pages;
        for (int index = 0; index < 512; index++)
        {
            ulong raw = first + ((ulong)index * pages);
            ulong gfn = raw & ~rawBits;
            bool isOurs = rawBits == 0 || pages > rawBits || !table.IsRoot || (raw & rawBits) != 0;
            if (!isOurs || gfn >= range.End.Value || gfn + pages <= range.Start.Value)
            {
                continue;
            }

            Spte spte = table.Peek(index);
            into.Add(new WalkStep(gfn, 0, table.Level, spte, false));
            if (table.Level > leastLevel && spte.Kind(table.Level) is SpteKind.Table && vm.TableBehind(spte) is { IsNone: false } child)
            {
                Expect(vm, child, rawBits, raw, range, leastLevel, into);
            }
        }
    }
}
