using Iced.Intel;

namespace Tdp.Cpu;

/// <content>Control and debug registers (td-guest 4.4).</content>
public sealed partial class GuestCpu
{
    private const ulong FlushingCr0 = Cr0.Paging | Cr0.WriteProtect;
    private const ulong FlushingCr4 =
        Cr4.PhysicalAddressExtension | Cr4.PageGlobal | Cr4.ProcessContext | Cr4.Smep | Cr4.Smap | Cr4.La57;

    private bool MoveControl(in Instruction i, byte length)
    {
        if (!Supervisor())
            return false;
        bool write = i.Op0Register.IsCR();
        int number = (write ? i.Op0Register : i.Op1Register) - Register.CR0;
        byte gpr = BlockBuilder.Reg(write ? i.Op1Register : i.Op0Register);
        ref ulong register = ref R64(ref File, gpr);
        if (!write)
        {
            switch (number)
            {
                case 0:
                    register = _state.Cr0;
                    return true;
                case 2:
                    register = _state.Cr2;
                    return true;
                case 3:
                    register = _state.Cr3;
                    return true;
                case 4:
                    register = _state.Cr4;
                    return true;
                case 8:
                    register = _state.Cr8;
                    return true;
                default:
                    return _linear.Trap.Raise(Vector.InvalidOpcode);
            }
        }

        ulong value = register;
        ulong qualification = (uint)number | ((ulong)(gpr >> 3) << 8);
        switch (number)
        {
            case 0:
                return WriteCr0(value, length, qualification);
            case 2:
                _state.Cr2 = value;
                return true;
            case 3:
                return WriteCr3(value);
            case 4:
                return WriteCr4(value, length, qualification);
            case 8:
                if (value > 15)
                    return _linear.Trap.GeneralProtection();
                _state.Cr8 = value;
                return true;
            default:
                return _linear.Trap.Raise(Vector.InvalidOpcode);
        }
    }

    private bool WriteCr0(ulong value, byte length, ulong qualification)
    {
        // 64-bit mode cannot lose paging or protection; bits 28:19, 17 and 15:6 read as 0.
        if (value >> 32 != 0 || (value & Cr0.Paging) == 0 || (value & Cr0.Protection) == 0
            || (value & (Cr0.NotWriteThrough | Cr0.CacheDisable)) == Cr0.NotWriteThrough
            || ((value & Cr0.WriteProtect) == 0 && (_state.Cr4 & (1 << 23)) != 0))
        {
            return _linear.Trap.GeneralProtection();
        }

        value = (value & 0xE005_003F) | Cr0.ExtensionType;
        if (((value ^ _state.Cr0) & _vmcs.Cr0Owned) != 0)
            return Exit(ExitReason.CrAccess, length, qualification);
        ulong changed = value ^ _state.Cr0;
        _state.Cr0 = value;
        if ((changed & FlushingCr0) != 0)
            _linear.FlushAll();
        Fence.Full();
        return true;
    }

    private bool WriteCr3(ulong value)
    {
        bool contexts = (_state.Cr4 & Cr4.ProcessContext) != 0;
        ulong reserved = ~Hpa.Mask & ~0xFFFUL;
        if (_options.PhysicalAddressBits < 52 && !_vmcs.IsTd)
            reserved |= Hpa.Mask & ~((1UL << _options.PhysicalAddressBits) - 1);
        if (contexts)
            reserved &= ~(1UL << 63);
        if ((value & reserved) != 0)
            return _linear.Trap.GeneralProtection();

        // Bit 63 would keep the other contexts' translations; dropping them is always allowed.
        _state.Cr3 = value & ~(1UL << 63);
        _linear.FlushNonGlobal();
        Fence.Full();
        return true;
    }

    private bool WriteCr4(ulong value, byte length, ulong qualification)
    {
        ulong changed = value ^ _state.Cr4;
        bool contextsNow = (changed & value & Cr4.ProcessContext) != 0;
        if ((value & Cr4.PhysicalAddressExtension) == 0 || (changed & Cr4.La57) != 0 || (contextsNow && (_state.Cr3 & 0xFFF) != 0))
            return _linear.Trap.GeneralProtection();

        // An owned bit is the module's to judge, even one that this CPU does not have.
        if ((changed & _vmcs.Cr4Owned) != 0)
            return Exit(ExitReason.CrAccess, length, qualification);
        if ((value & ~Cr4.Known) != 0)
            return _linear.Trap.GeneralProtection();
        _state.Cr4 = value;
        if ((changed & FlushingCr4) != 0)
            _linear.FlushAll();
        Fence.Full();
        return true;
    }

    private bool LoadStatusWord(in Instruction i, byte length)
    {
        if (!TryReadOperand(i, 0, 2, out ulong source))
            return false;

        // LMSW sets PE, MP, EM and TS, and cannot clear PE.
        ulong value = (_state.Cr0 & ~0xEUL) | (source & 0xF);
        if (((value ^ _state.Cr0) & _vmcs.Cr0Owned) != 0)
            return Exit(ExitReason.CrAccess, length, (3UL << 4) | (i.Op0Kind == OpKind.Memory ? 1UL << 6 : 0) | ((source & 0xFFFF) << 16));
        _state.Cr0 = value;
        return true;
    }

    private bool ClearTaskSwitched(byte length)
    {
        if ((_state.Cr0 & _vmcs.Cr0Owned & Cr0.TaskSwitched) != 0)
            return Exit(ExitReason.CrAccess, length, 2UL << 4);
        _state.Cr0 &= ~Cr0.TaskSwitched;
        return true;
    }

    private bool MoveDebug(in Instruction i)
    {
        if (!Supervisor())
            return false;
        bool write = i.Op0Register.IsDR();
        int number = (write ? i.Op0Register : i.Op1Register) - Register.DR0;
        ref ulong register = ref R64(ref File, BlockBuilder.Reg(write ? i.Op1Register : i.Op0Register));
        if (number is 4 or 5)
        {
            // Other names of DR6 and DR7 unless debugging extensions are on.
            if ((_state.Cr4 & (1 << 3)) != 0)
                return _linear.Trap.Raise(Vector.InvalidOpcode);
            number += 2;
        }

        if (number > 7)
            return _linear.Trap.Raise(Vector.InvalidOpcode);
        if ((_state.Dr7 & (1 << 13)) != 0)
        {
            _state.Dr7 &= ~(1UL << 13);
            _state.Dr6 |= 1 << 13;
            return _linear.Trap.Raise(Vector.Debug);
        }

        ref ulong debug = ref DebugRegister(number);
        if (!write)
        {
            register = debug;
            return true;
        }

        if (number >= 6 && register >> 32 != 0)
            return _linear.Trap.GeneralProtection();
        debug = number switch
        {
            6 => (register & 0xE00F) | 0xFFFF_0FF0,
            7 => (register & 0xFFFF_2BFF) | 0x400,
            _ => register,
        };
        return true;
    }

    private ref ulong DebugRegister(int number)
    {
        switch (number)
        {
            case 0:
                return ref _state.Dr0;
            case 1:
                return ref _state.Dr1;
            case 2:
                return ref _state.Dr2;
            case 3:
                return ref _state.Dr3;
            case 6:
                return ref _state.Dr6;
            default:
                return ref _state.Dr7;
        }
    }
}
