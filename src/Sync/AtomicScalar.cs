using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// A naturally aligned 1, 2, 4 or 8 byte value of simulated memory, for guest accesses smaller than a word (td-guest 1.6). Same rules as
/// <see cref="AtomicWord"/>: one event, one instruction.
/// </summary>
/// <typeparam name="T">byte, ushort, uint or ulong.</typeparam>
public readonly ref struct AtomicScalar<T>
    where T : unmanaged
{
    private readonly ref T _value;

    /// <summary>Wraps the value. The memory must not move; the address must be a multiple of the size.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public AtomicScalar(ref T value) => _value = ref value;

    /// <summary>Load with acquire order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Read([CallerMemberName] string site = "") => Explore.On ? HookedRead(site) : Load();

    /// <summary>Store with release order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Write(T value, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedWrite(value, site);
        else
            Store(value);
    }

    /// <summary>Stores <paramref name="desired"/> iff the value is <paramref name="expected"/>; on failure <paramref name="expected"/> becomes the value found. Full fence.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool CompareExchange(ref T expected, T desired, [CallerMemberName] string site = "")
    {
        PendingEvent pending = Explore.On ? Hook.Announce(EventKind.Update, Id(), site) : default;
        T found = Swap(desired, expected);
        bool won = EqualityComparer<T>.Default.Equals(found, expected);
        if (Explore.On)
            Hook.Happened(pending, won && !EqualityComparer<T>.Default.Equals(found, desired));
        expected = won ? expected : found;
        return won;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private T Load()
    {
        if (Unsafe.SizeOf<T>() == 1)
            return Unsafe.BitCast<byte, T>(Volatile.Read(ref Unsafe.As<T, byte>(ref _value)));
        if (Unsafe.SizeOf<T>() == 2)
            return Unsafe.BitCast<ushort, T>(Volatile.Read(ref Unsafe.As<T, ushort>(ref _value)));
        if (Unsafe.SizeOf<T>() == 4)
            return Unsafe.BitCast<uint, T>(Volatile.Read(ref Unsafe.As<T, uint>(ref _value)));
        return Unsafe.BitCast<ulong, T>(Volatile.Read(ref Unsafe.As<T, ulong>(ref _value)));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Store(T value)
    {
        if (Unsafe.SizeOf<T>() == 1)
            Volatile.Write(ref Unsafe.As<T, byte>(ref _value), Unsafe.BitCast<T, byte>(value));
        else if (Unsafe.SizeOf<T>() == 2)
            Volatile.Write(ref Unsafe.As<T, ushort>(ref _value), Unsafe.BitCast<T, ushort>(value));
        else if (Unsafe.SizeOf<T>() == 4)
            Volatile.Write(ref Unsafe.As<T, uint>(ref _value), Unsafe.BitCast<T, uint>(value));
        else
            Volatile.Write(ref Unsafe.As<T, ulong>(ref _value), Unsafe.BitCast<T, ulong>(value));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private T Swap(T desired, T expected)
    {
        if (Unsafe.SizeOf<T>() == 1)
            return Unsafe.BitCast<byte, T>(Interlocked.CompareExchange(ref Unsafe.As<T, byte>(ref _value), Unsafe.BitCast<T, byte>(desired), Unsafe.BitCast<T, byte>(expected)));
        if (Unsafe.SizeOf<T>() == 2)
            return Unsafe.BitCast<ushort, T>(Interlocked.CompareExchange(ref Unsafe.As<T, ushort>(ref _value), Unsafe.BitCast<T, ushort>(desired), Unsafe.BitCast<T, ushort>(expected)));
        if (Unsafe.SizeOf<T>() == 4)
            return Unsafe.BitCast<uint, T>(Interlocked.CompareExchange(ref Unsafe.As<T, uint>(ref _value), Unsafe.BitCast<T, uint>(desired), Unsafe.BitCast<T, uint>(expected)));
        return Unsafe.BitCast<ulong, T>(Interlocked.CompareExchange(ref Unsafe.As<T, ulong>(ref _value), Unsafe.BitCast<T, ulong>(desired), Unsafe.BitCast<T, ulong>(expected)));
    }

    private ObjectId Id()
    {
        // The name is that of the 64-bit word around the value: accesses of different sizes to one word are dependent.
        nuint address = Hook.AddressOf(ref Unsafe.As<T, ulong>(ref _value));
        return Hook.Resolve(address & ~(nuint)7);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private T HookedRead(string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Read, Id(), site);
        T value = Load();
        Hook.Happened(pending, false);
        return value;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedWrite(T value, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Write, Id(), site);
        T before = Load();
        Store(value);
        Hook.Happened(pending, !EqualityComparer<T>.Default.Equals(before, value));
    }
}
