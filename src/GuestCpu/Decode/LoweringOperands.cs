using Iced.Intel;

namespace Tdp.Cpu;

/// <content>Registers, addresses and immediates of an instruction as a step carries them.</content>
internal sealed partial class BlockBuilder
{
    // The address that the next memory step will carry.
    private byte _base;
    private byte _index;
    private byte _scale;
    private byte _stack;
    private long _disp;

    private byte Destination(in Instruction i, int bytes)
    {
        if (i.Op0Kind == OpKind.Register)
            return Reg(i.Op0Register);
        PrepareAddress(i);
        EmitMemory(BySize(bytes, MicroKind.LoadRmw8, MicroKind.LoadRmw16, MicroKind.LoadRmw32, MicroKind.LoadRmw64), RegisterFile.Value);
        return RegisterFile.Value;
    }

    private void StoreBack(int bytes) =>
        Emit(BySize(bytes, MicroKind.StoreRmw8, MicroKind.StoreRmw16, MicroKind.StoreRmw32, MicroKind.StoreRmw64), FlagUse.None, src: RegisterFile.Value);

    private byte Source(in Instruction i, int operand)
    {
        if (i.GetOpKind(operand) == OpKind.Register)
            return Reg(i.GetOpRegister(operand));
        PrepareAddress(i);
        int bytes = Bytes(i, operand);
        EmitMemory(BySize(bytes, MicroKind.LoadZx8, MicroKind.LoadZx16, MicroKind.Load32, MicroKind.Load64), RegisterFile.Value);
        return RegisterFile.Value;
    }

    /// <summary>Base, index, scale and displacement of the memory operand, without segment. True when the address is cut to 32 bits.</summary>
    private bool AddressParts(in Instruction i)
    {
        Register b = i.MemoryBase;
        Register x = i.MemoryIndex;
        _stack = i.MemorySegment == Register.SS ? (byte)1 : (byte)0;
        _base = RegisterFile.Zero;
        _index = RegisterFile.Zero;
        _scale = 0;
        _disp = (long)i.MemoryDisplacement64;
        if (b is Register.RIP or Register.EIP)
        {
            _base = RegisterFile.PageBase;
            return b == Register.EIP;
        }

        if (b != Register.None)
            _base = Reg(b);
        if (x != Register.None)
        {
            _index = Reg(x);
            _scale = (byte)System.Numerics.BitOperations.Log2((uint)i.MemoryIndexScale);
        }

        return b.IsGPR32() || x.IsGPR32();
    }

    private void PrepareAddress(in Instruction i)
    {
        if (AddressParts(i))
        {
            EmitAddress(MicroKind.Lea32, RegisterFile.Address);
            (_base, _index, _scale, _disp) = (RegisterFile.Address, RegisterFile.Zero, 0, 0);
        }

        byte segment = i.MemorySegment switch { Register.FS => RegisterFile.FsBase, Register.GS => RegisterFile.GsBase, _ => 0 };
        if (segment == 0)
            return;
        if (_index != RegisterFile.Zero)
        {
            EmitAddress(MicroKind.Lea64, RegisterFile.Address);
            (_base, _disp) = (RegisterFile.Address, 0);
        }

        (_index, _scale) = (segment, 0);
    }

    private void EmitAddress(MicroKind kind, byte dst)
    {
        Emit(kind, FlagUse.None, dst, disp: _disp);
        SetAddress();
    }

    private void EmitMemory(MicroKind kind, byte dst = 0, byte source = 0, ulong imm = 0)
    {
        Emit(kind, FlagUse.Observes, dst, source, imm, disp: _disp);
        SetAddress();
    }

    private void SetAddress()
    {
        Span<MicroOp> ops = System.Runtime.InteropServices.CollectionsMarshal.AsSpan(_ops);
        ref MicroOp last = ref ops[^1];
        (last.Base, last.Index, last.Scale, last.Stack) = (_base, _index, _scale, _stack);
    }

    private void Emit(MicroKind kind, FlagUse use, byte dst = 0, byte src = 0, ulong imm = 0, int aux = 0, long disp = 0)
    {
        _ops.Add(new MicroOp
        {
            Kind = kind,
            Dst = dst,
            Src = src,
            Imm = imm,
            Aux = aux,
            Disp = disp,
            Next = _next,
            Length = _length,
            Ordinal = _ordinal,
        });
        _uses.Add(use);
    }

    private static int Generic(AluOperation operation, int bytes) => (int)operation | (System.Numerics.BitOperations.Log2((uint)bytes) << 8);

    private static MicroKind BySize(int bytes, MicroKind one, MicroKind two, MicroKind four, MicroKind eight) => bytes switch
    {
        1 => one,
        2 => two,
        4 => four,
        _ => eight,
    };

    internal static byte Reg(Register register)
    {
        if (register is >= Register.AH and <= Register.BH)
            return (byte)(((register - Register.AH) * 8) + 1);
        return (byte)((register.GetFullRegister() - Register.RAX) * 8);
    }

    internal static int Bytes(in Instruction i, int operand) =>
        i.GetOpKind(operand) == OpKind.Register ? i.GetOpRegister(operand).GetSize() : i.MemorySize.GetSize();

    private static ulong Imm(in Instruction i, int operand, int bytes)
    {
        ulong value = i.GetImmediate(operand);
        return bytes switch { 1 => (ulong)(sbyte)value, 2 => (ulong)(short)value, 4 => (ulong)(int)value, _ => value };
    }
}
