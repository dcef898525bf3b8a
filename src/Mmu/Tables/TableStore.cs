namespace Tdp.Mmu;

/// <summary>
/// The tables of one VM: frames for them, their records, and the stock of tables that were given back. A table given back is filled with a canary, and stays so until it
/// is taken again: a stray write or a walker that is still inside becomes visible (I45, I46).
/// </summary>
internal sealed class TableStore
{
    private const int ChunkBits = 12;
    private const ulong FramesPerTable = 256;
    private readonly Machine _machine;
    private readonly TableRecord[]?[] _chunks = new TableRecord[1 << (26 - ChunkBits)][];
    private readonly SyncGate _gate = new();
    private uint _made;
    private uint _firstFree;
    private int _free;

    internal TableStore(Machine machine)
    {
        _machine = machine;
        Memory = machine.Memory;

        // Records for as many tables as the machine's memory can need when it is densely mapped: made now, so that no fault allocates (performance PF11).
        ulong frames = 0;
        foreach (HpaRange range in machine.Memory.Ranges)
            frames += range.Size >> 12;
        for (ulong first = 0; first <= frames / FramesPerTable; first += 1 << ChunkBits)
            _chunks[first >> ChunkBits] = new TableRecord[1 << ChunkBits];
    }

    internal PhysicalMemory Memory { get; }

    /// <summary>Tables that exist: linked, in caches, waiting for a grace period, or in stock.</summary>
    internal uint Made
    {
        get
        {
            using (_gate.Hold())
                return _made;
        }
    }

    /// <summary>Tables in stock.</summary>
    internal int InStock
    {
        get
        {
            using (_gate.Hold())
                return _free;
        }
    }

    /// <summary>The record of table <paramref name="index"/> (from 1).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal ref TableRecord Record(uint index) => ref _chunks[index >> ChunkBits]![index & ((1 << ChunkBits) - 1)];

    /// <summary>The table whose entries lie in this frame.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal uint IndexOf(Hpa frame) => Memory.Record(frame.Frame).Tag;

    /// <summary>Takes up to <c>into.Length</c> tables, every entry non-present. Returns how many there were.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal int TakeMany(Actor actor, Span<uint> into)
    {
        int taken = 0;
        using (_gate.Hold())
        {
            while (taken < into.Length && TryPop(out uint index))
                into[taken++] = index;
        }

        for (int i = 0; i < taken; i++)
        {
            ref TableRecord record = ref Record(into[i]);
            if (Checks.On)
                CheckCanary(into[i], record.Frame);
            record.Flags = 0;
            Memory.Name(record.Frame >> 12, actor.NextFrameName());
        }

        if (taken < into.Length)
            taken += Make(actor, into[taken..]);
        foreach (uint index in into[..taken])
            Memory.Fill(new Hpa(Record(index).Frame), Spte.NonPresentValue);
        return taken;
    }

    /// <summary>Nobody can see the table any more: fills it with the canary and puts it in stock. Must not block or announce events.</summary>
    internal void Give(uint index)
    {
        ref TableRecord record = ref Record(index);
        if ((record.Flags & TableRecord.Freed) != 0)
            _machine.Findings.Add("I45", $"table in frame 0x{record.Frame >> 12:x} was freed twice");
        record.Flags = TableRecord.Freed;
        record.Parent = 0;
        record.External = 0;
        Memory.Fill(new Hpa(record.Frame), Spte.PoisonValue);
        using (_gate.Hold())
        {
            record.NxNext = _firstFree;
            _firstFree = index;
            _free++;
        }
    }

    /// <summary>The VM is gone: every table in stock goes back to the machine.</summary>
    internal void ReleaseStock()
    {
        while (true)
        {
            uint index;
            using (_gate.Hold())
            {
                if (!TryPop(out index))
                    return;
            }

            ref TableRecord record = ref Record(index);
            if (Checks.On)
                CheckCanary(index, record.Frame);
            Memory.Record(record.Frame >> 12).Tag = 0;
            _machine.Frames.Return(new Hpa(record.Frame), FrameUse.HostTable);
            record.Frame = 0;
        }
    }

    // Gate held. Free tables are chained through their records.
    private bool TryPop(out uint index)
    {
        index = _firstFree;
        if (index == 0)
            return false;
        _firstFree = Record(index).NxNext;
        Record(index).NxNext = 0;
        _free--;
        return true;
    }

    private int Make(Actor actor, Span<uint> into)
    {
        Span<Hpa> frames = stackalloc Hpa[into.Length];
        int taken = _machine.Frames.TakeMany(actor, FrameUse.HostTable, frames);
        using (_gate.Hold())
        {
            for (int i = 0; i < taken; i++)
            {
                uint index = ++_made;
                _chunks[index >> ChunkBits] ??= new TableRecord[1 << ChunkBits];
                into[i] = index;
                Record(index) = new TableRecord { Frame = frames[i].Value };
                Memory.Record(frames[i].Frame).Tag = index;
            }
        }

        return taken;
    }

    private void CheckCanary(uint index, ulong frame)
    {
        foreach (ulong word in Memory.Table(new Hpa(frame)))
        {
            if (word == Spte.PoisonValue)
                continue;
            _machine.Findings.Add("I45", $"table {index} in frame 0x{frame >> 12:x} was written after it was freed: {new Spte(word)}");
            return;
        }
    }
}
