namespace Tdp.Harness.Invariants;

/// <summary>One entry of a KVM tree as a checker met it.</summary>
/// <param name="Root">The tree.</param>
/// <param name="Table">The table that holds the entry.</param>
/// <param name="Index">Its place in the table, 0..511.</param>
/// <param name="RawGfn">The first frame number that the place covers, with the alias bit where the place has it.</param>
/// <param name="Level">The level of the entry.</param>
/// <param name="Spte">Its value.</param>
public readonly record struct TreeEntry(Root Root, TablePage Table, int Index, ulong RawGfn, Level Level, Spte Spte)
{
    /// <inheritdoc/>
    public override string ToString() => $"{(Root.IsMirror ? "mirror" : "direct")} root {Root}, gfn 0x{RawGfn:x}, {Level}: {Spte}";
}

/// <summary>Reads whole trees the simple way: every index of every table from the root down. It shares no code with the MMU's iterator, which it checks.</summary>
public static class TreeWalk
{
    /// <summary>Every entry of a tree that is not the plain non-present value, parents before children.</summary>
    /// <param name="mmu">The MMU that owns the tree.</param>
    /// <param name="root">The tree. It must not change under the walk, or the caller must live with what it meets.</param>
    /// <returns>The entries in ascending order of address within each table.</returns>
    public static List<TreeEntry> Read(TdpMmu mmu, Root root)
    {
        ArgumentNullException.ThrowIfNull(mmu);
        ArgumentNullException.ThrowIfNull(root);
        List<TreeEntry> entries = [];
        Read(mmu, root, root.Table, root.Level, 0, entries);
        return entries;
    }

    /// <summary>The table that an entry points to, or none if the frame holds no table of this host.</summary>
    public static TablePage TableBehind(TdpMmu mmu, Spte entry)
    {
        ArgumentNullException.ThrowIfNull(mmu);
        return mmu.Machine.Ledger.UseOf(entry.Address) is FrameUse.HostTable ? mmu.TableOf(entry) : TablePage.None;
    }

    private static void Read(TdpMmu mmu, Root root, TablePage table, Level level, ulong first, List<TreeEntry> entries)
    {
        for (int index = 0; index < 512; index++)
        {
            Spte spte = table.Peek(index);
            if (spte == Spte.NonPresent)
            {
                continue;
            }

            ulong raw = first + ((ulong)index * level.Pages);
            entries.Add(new TreeEntry(root, table, index, raw, level, spte));
            if (spte.Kind(level) is SpteKind.Table && TableBehind(mmu, spte) is { IsNone: false } child)
            {
                Read(mmu, root, child, level.Down, raw, entries);
            }
        }
    }
}
