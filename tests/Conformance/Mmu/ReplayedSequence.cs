using System.Globalization;
using System.Linq;
using System.Text;
using System.Text.Json;
using Tdp.Mmu;
using Tdp.Platform;
using static Tdp.Tests.Conformance.Mmu.ReplayWorld;

namespace Tdp.Tests.Conformance.Mmu;

/// <summary>
/// Replays one recorded sequence of the kernel's own TDP MMU (Linux 6.16.1) operation by operation, and compares result, changed entries, external calls, flushes,
/// statistics, table count, roots, dirty marks and NX list.
/// </summary>
internal sealed partial class ReplayedSequence : IDisposable
{
    private readonly ReplayWorld _world;
    private readonly TdpMmu _mmu;
    private readonly List<string> _nxExpected = [];
    private Dictionary<(string Root, int Level, ulong Gfn), ulong[]> _before = [];
    private int _polls;
    private string _roots = "";

    public ReplayedSequence(JsonElement begin)
    {
        Name = begin.GetProperty("seq").GetString()!;
        _world = new ReplayWorld(begin.GetProperty("cfg"));
        _mmu = _world.Mmu;
    }

    public string Name { get; }

    public int Records { get; private set; }

    public List<string> Differences { get; } = [];

    /// <summary>True when nothing after this record can be compared.</summary>
    public bool IsOver { get; private set; }

    public void Dispose() => _world.Dispose();

    public void Replay(JsonElement record)
    {
        if (IsOver)
            return;
        string operation = record.GetProperty("op").GetString()!;
        JsonElement inputs = record.TryGetProperty("in", out JsonElement given) ? given : default;
        if (inputs.ValueKind == JsonValueKind.Object && Number(inputs, "injrm") != 0)
        {
            // A removal that fails is handled differently by the newest protocol: the VM is dead either way.
            IsOver = true;
            return;
        }

        Records++;
        long warnings = Warnings();
        string result;
        bool yields = Arm(inputs);
        try
        {
            result = Perform(operation, inputs, record);
        }
        catch (HostBugException)
        {
            Compare(record, "ret", Text(record.GetProperty("ret")), "HOST_BUG");
            IsOver = true;
            return;
        }

        _mmu.NeedResched = null;
        _mmu.Rcu.Barrier(_world.Actor);
        if (operation is "map" or "fastpf" or "last" or "walk" or "mapped" or "unmap" or "zapleafs" or "zapsp" or "nxrecover" or "age" or "testage" or "wrprot" or "wpgfn" or "hw"
            or "track" or "lpage" or "alloc_root")
            Compare(record, "ret", Text(record.GetProperty("ret")), result);
        if (operation == "uninit")
        {
            IsOver = true;
            Compare(record, "st", record.GetProperty("st").GetRawText(), Statistics());
            return;
        }

        if (operation == "age" && (AliasFilter)Number(inputs, "filter") == AliasFilter.Private && _world.IsTd)
        {
            // The newest protocol warns and leaves a mirror alone, the recorded one cleared Accessed there: nothing after it can be compared.
            Differences.RemoveAll(d => d.Contains("age: ret", StringComparison.Ordinal));
            Compare(record, "warn", bool.TrueString, (Warnings() != warnings).ToString());
            IsOver = true;
            return;
        }

        CompareChanges(record);
        Compare(record, "st", record.GetProperty("st").GetRawText(), Statistics());
        long tables = record.TryGetProperty("acct", out JsonElement accounted) ? accounted.GetInt64() : record.GetProperty("tb").GetInt64();
        Compare(record, "tb", tables.ToString(CultureInfo.InvariantCulture), _mmu.Statistics[MmuCounter.Tables].ToString(CultureInfo.InvariantCulture));
        Compare(record, "cb", ExpectedCallbacks(record), string.Join("; ", _world.Callbacks));
        Compare(record, "dirty", List(record, "dirty"), string.Join(",", _world.Dirty.Select(g => $"0x{g:x}")));
        CompareFlushes(record, yields);
        CompareRoots(record);
        CompareNx(record);
        if (inputs.ValueKind == JsonValueKind.Object && Number(inputs, "injfr") != 0)
            return;
        bool warned = Warnings() != warnings;
        Compare(record, "warn", record.TryGetProperty("warn", out _).ToString(), warned.ToString());
    }

    // WARN and BUG alike; what the simulator finds on its own account is not among them.
    private long Warnings() => _world.Machine.Findings.All.Count(f => f.Rule == "I81");

    private bool Arm(JsonElement inputs)
    {
        if (inputs.ValueKind != JsonValueKind.Object)
        {
            _world.BeginOperation(0, 0);
            return false;
        }

        int error = (int)unchecked((long)Number(inputs, "injerr"));
        _world.BeginOperation((int)Number(inputs, "injn"), error == 0 ? (int)ExternalResult.Busy : error);
        _polls = 0;
        int every = (int)Number(inputs, "resched");
        if (every == 0)
            return false;

        // True at every n-th poll, and from then on until the walk has yielded.
        long yielded = _mmu.Statistics[MmuCounter.Yields];
        bool wanted = false;
        _mmu.NeedResched = () =>
        {
            long now = _mmu.Statistics[MmuCounter.Yields];
            if (wanted && now != yielded)
                wanted = false;
            yielded = now;
            wanted |= ++_polls % every == 0;
            return wanted;
        };
        return true;
    }

    private void CompareChanges(JsonElement record)
    {
        Dictionary<(string Root, int Level, ulong Gfn), ulong[]> after = Snapshot();
        var found = new SortedDictionary<string, string>(StringComparer.Ordinal);
        foreach (var key in _before.Keys.Union(after.Keys))
        {
            ulong[]? old = _before.GetValueOrDefault(key);
            ulong[]? now = after.GetValueOrDefault(key);
            if (old is not null && now is not null && old.AsSpan().SequenceEqual(now))
                continue;
            for (int i = 0; i < 512; i++)
            {
                ulong was = old?[i] ?? Spte.NonPresent.Value;
                ulong isNow = now?[i] ?? Spte.NonPresent.Value;
                if (was != isNow)
                    found[EntryName(key, i)] = $"0x{was:x} -> 0x{isNow:x}";
            }
        }

        _before = after;
        var expected = new SortedDictionary<string, string>(StringComparer.Ordinal);
        if (record.TryGetProperty("ch", out JsonElement changes))
        {
            foreach (JsonElement change in changes.EnumerateArray())
                Expand(change, expected);
        }

        foreach (string entry in found.Keys.Union(expected.Keys))
        {
            string here = found.GetValueOrDefault(entry, "unchanged");
            string there = expected.GetValueOrDefault(entry, "unchanged");
            if (here == there)
                continue;
            Compare(record, $"ch {entry}", there, here);
            break;
        }
    }

    private static void Expand(JsonElement change, SortedDictionary<string, string> into)
    {
        string root = change[0].GetString()!;
        int level = change[1].GetInt32();
        ulong gfn = ParseHex(change[2].GetString()!);
        ulong? old = change[3].ValueKind == JsonValueKind.Null ? null : ParseHex(change[3].GetString()!);
        ulong? now = change[4].ValueKind == JsonValueKind.Null ? null : ParseHex(change[4].GetString()!);
        int count = change.GetArrayLength() > 5 ? change[5].GetInt32() : 1;
        ulong pages = new Level(level).Pages;
        for (int i = 0; i < count; i++)
        {
            ulong was = Advanced(old, i, level);
            ulong isNow = Advanced(now, i, level);
            if (was != isNow)
                into[$"{root} {level} 0x{gfn + ((ulong)i * pages):x}"] = $"0x{was:x} -> 0x{isNow:x}";
        }
    }

    private static ulong Advanced(ulong? value, int steps, int level)
    {
        if (value is not { } bits)
            return Spte.NonPresent.Value;
        var spte = new Spte(bits);
        return spte.IsLeaf(new Level(level)) ? bits + ((ulong)steps * new Level(level).Bytes) : bits;
    }

    private Dictionary<(string Root, int Level, ulong Gfn), ulong[]> Snapshot()
    {
        var tables = new Dictionary<(string, int, ulong), ulong[]>();
        foreach (Root root in _mmu.Roots)
            Collect(root.ToString(), root.Table, tables);
        return tables;
    }

    private void Collect(string root, TablePage table, Dictionary<(string, int, ulong), ulong[]> into)
    {
        ulong[] copy = _world.Machine.Memory.Table(table.Frame).ToArray();
        Level level = table.Level;
        for (int i = 0; i < 512; i++)
        {
            var spte = new Spte(copy[i]);
            if (spte.Kind(level) != SpteKind.Table)
                continue;
            Collect(root, _mmu.TableOf(spte), into);
            copy[i] = Masked(spte, level.Value);
        }

        into[(root, level.Value, table.Gfn.Value)] = copy;
    }

    private string EntryName((string Root, int Level, ulong Gfn) key, int index)
    {
        ulong gfn = key.Gfn + ((ulong)index * new Level(key.Level).Pages);
        ulong alias = _mmu.Options.AliasBit.GfnMask;
        return $"{key.Root} {key.Level} 0x{gfn & ~(key.Root[0] == 'd' ? alias : 0):x}";
    }

    private TablePage Find(string root, int level, ulong gfn)
    {
        TablePage found = TablePage.None;
        foreach (Root candidate in _mmu.Roots.Where(r => r.ToString() == root))
        {
            _mmu.ForEachSpte(candidate, visit =>
            {
                if (visit.Kind == SpteKind.Table && visit.Level.Value == level + 1 && visit.Gfn == new Gfn(gfn).AlignDown(visit.Level))
                    found = _mmu.TableOf(visit.Spte);
            });
        }

        return found;
    }

    private Root? RootOf(TablePage table)
    {
        Root? owner = null;
        foreach (Root root in _mmu.Roots)
        {
            _mmu.ForEachSpte(root, visit =>
            {
                if (visit.Kind == SpteKind.Table && _mmu.TableOf(visit.Spte) == table)
                    owner = root;
            });
        }

        return owner;
    }

    private static string ExpectedCallbacks(JsonElement record)
    {
        if (!record.TryGetProperty("cb", out JsonElement calls))
            return "";
        var list = new List<string>();
        foreach (JsonElement call in calls.EnumerateArray())
        {
            var text = new StringBuilder(call[0].GetString());
            bool hasResult = call[0].GetString() is "link" or "set";
            for (int i = 1; i < call.GetArrayLength() - (hasResult ? 0 : 1); i++)
                text.Append(' ').Append(call[i].ValueKind == JsonValueKind.String ? call[i].GetString() : call[i].GetRawText());
            list.Add(text.ToString());
        }

        return string.Join("; ", list);
    }

    private void CompareFlushes(JsonElement record, bool yields)
    {
        var expected = new List<string>();
        if (record.TryGetProperty("fl", out JsonElement flushes))
        {
            foreach (JsonElement flush in flushes.EnumerateArray())
            {
                expected.Add(flush.ValueKind == JsonValueKind.String ? flush.GetString()!
                    : flush[0].GetString() == "slot" ? $"slot {flush[1].GetInt32()}"
                    : $"{flush[0].GetString()}+{flush[1].GetInt64()}");
            }
        }

        List<string> found = _world.Flushes;
        if (yields)
        {
            // How often a walk flushes in order to yield depends on where it asks.
            expected.RemoveAll(f => f == "all");
            found = [.. found.Where(f => f != "all")];
        }

        Compare(record, "fl", string.Join(",", expected), string.Join(",", found));
    }

    private void CompareRoots(JsonElement record)
    {
        if (record.TryGetProperty("roots", out JsonElement roots))
            _roots = roots.GetRawText();
        string now = "[" + string.Join(",", _mmu.Roots.Select(r =>
            $"[\"{r}\",{r.ReferenceCount},{(r.PeekRole().IsInvalid ? 1 : 0)},{(r.IsScheduledForZap ? 1 : 0)}]")) + "]";
        Compare(record, "roots", _roots == "" ? "[]" : _roots, now);
    }

    private void CompareNx(JsonElement record)
    {
        if (record.TryGetProperty("nxl", out JsonElement events))
        {
            foreach (JsonElement e in events.EnumerateArray())
            {
                string table = $"{e[1].GetString()} {e[2].GetInt32()} {e[3].GetString()}";
                if (e[0].GetString() == "+")
                    _nxExpected.Add(table);
                else
                    _nxExpected.Remove(table);
            }
        }

        var now = _mmu.NxList.Select(t => $"{RootOf(t)} {t.Level.Value} 0x{t.Gfn.Value:x}");
        Compare(record, "nxl", string.Join(",", _nxExpected), string.Join(",", now));
    }

    private void Compare(JsonElement record, string member, string expected, string found)
    {
        if (expected != found)
            Differences.Add($"{Name} #{Number(record, "i")} {record.GetProperty("op").GetString()}: {member}: recorded {expected}, here {found}");
    }

    private string Statistics() => $"[{_mmu.Statistics.Pages(Level.K4)},{_mmu.Statistics.Pages(Level.M2)},{_mmu.Statistics.Pages(Level.G1)}]";

    private static ulong Masked(Spte spte, int level) =>
        spte.Kind(new Level(level)) == SpteKind.Table ? spte.Value & ~Spte.AddressMask : spte.Value;

    private static string Flag(bool value) => value ? "1" : "0";

    private static string Text(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.String => value.GetString()!,
        JsonValueKind.Array => "[" + string.Join(",", value.EnumerateArray().Select(v => v.ValueKind == JsonValueKind.String ? v.GetString() : v.GetRawText())) + "]",
        JsonValueKind.True => "1",
        JsonValueKind.False => "0",
        _ => value.GetRawText(),
    };

    private static string List(JsonElement record, string member) =>
        record.TryGetProperty(member, out JsonElement list) ? string.Join(",", list.EnumerateArray().Select(v => v.GetString())) : "";
}
