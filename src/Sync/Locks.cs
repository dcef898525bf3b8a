using System.Threading;

namespace Tdp.Sync;

/// <summary>A spinning lock for sections of a few instructions: tdp_mmu_pages_lock, mn_invalidate_lock (tdp-mmu 7.1). Not recursive.</summary>
public sealed class SpinLock
{
    private readonly ObjectId _id;
    private readonly Func<bool> _isFree;
    private PaddedWord _owner;

    /// <summary>Makes the lock <paramref name="name"/>.</summary>
    public SpinLock(string name, ulong owner = 0)
    {
        _id = ObjectId.Lock(name, owner);
        _isFree = () => Volatile.Read(ref _owner.Value) == 0;
    }

    /// <summary>Enters, spinning while another actor is inside. Linearizes at the compare-exchange that finds the lock free.</summary>
    public void Enter(Actor actor, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On
            ? Hook.AnnounceAwait(EventKind.LockExclusive, _id, site, actor, _isFree)
            : default;
        var wait = default(SpinWait);
        while (Interlocked.CompareExchange(ref _owner.Value, (ulong)(actor.Index + 1), 0) != 0)
        {
            if (Volatile.Read(ref _owner.Value) == (ulong)(actor.Index + 1))
                throw new InvalidOperationException($"{actor} enters {_id} twice.");
            wait.SpinOnce(sleep1Threshold: -1);
        }

        if (Explore.On)
            Hook.Happened(pending, true);
    }

    /// <summary>Leaves.</summary>
    public void Exit(Actor actor, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.LockRelease, _id, site, actor) : default;
        AssertHeld(actor);
        Volatile.Write(ref _owner.Value, 0);
        if (Explore.On)
            Hook.Happened(pending, true);
    }

    /// <summary>True when the actor is inside. No event.</summary>
    public bool IsHeld(Actor actor) => Volatile.Read(ref _owner.Value) == (ulong)(actor.Index + 1);

    /// <summary>Stops the run unless the actor is inside.</summary>
    public void AssertHeld(Actor actor)
    {
        if (!IsHeld(actor))
            throw new InvalidOperationException($"{_id} must be held by {actor}.");
    }
}

/// <summary>A blocking lock for long sections: kvm->lock, slots_lock, vcpu->mutex, tdx_lock (tdp-mmu 7.1). Not recursive.</summary>
public sealed class Mutex
{
    private readonly ObjectId _id;
    private readonly Func<bool> _isFree;
    private readonly object _gate = new();
    private int _owner;

    /// <summary>Makes the lock <paramref name="name"/>.</summary>
    public Mutex(string name, ulong owner = 0)
    {
        _id = ObjectId.Lock(name, owner);
        _isFree = () => Volatile.Read(ref _owner) == 0;
    }

    /// <summary>Enters, sleeping while another actor is inside.</summary>
    public void Enter(Actor actor, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On
            ? Hook.AnnounceAwait(EventKind.LockExclusive, _id, site, actor, _isFree)
            : default;
        if (IsHeld(actor))
            throw new InvalidOperationException($"{actor} enters {_id} twice.");

        // A scheduler excludes by the condition above, and may abandon an actor inside: its OS thread must own nothing then.
        if (!Explore.On || Hook.Scheduler is null)
            Monitor.Enter(_gate);
        Volatile.Write(ref _owner, actor.Index + 1);
        if (Explore.On)
            Hook.Happened(pending, true);
    }

    /// <summary>Leaves.</summary>
    public void Exit(Actor actor, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.LockRelease, _id, site, actor) : default;
        AssertHeld(actor);
        Volatile.Write(ref _owner, 0);
        if (!Explore.On || Monitor.IsEntered(_gate))
            Monitor.Exit(_gate);
        if (Explore.On)
            Hook.Happened(pending, true);
    }

    /// <summary>True when the actor is inside. No event.</summary>
    public bool IsHeld(Actor actor) => Volatile.Read(ref _owner) == actor.Index + 1;

    /// <summary>Stops the run unless the actor is inside.</summary>
    public void AssertHeld(Actor actor)
    {
        if (!IsHeld(actor))
            throw new InvalidOperationException($"{_id} must be held by {actor}.");
    }
}
