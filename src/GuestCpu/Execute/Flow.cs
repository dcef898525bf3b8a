using System.Globalization;
using System.Text;
using Iced.Intel;

namespace Tdp.Cpu;

/// <content>Control transfers that leave the ordinary path: loops, far transfers, software interrupts, IRET, SYSCALL (td-guest 1.8, 2.5).</content>
public sealed partial class GuestCpu
{
    private bool ExecuteFlow(in Instruction i, ref MicroOp op)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Loop or Mnemonic.Loope or Mnemonic.Loopne:
                return LoopBranch(i);
            case Mnemonic.Jrcxz:
                return JumpIf(Reg(Gpr.Rcx) == 0, i);
            case Mnemonic.Jecxz:
                return JumpIf((uint)Reg(Gpr.Rcx) == 0, i);
            case Mnemonic.Int3:
                return SoftwareInterrupt(Vector.Breakpoint, VmEvent.SoftwareException, op.Length);
            case Mnemonic.Int1:
                return SoftwareInterrupt(Vector.Debug, PrivilegedSoftwareException, op.Length);
            case Mnemonic.Int:
                return SoftwareInterrupt(i.Immediate8, VmEvent.SoftwareInterrupt, op.Length);
            case Mnemonic.Ud0 or Mnemonic.Ud1 or Mnemonic.Ud2:
                return _linear.Trap.Raise(Vector.InvalidOpcode);
            case Mnemonic.Iretq:
                return InterruptReturn();
            case Mnemonic.Retf:
                return FarReturn(i);
            case Mnemonic.Jmp or Mnemonic.Call when i.IsJmpFarIndirect || i.IsCallFarIndirect:
                return FarIndirect(i);
            case Mnemonic.Syscall:
                return SystemCall();
            case Mnemonic.Sysretq:
                return SystemReturn();
            default:
                return ExecuteSystem(i, ref op);
        }
    }

    private bool JumpIf(bool taken, in Instruction i)
    {
        if (!taken)
            return true;
        ulong target = PageBase + i.NearBranch64;
        if (!IsTarget(target))
            return false;
        _nextRip = target;
        return true;
    }

    private bool LoopBranch(in Instruction i)
    {
        bool narrow = i.Code is Code.Loop_rel8_64_ECX or Code.Loope_rel8_64_ECX or Code.Loopne_rel8_64_ECX;
        ulong count = narrow ? (uint)(Reg(Gpr.Rcx) - 1) : Reg(Gpr.Rcx) - 1;
        bool taken = count != 0 && i.Mnemonic switch
        {
            Mnemonic.Loope => _flags.Zero,
            Mnemonic.Loopne => !_flags.Zero,
            _ => true,
        };
        if (!JumpIf(taken, i))
            return false;
        Reg(Gpr.Rcx) = count;
        return true;
    }

    /// <summary>IRETQ: always five words. Ends NMI blocking even if it faults (td-guest 1.8).</summary>
    private bool InterruptReturn()
    {
        bool wasBlocked = _state.NmiBlocked;
        _state.NmiBlocked = false;
        if (TryInterruptReturn())
            return true;

        // Qualification bit 12: NMI unblocking due to IRET, so that the module can block again before it restarts the instruction.
        if (wasBlocked && _linear.Trap.Kind == TrapKind.Exit && _vmcs.Exit.Reason == ExitReason.EptViolation)
            _vmcs.Exit.Qualification |= 1 << 12;
        return false;
    }

    private bool TryInterruptReturn()
    {
        ref Trap trap = ref _linear.Trap;
        if ((_state.Rflags & Rflags.NestedTask) != 0)
            return trap.GeneralProtection();
        Span<ulong> frame = stackalloc ulong[5];
        for (int word = 0; word < 5; word++)
        {
            if (!TryReadData(Reg(Gpr.Rsp) + ((ulong)word * 8), 8, stack: true, out frame[word]))
                return false;
        }

        int cpl = _state.Cpl;
        var selector = (ushort)frame[1];
        int rpl = selector & 3;
        if (!TryReturnCode(selector, cpl, out Segment code))
            return false;
        var stack = (ushort)frame[4];
        if (!TryReturnStack(stack, rpl, out Segment data))
            return false;
        if (!IsTarget(frame[0]))
            return false;

        ulong mask = Rflags.Arithmetic | Rflags.Trap | Rflags.Direction | Rflags.NestedTask | Rflags.Resume | Rflags.AlignmentCheck | Rflags.Identification;
        if (cpl == 0)
            mask |= Rflags.Iopl;
        if (cpl <= IoPrivilege)
            mask |= Rflags.Interrupt;
        SetRflags((CurrentRflags() & ~(mask | Rflags.VirtualInterrupt | Rflags.VirtualInterruptPending)) | (frame[2] & mask));
        _state.Cs = code;
        _state.Ss = data;
        Reg(Gpr.Rsp) = frame[3];
        _nextRip = frame[0];
        if (rpl != cpl)
            LeavePrivilege(rpl);
        else
            _linear.PrivilegeChanged();
        Fence.Full();
        return true;
    }

    private bool TryReturnCode(ushort selector, int cpl, out Segment code)
    {
        if (!TryReadCode(selector, 0, out code))
            return false;
        int rpl = selector & 3;
        bool conforming = (code.Access & Conforming) != 0;
        if (rpl < cpl || (conforming ? code.Dpl > rpl : code.Dpl != rpl))
            return _linear.Trap.Raise(Vector.GeneralProtection, Error(selector, 0));
        code.Selector = selector;
        code.Access = (code.Access & ~0x60u) | ((uint)rpl << 5);
        return true;
    }

    private bool TryReturnStack(ushort selector, int rpl, out Segment data)
    {
        data = new Segment { Selector = selector, Access = Unusable | ((uint)rpl << 5) };
        if ((selector & ~3) == 0)
            return rpl != 3 && (selector & 3) == rpl ? true : _linear.Trap.GeneralProtection();
        if (!TryReadDescriptor(selector, 0, out ulong low, wide: false, out _))
            return false;
        data = FromDescriptor(selector, low, 0);
        if ((data.Access & (NotSystem | CodeSegment | WritableOrReadable)) != (NotSystem | WritableOrReadable) || (selector & 3) != rpl || data.Dpl != rpl)
            return _linear.Trap.Raise(Vector.GeneralProtection, Error(selector, 0));
        if ((data.Access & PresentSegment) == 0)
            return _linear.Trap.Raise(Vector.StackFault, Error(selector, 0));
        data.Access |= Accessed;
        return true;
    }

    // To an outer level: data segments that the new level may not use become null.
    private void LeavePrivilege(int cpl)
    {
        Drop(ref _state.Ds);
        Drop(ref _state.Es);
        Drop(ref _state.Fs);
        Drop(ref _state.Gs);
        _registers[RegisterFile.FsBase >> 3] = _state.Fs.Base;
        _registers[RegisterFile.GsBase >> 3] = _state.Gs.Base;
        _linear.PrivilegeChanged();

        void Drop(ref Segment segment)
        {
            bool conformingCode = (segment.Access & (CodeSegment | Conforming)) == (CodeSegment | Conforming);
            if ((segment.Access & Unusable) == 0 && !conformingCode && segment.Dpl < cpl)
                segment = new Segment { Selector = 0, Access = Unusable, Base = segment.Base };
        }
    }

    private bool FarReturn(in Instruction i)
    {
        int bytes = i.Code switch
        {
            Code.Retfq or Code.Retfq_imm16 => 8,
            Code.Retfd or Code.Retfd_imm16 => 4,
            _ => 2,
        };
        ulong rsp = Reg(Gpr.Rsp);
        ulong pop = i.OpCount == 0 ? 0UL : i.Immediate16;
        if (!TryReadData(rsp, bytes, stack: true, out ulong target) || !TryReadData(rsp + (ulong)bytes, bytes, stack: true, out ulong word))
            return false;
        var selector = (ushort)word;
        int cpl = _state.Cpl;
        int rpl = selector & 3;
        if (!TryReturnCode(selector, cpl, out Segment code) || !IsTarget(target))
            return false;
        rsp += (ulong)(2 * bytes) + pop;
        if (rpl != cpl)
        {
            if (!TryReadData(rsp, bytes, stack: true, out ulong outer) || !TryReadData(rsp + (ulong)bytes, bytes, stack: true, out ulong stack))
                return false;
            if (!TryReturnStack((ushort)stack, rpl, out Segment data))
                return false;
            _state.Ss = data;
            rsp = outer + pop;
        }

        _state.Cs = code;
        Reg(Gpr.Rsp) = rsp;
        _nextRip = target;
        if (rpl != cpl)
            LeavePrivilege(rpl);
        return true;
    }

    // JMP and CALL through a far pointer in memory, to a code segment; call gates and task gates are not for 64-bit kernels of this age.
    private bool FarIndirect(in Instruction i)
    {
        int bytes = i.MemorySize switch { MemorySize.SegPtr64 => 8, MemorySize.SegPtr32 => 4, _ => 2 };
        TryAddress(i, out ulong address);
        if (!TryReadData(address, bytes, UsesStack(i), out ulong target) || !TryReadData(address + (ulong)bytes, 2, UsesStack(i), out ulong selector))
            return false;
        if (!TryReadCode((ushort)selector, 0, out Segment code) || !IsTarget(target))
            return false;
        int cpl = _state.Cpl;
        bool allowed = (code.Access & Conforming) != 0 ? code.Dpl <= cpl : code.Dpl == cpl && ((int)selector & 3) <= cpl;
        if (!allowed)
            return _linear.Trap.Raise(Vector.GeneralProtection, Error((ushort)selector, 0));
        if (i.Mnemonic == Mnemonic.Call)
        {
            ulong rsp = Reg(Gpr.Rsp);
            if (!PushValue(_state.Cs.Selector, bytes) || !PushValue(_nextRip, bytes))
            {
                Reg(Gpr.Rsp) = rsp;
                return false;
            }
        }

        code.Selector = (ushort)(((int)selector & ~3) | cpl);
        _state.Cs = code;
        _nextRip = target;
        return true;
    }

    private bool SystemCall()
    {
        if ((_state.Efer & Efer.SyscallEnable) == 0)
            return _linear.Trap.Raise(Vector.InvalidOpcode);
        Reg(Gpr.Rcx) = _nextRip;
        Reg(Gpr.R11) = CurrentRflags() & ~Rflags.Resume;
        SetRflags(CurrentRflags() & ~(_state.Fmask | Rflags.Resume));
        var selector = (ushort)((_state.Star >> 32) & 0xFFFC);
        _state.Cs = new Segment { Selector = selector, Access = 0xA09B, Limit = uint.MaxValue };
        _state.Ss = new Segment { Selector = (ushort)(selector + 8), Access = 0xC093, Limit = uint.MaxValue };
        _nextRip = _state.Lstar;
        _linear.PrivilegeChanged();
        return true;
    }

    private bool SystemReturn()
    {
        if ((_state.Efer & Efer.SyscallEnable) == 0)
            return _linear.Trap.Raise(Vector.InvalidOpcode);

        // A bad RCX faults before anything changes, at CPL 0.
        if (_state.Cpl != 0 || !_linear.IsCanonical(Reg(Gpr.Rcx)))
            return _linear.Trap.GeneralProtection();
        SetRflags(Reg(Gpr.R11) & 0x3C_7FD7);
        var selector = (ushort)(_state.Star >> 48);
        _state.Cs = new Segment { Selector = (ushort)((selector + 16) | 3), Access = 0xA0FB, Limit = uint.MaxValue };
        _state.Ss = new Segment { Selector = (ushort)((selector + 8) | 3), Access = 0xC0F3, Limit = uint.MaxValue };
        _nextRip = Reg(Gpr.Rcx);
        _linear.PrivilegeChanged();
        return true;
    }

    private UnsupportedGuestInstructionException Unsupported(in Instruction i, int tier = 0)
    {
        var bytes = new StringBuilder();
        int length = i.Length;
        for (int at = 0; at < length; at++)
        {
            if (_linear.TryTranslate(_state.Rip + (ulong)at, AccessKind.Fetch, _linear.IsUser, out ulong hpa))
                bytes.Append(CultureInfo.InvariantCulture, $"{(at == 0 ? "" : " ")}{_memory.At(hpa):x2}");
        }

        // The run ends here, with the state of the instruction before.
        _linear.Trap = default;
        StoreRegisters();
        string features = string.Join(" and ", i.CpuidFeatures);
        return new UnsupportedGuestInstructionException(
            i.Mnemonic.ToString().ToLowerInvariant(), i.Code.ToString(), bytes.ToString(), _state.Rip, _state.Cpl, _vmcs.VcpuId, features, tier != 0 ? tier : TierOf(i));
    }

    private UnsupportedGuestInstructionException Unsupported(string what, string detail)
    {
        StoreRegisters();
        return new UnsupportedGuestInstructionException(what, detail, "-", _state.Rip, _state.Cpl, _vmcs.VcpuId, "X64", 3);
    }

    private static int TierOf(in Instruction i)
    {
        foreach (CpuidFeature feature in i.CpuidFeatures)
        {
            if (feature is CpuidFeature.SSE or CpuidFeature.SSE2 or CpuidFeature.BMI1 or CpuidFeature.BMI2 or CpuidFeature.LZCNT or CpuidFeature.POPCNT
                or CpuidFeature.ADX or CpuidFeature.RDRAND or CpuidFeature.RDSEED or CpuidFeature.FXSR)
            {
                return 2;
            }
        }

        return i.Mnemonic == Mnemonic.Crc32 ? 2 : 3;
    }
}
