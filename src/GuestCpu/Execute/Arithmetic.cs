using System.Numerics;

namespace Tdp.Cpu;

/// <content>Steps that cover several operand sizes. Sizes are log2 of the bytes.</content>
public sealed partial class GuestCpu
{
    internal static ulong SignExtend(ulong value, int size)
    {
        int shift = 64 - (8 << size);
        return (ulong)((long)(value << shift) >> shift);
    }

    internal static ulong Truncate(ulong value, int size) => size == 3 ? value : value & ((1UL << (8 << size)) - 1);

    private static ulong GetRegister(ref byte r, byte offset, int size) => size switch
    {
        0 => R8(ref r, offset),
        1 => R16(ref r, offset),
        2 => R32(ref r, offset),
        _ => R64(ref r, offset),
    };

    // 8- and 16-bit results are merged, 32-bit results clear the upper half.
    private static void PutRegister(ref byte r, byte offset, int size, ulong value)
    {
        switch (size)
        {
            case 0:
                R8(ref r, offset) = (byte)value;
                break;
            case 1:
                R16(ref r, offset) = (ushort)value;
                break;
            case 2:
                R64(ref r, offset) = (uint)value;
                break;
            default:
                R64(ref r, offset) = value;
                break;
        }
    }

    /// <summary>Two-operand arithmetic and logic: the result, with the flags set.</summary>
    internal static ulong Compute(AluOperation operation, ulong a, ulong b, int size, ref LazyFlags flags)
    {
        ulong left = SignExtend(a, size);
        ulong right = SignExtend(b, size);
        ulong result;
        switch (operation)
        {
            case AluOperation.Add:
                flags.Added(left, right, (uint)size);
                return left + right;
            case AluOperation.Sub or AluOperation.Cmp:
                flags.Subtracted(left, right, (uint)size);
                return left - right;
            case AluOperation.And or AluOperation.Test:
                result = left & right;
                break;
            case AluOperation.Or:
                result = left | right;
                break;
            case AluOperation.Xor:
                result = left ^ right;
                break;
            default:
                return WithCarry(operation == AluOperation.Adc, Truncate(a, size), Truncate(b, size), size, ref flags);
        }

        flags.Logical(result, (uint)size);
        return result;
    }

    /// <summary>INC, DEC, NOT, NEG.</summary>
    internal static ulong ComputeUnary(AluOperation operation, ulong a, int size, ref LazyFlags flags)
    {
        ulong value = SignExtend(a, size);
        switch (operation)
        {
            case AluOperation.Inc:
                flags.Incremented(SignExtend(value + 1, size), (uint)size);
                return value + 1;
            case AluOperation.Dec:
                flags.Decremented(SignExtend(value - 1, size), (uint)size);
                return value - 1;
            case AluOperation.Neg:
                flags.Subtracted(0, value, (uint)size);
                return 0 - value;
            default:
                return ~value;
        }
    }

    /// <summary>BT, BTS, BTR, BTC of bit <paramref name="bit"/>: the result, with CF set.</summary>
    internal static ulong ComputeBit(AluOperation operation, ulong a, int bit, ref LazyFlags flags)
    {
        ulong mask = 1UL << bit;
        flags.Set((flags.Value() & ~Rflags.Carry) | ((a >> bit) & 1));
        return operation switch
        {
            AluOperation.Bts => a | mask,
            AluOperation.Btr => a & ~mask,
            AluOperation.Btc => a ^ mask,
            _ => a,
        };
    }

    private static ulong WithCarry(bool add, ulong a, ulong b, int size, ref LazyFlags flags)
    {
        ulong carryIn = flags.Carry ? 1u : 0;
        int shift = 64 - (8 << size);
        ulong result = Truncate(add ? a + b + carryIn : a - b - carryIn, size);
        bool carry = add ? result < a || (carryIn != 0 && result == a) : a < b || (carryIn != 0 && a == b);
        ulong overflow = add ? ~(a ^ b) & (a ^ result) : (a ^ b) & (a ^ result);
        flags.Set(LazyFlags.Common(result, shift, a ^ b ^ result) | (carry ? Rflags.Carry : 0) | ((long)(overflow << shift) < 0 ? Rflags.Overflow : 0));
        return result;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Alu(ref byte r, ref MicroOp op, ulong b)
    {
        int size = op.Aux >> 8;
        var operation = (AluOperation)(byte)op.Aux;
        ulong result = Compute(operation, GetRegister(ref r, op.Dst, size), b, size, ref _flags);
        if (operation is not (AluOperation.Cmp or AluOperation.Test))
            PutRegister(ref r, op.Dst, size, result);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Unary(ref byte r, ref MicroOp op)
    {
        int size = op.Aux >> 8;
        PutRegister(ref r, op.Dst, size, ComputeUnary((AluOperation)(byte)op.Aux, GetRegister(ref r, op.Dst, size), size, ref _flags));
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void BitTest(ref byte r, ref MicroOp op, ulong offset)
    {
        int size = op.Aux >> 8;
        var operation = (AluOperation)(byte)op.Aux;
        ulong result = ComputeBit(operation, GetRegister(ref r, op.Dst, size), (int)offset & ((8 << size) - 1), ref _flags);
        if (operation != AluOperation.Bt)
            PutRegister(ref r, op.Dst, size, result);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void BitScan(ref byte r, ref MicroOp op)
    {
        int size = op.Aux >> 8;
        ulong source = Truncate(GetRegister(ref r, op.Src, size), size);
        if (source == 0)
        {
            // The destination stays, all 64 bits of it.
            _flags.Set(Rflags.Zero);
            return;
        }

        bool forward = (AluOperation)(byte)op.Aux == AluOperation.Bsf;
        PutRegister(ref r, op.Dst, size, (ulong)(forward ? BitOperations.TrailingZeroCount(source) : BitOperations.Log2(source)));
        _flags.Set(0);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Shift(ref byte r, ref MicroOp op, int count)
    {
        int size = op.Aux >> 8;
        count &= size == 3 ? 63 : 31;
        ulong value = GetRegister(ref r, op.Dst, size);
        if (count != 0)
            value = ShiftBy((AluOperation)(byte)op.Aux, value, count, size);

        // Written even when nothing moved: the 32-bit form clears the upper half.
        PutRegister(ref r, op.Dst, size, value);
    }

    private ulong ShiftBy(AluOperation operation, ulong a, int count, int size)
    {
        int bits = 8 << size;
        ulong top = 1UL << (bits - 1);
        ulong result;
        ulong carry;
        switch (operation)
        {
            case AluOperation.Shl:
                result = Truncate(a << count, size);
                carry = count <= bits ? (a >> (bits - count)) & 1 : 0;
                SetShiftFlags(result, carry, ((result & top) != 0) != (carry != 0), size);
                return result;
            case AluOperation.Shr:
                result = a >> count;
                carry = (a >> (count - 1)) & 1;
                SetShiftFlags(result, carry, (a & top) != 0, size);
                return result;
            case AluOperation.Sar:
                long signed = (long)SignExtend(a, size);
                result = Truncate((ulong)(signed >> count), size);
                carry = (ulong)(signed >> (count - 1)) & 1;
                SetShiftFlags(result, carry, false, size);
                return result;
            case AluOperation.Rol:
                result = Rotate(a, count & (bits - 1), bits);
                SetRotateFlags(result & 1, ((result & top) != 0) != ((result & 1) != 0));
                return result;
            case AluOperation.Ror:
                result = Rotate(a, (bits - count) & (bits - 1), bits);
                carry = (result & top) != 0 ? 1u : 0;
                SetRotateFlags(carry, ((result & top) != 0) != ((result & (top >> 1)) != 0));
                return result;
            default:
                return RotateThroughCarry(operation == AluOperation.Rcl, a, count % (bits + 1), bits);
        }
    }

    private ulong RotateThroughCarry(bool left, ulong a, int count, int bits)
    {
        if (count == 0)
            return a;
        ulong carry = _flags.Carry ? 1u : 0;
        ulong top = 1UL << (bits - 1);
        ulong mask = top | (top - 1);
        for (int i = 0; i < count; i++)
        {
            if (left)
            {
                ulong next = (a & top) != 0 ? 1u : 0;
                a = ((a << 1) | carry) & mask;
                carry = next;
            }
            else
            {
                ulong next = a & 1;
                a = (a >> 1) | (carry != 0 ? top : 0);
                carry = next;
            }
        }

        bool overflow = left ? ((a & top) != 0) != (carry != 0) : ((a & top) != 0) != ((a & (top >> 1)) != 0);
        SetRotateFlags(carry, overflow);
        return a;
    }

    private static ulong Rotate(ulong a, int count, int bits)
    {
        if (count == 0)
            return a;
        ulong mask = bits == 64 ? ulong.MaxValue : (1UL << bits) - 1;
        return ((a << count) | (a >> (bits - count))) & mask;
    }

    private void SetShiftFlags(ulong result, ulong carry, bool overflow, int size) =>
        _flags.Set(LazyFlags.Common(result, 64 - (8 << size), 0) | carry | (overflow ? Rflags.Overflow : 0));

    private void SetRotateFlags(ulong carry, bool overflow) =>
        _flags.Set((_flags.Value() & ~(Rflags.Carry | Rflags.Overflow)) | carry | (overflow ? Rflags.Overflow : 0));

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ShiftDouble(ref byte r, ref MicroOp op, int count)
    {
        int size = op.Aux >> 8;
        int bits = 8 << size;
        count &= size == 3 ? 63 : 31;
        ulong a = GetRegister(ref r, op.Dst, size);
        if (count == 0)
        {
            PutRegister(ref r, op.Dst, size, a);
            return;
        }

        // A 16-bit shift by more than 16 has no defined result; here the operands are repeated as if they were longer.
        ulong b = GetRegister(ref r, op.Src, size);
        UInt128 chain;
        ulong result;
        ulong carry;
        if ((AluOperation)(byte)op.Aux == AluOperation.Shld)
        {
            chain = ((UInt128)a << bits) | b;
            if (count > bits)
                chain = (chain << bits) | a;
            int length = count > bits ? 3 * bits : 2 * bits;
            result = Truncate((ulong)(chain >> (length - bits - count)), size);
            carry = (ulong)(chain >> (length - count)) & 1;
        }
        else
        {
            chain = ((UInt128)b << bits) | a;
            if (count > bits)
                chain |= (UInt128)a << (2 * bits);
            result = Truncate((ulong)(chain >> count), size);
            carry = (ulong)(chain >> (count - 1)) & 1;
        }

        bool overflow = ((a ^ result) & (1UL << (bits - 1))) != 0;
        PutRegister(ref r, op.Dst, size, result);
        SetShiftFlags(result, carry, overflow, size);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Multiply(ref byte r, ref MicroOp op, ulong a, ulong b)
    {
        int size = op.Aux >> 8;
        long left = (long)SignExtend(a, size);
        long right = (long)SignExtend(b, size);
        Int128 product = (Int128)left * right;
        ulong result = (ulong)product;
        PutRegister(ref r, op.Dst, size, result);
        SetMultiplyFlags(product != (long)SignExtend(result, size), result, size);
    }

    // SF, ZF, AF and PF are undefined after a multiplication.
    private void SetMultiplyFlags(bool tooWide, ulong result, int size) =>
        _flags.Set(LazyFlags.Common(result, 64 - (8 << size), 0) | (tooWide ? Rflags.Carry | Rflags.Overflow : 0));

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool MulDiv(ref byte r, ref MicroOp op)
    {
        int size = op.Aux >> 8;
        ulong source = GetRegister(ref r, op.Src, size);
        switch ((AluOperation)(byte)op.Aux)
        {
            case AluOperation.Mul:
            {
                UInt128 product = (UInt128)GetRegister(ref r, RaxOffset, size) * source;
                PutWide(ref r, size, (ulong)product, (ulong)(product >> (8 << size)));
                SetMultiplyFlags(product >> (8 << size) != 0, (ulong)product, size);
                return true;
            }

            case AluOperation.Imul:
            {
                Int128 product = (Int128)(long)SignExtend(GetRegister(ref r, RaxOffset, size), size) * (long)SignExtend(source, size);
                PutWide(ref r, size, (ulong)product, (ulong)(product >> (8 << size)));
                SetMultiplyFlags(product != (long)SignExtend((ulong)product, size), (ulong)product, size);
                return true;
            }

            case AluOperation.Div:
            {
                if (size == 2 || (size == 3 && R64(ref r, RdxOffset) == 0))
                {
                    ulong low = size == 3 ? R64(ref r, RaxOffset) : ((ulong)R32(ref r, RdxOffset) << 32) | R32(ref r, RaxOffset);
                    if (source == 0 || Truncate(low / source, size) != low / source)
                        return _linear.Trap.Raise(Vector.DivideError);
                    PutWide(ref r, size, low / source, low % source);
                    return true;
                }

                UInt128 dividend = Dividend(ref r, size);
                if (source == 0 || dividend / source >> (8 << size) != 0)
                    return _linear.Trap.Raise(Vector.DivideError);
                PutWide(ref r, size, (ulong)(dividend / source), (ulong)(dividend % source));
                return true;
            }

            default:
            {
                int shift = 128 - (16 << size);
                Int128 dividend = (Int128)(Dividend(ref r, size) << shift) >> shift;
                Int128 divisor = (long)SignExtend(source, size);

                // The one quotient that no Int128 can hold; the smallest dividend is out of range for every divisor that could be asked.
                if (divisor == 0 || (divisor == -1 && dividend == Int128.MinValue))
                    return _linear.Trap.Raise(Vector.DivideError);
                Int128 quotient = dividend / divisor;
                if (quotient != (long)SignExtend((ulong)quotient, size))
                    return _linear.Trap.Raise(Vector.DivideError);
                PutWide(ref r, size, (ulong)quotient, (ulong)(dividend % divisor));
                return true;
            }
        }
    }

    // Byte forms use AX for the pair, the others RDX and RAX.
    private static UInt128 Dividend(ref byte r, int size) =>
        size == 0 ? R16(ref r, RaxOffset) : ((UInt128)GetRegister(ref r, RdxOffset, size) << (8 << size)) | GetRegister(ref r, RaxOffset, size);

    private static void PutWide(ref byte r, int size, ulong low, ulong high)
    {
        if (size == 0)
        {
            R16(ref r, RaxOffset) = (ushort)((byte)low | (high << 8));
            return;
        }

        PutRegister(ref r, RaxOffset, size, low);
        PutRegister(ref r, RdxOffset, size, high);
    }
}
