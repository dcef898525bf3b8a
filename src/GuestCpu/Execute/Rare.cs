using System.Buffers.Binary;
using Iced.Intel;

namespace Tdp.Cpu;

/// <content>Instructions that are executed from their decoded form: the seldom ones, and all with LOCK. Here: operands, moves, stack and flag forms.</content>
public sealed partial class GuestCpu
{
    /// <summary>Executes one instruction. False with the trap set when it does not complete. At the end of a block it may have set <c>_nextRip</c>.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool ExecuteRare(in Instruction i, ref MicroOp op)
    {
        _state.Rip = PageBase + op.Next - op.Length;
        if (i.HasLockPrefix)
            return Locked(i);
        switch (i.Mnemonic)
        {
            case Mnemonic.Mov:
                return MoveSpecial(i, op.Length);
            case Mnemonic.Push:
                return PushOther(i);
            case Mnemonic.Pop:
                return PopOther(i);
            case Mnemonic.Pushfq or Mnemonic.Pushf:
                return PushValue(CurrentRflags() & ~(Rflags.Resume | Rflags.Virtual8086), i.Mnemonic == Mnemonic.Pushfq ? 8 : 2);
            case Mnemonic.Popfq or Mnemonic.Popf:
                return PopFlags(i.Mnemonic == Mnemonic.Popfq ? 8 : 2);
            case Mnemonic.Enter:
                return EnterFrame(i);
            case Mnemonic.Leave:
                return LeaveNarrow();
            case Mnemonic.Xlatb:
                return Translate(i);
            case Mnemonic.Lahf:
                R8(ref File, RaxOffset + 1) = (byte)((CurrentRflags() & 0xD5) | Rflags.Fixed);
                return true;
            case Mnemonic.Sahf:
                _flags.Set((_flags.Value() & Rflags.Overflow) | (R8(ref File, RaxOffset + 1) & 0xD5UL));
                return true;
            case Mnemonic.Clc:
                _flags.Set(_flags.Value() & ~Rflags.Carry);
                return true;
            case Mnemonic.Stc:
                _flags.Set(_flags.Value() | Rflags.Carry);
                return true;
            case Mnemonic.Cmc:
                _flags.Set(_flags.Value() ^ Rflags.Carry);
                return true;
            case Mnemonic.Cld:
                _state.Rflags &= ~Rflags.Direction;
                return true;
            case Mnemonic.Std:
                _state.Rflags |= Rflags.Direction;
                return true;
            case Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc:
                return BitString(i, locked: false);
            case Mnemonic.Xchg:
                return Exchange(i);
            case Mnemonic.Xadd:
                return ExchangeAdd(i, locked: false);
            case Mnemonic.Cmpxchg:
                return CompareExchange(i, locked: false);
            case Mnemonic.Cmpxchg8b or Mnemonic.Cmpxchg16b:
                return CompareExchangeWide(i, locked: false);
            case Mnemonic.Bswap:
                // 16 bits: undefined by the manual; processors give 0.
                R16(ref File, BlockBuilder.Reg(i.Op0Register)) = 0;
                return true;
            case Mnemonic.Movbe:
                return MoveReversed(i);
            case Mnemonic.Mfence:
                Fence.Full();
                return true;
            case Mnemonic.Lfence:
                Fence.LoadLoad();
                return true;
            case Mnemonic.Sfence:
                Fence.StoreStore();
                return true;
            case Mnemonic.Clflush or Mnemonic.Clflushopt or Mnemonic.Clwb:
                return TryAddress(i, out ulong line) && TryReadData(line, 1, UsesStack(i), out _);
            case Mnemonic.Cldemote:
                return true;
            case Mnemonic.Pause:
                Pause();
                return true;
            case Mnemonic.Popcnt or Mnemonic.Tzcnt or Mnemonic.Lzcnt or Mnemonic.Andn or Mnemonic.Bextr or Mnemonic.Blsi or Mnemonic.Blsmsk or Mnemonic.Blsr or Mnemonic.Bzhi:
            case Mnemonic.Mulx or Mnemonic.Pdep or Mnemonic.Pext or Mnemonic.Rorx or Mnemonic.Sarx or Mnemonic.Shlx or Mnemonic.Shrx or Mnemonic.Adcx or Mnemonic.Adox or Mnemonic.Crc32:
                return BitManipulation(i);
            default:
                return i.IsStringInstruction ? StringInstruction(i, ref op) : ExecuteFlow(i, ref op);
        }
    }

    private ref byte File
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => ref Unsafe.As<RegisterFile, byte>(ref _registers);
    }

    private ulong PageBase => _registers[RegisterFile.PageBase >> 3];

    private static bool UsesStack(in Instruction i) => i.MemorySegment == Register.SS;

    /// <summary>Linear address of the memory operand, cut to 32 bits if the address size says so. Always true, for chains of conditions.</summary>
    private bool TryAddress(in Instruction i, out ulong address)
    {
        address = EffectiveAddress(i);
        address += SegmentBase(i.MemorySegment);
        return true;
    }

    private ulong EffectiveAddress(in Instruction i)
    {
        Register start = i.MemoryBase;
        Register index = i.MemoryIndex;
        ulong address = i.MemoryDisplacement64;
        if (start is Register.RIP or Register.EIP)
            address += PageBase;
        else if (start != Register.None)
            address += R64(ref File, BlockBuilder.Reg(start));
        if (index != Register.None)
            address += R64(ref File, BlockBuilder.Reg(index)) * (ulong)i.MemoryIndexScale;
        return start.IsGPR32() || index.IsGPR32() || start == Register.EIP ? (uint)address : address;
    }

    private ulong SegmentBase(Register segment) => segment switch
    {
        Register.FS => _registers[RegisterFile.FsBase >> 3],
        Register.GS => _registers[RegisterFile.GsBase >> 3],
        _ => 0,
    };

    /// <summary>Reads data as the current privilege, by the front cache if it can.</summary>
    private bool TryReadData(ulong address, int size, bool stack, out ulong value)
    {
        FrontCache cache = _linear.Read;
        ref FrontSlot slot = ref cache.Slot[FrontCache.IndexOf(address)];
        if (((address + (ulong)(size - 1)) & ~0xFFFUL) != slot.Tag)
            return _linear.TryRead(address, size, stack, out value);
        ulong hpa = address + slot.Addend;
        if (Checks.On)
            CheckHit(cache, address, hpa);
        value = _memory.Load(hpa, size);
        return true;
    }

    private bool TryWriteData(ulong address, int size, bool stack, ulong value)
    {
        FrontCache cache = _linear.Write;
        ref FrontSlot slot = ref cache.Slot[FrontCache.IndexOf(address)];
        if (((address + (ulong)(size - 1)) & ~0xFFFUL) != slot.Tag)
            return _linear.TryWrite(address, size, stack, value);
        ulong hpa = address + slot.Addend;
        if (Checks.On)
            CheckHit(cache, address, hpa);
        _memory.Store(hpa, size, value);
        return true;
    }

    private bool TryReadOperand(in Instruction i, int operand, int bytes, out ulong value)
    {
        switch (i.GetOpKind(operand))
        {
            case OpKind.Register:
                value = GetRegister(ref File, BlockBuilder.Reg(i.GetOpRegister(operand)), Log(bytes));
                return true;
            case OpKind.Memory:
                TryAddress(i, out ulong address);
                return TryReadData(address, bytes, UsesStack(i), out value);
            default:
                value = i.GetImmediate(operand);
                return true;
        }
    }

    private bool TryWriteOperand(in Instruction i, int operand, int bytes, ulong value)
    {
        if (i.GetOpKind(operand) == OpKind.Register)
        {
            PutRegister(ref File, BlockBuilder.Reg(i.GetOpRegister(operand)), Log(bytes), value);
            return true;
        }

        TryAddress(i, out ulong address);
        return TryWriteData(address, bytes, UsesStack(i), value);
    }

    private static int Log(int bytes) => System.Numerics.BitOperations.Log2((uint)bytes);

    private bool PushValue(ulong value, int bytes)
    {
        ulong address = Reg(Gpr.Rsp) - (ulong)bytes;
        if (!TryWriteData(address, bytes, stack: true, value))
            return false;
        Reg(Gpr.Rsp) = address;
        return true;
    }

    private bool PopValue(int bytes, out ulong value)
    {
        if (!TryReadData(Reg(Gpr.Rsp), bytes, stack: true, out value))
            return false;
        Reg(Gpr.Rsp) += (ulong)bytes;
        return true;
    }

    private bool PushOther(in Instruction i)
    {
        int bytes = -i.StackPointerIncrement;
        if (i.Op0Kind == OpKind.Register && i.Op0Register.IsSegmentRegister())
            return PushValue(i.Op0Register == Register.FS ? _state.Fs.Selector : _state.Gs.Selector, bytes);
        return TryReadOperand(i, 0, bytes, out ulong value) && PushValue(value, bytes);
    }

    private bool PopOther(in Instruction i)
    {
        int bytes = i.StackPointerIncrement;
        ulong before = Reg(Gpr.Rsp);
        if (!PopValue(bytes, out ulong value))
            return false;
        bool done = i.Op0Kind == OpKind.Register && i.Op0Register.IsSegmentRegister()
            ? LoadSegment(i.Op0Register, (ushort)value)
            : TryWriteOperand(i, 0, bytes, value);

        // POP [RSP + x] uses the incremented RSP for its address; a fault leaves the old one.
        if (!done)
            Reg(Gpr.Rsp) = before;
        return done;
    }

    private bool PopFlags(int bytes)
    {
        if (!PopValue(bytes, out ulong value))
            return false;
        ulong mask = Rflags.Arithmetic | Rflags.Trap | Rflags.Direction | Rflags.NestedTask | Rflags.AlignmentCheck | Rflags.Identification;
        int cpl = _state.Cpl;
        if (cpl == 0)
            mask |= Rflags.Iopl;
        if (cpl <= IoPrivilege)
            mask |= Rflags.Interrupt;
        if (bytes == 2)
            mask &= 0xFFFF;
        SetRflags((CurrentRflags() & ~(mask | Rflags.Resume | Rflags.VirtualInterrupt | Rflags.VirtualInterruptPending)) | (value & mask));
        if (cpl == 3)
            _linear.PrivilegeChanged();
        return true;
    }

    private int IoPrivilege => (int)(_state.Rflags >> 12) & 3;

    private bool EnterFrame(in Instruction i)
    {
        if (i.Immediate8_2nd != 0 || i.Code != Code.Enterq_imm16_imm8)
            throw Unsupported(i, tier: 3);
        ulong frame = Reg(Gpr.Rsp) - 8;
        if (!PushValue(Reg(Gpr.Rbp), 8))
            return false;
        Reg(Gpr.Rbp) = frame;
        Reg(Gpr.Rsp) -= i.Immediate16;
        return true;
    }

    private bool LeaveNarrow()
    {
        if (!TryReadData(Reg(Gpr.Rbp), 2, stack: true, out ulong value))
            return false;
        Reg(Gpr.Rsp) = Reg(Gpr.Rbp) + 2;
        R16(ref File, RbpOffset) = (ushort)value;
        return true;
    }

    private bool Translate(in Instruction i)
    {
        ulong address = Reg(Gpr.Rbx) + R8(ref File, RaxOffset);
        if (i.MemoryBase == Register.EBX)
            address = (uint)address;
        if (!TryReadData(address + SegmentBase(i.MemorySegment), 1, stack: false, out ulong value))
            return false;
        R8(ref File, RaxOffset) = (byte)value;
        return true;
    }

    private bool MoveReversed(in Instruction i)
    {
        int bytes = BlockBuilder.Bytes(i, 0);
        return TryReadOperand(i, 1, bytes, out ulong value)
            && TryWriteOperand(i, 0, bytes, BinaryPrimitives.ReverseEndianness(value) >> (64 - (8 * bytes)));
    }

    private bool MoveSpecial(in Instruction i, byte length)
    {
        if (i.Op0Kind == OpKind.Register && i.Op0Register.IsSegmentRegister())
        {
            return TryReadOperand(i, 1, i.Op1Kind == OpKind.Memory ? 2 : BlockBuilder.Bytes(i, 1), out ulong selector)
                && LoadSegment(i.Op0Register, (ushort)selector);
        }

        if (i.Op1Kind == OpKind.Register && i.Op1Register.IsSegmentRegister())
            return TryWriteOperand(i, 0, i.Op0Kind == OpKind.Memory ? 2 : BlockBuilder.Bytes(i, 0), SelectorOf(i.Op1Register));
        if (i.Op0Register.IsCR() || i.Op1Register.IsCR())
            return MoveControl(i, length);
        if (i.Op0Register.IsDR() || i.Op1Register.IsDR())
            return MoveDebug(i);
        throw Unsupported(i, tier: 3);
    }

    private ushort SelectorOf(Register segment) => segment switch
    {
        Register.CS => _state.Cs.Selector,
        Register.SS => _state.Ss.Selector,
        Register.DS => _state.Ds.Selector,
        Register.ES => _state.Es.Selector,
        Register.FS => _state.Fs.Selector,
        _ => _state.Gs.Selector,
    };

    private void Pause()
    {
        var spin = default(Spin);
        if (Explore.On)
        {
            spin.Once(null, _spinning);
            return;
        }

        // The guest waits for another vCPU, whose thread may need this one's processor.
        if ((++_pauses & 15) != 0)
            return;
        for (int turn = 0; turn < 12; turn++)
            spin.Once(null, _spinning);
    }

    private readonly ObjectId _spinning = ObjectId.Cell("guest-pause");
    private uint _pauses;
}
