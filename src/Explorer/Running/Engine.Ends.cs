using System.Text;

namespace Tdp.Explorer;

public sealed partial class Engine
{
    private const int MaxDrained = 200_000;
    private const int RetriesOfLivelock = 3;
    private readonly ForcedStrategy _forced = new();
    private bool _isRepeating;
    private SearchStrategy? _repeated;
    private Violation? _repeatedViolation;
    private ExecutionEnd _repeatedEnd;
    private int _lastSpinner;

    /// <summary>Index of the event at which the last execution failed.</summary>
    internal int FailedAt { get; private set; }

    // What happens while the rest of an execution is run off does not count: it was seen, or will be, in an execution of its own.
    private void Fail(Violation violation)
    {
        if (_mode != ExecutionMode.Explore)
            return;
        _violation ??= violation;
        FailedAt = _record.Count - 1;
        _mode = ExecutionMode.Drain;
    }

    private void Break(ExplorationException failure)
    {
        _engineFailure ??= failure;
        GiveUp();
    }

    private void GiveUp()
    {
        _mode = ExecutionMode.Abort;
        _isAborted = true;
    }

    // At a point of an execution that is only run off: no recording, no choice, blocking honoured.
    private void Drain(ActorLane me, Func<bool>? condition, bool isSpinning = false)
    {
        if (_mode == ExecutionMode.Abort)
        {
            if (isSpinning || (condition is not null && !condition()))
                throw new ExecutionAbandonedException();
            return;
        }

        if (++_drained > MaxDrained)
        {
            GiveUp();
            throw new ExecutionAbandonedException();
        }

        if (!isSpinning && (condition is null || condition()))
            return;
        me.Condition = condition;
        me.IsSpinning = isSpinning;
        PassTurn(me, NextDrained());
        me.Condition = null;
        me.IsSpinning = false;
    }

    private int NextDrained()
    {
        if (_mode == ExecutionMode.Drain)
        {
            int spinner = Driver;
            for (int i = 0; i < _laneCount; i++)
            {
                ActorLane lane = _lanes[i];
                if (lane.State == LaneState.Ended)
                    continue;
                if (lane.IsSpinning)
                {
                    if (spinner <= _lastSpinner)
                        spinner = i;
                    continue;
                }

                if (lane.State == LaneState.NotStarted || lane.Condition is null || lane.Condition())
                {
                    lane.State = LaneState.Started;
                    return i;
                }
            }

            if (spinner != Driver)
            {
                _lastSpinner = spinner;
                return spinner;
            }

            if (AllEnded())
                return Driver;
            GiveUp();
        }

        foreach (ActorLane lane in _lanes)
        {
            if (lane.State == LaneState.NotStarted)
                lane.State = LaneState.Ended;
            if (lane.State != LaneState.Ended)
                return lane.Index;
        }

        return Driver;
    }

    // Runs the execution that has just ended a second time and compares: the first ones, and every one that fails (race-explorer 4.5).
    private bool CheckRepetition(ref ExecutionEnd end, out bool again)
    {
        again = false;
        if (!_isRepeating)
        {
            if (end != ExecutionEnd.Violated && Executions >= _options.Repetitions)
                return true;
            again = true;
            _isRepeating = true;
            _repeated = _strategy;
            _repeatedEnd = end;
            _repeatedViolation = _violation;
            _forced.Follow(_record, _strategy);
            _strategy = _forced;
            (_record, _spare) = (_spare, _record);
            return true;
        }

        _isRepeating = false;
        _strategy = _repeated!;
        (_record, _spare) = (_spare, _record);
        string? difference = Difference(_record, _spare);
        if (difference is null && !Equals(_violation?.Class, _repeatedViolation?.Class))
            difference = $"NONDETERMINISM at the end: {_repeatedViolation?.Class ?? "clean"} first, {_violation?.Class ?? "clean"} when repeated";
        if (difference is not null)
        {
            _engineFailure ??= new ExplorationException($"{_scenario.Name}: {difference}");
            return false;
        }

        end = _repeatedEnd;
        _violation = _repeatedViolation;
        Repetitions++;
        return true;
    }

    private string? Difference(ExecutionRecord first, ExecutionRecord second)
    {
        for (int i = 0; i < Math.Max(first.Count, second.Count); i++)
        {
            string one = i < first.Count ? Describe(first, i) : "nothing";
            string two = i < second.Count ? Describe(second, i) : "nothing";
            if (!string.Equals(one, two, StringComparison.Ordinal))
                return $"NONDETERMINISM at event {i}: {one} first, {two} when repeated";
        }

        return null;
    }

    private string Describe(ExecutionRecord record, int index)
    {
        ref EventRecord e = ref record[index];
        var text = new StringBuilder();
        text.Append(_lanes[e.Lane].Name).Append(' ').Append(e.Kind).Append(' ').Append(_names.Site(e.Site));
        foreach (ref readonly UseRecord use in record.UsesOf(index))
            text.Append(' ').Append(use.Use).Append(' ').Append(_names[use.Object].Id.ToString());
        return text.ToString();
    }

    private bool IsLivelocked(ActorLane me)
    {
        if (me.StateAtRetry == _stateHash)
            me.IdleRetries++;
        else
            me.IdleRetries = 0;
        me.StateAtRetry = _stateHash;
        for (int i = 0; i < _laneCount; i++)
        {
            ActorLane lane = _lanes[i];
            if (lane.State == LaneState.Ended || (lane.State == LaneState.Started && lane.Condition is not null && !Evaluate(lane)))
                continue;
            if (lane.IdleRetries < RetriesOfLivelock || lane.StateAtRetry != _stateHash)
                return false;
        }

        return true;
    }

    private Violation Livelock()
    {
        var text = new StringBuilder("nothing changes any more while");
        string separator = " ";
        foreach (ActorLane lane in _lanes)
        {
            if (lane.State == LaneState.Ended)
                continue;
            text.Append(separator).Append(lane.Name).Append(lane.IdleRetries > 0 ? " retries " : " waits in ").Append(OperationName(lane))
                .Append(" at ").Append(_names.Site(lane.PendingSite)).Append(" on ").Append(NameOf(lane.PendingObject));
            separator = ", ";
        }

        return new Violation("LIVELOCK", "I74", text.ToString());
    }

    // Nobody can go on. Who waits for what, and for whom: the cycle first, where there is one.
    private Violation Deadlock()
    {
        var text = new StringBuilder();
        int[] waitsFor = new int[_laneCount];
        bool isSpinning = false;
        string separator = string.Empty;
        foreach (ActorLane lane in _lanes)
        {
            waitsFor[lane.Index] = -1;
            if (lane.State == LaneState.Ended)
                continue;
            isSpinning |= lane.IsSpinning;
            text.Append(separator).Append(lane.Name).Append(lane.IsSpinning ? " retries at " : " waits at ").Append(_names.Site(lane.PendingSite)).Append(" for ")
                .Append(NameOf(lane.PendingObject));
            string held = " held by ";
            for (int i = 0; i < _laneCount; i++)
            {
                if (i == lane.Index || HeldSince(lane.PendingObject, i) is not { } since || since < 0)
                    continue;
                text.Append(held).Append(_lanes[i].Name).Append(" since ").Append(_names.Site(_record[since].Site));
                held = " and ";
                waitsFor[lane.Index] = i;
            }

            separator = "; ";
        }

        string cycle = CycleOf(waitsFor);
        return isSpinning
            ? new Violation("LIVELOCK", "I74", $"{cycle}{text}")
            : new Violation("DEADLOCK", "I75", $"{cycle}{text}");
    }

    private string CycleOf(int[] waitsFor)
    {
        for (int start = 0; start < waitsFor.Length; start++)
        {
            var path = new StringBuilder("cycle ").Append(_lanes[start].Name);
            int at = start;
            for (int step = 0; step < waitsFor.Length && waitsFor[at] >= 0; step++)
            {
                at = waitsFor[at];
                path.Append(" -> ").Append(_lanes[at].Name);
                if (at == start)
                    return path.Append(": ").ToString();
            }
        }

        return string.Empty;
    }

    // The event with which a lane took a blocking lock that it has not given back; -1 when it does not hold it.
    private int? HeldSince(int obj, int lane)
    {
        if (obj == 0 || _names[obj].Id.Kind != ObjectKind.Lock)
            return null;
        int since = -1;
        for (int i = 0; i < _record.Count; i++)
        {
            ref EventRecord e = ref _record[i];
            if (e.Object == obj && e.Lane == lane)
                since = e.Kind == EventKind.LockRelease ? -1 : e.Kind is EventKind.LockShared or EventKind.LockExclusive ? i : since;
        }

        return since;
    }

    private string NameOf(int obj) => obj == 0 ? "-" : _names[obj].Id.ToString();

    private string OperationName(ActorLane lane) => lane.Plan!.Operations[lane.Operation].Name;
}
