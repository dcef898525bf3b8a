namespace Tdp.Cpu;

/// <content>How the interpreter reaches registers and guest memory: the hit inline, everything else out of line.</content>
public sealed partial class GuestCpu
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ref ulong R64(ref byte r, byte offset) => ref Unsafe.As<byte, ulong>(ref Unsafe.AddByteOffset(ref r, (nuint)offset));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ref uint R32(ref byte r, byte offset) => ref Unsafe.As<byte, uint>(ref Unsafe.AddByteOffset(ref r, (nuint)offset));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ref ushort R16(ref byte r, byte offset) => ref Unsafe.As<byte, ushort>(ref Unsafe.AddByteOffset(ref r, (nuint)offset));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ref byte R8(ref byte r, byte offset) => ref Unsafe.AddByteOffset(ref r, (nuint)offset);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong Address(ref byte r, ref MicroOp op) => R64(ref r, op.Base) + (R64(ref r, op.Index) << op.Scale) + (ulong)op.Disp;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Hit(ref FrontSlot slots, ulong address, uint last, out ulong hpa)
    {
        ref FrontSlot slot = ref Unsafe.Add(ref slots, FrontCache.IndexOf(address));
        hpa = address + slot.Addend;
        return ((address + last) & ~0xFFFUL) == slot.Tag;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static AtomicScalar<T> Place<T>(ref byte arena, ulong hpa)
        where T : unmanaged => new(ref Unsafe.As<byte, T>(ref Unsafe.AddByteOffset(ref arena, (nuint)hpa)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryLoad<T>(ref byte r, ref MicroOp op, ref FrontSlot reads, ref byte arena, out T value)
        where T : unmanaged
    {
        ulong address = Address(ref r, ref op);
        if (!Hit(ref reads, address, (uint)Unsafe.SizeOf<T>() - 1, out ulong hpa))
            return LoadSlow(address, op.Stack != 0, out value);
        if (Checks.On)
            CheckHit(_linear.Read, address, hpa);
        value = Place<T>(ref arena, hpa).Read();
        return true;
    }

    // False also when the store is done but has changed decoded code.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryStore<T>(ref byte r, ref MicroOp op, ref FrontSlot writes, ref byte arena, T value)
        where T : unmanaged
    {
        ulong address = Address(ref r, ref op);
        if (!Hit(ref writes, address, (uint)Unsafe.SizeOf<T>() - 1, out ulong hpa))
            return StoreSlow(address, op.Stack != 0, value);
        if (Checks.On)
            CheckHit(_linear.Write, address, hpa);
        Place<T>(ref arena, hpa).Write(value);
        return true;
    }

    // A read-modify-write without LOCK is a load and a store of one translation: nobody else's step lies between them for this CPU, anybody's for others.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryBeginRmw<T>(ref byte r, ref MicroOp op, ref FrontSlot writes, ref byte arena, out T value, out ulong hpa)
        where T : unmanaged
    {
        ulong address = Address(ref r, ref op);
        if (!Hit(ref writes, address, (uint)Unsafe.SizeOf<T>() - 1, out hpa))
        {
            hpa = ulong.MaxValue;
            return BeginRmwSlow(address, op.Stack != 0, out value);
        }

        if (Checks.On)
            CheckHit(_linear.Write, address, hpa);
        value = Place<T>(ref arena, hpa).Read();
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool EndRmw<T>(ref byte arena, ulong hpa, T value)
        where T : unmanaged
    {
        if (hpa == ulong.MaxValue)
            return EndRmwSlow(value);
        Place<T>(ref arena, hpa).Write(value);
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryPush(ref byte r, ref FrontSlot writes, ref byte arena, ulong value)
    {
        ulong address = R64(ref r, RspOffset) - 8;
        if (!Hit(ref writes, address, 7, out ulong hpa))
            return PushSlow(address, value);
        if (Checks.On)
            CheckHit(_linear.Write, address, hpa);
        Place<ulong>(ref arena, hpa).Write(value);
        R64(ref r, RspOffset) = address;
        return true;
    }

    /// <summary>Reads the word at <paramref name="from"/> and moves RSP behind it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryPop(ref byte r, ref FrontSlot reads, ref byte arena, byte from, out ulong value)
    {
        ulong address = R64(ref r, from);
        if (Hit(ref reads, address, 7, out ulong hpa))
        {
            if (Checks.On)
                CheckHit(_linear.Read, address, hpa);
            value = Place<ulong>(ref arena, hpa).Read();
        }
        else if (!_linear.TryRead(address, 8, stack: true, out value))
        {
            return false;
        }

        R64(ref r, RspOffset) = address + 8;
        return true;
    }

    // The target is checked before RSP moves: a return to a non-canonical address faults with everything as it was.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryReturn(ref byte r, ref MicroOp op, ref FrontSlot reads, ref byte arena, out ulong rip)
    {
        ulong rsp = R64(ref r, RspOffset);
        if (!TryPop(ref r, ref reads, ref arena, RspOffset, out rip))
            return false;
        if (!IsTarget(rip))
        {
            R64(ref r, RspOffset) = rsp;
            return false;
        }

        R64(ref r, RspOffset) += op.Imm;
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void CheckHit(FrontCache cache, ulong address, ulong hpa)
    {
        uint filled = cache.Generation[FrontCache.IndexOf(address)];
        if (_memory.Record(hpa >> 12).Generation != filled)
            _linear.ReportStale(address, hpa, filled);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool LoadSlow<T>(ulong address, bool stack, out T value)
        where T : unmanaged
    {
        bool done = _linear.TryRead(address, Unsafe.SizeOf<T>(), stack, out ulong wide);
        value = Unsafe.As<ulong, T>(ref wide);
        return done;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool StoreSlow<T>(ulong address, bool stack, T value)
        where T : unmanaged
    {
        ulong wide = 0;
        Unsafe.As<ulong, T>(ref wide) = value;
        return _linear.TryWrite(address, Unsafe.SizeOf<T>(), stack, wide) && !_linear.CodeWritten;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool BeginRmwSlow<T>(ulong address, bool stack, out T value)
        where T : unmanaged
    {
        ulong wide = 0;
        bool done = _linear.TryPrepareWrite(address, Unsafe.SizeOf<T>(), stack, AccessKind.Read | AccessKind.Write, out _rmwTarget);
        if (done)
            wide = _linear.Load(_rmwTarget);
        value = Unsafe.As<ulong, T>(ref wide);
        return done;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool EndRmwSlow<T>(T value)
        where T : unmanaged
    {
        ulong wide = 0;
        Unsafe.As<ulong, T>(ref wide) = value;
        _linear.Store(_rmwTarget, wide);
        return !_linear.CodeWritten;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool PushSlow(ulong address, ulong value)
    {
        if (!_linear.TryWrite(address, 8, stack: true, value))
            return false;
        _registers[(int)Gpr.Rsp] = address;
        return !_linear.CodeWritten;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool IsTarget(ulong rip) => _linear.IsCanonical(rip) || _linear.Trap.GeneralProtection();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Charge(ulong instructions)
    {
        _state.Retired += instructions;
        _lp.Spend(instructions);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void RaiseUndefined(byte vector)
    {
        if (vector == Vector.GeneralProtection)
            _linear.Trap.GeneralProtection();
        else
            _linear.Trap.Raise(vector);
    }
}
