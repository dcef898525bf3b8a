using Iced.Intel;

namespace Tdp.Cpu;

/// <content>
/// Instructions of the operating system, and those that leave the guest (td-guest 4.1). The architectural privilege and mode checks come before any exit.
/// </content>
public sealed partial class GuestCpu
{
    private bool ExecuteSystem(in Instruction i, ref MicroOp op)
    {
        ref Trap trap = ref _linear.Trap;
        switch (i.Mnemonic)
        {
            case Mnemonic.Cpuid:
                return Exit(ExitReason.Cpuid, op.Length);
            case Mnemonic.Vmcall:
                return Exit(ExitReason.Vmcall, op.Length);
            case Mnemonic.Tdcall:
                if (!_vmcs.IsTd)
                    return trap.Raise(Vector.InvalidOpcode);
                return Supervisor() && Exit(ExitReason.Tdcall, op.Length);
            case Mnemonic.Hlt:
                return Supervisor() && Exit(ExitReason.Hlt, op.Length);
            case Mnemonic.Invd:
                return Supervisor() && Exit(ExitReason.Invd, op.Length);
            case Mnemonic.Wbinvd or Mnemonic.Wbnoinvd:
                return Supervisor() && (!(_vmcs.WbinvdExits || _vmcs.IsTd) || Exit(ExitReason.Wbinvd, op.Length));
            case Mnemonic.Monitor or Mnemonic.Mwait:
                return MonitorWait(i, op.Length);
            case Mnemonic.Rdpmc:
                if (_state.Cpl != 0 && (_state.Cr4 & Cr4.PerformanceCounter) == 0)
                    return trap.GeneralProtection();
                return _vmcs.RdpmcExits ? Exit(ExitReason.Rdpmc, op.Length) : trap.GeneralProtection();
            case Mnemonic.Rdrand or Mnemonic.Rdseed:
                _random ??= new SeedStream(_options.Seed, "rdrand", (ulong)_vmcs.VcpuId);
                PutRegister(ref File, BlockBuilder.Reg(i.Op0Register), Log(BlockBuilder.Bytes(i, 0)), _random.Next());
                _flags.Set(Rflags.Carry);
                return true;
            case Mnemonic.Rdtsc or Mnemonic.Rdtscp:
                return ReadTime(i.Mnemonic == Mnemonic.Rdtscp);
            case Mnemonic.Rdmsr:
                return Supervisor() && ReadMsr(op.Length);
            case Mnemonic.Wrmsr:
                return Supervisor() && WriteMsr(op.Length);
            case Mnemonic.In or Mnemonic.Out:
                return PortAccess(i, op.Length);
            case Mnemonic.Cli or Mnemonic.Sti:
                return SetInterrupts(i.Mnemonic == Mnemonic.Sti);
            case Mnemonic.Swapgs:
                if (!Supervisor())
                    return false;
                (_state.Gs.Base, _state.KernelGsBase) = (_state.KernelGsBase, _state.Gs.Base);
                _registers[RegisterFile.GsBase >> 3] = _state.Gs.Base;
                return true;
            case Mnemonic.Stac or Mnemonic.Clac:
                if (_state.Cpl != 0 || (_state.Cr4 & Cr4.Smap) == 0)
                    return trap.Raise(Vector.InvalidOpcode);
                SetRflags(i.Mnemonic == Mnemonic.Stac ? CurrentRflags() | Rflags.AlignmentCheck : CurrentRflags() & ~Rflags.AlignmentCheck);
                return true;
            case Mnemonic.Rdfsbase or Mnemonic.Rdgsbase or Mnemonic.Wrfsbase or Mnemonic.Wrgsbase:
                return SegmentBaseAccess(i);
            case Mnemonic.Lgdt or Mnemonic.Lidt:
                return Supervisor() && LoadTable(i);
            case Mnemonic.Sgdt or Mnemonic.Sidt:
                return Unrestricted() && StoreTable(i);
            case Mnemonic.Ltr or Mnemonic.Lldt:
                return Supervisor() && TryReadOperand(i, 0, i.Op0Kind == OpKind.Memory ? 2 : BlockBuilder.Bytes(i, 0), out ulong selector)
                    && LoadSystemSegment(i.Mnemonic == Mnemonic.Ltr, (ushort)selector);
            case Mnemonic.Str or Mnemonic.Sldt:
                return Unrestricted() && StoreWord(i, i.Mnemonic == Mnemonic.Str ? _state.Tr.Selector : _state.Ldtr.Selector);
            case Mnemonic.Smsw:
                return Unrestricted() && StoreWord(i, _state.Cr0);
            case Mnemonic.Lmsw:
                return Supervisor() && LoadStatusWord(i, op.Length);
            case Mnemonic.Clts:
                return Supervisor() && ClearTaskSwitched(op.Length);
            case Mnemonic.Invlpg:
                if (!Supervisor())
                    return false;
                TryAddress(i, out ulong page);
                if (_linear.IsCanonical(page))
                    _linear.FlushPage(page);
                Fence.Full();
                return true;
            case Mnemonic.Invpcid:
                return Supervisor() && InvalidateContext(i);
            case Mnemonic.Xgetbv:
                if ((_state.Cr4 & Cr4.OsXsave) == 0)
                    return trap.Raise(Vector.InvalidOpcode);
                if ((uint)Reg(Gpr.Rcx) != 0)
                    return trap.GeneralProtection();
                SetPair(_state.Xcr0);
                return true;
            case Mnemonic.Xsetbv:
                if ((_state.Cr4 & Cr4.OsXsave) == 0)
                    return trap.Raise(Vector.InvalidOpcode);
                return Supervisor() && Exit(ExitReason.Xsetbv, op.Length);
            default:
                return ExecuteForbidden(i, op.Length);
        }
    }

    /// <summary>#GP(0) above CPL 0.</summary>
    private bool Supervisor() => _state.Cpl == 0 || _linear.Trap.GeneralProtection();

    // SGDT and its kin are the kernel's under UMIP.
    private bool Unrestricted() => (_state.Cr4 & Cr4.Umip) == 0 || Supervisor();

    private bool Exit(ExitReason reason, byte length, ulong qualification = 0, uint info = 0)
    {
        Leave(reason, qualification, length, 0, info);
        return _linear.Trap.Exit();
    }

    private void SetPair(ulong value)
    {
        Reg(Gpr.Rax) = (uint)value;
        Reg(Gpr.Rdx) = value >> 32;
    }

    private ulong Pair => (Reg(Gpr.Rdx) << 32) | (uint)Reg(Gpr.Rax);

    private bool MonitorWait(in Instruction i, byte length)
    {
        if (_state.Cpl != 0)
            return _linear.Trap.Raise(Vector.InvalidOpcode);
        bool monitor = i.Mnemonic == Mnemonic.Monitor;
        if (_vmcs.MonitorExits)
            return Exit(monitor ? ExitReason.Monitor : ExitReason.Mwait, length);
        if (!monitor)
        {
            Pause();
            return true;
        }

        if ((uint)Reg(Gpr.Rcx) != 0)
            return _linear.Trap.GeneralProtection();
        return TryReadData(Reg(Gpr.Rax) + SegmentBase(i.MemorySegment), 1, stack: false, out _);
    }

    private bool ReadTime(bool withProcessor)
    {
        if ((_state.Cr4 & Cr4.TimeStampDisable) != 0 && !Supervisor())
            return false;
        SetPair(TimeStamp());
        if (withProcessor)
            Reg(Gpr.Rcx) = (uint)_state.TscAux;
        return true;
    }

    private ulong TimeStamp() => (ulong)(((UInt128)_lp.ReadTime() * _vmcs.TscMultiplier) >> 48) + _vmcs.TscOffset;

    private bool SetInterrupts(bool on)
    {
        if (_state.Cpl > IoPrivilege && !_linear.Trap.GeneralProtection())
            return false;
        if (!on)
        {
            _state.Rflags &= ~Rflags.Interrupt;
            return true;
        }

        // The shadow is over one instruction, and there is none if interrupts were on.
        _state.StiShadow = (_state.Rflags & Rflags.Interrupt) == 0;
        _state.Rflags |= Rflags.Interrupt;
        return true;
    }

    private bool SegmentBaseAccess(in Instruction i)
    {
        if ((_state.Cr4 & Cr4.FsGsBase) == 0)
            return _linear.Trap.Raise(Vector.InvalidOpcode);
        int size = Log(BlockBuilder.Bytes(i, 0));
        byte register = BlockBuilder.Reg(i.Op0Register);
        bool fs = i.Mnemonic is Mnemonic.Rdfsbase or Mnemonic.Wrfsbase;
        ref ulong slot = ref _registers[(fs ? RegisterFile.FsBase : RegisterFile.GsBase) >> 3];
        if (i.Mnemonic is Mnemonic.Rdfsbase or Mnemonic.Rdgsbase)
        {
            PutRegister(ref File, register, size, slot);
            return true;
        }

        ulong value = GetRegister(ref File, register, size);
        if (!_linear.IsCanonical(value))
            return _linear.Trap.GeneralProtection();
        SetBase(fs, value);
        return true;
    }

    private void SetBase(bool fs, ulong value)
    {
        (fs ? ref _state.Fs : ref _state.Gs).Base = value;
        _registers[(fs ? RegisterFile.FsBase : RegisterFile.GsBase) >> 3] = value;
    }

    private bool LoadTable(in Instruction i)
    {
        TryAddress(i, out ulong address);
        if (!TryReadData(address, 2, UsesStack(i), out ulong limit) || !TryReadData(address + 2, 8, UsesStack(i), out ulong start))
            return false;
        if (!_linear.IsCanonical(start))
            return _linear.Trap.GeneralProtection();
        if (i.Mnemonic == Mnemonic.Lgdt)
            (_state.GdtrBase, _state.GdtrLimit) = (start, (ushort)limit);
        else
            (_state.IdtrBase, _state.IdtrLimit) = (start, (ushort)limit);
        return true;
    }

    private bool StoreTable(in Instruction i)
    {
        TryAddress(i, out ulong address);
        (ulong start, ushort limit) = i.Mnemonic == Mnemonic.Sgdt ? (_state.GdtrBase, _state.GdtrLimit) : (_state.IdtrBase, _state.IdtrLimit);
        if (!_linear.TryPrepareWrite(address, 2, UsesStack(i), AccessKind.Write, out WriteTarget first)
            || !_linear.TryPrepareWrite(address + 2, 8, UsesStack(i), AccessKind.Write, out WriteTarget second))
        {
            return false;
        }

        _linear.Store(first, limit);
        _linear.Store(second, start);
        return true;
    }

    private bool StoreWord(in Instruction i, ulong value) =>
        i.Op0Kind == OpKind.Memory ? TryWriteOperand(i, 0, 2, value) : TryWriteOperand(i, 0, BlockBuilder.Bytes(i, 0), value);

    private bool InvalidateContext(in Instruction i)
    {
        TryAddress(i, out ulong address);
        ulong type = R64(ref File, BlockBuilder.Reg(i.Op0Register));
        if (!TryReadData(address, 8, UsesStack(i), out ulong context) || !TryReadData(address + 8, 8, UsesStack(i), out ulong linear))
            return false;
        if (type > 3 || (type < 2 && context >> 12 != 0) || (type == 0 && !_linear.IsCanonical(linear)))
            return _linear.Trap.GeneralProtection();

        // Process-context numbers are not told apart; more may be dropped than asked for, never less.
        if (type == 0)
            _linear.FlushPage(linear);
        else
            _linear.FlushAll();
        Fence.Full();
        return true;
    }

    /// <summary>
    /// Instructions that no guest may use. In a TD they exit and the module decides; in an ordinary VM those that the processor would not know are #UD.
    /// VMX instructions exit at any CPL.
    /// </summary>
    private bool ExecuteForbidden(in Instruction i, byte length)
    {
        ExitReason reason = i.Mnemonic switch
        {
            Mnemonic.Invept => ExitReason.Invept,
            Mnemonic.Invvpid => ExitReason.Invvpid,
            Mnemonic.Vmclear => ExitReason.Vmclear,
            Mnemonic.Vmfunc => ExitReason.Vmfunc,
            Mnemonic.Vmlaunch => ExitReason.Vmlaunch,
            Mnemonic.Vmptrld => ExitReason.Vmptrld,
            Mnemonic.Vmptrst => ExitReason.Vmptrst,
            Mnemonic.Vmread => ExitReason.Vmread,
            Mnemonic.Vmresume => ExitReason.Vmresume,
            Mnemonic.Vmwrite => ExitReason.Vmwrite,
            Mnemonic.Vmxoff => ExitReason.Vmxoff,
            Mnemonic.Vmxon => ExitReason.Vmxon,
            _ => 0,
        };
        if (reason != 0)
            return Exit(reason, length);
        reason = i.Mnemonic switch
        {
            Mnemonic.Encls => ExitReason.Encls,
            Mnemonic.Enclv => ExitReason.Enclv,
            Mnemonic.Enclu => ExitReason.SimulatorEnclu,
            Mnemonic.Getsec => ExitReason.Getsec,
            Mnemonic.Rsm => ExitReason.Rsm,
            Mnemonic.Enqcmd => ExitReason.Enqcmd,
            Mnemonic.Enqcmds => ExitReason.Enqcmds,
            Mnemonic.Pconfig => ExitReason.Pconfig,
            Mnemonic.Seamcall => ExitReason.Seamcall,
            Mnemonic.Seamops or Mnemonic.Seamret => ExitReason.TripleFault,
            _ => ExitReason.ExceptionOrNmi,
        };
        if (reason == ExitReason.ExceptionOrNmi)
            throw Unsupported(i);
        bool known = _vmcs.IsTd && reason != ExitReason.TripleFault && (reason != ExitReason.SimulatorEnclu || _vmcs.EncluFaults);
        return known ? Exit(reason, length) : _linear.Trap.Raise(Vector.InvalidOpcode);
    }
}
