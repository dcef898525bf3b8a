using System.Globalization;
using System.Linq;
using System.Text.Json;

namespace Tdp.Harness.Conformance;

/// <summary>
/// The state that a recording says the module has, built up from the changes on each line, and compared as a whole with the simulated module's after each call.
/// A piece that differs is reported when it begins to differ and whenever it differs in another way, not on every line after.
/// </summary>
internal sealed class RecordedModuleState(Machine machine, TdxModule module)
{
    private const int TdMembers = 10;
    private const int TdMembersInTeardown = 4;
    private const int VcpuMembers = 5;
    private const int ControlPagesForMembers = 6;
    private const ulong MostEntries = 1 << 20;
    private static readonly Dictionary<string, SeptState> s_states = Enum.GetValues<SeptState>().ToDictionary(s => s.ToString(), StringComparer.Ordinal);
    private static readonly Dictionary<string, PageType> s_types = Enum.GetValues<PageType>().ToDictionary(t => t.ToString(), StringComparer.Ordinal);
    private readonly SortedDictionary<ulong, long[]?> _tds = [];
    private readonly SortedDictionary<ulong, long[]?> _vcpus = [];
    private readonly SortedDictionary<ulong, PageRow?> _pages = [];
    private readonly Dictionary<ulong, Dictionary<(ulong Gpa, int Level), SeptRow>> _sept = [];
    private readonly Dictionary<ulong, SeptImage> _images = [];
    private readonly Dictionary<(char Kind, ulong Where), ReplayAnswer> _known = [];
    private readonly Dictionary<(ulong Tdr, ulong Gpa, int Level), (SeptRow Recorded, SeptRow Simulated)> _knownSept = [];
    private readonly Dictionary<ulong, HashSet<(ulong Gpa, int Level)>> _touched = [];
    private readonly HashSet<(ulong Gpa, int Level)> _changed = [];

    /// <summary>Takes a line's changes over.</summary>
    public void Apply(in TraceRecord record)
    {
        foreach (JsonProperty td in Changes(record, "T"))
        {
            ulong tdr = record.Address("T", td);
            _tds[tdr] = Row(record, "T", td.Value, TdMembers);
            if (_tds[tdr] is null)
                _sept.Remove(tdr);
        }

        foreach (JsonProperty vcpu in Changes(record, "V"))
            _vcpus[record.Address("V", vcpu)] = Row(record, "V", vcpu.Value, VcpuMembers);
        foreach (JsonProperty page in Changes(record, "P"))
            _pages[record.Address("P", page)] = Page(record, page.Value);
        foreach (JsonProperty td in Changes(record, "S"))
        {
            ulong tdr = record.Address("S", td);
            if (!_sept.TryGetValue(tdr, out Dictionary<(ulong Gpa, int Level), SeptRow>? tree))
                _sept[tdr] = tree = [];
            if (td.Value.ValueKind != JsonValueKind.Array)
                throw record.Wrong("S", td.Value, "lists of entries");
            foreach (JsonElement entry in td.Value.EnumerateArray())
                ApplyEntries(record, tdr, tree, entry);
        }
    }

    /// <summary>The recorded state of an entry, for reports.</summary>
    public SeptRow Recorded(ulong tdr, ulong gpa, int level) =>
        _sept.TryGetValue(tdr, out Dictionary<(ulong Gpa, int Level), SeptRow>? tree) ? tree.GetValueOrDefault((gpa, level), SeptRow.Free) : SeptRow.Free;

    /// <summary>The recorded state of a page, for reports; <see langword="null"/> when no line has spoken of it.</summary>
    public string? Recorded(ulong page) => _pages.TryGetValue(page, out PageRow? row) ? Text(row) : null;

    /// <summary>What began to differ with this call; empty when the module agrees.</summary>
    public List<ReplayAnswer> Differences()
    {
        var differences = new List<ReplayAnswer>();
        CompareTds(differences);
        CompareVcpus(differences);
        foreach ((ulong page, PageRow? expected) in _pages)
        {
            PageRow? found = module.Pamt(new Hpa(page)) is { } view ? new PageRow(view.Type, view.Owner.Value, view.Level.Tdx, view.Bepoch) : null;
            if (IsNews('P', page, expected == found))
                Report(differences, 'P', page, Text(expected), Text(found));
        }

        foreach (ulong tdr in _tds.Keys)
            CompareSept(differences, tdr);
        return differences;
    }

    private void CompareTds(List<ReplayAnswer> differences)
    {
        foreach ((ulong tdr, long[]? expected) in _tds)
        {
            long[]? found = module.Td(new Hpa(tdr)) is { } td ? Row(td) : null;

            // Once its pages can be reclaimed, the recorder read TDCS members out of pages that others may use.
            int members = expected is [(long)TdLifecycle.TEARDOWN, ..] ? TdMembersInTeardown : TdMembers;
            bool agree = expected is null || found is null ? expected == found : expected.AsSpan(0, members).SequenceEqual(found.AsSpan(0, members));
            if (IsNews('T', tdr, agree))
                Report(differences, 'T', tdr, TdText(expected, members), TdText(found, members));
        }
    }

    private void CompareVcpus(List<ReplayAnswer> differences)
    {
        IReadOnlyList<VcpuView> all = module.Vcpus();
        foreach ((ulong tdvpr, long[]? expected) in _vcpus)
        {
            long[]? found = null;
            foreach (VcpuView vcpu in all)
            {
                if (vcpu.Tdvpr.Value == tdvpr)
                    found = IsFrozen(vcpu) ? expected : [(long)vcpu.State, (long)vcpu.LastExit, vcpu.Pages, vcpu.AssociatedLp, (long)vcpu.Epoch];
            }

            bool agree = expected is null || found is null ? expected == found : expected.AsSpan().SequenceEqual(found);
            if (IsNews('V', tdvpr, agree))
                Report(differences, 'V', tdvpr, VcpuText(expected), VcpuText(found));
        }
    }

    private void CompareSept(List<ReplayAnswer> differences, ulong tdr)
    {
        if (module.Td(new Hpa(tdr)) is not { Lifecycle: TdLifecycle.KEYS_CONFIGURED, OpState: >= TdOpState.INITIALIZED } td)
        {
            // Entries are reported only meanwhile; afterwards the pages belong to others.
            _images.Remove(tdr);
            return;
        }

        if (!_sept.TryGetValue(tdr, out Dictionary<(ulong Gpa, int Level), SeptRow>? recorded))
            _sept[tdr] = recorded = [];
        _changed.Clear();
        if (_images.TryGetValue(tdr, out SeptImage? image))
        {
            if (_touched.TryGetValue(tdr, out HashSet<(ulong Gpa, int Level)>? touched))
                _changed.UnionWith(touched);
        }
        else
        {
            _images[tdr] = image = new SeptImage(machine.Memory);
            _changed.UnionWith(recorded.Keys);
        }

        _touched.Remove(tdr);
        image.Refresh(EptPointer.RootOf(td.Eptp).Value, td.RootLevel, _changed);
        foreach ((ulong gpa, int level) in _changed.Order())
        {
            SeptRow expected = recorded.GetValueOrDefault((gpa, level), SeptRow.Free);
            SeptRow found = image.Rows.GetValueOrDefault((gpa, level), SeptRow.Free);
            (ulong, ulong, int) key = (tdr, gpa, level);
            if (expected == found)
            {
                _knownSept.Remove(key);
            }
            else if (!_knownSept.TryGetValue(key, out (SeptRow, SeptRow) known) || known != (expected, found))
            {
                _knownSept[key] = (expected, found);
                differences.Add(new ReplayAnswer(Hex($"S 0x{tdr:x} gpa 0x{gpa:x} level {level}"), expected.ToString(), found.ToString()));
            }
        }
    }

    private void ApplyEntries(in TraceRecord record, ulong tdr, Dictionary<(ulong Gpa, int Level), SeptRow> tree, JsonElement entry)
    {
        if (entry.ValueKind != JsonValueKind.Array || entry.GetArrayLength() is < 4 or > 6)
            throw record.Wrong("S", entry, "[gpa, level, state, hpa, run, accepted]");
        ulong gpa = record.Number("S", entry[0]);
        ulong level = record.Number("S", entry[1]);
        ulong hpa = record.Number("S", entry[3]);
        ulong run = entry.GetArrayLength() > 4 ? record.Number("S", entry[4]) : 1;
        ulong accepted = entry.GetArrayLength() > 5 ? record.Number("S", entry[5]) : 0;
        if (level > 4 || run > MostEntries || accepted > 512)
            throw record.Wrong("S", entry, "a level up to 4, a run up to 2^20, up to 512 accepted pages");
        if (entry[2].ValueKind != JsonValueKind.String || !s_states.TryGetValue(entry[2].GetString()!, out SeptState state))
            throw record.Wrong("S", entry[2], "the name of a Secure EPT state");
        if (!_touched.TryGetValue(tdr, out HashSet<(ulong Gpa, int Level)>? touched))
            _touched[tdr] = touched = [];
        for (ulong i = 0; i < run; i++)
        {
            ulong offset = i << (12 + (9 * (int)level));
            (ulong Gpa, int Level) place = (gpa + offset, (int)level);
            touched.Add(place);
            if (state == SeptState.FREE)
                tree.Remove(place);
            else
                tree[place] = new SeptRow(state, hpa + offset, (int)accepted);
        }
    }

    private bool IsNews(char kind, ulong where, bool agree)
    {
        if (agree && _known.Count > 0)
            _known.Remove((kind, where));
        return !agree;
    }

    private void Report(List<ReplayAnswer> differences, char kind, ulong where, string recorded, string simulated)
    {
        var difference = new ReplayAnswer(Hex($"{kind} 0x{where:x}"), recorded, simulated);
        if (!_known.TryGetValue((kind, where), out ReplayAnswer? known) || known != difference)
            differences.Add(_known[(kind, where)] = difference);
    }

    private static IEnumerable<JsonProperty> Changes(TraceRecord record, string member)
    {
        if (record.Find(member) is not { } changes)
            return [];
        return changes.ValueKind == JsonValueKind.Object ? changes.EnumerateObject() : throw record.Wrong(member, changes, "an object by address");
    }

    private static long[]? Row(in TraceRecord record, string member, JsonElement row, int members)
    {
        if (row.ValueKind == JsonValueKind.Null)
            return null;
        if (row.ValueKind != JsonValueKind.Array || row.GetArrayLength() != members)
            throw record.Wrong(member, row, string.Create(CultureInfo.InvariantCulture, $"null or {members} numbers"));
        var numbers = new long[members];
        for (int i = 0; i < members; i++)
            numbers[i] = (long)record.Number(member, row[i]);
        return numbers;
    }

    private static PageRow? Page(in TraceRecord record, JsonElement row)
    {
        if (row.ValueKind == JsonValueKind.Null)
            return null;
        if (row.ValueKind != JsonValueKind.Array || row.GetArrayLength() != 4)
            throw record.Wrong("P", row, "null or [type, owner, size, BEPOCH]");
        return row[0].ValueKind == JsonValueKind.String && s_types.TryGetValue(row[0].GetString()!, out PageType type)
            ? new PageRow(type, record.Number("P", row[1]), (int)record.Number("P", row[2]), record.Number("P", row[3]))
            : throw record.Wrong("P", row[0], "the name of a page type");
    }

    private static long[] Row(TdView td) => td.ControlPages < ControlPagesForMembers
        ? [(long)td.Lifecycle, td.IsFatal ? 1 : 0, td.ChildCount, td.ControlPages, 0, 0, 0, 0, 0, 0]
        : [(long)td.Lifecycle, td.IsFatal ? 1 : 0, td.ChildCount, td.ControlPages, (long)td.OpState, td.Vcpus, td.AssociatedVcpus, (long)td.Epoch, td.RefCount0, td.RefCount1];

    // A recording goes on showing the vCPUs of a dead TD, and no longer those of one whose keys are gone.
    private bool IsFrozen(in VcpuView vcpu) => module.Td(vcpu.Tdr) is not { Lifecycle: TdLifecycle.KEYS_CONFIGURED };

    private static string TdText(long[]? row, int members)
    {
        if (row is null)
            return "no TD";
        string text = Hex($"{(TdLifecycle)row[0]}{(row[1] != 0 ? ", fatal" : string.Empty)}, CHLDCNT {row[2]}, NUM_TDCX {row[3]}");
        return members == TdMembersInTeardown ? text
            : text + Hex($", {(TdOpState)row[4]}, vCPUs {row[5]}, associated {row[6]}, TD_EPOCH {row[7]}, REFCOUNT {row[8]} {row[9]}");
    }

    private static string VcpuText(long[]? row) => row is null ? "no vCPU"
        : Hex($"{(TdVcpuState)row[0]}, last exit {(TdExitKind)row[1]}, pages {row[2]}, LP {row[3]}, VCPU_EPOCH {row[4]}");

    private static string Text(PageRow? row) => row is { } page ? page.ToString() : "outside initialised TDMRs";

    private static string Hex(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);

    private readonly record struct PageRow(PageType Type, ulong Owner, int Size, ulong Bepoch)
    {
        public override string ToString() => Hex($"{Type}, owner 0x{Owner:x}, {Level.FromTdx(Size)}, BEPOCH {Bepoch}");
    }
}
