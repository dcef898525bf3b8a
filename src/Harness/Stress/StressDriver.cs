using System.Diagnostics;
using System.Threading;
using System.Threading.Channels;
using Microsoft.Extensions.ObjectPool;
using Tdp.Harness.Scenarios;

namespace Tdp.Harness.Stress;

/// <summary>When a stress run ends by itself.</summary>
/// <param name="Duration">After this time, or <see langword="null"/>.</param>
/// <param name="Operations">After this many steps, or <see langword="null"/>.</param>
/// <param name="Steps">The steps that may be drawn, or <see langword="null"/> for all.</param>
internal sealed record StressLimits(TimeSpan? Duration, long? Operations, IReadOnlySet<StressStep>? Steps = null);

/// <summary>Where a stress run stands.</summary>
/// <param name="Elapsed">Since its start.</param>
/// <param name="Operations">Steps performed.</param>
/// <param name="Rendezvous">How often everything was stopped and checked.</param>
internal readonly record struct StressProgress(TimeSpan Elapsed, long Operations, long Rendezvous);

/// <summary>How a stress run ended.</summary>
/// <param name="Progress">Its last figures.</param>
/// <param name="Interrupted">The user ended it.</param>
/// <param name="Failure">What a thread threw, or that no thread moved any more; <see langword="null"/> if neither.</param>
internal sealed record StressOutcome(StressProgress Progress, bool Interrupted, string? Failure);

/// <summary>
/// Runs generated steps on real threads. The director (the calling thread) draws steps, one seeded stream per thread, and sends them in pooled batches through one bounded queue per thread; finished
/// batches come back through one queue. Every 10,000 steps or every second it stops sending, waits until nothing is in flight, and has everything checked at rest.
/// </summary>
internal sealed class StressDriver
{
    private const int RendezvousEvery = 10_000;
    private static readonly TimeSpan RendezvousAfter = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan Stuck = TimeSpan.FromSeconds(60);
    private readonly TimeSpan _stuck;

    private readonly IStressTarget _target;
    private readonly ulong _seed;
    private readonly StressLimits _limits;
    private readonly ObjectPool<StressBatch> _pool = new DefaultObjectPool<StressBatch>(new StressBatchPolicy(), 256);
    private readonly Channel<StressBatch>[] _queues;
    private readonly Channel<Done> _done = Channel.CreateUnbounded<Done>(new UnboundedChannelOptions { SingleReader = true });
    private readonly SeedStream[] _streams;
    private readonly int[] _inFlight;
    private long _operations;
    private long _rendezvous;
    private string? _failure;

    /// <summary>Makes a driver.</summary>
    /// <param name="target">Where the steps are performed.</param>
    /// <param name="seed">The master seed.</param>
    /// <param name="limits">When it ends.</param>
    /// <param name="stuck">After how long without a finished batch the run counts as stuck; null: a minute.</param>
    public StressDriver(IStressTarget target, ulong seed, StressLimits limits, TimeSpan? stuck = null)
    {
        _stuck = stuck ?? Stuck;
        _target = target;
        _seed = seed;
        _limits = limits;
        _queues = new Channel<StressBatch>[target.Threads];
        _streams = new SeedStream[target.Threads];
        _inFlight = new int[target.Threads];
        for (int thread = 0; thread < target.Threads; thread++)
        {
            _queues[thread] = Channel.CreateBounded<StressBatch>(new BoundedChannelOptions(2) { SingleReader = true, SingleWriter = true });
            _streams[thread] = new SeedStream(_seed, "program", (ulong)thread);
        }
    }

    private readonly record struct Done(int Thread, StressBatch? Batch, Exception? Failure);

    /// <summary>Runs until a limit is reached, something is found, or the user ends it.</summary>
    /// <param name="report">Called about once a second, by the calling thread, while everything is at rest.</param>
    /// <param name="stop">The user's wish to end.</param>
    public StressOutcome Run(Action<StressProgress> report, CancellationToken stop)
    {
        Stopwatch clock = Stopwatch.StartNew();
        for (int thread = 0; thread < _target.Threads; thread++)
        {
            Start(thread);
        }

        bool finished = false;
        while (!finished)
        {
            Round(clock, stop);
            if (_failure is null)
            {
                _target.CheckAtRest();
                _target.Watch(isStuck: false);
                _rendezvous++;
            }

            report(new StressProgress(clock.Elapsed, _operations, _rendezvous));
            finished = _failure is not null || _target.Findings.Count != 0 || stop.IsCancellationRequested || clock.Elapsed >= (_limits.Duration ?? TimeSpan.MaxValue) || _operations >= (_limits.Operations ?? long.MaxValue);
        }

        foreach (Channel<StressBatch> queue in _queues)
        {
            queue.Writer.Complete();
        }

        // A thread that hangs cannot be joined; it is a background thread and ends with the process.
        if (_failure is null)
        {
            for (int thread = 0; thread < _target.Threads; thread++)
            {
                _target.ActorOf(thread).Join();
            }
        }

        return new StressOutcome(new StressProgress(clock.Elapsed, _operations, _rendezvous), stop.IsCancellationRequested, _failure);
    }

    // Sends until the round is full, then waits until nothing is in flight.
    private void Round(Stopwatch clock, CancellationToken stop)
    {
        TimeSpan end = clock.Elapsed + RendezvousAfter;
        if (_limits.Duration is { } duration && duration < end)
        {
            end = duration;
        }

        long most = Math.Min(_operations + RendezvousEvery, _limits.Operations ?? long.MaxValue);
        long sent = _operations;
        bool sending = true;
        while (true)
        {
            sending = sending && sent < most && clock.Elapsed < end && !stop.IsCancellationRequested && _failure is null;
            for (int thread = 0; sending && thread < _queues.Length && sent < most; thread++)
            {
                if (_inFlight[thread] < 2)
                {
                    sent += Send(thread, most - sent);
                }
            }

            if (Outstanding() == 0 && !sending)
            {
                return;
            }

            if (!Receive())
            {
                return;
            }
        }
    }

    private int Send(int thread, long most)
    {
        StressBatch batch = _pool.Get();
        int count = (int)Math.Min(thread < _target.Vcpus ? StressBatch.Capacity : StressBatch.Capacity / 8, most);
        for (int i = 0; i < count; i++)
        {
            batch.Ops.Add(thread < _target.Vcpus ? StressGenerator.Guest(_streams[thread], _target.Pages, _limits.Steps) : StressGenerator.Host(_streams[thread], _target.Pages, _limits.Steps));
        }

        // The queue has room for two, and at most two are in flight.
        if (!_queues[thread].Writer.TryWrite(batch))
        {
            throw new InvalidOperationException($"the queue of thread {thread} is full");
        }

        _inFlight[thread]++;
        return count;
    }

    // False when no thread has finished a batch for a long time.
    private bool Receive()
    {
        if (!HasNews(_stuck / 2))
        {
            // Twice the same picture, half the time apart, tells what holds the run up.
            _target.Watch(isStuck: false);
            if (!HasNews(_stuck / 2))
            {
                _target.Watch(isStuck: true);
                _failure = $"no thread finished a batch within {_stuck.TotalSeconds:0} s (I74, I75, I76); waiting for {Waiting()}";
                return false;
            }
        }

        while (_done.Reader.TryRead(out Done done))
        {
            _inFlight[done.Thread]--;
            if (done.Failure is not null)
            {
                _failure ??= $"{_target.ActorOf(done.Thread)}: {done.Failure.GetType().Name}: {done.Failure.Message} (I81)";
            }

            if (done.Batch is not null)
            {
                _operations += done.Batch.Ops.Count;
                _pool.Return(done.Batch);
            }
        }

        return true;
    }

    private bool HasNews(TimeSpan patience)
    {
        using CancellationTokenSource limit = new(patience);
        try
        {
            return _done.Reader.WaitToReadAsync(limit.Token).AsTask().GetAwaiter().GetResult();
        }
        catch (OperationCanceledException)
        {
            return false;
        }
    }

    private int Outstanding()
    {
        int sum = 0;
        foreach (int count in _inFlight)
        {
            sum += count;
        }

        return sum;
    }

    private string Waiting()
    {
        List<string> names = [];
        for (int thread = 0; thread < _inFlight.Length; thread++)
        {
            if (_inFlight[thread] != 0)
            {
                names.Add(_target.ActorOf(thread).Name);
            }
        }

        return string.Join(", ", names);
    }

    private void Start(int thread) => _target.ActorOf(thread).Start(_ =>
    {
        ChannelReader<StressBatch> queue = _queues[thread].Reader;
        while (queue.WaitToReadAsync().AsTask().GetAwaiter().GetResult())
        {
            while (queue.TryRead(out StressBatch? batch))
            {
                Exception? failure = null;
                try
                {
                    _target.Perform(thread, batch.Ops);
                }
                catch (Exception e)
                {
                    // Not swallowed: the director ends the run with it.
                    failure = e;
                }

                _done.Writer.TryWrite(new Done(thread, batch, failure));
            }
        }
    });
}
