using System.Globalization;

namespace Tdp.Harness.Conformance;

/// <summary>The place of an entry as recordings name it.</summary>
/// <param name="Root">Name of the root.</param>
/// <param name="Level">Level of the entry.</param>
/// <param name="Gfn">First frame it covers, natural.</param>
/// <param name="IsStray">An entry of a TD's direct root at an index without the alias bit; there must be none.</param>
internal readonly record struct EntryPlace(string Root, int Level, ulong Gfn, bool IsStray)
{
    /// <inheritdoc/>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Root} {new Level(Level)} gfn {(IsStray ? "!" : string.Empty)}0x{Gfn:x}");
}

/// <summary>An entry before and after; <see langword="null"/> where the table that would hold it does not exist. Of present non-leaf entries the address is left out.</summary>
/// <param name="Old">Before.</param>
/// <param name="Now">After.</param>
internal readonly record struct EntryChange(ulong? Old, ulong? Now)
{
    /// <inheritdoc/>
    public override string ToString() => $"{Text(Old)} -> {Text(Now)}";

    private static string Text(ulong? value) => value is { } v ? string.Create(CultureInfo.InvariantCulture, $"0x{v:x}") : "no table";
}

/// <summary>Every entry that can be reached from the roots in the list, as it was after the last operation: what a recording's net changes are net of.</summary>
internal sealed class MmuImage(TdpMmu mmu, PhysicalMemory memory)
{
    private readonly Dictionary<(string Root, int Level, ulong Gfn), Table> _tables = [];
    private int _round;

    /// <summary>Reads the trees again.</summary>
    /// <param name="changes">Receives the entries that are not what they were.</param>
    public void Refresh(Dictionary<EntryPlace, EntryChange> changes)
    {
        _round++;
        foreach (Root root in mmu.Roots)
            Visit(root.ToString(), root, root.Table, changes);
        foreach (((string root, int level, ulong gfn), Table table) in _tables)
        {
            if (table.Round == _round)
                continue;
            _tables.Remove((root, level, gfn));
            for (int i = 0; i < 512; i++)
            {
                if (table.Words[i] != Spte.NonPresent.Value)
                    changes[Place(root, table.IsRootOfTd, level, gfn, i)] = new EntryChange(table.Words[i], null);
            }
        }
    }

    private void Visit(string name, Root root, TablePage page, Dictionary<EntryPlace, EntryChange> changes)
    {
        Level level = page.Level;
        (string Root, int Level, ulong Gfn) key = (name, level.Value, page.Gfn.Value);
        bool isNew = !_tables.TryGetValue(key, out Table? table);
        if (isNew)
            _tables[key] = table = new Table { IsRootOfTd = page.IsRoot && !root.IsMirror && mmu.Options.AliasBit.Number != 0 };
        table!.Round = _round;
        ReadOnlySpan<ulong> now = memory.Table(page.Frame);
        if (!now.SequenceEqual(table.Raw))
        {
            now.CopyTo(table.Raw);
            table.Children.Clear();
            for (int i = 0; i < 512; i++)
            {
                var spte = new Spte(now[i]);
                bool isTable = spte.Kind(level) == SpteKind.Table;
                if (isTable)
                    table.Children.Add(i);
                ulong visible = isTable ? spte.Value & ~Spte.AddressMask : spte.Value;
                ulong old = isNew ? Spte.NonPresent.Value : table.Words[i];
                table.Words[i] = visible;
                if (old != visible)
                    changes[Place(name, table.IsRootOfTd, level.Value, key.Gfn, i)] = new EntryChange(isNew ? null : old, visible);
            }
        }

        foreach (int i in table.Children)
            Visit(name, root, mmu.TableOf(new Spte(table.Raw[i])), changes);
    }

    // Below the root the alias bit is gone; at the root it is an index bit.
    private EntryPlace Place(string root, bool isRootOfTd, int level, ulong first, int index)
    {
        ulong gfn = first + ((ulong)index * new Level(level).Pages);
        ulong alias = mmu.Options.AliasBit.GfnMask;
        return new EntryPlace(root, level, gfn & ~(root[0] == 'd' ? alias : 0), isRootOfTd && (gfn & alias) == 0);
    }

    private sealed class Table
    {
        public ulong[] Raw { get; } = new ulong[512];

        public ulong[] Words { get; } = new ulong[512];

        public List<int> Children { get; } = [];

        public bool IsRootOfTd { get; init; }

        public int Round { get; set; }
    }
}
