namespace Tdp.Mmu;

/// <summary>
/// The invalidation record (KVM: mmu_invalidate_seq, mmu_invalidate_in_progress, range; tdp-mmu 6.6, 7.6): how a fault that looked something up without
/// mmu_lock learns that the answer may be old.
/// </summary>
/// <remarks>
/// Protocol. Whoever changes what stands behind a frame range: Begin, AddRange and the zap under mmu_lock write; the change itself under no lock of the
/// MMU; End under mmu_lock write. A fault: snapshot of the sequence, look up, mmu_lock read, <see cref="MustRetry"/>. Between Begin and End every fault in the
/// range retries; after End the sequence differs from every older snapshot. So no leaf is made from an old answer (I53, I54).
/// The range is the union of all changes in progress and is reset only when the first begins: it may be too large, never too small.
/// </remarks>
public sealed class Invalidation
{
    private const ulong Unset = ulong.MaxValue;
    private readonly RwLock _mmuLock;
    private readonly SeqCount _count;
    private readonly SharedCell<ulong> _start;
    private readonly SharedCell<ulong> _end;
    private readonly Action<string> _warn;

    internal Invalidation(RwLock mmuLock, ulong vm, Action<string> warn)
    {
        _mmuLock = mmuLock;
        _warn = warn;
        _count = new SeqCount("invalidate", vm);
        _start = new SharedCell<ulong>("invalidate_start", vm, Unset);
        _end = new SharedCell<ulong>("invalidate_end", vm, 0);
    }

    /// <summary>Sequence and number in progress, for checkers. No event.</summary>
    public (ulong Seq, ulong InProgress) Peek() => _count.Peek();

    /// <summary>The union of the ranges in progress, for checkers; empty when none was added. No event.</summary>
    public GfnRange PeekRange()
    {
        ulong start = _start.Peek();
        return start == Unset ? default : new GfnRange(new Gfn(start), new Gfn(_end.Peek()));
    }

    /// <summary>A change begins. mmu_lock write.</summary>
    public void Begin(Actor actor)
    {
        _mmuLock.AssertWrite(actor);
        if (_count.Peek().InProgress == 0)
        {
            _start.Write(Unset);
            _end.Write(0);
        }

        _count.Begin(actor);
    }

    /// <summary>The change concerns these pages, too. mmu_lock write, between Begin and End.</summary>
    public void AddRange(Actor actor, GfnRange range)
    {
        _mmuLock.AssertWrite(actor);
        if (_count.Peek().InProgress == 0)
            _warn("a range was added while no invalidation is in progress (I55)");
        if (range.IsEmpty)
            return;
        if (range.Start.Value < _start.Peek())
            _start.Write(range.Start.Value);
        if (range.End.Value > _end.Peek())
            _end.Write(range.End.Value);
    }

    /// <summary>The change is complete. mmu_lock write. Linearizes at the write of the sequence: a snapshot taken before is old from here on.</summary>
    public void End(Actor actor)
    {
        _mmuLock.AssertWrite(actor);
        if (_start.Peek() == Unset)
            _warn("an invalidation ended to which no range was added (I55)");
        _count.End(actor);
    }

    /// <summary>The sequence now; every lookup that follows is at least as new.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Snapshot() => _count.Snapshot();

    /// <summary>
    /// True when what was looked up after snapshot <paramref name="seq"/> may be old. Exact under mmu_lock (either mode). Without it, it may miss a change
    /// that has just begun: good only for giving up early (tdp-mmu 5.4 steps 7 and 10).
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool MustRetry(ulong seq, Gfn gfn)
    {
        // in_progress first: whoever sees the count gone also sees the new sequence (tdp-mmu 7.6).
        if (_count.InProgress() != 0 && IsInRange(gfn))
            return true;
        Fence.LoadLoad();
        return _count.Snapshot() != seq;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool IsInRange(Gfn gfn)
    {
        ulong start = _start.Read();
        if (start == Unset)
        {
            // Begin and AddRange lie in one critical section, so only a reader without the lock may meet the gap between them.
            return true;
        }

        return gfn.Value >= start && gfn.Value < _end.Read();
    }
}
