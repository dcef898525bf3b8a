using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// Several biased <see cref="TryLock"/>s shared with one fence instead of one each: publish all addresses, fence, look at all words. What a SEAMCALL
/// that holds TDR, OP_STATE and the SEPT tree at once needs (decisions D28; performance, PF3).
/// </summary>
/// <remarks>
/// All or nothing, and only the simple case: every lock biased, none exclusive, no host priority to clear. Otherwise, and always under the hook,
/// nothing is taken and the caller takes them one by one in its documented order, which also decides which of them is reported busy.
/// Linearizes at the fence, or at the compare-exchange that stands for it.
/// </remarks>
public static class SharedGroup
{
    private const uint FirstThree = 7;
    private const ulong Judged = TryLock.Biased | TryLock.Exclusive | TryLock.HostPriority;

    /// <summary>Tries to share three locks; pass a word twice to share fewer. <paramref name="holds"/> goes to <see cref="Release"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryTake(HazardSlot slot, ref ulong first, ref ulong second, ref ulong third, out uint holds)
    {
        if (!TryPublish(slot, ref first, ref second, ref third, out holds))
            return false;
        Interlocked.MemoryBarrier();
        if (IsGranted(ref first, ref second, ref third))
            return true;
        Release(slot, holds);
        holds = 0;
        return false;
    }

    /// <summary>
    /// The first half of <see cref="TryTake"/>, without the fence: for a caller whose next step is a compare-exchange anyway. Nothing is shared until
    /// that has happened and <see cref="IsGranted"/> says so. False, and nothing published, when the slot is full or under the hook.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryPublish(HazardSlot slot, ref ulong first, ref ulong second, ref ulong third, out uint holds)
    {
        holds = 0;
        if (Explore.On)
            return false;
        ref HazardTable.Slot cell = ref slot.Cell;
        ref nuint places = ref cell.First;
        if (cell.Used != 0)
            return TryPublishBeside(ref cell, ref first, ref second, ref third, out holds);
        places = Hook.AddressOf(ref first);
        Unsafe.Add(ref places, 1) = Hook.AddressOf(ref second);
        Unsafe.Add(ref places, 2) = Hook.AddressOf(ref third);
        cell.Used = holds = FirstThree;
        return true;
    }

    // The processor holds something already: what VP.ENTER took, for a call made from inside.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool TryPublishBeside(ref HazardTable.Slot cell, ref ulong first, ref ulong second, ref ulong third, out uint holds)
    {
        holds = 0;
        uint free = ~cell.Used & HazardTable.AllHolds;
        uint rest = free & (free - 1);
        uint last = rest & (rest - 1);
        if (last == 0)
            return false;
        ref nuint places = ref cell.First;
        Unsafe.Add(ref places, System.Numerics.BitOperations.TrailingZeroCount(free)) = Hook.AddressOf(ref first);
        Unsafe.Add(ref places, System.Numerics.BitOperations.TrailingZeroCount(rest)) = Hook.AddressOf(ref second);
        Unsafe.Add(ref places, System.Numerics.BitOperations.TrailingZeroCount(last)) = Hook.AddressOf(ref third);
        holds = free ^ (last & (last - 1));
        cell.Used |= holds;
        return true;
    }

    /// <summary>The second half: true when all three are shared. After a full fence that followed <see cref="TryPublish"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsGranted(ref ulong first, ref ulong second, ref ulong third) =>
        (((Volatile.Read(ref first) ^ TryLock.Biased) | (Volatile.Read(ref second) ^ TryLock.Biased) | (Volatile.Read(ref third) ^ TryLock.Biased)) & Judged) == 0;

    /// <summary>Gives the holds back.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Release(HazardSlot slot, uint holds)
    {
        ref HazardTable.Slot cell = ref slot.Cell;
        ref nuint places = ref cell.First;
        if (holds == FirstThree)
        {
            cell.Used &= ~FirstThree;
            Volatile.Write(ref places, 0);
            Volatile.Write(ref Unsafe.Add(ref places, 1), 0);
            Volatile.Write(ref Unsafe.Add(ref places, 2), 0);
            return;
        }

        ReleaseEach(ref cell, holds);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ReleaseEach(ref HazardTable.Slot cell, uint holds)
    {
        ref nuint places = ref cell.First;
        cell.Used &= ~holds;
        for (; holds != 0; holds &= holds - 1)
            Volatile.Write(ref Unsafe.Add(ref places, System.Numerics.BitOperations.TrailingZeroCount(holds)), 0);
    }
}
