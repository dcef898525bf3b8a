namespace Tdp.Cpu;

/// <content>Segment registers and descriptors, as far as 64-bit mode looks at them (td-guest 1.1).</content>
public sealed partial class GuestCpu
{
    // Access rights in VMCS form are descriptor bits 55:40 with the limit's high nibble taken out.
    private const uint Accessed = 1;
    private const uint WritableOrReadable = 2;
    private const uint Conforming = 4;
    private const uint CodeSegment = 8;
    private const uint NotSystem = 0x10;
    private const uint PresentSegment = 0x80;
    private const uint LongSegment = 1 << 13;
    private const uint DefaultBig = 1 << 14;
    private const uint Unusable = 1 << 16;

    private static uint Error(ushort selector, uint external) => (uint)(selector & ~3) | external;

    private static Segment FromDescriptor(ushort selector, ulong descriptor, ulong high)
    {
        uint access = (uint)(descriptor >> 40) & 0xF0FF;
        uint limit = (uint)(descriptor & 0xFFFF) | ((uint)(descriptor >> 32) & 0xF_0000);
        if ((access & (1 << 15)) != 0)
            limit = (limit << 12) | 0xFFF;
        ulong start = ((descriptor >> 16) & 0xFF_FFFF) | ((descriptor >> 32) & 0xFF00_0000) | (high << 32);
        return new Segment { Selector = selector, Access = access, Limit = limit, Base = start };
    }

    /// <summary>Reads the descriptor of a selector that is not null. A bad one is #GP(selector).</summary>
    private bool TryReadDescriptor(ushort selector, uint external, out ulong low, bool wide, out ulong high)
    {
        low = high = 0;
        bool local = (selector & 4) != 0;
        uint offset = (uint)(selector & ~7);
        uint limit = local ? _state.Ldtr.Limit : _state.GdtrLimit;
        if (offset + (wide ? 15u : 7u) > limit || (local && (_state.Ldtr.Access & Unusable) != 0))
            return _linear.Trap.Raise(Vector.GeneralProtection, Error(selector, external));
        ulong place = (local ? _state.Ldtr.Base : _state.GdtrBase) + offset;
        return _linear.TryReadSystem(place, 8, out low) && (!wide || _linear.TryReadSystem(place + 8, 8, out high));
    }

    /// <summary>Reads a 64-bit code segment for an interrupt gate or a far transfer; DPL is for the caller to judge.</summary>
    private bool TryReadCode(ushort selector, uint external, out Segment code)
    {
        code = default;
        if ((selector & ~3) == 0)
            return _linear.Trap.Raise(Vector.GeneralProtection, external);
        if (!TryReadDescriptor(selector, external, out ulong low, wide: false, out _))
            return false;
        code = FromDescriptor(selector, low, 0);
        if ((code.Access & (NotSystem | CodeSegment)) != (NotSystem | CodeSegment) || (code.Access & (LongSegment | DefaultBig)) == (LongSegment | DefaultBig))
            return _linear.Trap.Raise(Vector.GeneralProtection, Error(selector, external));
        if ((code.Access & PresentSegment) == 0)
            return _linear.Trap.Raise(Vector.SegmentNotPresent, Error(selector, external));
        if (!code.IsLong)
            throw Unsupported("compatibility-mode code segment", $"selector 0x{selector:x}");
        code.Access |= Accessed;
        return true;
    }

    private void SetNullStackSegment(int cpl) =>
        _state.Ss = new Segment { Selector = (ushort)cpl, Access = Unusable | ((uint)cpl << 5), Limit = 0, Base = 0 };

    /// <summary>MOV Sreg and POP Sreg.</summary>
    private bool LoadSegment(Iced.Intel.Register register, ushort selector)
    {
        if (register == Iced.Intel.Register.CS)
            return _linear.Trap.Raise(Vector.InvalidOpcode);
        if (register == Iced.Intel.Register.SS)
            return LoadStackSegment(selector);
        if (!TryDataSegment(selector, out Segment segment))
            return false;
        switch (register)
        {
            case Iced.Intel.Register.DS:
                _state.Ds = segment;
                break;
            case Iced.Intel.Register.ES:
                _state.Es = segment;
                break;
            case Iced.Intel.Register.FS:
                _state.Fs = segment;
                _registers[RegisterFile.FsBase >> 3] = segment.Base;
                break;
            default:
                _state.Gs = segment;
                _registers[RegisterFile.GsBase >> 3] = segment.Base;
                break;
        }

        return true;
    }

    private bool TryDataSegment(ushort selector, out Segment segment)
    {
        segment = new Segment { Selector = selector, Access = Unusable };
        if ((selector & ~3) == 0)
            return true;
        if (!TryReadDescriptor(selector, 0, out ulong low, wide: false, out _))
            return false;
        segment = FromDescriptor(selector, low, 0);
        bool code = (segment.Access & CodeSegment) != 0;
        bool readable = !code || (segment.Access & WritableOrReadable) != 0;
        bool reachable = (code && (segment.Access & Conforming) != 0) || segment.Dpl >= Math.Max(_state.Cpl, selector & 3);
        if ((segment.Access & NotSystem) == 0 || !readable || !reachable)
            return _linear.Trap.Raise(Vector.GeneralProtection, Error(selector, 0));
        if ((segment.Access & PresentSegment) == 0)
            return _linear.Trap.Raise(Vector.SegmentNotPresent, Error(selector, 0));
        segment.Access |= Accessed;
        return true;
    }

    private bool LoadStackSegment(ushort selector)
    {
        int cpl = _state.Cpl;
        if ((selector & ~3) == 0)
        {
            // A null SS is allowed in 64-bit mode below CPL 3, if its RPL is the CPL.
            if (cpl == 3 || (selector & 3) != cpl)
                return _linear.Trap.GeneralProtection();
            SetNullStackSegment(cpl);
            return Shadowed();
        }

        if (!TryReadDescriptor(selector, 0, out ulong low, wide: false, out _))
            return false;
        Segment segment = FromDescriptor(selector, low, 0);
        if ((segment.Access & (NotSystem | CodeSegment | WritableOrReadable)) != (NotSystem | WritableOrReadable) || (selector & 3) != cpl || segment.Dpl != cpl)
            return _linear.Trap.Raise(Vector.GeneralProtection, Error(selector, 0));
        if ((segment.Access & PresentSegment) == 0)
            return _linear.Trap.Raise(Vector.StackFault, Error(selector, 0));
        segment.Access |= Accessed;
        _state.Ss = segment;
        return Shadowed();

        bool Shadowed()
        {
            // Only the first of two in a row holds interrupts off.
            _state.MovSsShadow = !_state.MovSsShadow;
            return true;
        }
    }

    /// <summary>LTR and LLDT.</summary>
    private bool LoadSystemSegment(bool task, ushort selector)
    {
        if ((selector & ~3) == 0)
        {
            if (task)
                return _linear.Trap.GeneralProtection();
            _state.Ldtr = new Segment { Selector = selector, Access = Unusable | 0x82 };
            return true;
        }

        if ((selector & 4) != 0)
            return _linear.Trap.Raise(Vector.GeneralProtection, Error(selector, 0));
        if (!TryReadDescriptor(selector, 0, out ulong low, wide: true, out ulong high))
            return false;
        Segment segment = FromDescriptor(selector, low, high & 0xFFFF_FFFF);
        if ((segment.Access & 0x1F) != (task ? 9u : 2u))
            return _linear.Trap.Raise(Vector.GeneralProtection, Error(selector, 0));
        if ((segment.Access & PresentSegment) == 0)
            return _linear.Trap.Raise(Vector.SegmentNotPresent, Error(selector, 0));
        if (!task)
        {
            _state.Ldtr = segment;
            return true;
        }

        // The descriptor becomes busy in memory.
        if (!_linear.TryPrepareSystemWrite(_state.GdtrBase + (uint)(selector & ~7), 8, out WriteTarget target))
            return false;
        _linear.Store(target, low | (2UL << 40));
        segment.Access |= 2;
        _state.Tr = segment;
        return true;
    }
}
