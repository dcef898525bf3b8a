using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// A condition over shared cells that actors sleep on: notifier count = 0, HLT wake-up, timers, test barriers (tdp-mmu 6.5). Whoever changes one
/// of those cells calls <see cref="Wake"/> afterwards.
/// </summary>
public sealed class WaitFor
{
    private readonly object _gate = new();
    private readonly ObjectId _id;
    private int _sleepers;

    /// <summary>Makes the wait object <paramref name="name"/>.</summary>
    public WaitFor(string name, ulong owner = 0) => _id = ObjectId.Cell(name, owner);

    /// <summary>Returns when <paramref name="condition"/> holds. The condition must read through <c>Peek</c> methods only: it is evaluated at any time.</summary>
    public void Until(Actor actor, Func<bool> condition, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.AnnounceAwait(EventKind.Await, _id, site, actor, condition) : default;
        if (!condition())
        {
            // Announced before the condition is read again under the gate; Wake changes the cell before it looks for sleepers. One of them sees the other.
            Interlocked.Increment(ref _sleepers);
            lock (_gate)
            {
                while (!condition())
                    Monitor.Wait(_gate);
            }

            Interlocked.Decrement(ref _sleepers);
        }

        if (Explore.On)
            Hook.Happened(pending, false);
    }

    /// <summary>Lets the sleepers look again. Cheap when there is none.</summary>
    public void Wake()
    {
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref _sleepers) == 0)
            return;
        lock (_gate)
            Monitor.PulseAll(_gate);
    }
}

/// <summary>
/// One polite turn of a retry loop: waiting for a foreign frozen child, a fault that answers RETRY, the guest's PAUSE. The failed attempt must
/// have left nothing behind (race-explorer 5.6).
/// </summary>
public ref struct Spin
{
    private SpinWait _wait;

    /// <summary>Lets others run. <paramref name="what"/> is the object whose change would end the loop.</summary>
    public void Once(Actor? actor, ObjectId what, [CallerMemberName] string site = "")
    {
        if (Explore.On)
        {
            PendingEvent pending = Hook.Announce(EventKind.Await, what, site, actor);
            Hook.Happened(pending, false);
        }

        // Never sleeps: yields its CPU after a few turns, which is what the machine with fewer cores than actors needs.
        _wait.SpinOnce(sleep1Threshold: -1);
    }

    /// <summary>Lets others run while the word has its value.</summary>
    public void Once(Actor? actor, ref ulong word, [CallerMemberName] string site = "") =>
        Once(actor, Explore.On ? Hook.Resolve(ref word) : default, site);
}
