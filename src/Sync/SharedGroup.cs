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

    /// <summary>Tries to share three locks; pass a word twice to share fewer. <paramref name="holds"/> goes to <see cref="Release"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryTake(HazardSlot slot, ref ulong first, ref ulong second, ref ulong third, out uint holds)
    {
        holds = 0;
        ref HazardTable.Slot cell = ref slot.Cell;
        uint free = ~cell.Used & HazardTable.AllHolds;
        uint rest = free & (free - 1);
        uint last = rest & (rest - 1);
        if (Explore.On || last == 0)
            return false;
        ref nuint places = ref cell.All[0];
        Unsafe.Add(ref places, System.Numerics.BitOperations.TrailingZeroCount(free)) = Hook.AddressOf(ref first);
        Unsafe.Add(ref places, System.Numerics.BitOperations.TrailingZeroCount(rest)) = Hook.AddressOf(ref second);
        Unsafe.Add(ref places, System.Numerics.BitOperations.TrailingZeroCount(last)) = Hook.AddressOf(ref third);
        Interlocked.MemoryBarrier();
        holds = free ^ (last & (last - 1));
        cell.Used |= holds;
        if ((((Volatile.Read(ref first) ^ TryLock.Biased) | (Volatile.Read(ref second) ^ TryLock.Biased) | (Volatile.Read(ref third) ^ TryLock.Biased)) & Judged) == 0)
            return true;
        Release(slot, holds);
        holds = 0;
        return false;
    }

    /// <summary>Gives the holds back.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Release(HazardSlot slot, uint holds)
    {
        ref HazardTable.Slot cell = ref slot.Cell;
        ref nuint places = ref cell.All[0];
        cell.Used &= ~holds;
        for (; holds != 0; holds &= holds - 1)
            Volatile.Write(ref Unsafe.Add(ref places, System.Numerics.BitOperations.TrailingZeroCount(holds)), 0);
    }
}
