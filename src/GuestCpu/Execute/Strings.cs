using System.Runtime.InteropServices;
using Iced.Intel;

namespace Tdp.Cpu;

/// <content>
/// String instructions. After each element the registers say how far it is, so a fault or an exit in the middle resumes at the same element (td-guest 1.9; G05).
/// </content>
public sealed partial class GuestCpu
{
    // Events are looked at again after this many bytes.
    private const ulong StringSlice = 4096;

    private bool StringInstruction(in Instruction i, ref MicroOp op)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Movsb or Mnemonic.Stosb or Mnemonic.Lodsb or Mnemonic.Scasb or Mnemonic.Cmpsb:
                return Repeat(i, 1);
            case Mnemonic.Movsw or Mnemonic.Stosw or Mnemonic.Lodsw or Mnemonic.Scasw or Mnemonic.Cmpsw:
                return Repeat(i, 2);
            case Mnemonic.Movsd or Mnemonic.Stosd or Mnemonic.Lodsd or Mnemonic.Scasd or Mnemonic.Cmpsd:
                return Repeat(i, 4);
            case Mnemonic.Movsq or Mnemonic.Stosq or Mnemonic.Lodsq or Mnemonic.Scasq or Mnemonic.Cmpsq:
                return Repeat(i, 8);
            default:
                return PortString(i, ref op);
        }
    }

    private bool Repeat(in Instruction i, int bytes)
    {
        bool narrow = IsNarrowString(i);
        if (!i.HasRepPrefix && !i.HasRepnePrefix)
            return OneElement(i, bytes, narrow, out _);
        ulong mask = narrow ? uint.MaxValue : ulong.MaxValue;
        ulong budget = StringSlice / (ulong)bytes;
        while ((Reg(Gpr.Rcx) & mask) != 0)
        {
            if (budget == 0)
            {
                // Not finished: the instruction starts again, with what is left, after events were looked at.
                _nextRip = _state.Rip;
                _notRetired = 1;
                return true;
            }

            ulong run = narrow ? 0 : FastRun(i, bytes, Math.Min(Reg(Gpr.Rcx), budget));
            if (_linear.Trap.Kind != TrapKind.None)
                return false;
            if (run != 0)
            {
                Reg(Gpr.Rcx) -= run;
                budget -= run;
                continue;
            }

            if (!OneElement(i, bytes, narrow, out bool ended))
                return false;
            Reg(Gpr.Rcx) = narrow ? (uint)(Reg(Gpr.Rcx) - 1) : Reg(Gpr.Rcx) - 1;
            budget--;
            if (ended)
                return true;
        }

        return true;
    }

    private static bool IsNarrowString(in Instruction i)
    {
        for (int operand = 0; operand < i.OpCount; operand++)
        {
            if (i.GetOpKind(operand) is OpKind.MemoryESEDI or OpKind.MemorySegESI)
                return true;
        }

        return false;
    }

    private bool OneElement(in Instruction i, int bytes, bool narrow, out bool ended)
    {
        ended = false;
        ulong mask = narrow ? uint.MaxValue : ulong.MaxValue;
        ulong step = (_state.Rflags & Rflags.Direction) != 0 ? 0UL - (ulong)bytes : (ulong)bytes;
        ulong to = Reg(Gpr.Rdi) & mask;
        ulong from = Reg(Gpr.Rsi) & mask;
        ulong source = from + SegmentBase(i.MemorySegment);
        ulong value;
        ulong other;
        switch (Family(i.Mnemonic))
        {
            case Mnemonic.Movsb:
                if (!TryReadData(source, bytes, stack: false, out value) || !TryWriteData(to, bytes, stack: false, value))
                    return false;
                Advance(Gpr.Rsi, from + step, narrow);
                Advance(Gpr.Rdi, to + step, narrow);
                return true;
            case Mnemonic.Stosb:
                if (!TryWriteData(to, bytes, stack: false, Reg(Gpr.Rax)))
                    return false;
                Advance(Gpr.Rdi, to + step, narrow);
                return true;
            case Mnemonic.Lodsb:
                if (!TryReadData(source, bytes, stack: false, out value))
                    return false;
                PutRegister(ref File, RaxOffset, Log(bytes), value);
                Advance(Gpr.Rsi, from + step, narrow);
                return true;
            case Mnemonic.Scasb:
                if (!TryReadData(to, bytes, stack: false, out value))
                    return false;
                Compute(AluOperation.Cmp, GetRegister(ref File, RaxOffset, Log(bytes)), value, Log(bytes), ref _flags);
                Advance(Gpr.Rdi, to + step, narrow);
                break;
            default:
                if (!TryReadData(source, bytes, stack: false, out value) || !TryReadData(to, bytes, stack: false, out other))
                    return false;
                Compute(AluOperation.Cmp, value, other, Log(bytes), ref _flags);
                Advance(Gpr.Rsi, from + step, narrow);
                Advance(Gpr.Rdi, to + step, narrow);
                break;
        }

        ended = i.HasRepnePrefix ? _flags.Zero : i.HasRepPrefix && !_flags.Zero;
        return true;
    }

    private void Advance(Gpr register, ulong value, bool narrow) => Reg(register) = narrow ? (uint)value : value;

    private static Mnemonic Family(Mnemonic mnemonic) => mnemonic switch
    {
        Mnemonic.Movsb or Mnemonic.Movsw or Mnemonic.Movsd or Mnemonic.Movsq => Mnemonic.Movsb,
        Mnemonic.Stosb or Mnemonic.Stosw or Mnemonic.Stosd or Mnemonic.Stosq => Mnemonic.Stosb,
        Mnemonic.Lodsb or Mnemonic.Lodsw or Mnemonic.Lodsd or Mnemonic.Lodsq => Mnemonic.Lodsb,
        Mnemonic.Scasb or Mnemonic.Scasw or Mnemonic.Scasd or Mnemonic.Scasq => Mnemonic.Scasb,
        _ => Mnemonic.Cmpsb,
    };

    /// <summary>
    /// Elements of REP MOVS or REP STOS that lie within one page on each side, moved at once; 0 when this element needs care. Only forwards, and never
    /// where the destination would be read again as source.
    /// </summary>
    private ulong FastRun(in Instruction i, int bytes, ulong limit)
    {
        Mnemonic family = Family(i.Mnemonic);
        if (family is not (Mnemonic.Movsb or Mnemonic.Stosb) || (_state.Rflags & Rflags.Direction) != 0 || !_linear.MayCache)
            return 0;
        ulong to = Reg(Gpr.Rdi);
        ulong room = Math.Min(limit, (0x1000 - (to & 0xFFF)) / (ulong)bytes);
        ulong source = 0;
        if (family == Mnemonic.Movsb)
        {
            source = Reg(Gpr.Rsi) + SegmentBase(i.MemorySegment);
            room = Math.Min(room, (0x1000 - (source & 0xFFF)) / (ulong)bytes);
        }

        if (room < 2)
            return 0;
        int length = (int)room * bytes;
        ulong from = 0;
        if (family == Mnemonic.Movsb && !TryReach(source, AccessKind.Read, out from))
            return 0;
        if (!TryReach(to, AccessKind.Write, out ulong hpa))
            return 0;
        if (family == Mnemonic.Movsb)
        {
            if (hpa > from && hpa < from + (ulong)length)
                return 0;
            Bytes(from, length).CopyTo(Bytes(hpa, length));
            Reg(Gpr.Rsi) += (ulong)length;
        }
        else
        {
            Fill(Bytes(hpa, length), bytes, Reg(Gpr.Rax));
        }

        Reg(Gpr.Rdi) += (ulong)length;
        _linear.NoteStore(hpa);
        return room;
    }

    // Only what the front cache or one ordinary translation gives; the trap says why not.
    private bool TryReach(ulong address, AccessKind access, out ulong hpa)
    {
        FrontCache cache = access == AccessKind.Read ? _linear.Read : _linear.Write;
        ref FrontSlot slot = ref cache.Slot[FrontCache.IndexOf(address)];
        if ((address & ~0xFFFUL) == slot.Tag)
        {
            hpa = address + slot.Addend;
            if (Checks.On)
                CheckHit(cache, address, hpa);
            return true;
        }

        if (access == AccessKind.Write)
        {
            bool done = _linear.TryPrepareWrite(address, 1, stack: false, AccessKind.Write, out WriteTarget target);
            hpa = target.Hpa;
            return done;
        }

        hpa = 0;
        if (!_linear.TryRead(address, 1, stack: false, out _) || (address & ~0xFFFUL) != slot.Tag)
            return false;
        hpa = address + slot.Addend;
        return true;
    }

    private Span<byte> Bytes(ulong hpa, int length) => _memory.Frame(new Hpa(hpa & ~0xFFFUL)).Slice((int)(hpa & 0xFFF), length);

    private static void Fill(Span<byte> bytes, int size, ulong value)
    {
        switch (size)
        {
            case 1:
                bytes.Fill((byte)value);
                break;
            case 2:
                MemoryMarshal.Cast<byte, ushort>(bytes).Fill((ushort)value);
                break;
            case 4:
                MemoryMarshal.Cast<byte, uint>(bytes).Fill((uint)value);
                break;
            default:
                MemoryMarshal.Cast<byte, ulong>(bytes).Fill(value);
                break;
        }
    }
}
