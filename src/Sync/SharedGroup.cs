using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// Several biased <see cref="TryLock"/>s shared with one fence instead of one each: publish all addresses, fence, look at all words. What a SEAMCALL
/// that holds TDR, OP_STATE and the SEPT tree at once needs (decisions D28; performance, PF3).
/// </summary>
/// <remarks>
/// All or nothing, and only the simple case: every lock biased, none exclusive, no host priority to clear. Otherwise, and always under the hook,
/// nothing is taken and the caller takes them one by one in its documented order, which also decides which of them is reported busy.
/// Linearizes at the fence.
/// </remarks>
public static class SharedGroup
{
    private const ulong Judged = TryLock.Biased | TryLock.Exclusive | TryLock.HostPriority;

    /// <summary>Tries to share seven locks; pass a word twice to share fewer. <paramref name="holds"/> goes to <see cref="Release"/>.</summary>
    public static bool TryTake(
        HazardSlot slot,
        ref ulong first,
        ref ulong second,
        ref ulong third,
        ref ulong fourth,
        ref ulong fifth,
        ref ulong sixth,
        ref ulong seventh,
        out uint holds)
    {
        holds = 0;
        if (Explore.On)
            return false;
        uint free = slot.Free;
        if (System.Numerics.BitOperations.PopCount(free) < 7)
            return false;
        Span<nuint> places = slot.Places;
        uint left = free;
        left = Publish(places, left, ref first);
        left = Publish(places, left, ref second);
        left = Publish(places, left, ref third);
        left = Publish(places, left, ref fourth);
        left = Publish(places, left, ref fifth);
        left = Publish(places, left, ref sixth);
        left = Publish(places, left, ref seventh);
        Interlocked.MemoryBarrier();
        holds = free ^ left;
        slot.Free = left;
        if (((Volatile.Read(ref first) ^ TryLock.Biased) & Judged) == 0
            && ((Volatile.Read(ref second) ^ TryLock.Biased) & Judged) == 0
            && ((Volatile.Read(ref third) ^ TryLock.Biased) & Judged) == 0
            && ((Volatile.Read(ref fourth) ^ TryLock.Biased) & Judged) == 0
            && ((Volatile.Read(ref fifth) ^ TryLock.Biased) & Judged) == 0
            && ((Volatile.Read(ref sixth) ^ TryLock.Biased) & Judged) == 0
            && ((Volatile.Read(ref seventh) ^ TryLock.Biased) & Judged) == 0)
            return true;
        Release(slot, holds);
        holds = 0;
        return false;
    }

    /// <summary>Gives the holds back.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Release(HazardSlot slot, uint holds)
    {
        Span<nuint> places = slot.Places;
        slot.Free |= holds;
        for (; holds != 0; holds &= holds - 1)
            Volatile.Write(ref places[System.Numerics.BitOperations.TrailingZeroCount(holds)], 0);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static uint Publish(Span<nuint> places, uint free, ref ulong word)
    {
        places[System.Numerics.BitOperations.TrailingZeroCount(free)] = Hook.AddressOf(ref word);
        return free & (free - 1);
    }
}
