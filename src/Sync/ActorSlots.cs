namespace Tdp.Sync;

/// <summary>
/// One slot of 128 bytes per actor: two cache lines, because the adjacent-line prefetcher would otherwise pair neighbours. Pinned, so that a slot is found
/// by one addition.
/// </summary>
/// <typeparam name="T">The slot; its size must be <see cref="SlotBytes"/>.</typeparam>
internal readonly unsafe struct ActorSlots<T>
    where T : unmanaged
{
    internal const int SlotBytes = 128;

    // Keeps the memory alive.
    private readonly T[] _slots;
    private readonly byte* _base;

    public ActorSlots()
    {
        if (sizeof(T) != SlotBytes)
            throw new InvalidOperationException($"A slot has {SlotBytes} bytes, {typeof(T).Name} has {sizeof(T)}.");

        // One slot in front: index 0 of a managed array shares its line with the array's length.
        _slots = GC.AllocateArray<T>(Actor.Max + 1, pinned: true);
        _base = (byte*)Unsafe.AsPointer(ref _slots[0]);
    }

    /// <summary>The actor's own slot.</summary>
    public ref T this[Actor actor]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => ref Unsafe.AsRef<T>(_base + actor.SlotOffset);
    }

    /// <summary>The slot at a position of the table, for whoever looks at all of them.</summary>
    public ref T At(int actorIndex) => ref _slots[actorIndex + 1];
}
