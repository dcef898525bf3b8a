namespace Tdp.Module;

/// <summary>
/// Control structures by small number, which the module keeps in the tag of the structure's root frame: from address to object without hashing.
/// A number is published by the PAMT entry that makes the frame a root, and found only under that entry's lock. Numbers are not used twice while the
/// structure lives.
/// </summary>
internal sealed class ControlTable<T>
    where T : class
{
    private const int ChunkBits = 8;
    private readonly T?[]?[] _chunks = new T?[1 << 12][];
    private readonly SyncGate _gate = new();
    private readonly Stack<int> _free = new();
    private int _next;

    /// <summary>The structure with a number that <see cref="Add"/> gave out.</summary>
    public T this[uint number]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => _chunks[number >> ChunkBits]![number & ((1 << ChunkBits) - 1)]!;
    }

    /// <summary>
    /// What a number stands for, or null: for a caller that does not hold the root page yet, so that the number may be anything.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T? Find(uint number) => number >> ChunkBits < 1 << 12 && _chunks[number >> ChunkBits] is { } chunk ? chunk[number & ((1 << ChunkBits) - 1)] : null;

    /// <summary>Reserves a number, then stores what <paramref name="make"/> builds for it.</summary>
    public uint Add(Func<int, T> make)
    {
        using (_gate.Hold())
        {
            if (!_free.TryPop(out int number))
                number = _next++;
            _chunks[number >> ChunkBits] ??= new T?[1 << ChunkBits];
            _chunks[number >> ChunkBits]![number & ((1 << ChunkBits) - 1)] = make(number);
            return (uint)number;
        }
    }

    /// <summary>Forgets a structure; its root frame is no longer one.</summary>
    public void Remove(uint number)
    {
        using (_gate.Hold())
        {
            _chunks[number >> ChunkBits]![number & ((1 << ChunkBits) - 1)] = null;
            _free.Push((int)number);
        }
    }

    /// <summary>All structures; for inspection.</summary>
    public IReadOnlyList<T> All()
    {
        using (_gate.Hold())
        {
            var all = new List<T>();
            for (int i = 0; i < _next; i++)
            {
                if (_chunks[i >> ChunkBits]![i & ((1 << ChunkBits) - 1)] is { } item)
                    all.Add(item);
            }

            return all;
        }
    }
}
