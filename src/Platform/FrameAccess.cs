namespace Tdp.Platform;

/// <summary>
/// Atomic accesses to memory bytes at natural alignment, as x86 guarantees them (td-guest 1.6; decisions D12). The address must exist and be a
/// multiple of the size.
/// </summary>
public static class FrameAccess
{
    /// <summary>The value at a host address, as a shared value.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static AtomicScalar<T> Scalar<T>(this PhysicalMemory memory, ulong hpa)
        where T : unmanaged => new(ref Unsafe.As<byte, T>(ref memory.At(hpa)));

    /// <summary>Loads 1, 2, 4 or 8 bytes that lie in one cache line or are naturally aligned; zero-extended.</summary>
    public static ulong Load(this PhysicalMemory memory, ulong hpa, int size) => size switch
    {
        1 => memory.Scalar<byte>(hpa).Read(),
        2 => memory.Scalar<ushort>(hpa).Read(),
        4 => memory.Scalar<uint>(hpa).Read(),
        8 => memory.Scalar<ulong>(hpa).Read(),
        _ => throw new ArgumentOutOfRangeException(nameof(size), $"{size} bytes"),
    };

    /// <summary>Stores the low 1, 2, 4 or 8 bytes of a value.</summary>
    public static void Store(this PhysicalMemory memory, ulong hpa, int size, ulong value)
    {
        switch (size)
        {
            case 1:
                memory.Scalar<byte>(hpa).Write((byte)value);
                break;
            case 2:
                memory.Scalar<ushort>(hpa).Write((ushort)value);
                break;
            case 4:
                memory.Scalar<uint>(hpa).Write((uint)value);
                break;
            case 8:
                memory.Scalar<ulong>(hpa).Write(value);
                break;
            default:
                throw new ArgumentOutOfRangeException(nameof(size), $"{size} bytes");
        }
    }
}
