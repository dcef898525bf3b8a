using System.Globalization;

namespace Tdp.Harness.Conformance;

/// <summary>The entries on the way to the pages that an operation names, as they are after it.</summary>
internal static class MmuEntries
{
    /// <summary>One line per entry, for every root in the list.</summary>
    public static List<string> Involved(MmuReplayWorld world, in TraceRecord inputs)
    {
        var lines = new List<string>();
        ulong? gfn = inputs.OptionalNumber("gfn") ?? inputs.OptionalNumber("start");
        if (gfn is not { } frame || frame >= Gfn.Limit)
            return lines;
        foreach (Root root in world.Mmu.Roots)
        {
            ulong raw = frame | (root.IsMirror ? 0 : world.Mmu.Options.AliasBit.GfnMask);
            TablePage table = root.Table;
            for (Level level = root.Level; ; level = level.Down)
            {
                Spte spte = table[level.IndexOf(raw)];
                lines.Add(string.Create(CultureInfo.InvariantCulture, $"{root}, {level}, gfn 0x{frame & ~(level.Pages - 1):x}: {spte} (0x{spte.Value:x})"));
                if (spte.Kind(level) != SpteKind.Table)
                    break;
                table = world.Mmu.TableOf(spte);
            }
        }

        return lines;
    }
}
