using System.Numerics;

namespace Tdp.Explorer;

public sealed partial class Engine : IScheduler, IObserver
{
    private int _open = -1;
    private int _lastLane = -1;
    private uint _yielded;
    private ulong _stateHash;
    private int _drained;
    private bool _isChecking;
    private ActorLane? _evaluating;
    private (int Object, bool Write)[] _extra = new (int, bool)[16];
    private int _extraCount;

    /// <inheritdoc/>
    bool IScheduler.HasFairLocks => _scenario.HasFairLocks;

    /// <inheritdoc/>
    void IScheduler.Point(in PendingEvent pending)
    {
        if (_current == Driver)
            return;
        ActorLane me = _lanes[_current];
        if (pending.Kind == EventKind.Await)
            Spinning(me, pending);
        else
            Arrived(me, pending, null);
    }

    /// <inheritdoc/>
    void IScheduler.Await(in PendingEvent pending, Func<bool> enabled)
    {
        if (_current != Driver)
            Arrived(_lanes[_current], pending, enabled);
        else if (!enabled())
            throw new ExplorationException($"{_scenario.Name}: setting the world up would block at {pending.Site} on {pending.Object}");
    }

    /// <inheritdoc/>
    void IScheduler.Start(Actor actor, Action<Actor> body) =>
        throw new ExplorationException($"{_scenario.Name}: {actor} is started while the world runs; a scenario names all its actors");

    /// <inheritdoc/>
    void IScheduler.Join(Actor waiter, Actor actor) =>
        throw new ExplorationException($"{_scenario.Name}: {waiter} waits for {actor} to end; a scenario's actors do not");

    /// <inheritdoc/>
    void IObserver.Occurred(in SyncEvent happened)
    {
        if (_open < 0 || _isChecking || happened.Kind == EventKind.Mark)
            return;
        ref EventRecord e = ref _record[_open];
        e.Changed = happened.Changed;
        e.Before = happened.Before;
        e.After = happened.After;
        if (!_world.ChecksEvents || _mode != ExecutionMode.Explore)
            return;
        _isChecking = true;
        Violation? found = _world.AtEvent(happened);
        _isChecking = false;
        if (found is not null)
            Fail(found);
    }

    /// <inheritdoc/>
    void IObserver.AlsoUsed(ObjectId id, bool write)
    {
        if (_evaluating is { } lane)
        {
            lane.AddWaitRead(_names.Object(id));
            return;
        }

        if (_open < 0 || _isChecking || _current == Driver)
            return;
        if (_extraCount == _extra.Length)
            Array.Resize(ref _extra, 2 * _extraCount);
        _extra[_extraCount++] = (_names.Object(id), write);
    }

    private bool IsLocal(int obj) => !_options.AllPoints && !_names[obj].IsShared;

    private void Arrived(ActorLane me, in PendingEvent pending, Func<bool>? condition)
    {
        CloseEvent();
        if (_mode != ExecutionMode.Explore)
        {
            Drain(me, condition);
            return;
        }

        int obj = _names.Object(pending.Object);
        int site = _names.SiteOf(pending.Site);
        me.Expect(pending.Kind, obj, site, condition);
        if (++me.PointsInOperation > _options.MaxPoints)
        {
            Fail(new Violation("LIVELOCK", "I51", $"{me.Name} has made {_options.MaxPoints} points in {OperationName(me)} without ending it"));
            Drain(me, condition);
            return;
        }

        bool isLocal = IsLocal(obj) && (condition is null || (Evaluate(me) && !LooksAtShared(me)));
        if (isLocal)
        {
            Open(me, decision: -1, enabled: 0);
            return;
        }

        if (me.IsFirstGranted)
        {
            me.IsFirstGranted = false;
            me.HasArrived = true;
            if (condition is null && me.FirstKind == pending.Kind && me.FirstObject == obj && me.FirstSite == site)
            {
                Open(me, me.FirstDecision, me.FirstEnabled);
                return;
            }

            throw new ExplorationException(
                $"NONDETERMINISM: {me.Name} began with {me.FirstKind} {_names[me.FirstObject].Id} in {_names.Site(me.FirstSite)} before and with {pending.Kind} {pending.Object} in {pending.Site} now");
        }

        if (!me.HasArrived)
        {
            me.HasArrived = true;
            me.KnowsFirst = condition is null;
            (me.FirstKind, me.FirstObject, me.FirstSite) = (pending.Kind, obj, site);
        }

        PassTurn(me, AfterArrival(me.Index));
    }

    // A retry loop goes round. In an exhaustive run the next attempt waits until something that the last one read has changed: until then it would fail alike.
    private void Spinning(ActorLane me, in PendingEvent pending)
    {
        CloseEvent();
        if (_mode != ExecutionMode.Explore)
        {
            Drain(me, null, isSpinning: true);
            return;
        }

        me.Expect(EventKind.Await, _names.Object(pending.Object), _names.SiteOf(pending.Site), null);
        me.IsSpinning = true;
        me.Attempts++;
        if (++me.PointsInOperation > _options.MaxPoints)
        {
            Fail(new Violation("LIVELOCK", "I74", $"{me.Name} has made {_options.MaxPoints} points in {OperationName(me)} without ending it"));
            Drain(me, null, isSpinning: true);
            return;
        }

        if (_strategy.IsExhaustive)
        {
            if (me.Attempts > _options.MaxAttempts)
            {
                _isBounded = true;
                _mode = ExecutionMode.Drain;
                Drain(me, null, isSpinning: true);
                return;
            }

            NoteAttemptReads(me);
        }
        else
        {
            _yielded |= 1u << me.Index;
            _strategy.Yielded(this, me.Index);
            if (IsLivelocked(me))
            {
                Fail(Livelock());
                Drain(me, null, isSpinning: true);
                return;
            }
        }

        PassTurn(me, AfterArrival(me.Index));
        me.AttemptStart = _record.Count;
    }

    private void PassTurn(ActorLane me, int next)
    {
        if (next != me.Index)
        {
            HandOver(next);
            _threads[me.Index].Park();
        }

        if (_mode == ExecutionMode.Abort)
            throw new ExecutionAbandonedException();
    }

    // Who goes on, when an actor has arrived at a point or ended. First every actor whose first event is not known is taken to it.
    private int AfterArrival(int me)
    {
        while (_prologue != 0 && _mode == ExecutionMode.Explore)
        {
            int first = BitOperations.TrailingZeroCount(_prologue);
            _prologue &= _prologue - 1;
            if (_lanes[first].State == LaneState.NotStarted)
            {
                _lanes[first].State = LaneState.Started;
                return first;
            }
        }

        return Decide();
    }

    private int Decide()
    {
        while (true)
        {
            if (_mode != ExecutionMode.Explore)
                return NextDrained();
            uint enabled = Enabled();
            if (enabled == 0)
            {
                if (AllEnded())
                    return Driver;
                Fail(Deadlock());
                GiveUp();
                continue;
            }

            uint candidates = enabled & ~_yielded;
            if (candidates == 0)
            {
                // Everybody who could run goes round a retry loop.
                candidates = enabled;
                _yielded = 0;
            }

            int next = _strategy.Choose(this, candidates, _lastLane);
            if (next == SearchStrategy.Abandon)
            {
                _mode = ExecutionMode.Drain;
                continue;
            }

            Grant(_lanes[next], candidates);
            return next;
        }
    }

    private uint Enabled()
    {
        uint enabled = 0;
        for (int i = 0; i < _laneCount; i++)
        {
            ActorLane lane = _lanes[i];
            if (lane.State == LaneState.Ended)
                continue;
            if (lane.State == LaneState.NotStarted
                || (lane.IsSpinning ? !_strategy.IsExhaustive || HasChanged(lane) : lane.Condition is null || Evaluate(lane)))
            {
                enabled |= 1u << i;
            }
        }

        return enabled;
    }

    private bool AllEnded()
    {
        for (int i = 0; i < _laneCount; i++)
        {
            if (_lanes[i].State != LaneState.Ended)
                return false;
        }

        return true;
    }

    private void Grant(ActorLane lane, uint enabled)
    {
        if (_lastLane >= 0 && _lastLane != lane.Index && (enabled >> _lastLane & 1) != 0)
            Preemptions++;
        _lastLane = lane.Index;
        if (lane.State == LaneState.NotStarted)
        {
            lane.State = LaneState.Started;
            if (lane.StartsWithPoint)
            {
                lane.Expect(EventKind.Local, 0, _names.SiteOf("start"), null);
                Open(lane, _decisions++, enabled);
                return;
            }

            lane.IsFirstGranted = true;
            lane.FirstDecision = _decisions++;
            lane.FirstEnabled = enabled;
            return;
        }

        Open(lane, _decisions++, enabled);
    }

    private void Open(ActorLane lane, int decision, uint enabled)
    {
        _open = _record.Add(lane.Index, lane.PendingKind, lane.PendingObject, lane.PendingSite, lane.Operation);
        ref EventRecord e = ref _record[_open];
        e.Decision = decision;
        e.Enabled = enabled;
        if (lane.OperationBegin < 0)
            lane.OperationBegin = _open;
        lane.OperationEnd = _open + 1;
        if (lane.Condition is not null || lane.IsSpinning)
        {
            foreach (int obj in lane.WaitReads)
                AddExtra(obj, write: false);
        }

        lane.IsSpinning = false;
        lane.Condition = null;
    }

    private void AddExtra(int obj, bool write)
    {
        if (_extraCount == _extra.Length)
            Array.Resize(ref _extra, 2 * _extraCount);
        _extra[_extraCount++] = (obj, write);
    }

    // The step is over: the actor has arrived at its next point or ended. Everything it looked at since belongs to the event.
    private void CloseEvent()
    {
        int index = _open;
        if (index < 0)
            return;
        _open = -1;
        ref EventRecord e = ref _record[index];
        if (e.Object != 0)
            AddUse(index, e.Object, UseOf(e));
        for (int i = 0; i < _extraCount; i++)
            AddUse(index, _extra[i].Object, _extra[i].Write ? Use.Write : Use.Read);
        _extraCount = 0;
        _record.Close(index);
        uint others = ~(1u << e.Lane);
        if (e.Decision >= 0)
            _yielded &= ~others;
        if (e.Changed && !e.OnBlockingLock && e.Kind != EventKind.Arrive)
            _stateHash ^= e.Before == e.After ? ScheduleRandom.Mix((ulong)index) : ValueHash(e.Object, e.Before) ^ ValueHash(e.Object, e.After);
        _strategy.Executed(this, index);
    }

    private ulong ValueHash(int obj, ulong value) => ScheduleRandom.Mix(_names[obj].Hash ^ ScheduleRandom.Mix(value));

    private void AddUse(int index, int obj, Use use)
    {
        _record.AddUse(index, obj, use);
        ref NameTable.Entry entry = ref _names[obj];
        if (!entry.IsShared && entry.ShouldBeShared)
            _sharingGrew = true;
    }

    private Use UseOf(in EventRecord e) => e.Kind switch
    {
        EventKind.Arrive => Use.Add,
        EventKind.LockExclusive => Use.Write,
        EventKind.Write or EventKind.PlainWrite => _options.CommuteSameValue && !e.Changed ? Use.Read : Use.Write,
        _ => e.Changed ? Use.Write : Use.Read,
    };

    private bool Evaluate(ActorLane lane)
    {
        _evaluating = lane;
        lane.ClearWaitReads();
        bool holds = lane.Condition!();
        _evaluating = null;
        return holds;
    }

    private bool LooksAtShared(ActorLane lane)
    {
        foreach (int obj in lane.WaitReads)
        {
            if (_names[obj].IsShared)
                return true;
        }

        return false;
    }

    // What the failed attempt used, blocking locks aside: taking and leaving a lock changes nothing that the attempt depends on.
    private void NoteAttemptReads(ActorLane lane)
    {
        lane.ClearWaitReads();
        for (int i = lane.AttemptStart; i < _record.Count; i++)
        {
            if (_record[i].Lane != lane.Index)
                continue;
            foreach (ref readonly UseRecord use in _record.UsesOf(i))
            {
                if (_names[use.Object].IsShared && _names[use.Object].Id.Kind != ObjectKind.Lock)
                    lane.AddAttemptUse(use.Object, use.Version, use.Use != Use.Read);
            }
        }

        if (lane.WaitReadCount == 0)
            lane.AddWaitRead(lane.PendingObject, _record.VersionOf(lane.PendingObject));
    }

    private bool HasChanged(ActorLane lane)
    {
        ReadOnlySpan<int> objects = lane.WaitReads;
        for (int i = 0; i < objects.Length; i++)
        {
            if (_record.VersionOf(objects[i]) != lane.WaitVersion(i))
                return true;
        }

        return false;
    }
}
