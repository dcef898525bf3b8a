namespace Tdp.Explorer;

/// <summary>
/// Runs a world once per schedule. Each actor has an OS thread that is kept for all executions; exactly one of them runs at a time, and it decides itself, at its own
/// points, who goes on (race-explorer 2). So the engine's state needs no locks: whoever runs owns it, and a hand-over carries it along.
/// </summary>
/// <remarks>
/// The last actor to end judges the world, resets it and begins the next execution on its own thread; the caller of <see cref="Run"/> sees only the end of
/// the batch. One engine at a time can be installed in a process.
/// </remarks>
public sealed partial class Engine : IExploration, IDisposable
{
    /// <summary>Most actors a world can have.</summary>
    public const int MaxActors = 8;

    // Places of a batch where somebody else than an actor has the turn.
    private const int Driver = -1;

    private readonly IExploredScenario _scenario;
    private readonly EngineOptions _options;
    private readonly NameTable _names = new();
    private readonly Turn _driverTurn = new();
    private readonly ActorLane[] _lanes;
    private readonly ActorThread[] _threads;
    private readonly List<OperationResult> _results = [];
    private IExploredWorld _world;
    private ExecutionRecord _record;
    private ExecutionRecord _spare;
    private SearchStrategy _strategy = null!;
    private ExecutionMode _mode;
    private Violation? _violation;
    private bool _isBounded;
    private bool _isAborted;
    private bool _isStopping;
    private bool _mustLearnFirst = true;
    private bool _sharingGrew;
    private int _laneCount;
    private int _current = Driver;
    private int _decisions;
    private uint _prologue;
    private Exception? _engineFailure;
    private Func<ExecutionEnd, bool>? _after;
    private ulong _executionSeed;

    /// <summary>Makes an engine for a scenario, its threads and its world.</summary>
    /// <param name="scenario">What is run.</param>
    /// <param name="options">How.</param>
    /// <exception cref="InvalidOperationException">The process runs free: its hooks are folded away (race-explorer 3.1).</exception>
    /// <exception cref="ExplorationException">The scenario has no or too many actors.</exception>
    public Engine(IExploredScenario scenario, EngineOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(scenario);
        if (!Explore.On)
            throw new InvalidOperationException("Nothing can be explored in a process that runs free; start it with the runtime option TdpMmu.Explore=true.");
        _scenario = scenario;
        _options = options ?? new EngineOptions();
        _world = scenario.Create();
        _laneCount = _world.Plans.Count;
        if (_laneCount is 0 or > MaxActors)
            throw new ExplorationException($"{scenario.Name} has {_laneCount} actors; allowed is 1 to {MaxActors}");
        _record = new ExecutionRecord(_names);
        _spare = new ExecutionRecord(_names);
        ScenarioHash = ScheduleRandom.HashOf(scenario.Name + "\n" + scenario.Text);
        _lanes = new ActorLane[_laneCount];
        _threads = new ActorThread[_laneCount];
        int cpu = _options.Processor;
        for (int i = 0; i < _laneCount; i++)
        {
            int index = i;
            _lanes[i] = new ActorLane(i);
            _threads[i] = new ActorThread($"explored {i}", cpu, () => Work(index));
        }
    }

    /// <summary>Hash of the scenario's name and text.</summary>
    public ulong ScenarioHash { get; }

    /// <inheritdoc/>
    public bool IsOver
    {
        get
        {
            for (int i = 0; i < _laneCount; i++)
            {
                if (!_lanes[i].IsService && _lanes[i].State != LaneState.Ended)
                    return false;
            }

            return true;
        }
    }

    /// <summary>Executions so far, repetitions for the determinism check not counted.</summary>
    public long Executions { get; private set; }

    /// <summary>Points of all executions.</summary>
    public long Points { get; private set; }

    /// <summary>Hand-overs between threads in all executions.</summary>
    public long Switches { get; private set; }

    /// <summary>Executions that were run a second time and matched.</summary>
    public long Repetitions { get; private set; }

    /// <summary>What the last execution violated, or null.</summary>
    public Violation? Violation => _violation;

    internal ExecutionRecord Record => _record;

    internal NameTable Names => _names;

    internal int LaneCount => _laneCount;

    internal IExploredScenario Scenario => _scenario;

    internal EngineOptions Options => _options;

    internal IReadOnlyList<OperationResult> Results => _results;

    /// <summary>How often the running execution switched away from an actor that could have gone on.</summary>
    internal int Preemptions { get; private set; }

    /// <summary>Longest execution seen, in decisions.</summary>
    internal int LongestExecution { get; private set; } = 1;

    /// <summary>Number of the decision being taken.</summary>
    internal int Decision => _decisions;

    internal ActorLane Lane(int index) => _lanes[index];

    internal ActorPlan Plan(int index) => _lanes[index].Plan!;

    /// <summary>
    /// Runs executions until the strategy has nothing left, the limit is reached, or <paramref name="after"/> says stop.
    /// </summary>
    /// <param name="strategy">Who decides.</param>
    /// <param name="master">The master seed.</param>
    /// <param name="limit">Most executions.</param>
    /// <param name="after">Called after each execution, on an actor's thread; true to go on.</param>
    /// <returns>True when the strategy had nothing left to try.</returns>
    internal bool Run(SearchStrategy strategy, ulong master, long limit, Func<ExecutionEnd, bool> after)
    {
        _strategy = strategy;
        _after = after;
        _master = master;
        _limit = limit;
        _executionOfBatch = 0;
        _engineFailure = null;
        _isExhausted = false;
        _record.KeepsOrder = _spare.KeepsOrder = strategy.NeedsOrder || _options.KeepsOrder;
        Hook.Install(this, this);
        try
        {
            int first = BeginExecution();
            if (first != Driver)
            {
                HandOver(first);
                _driverTurn.Take();
            }
        }
        finally
        {
            _current = Driver;
            Hook.Install(null, null);
        }

        if (_engineFailure is { } failure)
            System.Runtime.ExceptionServices.ExceptionDispatchInfo.Capture(failure).Throw();
        return _isExhausted;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _isStopping = true;
        foreach (ActorThread thread in _threads)
        {
            thread.Wake();
            thread.Dispose();
        }

        _driverTurn.Dispose();
        _world.Dispose();
    }

    private ulong _master;
    private long _limit;
    private long _executionOfBatch;
    private bool _isExhausted;

    // An actor's thread, for all executions: run the body, decide who goes on, park.
    private void Work(int index)
    {
        while (!_isStopping)
        {
            RunBody(_lanes[index]);
            int next = Ended(_lanes[index]);
            if (next == index)
            {
                _current = index;
                continue;
            }

            HandOver(next);
            _threads[index].Park();
        }
    }

    private void HandOver(int next)
    {
        _current = next;
        if (next == Driver)
        {
            _driverTurn.Give();
            return;
        }

        Switches++;
        _threads[next].Wake();
    }

    private void RunBody(ActorLane lane)
    {
        if (_mode == ExecutionMode.Abort)
            return;
        try
        {
            IReadOnlyList<ActorOperation> operations = lane.Plan!.Operations;
            for (int i = 0; i < operations.Count; i++)
            {
                lane.BeginOperation(i, _record.Count);
                long value = operations[i].Run(lane.Plan.Actor);
                if (_mode == ExecutionMode.Explore)
                    _results.Add(new OperationResult(lane.Index, i, lane.OperationBegin, lane.OperationEnd, value));
            }
        }
        catch (ExecutionAbandonedException) when (_mode == ExecutionMode.Abort)
        {
            // Thrown by the engine itself to unwind an actor that nothing can make go on.
        }
        catch (ExplorationException e)
        {
            Break(e);
        }
        catch (Exception e)
        {
            // Not swallowed: an exception of explored code is what the exploration looks for.
            lane.Failure = e;
            Fail(_world.Explain(e));
        }
    }

    // Returns who goes on: the next actor of this execution, the first of the next one, or the driver.
    private int Ended(ActorLane lane)
    {
        try
        {
            CloseEvent();
            lane.State = LaneState.Ended;
            int next = AfterArrival(lane.Index);
            return next != Driver ? next : EndExecution();
        }
        catch (ExplorationException e)
        {
            _engineFailure ??= e;
            return Driver;
        }
    }

    private int EndExecution()
    {
        while (true)
        {
            if (_engineFailure is not null)
                return Driver;
            _current = Driver;
            if (_mode == ExecutionMode.Explore && _violation is null)
                _violation = _world.AtQuiescence(_results);
            ExecutionEnd end = _violation is not null ? ExecutionEnd.Violated
                : _isBounded ? ExecutionEnd.Bounded
                : _mode == ExecutionMode.Explore ? ExecutionEnd.Clean
                : ExecutionEnd.Abandoned;
            if (!CheckRepetition(ref end, out bool again))
                return Driver;
            if (!again)
            {
                Executions++;
                _executionOfBatch++;
                Points += _record.Count;
                LongestExecution = Math.Max(LongestExecution, _decisions);
                _strategy.End(this, end);
                if (!_after!(end))
                    return Driver;
            }

            int first = BeginExecution();
            if (first != Driver || _isExhausted || _executionOfBatch >= _limit)
                return first;
        }
    }

    private int BeginExecution()
    {
        if (!_isRepeating)
        {
            if (_executionOfBatch >= _limit)
                return Driver;
            if (_sharingGrew && !_options.AllPoints)
                LearnSharing();
            _executionSeed = ScheduleRandom.SeedOf(_master, ScenarioHash, (ulong)_executionOfBatch);
            if (!_strategy.Begin(this, _executionSeed))
            {
                _isExhausted = true;
                return Driver;
            }
        }

        _current = Driver;
        _world.Reset(this, _isAborted);
        _mode = ExecutionMode.Explore;
        _isAborted = false;
        _isBounded = false;
        _violation = null;
        _open = -1;
        _decisions = 0;
        _yielded = 0;
        _stateHash = 0;
        _lastLane = -1;
        Preemptions = 0;
        _results.Clear();
        _extraCount = 0;
        _drained = 0;
        IReadOnlyList<ActorPlan> plans = _world.Plans;
        if (plans.Count != _laneCount)
            throw new ExplorationException($"{_scenario.Name} has {plans.Count} actors now; it had {_laneCount}");
        _record.Begin(_laneCount);
        _prologue = 0;
        for (int i = 0; i < _laneCount; i++)
        {
            ActorLane lane = _lanes[i];
            lane.Reset();
            lane.Plan = plans[i];
            lane.Name = plans[i].Actor.Name;
            lane.IsService = plans[i].IsService;
            if (_mustLearnFirst || !(lane.KnowsFirst || lane.StartsWithPoint))
                _prologue |= 1u << i;
        }

        if (_mustLearnFirst)
        {
            foreach (ActorLane lane in _lanes)
                lane.KnowsFirst = false;
            _mustLearnFirst = false;
        }

        return AfterArrival(Driver);
    }

    // Sharing is fixed while an execution runs, so a repetition takes the same decisions. What was learnt counts from the next one on.
    private void LearnSharing()
    {
        _sharingGrew = false;
        for (int i = 1; i < _names.Count; i++)
            _names[i].IsShared |= _names[i].ShouldBeShared;
        _mustLearnFirst = true;
        _strategy.Restart();
    }

    private enum ExecutionMode : byte
    {
        // Decisions, recording, oracles.
        Explore,

        // The rest of an execution that shows nothing more: run on, lowest actor first.
        Drain,

        // Nothing can go on: every actor is unwound by an exception.
        Abort,
    }
}

/// <summary>How an engine runs.</summary>
public sealed record EngineOptions
{
    /// <summary>The processor all threads stay on; -1 for any. Hand-overs on one processor are 2 to 3 times faster (race-explorer 2.6).</summary>
    public int Processor { get; init; } = ActorThread.CurrentProcessor();

    /// <summary>Every event is a point, even on objects that only one actor has been seen to use. For counting and for replay.</summary>
    public bool AllPoints { get; init; }

    /// <summary>Keep happens-before order for every strategy: coverage, data races.</summary>
    public bool KeepsOrder { get; init; }

    /// <summary>A plain store of the value already there counts as a look.</summary>
    public bool CommuteSameValue { get; init; }

    /// <summary>How many first executions are run twice and compared.</summary>
    public int Repetitions { get; init; } = 20;

    /// <summary>Points of one operation after which it counts as livelocked.</summary>
    public int MaxPoints { get; init; } = 10_000;

    /// <summary>Attempts of a retry loop after which an exhaustive execution counts as bounded.</summary>
    public int MaxAttempts { get; init; } = 3;
}

/// <summary>The exploration itself went wrong: a world that is not deterministic, a scenario that cannot be explored. The message is one line.</summary>
public sealed class ExplorationException : Exception
{
    /// <summary>Makes the exception.</summary>
    public ExplorationException(string message)
        : base(message)
    {
    }
}

/// <summary>Unwinds an actor of an execution that was given up because nothing could go on. Explored code must let it pass.</summary>
internal sealed class ExecutionAbandonedException : Exception;
