using System.Runtime.InteropServices;
using System.Threading;

namespace Tdp.Sync;

/// <summary>Somebody who takes back memory after a grace period.</summary>
public interface IRcuReclaimer
{
    /// <summary>No reader can see the thing called <paramref name="cookie"/> any more. Runs on whichever actor drives the domain.</summary>
    void Reclaim(ulong cookie);
}

/// <summary>
/// Epoch-based read-copy-update: page tables (RCU) and memslots (SRCU) (tdp-mmu 7.1, 7.2).
/// </summary>
/// <remarks>
/// A reader stores the epoch it saw in its own slot and reads on without a fence; whoever waits for readers advances the epoch and then makes
/// every CPU pass a barrier, so that either the reader's store is visible to the scan, or the reader's later loads see what was unlinked
/// before the barrier. The cost of the barrier falls on the rare side.
/// </remarks>
public sealed class RcuDomain
{
    private const int AdvanceAt = 64;
    private readonly ActorTable _actors;
    private readonly ActorSlots<ReaderSlot> _slots = new();
    private readonly Queue<Callback> _callbacks = new();
    private readonly object _gate = new();
    private readonly ObjectId _id;
    private PaddedWord _epoch = new() { Value = 1 };
    private int _waiters;

    // The epoch that the last attempt of a Call was for; 0 before the first.
    private PaddedWord _asked;

    /// <summary>Makes the domain <paramref name="name"/> for the actors of one world.</summary>
    public RcuDomain(ActorTable actors, string name, ulong owner = 0)
    {
        _actors = actors;
        _id = new ObjectId(ObjectKind.Rcu, name, owner, 0);
    }

    /// <summary>Callbacks that have not run yet. No event.</summary>
    public int Pending
    {
        get
        {
            lock (_gate)
                return _callbacks.Count;
        }
    }

    /// <summary>How many actors wait for readers just now. No event.</summary>
    public int Waiters => Volatile.Read(ref _waiters);

    /// <summary>The epoch in which the actor's read section began, or 0 outside: the same number at two looks is the same section, or one that began soon after. No event.</summary>
    public ulong SectionOf(Actor actor) => Volatile.Read(ref SlotOf(actor).Epoch);

    /// <summary>Begins a read section; sections of one actor nest.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ReadEnter(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedRead(actor, site);
        ref ReaderSlot slot = ref SlotOf(actor);
        if (slot.Depth++ == 0)
            Volatile.Write(ref slot.Epoch, Volatile.Read(ref _epoch.Value));
    }

    /// <summary>Ends a read section.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ReadExit(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedRead(actor, site);
        ref ReaderSlot slot = ref SlotOf(actor);
        if (--slot.Depth == 0)
            Volatile.Write(ref slot.Epoch, 0);
    }

    /// <summary>True while the actor is inside a read section. No event.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsReading(Actor actor) => SlotOf(actor).Depth != 0;

    /// <summary>Stops the run unless the actor is inside a read section.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AssertReading(Actor actor)
    {
        if (!IsReading(actor))
            ThrowNotReading(actor);
    }

    /// <summary>
    /// After a grace period that starts now, <paramref name="reclaimer"/> takes <paramref name="cookie"/> back. Never waits: callbacks run from a
    /// later Call, <see cref="Synchronize"/> or <see cref="Barrier"/>. May be called inside a read section.
    /// </summary>
    public void Call(Actor actor, IRcuReclaimer reclaimer, ulong cookie, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Write, _id, site, actor) : default;
        int queued;
        lock (_gate)
        {
            _callbacks.Enqueue(new Callback(Volatile.Read(ref _epoch.Value), reclaimer, cookie));
            queued = _callbacks.Count;
        }

        if (Explore.On)
            Hook.Happened(pending, true);
        else if (queued % AdvanceAt == 0)
            RunReady();
    }

    /// <summary>Waits until every read section that began before this call has ended. Must not be called inside one.</summary>
    public void Synchronize(Actor actor, [CallerMemberName] string site = "")
    {
        if (IsReading(actor))
            throw new InvalidOperationException($"{actor} waits for its own read section of {_id} (I75).");
        if (Explore.On && Hook.Scheduler is not null)
        {
            // Two events: which readers count is decided by the first, so it must be possible to interleave before it.
            PendingEvent pending = Hook.Announce(EventKind.Write, _id, site, actor);
            ulong target = Advance();
            Hook.Happened(pending, true);
            pending = Hook.AnnounceAwait(EventKind.Await, _id, site, actor, () => NoReaderBefore(target));
            RunExpired(target, wait: true);
            Hook.Happened(pending, true);
            return;
        }

        Interlocked.Increment(ref _waiters);
        RunExpired(Advance(), wait: true);
        Interlocked.Decrement(ref _waiters);
        if (Explore.On)
            Hook.Happened(new PendingEvent(EventKind.Await, _id, site, actor), true);
    }

    /// <summary>Waits until every callback queued before this call has run. Must not be called inside a read section.</summary>
    public void Barrier(Actor actor, [CallerMemberName] string site = "") => Synchronize(actor, site);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private ref ReaderSlot SlotOf(Actor actor) => ref _slots[actor];

    private void ThrowNotReading(Actor actor) => throw new InvalidOperationException($"{actor} must be inside a read section of {_id}.");

    // Everything queued under an epoch below the returned one may be taken back once no reader is left in an older epoch.
    private ulong Advance()
    {
        ulong target = Interlocked.Increment(ref _epoch.Value);
        Interlocked.MemoryBarrierProcessWide();
        return target;
    }

    private bool NoReaderBefore(ulong target)
    {
        int count = _actors.HighWater;
        for (int i = 0; i < count; i++)
        {
            ulong epoch = Volatile.Read(ref _slots.At(i).Epoch);
            if (epoch != 0 && epoch < target)
                return false;
        }

        return true;
    }

    // A Call comes from inside its caller's own section more often than not, so the grace period that starts here cannot be over yet; the one of an earlier
    // attempt may be. An older target written over a newer one only delays.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void RunReady()
    {
        ulong asked = Volatile.Read(ref _asked.Value);
        if (asked != 0)
            RunExpired(asked, wait: false);
        ulong target = Advance();
        Volatile.Write(ref _asked.Value, target);
        RunExpired(target, wait: false);
    }

    private void RunExpired(ulong target, bool wait)
    {
        var spin = default(SpinWait);
        while (!NoReaderBefore(target))
        {
            if (!wait)
                return;
            spin.SpinOnce(sleep1Threshold: -1);
        }

        while (true)
        {
            Callback callback;
            lock (_gate)
            {
                if (!_callbacks.TryPeek(out callback) || callback.Epoch >= target)
                    return;
                _callbacks.Dequeue();
                callback.Reclaimer.Reclaim(callback.Cookie);
            }
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedRead(Actor actor, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Read, _id, site, actor);
        Hook.Happened(pending, false);
    }

    private readonly record struct Callback(ulong Epoch, IRcuReclaimer Reclaimer, ulong Cookie);

    [StructLayout(LayoutKind.Explicit, Size = 128)]
    private struct ReaderSlot
    {
        [FieldOffset(0)]
        public ulong Epoch;

        [FieldOffset(8)]
        public int Depth;
    }
}
