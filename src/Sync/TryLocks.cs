using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Threading;

namespace Tdp.Sync;

/// <summary>Who asks for a lock of the TDX module: a host call sets and clears the host-priority bit, a guest call obeys it (tdx-module 7.2).</summary>
public enum LockSide : byte
{
    /// <summary>A SEAMCALL.</summary>
    Host,

    /// <summary>A TDCALL.</summary>
    Guest,
}

/// <summary>Answer of a lock that never waits.</summary>
public enum LockAnswer : byte
{
    /// <summary>The caller holds the lock.</summary>
    Taken,

    /// <summary>Somebody else does.</summary>
    Busy,

    /// <summary>A guest call stepped back for a host that lost before.</summary>
    BusyHostPriority,
}

/// <summary>
/// The hazard slots of one machine's logical processors: shared holders of a <see cref="TryLock"/> that is <em>biased</em> publish the lock's
/// address in their own slot instead of writing the lock word, so shared holds of TDR, OP_STATE or the SEPT tree never share a line (decisions D28).
/// </summary>
public sealed class HazardTable
{
    internal const int Holds = 16;
    internal const uint AllHolds = (1u << Holds) - 1;
    private readonly Slot[] _slots;
    private int _used;

    /// <summary>Makes room for <paramref name="processors"/> holders.</summary>
    public HazardTable(int processors) => _slots = GC.AllocateArray<Slot>(processors + 1, pinned: true);

    /// <summary>Gives out the next slot. Called once per logical processor (and once for a test's injected holder).</summary>
    public HazardSlot Take()
    {
        int index = Interlocked.Increment(ref _used);
        if (index >= _slots.Length)
            throw new InvalidOperationException($"The machine has {_slots.Length - 1} hazard slots.");
        return new HazardSlot(this, index);
    }

    internal ref Slot At(int index) => ref Unsafe.Add(ref MemoryMarshal.GetArrayDataReference(_slots), index);

    internal bool IsHeld(nuint address, int exceptSlot, int exceptHold)
    {
        int used = Math.Min(Volatile.Read(ref _used), _slots.Length - 1);
        for (int i = 1; i <= used; i++)
        {
            Span<nuint> holds = At(i).All;
            if (i != exceptSlot)
            {
                // Sixteen addresses at once: an exclusive taker pays for every processor of the machine. The taker's compare-exchange came before.
                if (Contains(ref holds[0], address))
                    return true;
                continue;
            }

            for (int h = 0; h < Holds; h++)
            {
                if (Volatile.Read(ref holds[h]) == address && h != exceptHold)
                    return true;
            }
        }

        return false;
    }

    internal bool IsHeldBy(nuint address, int slot) => Contains(ref At(slot).All[0], address);

    private static bool Contains(ref nuint holds, nuint address)
    {
        ref ulong first = ref Unsafe.As<nuint, ulong>(ref holds);
        Vector256<ulong> wanted = Vector256.Create((ulong)address);
        Vector256<ulong> hit = Vector256.Equals(Vector256.LoadUnsafe(ref first), wanted)
            | Vector256.Equals(Vector256.LoadUnsafe(ref first, 4), wanted)
            | Vector256.Equals(Vector256.LoadUnsafe(ref first, 8), wanted)
            | Vector256.Equals(Vector256.LoadUnsafe(ref first, 12), wanted);
        return hit != Vector256<ulong>.Zero;
    }

    // The mask of used holds lies with the holds: in the slot's own object it would share a line with a neighbour's.
    [StructLayout(LayoutKind.Sequential, Size = 256)]
    internal struct Slot
    {
        public uint Used;
        private HoldArray _holds;

        [System.Diagnostics.CodeAnalysis.UnscopedRef]
        public Span<nuint> All => _holds;

        [System.Diagnostics.CodeAnalysis.UnscopedRef]
        public ref nuint First => ref Unsafe.As<HoldArray, nuint>(ref _holds);
    }

    [InlineArray(Holds)]
    private struct HoldArray
    {
        private nuint _first;
    }
}

/// <summary>One holder's place in a <see cref="HazardTable"/>. Used by one thread at a time.</summary>
public sealed unsafe class HazardSlot
{
    private readonly HazardTable _table;
    private readonly int _index;

    // The table's slots are pinned, and the table keeps them alive.
    private readonly HazardTable.Slot* _cell;

    internal HazardSlot(HazardTable table, int index)
    {
        _table = table;
        _index = index;
        _cell = (HazardTable.Slot*)Unsafe.AsPointer(ref table.At(index));
    }

    /// <summary>Shared holds that are published now; for checkers, when the holder is at rest.</summary>
    public int Holds => System.Numerics.BitOperations.PopCount(Cell.Used);

    internal int Index => _index;

    internal HazardTable Table => _table;

    internal ref HazardTable.Slot Cell
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => ref *_cell;
    }

    /// <summary>Publishes an address with a full fence; returns the hold's number, or -1 when all are in use.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal int Publish(nuint address)
    {
        ref HazardTable.Slot slot = ref *_cell;
        int hold = System.Numerics.BitOperations.TrailingZeroCount(~slot.Used);
        if (hold >= HazardTable.Holds)
            return -1;
        slot.Used |= 1u << hold;
        Interlocked.Exchange(ref slot.All[hold], address);
        return hold;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void Withdraw(int hold)
    {
        ref HazardTable.Slot slot = ref *_cell;
        Volatile.Write(ref slot.All[hold], 0);
        slot.Used &= ~(1u << hold);
    }
}

/// <summary>
/// The TDX module's shared/exclusive lock with host priority, in bits 15:0 of a 64-bit word: bit 0 exclusive, bit 1 host priority, bits 14:2
/// counted readers, bit 15 <em>biased</em> (ours: readers publish in hazard slots; decisions D28). Nothing waits. The word's other bits are the owner's,
/// and may be changed only by the exclusive holder.
/// </summary>
/// <remarks>
/// A biased shared taker publishes, fences, then looks at the exclusive bit; an exclusive taker sets the bit, then scans the slots. At least
/// one sees the other; in a free run both may lose. Linearization: shared at the check of the exclusive bit (biased) or the compare-exchange
/// (counted); exclusive at the end of the scan, or at the compare-exchange when the lock is not biased.
/// </remarks>
public readonly ref struct TryLock
{
    /// <summary>Bit 0: held exclusively.</summary>
    public const ulong Exclusive = 1;

    /// <summary>Bit 1: a host call lost; guests step back until a host call succeeds.</summary>
    public const ulong HostPriority = 2;

    /// <summary>Bit 15: shared holders publish in hazard slots.</summary>
    public const ulong Biased = 0x8000;

    /// <summary>Bits 15:0.</summary>
    public const ulong Mask = 0xFFFF;

    private const ulong OneReader = 4;
    private const ulong MinusOneReader = unchecked((ulong)-4L);
    private const ulong Readers = 0x7FFC;
    private const int Counted = -1;
    private readonly ref ulong _word;

    /// <summary>Wraps the word that contains the lock. It must lie in simulated memory or in a <see cref="WordBlock"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TryLock(ref ulong word) => _word = ref word;

    /// <summary>
    /// Tries to share the lock. On success <paramref name="hold"/> must be given back to <see cref="ReleaseShared"/> by the same slot.
    /// Host: success clears host priority, failure sets it. Guest: refused while host priority is set.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public LockAnswer TryShared(HazardSlot slot, LockSide side, out int hold, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            return HookedTryShared(slot, side, out hold, site);
        if ((Volatile.Read(ref _word) & (Biased | Exclusive | HostPriority)) == Biased)
        {
            hold = slot.Publish(Hook.AddressOf(ref _word));
            if (hold >= 0)
            {
                if ((Volatile.Read(ref _word) & (Biased | Exclusive | HostPriority)) == Biased)
                    return LockAnswer.Taken;
                slot.Withdraw(hold);
            }
        }

        return TrySharedSlow(slot, side, out hold);
    }

    /// <summary>Gives a shared hold back.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ReleaseShared(HazardSlot slot, int hold, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedReleaseShared(slot, hold, site);
        else if (hold >= 0)
            slot.Withdraw(hold);
        else
            Interlocked.Add(ref _word, MinusOneReader);
    }

    /// <summary>Tries to take the lock alone. Host: success clears host priority, failure sets it. Guest: refused while it is set.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public LockAnswer TryExclusive(HazardSlot slot, LockSide side, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            return HookedTryExclusive(slot, side, site);
        ulong seen = Volatile.Read(ref _word);
        if ((seen & Mask) == 0 && Interlocked.CompareExchange(ref _word, seen | Exclusive, seen) == seen)
            return LockAnswer.Taken;
        return TryExclusiveSlow(slot, side);
    }

    /// <summary>Tries to turn the caller's shared hold into an exclusive one (tdx-module 3.2 step 6: a leaf at a higher level). Failure keeps the shared hold.</summary>
    public LockAnswer TryPromote(HazardSlot slot, int hold, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, Hook.Resolve(ref _word), site) : default;
        ulong before = Volatile.Read(ref _word);
        LockAnswer answer = Promote(slot, hold);
        if (Explore.On)
            Hook.Happened(pending, Volatile.Read(ref _word) != before, before, Volatile.Read(ref _word));
        return answer;
    }

    /// <summary>
    /// Gives an exclusive hold back; host priority stays, as the word's other bits do. Nobody else writes the word while it is held, but for a loser's
    /// host priority; one that is set in this very moment may be lost, which it may be anyway (tdx-module 7.2: a hint, not a promise).
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ReleaseExclusive([CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedReleaseExclusive(0, site);
        else
            Volatile.Write(ref _word, Volatile.Read(ref _word) & ~Exclusive);
    }

    /// <summary>
    /// Gives an exclusive hold back and replaces bits 63:16 by those of <paramref name="content"/> in the same step. Bit 15 of
    /// <paramref name="content"/> says whether the lock is biased from now on.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ReleaseExclusive(ulong content, [CallerMemberName] string site = "")
    {
        if (Explore.On)
        {
            HookedReleaseExclusive(content, site, replace: true);
            return;
        }

        Volatile.Write(ref _word, (content & ~Mask) | (content & Biased) | (Volatile.Read(ref _word) & HostPriority));
    }

    /// <summary>True while anybody shares the lock; for the holder of a lock that stands for this one (tdx-module 3.2: an entry above).</summary>
    public bool IsShared(HazardSlot any) =>
        (Volatile.Read(ref _word) & Readers) != 0 || any.Table.IsHeld(Hook.AddressOf(ref _word), -1, -1);

    /// <summary>True while the owner of <paramref name="slot"/> shares this biased lock; for that owner itself.</summary>
    public bool IsPublishedBy(HazardSlot slot) => slot.Table.IsHeldBy(Hook.AddressOf(ref _word), slot.Index);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private LockAnswer TrySharedSlow(HazardSlot slot, LockSide side, out int hold)
    {
        hold = Counted;
        ulong seen = Volatile.Read(ref _word);
        while (true)
        {
            if (side == LockSide.Guest && (seen & HostPriority) != 0)
                return LockAnswer.BusyHostPriority;
            if ((seen & Exclusive) != 0)
            {
                if (side == LockSide.Host)
                    Interlocked.Or(ref _word, HostPriority);
                return LockAnswer.Busy;
            }

            // A biased lock counts a reader in the word, too, when the slot is full or host priority has to be cleared: the exclusive taker looks at both.
            ulong found = Interlocked.CompareExchange(ref _word, (seen & ~HostPriority) + OneReader, seen);
            if (found == seen)
                return LockAnswer.Taken;
            seen = found;
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private LockAnswer TryExclusiveSlow(HazardSlot slot, LockSide side)
    {
        ulong seen = Volatile.Read(ref _word);
        while (true)
        {
            if ((seen & (Exclusive | Readers)) != 0)
                return Lost(side);
            if (side == LockSide.Guest && (seen & HostPriority) != 0)
                return LockAnswer.BusyHostPriority;
            ulong found = Interlocked.CompareExchange(ref _word, (seen & ~HostPriority) | Exclusive, seen);
            if (found == seen)
                break;
            seen = found;
        }

        if ((seen & Biased) == 0 || !slot.Table.IsHeld(Hook.AddressOf(ref _word), -1, -1))
            return LockAnswer.Taken;
        Interlocked.And(ref _word, ~Exclusive);
        return Lost(side);
    }

    private LockAnswer Promote(HazardSlot slot, int hold)
    {
        ulong seen = Volatile.Read(ref _word);
        ulong own = hold == Counted ? OneReader : 0;
        while (true)
        {
            if ((seen & Exclusive) != 0 || (seen & Readers) != own)
                return Lost(LockSide.Host);
            ulong found = Interlocked.CompareExchange(ref _word, (seen & ~Readers) | Exclusive, seen);
            if (found == seen)
                break;
            seen = found;
        }

        if ((seen & Biased) != 0 && slot.Table.IsHeld(Hook.AddressOf(ref _word), slot.Index, hold))
        {
            ulong now = Volatile.Read(ref _word);
            while (true)
            {
                ulong found = Interlocked.CompareExchange(ref _word, (now & ~Exclusive) + own, now);
                if (found == now)
                    return Lost(LockSide.Host);
                now = found;
            }
        }

        if (hold != Counted)
            slot.Withdraw(hold);
        return LockAnswer.Taken;
    }

    private LockAnswer Lost(LockSide side)
    {
        // Written only when it changes: a losing storm must not own the line.
        if (side == LockSide.Host && (Volatile.Read(ref _word) & HostPriority) == 0)
            Interlocked.Or(ref _word, HostPriority);
        return LockAnswer.Busy;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private LockAnswer HookedTryShared(HazardSlot slot, LockSide side, out int hold, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, Hook.Resolve(ref _word), site);
        ulong before = Volatile.Read(ref _word);
        LockAnswer answer = TrySharedSlow(slot, side, out hold);
        Hook.Happened(pending, Volatile.Read(ref _word) != before, before, Volatile.Read(ref _word));
        return answer;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedReleaseShared(HazardSlot slot, int hold, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.LockRelease, Hook.Resolve(ref _word), site);
        ulong before = Volatile.Read(ref _word);
        if (hold >= 0)
            slot.Withdraw(hold);
        else
            Interlocked.Add(ref _word, MinusOneReader);
        Hook.Happened(pending, true, before, Volatile.Read(ref _word));
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private LockAnswer HookedTryExclusive(HazardSlot slot, LockSide side, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, Hook.Resolve(ref _word), site);
        ulong before = Volatile.Read(ref _word);
        LockAnswer answer = TryExclusiveSlow(slot, side);
        Hook.Happened(pending, Volatile.Read(ref _word) != before, before, Volatile.Read(ref _word));
        return answer;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedReleaseExclusive(ulong content, string site, bool replace = false)
    {
        PendingEvent pending = Hook.Announce(EventKind.LockRelease, Hook.Resolve(ref _word), site);
        ulong before = Volatile.Read(ref _word);
        ulong after = replace ? (content & ~Mask) | (content & Biased) | (before & HostPriority) : before & ~Exclusive;
        Volatile.Write(ref _word, after);
        Hook.Happened(pending, true, before, after);
    }
}

/// <summary>A mutex that never waits, in bit 0 of a word: TDMR.INIT, CACHE.WB (tdx-module 7.2).</summary>
public readonly ref struct TryMutex
{
    private readonly ref ulong _word;

    /// <summary>Wraps the word that contains the mutex.</summary>
    public TryMutex(ref ulong word) => _word = ref word;

    /// <summary>Tries to take the mutex. Linearizes at the compare-exchange.</summary>
    public bool TryTake([CallerMemberName] string site = "")
    {
        ulong free = 0;
        return new AtomicWord(ref _word).CompareExchange(ref free, 1, site);
    }

    /// <summary>Gives it back.</summary>
    public void Release([CallerMemberName] string site = "") => new AtomicWord(ref _word).Write(0, site);
}
