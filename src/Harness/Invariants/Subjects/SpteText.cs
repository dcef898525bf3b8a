using System.Text;

namespace Tdp.Harness.Invariants;

/// <summary>Writes entries and what the module and the platform know of a page, for failure reports. Causes no event; allocates.</summary>
public static class SpteText
{
    /// <summary>An entry with its bits by name, such as <c>0x860000007abcdb37 (leaf, page 0x7abcd, RWX, WB, A, D, host-writable, MMU-writable)</c>.</summary>
    /// <param name="spte">The value.</param>
    /// <param name="level">Its level, which decides whether it is a leaf.</param>
    /// <param name="format">The VM's format, which decides what an MMIO entry is; null: unknown.</param>
    public static string Of(Spte spte, Level level, SpteFormat? format = null)
    {
        if (!spte.IsPresent)
        {
            return format is not null && format.IsMmio(spte) ? $"0x{spte.Value:x16} (MMIO)"
                : spte == Spte.NonPresent || spte.IsFrozen ? spte.ToString()
                : $"0x{spte.Value:x16} (not present)";
        }

        StringBuilder text = new($"0x{spte.Value:x16} (");
        if (spte.Kind(level) is SpteKind.Table)
        {
            text.Append("table at ").Append(spte.Address);
        }
        else
        {
            text.Append("leaf, page 0x").Append(spte.Pfn.ToString("x", System.Globalization.CultureInfo.InvariantCulture));
        }

        text.Append(", ").Append((spte.Value & Spte.Readable) != 0 ? 'R' : '-').Append(spte.IsWritable ? 'W' : '-').Append(spte.IsExecutable ? 'X' : '-');
        if (spte.Kind(level) is SpteKind.Leaf)
        {
            Add(text, (spte.Value & Spte.WriteBack) == Spte.WriteBack, "WB");
            Add(text, (spte.Value & Spte.IgnorePat) != 0, "IPAT");
            Add(text, spte.IsHostWritable, "host-writable");
            Add(text, spte.IsMmuWritable, "MMU-writable");
            Add(text, spte.IsAccessTracked, "access-tracked");
        }

        Add(text, spte.IsAccessed, "A");
        Add(text, spte.Kind(level) is SpteKind.Leaf && spte.IsDirty, "D");
        Add(text, !spte.IsAdEnabled, "A/D disabled");
        Add(text, (spte.Value & Spte.AdTypeMask) == Spte.AdWriteProtectOnly, "write-protect only");
        Add(text, (spte.Value & Spte.SuppressVe) == 0, "without suppress-#VE");
        return text.Append(')').ToString();
    }

    /// <summary>A Secure EPT entry.</summary>
    public static string Of(in SeptView view) => $"Secure EPT {view.Level} entry 0x{view.Raw:x16} ({view.State}{(view.Hpa.Value == 0 ? string.Empty : $", page 0x{view.Hpa.Frame:x}")})";

    /// <summary>What the module records of a page and what the platform's ledger says.</summary>
    public static string OfPage(Machine machine, TdxModule? module, Hpa page)
    {
        ArgumentNullException.ThrowIfNull(machine);
        if (!machine.Memory.Exists(page))
        {
            return $"page 0x{page.Frame:x} is no memory";
        }

        string ledger = $"ledger {machine.Ledger.UseOf(page)}";
        if (module?.Pamt(page) is not { } pamt)
        {
            return $"page 0x{page.Frame:x}: {ledger}";
        }

        string owner = pamt.Owner.Value == 0 ? string.Empty : $" of TD {pamt.Owner}, BEPOCH {pamt.Bepoch}";
        return $"page 0x{page.Frame:x}: PAMT {pamt.Type}{owner}, {ledger}";
    }

    private static void Add(StringBuilder text, bool isSet, string name)
    {
        if (isSet)
        {
            text.Append(", ").Append(name);
        }
    }
}
