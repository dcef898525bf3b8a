using Iced.Intel;

namespace Tdp.Cpu;

/// <content>
/// LOCK forms and the exchanges: one atomic step on the host's bytes each (td-guest 1.6), never an emulation by a lock. The access counts as a write even when
/// the comparison fails (G03).
/// </content>
public sealed partial class GuestCpu
{
    private bool Locked(in Instruction i)
    {
        int bytes = BlockBuilder.Bytes(i, 0);
        switch (i.Mnemonic)
        {
            case Mnemonic.Xchg:
                return Exchange(i);
            case Mnemonic.Xadd:
                return ExchangeAdd(i, locked: true);
            case Mnemonic.Cmpxchg:
                return CompareExchange(i, locked: true);
            case Mnemonic.Cmpxchg8b or Mnemonic.Cmpxchg16b:
                return CompareExchangeWide(i, locked: true);
            case Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc:
                return i.Op1Kind == OpKind.Register ? BitString(i, locked: true) : LockedBit(i, bytes);
        }

        AluOperation operation = i.Mnemonic switch
        {
            Mnemonic.Add => AluOperation.Add,
            Mnemonic.Or => AluOperation.Or,
            Mnemonic.Adc => AluOperation.Adc,
            Mnemonic.Sbb => AluOperation.Sbb,
            Mnemonic.And => AluOperation.And,
            Mnemonic.Sub => AluOperation.Sub,
            Mnemonic.Xor => AluOperation.Xor,
            Mnemonic.Inc => AluOperation.Inc,
            Mnemonic.Dec => AluOperation.Dec,
            Mnemonic.Not => AluOperation.Not,
            Mnemonic.Neg => AluOperation.Neg,
            _ => throw Unsupported(i, tier: 3),
        };
        ulong source = 0;
        if (i.OpCount == 2 && !TryReadOperand(i, 1, bytes, out source))
            return false;
        if (!TryLockTarget(i, bytes, out ulong hpa))
            return false;
        ulong seen = _memory.Load(hpa, bytes);
        LazyFlags flags;
        ulong result;
        do
        {
            flags = _flags;
            result = operation >= AluOperation.Inc ? ComputeUnary(operation, seen, Log(bytes), ref flags) : Compute(operation, seen, source, Log(bytes), ref flags);
        }
        while (!TrySwap(hpa, bytes, ref seen, result));
        _flags = flags;
        _linear.NoteStore(hpa);
        return true;
    }

    /// <summary>Host address of a memory operand that will be changed in one atomic step. A split lock is #AC (td-guest 1.6).</summary>
    private bool TryLockTarget(in Instruction i, int bytes, out ulong hpa)
    {
        TryAddress(i, out ulong address);
        return TryLockTarget(address, bytes, UsesStack(i), out hpa);
    }

    private bool TryLockTarget(ulong address, int bytes, bool stack, out ulong hpa)
    {
        hpa = 0;
        if ((int)(address & 63) + bytes > 64)
        {
            if (!_linear.IsCanonical(address))
                return stack ? _linear.Trap.Raise(Vector.StackFault, 0) : _linear.Trap.GeneralProtection();
            return _linear.Trap.Raise(Vector.AlignmentCheck, 0);
        }

        ref FrontSlot slot = ref _linear.Write.Slot[FrontCache.IndexOf(address)];
        if ((address & ~0xFFFUL) == slot.Tag)
        {
            hpa = address + slot.Addend;
            if (Checks.On)
                CheckHit(_linear.Write, address, hpa);
            return true;
        }

        if (!_linear.TryPrepareWrite(address, bytes, stack, AccessKind.Read | AccessKind.Write, out WriteTarget target))
            return false;
        hpa = target.Hpa;
        return true;
    }

    /// <summary>Compare-exchange of 1, 2, 4 or 8 bytes. On failure <paramref name="expected"/> is what was found.</summary>
    private bool TrySwap(ulong hpa, int bytes, ref ulong expected, ulong desired)
    {
        switch (bytes)
        {
            case 1:
            {
                byte seen = (byte)expected;
                bool won = _memory.Scalar<byte>(hpa).CompareExchange(ref seen, (byte)desired);
                expected = seen;
                return won;
            }

            case 2:
            {
                ushort seen = (ushort)expected;
                bool won = _memory.Scalar<ushort>(hpa).CompareExchange(ref seen, (ushort)desired);
                expected = seen;
                return won;
            }

            case 4:
            {
                uint seen = (uint)expected;
                bool won = _memory.Scalar<uint>(hpa).CompareExchange(ref seen, (uint)desired);
                expected = seen;
                return won;
            }

            default:
                return _memory.Scalar<ulong>(hpa).CompareExchange(ref expected, desired);
        }
    }

    // XCHG with memory is locked whether it says so or not.
    private bool Exchange(in Instruction i)
    {
        int bytes = BlockBuilder.Bytes(i, 0);
        if (i.Op0Kind == OpKind.Register && i.Op1Kind == OpKind.Register)
        {
            byte left = BlockBuilder.Reg(i.Op0Register);
            byte right = BlockBuilder.Reg(i.Op1Register);
            ulong a = GetRegister(ref File, left, Log(bytes));
            PutRegister(ref File, left, Log(bytes), GetRegister(ref File, right, Log(bytes)));
            PutRegister(ref File, right, Log(bytes), a);
            return true;
        }

        byte register = BlockBuilder.Reg(i.Op0Kind == OpKind.Register ? i.Op0Register : i.Op1Register);
        if (!TryLockTarget(i, bytes, out ulong hpa))
            return false;
        ulong value = GetRegister(ref File, register, Log(bytes));
        ulong seen = _memory.Load(hpa, bytes);
        while (!TrySwap(hpa, bytes, ref seen, value))
        {
        }

        PutRegister(ref File, register, Log(bytes), seen);
        _linear.NoteStore(hpa);
        return true;
    }

    private bool ExchangeAdd(in Instruction i, bool locked)
    {
        int bytes = BlockBuilder.Bytes(i, 0);
        byte register = BlockBuilder.Reg(i.Op1Register);
        ulong addend = GetRegister(ref File, register, Log(bytes));
        ulong seen;
        if (i.Op0Kind == OpKind.Register)
        {
            byte other = BlockBuilder.Reg(i.Op0Register);
            seen = GetRegister(ref File, other, Log(bytes));

            // With the same register twice, the sum stays.
            PutRegister(ref File, register, Log(bytes), seen);
            PutRegister(ref File, other, Log(bytes), Compute(AluOperation.Add, seen, addend, Log(bytes), ref _flags));
            return true;
        }

        if (locked)
        {
            if (!TryLockTarget(i, bytes, out ulong hpa))
                return false;
            seen = _memory.Load(hpa, bytes);
            while (!TrySwap(hpa, bytes, ref seen, Truncate(seen + addend, Log(bytes))))
            {
            }

            _linear.NoteStore(hpa);
        }
        else
        {
            TryAddress(i, out ulong address);
            if (!_linear.TryPrepareWrite(address, bytes, UsesStack(i), AccessKind.Read | AccessKind.Write, out WriteTarget target))
                return false;
            seen = _linear.Load(target);
            _linear.Store(target, seen + addend);
        }

        Compute(AluOperation.Add, seen, addend, Log(bytes), ref _flags);
        PutRegister(ref File, register, Log(bytes), seen);
        return true;
    }

    private bool CompareExchange(in Instruction i, bool locked)
    {
        int bytes = BlockBuilder.Bytes(i, 0);
        int size = Log(bytes);
        ulong desired = GetRegister(ref File, BlockBuilder.Reg(i.Op1Register), size);
        ulong expected = GetRegister(ref File, RaxOffset, size);
        ulong seen;
        if (i.Op0Kind == OpKind.Register)
        {
            byte destination = BlockBuilder.Reg(i.Op0Register);
            seen = GetRegister(ref File, destination, size);
            Compute(AluOperation.Cmp, expected, seen, size, ref _flags);
            if (seen == expected)
                PutRegister(ref File, destination, size, desired);
            else
                PutRegister(ref File, RaxOffset, size, seen);
            return true;
        }

        if (locked)
        {
            if (!TryLockTarget(i, bytes, out ulong hpa))
                return false;
            seen = expected;
            TrySwap(hpa, bytes, ref seen, desired);
            _linear.NoteStore(hpa);
        }
        else
        {
            // Write permission is needed even if the old value is written back.
            TryAddress(i, out ulong address);
            if (!_linear.TryPrepareWrite(address, bytes, UsesStack(i), AccessKind.Read | AccessKind.Write, out WriteTarget target))
                return false;
            seen = _linear.Load(target);
            _linear.Store(target, seen == expected ? desired : seen);
        }

        Compute(AluOperation.Cmp, expected, seen, size, ref _flags);
        if (seen != expected)
            PutRegister(ref File, RaxOffset, size, seen);
        return true;
    }

    private bool CompareExchangeWide(in Instruction i, bool locked)
    {
        TryAddress(i, out ulong address);
        bool stack = UsesStack(i);
        bool equal;
        if (i.Mnemonic == Mnemonic.Cmpxchg8b)
        {
            ulong expected = (Reg(Gpr.Rdx) << 32) | (uint)Reg(Gpr.Rax);
            ulong desired = (Reg(Gpr.Rcx) << 32) | (uint)Reg(Gpr.Rbx);
            ulong seen = expected;
            if (locked)
            {
                if (!TryLockTarget(address, 8, stack, out ulong hpa))
                    return false;
                TrySwap(hpa, 8, ref seen, desired);
                _linear.NoteStore(hpa);
            }
            else
            {
                if (!_linear.TryPrepareWrite(address, 8, stack, AccessKind.Read | AccessKind.Write, out WriteTarget target))
                    return false;
                seen = _linear.Load(target);
                _linear.Store(target, seen == expected ? desired : seen);
            }

            equal = seen == expected;
            if (!equal)
                (Reg(Gpr.Rax), Reg(Gpr.Rdx)) = ((uint)seen, seen >> 32);
        }
        else
        {
            if ((address & 15) != 0)
                return _linear.Trap.GeneralProtection();
            if (!TryLockTarget(address, 16, stack, out ulong hpa))
                return false;
            ulong low = Reg(Gpr.Rax);
            ulong high = Reg(Gpr.Rdx);
            equal = new AtomicPair(ref _memory.Word(hpa)).CompareExchange(ref low, ref high, Reg(Gpr.Rbx), Reg(Gpr.Rcx));
            _linear.NoteStore(hpa);
            if (!equal)
                (Reg(Gpr.Rax), Reg(Gpr.Rdx)) = (low, high);
        }

        _flags.Set((_flags.Value() & ~Rflags.Zero) | (equal ? Rflags.Zero : 0));
        return true;
    }

    // The offset is signed and may lead anywhere; the access is of operand size, at the operand that contains the bit.
    private bool BitString(in Instruction i, bool locked)
    {
        int bytes = BlockBuilder.Bytes(i, 0);
        int bits = bytes * 8;
        long offset = (long)SignExtend(GetRegister(ref File, BlockBuilder.Reg(i.Op1Register), Log(bytes)), Log(bytes));
        ulong address = EffectiveAddress(i) + (ulong)((offset >> (Log(bytes) + 3)) * bytes);
        if (i.MemoryBase.IsGPR32() || i.MemoryIndex.IsGPR32())
            address = (uint)address;
        address += SegmentBase(i.MemorySegment);
        return ChangeBit(i, address, bytes, (int)offset & (bits - 1), locked);
    }

    private bool LockedBit(in Instruction i, int bytes)
    {
        TryAddress(i, out ulong address);
        return ChangeBit(i, address, bytes, i.Immediate8 & ((bytes * 8) - 1), locked: true);
    }

    private bool ChangeBit(in Instruction i, ulong address, int bytes, int bit, bool locked)
    {
        AluOperation operation = i.Mnemonic switch
        {
            Mnemonic.Bts => AluOperation.Bts,
            Mnemonic.Btr => AluOperation.Btr,
            Mnemonic.Btc => AluOperation.Btc,
            _ => AluOperation.Bt,
        };
        LazyFlags flags = _flags;
        ulong seen;
        if (operation == AluOperation.Bt)
        {
            if (!TryReadData(address, bytes, UsesStack(i), out seen))
                return false;
            ComputeBit(operation, seen, bit, ref _flags);
            return true;
        }

        if (locked)
        {
            if (!TryLockTarget(address, bytes, UsesStack(i), out ulong hpa))
                return false;
            seen = _memory.Load(hpa, bytes);
            ulong result;
            do
            {
                flags = _flags;
                result = ComputeBit(operation, seen, bit, ref flags);
            }
            while (!TrySwap(hpa, bytes, ref seen, result));
            _linear.NoteStore(hpa);
        }
        else
        {
            if (!_linear.TryPrepareWrite(address, bytes, UsesStack(i), AccessKind.Read | AccessKind.Write, out WriteTarget target))
                return false;
            _linear.Store(target, ComputeBit(operation, _linear.Load(target), bit, ref flags));
        }

        _flags = flags;
        return true;
    }
}
