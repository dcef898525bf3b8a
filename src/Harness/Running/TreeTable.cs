using System.Globalization;
using Tdp.Harness.Invariants;

namespace Tdp.Harness.Running;

/// <summary>
/// The three trees of a TD side by side: one row per place, keyed by natural address and level. Neighbouring 4K pages that look alike in all three trees share a row.
/// </summary>
internal sealed class TreeTable
{
    private readonly SortedDictionary<(ulong Gfn, int Down), Row> _rows = [];

    /// <summary>Reads the trees. The caller keeps them from changing.</summary>
    public TreeTable(Vm vm)
    {
        foreach (Root root in vm.Mmu.Roots)
        {
            Roots.Add(string.Create(CultureInfo.InvariantCulture, $"{(root.IsMirror ? "mirror" : "shared EPT")} root at {root.Frame}{(root.PeekRole().IsInvalid ? ", invalid" : string.Empty)}, {root.ReferenceCount} references"));
            foreach (TreeEntry entry in TreeWalk.Read(vm.Mmu, root))
            {
                ref string cell = ref root.IsMirror ? ref At(entry.RawGfn & ~vm.AliasBit.GfnMask, entry.Level).Mirror : ref At(entry.RawGfn & ~vm.AliasBit.GfnMask, entry.Level).Shared;
                cell = Describe(vm, entry);
            }
        }

        if (vm.Td is { } td && vm.Kernel.Port is { } port)
        {
            port.Module.ForEachSeptEntry(td.Tdr, (in SeptView view) => At(view.Gpa.Value >> 12, view.Level).Secure = view.State is SeptState.NL_MAPPED or SeptState.NL_BLOCKED ? $"{view.State} {view.Hpa}" : $"{view.State}");
        }
    }

    /// <summary>One line per root.</summary>
    public List<string> Roots { get; } = [];

    /// <summary>The headings of the rows.</summary>
    public static IReadOnlyList<string> Headings { get; } = ["address", "#pages", "level", "shared EPT", "mirror", "Secure EPT"];

    /// <summary>The rows, parents before what they hold.</summary>
    public IEnumerable<IReadOnlyList<string>> Rows()
    {
        ulong first = 0;
        ulong count = 0;
        Row? run = null;
        foreach (((ulong gfn, int down), Row row) in _rows)
        {
            bool joins = run is not null && down == -1 && run.Level == Level.K4 && gfn == first + count && run.LooksLike(row);
            if (joins)
            {
                count++;
                continue;
            }

            if (run is not null)
            {
                yield return Line(first, count, run);
            }

            run = row;
            first = gfn;
            count = 1;
        }

        if (run is not null)
        {
            yield return Line(first, count, run);
        }
    }

    private static string[] Line(ulong first, ulong count, Row row)
    {
        string indent = new(' ', 2 * Math.Max(0, 4 - row.Level.Value));
        string address = string.Create(CultureInfo.InvariantCulture, $"{indent}0x{first << 12:x}{(count > 1 ? $"..0x{((first + count) << 12) - 1:x}" : string.Empty)}");
        return [address, row.Level == Level.K4 ? count.ToString(CultureInfo.InvariantCulture) : string.Empty, row.Level.ToString(), row.Shared, row.Mirror, row.Secure];
    }

    private static string Describe(Vm vm, TreeEntry entry)
    {
        Spte spte = entry.Spte;
        if (spte.IsFrozen)
        {
            return "FROZEN";
        }

        switch (spte.Kind(entry.Level))
        {
            case SpteKind.Table:
                TablePage child = TreeWalk.TableBehind(vm.Mmu, spte);
                return child.ExternalPage.Value != 0 ? $"table {spte.Address}, external {child.ExternalPage}" : $"table {spte.Address}";
            case SpteKind.Leaf:
                return $"leaf {((spte.Value & Spte.Readable) != 0 ? 'r' : '-')}{(spte.IsWritable ? 'w' : '-')}{(spte.IsExecutable ? 'x' : '-')}{(spte.IsAccessed ? " A" : string.Empty)}{(spte.IsDirty ? " D" : string.Empty)}";
            default:
                return vm.Mmu.Format.IsMmio(spte) ? "MMIO" : spte.ToString();
        }
    }

    private Row At(ulong gfn, Level level)
    {
        if (!_rows.TryGetValue((gfn, -level.Value), out Row? row))
        {
            row = new Row(level);
            _rows.Add((gfn, -level.Value), row);
        }

        return row;
    }

    private sealed class Row(Level level)
    {
        public string Shared = string.Empty;
        public string Mirror = string.Empty;
        public string Secure = string.Empty;

        public Level Level { get; } = level;

        public bool LooksLike(Row other)
            => string.Equals(Shared, other.Shared, StringComparison.Ordinal) && string.Equals(Mirror, other.Mirror, StringComparison.Ordinal) && string.Equals(Secure, other.Secure, StringComparison.Ordinal);
    }
}
