using System.Runtime.InteropServices;
using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// A reader-writer lock whose readers share no cache line: mmu_lock (tdp-mmu 7.1).
/// </summary>
/// <remarks>
/// Protocol. A reader publishes itself in its own slot and then looks for a writer; a writer announces itself with a full fence and then waits for every slot to be clear. Of
/// the two, at least one sees the other, so no reader is inside while a writer is. A reader that sees a writer clears its slot again and waits.
/// The fence between a reader's store and its look is paid by the reader while the lock is <em>fenced</em>, which it is from the first writer on; after many
/// acquisitions without a writer the readers drop it, and the next writer pays with a process-wide barrier, which fences every reader at once. So a fault costs no locked
/// instruction while nobody zaps, and zaps cost no system call while somebody faults. Dropping is safe: a reader that saw the word zero had its store in order before that look,
/// and the barrier of the writer that made the word non-zero drained it.
/// Fairness in a free run: new readers back off as soon as a writer has announced itself, so zaps do not starve; a writer that follows
/// another lets the readers that were already waiting go first, so faults do not starve either (decisions D17).
/// Under a scheduler the lock is unfair: every order that exclusion allows is possible.
/// The lock is not recursive. Linearization: read acquisition at the check that finds no writer, write acquisition at the check that finds
/// the last slot clear.
/// </remarks>
public sealed class RwLock
{
    private const int PatienceWithReaders = 64;

    // Bit 32 of the writer word: readers fence for themselves. Bits 31:0: the writer's actor number + 1, or 0.
    private const ulong Fenced = 1UL << 32;
    private const int QuietBeforeUnfenced = 8192;
    private readonly ActorTable _actors;
    private readonly ActorSlots<ReaderSlot> _slots = new();
    private readonly object _writers = new();
    private readonly ObjectId _id;

    // Who has arrived, as an object of its own: only a scheduler's actors announce it, and only IsContended and fair readers look at it.
    private readonly ObjectId _queue;
    private readonly Func<bool> _readerMayEnter;
    private readonly Func<bool> _writerMayEnter;
    private int _arrivedReaders;
    private int _arrivedWriters;
    private PaddedWord _writer;
    private PaddedWord _waiting;
    private PaddedWord _writes;

    /// <summary>Makes the lock <paramref name="name"/> for the actors of one world.</summary>
    public RwLock(ActorTable actors, string name, ulong owner = 0)
    {
        _actors = actors;
        _id = ObjectId.Lock(name, owner);
        _queue = ObjectId.Cell(name + ".queue", owner);
        _readerMayEnter = () => NoWriter() && !(_arrivedWriters != 0 && Hook.Scheduler is { HasFairLocks: true });
        _writerMayEnter = () => NoWriter() && NoReader();
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

        ref ReaderSlot slot = ref SlotOf(actor);
        Volatile.Write(ref slot.Inside, 1);
        if (Volatile.Read(ref Writer) != 0)
            EnterReadFenced(ref slot);
    }

    /// <summary>Leaves the read side.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ExitRead(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedExit(actor, site, write: false);
        else
            Volatile.Write(ref SlotOf(actor).Inside, 0);
    }

    /// <summary>Enters the write side, alone.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void EnterWrite(Actor actor, [CallerMemberName] string site = "")
    {
        if (Explore.On)
        {
            HookedEnterWrite(actor, site);
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
        PendingEvent pending = Hook.Announce(EventKind.Read, Hook.Scheduler is null ? _id : _queue, site);

        // Under a scheduler nobody waits inside the lock; whoever has arrived and may not enter is waiting.
        bool contended = Hook.Scheduler is null
            ? Volatile.Read(ref _waiting.Value) != 0
            : _arrivedWriters != 0 || (_arrivedReaders != 0 && !NoWriter());
        Hook.Happened(pending, false, contended ? 1UL : 0, contended ? 1UL : 0);
        return contended;
    }

    /// <summary>True when the actor holds the read side. No event.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsReadHeld(Actor actor) => SlotOf(actor).Inside != 0;

    /// <summary>True when the actor holds the write side. No event.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsWriteHeld(Actor actor) => (uint)Volatile.Read(ref Writer) == (uint)(actor.Index + 1);

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
    private ref ReaderSlot SlotOf(Actor actor) =>
        ref _slots[actor];

    private bool NoWriter() => (uint)Volatile.Read(ref Writer) == 0;

    private void ThrowNotHeld(Actor actor, string how) =>
        throw new InvalidOperationException($"{_id} must be held {how} by {actor}.");

    // A writer is announced, or there was one not long ago. The slot is published already, but perhaps not yet visible.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void EnterReadFenced(ref ReaderSlot slot)
    {
        Interlocked.Exchange(ref slot.Inside, 1);
        if (!NoWriter())
        {
            WaitForWriter(ref slot.Inside);
            slot.Quiet = 0;
            return;
        }

        uint writes = (uint)Volatile.Read(ref _writes.Value);
        if (slot.SeenWrites != writes)
        {
            slot.SeenWrites = writes;
            slot.Quiet = 0;
        }
        else if (++slot.Quiet == QuietBeforeUnfenced)
        {
            // Fails when a writer announces itself in the same moment; then that writer needs no barrier, and this reader is inside already.
            slot.Quiet = 0;
            Interlocked.CompareExchange(ref Writer, 0, Fenced);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void WaitForWriter(ref ulong flag)
    {
        Interlocked.Increment(ref _waiting.Value);
        do
        {
            Volatile.Write(ref flag, 0);
            var wait = default(SpinWait);
            while (!NoWriter())
                wait.SpinOnce(sleep1Threshold: -1);
            Interlocked.Exchange(ref flag, 1);
        }
        while (!NoWriter());
        Interlocked.Decrement(ref _waiting.Value);
    }

    private void AcquireWrite(Actor actor)
    {
        AssertOutside(actor);
        Interlocked.Increment(ref _waiting.Value);
        Monitor.Enter(_writers);
        Interlocked.Decrement(ref _waiting.Value);

        // Readers that the previous writer kept waiting go first; bounded, because such a reader may have no CPU just now.
        var courtesy = default(SpinWait);
        for (int i = 0; i < PatienceWithReaders && ReadersWait(); i++)
            courtesy.SpinOnce(sleep1Threshold: -1);

        Announce((uint)(actor.Index + 1) | Fenced);
        if (NoReader())
            return;
        Interlocked.Increment(ref _waiting.Value);
        var wait = default(SpinWait);
        while (!NoReader())
            wait.SpinOnce(sleep1Threshold: -1);
        Interlocked.Decrement(ref _waiting.Value);
    }

    // One writer at a time is here. Whoever makes the word non-zero fences the readers that had found it zero.
    private void Announce(ulong writer)
    {
        Volatile.Write(ref _writes.Value, _writes.Value + 1);
        while (true)
        {
            ulong before = Volatile.Read(ref Writer);
            if (Interlocked.CompareExchange(ref Writer, writer, before) != before)
                continue;
            if (before == 0)
                Interlocked.MemoryBarrierProcessWide();
            return;
        }
    }

    private void AssertOutside(Actor actor)
    {
        if (IsReadHeld(actor) || IsWriteHeld(actor))
            throw new InvalidOperationException($"{actor} enters {_id} for write while it is inside.");
    }

    private bool ReadersWait() => !Explore.On && Volatile.Read(ref _waiting.Value) != 0;

    private void ReleaseWrite()
    {
        Volatile.Write(ref Writer, Fenced);
        Monitor.Exit(_writers);
    }

    private bool NoReader()
    {
        int count = _actors.HighWater;
        for (int i = 0; i < count; i++)
        {
            if (Volatile.Read(ref _slots.At(i).Inside) != 0)
                return false;
        }

        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedEnterRead(Actor actor, string site)
    {
        if (Hook.Scheduler is not null)
            Arrive(actor, site, ref _arrivedReaders);
        PendingEvent pending = Hook.AnnounceAwait(EventKind.LockShared, _id, site, actor, _readerMayEnter);
        ref ulong flag = ref SlotOf(actor).Inside;
        Interlocked.Exchange(ref flag, 1);
        if (Hook.Scheduler is not null)
            _arrivedReaders--;
        else if (!NoWriter())
            WaitForWriter(ref flag);
        Hook.Happened(pending, false);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedEnterWrite(Actor actor, string site)
    {
        if (Hook.Scheduler is null)
        {
            PendingEvent observed = Hook.Announce(EventKind.LockExclusive, _id, site, actor);
            AcquireWrite(actor);
            Hook.Happened(observed, true);
            return;
        }

        AssertOutside(actor);
        Arrive(actor, site, ref _arrivedWriters);
        PendingEvent pending = Hook.AnnounceAwait(EventKind.LockExclusive, _id, site, actor, _writerMayEnter);
        _arrivedWriters--;

        // The condition excludes everybody else; the OS lock of the writers stays out of it, because a scheduler may abandon an actor inside.
        Volatile.Write(ref Writer, (uint)(actor.Index + 1) | Fenced);
        Hook.Happened(pending, true);
    }

    private void Arrive(Actor actor, string site, ref int arrived)
    {
        PendingEvent pending = Hook.Announce(EventKind.Arrive, _queue, site, actor);
        arrived++;
        Hook.Happened(pending, true);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedExit(Actor actor, string site, bool write)
    {
        PendingEvent pending = Hook.Announce(EventKind.LockRelease, _id, site, actor);
        if (!write)
            Volatile.Write(ref SlotOf(actor).Inside, 0);
        else if (Monitor.IsEntered(_writers))
            ReleaseWrite();
        else
            Volatile.Write(ref Writer, Fenced);
        Hook.Happened(pending, write);
    }

    // Two lines: the adjacent-line prefetcher would otherwise pair neighbouring actors' slots.
    [StructLayout(LayoutKind.Explicit, Size = 128)]
    private struct ReaderSlot
    {
        [FieldOffset(0)]
        public ulong Inside;

        // Fenced acquisitions since the reader last noticed a writer, and how many writers there had been.
        [FieldOffset(8)]
        public int Quiet;

        [FieldOffset(12)]
        public uint SeenWrites;
    }
}
