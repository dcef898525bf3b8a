using System.Threading;
using Tdp.Harness.Scenarios;
using Tdp.Harness.Stress;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Harness;

/// <summary>The director of a stress run: it stops everything before it checks, ends when it should, and loses no failure.</summary>
public sealed class StressDriverTests
{
    [Fact]
    public void It_performs_exactly_the_steps_asked_for_and_checks_at_rest()
    {
        using FakeTarget target = new();
        StressOutcome outcome = new StressDriver(target, 1, new StressLimits(null, 25_000)).Run(_ => { }, CancellationToken.None);
        Assert.Null(outcome.Failure);
        Assert.False(outcome.Interrupted);
        Assert.Equal(25_000, outcome.Progress.Operations);
        Assert.Equal(25_000, target.Performed);
        Assert.True(outcome.Progress.Rendezvous >= 3);
        Assert.Equal(0, target.ChecksWhileBusy);
        Assert.True(target.OnlyOwnSteps);
    }

    [Fact]
    public void The_steps_of_each_thread_depend_on_the_seed_alone()
    {
        Assert.Equal(First(1), First(1));
        Assert.NotEqual(First(1), First(2));

        static string First(ulong seed)
        {
            using FakeTarget target = new();
            new StressDriver(target, seed, new StressLimits(null, 500)).Run(_ => { }, CancellationToken.None);
            return string.Join(' ', target.Seen.Select(s => string.Join(' ', s.Take(8))));
        }
    }

    [Fact]
    public void A_finding_ends_the_run_at_the_next_rendezvous()
    {
        using FakeTarget target = new() { FindAt = 15_000 };
        StressOutcome outcome = new StressDriver(target, 1, new StressLimits(null, 1_000_000)).Run(_ => { }, CancellationToken.None);
        Assert.InRange(outcome.Progress.Operations, 15_000, 30_000);
        Assert.All(target.Findings.All, f => Assert.Equal("I13", f.Rule));
    }

    [Fact]
    public void What_a_thread_throws_ends_the_run_and_is_named()
    {
        using FakeTarget target = new() { ThrowAt = 5_000 };
        StressOutcome outcome = new StressDriver(target, 1, new StressLimits(null, 1_000_000)).Run(_ => { }, CancellationToken.None);
        Assert.Contains("InvalidOperationException: broken on purpose (I81)", outcome.Failure, StringComparison.Ordinal);
    }

    [Fact]
    public void The_user_s_wish_to_end_keeps_the_figures()
    {
        using FakeTarget target = new();
        using CancellationTokenSource stop = new();
        StressOutcome outcome = new StressDriver(target, 1, new StressLimits(TimeSpan.FromHours(1), null)).Run(_ => stop.Cancel(), stop.Token);
        Assert.True(outcome.Interrupted);
        Assert.True(outcome.Progress.Operations > 0);
    }

    [Fact]
    [Trait("spec", "I74")]
    [Trait("spec", "I75")]
    [Trait("spec", "I76")]
    public void A_thread_that_never_finishes_ends_the_run_after_two_looks_at_what_holds_it_up()
    {
        using ManualResetEventSlim released = new();
        using FakeTarget target = new() { HangsUntil = released };
        StressOutcome outcome = new StressDriver(target, 1, new StressLimits(null, 1_000_000), TimeSpan.FromMilliseconds(200)).Run(_ => { }, CancellationToken.None);
        released.Set();
        Assert.StartsWith("no thread finished a batch within 0 s (I74, I75, I76); waiting for t0", outcome.Failure, StringComparison.Ordinal);
        Assert.Equal([false, true], target.Looks.TakeLast(2));
        Assert.DoesNotContain(true, target.Looks.SkipLast(1));
    }

    private sealed class FakeTarget : IStressTarget
    {
        private readonly ActorTable _actors = new();
        private readonly Actor[] _threads;
        private int _busy;
        private long _performed;

        public FakeTarget()
        {
            _threads = [.. Enumerable.Range(0, Threads).Select(i => _actors.Create($"t{i}"))];
            Seen = [.. Enumerable.Range(0, Threads).Select(_ => new List<StressOp>())];
        }

        public int Vcpus => 2;

        public int Threads => 4;

        public int Pages => 1024;

        public long FindAt { get; init; } = long.MaxValue;

        public long ThrowAt { get; init; } = long.MaxValue;

        public ManualResetEventSlim? HangsUntil { get; init; }

        public List<bool> Looks { get; } = [];

        public FindingLog Findings { get; } = new();

        public List<List<StressOp>> Seen { get; }

        public long Performed => Volatile.Read(ref _performed);

        public int ChecksWhileBusy { get; private set; }

        public bool OnlyOwnSteps { get; private set; } = true;

        public Actor ActorOf(int thread) => _threads[thread];

        public void Perform(int thread, IReadOnlyList<StressOp> ops)
        {
            if (thread == 0)
            {
                HangsUntil?.Wait();
            }

            Interlocked.Increment(ref _busy);
            OnlyOwnSteps &= ops.All(o => o.IsGuest == thread < Vcpus);
            Seen[thread].AddRange(ops);
            long now = Interlocked.Add(ref _performed, ops.Count);
            if (now >= FindAt && Findings.Count == 0)
            {
                Findings.Add("I13", "on purpose");
            }

            Interlocked.Decrement(ref _busy);
            if (now >= ThrowAt)
            {
                throw new InvalidOperationException("broken on purpose");
            }
        }

        public void Watch(bool isStuck) => Looks.Add(isStuck);

        public void CheckAtRest() => ChecksWhileBusy += Volatile.Read(ref _busy);

        public void TearDown()
        {
        }

        public void Dispose()
        {
        }
    }
}
