using Iced.Intel;

namespace Tdp.Cpu;

/// <content>IN, OUT, INS, OUTS: permission, then an exit before any memory is touched (td-guest 4.1).</content>
public sealed partial class GuestCpu
{
    private bool PortAccess(in Instruction i, byte length)
    {
        bool input = i.Mnemonic == Mnemonic.In;
        Register data = input ? i.Op0Register : i.Op1Register;
        OpKind portKind = input ? i.Op1Kind : i.Op0Kind;
        bool immediate = portKind != OpKind.Register;
        ushort port = immediate ? i.Immediate8 : (ushort)Reg(Gpr.Rdx);
        int bytes = data.GetSize();
        if (!MayUsePort(port, bytes))
            return false;
        return Exit(ExitReason.IoInstruction, length, PortQualification(port, bytes, input) | (immediate ? 1UL << 6 : 0));
    }

    private bool PortString(in Instruction i, ref MicroOp op)
    {
        bool input = i.Mnemonic is Mnemonic.Insb or Mnemonic.Insw or Mnemonic.Insd;
        int bytes = i.Mnemonic switch { Mnemonic.Insb or Mnemonic.Outsb => 1, Mnemonic.Insw or Mnemonic.Outsw => 2, _ => 4 };
        var port = (ushort)Reg(Gpr.Rdx);
        if (!MayUsePort(port, bytes))
            return false;
        bool repeats = i.HasRepPrefix || i.HasRepnePrefix;
        bool narrow = IsNarrowString(i);
        ulong address = Reg(input ? Gpr.Rdi : Gpr.Rsi);
        Register segment = input ? Register.ES : i.MemorySegment;
        Exit(
            ExitReason.IoInstruction,
            op.Length,
            PortQualification(port, bytes, input) | (1UL << 4) | (repeats ? 1UL << 5 : 0),
            (narrow ? 1u : 2u) << 7 | (uint)(segment - Register.ES) << 15);
        _vmcs.Exit.Gla = (narrow ? (uint)address : address) + SegmentBase(segment);
        return false;
    }

    private static ulong PortQualification(ushort port, int bytes, bool input) => ((ulong)port << 16) | (uint)(bytes - 1) | (input ? 8u : 0);

    private bool MayUsePort(ushort port, int bytes)
    {
        if (_state.Cpl <= IoPrivilege)
            return true;

        // The permission bitmap of the task state: one bit per port, and its base must leave room for one byte more.
        if (_state.Tr.Limit < 0x67)
            return _linear.Trap.GeneralProtection();
        if (!_linear.TryReadSystem(_state.Tr.Base + 0x66, 2, out ulong map))
            return false;
        ulong place = map + ((ulong)port >> 3);
        if (place + 1 > _state.Tr.Limit)
            return _linear.Trap.GeneralProtection();
        if (!_linear.TryReadSystem(_state.Tr.Base + place, 2, out ulong bits))
            return false;
        return ((bits >> (port & 7)) & ((1UL << bytes) - 1)) == 0 || _linear.Trap.GeneralProtection();
    }
}
