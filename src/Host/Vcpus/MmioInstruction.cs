using Iced.Intel;

namespace Tdp.Host;

/// <summary>
/// An instruction of an ordinary VM's guest that touched an MMIO page, as far as the host emulates it: MOV, MOVZX, MOVSX, MOVSXD between memory and a
/// general register,
/// and MOV of an immediate (decisions D35).
/// </summary>
internal readonly struct MmioInstruction
{
    private const int LongestInstruction = 15;
    private readonly Register _register;
    private readonly ulong _immediate;
    private readonly bool _signExtends;

    private MmioInstruction(int size, bool isWrite, int length, Register register, ulong immediate, bool signExtends)
    {
        Size = size;
        IsWrite = isWrite;
        Length = length;
        _register = register;
        _immediate = immediate;
        _signExtends = signExtends;
    }

    /// <summary>Bytes of memory touched.</summary>
    public int Size { get; }

    public bool IsWrite { get; }

    /// <summary>Length of the instruction.</summary>
    public int Length { get; }

    /// <summary>Fetches and decodes the instruction at RIP.</summary>
    /// <returns>False with a one-line problem: not fetchable, or not one of the forms.</returns>
    public static bool TryDecode(Vm vm, Vmcs vmcs, out MmioInstruction result, out string? problem)
    {
        result = default;
        GuestState state = vmcs.State;
        Span<byte> bytes = stackalloc byte[LongestInstruction];
        int fetched = GuestMemoryAccess.Fetch(vm, state, state.Rip, bytes);
        if (fetched == 0)
        {
            problem = $"the instruction at RIP 0x{state.Rip:x} cannot be fetched";
            return false;
        }

        // Exits for MMIO are rare next to everything else: one array per exit is the decoder's price.
        var decoder = Decoder.Create(state.Cs.IsLong ? 64 : 32, bytes[..fetched].ToArray(), state.Rip);
        decoder.Decode(out Instruction instruction);
        if (instruction.IsInvalid || !TryClassify(instruction, out result))
        {
            problem = $"the instruction '{instruction}' at RIP 0x{state.Rip:x} is not emulated (MOV forms only)";
            return false;
        }

        problem = null;
        return true;
    }

    /// <summary>The value that a write stores.</summary>
    public ulong ValueToWrite(GuestState state)
    {
        if (_register == Register.None)
            return _immediate;
        ulong full = state[(Gpr)_register.GetFullRegister().GetNumber()];
        return IsHighByte(_register) ? (full >> 8) & 0xFF : full;
    }

    /// <summary>Puts what was read into the destination register, extended as the instruction says.</summary>
    public void StoreRead(GuestState state, ulong value)
    {
        if (_signExtends)
            value = (ulong)((long)(value << (64 - (8 * Size))) >> (64 - (8 * Size)));
        ref ulong register = ref state[(Gpr)_register.GetFullRegister().GetNumber()];
        switch (_register.GetSize())
        {
            case 8:
                register = value;
                break;
            case 4:
                register = (uint)value;
                break;
            case 2:
                register = (register & ~0xFFFFUL) | (ushort)value;
                break;
            default:
                int shift = IsHighByte(_register) ? 8 : 0;
                register = (register & ~(0xFFUL << shift)) | ((value & 0xFF) << shift);
                break;
        }
    }

    private static bool IsHighByte(Register register) => register is Register.AH or Register.BH or Register.CH or Register.DH;

    private static bool TryClassify(in Instruction instruction, out MmioInstruction result)
    {
        result = default;
        if (instruction.OpCount != 2 || instruction.Mnemonic is not (Mnemonic.Mov or Mnemonic.Movzx or Mnemonic.Movsx or Mnemonic.Movsxd))
            return false;
        int size = instruction.MemorySize.GetSize();
        if (size is not (1 or 2 or 4 or 8))
            return false;
        bool isWrite = instruction.Op0Kind == OpKind.Memory;
        if (!isWrite && instruction.Op1Kind != OpKind.Memory)
            return false;
        OpKind other = isWrite ? instruction.Op1Kind : instruction.Op0Kind;
        if (other == OpKind.Register)
        {
            Register register = isWrite ? instruction.Op1Register : instruction.Op0Register;
            if (!register.IsGPR())
                return false;
            bool signExtends = instruction.Mnemonic is Mnemonic.Movsx or Mnemonic.Movsxd;
            result = new MmioInstruction(size, isWrite, instruction.Length, register, 0, signExtends);
            return true;
        }

        if (!isWrite || !other.ToString().StartsWith("Immediate", StringComparison.Ordinal))
            return false;
        result = new MmioInstruction(size, true, instruction.Length, Register.None, instruction.GetImmediate(1), false);
        return true;
    }
}
