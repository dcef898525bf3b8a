using System.Runtime.ExceptionServices;
using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// One logical thread of a world: a vCPU, the zapper, the module's housekeeping. Actors are passed as arguments; there is no current actor
/// (decisions D27). An actor is used by one OS thread at a time.
/// </summary>
public sealed class Actor
{
    /// <summary>Most actors that one world can have. Every primitive with per-actor slots reserves this many.</summary>
    public const int Max = 64;

    private readonly ActorTable _table;
    private Thread? _thread;
    private ExceptionDispatchInfo? _failure;
    private uint _framesNamed;

    internal Actor(ActorTable table, int index, string name)
    {
        _table = table;
        Index = index;
        SlotOffset = (index + 1) * ActorSlots<int>.SlotBytes;
        Name = name;
    }

    /// <summary>Position in its world, 0..<see cref="Max"/> - 1: the index of its slot in every primitive.</summary>
    public int Index { get; }

    /// <summary>Offset of the actor's slot in every <see cref="ActorSlots{T}"/>, in bytes.</summary>
    internal nint SlotOffset { get; }

    /// <summary>Name for people, such as <c>vcpu0</c>.</summary>
    public string Name { get; }

    /// <summary>
    /// The next structural name for a frame that this actor takes from its cache: (actor, ordinal), so that independent actors never change
    /// each other's names (decisions D14). Actor number + 1 in bits 63:32.
    /// </summary>
    public ulong NextFrameName() => ((ulong)(uint)(Index + 1) << 32) | ++_framesNamed;

    /// <summary>The names start anew: for a world that is set up again under the same actors, so that every execution names its frames alike. Not while the actor runs.</summary>
    public void RestartNames() => _framesNamed = 0;

    /// <summary>Runs <paramref name="body"/> as this actor: on an OS thread of its own in a free run, on the scheduler's in an explored one.</summary>
    public void Start(Action<Actor> body)
    {
        if (Hook.Scheduler is { } scheduler)
        {
            scheduler.Start(this, body);
            return;
        }

        _thread = new Thread(() => Run(body), 4 << 20) { IsBackground = true, Name = Name };
        _thread.Start();
    }

    /// <summary>Waits until the body has ended and rethrows what it threw.</summary>
    /// <param name="waiter">The actor that waits; null for a driver outside the world.</param>
    public void Join(Actor? waiter = null)
    {
        if (waiter is not null && Hook.Scheduler is { } scheduler)
            scheduler.Join(waiter, this);
        _thread?.Join();
        _thread = null;
        ExceptionDispatchInfo? failure = _failure;
        _failure = null;
        failure?.Throw();
    }

    /// <summary>Gives the slot back. The actor must hold no lock and be in no read section.</summary>
    public void Retire() => _table.Retire(this);

    /// <inheritdoc/>
    public override string ToString() => Name;

    private void Run(Action<Actor> body)
    {
        try
        {
            body(this);
        }
        catch (Exception e)
        {
            // Not swallowed: Join rethrows it on the thread that asked for the work.
            _failure = ExceptionDispatchInfo.Capture(e);
        }
    }
}

/// <summary>The actors of one world (one simulated machine).</summary>
public sealed class ActorTable
{
    private readonly Actor?[] _actors = new Actor?[Actor.Max];
    private readonly object _gate = new();
    private int _highWater;

    /// <summary>One more than the highest index ever used; what a lock's writer has to scan.</summary>
    public int HighWater => Volatile.Read(ref _highWater);

    /// <summary>Makes an actor in the lowest free position.</summary>
    /// <exception cref="InvalidOperationException"><see cref="Actor.Max"/> actors exist already.</exception>
    public Actor Create(string name)
    {
        lock (_gate)
        {
            int index = Array.IndexOf(_actors, null);
            if (index < 0)
                throw new InvalidOperationException($"A world has at most {Actor.Max} actors.");
            Actor actor = new(this, index, name);
            _actors[index] = actor;

            // Published before the actor can touch any slot, so a writer that scans up to HighWater never misses it.
            if (index >= _highWater)
                Interlocked.Exchange(ref _highWater, index + 1);
            return actor;
        }
    }

    internal void Retire(Actor actor)
    {
        lock (_gate)
        {
            if (ReferenceEquals(_actors[actor.Index], actor))
                _actors[actor.Index] = null;
        }
    }
}

/// <summary>
/// Statistics with one padded row per actor: adding touches only the actor's own cache lines, reading sums over all rows. Sums read while
/// actors run are approximate; at quiescence they are exact (I49).
/// </summary>
public sealed unsafe class ActorCounters
{
    private const int WordsPerLine = 16;

    // Pinned; the array keeps the memory alive.
    private readonly long[] _rows;
    private readonly byte* _base;
    private readonly int _stride;
    private readonly int _slotsPerRow;
    private readonly int _counters;

    /// <summary>Makes <paramref name="counters"/> counters for every actor of a world.</summary>
    public ActorCounters(int counters)
    {
        _stride = (counters + WordsPerLine - 1) / WordsPerLine * WordsPerLine;

        // One stride in front: index 0 of a managed array shares its line with the array's length.
        _rows = GC.AllocateArray<long>(((Actor.Max + 1) * _stride) + WordsPerLine, pinned: true);
        _base = (byte*)Unsafe.AsPointer(ref _rows[0]);
        _slotsPerRow = _stride / WordsPerLine;
        _counters = counters;
    }

    /// <summary>Adds <paramref name="delta"/> to counter <paramref name="counter"/> of the actor. Only the actor's own thread may call it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Add(Actor actor, int counter, long delta = 1)
    {
        if ((uint)counter >= (uint)_counters)
            throw new ArgumentOutOfRangeException(nameof(counter), counter, "no such counter");
        Unsafe.AsRef<long>(_base + (actor.SlotOffset * _slotsPerRow) + (counter * sizeof(long))) += delta;
    }

    /// <summary>The counter's value of one actor.</summary>
    public long Of(Actor actor, int counter) => Volatile.Read(ref _rows[((actor.Index + 1) * _stride) + counter]);

    /// <summary>The counter's sum over all actors.</summary>
    public long Sum(int counter)
    {
        long sum = 0;
        for (int row = 1; row <= Actor.Max; row++)
            sum += Volatile.Read(ref _rows[(row * _stride) + counter]);
        return sum;
    }

    /// <summary>Sets every row to zero. Not while actors run.</summary>
    public void Clear() => Array.Clear(_rows);
}
