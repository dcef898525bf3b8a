using Iced.Intel;

namespace Tdp.Cpu;

/// <content>Which steps an instruction becomes. What is not here, or has a LOCK prefix, is executed from its decoded form (<see cref="MicroKind.Rare"/>).</content>
internal sealed partial class BlockBuilder
{
    private byte _base;
    private byte _index;
    private byte _scale;
    private byte _stack;
    private long _disp;

    private void LowerValid(in Instruction i)
    {
        if (i.HasLockPrefix)
        {
            Rare(i);
            return;
        }

        switch (i.Mnemonic)
        {
            case Mnemonic.Mov:
                LowerMov(i);
                break;
            case Mnemonic.Movzx:
                LowerExtend(i, signed: false);
                break;
            case Mnemonic.Movsx or Mnemonic.Movsxd:
                LowerExtend(i, signed: true);
                break;
            case Mnemonic.Lea:
                LowerLea(i);
                break;
            case Mnemonic.Add:
                LowerAlu(i, AluOperation.Add);
                break;
            case Mnemonic.Or:
                LowerAlu(i, AluOperation.Or);
                break;
            case Mnemonic.Adc:
                LowerAlu(i, AluOperation.Adc);
                break;
            case Mnemonic.Sbb:
                LowerAlu(i, AluOperation.Sbb);
                break;
            case Mnemonic.And:
                LowerAlu(i, AluOperation.And);
                break;
            case Mnemonic.Sub:
                LowerAlu(i, AluOperation.Sub);
                break;
            case Mnemonic.Xor:
                LowerAlu(i, AluOperation.Xor);
                break;
            case Mnemonic.Cmp:
                LowerAlu(i, AluOperation.Cmp);
                break;
            case Mnemonic.Test:
                LowerAlu(i, AluOperation.Test);
                break;
            case Mnemonic.Inc:
                LowerUnary(i, AluOperation.Inc, MicroKind.Inc64, FlagUse.DefinesButCarry);
                break;
            case Mnemonic.Dec:
                LowerUnary(i, AluOperation.Dec, MicroKind.Dec64, FlagUse.DefinesButCarry);
                break;
            case Mnemonic.Not:
                LowerUnary(i, AluOperation.Not, MicroKind.Not64, FlagUse.None);
                break;
            case Mnemonic.Neg:
                LowerUnary(i, AluOperation.Neg, MicroKind.Neg64, FlagUse.Defines);
                break;
            case Mnemonic.Shl or Mnemonic.Sal:
                LowerShift(i, AluOperation.Shl);
                break;
            case Mnemonic.Shr:
                LowerShift(i, AluOperation.Shr);
                break;
            case Mnemonic.Sar:
                LowerShift(i, AluOperation.Sar);
                break;
            case Mnemonic.Rol:
                LowerShift(i, AluOperation.Rol);
                break;
            case Mnemonic.Ror:
                LowerShift(i, AluOperation.Ror);
                break;
            case Mnemonic.Rcl:
                LowerShift(i, AluOperation.Rcl);
                break;
            case Mnemonic.Rcr:
                LowerShift(i, AluOperation.Rcr);
                break;
            case Mnemonic.Shld:
                LowerShiftDouble(i, AluOperation.Shld);
                break;
            case Mnemonic.Shrd:
                LowerShiftDouble(i, AluOperation.Shrd);
                break;
            case Mnemonic.Bt:
                LowerBitTest(i, AluOperation.Bt);
                break;
            case Mnemonic.Bts:
                LowerBitTest(i, AluOperation.Bts);
                break;
            case Mnemonic.Btr:
                LowerBitTest(i, AluOperation.Btr);
                break;
            case Mnemonic.Btc:
                LowerBitTest(i, AluOperation.Btc);
                break;
            case Mnemonic.Bsf:
                LowerBitScan(i, AluOperation.Bsf);
                break;
            case Mnemonic.Bsr:
                LowerBitScan(i, AluOperation.Bsr);
                break;
            case Mnemonic.Imul when i.OpCount > 1:
                LowerImul(i);
                break;
            case Mnemonic.Imul:
                LowerMulDiv(i, AluOperation.Imul);
                break;
            case Mnemonic.Mul:
                LowerMulDiv(i, AluOperation.Mul);
                break;
            case Mnemonic.Div:
                LowerMulDiv(i, AluOperation.Div);
                break;
            case Mnemonic.Idiv:
                LowerMulDiv(i, AluOperation.Idiv);
                break;
            case Mnemonic.Xchg when i.Op0Kind == OpKind.Register && i.Op1Kind == OpKind.Register && Bytes(i, 0) >= 4:
                Emit(Bytes(i, 0) == 8 ? MicroKind.Xchg64RR : MicroKind.Xchg32RR, FlagUse.None, Reg(i.Op0Register), Reg(i.Op1Register));
                break;
            case Mnemonic.Bswap when Bytes(i, 0) >= 4:
                Emit(Bytes(i, 0) == 8 ? MicroKind.Bswap64 : MicroKind.Bswap32, FlagUse.None, Reg(i.Op0Register));
                break;
            case Mnemonic.Cbw:
                Emit(MicroKind.Cbw, FlagUse.None);
                break;
            case Mnemonic.Cwde:
                Emit(MicroKind.Cwde, FlagUse.None);
                break;
            case Mnemonic.Cdqe:
                Emit(MicroKind.Cdqe, FlagUse.None);
                break;
            case Mnemonic.Cwd:
                Emit(MicroKind.Cwd, FlagUse.None);
                break;
            case Mnemonic.Cdq:
                Emit(MicroKind.Cdq, FlagUse.None);
                break;
            case Mnemonic.Cqo:
                Emit(MicroKind.Cqo, FlagUse.None);
                break;
            case Mnemonic.Push:
                LowerPush(i);
                break;
            case Mnemonic.Pop when i.Op0Kind == OpKind.Register && i.Op0Register.IsGPR64():
                Emit(MicroKind.Pop64R, FlagUse.Observes, Reg(i.Op0Register));
                break;
            case Mnemonic.Leave when i.Code == Code.Leaveq:
                Emit(MicroKind.Leave, FlagUse.Observes);
                break;
            case Mnemonic.Call when i.Op0Kind == OpKind.NearBranch64:
                Branch(MicroKind.CallRel, (long)i.NearBranch64);
                break;
            case Mnemonic.Call when i.IsCallNearIndirect && Bytes(i, 0) == 8:
                BranchTo(MicroKind.CallR, i);
                break;
            case Mnemonic.Jmp when i.Op0Kind == OpKind.NearBranch64:
                Branch(MicroKind.JmpRel, (long)i.NearBranch64);
                break;
            case Mnemonic.Jmp when i.IsJmpNearIndirect && Bytes(i, 0) == 8:
                BranchTo(MicroKind.JmpR, i);
                break;
            case Mnemonic.Ret when i.Code is Code.Retnq or Code.Retnq_imm16:
            case Mnemonic.Ret when i.Code is Code.Retnq or Code.Retnq_imm16:
                Emit(MicroKind.Ret, FlagUse.Observes, imm: i.OpCount == 0 ? 0UL : i.Immediate16);
                break;
            case Mnemonic.Nop or Mnemonic.Endbr64 or Mnemonic.Endbr32 or Mnemonic.Reservednop:
            case Mnemonic.Prefetcht0 or Mnemonic.Prefetcht1 or Mnemonic.Prefetcht2 or Mnemonic.Prefetchnta or Mnemonic.Prefetchw or Mnemonic.Prefetch:
            case Mnemonic.Rdsspd or Mnemonic.Rdsspq:
                Emit(MicroKind.Nop, FlagUse.None);
                break;
            default:
                LowerByCondition(i);
                break;
        }
    }

    private void LowerByCondition(in Instruction i)
    {
        int condition = (int)i.ConditionCode - 1;
        if (i.IsJccShortOrNear)
        {
            Branch((MicroKind)((int)MicroKind.Jo + condition), (long)i.NearBranch64);
            return;
        }

        if (condition >= 0 && i.Mnemonic is >= Mnemonic.Cmova and <= Mnemonic.Cmovs)
        {
            byte source = Source(i, 1);
            MicroKind kind = Bytes(i, 0) switch { 8 => MicroKind.Cmov64, 4 => MicroKind.Cmov32, _ => MicroKind.Cmov16 };
            Emit(kind, FlagUse.Observes, Reg(i.Op0Register), source, aux: condition);
            return;
        }

        if (condition >= 0 && i.Mnemonic is >= Mnemonic.Seta and <= Mnemonic.Sets && i.Op0Kind is OpKind.Register or OpKind.Memory && Bytes(i, 0) == 1 && IsSetcc(i))
        {
            if (i.Op0Kind == OpKind.Register)
            {
                Emit(MicroKind.Setcc, FlagUse.Observes, Reg(i.Op0Register), aux: condition);
                return;
            }

            PrepareAddress(i);
            Emit(MicroKind.Setcc, FlagUse.Observes, RegisterFile.Value, aux: condition);
            EmitMemory(MicroKind.Store8, source: RegisterFile.Value);
            return;
        }

        if (EndsBlock(i))
        {
            Rare(i, MicroKind.RareEnd);
            _ended = true;
        }
        else
        {
            Rare(i);
        }
    }

    private static bool IsSetcc(in Instruction i) => i.Mnemonic is not (Mnemonic.Setssbsy or Mnemonic.Serialize);

    private void LowerMov(in Instruction i)
    {
        if (i.Op0Kind == OpKind.Register && !i.Op0Register.IsGPR())
        {
            Rare(i, MicroKind.RareEnd);
            _ended = true;
            return;
        }

        if (i.Op1Kind == OpKind.Register && !i.Op1Register.IsGPR())
        {
            Rare(i);
            return;
        }

        int bytes = Bytes(i, 0);
        if (i.Op0Kind == OpKind.Memory)
        {
            PrepareAddress(i);
            if (i.Op1Kind == OpKind.Register)
                EmitMemory(BySize(bytes, MicroKind.Store8, MicroKind.Store16, MicroKind.Store32, MicroKind.Store64), source: Reg(i.Op1Register));
            else
                EmitMemory(BySize(bytes, MicroKind.Store8I, MicroKind.Store16I, MicroKind.Store32I, MicroKind.Store64I), imm: Imm(i, 1, bytes));
            return;
        }

        byte dst = Reg(i.Op0Register);
        if (i.Op1Kind == OpKind.Memory)
        {
            PrepareAddress(i);
            EmitMemory(BySize(bytes, MicroKind.Load8, MicroKind.Load16, MicroKind.Load32, MicroKind.Load64), dst);
        }
        else if (i.Op1Kind == OpKind.Register)
        {
            Emit(BySize(bytes, MicroKind.Mov8RR, MicroKind.Mov16RR, MicroKind.Mov32RR, MicroKind.Mov64RR), FlagUse.None, dst, Reg(i.Op1Register));
        }
        else
        {
            ulong imm = Imm(i, 1, bytes);
            Emit(BySize(bytes, MicroKind.Mov8RI, MicroKind.Mov16RI, MicroKind.MovRI, MicroKind.MovRI), FlagUse.None, dst, imm: bytes == 4 ? (uint)imm : imm);
        }
    }

    private void LowerExtend(in Instruction i, bool signed)
    {
        int to = Bytes(i, 0);
        int from = Bytes(i, 1);
        byte dst = Reg(i.Op0Register);

        // To 16 bits: by way of the scratch register, then merge.
        byte target = to == 2 ? RegisterFile.Value : dst;
        bool wide = to == 8;
        if (i.Op1Kind == OpKind.Memory)
        {
            PrepareAddress(i);
            MicroKind kind = (signed, from) switch
            {
                (false, 1) => MicroKind.LoadZx8,
                (false, _) => MicroKind.LoadZx16,
                (true, 1) => wide ? MicroKind.LoadSx8To64 : MicroKind.LoadSx8To32,
                (true, 2) => wide ? MicroKind.LoadSx16To64 : MicroKind.LoadSx16To32,
                _ => wide ? MicroKind.LoadSx32To64 : MicroKind.Load32,
            };
            EmitMemory(kind, target);
        }
        else
        {
            MicroKind kind = (signed, from) switch
            {
                (false, 1) => MicroKind.MovZx8RR,
                (false, _) => MicroKind.MovZx16RR,
                (true, 1) => wide ? MicroKind.MovSx8To64RR : MicroKind.MovSx8To32RR,
                (true, 2) => wide ? MicroKind.MovSx16To64RR : MicroKind.MovSx16To32RR,
                _ => wide ? MicroKind.MovSx32To64RR : MicroKind.Mov32RR,
            };
            Emit(kind, FlagUse.None, target, Reg(i.Op1Register));
        }

        if (to == 2)
            Emit(MicroKind.Mov16RR, FlagUse.None, dst, RegisterFile.Value);
    }

    private void LowerLea(in Instruction i)
    {
        int bytes = Bytes(i, 0);
        bool narrow = AddressParts(i);
        MicroKind kind = bytes switch { 8 => narrow ? MicroKind.Lea32 : MicroKind.Lea64, 4 => MicroKind.Lea32, _ => MicroKind.Lea16 };
        EmitAddress(kind, Reg(i.Op0Register));
    }

    private void LowerAlu(in Instruction i, AluOperation operation)
    {
        int bytes = Bytes(i, 0);
        bool compares = operation is AluOperation.Cmp or AluOperation.Test;
        bool toMemory = i.Op0Kind == OpKind.Memory;
        byte dst = toMemory ? RegisterFile.Value : Reg(i.Op0Register);
        if (toMemory)
        {
            PrepareAddress(i);
            if (compares)
                EmitMemory(BySize(bytes, MicroKind.LoadZx8, MicroKind.LoadZx16, MicroKind.Load32, MicroKind.Load64), dst);
            else
                EmitMemory(BySize(bytes, MicroKind.LoadRmw8, MicroKind.LoadRmw16, MicroKind.LoadRmw32, MicroKind.LoadRmw64), dst);
        }

        bool immediate = i.Op1Kind is not (OpKind.Register or OpKind.Memory);
        byte src = immediate ? (byte)0 : Source(i, 1);
        EmitAlu(operation, bytes, dst, src, immediate, immediate ? Imm(i, 1, bytes) : 0);
        if (toMemory && !compares)
            StoreBack(bytes);
    }

    private void EmitAlu(AluOperation operation, int bytes, byte dst, byte src, bool immediate, ulong imm)
    {
        int form = (immediate ? 1 : 0) + (bytes == 4 ? 2 : 0);
        MicroKind kind = operation switch
        {
            AluOperation.Add => MicroKind.Add64RR,
            AluOperation.Sub => MicroKind.Sub64RR,
            AluOperation.And => MicroKind.And64RR,
            AluOperation.Or => MicroKind.Or64RR,
            AluOperation.Xor => MicroKind.Xor64RR,
            AluOperation.Cmp => MicroKind.Cmp64RR,
            AluOperation.Test => MicroKind.Test64RR,
            _ => MicroKind.Nop,
        };
        if (bytes >= 4 && kind != MicroKind.Nop)
        {
            Emit((MicroKind)((int)kind + form), FlagUse.Defines, dst, src, imm);
            return;
        }

        kind = (operation, bytes) switch
        {
            (AluOperation.Cmp, 1) => MicroKind.Cmp8RR,
            (AluOperation.Test, 1) => MicroKind.Test8RR,
            (AluOperation.Cmp, 2) => MicroKind.Cmp16RR,
            _ => MicroKind.AluRR,
        };
        FlagUse use = operation is AluOperation.Adc or AluOperation.Sbb ? FlagUse.Defines | FlagUse.Observes : FlagUse.Defines;
        Emit((MicroKind)((int)kind + (immediate ? 1 : 0)), use, dst, src, imm, Generic(operation, bytes));
    }

    private void LowerUnary(in Instruction i, AluOperation operation, MicroKind wide, FlagUse use)
    {
        int bytes = Bytes(i, 0);
        byte dst = Destination(i, bytes);
        if (bytes >= 4)
            Emit(bytes == 8 ? wide : wide + 1, use, dst);
        else
            Emit(MicroKind.Unary, use, dst, aux: Generic(operation, bytes));
        if (i.Op0Kind == OpKind.Memory)
            StoreBack(bytes);
    }

    private void LowerShift(in Instruction i, AluOperation operation)
    {
        int bytes = Bytes(i, 0);
        byte dst = Destination(i, bytes);
        bool throughCarry = operation is AluOperation.Rcl or AluOperation.Rcr;
        bool rotate = throughCarry || operation is AluOperation.Rol or AluOperation.Ror;
        if (i.Op1Kind == OpKind.Register)
        {
            // A count of zero changes no flag, so this never hides what was there before.
            Emit(MicroKind.ShiftC, throughCarry ? FlagUse.Touches | FlagUse.Observes : FlagUse.Touches, dst, Reg(Register.CL), aux: Generic(operation, bytes));
        }
        else
        {
            int count = (int)i.GetImmediate(1) & (bytes == 8 ? 63 : 31);
            FlagUse use = throughCarry ? FlagUse.Touches | FlagUse.Observes : rotate ? FlagUse.Touches : FlagUse.Defines;
            if (count == 0)
                Emit(bytes == 4 ? MicroKind.Mov32RR : MicroKind.Nop, FlagUse.None, dst, dst);
            else
                Emit(MicroKind.ShiftI, use, dst, imm: (ulong)count, aux: Generic(operation, bytes));
        }

        if (i.Op0Kind == OpKind.Memory)
            StoreBack(bytes);
    }

    private void LowerShiftDouble(in Instruction i, AluOperation operation)
    {
        int bytes = Bytes(i, 0);
        byte dst = Destination(i, bytes);
        if (i.Op2Kind == OpKind.Register)
            Emit(MicroKind.ShiftDoubleC, FlagUse.Touches, dst, Reg(i.Op1Register), aux: Generic(operation, bytes));
        else
            Emit(MicroKind.ShiftDoubleI, FlagUse.Touches, dst, Reg(i.Op1Register), i.Immediate8, Generic(operation, bytes));
        if (i.Op0Kind == OpKind.Memory)
            StoreBack(bytes);
    }

    private void LowerBitTest(in Instruction i, AluOperation operation)
    {
        int bytes = Bytes(i, 0);
        if (i.Op0Kind == OpKind.Memory && i.Op1Kind == OpKind.Register)
        {
            // The bit offset reaches outside the operand: an address of its own.
            Rare(i);
            return;
        }

        bool changes = operation != AluOperation.Bt;
        byte dst;
        if (i.Op0Kind == OpKind.Memory && !changes)
        {
            dst = RegisterFile.Value;
            PrepareAddress(i);
            EmitMemory(BySize(bytes, MicroKind.LoadZx8, MicroKind.LoadZx16, MicroKind.Load32, MicroKind.Load64), dst);
        }
        else
        {
            dst = Destination(i, bytes);
        }

        // Only CF is defined; the others stay.
        if (i.Op1Kind == OpKind.Register)
            Emit(MicroKind.BitTestR, FlagUse.Touches, dst, Reg(i.Op1Register), aux: Generic(operation, bytes));
        else
            Emit(MicroKind.BitTestI, FlagUse.Touches, dst, imm: i.Immediate8, aux: Generic(operation, bytes));
        if (i.Op0Kind == OpKind.Memory && changes)
            StoreBack(bytes);
    }

    private void LowerBitScan(in Instruction i, AluOperation operation)
    {
        byte source = Source(i, 1);
        Emit(MicroKind.BitScan, FlagUse.Defines, Reg(i.Op0Register), source, aux: Generic(operation, Bytes(i, 0)));
    }

    private void LowerImul(in Instruction i)
    {
        int bytes = Bytes(i, 0);
        byte source = Source(i, 1);
        byte dst = Reg(i.Op0Register);
        if (i.OpCount == 2)
            Emit(MicroKind.ImulRR, FlagUse.Defines, dst, source, aux: Generic(AluOperation.Imul, bytes));
        else
            Emit(MicroKind.ImulRI, FlagUse.Defines, dst, source, Imm(i, 2, bytes), Generic(AluOperation.Imul, bytes));
    }

    private void LowerMulDiv(in Instruction i, AluOperation operation)
    {
        byte source = Source(i, 0);
        bool divides = operation is AluOperation.Div or AluOperation.Idiv;
        Emit(MicroKind.MulDiv, divides ? FlagUse.Observes : FlagUse.Defines, src: source, aux: Generic(operation, Bytes(i, 0)));
    }

    private void LowerPush(in Instruction i)
    {
        if (i.StackPointerIncrement != -8 || (i.Op0Kind == OpKind.Register && !i.Op0Register.IsGPR64()))
        {
            Rare(i);
            return;
        }

        if (i.Op0Kind is OpKind.Register or OpKind.Memory)
            Emit(MicroKind.Push64R, FlagUse.Observes, src: Source(i, 0));
        else
            Emit(MicroKind.Push64I, FlagUse.Observes, imm: Imm(i, 0, 8));
    }

    private void BranchTo(MicroKind kind, in Instruction i)
    {
        byte source = Source(i, 0);
        Emit(kind, FlagUse.Observes, src: source);
        _ended = true;
    }

    private void Branch(MicroKind kind, long target)
    {
        Emit(kind, FlagUse.Observes, disp: target);
        _ended = true;
    }

    private void Rare(in Instruction i, MicroKind kind = MicroKind.Rare)
    {
        _rare.Add(i);
        Emit(kind, FlagUse.Observes, aux: _rare.Count - 1);
    }

    /// <summary>True for what changes the flow, the context or the time, or is worth looking at events after (td-guest 3.2).</summary>
    private static bool EndsBlock(in Instruction i)
    {
        if (i.FlowControl != FlowControl.Next || i.HasRepPrefix || i.HasRepnePrefix)
            return true;
        return i.Mnemonic is Mnemonic.Popf or Mnemonic.Popfd or Mnemonic.Popfq or Mnemonic.Sti or Mnemonic.Cli or Mnemonic.Hlt
            or Mnemonic.Wrmsr or Mnemonic.Rdmsr or Mnemonic.Invlpg or Mnemonic.Invpcid or Mnemonic.Cpuid or Mnemonic.Rdtsc or Mnemonic.Rdtscp
            or Mnemonic.In or Mnemonic.Out or Mnemonic.Xsetbv or Mnemonic.Lmsw or Mnemonic.Clts or Mnemonic.Pop or Mnemonic.Vmcall or Mnemonic.Tdcall
            or Mnemonic.Pause or Mnemonic.Stac or Mnemonic.Clac or Mnemonic.Swapgs or Mnemonic.Mwait or Mnemonic.Monitor;
    }

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
