using System.Linq;

namespace Tdp.Harness.Conformance;

/// <summary>One Secure EPT entry that is not FREE, as recordings describe it.</summary>
/// <param name="State">Its state.</param>
/// <param name="Hpa">The page, or the Secure EPT page it points to.</param>
/// <param name="Accepted">4 KiB pages that an interrupted ACCEPT of a 2 MiB page has zeroed.</param>
internal readonly record struct SeptRow(SeptState State, ulong Hpa, int Accepted)
{
    /// <summary>Nothing mapped.</summary>
    public static SeptRow Free { get; } = new(SeptState.FREE, 0, 0);

    /// <inheritdoc/>
    public override string ToString() => State == SeptState.FREE ? "FREE"
        : Accepted == 0 ? $"{State} 0x{Hpa:x}"
        : $"{State} 0x{Hpa:x}, {Accepted} pages accepted";
}

/// <summary>
/// The Secure EPT of one TD as it was after the last call, page by page. A refresh compares pages as a whole, so that the exact set of changed entries is known after every call at the price
/// of reading the few tables a recording has.
/// </summary>
internal sealed class SeptImage(PhysicalMemory memory)
{
    private readonly Dictionary<ulong, Table> _tables = [];
    private readonly Dictionary<(ulong Gpa, int Level), SeptRow> _rows = [];

    /// <summary>Every entry that is not FREE, by its first address and its level in the module's numbering.</summary>
    public IReadOnlyDictionary<(ulong Gpa, int Level), SeptRow> Rows => _rows;

    /// <summary>Reads what changed.</summary>
    /// <param name="root">The root's page.</param>
    /// <param name="level">Level of its entries.</param>
    /// <param name="changed">Receives the places of entries that are not what they were.</param>
    public void Refresh(ulong root, Level level, HashSet<(ulong Gpa, int Level)> changed) => Visit(root, level, 0, changed);

    private void Visit(ulong page, Level level, ulong start, HashSet<(ulong Gpa, int Level)> changed)
    {
        if (!_tables.TryGetValue(page, out Table? table))
            _tables[page] = table = new Table();
        ReadOnlySpan<ulong> now = memory.Table(new Hpa(page));
        if (!now.SequenceEqual(table.Words))
        {
            for (int i = now.CommonPrefixLength(table.Words); i < now.Length; i++)
            {
                if (now[i] != table.Words[i])
                    Change(table, i, now[i], level, start, changed);
            }
        }

        foreach ((int index, ulong child) in table.Children)
            Visit(child, level.Down, start + ((ulong)index * level.Bytes), changed);
    }

    private void Change(Table table, int index, ulong word, Level level, ulong start, HashSet<(ulong Gpa, int Level)> changed)
    {
        ulong gpa = start + ((ulong)index * level.Bytes);
        SeptView view = TdxModule.ReadSeptEntry(word, new Gpa(gpa), level);
        table.Words[index] = word;
        bool isTable = view.State is SeptState.NL_MAPPED or SeptState.NL_BLOCKED;
        if (table.Children.TryGetValue(index, out ulong old) && (!isTable || old != view.Hpa.Value))
        {
            table.Children.Remove(index);
            Drop(old, level.Down, gpa, changed);
        }

        if (isTable)
            table.Children[index] = view.Hpa.Value;
        (ulong Gpa, int Level) place = (gpa, level.Tdx);
        SeptRow row = view.State == SeptState.FREE ? SeptRow.Free : new SeptRow(view.State, view.Hpa.Value, view.AcceptedPages);
        if (_rows.GetValueOrDefault(place, SeptRow.Free) == row)
            return;
        changed.Add(place);
        if (row == SeptRow.Free)
            _rows.Remove(place);
        else
            _rows[place] = row;
    }

    // A table left the tree: whatever it still holds, its entries are gone.
    private void Drop(ulong page, Level level, ulong start, HashSet<(ulong Gpa, int Level)> changed)
    {
        if (!_tables.Remove(page, out Table? table))
            return;
        for (int i = 0; i < 512; i++)
        {
            (ulong Gpa, int Level) place = (start + ((ulong)i * level.Bytes), level.Tdx);
            if (_rows.Remove(place))
                changed.Add(place);
        }

        foreach ((int index, ulong child) in table.Children.ToArray())
            Drop(child, level.Down, start + ((ulong)index * level.Bytes), changed);
    }

    private sealed class Table
    {
        // No entry of a Secure EPT is ever 0, so a page that was not yet read differs everywhere.
        public ulong[] Words { get; } = new ulong[512];

        public SortedDictionary<int, ulong> Children { get; } = [];
    }
}
