using Iced.Intel;

namespace Tdp.Cpu;

/// <content>The operand forms of moves, arithmetic, shifts and bit operations: load, operate, store back.</content>
internal sealed partial class BlockBuilder
{
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
}
