namespace Tdp.Explorer;

/// <summary>One event of an execution.</summary>
internal struct EventRecord
{
    public ulong Before;
    public ulong After;
    public int Object;
    public int Site;
    public int FirstUse;
    public int UseCount;

    /// <summary>Position among the events of its lane, from 1.</summary>
    public int Ordinal;

    public int Operation;

    /// <summary>Number of the decision that chose it, or -1 for a local event, which nobody else can notice.</summary>
    public int Decision;

    /// <summary>Lanes that could have run instead.</summary>
    public uint Enabled;

    public byte Lane;
    public EventKind Kind;
    public bool Changed;

    /// <summary>The object is a lock that blocks: its release orders, but cannot be reversed with an acquisition.</summary>
    public bool OnBlockingLock;

    public readonly bool IsRelease => Kind == EventKind.LockRelease && OnBlockingLock;
}

/// <summary>One use of one object by one event.</summary>
internal struct UseRecord
{
    public int Event;
    public int Object;

    /// <summary>The use of the same object before this one, or -1.</summary>
    public int Previous;

    /// <summary>How often the object had changed after this use.</summary>
    public int Version;

    public Use Use;
}

/// <summary>
/// What happened in one execution: events, the objects they used, and their happens-before order as vector clocks. Reused from execution to execution, so
/// recording allocates nothing.
/// </summary>
internal sealed class ExecutionRecord
{
    private EventRecord[] _events = new EventRecord[256];
    private UseRecord[] _uses = new UseRecord[512];
    private int[] _clocks = new int[256 * 4];
    private int _useCount;
    private int _epoch;

    public ExecutionRecord(NameTable names) => Names = names;

    public NameTable Names { get; }

    public int Count { get; private set; }

    /// <summary>Width of a clock: actors, and in a run with store buffers one more lane for each buffer.</summary>
    public int Lanes { get; private set; }

    /// <summary>True when clocks are kept: partial-order reduction, coverage, explanations. Sampling runs go without.</summary>
    public bool KeepsOrder { get; set; }

    /// <summary>Hash of the happens-before graph so far, the same for all orders of one Mazurkiewicz trace.</summary>
    public ulong OrderHash { get; private set; }

    public ref EventRecord this[int index] => ref _events[index];

    public int LastOf(int lane) => _last[lane];

    private readonly int[] _last = new int[32];
    private readonly int[] _ordinals = new int[32];

    public void Begin(int lanes)
    {
        Lanes = lanes;
        Count = 0;
        _useCount = 0;
        _epoch++;
        OrderHash = 0;
        _last.AsSpan().Fill(-1);
        _ordinals.AsSpan().Clear();
    }

    /// <summary>Begins an event. Its uses follow, then <see cref="Close"/>.</summary>
    public int Add(int lane, EventKind kind, int obj, int site, int operation)
    {
        if (Count == _events.Length)
            Array.Resize(ref _events, 2 * Count);
        int index = Count++;
        _events[index] = new EventRecord
        {
            Object = obj,
            Site = site,
            FirstUse = _useCount,
            Ordinal = ++_ordinals[lane],
            Operation = operation,
            Decision = -1,
            Lane = (byte)lane,
            Kind = kind,
            OnBlockingLock = obj != 0 && Names[obj].Id.Kind == ObjectKind.Lock,
        };
        return index;
    }

    /// <summary>Notes that event <paramref name="index"/>, the newest, used an object.</summary>
    public void AddUse(int index, int obj, Use use)
    {
        ref EventRecord e = ref _events[index];
        ref NameTable.Entry entry = ref Names[obj];
        if (entry.Epoch != _epoch)
        {
            entry.Epoch = _epoch;
            entry.Head = -1;
            entry.Version = 0;
        }

        // The same object again in one event: one use, the stronger of the two.
        for (int i = e.FirstUse; i < _useCount; i++)
        {
            if (_uses[i].Object != obj)
                continue;
            if (use != Use.Read && _uses[i].Use == Use.Read)
            {
                _uses[i].Use = use;
                _uses[i].Version = ++entry.Version;
                NoteUse(ref entry, e.Lane, use);
            }

            return;
        }

        if (_useCount == _uses.Length)
            Array.Resize(ref _uses, 2 * _useCount);
        if (use != Use.Read)
            entry.Version++;
        _uses[_useCount] = new UseRecord { Event = index, Object = obj, Previous = entry.Head, Version = entry.Version, Use = use };
        entry.Head = _useCount++;
        e.UseCount = _useCount - e.FirstUse;
        NoteUse(ref entry, e.Lane, use);
    }

    /// <summary>The event is complete: its clock is known from here on.</summary>
    public void Close(int index)
    {
        ref EventRecord e = ref _events[index];
        if (KeepsOrder)
        {
            Join(index);
            OrderHash += HashOf(index);
        }

        _last[e.Lane] = index;
    }

    public ReadOnlySpan<UseRecord> UsesOf(int index) => _uses.AsSpan(_events[index].FirstUse, _events[index].UseCount);

    public ref UseRecord UseAt(int number) => ref _uses[number];

    /// <summary>The newest use of an object in this execution, or -1.</summary>
    public int NewestUse(int obj) => Names[obj].Epoch == _epoch ? Names[obj].Head : -1;

    public int VersionOf(int obj) => Names[obj].Epoch == _epoch ? Names[obj].Version : 0;

    public ReadOnlySpan<int> ClockOf(int index) => _clocks.AsSpan(index * Lanes, Lanes);

    /// <summary>True when <paramref name="earlier"/> happens before the event (or moment) that has the clock.</summary>
    public bool IsCovered(int earlier, ReadOnlySpan<int> clock) => clock[_events[earlier].Lane] >= _events[earlier].Ordinal;

    /// <summary>Hash of one event with what it is, what it did, and its causal past.</summary>
    public ulong HashOf(int index)
    {
        ref EventRecord e = ref _events[index];
        ulong h = ScheduleRandom.Mix(Names.SiteHash(e.Site) ^ (e.Object == 0 ? 0 : Names[e.Object].Hash) ^ ((ulong)e.Lane << 8) ^ (ulong)e.Kind);
        foreach (ref readonly UseRecord use in UsesOf(index))
            h = ScheduleRandom.Mix(h ^ Names[use.Object].Hash ^ ((ulong)use.Use << 60));
        if (KeepsOrder)
        {
            foreach (int component in ClockOf(index))
                h = ScheduleRandom.Mix(h ^ (uint)component);
        }

        return h;
    }

    /// <summary>A copy that later executions leave alone.</summary>
    public ExecutionRecord Copy()
    {
        var copy = new ExecutionRecord(Names)
        {
            _events = _events.AsSpan(0, Math.Max(1, Count)).ToArray(),
            _uses = _uses.AsSpan(0, Math.Max(1, _useCount)).ToArray(),
            _clocks = KeepsOrder ? _clocks.AsSpan(0, Math.Max(1, Count * Lanes)).ToArray() : [],
            _useCount = _useCount,
            Count = Count,
            Lanes = Lanes,
            KeepsOrder = KeepsOrder,
            OrderHash = OrderHash,
            _epoch = -2, // the table's heads belong to other executions
        };
        _last.CopyTo(copy._last, 0);
        _ordinals.CopyTo(copy._ordinals, 0);
        return copy;
    }

    private static void NoteUse(ref NameTable.Entry entry, int lane, Use use)
    {
        uint bit = 1u << lane;
        entry.Users |= bit;
        if (use != Use.Read)
            entry.Writers |= bit;
        if (use != Use.Add)
            entry.NonAdders |= bit;
    }

    // Program order, and every earlier conflicting use. Walking an object's uses backwards may stop at a write: whatever came before it is in its clock.
    private void Join(int index)
    {
        int need = (index + 1) * Lanes;
        if (_clocks.Length < need)
            Array.Resize(ref _clocks, Math.Max(need, 2 * _clocks.Length));
        Span<int> clock = _clocks.AsSpan(index * Lanes, Lanes);
        ref EventRecord e = ref _events[index];
        int last = _last[e.Lane];
        if (last >= 0)
            _clocks.AsSpan(last * Lanes, Lanes).CopyTo(clock);
        else
            clock.Clear();
        clock[e.Lane] = e.Ordinal;
        for (int u = e.FirstUse; u < e.FirstUse + e.UseCount; u++)
        {
            Use mine = _uses[u].Use;
            for (int p = _uses[u].Previous; p >= 0; p = _uses[p].Previous)
            {
                if (!NameTable.Conflict(mine, _uses[p].Use))
                    continue;
                Span<int> other = _clocks.AsSpan(_uses[p].Event * Lanes, Lanes);
                for (int i = 0; i < other.Length; i++)
                    clock[i] = Math.Max(clock[i], other[i]);
                if (_uses[p].Use == Use.Write)
                    break;
            }
        }
    }
}
