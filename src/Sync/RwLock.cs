using System.Runtime.InteropServices;
using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// A reader-writer lock whose readers share no cache line: mmu_lock (tdp-mmu 7.1).
/// </summary>
/// <remarks>
/// Protocol. A reader sets the flag in its own slot with a full fence and then looks for a writer; a writer announces itself with a full
/// fence and then waits for every slot to be clear. Of the two, at least one sees the other (store buffering), so no reader is inside while a
/// writer is. A reader that sees a writer clears its slot again and waits.
/// Fairness in a free run: new readers back off as soon as a writer has announced itself, so zaps do not starve; a writer that follows
/// another lets the readers that were already waiting go first, so faults do not starve either (decisions D17).
/// Under a scheduler the lock is unfair: every order that exclusion allows is possible.
/// The lock is not recursive. Linearization: read acquisition at the check that finds no writer, write acquisition at the check that finds
/// the last slot clear.
/// </remarks>
public sealed class RwLock
{
    private const int PatienceWithReaders = 64;
    private readonly ActorTable _actors;
    private readonly ReaderSlot[] _slots = GC.AllocateArray<ReaderSlot>(Actor.Max + 1, pinned: true);
    private readonly object _writers = new();
    private readonly ObjectId _id;
    private PaddedWord _writer;
    private PaddedWord _waiting;

    /// <summary>Makes the lock <paramref name="name"/> for the actors of one world.</summary>
    public RwLock(ActorTable actors, string name, ulong owner = 0)
    {
        _actors = actors;
        _id = ObjectId.Lock(name, owner);
    }

    private ref ulong Writer => ref _writer.Value;

    /// <summary>Enters the read side. Many readers at once; waits while a writer is inside or announced.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void EnterRead(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
        {
            HookedEnterRead(actor, site);
            return;
        }

        ref ulong flag = ref SlotOf(actor);
        Interlocked.Exchange(ref flag, 1);
        if (Volatile.Read(ref Writer) != 0)
            WaitForWriter(ref flag);
    }

    /// <summary>Leaves the read side.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ExitRead(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedExit(actor, site, write: false);
        else
            Volatile.Write(ref SlotOf(actor), 0);
    }

    /// <summary>Enters the write side, alone.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void EnterWrite(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
        {
            PendingEvent pending = Hook.AnnounceAwait(EventKind.LockExclusive, _id, site, actor, () => Volatile.Read(ref Writer) == 0 && NoReader());
            AcquireWrite(actor);
            Hook.Happened(pending, true);
            return;
        }

        AcquireWrite(actor);
    }

    /// <summary>Leaves the write side.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void ExitWrite(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
        {
            HookedExit(actor, site, write: true);
            return;
        }

        ReleaseWrite();
    }

    /// <summary>
    /// True when somebody waits for what the caller holds: a writer behind a reader, or anybody behind a writer. Long walks ask it to decide
    /// whether to yield (tdp-mmu 3.3).
    /// </summary>
    public bool IsContended([CallerMemberName] string site = "")
    {
        if (!Explore.On)
            return Volatile.Read(ref _waiting.Value) != 0;
        PendingEvent pending = Hook.Announce(EventKind.Read, _id, site);
        bool contended = Volatile.Read(ref _waiting.Value) != 0;
        Hook.Happened(pending, false, contended ? 1UL : 0, contended ? 1UL : 0);
        return contended;
    }

    /// <summary>True when the actor holds the read side. No event.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsReadHeld(Actor actor) => SlotOf(actor) != 0;

    /// <summary>True when the actor holds the write side. No event.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsWriteHeld(Actor actor) => Volatile.Read(ref Writer) == (ulong)(actor.Index + 1);

    /// <summary>Stops the run unless the actor holds the read side.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AssertRead(Actor actor)
    {
        if (!IsReadHeld(actor))
            ThrowNotHeld(actor, "for read");
    }

    /// <summary>Stops the run unless the actor holds the write side.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AssertWrite(Actor actor)
    {
        if (!IsWriteHeld(actor))
            ThrowNotHeld(actor, "for write");
    }

    /// <summary>Stops the run unless the actor holds either side.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AssertHeld(Actor actor)
    {
        if (!IsReadHeld(actor) && !IsWriteHeld(actor))
            ThrowNotHeld(actor, "at all");
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private ref ulong SlotOf(Actor actor) =>
        ref Unsafe.Add(ref MemoryMarshal.GetArrayDataReference(_slots), actor.Index + 1).Inside;

    private void ThrowNotHeld(Actor actor, string how) =>
        throw new InvalidOperationException($"{_id} must be held {how} by {actor}.");

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void WaitForWriter(ref ulong flag)
    {
        Interlocked.Increment(ref _waiting.Value);
        do
        {
            Volatile.Write(ref flag, 0);
            var wait = default(SpinWait);
            while (Volatile.Read(ref Writer) != 0)
                wait.SpinOnce(sleep1Threshold: -1);
            Interlocked.Exchange(ref flag, 1);
        }
        while (Volatile.Read(ref Writer) != 0);
        Interlocked.Decrement(ref _waiting.Value);
    }

    private void AcquireWrite(Actor actor)
    {
        if (IsReadHeld(actor) || IsWriteHeld(actor))
            throw new InvalidOperationException($"{actor} enters {_id} for write while it is inside.");
        Interlocked.Increment(ref _waiting.Value);
        Monitor.Enter(_writers);
        Interlocked.Decrement(ref _waiting.Value);

        // Readers that the previous writer kept waiting go first; bounded, because such a reader may have no CPU just now.
        var courtesy = default(SpinWait);
        for (int i = 0; i < PatienceWithReaders && ReadersWait(); i++)
            courtesy.SpinOnce(sleep1Threshold: -1);

        Interlocked.Exchange(ref Writer, (ulong)(actor.Index + 1));
        if (NoReader())
            return;
        Interlocked.Increment(ref _waiting.Value);
        var wait = default(SpinWait);
        while (!NoReader())
            wait.SpinOnce(sleep1Threshold: -1);
        Interlocked.Decrement(ref _waiting.Value);
    }

    private bool ReadersWait() => !Explore.On && Volatile.Read(ref _waiting.Value) != 0;

    private void ReleaseWrite()
    {
        Volatile.Write(ref Writer, 0);
        Monitor.Exit(_writers);
    }

    private bool NoReader()
    {
        int count = _actors.HighWater;
        for (int i = 1; i <= count; i++)
        {
            if (Volatile.Read(ref _slots[i].Inside) != 0)
                return false;
        }

        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedEnterRead(Actor actor, string site)
    {
        PendingEvent pending = Hook.AnnounceAwait(EventKind.LockShared, _id, site, actor, () => Volatile.Read(ref Writer) == 0);
        ref ulong flag = ref SlotOf(actor);
        Interlocked.Exchange(ref flag, 1);
        if (Volatile.Read(ref Writer) != 0)
            WaitForWriter(ref flag);
        Hook.Happened(pending, false);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedExit(Actor actor, string site, bool write)
    {
        PendingEvent pending = Hook.Announce(EventKind.LockRelease, _id, site, actor);
        if (write)
            ReleaseWrite();
        else
            Volatile.Write(ref SlotOf(actor), 0);
        Hook.Happened(pending, write);
    }

    // Two lines: the adjacent-line prefetcher would otherwise pair neighbouring actors' slots.
    [StructLayout(LayoutKind.Explicit, Size = 128)]
    private struct ReaderSlot
    {
        [FieldOffset(0)]
        public ulong Inside;
    }
}
