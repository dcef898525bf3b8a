namespace Tdp.Platform;

/// <summary>
/// The host's page allocator: all free memory of the machine outside reserved areas. Actors take frames through an <see cref="ActorCache{T}"/>;
/// only a refill touches the shared stock (race-explorer 4.2).
/// </summary>
public sealed class FrameAllocator
{
    private readonly Machine _machine;
    private readonly SyncGate _gate = new();
    private readonly Stack<uint> _returned = new();
    private readonly HashSet<uint> _chosen = [];
    private readonly HpaRange[] _areas;
    private int _area;
    private ulong _next;
    private long _live;

    internal FrameAllocator(Machine machine, IReadOnlyList<HpaRange> areas)
    {
        _machine = machine;
        _areas = [.. areas];
        _next = _areas.Length > 0 ? _areas[0].Base >> 12 : 0;
    }

    /// <summary>Frames handed out and not yet returned.</summary>
    public long Live
    {
        get
        {
            using (_gate.Hold())
                return _live;
        }
    }

    /// <summary>
    /// Takes a frame for <paramref name="use"/>; its ledger entry passes from Free. The content is what the last user left.
    /// </summary>
    /// <returns>False when memory is exhausted (-ENOMEM).</returns>
    public bool TryTake(Actor actor, FrameUse use, out Hpa frame)
    {
        using (_gate.Hold())
        {
            if (!TryPick(out ulong number))
            {
                frame = default;
                return false;
            }

            _live++;
            frame = Hpa.OfFrame(number);
        }

        _machine.Memory.Name(frame.Frame, actor.NextFrameName());
        _machine.Ledger.HandOver(frame, FrameUse.Free, use);
        return true;
    }

    /// <summary>Takes as many frames as there are, up to <c>into.Length</c>; one refill of an actor's cache. Returns how many.</summary>
    public int TakeMany(Actor actor, FrameUse use, Span<Hpa> into)
    {
        int taken = 0;
        using (_gate.Hold())
        {
            while (taken < into.Length && TryPick(out ulong number))
                into[taken++] = Hpa.OfFrame(number);
            _live += taken;
        }

        foreach (Hpa frame in into[..taken])
        {
            _machine.Memory.Name(frame.Frame, actor.NextFrameName());
            _machine.Ledger.HandOver(frame, FrameUse.Free, use);
        }

        return taken;
    }

    /// <summary>Takes <paramref name="frames"/> frames that follow each other, the first aligned to <paramref name="alignFrames"/> (a power of two), from never used memory; a single frame may have been used before.</summary>
    /// <returns>False when there is no such run.</returns>
    public bool TryTakeRun(Actor actor, FrameUse use, ulong frames, ulong alignFrames, out Hpa first)
    {
        // One frame is no run: any will do, also one that was used before. Bitmaps that come and go must not eat up the memory that was never used.
        if (frames == 1 && alignFrames == 1)
            return TryTake(actor, use, out first);
        using (_gate.Hold())
        {
            for (int area = _area; area < _areas.Length; area++)
            {
                ulong start = area == _area ? _next : _areas[area].Base >> 12;
                ulong aligned = (start + alignFrames - 1) & ~(alignFrames - 1);
                if (aligned + frames > _areas[area].End >> 12 || OverlapsChosen(aligned, frames))
                    continue;

                // What alignment or a jump to a later area skips stays usable, frame by frame.
                for (; _area < area; _area++, _next = _areas[_area].Base >> 12)
                    Skip(_next, _areas[_area].End >> 12);
                Skip(_next, aligned);
                _next = aligned + frames;
                _live += (long)frames;
                first = Hpa.OfFrame(aligned);
                goto found;
            }

            first = default;
            return false;
        }

    found:
        for (ulong i = 0; i < frames; i++)
        {
            _machine.Memory.Name(first.Frame + i, actor.NextFrameName());
            _machine.Ledger.HandOver(first + (i << 12), FrameUse.Free, use);
        }

        return true;
    }

    /// <summary>Takes one particular frame that is still free; for tests that replay a worked trace (decisions D26).</summary>
    /// <returns>False when the frame is not free memory.</returns>
    public bool TryTakeExactly(Actor actor, FrameUse use, Hpa frame)
    {
        using (_gate.Hold())
        {
            if (_machine.Ledger.UseOf(frame) != FrameUse.Free || !IsInAreas(frame.Value) || !_chosen.Add((uint)frame.Frame))
                return false;
            _live++;
        }

        _machine.Memory.Name(frame.Frame, actor.NextFrameName());
        _machine.Ledger.HandOver(frame, FrameUse.Free, use);
        return true;
    }

    /// <summary>Returns a frame; its ledger entry passes from <paramref name="use"/> to Free.</summary>
    public void Return(Hpa frame, FrameUse use)
    {
        _machine.Ledger.HandOver(frame, use, FrameUse.Free);
        using (_gate.Hold())
        {
            _live--;
            if (!_chosen.Remove((uint)frame.Frame) || IsBehindFront(frame.Frame))
                _returned.Push((uint)frame.Frame);
        }
    }

    private bool TryPick(out ulong number)
    {
        while (_returned.TryPop(out uint returned))
        {
            number = returned;
            if (!_chosen.Contains(returned))
                return true;
        }

        while (_area < _areas.Length)
        {
            while (_next < _areas[_area].End >> 12)
            {
                number = _next++;
                if (!_chosen.Contains((uint)number))
                    return true;
            }

            _area++;
            if (_area < _areas.Length)
                _next = _areas[_area].Base >> 12;
        }

        number = 0;
        return false;
    }

    private void Skip(ulong from, ulong to)
    {
        for (ulong frame = from; frame < to; frame++)
            _returned.Push((uint)frame);
    }

    private bool OverlapsChosen(ulong start, ulong frames)
    {
        foreach (uint chosen in _chosen)
        {
            if (chosen >= start && chosen < start + frames)
                return true;
        }

        return false;
    }

    private bool IsBehindFront(ulong frame)
    {
        for (int area = 0; area < _area && area < _areas.Length; area++)
        {
            if (_areas[area].Contains(frame << 12))
                return true;
        }

        return _area < _areas.Length && _areas[_area].Contains(frame << 12) && frame < _next;
    }

    private bool IsInAreas(ulong address)
    {
        foreach (HpaRange area in _areas)
        {
            if (area.Contains(address))
                return true;
        }

        return false;
    }
}
