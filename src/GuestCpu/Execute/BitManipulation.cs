using System.Numerics;
using Iced.Intel;

namespace Tdp.Cpu;

/// <content>BMI1, BMI2, ABM, ADX and CRC32: the general-register part of tier 2 (td-guest 2.3).</content>
public sealed partial class GuestCpu
{
    private bool BitManipulation(in Instruction i)
    {
        int bytes = BlockBuilder.Bytes(i, 0);
        if (i.Mnemonic == Mnemonic.Crc32)
            return Checksum(i, bytes);

        // The memory operand, if any, is the second of two or the one that is not VVVV.
        int last = i.OpCount - 1;
        if (!TryReadOperand(i, 1, bytes, out ulong a) || !TryReadOperand(i, last, i.GetOpKind(last) == OpKind.Immediate8 ? 1 : bytes, out ulong b))
            return false;
        int bits = bytes * 8;
        int size = Log(bytes);
        ulong result;
        switch (i.Mnemonic)
        {
            case Mnemonic.Popcnt:
                result = (ulong)BitOperations.PopCount(a);
                _flags.Set(a == 0 ? Rflags.Zero : 0);
                break;
            case Mnemonic.Tzcnt:
                result = a == 0 ? (ulong)bits : (ulong)BitOperations.TrailingZeroCount(a);
                SetCountFlags(a, result);
                break;
            case Mnemonic.Lzcnt:
                result = (ulong)(BitOperations.LeadingZeroCount(a) - (64 - bits));
                SetCountFlags(a, result);
                break;
            case Mnemonic.Andn:
                result = ~a & b;
                _flags.Logical(SignExtend(result, size), (uint)size);
                break;
            case Mnemonic.Bextr:
                result = Extract(a, (int)(b & 0xFF), (int)(b >> 8) & 0xFF, bits);
                _flags.Set(result == 0 ? Rflags.Zero : 0);
                break;
            case Mnemonic.Blsi:
                result = Truncate((0 - a) & a, size);
                SetLowestFlags(result, a != 0, size);
                break;
            case Mnemonic.Blsmsk:
                result = Truncate((a - 1) ^ a, size);
                SetLowestFlags(result, a == 0, size);
                break;
            case Mnemonic.Blsr:
                result = Truncate((a - 1) & a, size);
                SetLowestFlags(result, a == 0, size);
                break;
            case Mnemonic.Bzhi:
                int index = (int)(b & 0xFF);
                result = index >= bits ? a : a & ((1UL << index) - 1);
                SetLowestFlags(result, index > bits - 1, size);
                break;
            case Mnemonic.Mulx:
                UInt128 product = (UInt128)GetRegister(ref File, RdxOffset, size) * b;

                // With the same register twice, the upper half stays.
                PutRegister(ref File, BlockBuilder.Reg(i.Op1Register), size, (ulong)product);
                result = (ulong)(product >> bits);
                break;
            case Mnemonic.Pdep:
                result = Deposit(a, b);
                break;
            case Mnemonic.Pext:
                result = Gather(a, b);
                break;
            case Mnemonic.Rorx:
                result = Rotate(a, (bits - ((int)b & (bits - 1))) & (bits - 1), bits);
                break;
            case Mnemonic.Sarx:
                result = (ulong)((long)SignExtend(a, size) >> ((int)b & (bits - 1)));
                break;
            case Mnemonic.Shlx:
                result = a << ((int)b & (bits - 1));
                break;
            case Mnemonic.Shrx:
                result = a >> ((int)b & (bits - 1));
                break;
            default:
                result = AddThrough(i, size, b);
                break;
        }

        PutRegister(ref File, BlockBuilder.Reg(i.Op0Register), size, result);
        return true;
    }

    // ADCX carries through CF alone, ADOX through OF alone.
    private ulong AddThrough(in Instruction i, int size, ulong b)
    {
        ulong flag = i.Mnemonic == Mnemonic.Adcx ? Rflags.Carry : Rflags.Overflow;
        ulong flags = _flags.Value();
        ulong a = GetRegister(ref File, BlockBuilder.Reg(i.Op0Register), size);
        UInt128 sum = (UInt128)a + b + ((flags & flag) != 0 ? 1u : 0u);
        _flags.Set((flags & ~flag) | (sum >> (8 << size) != 0 ? flag : 0));
        return (ulong)sum;
    }

    private bool Checksum(in Instruction i, int bytes)
    {
        int source = BlockBuilder.Bytes(i, 1);
        if (!TryReadOperand(i, 1, source, out ulong data))
            return false;
        byte register = BlockBuilder.Reg(i.Op0Register);
        uint crc = R32(ref File, register);
        crc = source switch
        {
            1 => BitOperations.Crc32C(crc, (byte)data),
            2 => BitOperations.Crc32C(crc, (ushort)data),
            4 => BitOperations.Crc32C(crc, (uint)data),
            _ => BitOperations.Crc32C(crc, data),
        };
        PutRegister(ref File, register, Log(Math.Max(bytes, 4)), crc);
        return true;
    }

    private void SetCountFlags(ulong source, ulong result) => _flags.Set((source == 0 ? Rflags.Carry : 0) | (result == 0 ? Rflags.Zero : 0));

    private void SetLowestFlags(ulong result, bool carry, int size)
    {
        _flags.Logical(SignExtend(result, size), (uint)size);
        if (carry)
            _flags.Set(_flags.Value() | Rflags.Carry);
    }

    private static ulong Extract(ulong value, int start, int length, int bits)
    {
        if (start >= bits)
            return 0;
        value >>= start;
        return length >= 64 ? value : value & ((1UL << length) - 1);
    }

    private static ulong Deposit(ulong value, ulong mask)
    {
        ulong result = 0;
        for (; mask != 0; mask &= mask - 1, value >>= 1)
        {
            if ((value & 1) != 0)
                result |= mask & (0 - mask);
        }

        return result;
    }

    private static ulong Gather(ulong value, ulong mask)
    {
        ulong result = 0;
        for (int at = 0; mask != 0; mask &= mask - 1, at++)
        {
            if ((value & mask & (0 - mask)) != 0)
                result |= 1UL << at;
        }

        return result;
    }
}
