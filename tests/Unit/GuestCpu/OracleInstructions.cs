using Iced.Intel;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>
/// Every decoder code of tier 1 and of the general-register part of tier 2 that the host's CPU can execute by itself, and random instances of each
/// (td-guest 2.2, 9).
/// </summary>
internal static class OracleInstructions
{
    private static readonly string[] Mnemonics =
    [
        "Mov", "Movzx", "Movsx", "Movsxd", "Lea", "Xchg", "Bswap", "Cbw", "Cwde", "Cdqe", "Cwd", "Cdq", "Cqo", "Xlatb", "Nop",
        "Add", "Adc", "Sub", "Sbb", "Inc", "Dec", "Neg", "Cmp", "Test", "And", "Or", "Xor", "Not", "Mul", "Imul", "Div", "Idiv",
        "Shl", "Sal", "Shr", "Sar", "Rol", "Ror", "Rcl", "Rcr", "Shld", "Shrd", "Bt", "Bts", "Btr", "Btc", "Bsf", "Bsr",
        "Clc", "Stc", "Cmc", "Cld", "Std", "Lahf", "Sahf", "Cmpxchg", "Xadd", "Cmpxchg8b", "Cmpxchg16b", "Movbe",
        "Movsb", "Movsw", "Movsd", "Movsq", "Stosb", "Stosw", "Stosd", "Stosq", "Lodsb", "Lodsw", "Lodsd", "Lodsq",
        "Scasb", "Scasw", "Scasd", "Scasq", "Cmpsb", "Cmpsw", "Cmpsd", "Cmpsq",
        "Popcnt", "Tzcnt", "Lzcnt", "Andn", "Bextr", "Blsi", "Blsmsk", "Blsr", "Bzhi", "Mulx", "Pdep", "Pext", "Rorx", "Sarx", "Shlx", "Shrx", "Adcx", "Adox", "Crc32",
        "Mfence", "Lfence", "Sfence", "Prefetcht0", "Prefetchw", "Clflush", "Pause", "Endbr64",
    ];

    public static IReadOnlyList<Code> Codes { get; } =
    [
        .. Enum.GetValues<Code>().Where(code =>
        {
            OpCodeInfo info = code.ToOpCode();
            return info.IsInstruction && info.Mode64 && info.Encoding is EncodingKind.Legacy or EncodingKind.VEX && IsListed(info.Mnemonic.ToString()) && HasOrdinaryOperands(info)
                && code is not (Code.Bswap_r16 or Code.Nop_rm16 or Code.Nop_rm32 or Code.Nop_rm64 or Code.Movsd_xmm_xmmm64 or Code.Movsd_xmmm64_xmm or Code.Cmpsd_xmm_xmmm64_imm8)
                && !info.Fwait && !code.ToString().StartsWith("VEX_KNC", StringComparison.Ordinal);
        }),
    ];

    private static bool IsListed(string mnemonic) =>
        Mnemonics.Contains(mnemonic, StringComparer.Ordinal) || mnemonic.StartsWith("Cmov", StringComparison.Ordinal) || IsSetcc(mnemonic);

    private static bool IsSetcc(string mnemonic) =>
        mnemonic is "Seta" or "Setae" or "Setb" or "Setbe" or "Sete" or "Setg" or "Setge" or "Setl" or "Setle" or "Setne" or "Setno" or "Setnp" or "Setns" or "Seto" or "Setp" or "Sets";

    private static bool HasOrdinaryOperands(OpCodeInfo info)
    {
        for (int i = 0; i < info.OpCount; i++)
        {
            if (Operand(info.GetOpKind(i)) == Kind.Other)
                return false;
        }

        return true;
    }

    private enum Kind
    {
        Other,
        Register,
        RegisterOrMemory,
        Memory,
        Immediate,
        Fixed,
        Offset,
        String,
    }

    private static Kind Operand(OpCodeOperandKind kind)
    {
        string name = kind.ToString();
        if (name is "mem" or "mem_offs")
            return name is "mem" ? Kind.Memory : Kind.Offset;
        if (name.EndsWith("_or_mem", StringComparison.Ordinal) && name[0] == 'r')
            return Kind.RegisterOrMemory;
        if (name is "r8_reg" or "r16_reg" or "r32_reg" or "r64_reg" or "r8_opcode" or "r16_opcode" or "r32_opcode" or "r64_opcode" or "r16_rm" or "r32_rm" or "r64_rm" or "r32_vvvv" or "r64_vvvv")
            return Kind.Register;
        if (name.StartsWith("imm", StringComparison.Ordinal))
            return Kind.Immediate;
        if (name is "al" or "ax" or "eax" or "rax" or "cl")
            return Kind.Fixed;
        return name is "seg_rSI" or "es_rDI" or "seg_rBX_al" ? Kind.String : Kind.Other;
    }

    /// <summary>A random instance, together with the register values it needs. Null when the draw cannot be encoded (AH with REX).</summary>
    public static byte[]? Draw(Code code, SeedStream random, Span<ulong> registers, bool inBlock, out Instruction result)
    {
        OpCodeInfo info = code.ToOpCode();
        Instruction instruction = default;
        instruction.Code = code;
        bool hasMemory = false;
        for (int i = 0; i < info.OpCount; i++)
        {
            Kind kind = Operand(info.GetOpKind(i));
            if (kind == Kind.RegisterOrMemory)
                kind = random.Below(2) == 0 ? Kind.Register : Kind.Memory;
            switch (kind)
            {
                case Kind.Register:
                    instruction.SetOpKind(i, OpKind.Register);
                    instruction.SetOpRegister(i, RandomRegister(random, SizeOf(info.GetOpKind(i)), inBlock));
                    break;
                case Kind.Fixed:
                    instruction.SetOpKind(i, OpKind.Register);
                    instruction.SetOpRegister(i, Enum.Parse<Register>(info.GetOpKind(i).ToString(), ignoreCase: true));
                    break;
                case Kind.Memory:
                    instruction.SetOpKind(i, OpKind.Memory);
                    hasMemory = true;
                    break;
                case Kind.Offset:
                    instruction.SetOpKind(i, OpKind.Memory);
                    instruction.MemoryDisplSize = 8;
                    instruction.MemoryDisplacement64 = HostProcessor.Arena + 0x1000 + random.Below(0xF00);
                    instruction.SegmentPrefix = Register.None;
                    break;
                case Kind.Immediate:
                    SetImmediate(ref instruction, i, info.GetOpKind(i), random);
                    break;
                default:
                    break;
            }
        }

        if (hasMemory)
            SetMemory(ref instruction, info, random, registers, inBlock);
        if (!Finish(ref instruction, info, random, registers, inBlock))
        {
            result = default;
            return null;
        }

        return Encode(instruction, HostProcessor.Test, out result);
    }

    public static byte[]? Encode(in Instruction instruction, ulong at, out Instruction decoded)
    {
        decoded = default;
        List<byte> bytes = [];
        Encoder encoder = Encoder.Create(64, new ListWriter(bytes));
        if (!encoder.TryEncode(instruction, at, out _, out _))
            return null;
        byte[] code = [.. bytes];
        Decoder decoder = Decoder.Create(64, new ByteArrayCodeReader(code), at);
        decoded = decoder.Decode();
        return decoded.IsInvalid ? null : code;
    }

    private static int SizeOf(OpCodeOperandKind kind)
    {
        string name = kind.ToString();
        return name.StartsWith("r8", StringComparison.Ordinal) ? 1 : name.StartsWith("r16", StringComparison.Ordinal) ? 2 : name.StartsWith("r32", StringComparison.Ordinal) ? 4 : 8;
    }

    // In a block RBX and RBP hold addresses and must survive.
    private static Register RandomRegister(SeedStream random, int bytes, bool inBlock)
    {
        while (true)
        {
            int number = (int)random.Below(16);
            if (number == 4 || (inBlock && number is 3 or 5))
                continue;
            if (bytes == 1 && random.Below(4) == 0 && !inBlock)
                return Register.AH + (int)random.Below(4);
            if (bytes == 1 && inBlock && random.Below(5) == 0)
                return Register.AH + (int)random.Below(3);
            Register full = Register.RAX + number;
            return bytes switch
            {
                8 => full,
                4 => Register.EAX + number,
                2 => Register.AX + number,
                _ => number < 4 ? Register.AL + number : Register.SPL + (number - 4),
            };
        }
    }

    private static void SetImmediate(ref Instruction instruction, int operand, OpCodeOperandKind kind, SeedStream random)
    {
        ulong value = OracleValues.Draw(random);
        switch (kind)
        {
            case OpCodeOperandKind.imm8:
                instruction.SetOpKind(operand, OpKind.Immediate8);
                instruction.Immediate8 = (byte)value;
                break;
            case OpCodeOperandKind.imm8_const_1:
                instruction.SetOpKind(operand, OpKind.Immediate8);
                instruction.Immediate8 = 1;
                break;
            case OpCodeOperandKind.imm8sex16:
                instruction.SetOpKind(operand, OpKind.Immediate8to16);
                instruction.Immediate8to16 = (sbyte)value;
                break;
            case OpCodeOperandKind.imm8sex32:
                instruction.SetOpKind(operand, OpKind.Immediate8to32);
                instruction.Immediate8to32 = (sbyte)value;
                break;
            case OpCodeOperandKind.imm8sex64:
                instruction.SetOpKind(operand, OpKind.Immediate8to64);
                instruction.Immediate8to64 = (sbyte)value;
                break;
            case OpCodeOperandKind.imm16:
                instruction.SetOpKind(operand, OpKind.Immediate16);
                instruction.Immediate16 = (ushort)value;
                break;
            case OpCodeOperandKind.imm32:
                instruction.SetOpKind(operand, OpKind.Immediate32);
                instruction.Immediate32 = (uint)value;
                break;
            case OpCodeOperandKind.imm32sex64:
                instruction.SetOpKind(operand, OpKind.Immediate32to64);
                instruction.Immediate32to64 = (int)value;
                break;
            default:
                instruction.SetOpKind(operand, OpKind.Immediate64);
                instruction.Immediate64 = value;
                break;
        }
    }

    private static void SetMemory(ref Instruction instruction, OpCodeInfo info, SeedStream random, Span<ulong> registers, bool inBlock)
    {
        bool aligned = instruction.Mnemonic is Mnemonic.Cmpxchg16b;
        ulong target = HostProcessor.Arena + 0x1000 + random.Below(0xF00);
        if (aligned || random.Below(3) == 0)
            target &= ~15UL;
        int disp = (int)(uint)random.Below(0x400) - 0x200;
        if (inBlock)
        {
            instruction.MemoryBase = random.Below(2) == 0 ? Register.RBX : Register.RBP;
            instruction.MemoryDisplacement64 = (ulong)(long)disp;
            instruction.MemoryDisplSize = 4;
            return;
        }

        int form = (int)random.Below(6);
        if (form == 0)
        {
            instruction.MemoryBase = Register.RIP;
            instruction.MemoryDisplacement64 = target;
            instruction.MemoryDisplSize = 8;
            return;
        }

        bool narrow = form == 1;
        int b = AddressRegister(random);
        instruction.MemoryBase = (narrow ? Register.EAX : Register.RAX) + b;
        instruction.MemoryDisplacement64 = narrow ? (uint)disp : (ulong)(long)disp;
        instruction.MemoryDisplSize = narrow ? 4 : 8;
        ulong rest = target - (ulong)(long)disp;
        if (form >= 4)
        {
            int x = AddressRegister(random);
            if (x != b)
            {
                int scale = 1 << (int)random.Below(4);
                ulong index = random.Below(0x200) - 0x100UL;
                instruction.MemoryIndex = Register.RAX + x;
                instruction.MemoryIndexScale = scale;
                registers[x] = index;
                rest -= index * (ulong)scale;
            }
        }

        registers[b] = narrow ? (uint)rest | (random.Next() << 32) : rest;
    }

    private static int AddressRegister(SeedStream random)
    {
        int number = (int)random.Below(15);
        return number >= 4 ? number + 1 : number;
    }

    // What single instructions need besides: string pointers, counts, bit offsets that stay in the arena.
    private static bool Finish(ref Instruction instruction, OpCodeInfo info, SeedStream random, Span<ulong> registers, bool inBlock)
    {
        ulong middle = HostProcessor.Arena + 0x1000;
        if (instruction.Mnemonic == Mnemonic.Xlatb)
        {
            instruction.SetOpKind(0, OpKind.Memory);
            instruction.MemoryBase = Register.RBX;
            instruction.MemoryIndex = Register.AL;
            registers[3] = middle + random.Below(0x800);
            return !inBlock;
        }

        if (instruction.IsStringInstruction && instruction.Mnemonic is not Mnemonic.Xlatb)
        {
            if (inBlock)
                return false;
            for (int i = 0; i < info.OpCount; i++)
            {
                switch (info.GetOpKind(i))
                {
                    case OpCodeOperandKind.seg_rSI:
                        instruction.SetOpKind(i, OpKind.MemorySegRSI);
                        break;
                    case OpCodeOperandKind.es_rDI:
                        instruction.SetOpKind(i, OpKind.MemoryESRDI);
                        break;
                }
            }

            registers[6] = middle + random.Below(0xE00);
            registers[7] = random.Below(4) == 0 ? registers[6] + random.Below(16) - 8 : middle + random.Below(0xE00);
            registers[1] = random.Below(40);
            int prefix = (int)random.Below(3);
            instruction.HasRepPrefix = prefix == 1;
            instruction.HasRepnePrefix = prefix == 2 && instruction.Mnemonic.ToString().StartsWith("Scas", StringComparison.Ordinal);
            if (random.Below(2) == 0)
                registers[16] |= 0x400;
            return true;
        }

        bool toMemory = info.OpCount > 0 && instruction.Op0Kind == OpKind.Memory;
        if (toMemory && instruction.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && instruction.Op1Kind == OpKind.Register)
        {
            if (inBlock)
                return false;
            int number = instruction.Op1Register.GetFullRegister() - Register.RAX;
            if (instruction.MemoryBase.GetFullRegister() == Register.RAX + number || instruction.MemoryIndex == Register.RAX + number)
                return false;
            registers[number] = (registers[number] & ~0xFFFFUL & (instruction.Op1Register.GetSize() == 2 ? ulong.MaxValue : 0)) | ((random.Below(0x3000) - 0x1800) & (instruction.Op1Register.GetSize() == 2 ? 0xFFFFUL : ulong.MaxValue));
        }

        if (toMemory && info.CanUseLockPrefix && random.Below(3) == 0)
        {
            // A split lock is a policy of the simulated CPU, not of this one.
            instruction.HasLockPrefix = true;
        }

        return true;
    }

    private sealed class ListWriter(List<byte> bytes) : CodeWriter
    {
        public override void WriteByte(byte value) => bytes.Add(value);
    }
}

/// <summary>Operands that find mistakes: edges more often than not.</summary>
internal static class OracleValues
{
    public static ulong Draw(SeedStream random)
    {
        switch (random.Below(8))
        {
            case 0:
                return random.Below(4) - 2;
            case 1:
                return 1UL << (int)random.Below(64);
            case 2:
                return (1UL << (int)random.Below(64)) - 1 + random.Below(3);
            case 3:
                return (ulong)(long)(sbyte)random.Next();
            case 4:
                return 0x8000_0000_8000_8080 >> (int)random.Below(3) * 8;
            case 5:
                return (uint)random.Next();
            default:
                return random.Next();
        }
    }
}
