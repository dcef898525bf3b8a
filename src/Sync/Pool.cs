namespace Tdp.Sync;

/// <summary>
/// A shared stock of things that actors take through their own caches: frames, table pages, external pages (tdp-mmu 1.8). Only a refill touches
/// the shared stock.
/// </summary>
/// <typeparam name="T">What is kept, usually a frame number.</typeparam>
public sealed class Pool<T>
{
    private readonly Stack<T> _stock = new();
    private readonly object _gate = new();
    private readonly ObjectId _id;

    /// <summary>Makes the pool <paramref name="name"/>, empty.</summary>
    public Pool(string name, ulong owner = 0) => _id = new ObjectId(ObjectKind.Pool, name, owner, 0);

    /// <summary>How many are in stock. No event.</summary>
    public int Count
    {
        get
        {
            lock (_gate)
                return _stock.Count;
        }
    }

    /// <summary>Adds one to the stock.</summary>
    public void Give(T item, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, _id, site) : default;
        lock (_gate)
            _stock.Push(item);
        if (Explore.On)
            Hook.Happened(pending, true);
    }

    /// <summary>Takes up to <c>into.Length</c> items; returns how many there were. One event.</summary>
    public int Refill(Span<T> into, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, _id, site) : default;
        int taken = 0;
        lock (_gate)
        {
            while (taken < into.Length && _stock.TryPop(out T? item))
                into[taken++] = item;
        }

        if (Explore.On)
            Hook.Happened(pending, taken != 0);
        return taken;
    }
}

/// <summary>
/// One actor's cache in front of a <see cref="Pool{T}"/>: topped up before a lock is taken, consumed under it without failing (tdp-mmu 1.8).
/// Only its actor may use it; taking and giving are no events.
/// </summary>
/// <typeparam name="T">What is kept.</typeparam>
public sealed class ActorCache<T>
{
    private readonly Pool<T> _pool;
    private readonly T[] _items;
    private Padded<int> _stock;

    /// <summary>Makes an empty cache that holds at most <paramref name="capacity"/> items (KVM: 40).</summary>
    public ActorCache(Pool<T> pool, int capacity = 40)
    {
        _pool = pool;
        _items = new T[capacity];
    }

    /// <summary>How many items can be taken without a refill.</summary>
    public int Count => _stock.Value;

    /// <summary>Makes sure that <paramref name="least"/> items can be taken; false when the pool is empty (-ENOMEM).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool TopUp(int least) => _stock.Value >= least || Refill(least);

    /// <summary>Takes an item that <see cref="TopUp"/> guaranteed.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Take() => _stock.Value > 0 ? _items[--_stock.Value] : throw new InvalidOperationException("An item was taken that the cache was not topped up for.");

    /// <summary>Puts an unused item back.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Give(T item)
    {
        if (_stock.Value < _items.Length)
            _items[_stock.Value++] = item;
        else
            _pool.Give(item);
    }

    /// <summary>Returns everything to the pool, when the actor ends.</summary>
    public void Drain()
    {
        while (_stock.Value > 0)
            _pool.Give(_items[--_stock.Value]);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool Refill(int least)
    {
        _stock.Value += _pool.Refill(_items.AsSpan(_stock.Value));
        return _stock.Value >= least;
    }
}
