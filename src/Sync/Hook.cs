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
}

/// <summary>Sees every event after it happened, on the thread that performed it (decisions section 9: checkers, recorders).</summary>
public interface IObserver
{
    /// <summary>The event <paramref name="happened"/> has just been performed.</summary>
    void Occurred(in SyncEvent happened);
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
    private static readonly List<IWordResolver> s_resolvers = [];
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
            s_resolvers.Add(resolver);
    }

    /// <summary>Undoes <see cref="AddResolver"/>.</summary>
    public static void RemoveResolver(IWordResolver resolver)
    {
        lock (s_gate)
            s_resolvers.Remove(resolver);
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
        lock (s_gate)
        {
            foreach (IWordResolver resolver in s_resolvers)
            {
                if (resolver.TryResolve(address, out ObjectId id))
                    return id;
            }
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
