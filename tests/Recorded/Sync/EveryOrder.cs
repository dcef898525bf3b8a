using System.Threading;
using Tdp.Sync;

namespace Tdp.Tests.Recorded.Sync;

/// <summary>
/// A scheduler for tests of the primitives themselves: it runs a small world once for every order of its events, depth first. It proves that the
/// scheduler interface suffices to control a world; the real explorer is another matter.
/// </summary>
internal sealed class EveryOrder : IScheduler
{
    private readonly List<int> _choices = [];
    private readonly List<int> _widths = [];
    private readonly List<Runner> _runners = [];
    private readonly SemaphoreSlim _done = new(0);
    private Exception? _failure;
    private Runner? _current;
    private int _depth;

    /// <summary>Runs <paramref name="world"/> in every order; returns how many there were. The world starts its actors and returns what to check at the end.</summary>
    public static int Run(Func<Action> world, int limit = 200_000)
    {
        var scheduler = new EveryOrder();
        int executions = 0;
        do
        {
            scheduler.RunOnce(world);
            if (++executions > limit)
                throw new InvalidOperationException($"more than {limit} orders");
        }
        while (scheduler.NextOrder());
        return executions;
    }

    public void Start(Actor actor, Action<Actor> body)
    {
        var runner = new Runner(actor);
        _runners.Add(runner);
        runner.Thread = new Thread(() =>
        {
            runner.Go.Wait();
            try
            {
                body(actor);
            }
            catch (Exception e)
            {
                _failure ??= e;
            }

            runner.IsFinished = true;
            PassOn();
        })
        { IsBackground = true };
        runner.Thread.Start();
    }

    public void Join(Actor waiter, Actor actor) => throw new NotSupportedException("actors of these worlds do not join each other");

    public void Point(in PendingEvent pending)
    {
        // The test's own thread sets the world up and looks at it afterwards.
        if (_current is { } me)
            Yield(me, () => true);
    }

    public void Await(in PendingEvent pending, Func<bool> enabled)
    {
        if (_current is { } me)
            Yield(me, enabled);
        else if (!enabled())
            throw new InvalidOperationException("the test's own thread would block");
    }

    private void RunOnce(Func<Action> world)
    {
        _runners.Clear();
        _depth = 0;
        _failure = null;
        _current = null;
        Hook.Install(this, null);
        try
        {
            Action check = world();
            PassOn();
            _done.Wait();
            foreach (Runner runner in _runners)
                runner.Thread!.Join();
            _current = null;
            if (_failure is not null)
                throw new InvalidOperationException($"in order {string.Join(' ', _choices)}: {_failure.Message}", _failure);
            check();
        }
        finally
        {
            Hook.Install(null, null);
        }
    }

    private void Yield(Runner me, Func<bool> enabled)
    {
        me.Enabled = enabled;
        Runner? next = Pick();
        if (next is null)
            throw new InvalidOperationException("deadlock");
        if (ReferenceEquals(next, me))
            return;
        _current = next;
        next.Go.Release();
        me.Go.Wait();
    }

    private void PassOn()
    {
        Runner? next = Pick();
        if (next is null)
        {
            if (_runners.Any(r => !r.IsFinished))
                _failure ??= new InvalidOperationException("deadlock");
            _current = null;
            _done.Release();
            return;
        }

        _current = next;
        next.Go.Release();
    }

    private Runner? Pick()
    {
        List<Runner> enabled = [.. _runners.Where(r => !r.IsFinished && r.Enabled())];
        if (enabled.Count == 0)
            return null;
        if (_depth == _choices.Count)
        {
            _choices.Add(0);
            _widths.Add(enabled.Count);
        }

        _widths[_depth] = enabled.Count;
        return enabled[_choices[_depth++]];
    }

    private bool NextOrder()
    {
        _choices.RemoveRange(_depth, _choices.Count - _depth);
        for (int i = _depth - 1; i >= 0; i--)
        {
            if (++_choices[i] < _widths[i])
                return true;
            _choices.RemoveAt(i);
            _widths.RemoveRange(i, _widths.Count - i);
        }

        return false;
    }

    private sealed class Runner(Actor actor)
    {
        public Actor Actor { get; } = actor;

        public SemaphoreSlim Go { get; } = new(0);

        public Thread? Thread { get; set; }

        public Func<bool> Enabled { get; set; } = () => true;

        public bool IsFinished { get; set; }
    }
}
