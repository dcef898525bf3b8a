namespace Tdp.Host;

/// <summary>
/// The host's per-CPU page lists: every actor keeps a few free frames of its own, so that faults on different vCPUs do not meet at the page
/// allocator. Frames in a list are <see cref="FrameUse.Kernel"/> in the ledger.
/// </summary>
/// <remarks>A list has one user, its actor. Draining needs the actor to be gone or to be the caller.</remarks>
public sealed class HostFrames
{
    private const int Batch = 64;
    private readonly Machine _machine;
    private readonly FrameList?[] _lists = new FrameList?[Actor.Max];

    /// <summary>Makes empty lists.</summary>
    public HostFrames(Machine machine) => _machine = machine;

    /// <summary>
    /// Takes a frame. <paramref name="isFresh"/> is true when nobody had it before, so that its content is zero without anybody having
    /// written it.
    /// </summary>
    /// <returns>False when memory is exhausted (-ENOMEM).</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool TryTake(Actor actor, FrameUse use, out Hpa frame, out bool isFresh)
    {
        FrameList? list = _lists[actor.Index];
        if ((list is null || list.Count == 0) && (list = Refill(actor)).Count == 0)
        {
            frame = default;
            isFresh = false;
            return false;
        }

        frame = list.Items[--list.Count];

        // Taken from the allocator once and never handed on: nobody has written to it.
        isFresh = _machine.Memory.Record(frame.Frame).Generation == 1;
        if (use != FrameUse.Kernel)
            _machine.Ledger.HandOver(frame, FrameUse.Kernel, use);
        return true;
    }

    /// <summary>Takes a frame and zeroes it unless it is zero.</summary>
    public bool TryTakeZeroed(Actor actor, FrameUse use, out Hpa frame)
    {
        if (!TryTake(actor, use, out frame, out bool isFresh))
            return false;
        if (!isFresh)
            _machine.Memory.Zero(frame);
        return true;
    }

    /// <summary>Gives a frame back: to the actor's own list, or to the machine when that is full.</summary>
    public void Give(Actor actor, Hpa frame, FrameUse use)
    {
        FrameList list = _lists[actor.Index] ??= new FrameList();
        if (list.Count == list.Items.Length)
        {
            for (int i = 0; i < Batch; i++)
                _machine.Frames.Return(list.Items[--list.Count], FrameUse.Kernel);
        }

        // A handover even from Kernel to Kernel: the generation moves, so the frame no longer counts as fresh.
        _machine.Ledger.HandOver(frame, use, FrameUse.Kernel);
        list.Items[list.Count++] = frame;
    }

    /// <summary>Returns the list of one actor to the machine.</summary>
    public void Drain(Actor actor) => Drain(actor.Index);

    /// <summary>Returns every list. Not while actors run.</summary>
    public void DrainAll()
    {
        for (int i = 0; i < _lists.Length; i++)
            Drain(i);
    }

    private void Drain(int index)
    {
        if (_lists[index] is not { } list)
            return;
        while (list.Count > 0)
            _machine.Frames.Return(list.Items[--list.Count], FrameUse.Kernel);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FrameList Refill(Actor actor)
    {
        FrameList list = _lists[actor.Index] ??= new FrameList();
        list.Count = _machine.Frames.TakeMany(actor, FrameUse.Kernel, list.Items.AsSpan(0, Batch));

        // Handed out from the end: reversed, the frames come in ascending order, neighbours of each other.
        list.Items.AsSpan(0, list.Count).Reverse();
        return list;
    }

    // Each list is followed on the heap by its own array of 1 KiB, so no two counts share a line.
    private sealed class FrameList
    {
        public readonly Hpa[] Items = new Hpa[2 * Batch];
        public int Count;
    }
}
