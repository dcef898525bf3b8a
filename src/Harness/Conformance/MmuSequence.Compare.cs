using System.Globalization;
using System.Linq;
using System.Text;
using System.Text.Json;

namespace Tdp.Harness.Conformance;

/// <content>The members of a record against what is here after the operation.</content>
internal sealed partial class MmuSequence
{
    private const int DifferingEntriesShown = 8;
    private const ulong MostEntries = 1 << 20;
    private readonly Dictionary<EntryPlace, EntryChange> _changes = [];
    private readonly Dictionary<EntryPlace, EntryChange> _expected = [];
    private bool _agedMirror;

    private void CompareChanges(in TraceRecord record, bool agesMirror)
    {
        _changes.Clear();
        _expected.Clear();
        _agedMirror = false;
        _image.Refresh(_changes);
        if (record.Find("ch") is { } changes)
        {
            foreach (JsonElement change in changes.EnumerateArray())
                Expand(record, change);
        }

        if (agesMirror)
            LeaveMirrorsAlone();
        else if (_stillAccessed.Count > 0)
            KeepAccessed();
        int shown = 0;
        foreach (EntryPlace place in _changes.Keys.Union(_expected.Keys).OrderBy(p => p.Root, StringComparer.Ordinal).ThenByDescending(p => p.Level).ThenBy(p => p.Gfn))
        {
            bool here = _changes.TryGetValue(place, out EntryChange found);
            bool there = _expected.TryGetValue(place, out EntryChange expected);
            if (here == there && found == expected)
                continue;
            if (++shown <= DifferingEntriesShown)
                Compare($"ch {place}", there ? expected.ToString() : "unchanged", here ? found.ToString() : "unchanged");
        }

        if (shown > DifferingEntriesShown)
            Compare("ch", "as recorded", Text($"{shown - DifferingEntriesShown} more entries differ"));
    }

    private void Expand(in TraceRecord record, JsonElement change)
    {
        if (change.ValueKind != JsonValueKind.Array || change.GetArrayLength() is < 5 or > 6 || change[0].ValueKind != JsonValueKind.String)
            throw record.Wrong("ch", change, "[root, level, gfn, old, new, count]");
        string root = change[0].GetString()!;
        int level = (int)record.Number("ch", change[1]);
        string first = change[2].ToString();
        bool stray = first.StartsWith('!');
        ulong gfn = stray ? ulong.Parse(first.AsSpan(3), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture) : record.Number("ch", change[2]);
        ulong? old = change[3].ValueKind == JsonValueKind.Null ? null : record.Number("ch", change[3]);
        ulong? now = change[4].ValueKind == JsonValueKind.Null ? null : record.Number("ch", change[4]);
        ulong count = change.GetArrayLength() > 5 ? record.Number("ch", change[5]) : 1;
        if (level is < 1 or > 5 || count > MostEntries || root is not ['m' or 'd', ..])
            throw record.Wrong("ch", change, "a root, a level from 1 to 5, up to 2^20 entries");
        for (ulong i = 0; i < count; i++)
        {
            // The recorder leaves out what did not change.
            var entry = new EntryChange(Advanced(old, i, level), Advanced(now, i, level));
            if ((entry.Old ?? Spte.NonPresent.Value) != (entry.Now ?? Spte.NonPresent.Value))
                _expected[new EntryPlace(root, level, gfn + (i * new Level(level).Pages), stray)] = entry;
        }
    }

    private static ulong? Advanced(ulong? value, ulong steps, int level) =>
        value is { } bits && new Spte(bits).IsLeaf(new Level(level)) ? bits + (steps * new Level(level).Bytes) : value;

    // "aging with filter private: expect no change, and Accessed stays set afterwards."
    private void LeaveMirrorsAlone()
    {
        foreach (EntryPlace place in _expected.Keys.Where(p => p.Root[0] == 'm').ToArray())
        {
            _expected.Remove(place);
            _stillAccessed.Add(place);
            _agedMirror = true;
        }
    }

    private void KeepAccessed()
    {
        foreach (EntryPlace place in _expected.Keys.Where(_stillAccessed.Contains).ToArray())
        {
            EntryChange change = _expected[place];
            bool stays = change.Now is { } now && new Spte(now).IsLeaf(new Level(place.Level));
            _expected[place] = new EntryChange(change.Old | Spte.AccessedBit, stays ? change.Now | Spte.AccessedBit : change.Now);
            if (!stays)
                _stillAccessed.Remove(place);
        }
    }

    // Whether a leaf of a direct tree was young: the recorded answer without what it found in mirrors.
    private string AgedWithoutMirror(in TraceRecord record)
    {
        ulong start = record.Inputs.Number("start");
        ulong end = record.Inputs.Number("end");
        _agedMirror |= _stillAccessed.Any(p => p.Gfn >= start && p.Gfn < end);
        return _agedMirror ? Flag(_expected.Keys.Any(p => p.Root[0] == 'd')) : Ret(record);
    }

    private static string WarnedOf(in TraceRecord record)
    {
        if (record.Find("warn") is not { } warnings)
            return "none";
        var classes = new SortedSet<string>(StringComparer.Ordinal);
        foreach (JsonElement warning in warnings.EnumerateArray())
            classes.Add(warning.ToString().Split(':')[0]);
        return string.Join(", ", classes);
    }

    // Tables that are left at the end: the recorded kernel noticed them only when it was built with KVM_PROVE_MMU, ours always does.
    private static string ExpectedWarning(string operation, in TraceRecord record) => operation is "uninit" && record.Number("acct", 0) != 0 ? "WARN" : WarnedOf(record);

    // WARN and KVM_BUG_ON are findings under one rule; their text says which.
    private string Warned(int before)
    {
        var classes = new SortedSet<string>(StringComparer.Ordinal);
        foreach (Finding finding in _world.Machine.Findings.All.Skip(before).Where(f => f.Rule == "I81"))
            classes.Add(finding.Text.Contains(": BUG:", StringComparison.Ordinal) ? "VMBUG" : "WARN");
        return classes.Count == 0 ? "none" : string.Join(", ", classes);
    }

    private static string RecordedCallbacks(in TraceRecord record)
    {
        if (record.Find("cb") is not { } calls)
            return string.Empty;
        var list = new List<string>();
        foreach (JsonElement call in calls.EnumerateArray())
        {
            string name = call[0].ToString();
            var text = new StringBuilder(name);

            // Freeing a table has no result in P2.
            for (int i = 1; i < call.GetArrayLength() - (name is "free" ? 1 : 0); i++)
                text.Append(' ').Append(call[i].ToString());
            list.Add(text.ToString());
        }

        return string.Join("; ", list);
    }

    private void CompareFlushes(in TraceRecord record, bool yields)
    {
        var expected = new List<string>();
        if (record.Find("fl") is { } flushes)
        {
            foreach (JsonElement flush in flushes.EnumerateArray())
            {
                expected.Add(flush.ValueKind == JsonValueKind.String ? flush.GetString()!
                    : flush[0].ToString() == "slot" ? $"slot {flush[1].GetRawText()}"
                    : $"{flush[0]}+{flush[1].GetRawText()}");
            }
        }

        List<string> found = _world.Flushes;
        if (yields)
        {
            // How often a walk flushes in order to yield depends on where it asks.
            expected.RemoveAll(f => f == "all");
            found = [.. found.Where(f => f != "all")];
        }

        Compare("fl", string.Join(",", expected), string.Join(",", found));
    }

    private void CompareRoots(in TraceRecord record)
    {
        if (record.Find("roots") is { } roots)
            _roots = roots.GetRawText();
        string now = string.Join(",", _mmu.Roots.Select(r => Text($"[\"{r}\",{r.ReferenceCount},{(r.PeekRole().IsInvalid ? 1 : 0)},{(r.IsScheduledForZap ? 1 : 0)}]")));
        Compare("roots", _roots, $"[{now}]");
    }

    private void CompareNx(in TraceRecord record)
    {
        if (record.Find("nxl") is { } events)
        {
            foreach (JsonElement e in events.EnumerateArray())
            {
                string table = $"{e[1]} {e[2].GetRawText()} {e[3]}";
                if (e[0].ToString() == "+")
                    _nxExpected.Add(table);
                else
                    _nxExpected.Remove(table);
            }
        }

        if (_nxExpected.Count > 0 || _mmu.NxList.Count > 0)
            Compare("nxl", string.Join(",", _nxExpected), string.Join(",", _mmu.NxList.Select(t => Text($"{RootOf(t)} {t.Level.Value} 0x{t.Gfn.Value:x}"))));
    }

    // What the simulator's own checkers found; warnings are compared apart. A host whose addresses end below the alias bit leaks the shared half of a tree by nature (tdp-mmu 3.1), and the
    // recording shows just that.
    private void CompareFindings(int before)
    {
        if (_mmu.EndOfGfns <= _mmu.Options.AliasBit.GfnMask)
            return;
        foreach (Finding finding in _world.Machine.Findings.All.Skip(before).Where(f => f.Rule != "I81"))
            Compare($"rule {finding.Rule}", "holds", finding.Text);
    }

    private static string Ret(in TraceRecord record)
    {
        JsonElement value = record.Find("ret") ?? default;
        return value.ValueKind switch
        {
            JsonValueKind.String => value.GetString()!,
            JsonValueKind.Array => "[" + string.Join(",", value.EnumerateArray().Select(v => v.ToString())) + "]",
            JsonValueKind.True => "1",
            JsonValueKind.False => "0",
            _ => value.GetRawText(),
        };
    }

    private static string Words(in TraceRecord record, string member) =>
        record.Find(member) is { ValueKind: JsonValueKind.Array } list ? string.Join(",", list.EnumerateArray().Select(v => v.ToString())) : string.Empty;

    private static string Flag(bool value) => value ? "1" : "0";
}
