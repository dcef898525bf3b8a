using System.Globalization;
using System.Linq;
using System.Text.Json;
using Tdp.Harness.Cli;

namespace Tdp.Harness.Conformance;

/// <summary>
/// Replays one recorded sequence of the kernel's own TDP MMU (Linux 6.16.1, protocol P1) operation by operation on ours (protocol P2), and compares result, changed entries to the bit,
/// external calls, flushes, statistics, tables, roots, dirty marks, NX list and warnings. Where P2 behaves differently by design, the comparison follows the recording's own normalisations,
/// and what they say not to compare is counted under <see cref="MmuRules"/>.
/// </summary>
internal sealed partial class MmuSequence : SequenceReplay
{
    private readonly MmuReplayWorld _world;
    private readonly TdpMmu _mmu;
    private readonly MmuImage _image;
    private readonly List<string> _nxExpected = [];
    private readonly List<ReplayAnswer> _rows = [];
    private readonly Dictionary<string, (string Recorded, string Simulated)> _known = new(StringComparer.Ordinal);

    // Entries of a mirror whose Accessed bit the recorded kernel cleared: P2 leaves it.
    private readonly HashSet<EntryPlace> _stillAccessed = [];
    private int _polls;
    private string _roots = "[]";
    private string? _over;
    private string? _failure;

    /// <summary>Begins a sequence.</summary>
    /// <exception cref="UsageException">The header makes no sense.</exception>
    public MmuSequence(in TraceRecord header)
    {
        Name = header.Sequence;
        _world = new MmuReplayWorld(header);
        _mmu = _world.Mmu;
        _image = new MmuImage(_mmu, _world.Machine.Memory);
    }

    /// <inheritdoc/>
    public override string Name { get; }

    /// <inheritdoc/>
    public override string Kind => "TDP MMU";

    /// <inheritdoc/>
    public override void Dispose() => _world.Dispose();

    /// <inheritdoc/>
    public override ReplayStep Play(in TraceRecord record)
    {
        string operation = record.Text("op");
        int index = record.Integer("i", 0, int.MaxValue);
        TraceRecord inputs = record.Inputs;
        string outcome = OutcomeOf(operation, inputs, record);
        if (_over is { } rule || (rule = MmuRules.Excludes(operation, record)) is not null)
        {
            _over = rule;
            return new ReplayStep(ReplayVerdict.Excluded, Named(operation, inputs), outcome, Rule: rule);
        }

        _rows.Clear();
        if (_failure is { } earlier)
            _rows.Add(new ReplayAnswer("call", "made", earlier));
        else
            Execute(operation, index, inputs, record);
        if (!_rows.Exists(IsNews))
            return new ReplayStep(ReplayVerdict.Match, Named(operation, inputs), outcome);
        var mismatch = new ReplayMismatch(
            record.File,
            record.Line,
            Name,
            index,
            Named(operation, inputs),
            null,
            record.Note,
            [.. inputs.Json.EnumerateObject().Select(i => new ReplayOperand(i.Name, i.Value.ToString(), Meaning(i.Name, i.Value)))],
            [.. _rows.Where(r => r.Differs), .. _rows.Where(r => !r.Differs && r.Recorded.Length > 0)],
            _failure is null ? MmuEntries.Involved(_world, inputs) : []);
        return new ReplayStep(ReplayVerdict.Mismatch, Named(operation, inputs), outcome, mismatch);
    }

    private void Execute(string operation, int index, in TraceRecord inputs, in TraceRecord record)
    {
        int findings = _world.Machine.Findings.All.Count;
        bool yields = Arm(inputs);
        string result;
        try
        {
            result = Perform(operation, inputs, record);
        }
        catch (HostBugException)
        {
            // The host is gone, so nothing can follow.
            Compare("ret", Ret(record), "HOST_BUG");
            _failure = "not made: BUG(host) before";
            return;
        }
        catch (Exception e) when (e is not UsageException)
        {
            _rows.Add(new ReplayAnswer("call", "made", $"{e.GetType().Name}: {e.Message.ReplaceLineEndings(" ")}"));
            _failure = string.Create(CultureInfo.InvariantCulture, $"not made: the simulator failed at #{index}");
            return;
        }

        _mmu.NeedResched = null;
        _mmu.Rcu.Barrier(_world.Actor);
        string warned = Warned(findings);
        if (inputs.Number("injrm", 0) != 0)
        {
            Compare("VM", WarnedOf(record), warned);
            _over = MmuRules.FailedRemoval;
            return;
        }

        bool agesMirror = operation == "age" && _world.IsTd && (inputs.Number("filter", 0) & (ulong)AliasFilter.Private) != 0;
        CompareChanges(record, agesMirror);
        Compare("ret", agesMirror ? AgedWithoutMirror(record) : Ret(record), result);
        if (inputs.Number("injfr", 0) == 0)
            Compare("warn", agesMirror && _agedMirror ? "WARN" : ExpectedWarning(operation, record), warned);
        Compare("cb", RecordedCallbacks(record), string.Join("; ", _world.Callbacks));
        Compare("st", record.Array("st").GetRawText(), Statistics());
        Compare("tb", Text(record.Number("acct", record.Number("tb"))), Text((ulong)_mmu.Statistics[MmuCounter.Tables]));
        Compare("dirty", Words(record, "dirty"), string.Join(",", _world.Dirty.Select(g => Text($"0x{g:x}"))));
        CompareFlushes(record, yields);
        CompareRoots(record);
        CompareNx(record);
        CompareFindings(findings);
    }

    // Absolute members stay different once they are; the same difference again is no news.
    private bool IsNews(ReplayAnswer row)
    {
        if (row.What is not ("st" or "tb" or "roots" or "nxl"))
            return row.Differs;
        (string, string) pair = row.What is "st" or "tb" ? (Distance(row.Recorded, row.Simulated), string.Empty) : (row.Recorded, row.Simulated);
        if (!row.Differs)
        {
            _known.Remove(row.What);
            return false;
        }

        if (_known.TryGetValue(row.What, out (string, string) known) && known == pair)
            return false;
        _known[row.What] = pair;
        return true;
    }

    private static string Distance(string recorded, string simulated)
    {
        static long[] Numbers(string text) => [.. text.Trim('[', ']').Split(',').Select(n => long.Parse(n, CultureInfo.InvariantCulture))];
        return string.Join(",", Numbers(recorded).Zip(Numbers(simulated), (a, b) => a - b));
    }

    private bool Arm(TraceRecord inputs)
    {
        int error = (int)(long)inputs.Number("injerr", 0);
        _world.BeginOperation(new InjectedFailures(
            inputs.Integer("injn", 0, int.MaxValue, 0),
            error == 0 ? (int)ExternalResult.Busy : error,
            inputs.Integer("injrm", 0, int.MaxValue, 0)));
        _polls = 0;
        int every = inputs.Integer("resched", 0, int.MaxValue, 0);
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

    private void Compare(string what, string recorded, string simulated) => _rows.Add(new ReplayAnswer(what, recorded, simulated));

    // A call of the map function is one of two things: a fault on the direct tree, or one on the mirror.
    private string Named(string operation, in TraceRecord inputs) => operation is not "map" ? operation : IsPrivate(inputs) ? "map, mirror" : "map, direct";

    private bool IsPrivate(in TraceRecord inputs) => _world.IsTd && inputs.Number("sh", 0) == 0;

    private static string OutcomeOf(string operation, in TraceRecord inputs, in TraceRecord record)
    {
        JsonElement ret = record.Find("ret") ?? throw record.Wrong("the member 'ret' is missing");
        return operation switch
        {
            "alloc_root" => inputs.Number("mirror", 0) != 0 ? "root mirror" : "root direct",
            "last" when ret.ValueKind == JsonValueKind.Array && ret.GetArrayLength() > 0 => $"level {ret[0].GetRawText()}",
            "walk" => $"level {ret.GetRawText()}",
            "lpage" => "ok",
            _ => ret.ValueKind switch
            {
                JsonValueKind.Null => "done",
                JsonValueKind.String => ret.GetString()!,
                JsonValueKind.Number when operation is not ("zapsp" or "nxrecover") => ret.GetRawText() == "0" ? "false" : "true",
                _ => ret.GetRawText(),
            },
        };
    }

    private static string? Meaning(string name, JsonElement value) => (name, value.ToString()) switch
    {
        ("sh", "1") => "through the alias",
        ("sh", _) => "natural address",
        ("filter", "1") => "shared alias",
        ("filter", "2") => "private alias",
        ("filter", "3") => "both aliases",
        ("acc", "r") => "read",
        ("acc", "w") => "write",
        ("acc", "x") => "fetch",
        ("v", _) => "vCPU",
        ("types", _) => "1 invalid, 2 direct, 4 mirror",
        ("injn", _) => "this link or set fails",
        ("injrm", _) => "this removal fails",
        ("resched", _) => "polls between yields",
        _ => null,
    };

    private string Statistics() => Text($"[{_mmu.Statistics.Pages(Level.K4)},{_mmu.Statistics.Pages(Level.M2)},{_mmu.Statistics.Pages(Level.G1)}]");

    private static string Text(ulong number) => number.ToString(CultureInfo.InvariantCulture);

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
