using System.Numerics;

namespace Tdp.Cpu;

/// <summary>Bits of RFLAGS.</summary>
internal static class Rflags
{
    public const ulong Carry = 1;
    public const ulong Fixed = 2;
    public const ulong Parity = 4;
    public const ulong Adjust = 0x10;
    public const ulong Zero = 0x40;
    public const ulong Sign = 0x80;
    public const ulong Trap = 0x100;
    public const ulong Interrupt = 0x200;
    public const ulong Direction = 0x400;
    public const ulong Overflow = 0x800;
    public const ulong Iopl = 0x3000;
    public const ulong NestedTask = 0x4000;
    public const ulong Resume = 0x1_0000;
    public const ulong Virtual8086 = 0x2_0000;
    public const ulong AlignmentCheck = 0x4_0000;
    public const ulong VirtualInterrupt = 0x8_0000;
    public const ulong VirtualInterruptPending = 0x10_0000;
    public const ulong Identification = 0x20_0000;

    /// <summary>The six arithmetic flags.</summary>
    public const ulong Arithmetic = Carry | Parity | Adjust | Zero | Sign | Overflow;
}

/// <summary>
/// The six arithmetic flags, kept as the operands of the last instruction that set them and computed when somebody asks (td-guest 3.3).
/// </summary>
/// <remarks>
/// Operands are kept sign-extended from their size. Sign extension keeps both the signed and the unsigned order, so after a comparison of any
/// size the conditions are 64-bit comparisons. A logical result r is kept as the comparison of r with 0: same flags, AF included.
/// </remarks>
internal struct LazyFlags
{
    // Kinds 0..3: X - Y of 8, 16, 32, 64 bits. 4..7: X + Y. 8..11: X is the result of INC, Y the carry before. 12..15: DEC. 16: X holds the flags.
    private const uint AddKind = 4;
    private const uint IncKind = 8;
    private const uint DecKind = 12;
    private const uint KnownKind = 16;

    private ulong _x;
    private ulong _y;
    private uint _kind;

    /// <summary>Flags of a - b; operands sign-extended. <paramref name="size"/> is log2 of the bytes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Subtracted(ulong a, ulong b, uint size)
    {
        _x = a;
        _y = b;
        _kind = size;
    }

    /// <summary>Flags of a + b; operands sign-extended.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Added(ulong a, ulong b, uint size)
    {
        _x = a;
        _y = b;
        _kind = AddKind + size;
    }

    /// <summary>Flags of a logical result, sign-extended: CF = OF = 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Logical(ulong result, uint size) => Subtracted(result, 0, size);

    /// <summary>Flags of INC: the carry stays. The result is sign-extended.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Incremented(ulong result, uint size)
    {
        _y = Carry ? 1u : 0;
        _x = result;
        _kind = IncKind + size;
    }

    /// <summary>Flags of DEC: the carry stays. The result is sign-extended.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Decremented(ulong result, uint size)
    {
        _y = Carry ? 1u : 0;
        _x = result;
        _kind = DecKind + size;
    }

    /// <summary>Sets all six flags; other bits are ignored.</summary>
    public void Set(ulong flags)
    {
        _x = flags & Rflags.Arithmetic;
        _kind = KnownKind;
    }

    /// <summary>CF.</summary>
    public readonly bool Carry
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => _kind <= 3 ? _x < _y : SlowCarry();
    }

    /// <summary>ZF.</summary>
    public readonly bool Zero
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => _kind <= 3 ? _x == _y : (Value() & Rflags.Zero) != 0;
    }

    /// <summary>Condition 0..15 as encoded in Jcc, SETcc, CMOVcc: O NO B AE E NE BE A S NS P NP L GE LE G.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly bool Test(int condition)
    {
        if (_kind <= 3)
        {
            switch (condition)
            {
                case 2:
                    return _x < _y;
                case 3:
                    return _x >= _y;
                case 4:
                    return _x == _y;
                case 5:
                    return _x != _y;
                case 6:
                    return _x <= _y;
                case 7:
                    return _x > _y;
                case 12:
                    return (long)_x < (long)_y;
                case 13:
                    return (long)_x >= (long)_y;
                case 14:
                    return (long)_x <= (long)_y;
                case 15:
                    return (long)_x > (long)_y;
            }
        }

        return TestValue(condition);
    }

    /// <summary>The six flags in their RFLAGS positions.</summary>
    public readonly ulong Value()
    {
        if (_kind == KnownKind)
            return _x;
        int shift = 64 - (8 << (int)(_kind & 3));
        switch (_kind >> 2)
        {
            case 0:
            {
                ulong result = _x - _y;
                bool sign = (long)(result << shift) < 0;
                return Common(result, shift, _x ^ _y ^ result)
                    | (_x < _y ? Rflags.Carry : 0)
                    | (sign != ((long)_x < (long)_y) ? Rflags.Overflow : 0);
            }

            case 1:
            {
                ulong result = _x + _y;
                bool carry = result << shift < _x << shift;
                bool overflow = (long)((~(_x ^ _y) & (_x ^ result)) << shift) < 0;
                return Common(result, shift, _x ^ _y ^ result) | (carry ? Rflags.Carry : 0) | (overflow ? Rflags.Overflow : 0);
            }

            case 2:
                return Common(_x, shift, (_x & 0xF) == 0 ? Rflags.Adjust : 0) | _y | (_x << shift == 1UL << 63 ? Rflags.Overflow : 0);
            default:
                return Common(_x, shift, (_x & 0xF) == 0xF ? Rflags.Adjust : 0) | _y
                    | (_x << shift == (ulong)long.MaxValue >> shift << shift ? Rflags.Overflow : 0);
        }
    }

    /// <summary>SF, ZF and PF of a result whose top bit is bit 63 - <paramref name="shift"/>, and AF from bit 4 of <paramref name="adjust"/>.</summary>
    public static ulong Common(ulong result, int shift, ulong adjust)
    {
        ulong top = result << shift;
        return ((BitOperations.PopCount(result & 0xFF) & 1) == 0 ? Rflags.Parity : 0)
            | (adjust & Rflags.Adjust)
            | (top == 0 ? Rflags.Zero : 0)
            | ((top >> 63) << 7);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private readonly bool SlowCarry() => _kind is >= IncKind and < KnownKind ? _y != 0 : (Value() & Rflags.Carry) != 0;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private readonly bool TestValue(int condition)
    {
        ulong flags = Value();
        bool less = ((flags >> 7) & 1) != ((flags >> 11) & 1);
        bool holds = (condition >> 1) switch
        {
            0 => (flags & Rflags.Overflow) != 0,
            1 => (flags & Rflags.Carry) != 0,
            2 => (flags & Rflags.Zero) != 0,
            3 => (flags & (Rflags.Carry | Rflags.Zero)) != 0,
            4 => (flags & Rflags.Sign) != 0,
            5 => (flags & Rflags.Parity) != 0,
            6 => less,
            _ => less || (flags & Rflags.Zero) != 0,
        };
        return holds != ((condition & 1) != 0);
    }
}
