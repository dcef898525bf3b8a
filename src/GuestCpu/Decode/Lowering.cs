using Iced.Intel;

namespace Tdp.Cpu;

/// <content>Which steps an instruction becomes. What is not here, or has a LOCK prefix, is executed from its decoded form (<see cref="MicroKind.Rare"/>).</content>
internal sealed partial class BlockBuilder
{
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
}
