namespace Tdp.Host;

/// <summary>
/// A long array of shared 64-bit words in the host kernel's own memory: indexes of files, host page tables, bitmaps. Words are used through
/// <see cref="AtomicWord"/> and have structural names like every other entry (decisions D29).
/// </summary>
public sealed class WordRun
{
    private readonly Machine _machine;
    private readonly PhysicalMemory _memory;
    private readonly ulong _base;
    private readonly ulong _frames;
    private bool _isFreed;

    private WordRun(Machine machine, ulong start, ulong frames, ulong length)
    {
        _machine = machine;
        _memory = machine.Memory;
        _base = start;
        _frames = frames;
        Length = length;
    }

    /// <summary>Number of words.</summary>
    public ulong Length { get; }

    /// <summary>A word. The index is not checked beyond what the owner guarantees.</summary>
    public AtomicWord this[ulong index]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => new(ref _memory.Word(_base + (index << 3)));
    }

    /// <summary>A word's value without an event: for checkers and reports.</summary>
    public ulong Peek(ulong index) => this[index].Peek();

    /// <summary>Allocates <paramref name="length"/> zero words.</summary>
    /// <returns>Null when there is no memory (-ENOMEM).</returns>
    public static WordRun? TryCreate(Machine machine, Actor actor, ulong length)
    {
        ulong frames = Math.Max(1, (length + 511) >> 9);
        if (!machine.Frames.TryTakeRun(actor, FrameUse.Kernel, frames, 1, out Hpa first))
            return null;
        for (ulong i = 0; i < frames; i++)
        {
            Hpa frame = first + (i << 12);
            if (machine.Memory.Record(frame.Frame).Generation != 1)
                machine.Memory.Zero(frame);
        }

        return new WordRun(machine, first.Value, frames, length);
    }

    /// <summary>Gives the memory back. Nobody may use a word afterwards.</summary>
    public void Free()
    {
        if (_isFreed)
            return;
        _isFreed = true;
        for (ulong i = 0; i < _frames; i++)
            _machine.Frames.Return(new Hpa(_base) + (i << 12), FrameUse.Kernel);
    }
}
