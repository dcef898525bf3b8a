using System.Text.Json;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Conformance;

/// <summary>
/// The state that a trace says the module has: built up from the deltas, and compared with the simulated module's own.
/// </summary>
internal sealed class RecordedState
{
    private readonly Dictionary<ulong, string> _tds = [];
    private readonly Dictionary<ulong, string> _vcpus = [];
    private readonly Dictionary<ulong, Dictionary<(ulong Gpa, int Level), (string State, ulong Hpa, int Accepted)>> _sept = [];
    private readonly Dictionary<ulong, string?> _pages = [];

    /// <summary>Takes a line's deltas over.</summary>
    public void Apply(TraceLine line)
    {
        Rows(line.Delta("T"), _tds);
        Rows(line.Delta("V"), _vcpus);
        if (line.Delta("P") is { } pages)
        {
            foreach (JsonProperty page in pages.EnumerateObject())
                _pages[TraceLine.Hex(page.Name)] = page.Value.ValueKind == JsonValueKind.Null ? null : PageRow(page.Value);
        }

        if (line.Delta("S") is { } sept)
        {
            foreach (JsonProperty td in sept.EnumerateObject())
            {
                foreach (JsonElement entry in td.Value.EnumerateArray())
                    ApplyEntries(TraceLine.Hex(td.Name), entry);
            }
        }
    }

    /// <summary>What differs, one line each; empty when the module agrees. The Secure EPT is compared as a whole only when asked for.</summary>
    public IEnumerable<string> Differences(TdxModule module, TraceLine line, bool wholeSept)
    {
        foreach ((ulong tdr, string expected) in _tds)
        {
            string actual = module.Td(new Hpa(tdr)) is { } td ? Row(td) : "null";
            if (Comparable(actual) != Comparable(expected))
                yield return $"T 0x{tdr:x}: recorded {expected}, simulated {actual}";
        }

        foreach ((ulong tdvpr, string expected) in _vcpus)
        {
            string actual = "null";
            foreach (VcpuView vcpu in module.Vcpus())
            {
                if (vcpu.Tdvpr.Value == tdvpr)
                    actual = Frozen(module, vcpu) ? expected : Row(vcpu);
            }

            if (actual != expected)
                yield return $"V 0x{tdvpr:x}: recorded {expected}, simulated {actual}";
        }

        foreach ((ulong page, string? expected) in _pages)
        {
            string? actual = module.Pamt(new Hpa(page)) is { } view ? Row(view) : null;
            if (actual != expected)
                yield return $"P 0x{page:x}: recorded {expected ?? "null"}, simulated {actual ?? "null"}";
        }

        foreach (string difference in wholeSept ? WholeSept(module) : ChangedSept(module, line))
            yield return difference;
    }

    // Once pages are reclaimed, the recorder read TDCS members out of pages that others may use: only lifecycle, FATAL, CHLDCNT and NUM_TDCX are the TD's.
    private static string Comparable(string row) => row.StartsWith("[3,", StringComparison.Ordinal) ? string.Join(',', row.Split(',')[..4]) : row;

    private static void Rows(JsonElement? delta, Dictionary<ulong, string> rows)
    {
        if (delta is not { } changed)
            return;
        foreach (JsonProperty row in changed.EnumerateObject())
            rows[TraceLine.Hex(row.Name)] = row.Value.GetRawText();
    }

    private static string PageRow(JsonElement row) => $"{row[0].GetString()} {row[1].GetString()} {row[2].GetInt32()} {row[3].GetUInt64()}";

    private void ApplyEntries(ulong tdr, JsonElement entry)
    {
        if (!_sept.TryGetValue(tdr, out Dictionary<(ulong Gpa, int Level), (string State, ulong Hpa, int Accepted)>? tree))
            _sept[tdr] = tree = [];
        ulong gpa = TraceLine.Hex(entry[0].GetString()!);
        int level = entry[1].GetInt32();
        string state = entry[2].GetString()!;
        ulong hpa = TraceLine.Hex(entry[3].GetString()!);
        int run = entry.GetArrayLength() > 4 ? entry[4].GetInt32() : 1;
        int accepted = entry.GetArrayLength() > 5 ? entry[5].GetInt32() : 0;
        for (int i = 0; i < run; i++)
        {
            ulong offset = (ulong)i << (12 + (9 * level));
            if (state == "FREE")
                tree.Remove((gpa + offset, level));
            else
                tree[(gpa + offset, level)] = (state, hpa + offset, accepted);
        }
    }

    private IEnumerable<string> WholeSept(TdxModule module)
    {
        foreach ((ulong tdr, Dictionary<(ulong Gpa, int Level), (string State, ulong Hpa, int Accepted)> expected) in _sept)
        {
            if (!IsReported(module, tdr))
                continue;
            int seen = 0;
            List<string> wrong = [];
            module.ForEachSeptEntry(new Hpa(tdr), (in SeptView view) =>
            {
                // Below a blocked table the recorder still lists children; so does the walk.
                seen++;
                (string State, ulong Hpa, int Accepted) actual = (view.State.ToString(), view.Hpa.Value, view.AcceptedPages);
                if (!expected.TryGetValue((view.Gpa.Value, view.Level.Tdx), out (string State, ulong Hpa, int Accepted) recorded) || recorded != actual)
                    wrong.Add($"S 0x{tdr:x} gpa 0x{view.Gpa.Value:x} level {view.Level.Tdx}: recorded {recorded}, simulated {actual}");
            });
            foreach (string difference in wrong)
                yield return difference;
            if (seen != expected.Count && wrong.Count == 0)
                yield return $"S 0x{tdr:x}: recorded {expected.Count} entries, simulated {seen}";
        }
    }

    private IEnumerable<string> ChangedSept(TdxModule module, TraceLine line)
    {
        if (line.Delta("S") is not { } sept)
            yield break;
        foreach (JsonProperty td in sept.EnumerateObject())
        {
            ulong tdr = TraceLine.Hex(td.Name);
            if (!IsReported(module, tdr))
                continue;
            foreach (JsonElement entry in td.Value.EnumerateArray())
            {
                ulong gpa = TraceLine.Hex(entry[0].GetString()!);
                int level = entry[1].GetInt32();
                SeptView view = module.FindSeptEntry(new Hpa(tdr), new Gpa(gpa), Level.FromTdx(level));
                (string, ulong, int) actual = view.Level.Tdx == level ? (view.State.ToString(), view.Hpa.Value, view.AcceptedPages) : ("FREE", 0, 0);
                (string, ulong, int) expected = _sept[tdr].TryGetValue((gpa, level), out (string State, ulong Hpa, int Accepted) recorded) ? recorded : ("FREE", 0, 0);
                if (actual != expected)
                    yield return $"S 0x{tdr:x} gpa 0x{gpa:x} level {level}: recorded {expected}, simulated {actual}";
            }
        }
    }

    // Entries are reported while the keys are configured and the TD is initialised.
    private static bool IsReported(TdxModule module, ulong tdr) =>
        module.Td(new Hpa(tdr)) is { Lifecycle: TdLifecycle.KEYS_CONFIGURED, OpState: >= TdOpState.INITIALIZED };

    private static bool Frozen(TdxModule module, VcpuView vcpu) => module.Td(vcpu.Tdr) is not { Lifecycle: TdLifecycle.KEYS_CONFIGURED, IsFatal: false };

    private static string Row(TdView td)
    {
        bool hasTdcs = td.ControlPages >= 6;
        return $"[{(int)td.Lifecycle},{(td.IsFatal ? 1 : 0)},{td.ChildCount},{td.ControlPages},"
            + (hasTdcs
                ? $"{(int)td.OpState},{td.Vcpus},{td.AssociatedVcpus},{td.Epoch},{td.RefCount0},{td.RefCount1}]"
                : "0,0,0,0,0,0]");
    }

    private static string Row(VcpuView vcpu) => $"[{(int)vcpu.State},{(int)vcpu.LastExit},{vcpu.Pages},{vcpu.AssociatedLp},{vcpu.Epoch}]";

    private static string Row(PamtView view) => $"{view.Type} 0x{view.Owner.Value:x} {view.Level.Tdx} {view.Bepoch}";
}
