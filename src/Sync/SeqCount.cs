using System.Runtime.InteropServices;
using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// The pair (sequence, number of changes in progress) of tdp-mmu 7.6: mmu_invalidate_seq and mmu_invalidate_in_progress. Writers hold a lock;
/// readers take a snapshot without one and check it later.
/// </summary>
public sealed class SeqCount
{
    private readonly ObjectId _id;
    private Words _words;

    /// <summary>Makes the count <paramref name="name"/>.</summary>
    public SeqCount(string name, ulong owner = 0) => _id = new ObjectId(ObjectKind.Seq, name, owner, 0);

    /// <summary>A change begins. The caller holds the writers' lock.</summary>
    public void Begin(Actor actor, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Write, _id, site, actor) : default;
        ulong count = _words.InProgress + 1;
        Volatile.Write(ref _words.InProgress, count);
        if (Explore.On)
            Hook.Happened(pending, true, count - 1, count);
    }

    /// <summary>A change ends. The sequence moves before the count, so a reader that sees the count gone sees the new sequence (tdp-mmu 7.6). Two events.</summary>
    public void End(Actor actor, [CallerMemberName] string site = "")
    {
        if (_words.InProgress == 0)
            throw new InvalidOperationException($"{_id} ends a change that never began (I55).");
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Write, _id, site, actor) : default;
        ulong seq = _words.Seq + 1;
        Volatile.Write(ref _words.Seq, seq);
        if (Explore.On)
        {
            Hook.Happened(pending, true, seq - 1, seq);
            pending = Hook.Announce(EventKind.Write, _id, site, actor);
        }

        ulong count = _words.InProgress - 1;
        Volatile.Write(ref _words.InProgress, count);
        if (Explore.On)
            Hook.Happened(pending, true, count + 1, count);
    }

    /// <summary>The sequence now. Loads after it stay after it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Snapshot([CallerMemberName] string site = "") => Explore.On ? HookedRead(ref _words.Seq, site) : Volatile.Read(ref _words.Seq);

    /// <summary>How many changes are in progress.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong InProgress([CallerMemberName] string site = "") =>
        Explore.On ? HookedRead(ref _words.InProgress, site) : Volatile.Read(ref _words.InProgress);

    /// <summary>Both words without an event, for checkers and reports.</summary>
    public (ulong Seq, ulong InProgress) Peek() => (Volatile.Read(ref _words.Seq), Volatile.Read(ref _words.InProgress));

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ulong HookedRead(ref ulong word, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Read, _id, site);
        ulong value = Volatile.Read(ref word);
        Hook.Happened(pending, false, value, value);
        return value;
    }

    // Every fault reads both: they share one line, and nothing else lies on it.
    [StructLayout(LayoutKind.Explicit, Size = 256)]
    private struct Words
    {
        [FieldOffset(128)]
        public ulong Seq;

        [FieldOffset(136)]
        public ulong InProgress;
    }
}
