using System.Runtime.InteropServices;
using System.Threading;

namespace Tdp.Sync;

/// <summary>A word alone on its cache lines.</summary>
[StructLayout(LayoutKind.Explicit, Size = 256)]
internal struct PaddedWord
{
    [FieldOffset(128)]
    public ulong Value;
}

/// <summary>
/// A shared variable outside simulated memory, at most 8 bytes: a vCPU's state, a flag, a published reference number. It carries its own
/// name (decisions D29) and has its cache lines to itself.
/// </summary>
/// <typeparam name="T">An unmanaged type of at most 8 bytes.</typeparam>
public sealed class SharedCell<T> : IBufferedWord
    where T : unmanaged
{
    private PaddedWord _word;

    /// <summary>Makes the cell with a first value; no event.</summary>
    public SharedCell(string name, ulong owner = 0, T initial = default)
    {
        if (Unsafe.SizeOf<T>() > sizeof(ulong))
            throw new ArgumentException($"{typeof(T).Name} does not fit into a 64-bit word.", nameof(initial));
        Id = ObjectId.Cell(name, owner);
        _word.Value = Bits(initial);
    }

    /// <summary>The cell's structural name.</summary>
    public ObjectId Id { get; }

    /// <summary>Load with acquire order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Read([CallerMemberName] string site = "") => Explore.On ? HookedRead(site) : Value(Volatile.Read(ref _word.Value));

    /// <summary>Store with release order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Write(T value, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedSwap(EventKind.Write, value, site);
        else
            Volatile.Write(ref _word.Value, Bits(value));
    }

    /// <summary>Stores a value and returns the one that was there. Full fence.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Swap(T value, [CallerMemberName] string site = "") =>
        Explore.On ? HookedSwap(EventKind.Update, value, site) : Value(Interlocked.Exchange(ref _word.Value, Bits(value)));

    /// <summary>Stores <paramref name="desired"/> iff the cell holds <paramref name="expected"/>; returns what was found. Full fence.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T CompareExchange(T expected, T desired, [CallerMemberName] string site = "") =>
        Explore.On
            ? HookedCompareExchange(expected, desired, site)
            : Value(Interlocked.CompareExchange(ref _word.Value, Bits(desired), Bits(expected)));

    /// <summary>The value without an event: for predicates of a waiting actor, for checkers and for reports.</summary>
    public T Peek()
    {
        if (Explore.On)
            Hook.AlsoUsed(Id);
        return Value(Volatile.Read(ref _word.Value));
    }

    /// <inheritdoc/>
    void IBufferedWord.Commit(ulong bits) => Interlocked.Exchange(ref _word.Value, bits);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong Bits(T value)
    {
        ulong bits = 0;
        Unsafe.As<ulong, T>(ref bits) = value;
        return bits;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static T Value(ulong bits) => Unsafe.As<ulong, T>(ref bits);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private T HookedRead(string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Read, Id, site);
        if (Hook.Scheduler is not { } scheduler || !scheduler.TryForward(Id, out ulong bits))
            bits = Volatile.Read(ref _word.Value);
        Hook.Happened(pending, false, bits, bits);
        return Value(bits);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private T HookedSwap(EventKind kind, T value, string site)
    {
        PendingEvent pending = Hook.Announce(kind, Id, site);
        ulong after = Bits(value);
        if (kind == EventKind.Write && Hook.Scheduler is { } scheduler && scheduler.TryBuffer(pending, this, after))
        {
            Hook.Happened(pending, false, after, after);
            return value;
        }

        ulong before = Interlocked.Exchange(ref _word.Value, after);
        Hook.Happened(pending, before != after, before, after);
        return Value(before);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private T HookedCompareExchange(T expected, T desired, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, Id, site);
        ulong wanted = Bits(expected);
        ulong found = Interlocked.CompareExchange(ref _word.Value, Bits(desired), wanted);
        ulong after = found == wanted ? Bits(desired) : found;
        Hook.Happened(pending, found != after, found, after);
        return Value(found);
    }
}

/// <summary>A reference count that can be taken only while it is not zero (tdp-mmu 1.4: roots).</summary>
public sealed class RefCount
{
    private readonly SharedCell<long> _count;

    /// <summary>Makes a count with a first value.</summary>
    public RefCount(string name, ulong owner, long initial) => _count = new SharedCell<long>(name, owner, initial);

    /// <summary>The count without an event.</summary>
    public long Peek() => _count.Peek();

    /// <summary>One more holder; the caller already is one.</summary>
    public void Inc([CallerMemberName] string site = "")
    {
        if (!IncUnlessZero(site))
            throw new InvalidOperationException("A count that reached zero was taken again (I82).");
    }

    /// <summary>One more holder unless there is none left. Linearizes at the successful compare-exchange.</summary>
    public bool IncUnlessZero([CallerMemberName] string site = "")
    {
        long seen = _count.Read(site);
        while (seen != 0)
        {
            long found = _count.CompareExchange(seen, seen + 1, site);
            if (found == seen)
                return true;
            seen = found;
        }

        return false;
    }

    /// <summary>One holder less; true for the last.</summary>
    public bool Dec([CallerMemberName] string site = "")
    {
        long seen = _count.Read(site);
        while (true)
        {
            if (seen <= 0)
                throw new InvalidOperationException("A count went below zero (I81).");
            long found = _count.CompareExchange(seen, seen - 1, site);
            if (found == seen)
                return seen == 1;
            seen = found;
        }
    }
}
