using System.Threading;

namespace Tdp.Sync;

/// <summary>Decides which actor runs at each point of an explored run (race-explorer 2).</summary>
public interface IScheduler
{
    /// <summary>Called on the actor's own thread just before an event. Returns when the actor may perform it.</summary>
    void Point(in PendingEvent pending);

    /// <summary>
    /// Called on the actor's own thread before a blocking event. Returns only when <paramref name="enabled"/> holds and the actor was picked;
    /// no other actor runs between the evaluation and the event.
    /// </summary>
    void Await(in PendingEvent pending, Func<bool> enabled);

    /// <summary>Runs <paramref name="body"/> as <paramref name="actor"/> on a thread of the scheduler's.</summary>
    void Start(Actor actor, Action<Actor> body);

    /// <summary>Called by the actor <paramref name="waiter"/> that waits for <paramref name="actor"/> to end.</summary>
    void Join(Actor waiter, Actor actor);

    /// <summary>
    /// True when reader-writer locks are queued, as the kernel's are: a writer that has arrived keeps new readers out. False gives every order that
    /// exclusion allows, a superset (decisions D17).
    /// </summary>
    bool HasFairLocks => false;

    /// <summary>
    /// A store that x86 may keep in the store buffer of the processor (race-explorer 9). True when the scheduler took it and will call
    /// <see cref="IBufferedWord.Commit"/> later; false when the caller is to store at once.
    /// </summary>
    /// <param name="pending">The store, already announced.</param>
    /// <param name="word">Where it goes.</param>
    /// <param name="bits">What is stored.</param>
    bool TryBuffer(in PendingEvent pending, IBufferedWord word, ulong bits) => false;

    /// <summary>True when the running actor has an uncommitted store to the object; its own loads see that one.</summary>
    /// <param name="id">The object that is loaded.</param>
    /// <param name="bits">The youngest such store.</param>
    bool TryForward(ObjectId id, out ulong bits)
    {
        bits = 0;
        return false;
    }
}

/// <summary>A shared word whose plain stores can be delayed by a store buffer (race-explorer 9).</summary>
public interface IBufferedWord
{
    /// <summary>The delayed store becomes visible.</summary>
    void Commit(ulong bits);
}

/// <summary>Sees every event after it happened, on the thread that performed it (decisions section 9: checkers, recorders).</summary>
public interface IObserver
{
    /// <summary>The event <paramref name="happened"/> has just been performed.</summary>
    void Occurred(in SyncEvent happened);

    /// <summary>
    /// The event in progress, or the condition being evaluated, also used <paramref name="id"/>: an event with several objects, or a waiting actor's look
    /// at a cell.
    /// </summary>
    void AlsoUsed(ObjectId id, bool write)
    {
    }
}

/// <summary>Turns the address of a shared word into its structural name (decisions D29).</summary>
public interface IWordResolver
{
    /// <summary>False when the address is not one of this resolver's words.</summary>
    bool TryResolve(nuint address, out ObjectId id);
}

/// <summary>
/// Where primitives meet a scheduler and an observer. Nothing here runs unless <see cref="Explore.On"/>; installing either in a process
/// that runs free is refused, because the hooks are folded away and nothing would ever be seen.
/// </summary>
public static class Hook
{
    private static IWordResolver[] s_resolvers = [];
    private static WeakReference<IWordResolver>[] s_blocks = new WeakReference<IWordResolver>[16];
    private static int s_blockCount;
    private static readonly List<Func<ObjectId, string?>> s_describers = [];
    private static readonly object s_gate = new();

    /// <summary>The scheduler in control, or null: events are then only observed and blocking primitives block as in a free run.</summary>
    public static IScheduler? Scheduler { get; private set; }

    /// <summary>The observer, or null.</summary>
    public static IObserver? Observer { get; private set; }

    /// <summary>Installs a scheduler and an observer; either may be null. Not to be called while actors run.</summary>
    /// <exception cref="InvalidOperationException">The process runs free (<see cref="Explore.On"/> is false).</exception>
    public static void Install(IScheduler? scheduler, IObserver? observer)
    {
        if (!Explore.On && (scheduler is not null || observer is not null))
            throw new InvalidOperationException("Hooks are folded away in this process; start it with the runtime option TdpMmu.Explore=true.");
        Scheduler = scheduler;
        Observer = observer;
    }

    /// <summary>Registers the names of the words of one memory. Does nothing in a free run.</summary>
    public static void AddResolver(IWordResolver resolver)
    {
        if (!Explore.On)
            return;
        lock (s_gate)
            s_resolvers = [.. s_resolvers, resolver];
    }

    /// <summary>Undoes <see cref="AddResolver"/>.</summary>
    public static void RemoveResolver(IWordResolver resolver)
    {
        lock (s_gate)
            s_resolvers = Array.FindAll(s_resolvers, r => !ReferenceEquals(r, resolver));
    }

    /// <summary>Registers the names of a block of words for as long as the block is alive: an explored world makes many and disposes of none.</summary>
    internal static void AddBlock(IWordResolver block)
    {
        if (!Explore.On)
            return;
        lock (s_gate)
        {
            if (s_blockCount == s_blocks.Length)
            {
                WeakReference<IWordResolver>[] alive = Array.FindAll(s_blocks, b => b.TryGetTarget(out _));
                s_blockCount = alive.Length;
                Array.Resize(ref alive, Math.Max(16, 2 * alive.Length));
                Volatile.Write(ref s_blocks, alive);
            }

            s_blocks[s_blockCount] = new WeakReference<IWordResolver>(block);
            Volatile.Write(ref s_blockCount, s_blockCount + 1);
        }
    }

    /// <summary>Registers a room's pretty names, such as <c>spte(mirror, L1, gfn 0x123456)</c>; the first that answers wins.</summary>
    public static void AddDescriber(Func<ObjectId, string?> describer)
    {
        if (!Explore.On)
            return;
        lock (s_gate)
            s_describers.Add(describer);
    }

    /// <summary>The name of an object for people.</summary>
    public static string Describe(ObjectId id)
    {
        lock (s_gate)
        {
            foreach (Func<ObjectId, string?> describe in s_describers)
            {
                if (describe(id) is { } text)
                    return text;
            }
        }

        return id.DefaultName();
    }

    internal static ObjectId Resolve(ref ulong word) => Resolve(AddressOf(ref word));

    internal static ObjectId Resolve(nuint address)
    {
        // No lock: this is on the path of every event of an explored run.
        foreach (IWordResolver resolver in Volatile.Read(ref s_resolvers))
        {
            if (resolver.TryResolve(address, out ObjectId id))
                return id;
        }

        WeakReference<IWordResolver>[] blocks = Volatile.Read(ref s_blocks);
        for (int i = Math.Min(Volatile.Read(ref s_blockCount), blocks.Length) - 1; i >= 0; i--)
        {
            if (blocks[i] is { } reference && reference.TryGetTarget(out IWordResolver? block) && block.TryResolve(address, out ObjectId id))
                return id;
        }

        throw new InvalidOperationException("A shared word has no structural name: it lies neither in simulated memory nor in a WordBlock.");
    }

    internal static unsafe nuint AddressOf(ref ulong word) => (nuint)Unsafe.AsPointer(ref word);

    internal static PendingEvent Announce(EventKind kind, ObjectId id, string site, Actor? actor = null)
    {
        var pending = new PendingEvent(kind, id, site, actor);
        Scheduler?.Point(pending);
        return pending;
    }

    internal static PendingEvent AnnounceAwait(EventKind kind, ObjectId id, string site, Actor? actor, Func<bool> enabled)
    {
        var pending = new PendingEvent(kind, id, site, actor);
        Scheduler?.Await(pending, enabled);
        return pending;
    }

    internal static void AlsoUsed(ObjectId id, bool write = false) => Observer?.AlsoUsed(id, write);

    internal static void Happened(in PendingEvent pending, bool changed, ulong before = 0, ulong after = 0) =>
        Observer?.Occurred(new SyncEvent(pending.Kind, pending.Object, pending.Site, pending.Actor, changed, before, after));
}

/// <summary>An observer that keeps every event in order. For tests that assert the exact event list of a flow (tdp-mmu 12: FP0..FP6, ZP0..ZP8).</summary>
public sealed class EventRecorder : IObserver
{
    private readonly List<SyncEvent> _events = [];
    private readonly object _gate = new();

    /// <summary>A copy of the events so far, oldest first.</summary>
    public IReadOnlyList<SyncEvent> Events
    {
        get
        {
            lock (_gate)
                return [.. _events];
        }
    }

    /// <summary>Forgets what was recorded.</summary>
    public void Clear()
    {
        lock (_gate)
            _events.Clear();
    }

    /// <inheritdoc/>
    public void Occurred(in SyncEvent happened)
    {
        lock (_gate)
            _events.Add(happened);
    }
}
