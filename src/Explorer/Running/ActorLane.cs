namespace Tdp.Explorer;

/// <summary>Where an actor is in the current execution.</summary>
internal enum LaneState : byte
{
    /// <summary>Its body has not begun. Its first event may be known from an earlier execution.</summary>
    NotStarted,

    /// <summary>It runs, or is parked at a point.</summary>
    Started,

    /// <summary>Its body has ended.</summary>
    Ended,
}

/// <summary>What the engine knows about one actor.</summary>
internal sealed class ActorLane
{
    private int[] _waitReads = new int[8];
    private int[] _waitVersions = new int[8];

    public ActorLane(int index) => Index = index;

    public int Index { get; }

    public string Name { get; set; } = string.Empty;

    public ActorPlan? Plan { get; set; }

    public bool IsService { get; set; }

    public LaneState State { get; set; }

    /// <summary>The event it is parked before.</summary>
    public EventKind PendingKind { get; set; }

    public int PendingObject { get; set; }

    public int PendingSite { get; set; }

    /// <summary>The condition of a blocking event; null for the others.</summary>
    public Func<bool>? Condition { get; set; }

    /// <summary>It goes round a retry loop, which in an exhaustive run waits for a change of what it read.</summary>
    public bool IsSpinning { get; set; }

    /// <summary>The first event was chosen before the body began; the body's arrival at it is no point.</summary>
    public bool IsFirstGranted { get; set; }

    /// <summary>The first event that others can notice, when it does not block: the same in every execution, for the world is the same.</summary>
    public bool KnowsFirst { get; set; }

    public EventKind FirstKind { get; set; }

    public int FirstObject { get; set; }

    public int FirstSite { get; set; }

    /// <summary>The decision that chose the first event before the body began.</summary>
    public int FirstDecision { get; set; }

    public uint FirstEnabled { get; set; }

    /// <summary>Its body looks at shared state before its first event: then its start is an event of its own.</summary>
    public bool StartsWithPoint { get; set; }

    /// <summary>It has reached an event that others can notice.</summary>
    public bool HasArrived { get; set; }

    public int Operation { get; set; }

    public int PointsInOperation { get; set; }

    /// <summary>First event of the operation, or -1; one past its last.</summary>
    public int OperationBegin { get; set; }

    public int OperationEnd { get; set; }

    /// <summary>First event of the current attempt of a retry loop, for what it read.</summary>
    public int AttemptStart { get; set; }

    public int Attempts { get; set; }

    /// <summary>How often in a row a retry found the world's values as the retry before it.</summary>
    public int IdleRetries { get; set; }

    public ulong StateAtRetry { get; set; }

    public Exception? Failure { get; set; }

    /// <summary>Objects that the condition looked at when it was last evaluated.</summary>
    public ReadOnlySpan<int> WaitReads => _waitReads.AsSpan(0, WaitReadCount);

    public int WaitReadCount { get; private set; }

    public void ClearWaitReads() => WaitReadCount = 0;

    /// <summary>The wait depends on an object; of several looks at one object the first that is noted counts.</summary>
    public void AddWaitRead(int obj, int version = 0)
    {
        if (_waitReads.AsSpan(0, WaitReadCount).Contains(obj))
            return;
        if (WaitReadCount == _waitReads.Length)
        {
            Array.Resize(ref _waitReads, 2 * WaitReadCount);
            Array.Resize(ref _waitVersions, 2 * WaitReadCount);
        }

        _waitVersions[WaitReadCount] = version;
        _waitReads[WaitReadCount++] = obj;
    }

    /// <summary>The wait depends on an object used in the failed attempt; the attempt's own changes do not end it.</summary>
    public void AddAttemptUse(int obj, int version, bool changed)
    {
        int position = _waitReads.AsSpan(0, WaitReadCount).IndexOf(obj);
        if (position < 0)
            AddWaitRead(obj, version);
        else if (changed)
            _waitVersions[position]++;
    }

    public int WaitVersion(int position) => _waitVersions[position];

    public void Expect(EventKind kind, int obj, int site, Func<bool>? condition)
    {
        PendingKind = kind;
        PendingObject = obj;
        PendingSite = site;
        Condition = condition;
    }

    public void BeginOperation(int operation, int events)
    {
        Operation = operation;
        PointsInOperation = 0;
        Attempts = 0;
        IdleRetries = 0;
        AttemptStart = events;
        OperationBegin = -1;
        OperationEnd = events;
    }

    public void Reset()
    {
        State = LaneState.NotStarted;
        Condition = null;
        IsSpinning = false;
        IsFirstGranted = false;
        HasArrived = false;
        BeginOperation(0, 0);
        Failure = null;
        WaitReadCount = 0;
    }
}
