namespace Tdp.Cpu;

/// <content>Exceptions and interrupts: delivery through the IDT, double and triple faults, injection at entry (td-guest 1.7, 1.8, 5.3).</content>
public sealed partial class GuestCpu
{
    private const uint ExternalBit = 1;
    private const uint IdtBit = 2;
    private const int PrivilegedSoftwareException = 5;

    // The entry event, as the caller left it. Delivered even if it is an NMI while NMIs are blocked: the caller decides.
    private bool TryInject()
    {
        VmEvent injected = _vmcs.EntryEvent;
        _vmcs.EntryEvent = default;
        if (injected is { Type: VmEvent.HardwareException, Vector: Vector.PageFault })
            return TryDeliver(injected, _state.Cr2);
        return TryDeliver(injected, 0);
    }

    /// <summary>The current instruction did not complete. True when the guest goes on (in a handler), false when it is left.</summary>
    private bool HandleTrap()
    {
        Trap trap = _linear.Trap;
        _linear.Trap = default;
        _linear.CodeWritten = false;
        if (trap.Kind == TrapKind.Exception)
            return TryDeliver(ToEvent(trap), trap.Address);
        return TryConvert();
    }

    // The CPU's own conversion of an EPT violation into #VE: only if the entry allows it, no event is being delivered, and the last #VE was read (td-guest 5.3).
    private bool TryConvert()
    {
        ref VmExit exit = ref _vmcs.Exit;
        if (exit.Reason != ExitReason.EptViolation || !exit.IsConvertible || _vmcs.VeInfo is not { IsValid: false } area || _vmcs.IdtVectoring.IsValid)
            return false;
        area.Fill((uint)exit.Reason, exit.Qualification, exit.Gla, exit.Gpa, exit.InstructionLength, exit.InstructionInfo);
        return TryDeliver(VmEvent.Exception(Vector.Virtualization), 0);
    }

    private bool TryDeliverStep()
    {
        // DR6.BS; a single-step #DB is a trap, RIP is at the next instruction already.
        _state.Dr6 |= 1 << 14;
        return TryDeliver(VmEvent.Exception(Vector.Debug), 0);
    }

    private static VmEvent ToEvent(in Trap trap) =>
        trap.HasErrorCode ? VmEvent.Exception(trap.Vector, trap.ErrorCode) : VmEvent.Exception(trap.Vector);

    /// <summary>Delivers an event, and what goes wrong on the way. False: the delivery ended in an exit; the event is in <see cref="Vmcs.IdtVectoring"/>.</summary>
    private bool TryDeliver(VmEvent current, ulong address)
    {
        while (true)
        {
            if (current is { Type: VmEvent.HardwareException, Vector: Vector.PageFault })
                _state.Cr2 = address;
            if (TryEnterGate(current))
            {
                _state.StiShadow = _state.MovSsShadow = false;
                _state.Activity = ActivityState.Active;
                return true;
            }

            Trap trap = _linear.Trap;
            _linear.Trap = default;
            if (trap.Kind == TrapKind.Exit)
            {
                _vmcs.IdtVectoring = current;
                return false;
            }

            if (current is { Type: VmEvent.HardwareException, Vector: Vector.DoubleFault })
            {
                _state.Activity = ActivityState.Shutdown;
                Leave(ExitReason.TripleFault, 0, 0);
                return false;
            }

            VmEvent next = ToEvent(trap);
            current = IsDoubleFault(current, next) ? VmEvent.Exception(Vector.DoubleFault, 0) : next;
            address = trap.Address;
        }
    }

    // First contributory then contributory, or first a page fault (or #VE) then either class (td-guest 1.7).
    private static bool IsDoubleFault(in VmEvent first, in VmEvent second)
    {
        if (first.Type != VmEvent.HardwareException)
            return false;
        bool secondContributes = IsContributory(second.Vector);
        return IsPageFaultClass(first.Vector)
            ? secondContributes || IsPageFaultClass(second.Vector)
            : IsContributory(first.Vector) && secondContributes;
    }

    private static bool IsContributory(byte vector) =>
        vector is Vector.DivideError or Vector.InvalidTss or Vector.SegmentNotPresent or Vector.StackFault or Vector.GeneralProtection or Vector.ControlProtection;

    private static bool IsPageFaultClass(byte vector) => vector is Vector.PageFault or Vector.Virtualization;

    /// <summary>Reads the gate, finds the stack, pushes the frame, and only then changes the state. False with the trap set; the state is as before.</summary>
    private bool TryEnterGate(in VmEvent delivered)
    {
        ref Trap trap = ref _linear.Trap;
        bool software = delivered.Type is VmEvent.SoftwareInterrupt or VmEvent.SoftwareException or PrivilegedSoftwareException;
        uint external = software ? 0 : ExternalBit;
        uint gateError = ((uint)delivered.Vector << 3) | IdtBit | external;
        ulong place = (ulong)delivered.Vector << 4;
        if (place + 15 > _state.IdtrLimit)
            return trap.Raise(Vector.GeneralProtection, gateError);
        if (!_linear.TryReadSystem(_state.IdtrBase + place, 8, out ulong low) || !_linear.TryReadSystem(_state.IdtrBase + place + 8, 8, out ulong high))
            return false;
        int type = (int)(low >> 40) & 0x1F;
        if (type is not (0xE or 0xF))
            return trap.Raise(Vector.GeneralProtection, gateError);
        int cpl = _state.Cpl;
        if (software && delivered.Type != PrivilegedSoftwareException && ((int)(low >> 45) & 3) < cpl)
            return trap.Raise(Vector.GeneralProtection, gateError);
        if (((low >> 47) & 1) == 0)
            return trap.Raise(Vector.SegmentNotPresent, gateError);

        ulong target = (low & 0xFFFF) | ((low >> 32) & 0xFFFF_0000) | (high << 32);
        ushort selector = (ushort)(low >> 16);
        if (!TryReadCode(selector, external, out Segment code))
            return false;
        int newCpl = (code.Access & Conforming) != 0 ? cpl : code.Dpl;
        if (code.Dpl > cpl)
            return trap.Raise(Vector.GeneralProtection, Error(selector, external));
        if (!_linear.IsCanonical(target))
            return trap.Raise(Vector.GeneralProtection, external);
        if (!TryFindStack((int)(low >> 32) & 7, newCpl, cpl, external, out ulong rsp))
            return false;

        Span<ulong> frame = stackalloc ulong[6];
        int words = FillFrame(frame, delivered);
        if (!TryPushFrame(frame[..words], ref rsp, external))
            return false;

        bool changes = newCpl != cpl;
        code.Selector = (ushort)((selector & ~3) | newCpl);
        _state.Cs = code;
        if (changes)
            SetNullStackSegment(newCpl);
        Reg(Gpr.Rsp) = rsp;
        _state.Rip = target;
        _state.Rflags &= ~(Rflags.Trap | Rflags.NestedTask | Rflags.Resume | Rflags.Virtual8086 | (type == 0xE ? Rflags.Interrupt : 0));
        if (delivered.Type == VmEvent.Nmi)
            _state.NmiBlocked = true;
        if (changes)
            _linear.PrivilegeChanged();
        return true;
    }

    // From the top down: SS, RSP, RFLAGS, CS, RIP, error code.
    private int FillFrame(Span<ulong> frame, in VmEvent delivered)
    {
        bool software = delivered.Type is VmEvent.SoftwareInterrupt or VmEvent.SoftwareException or PrivilegedSoftwareException;
        bool fault = delivered.Type == VmEvent.HardwareException && delivered.Vector != Vector.Debug;
        frame[0] = _state.Ss.Selector;
        frame[1] = Reg(Gpr.Rsp);
        frame[2] = CurrentRflags() | (fault ? Rflags.Resume : 0);
        frame[3] = _state.Cs.Selector;
        frame[4] = _state.Rip + (software ? delivered.InstructionLength : 0UL);
        frame[5] = delivered.ErrorCode;
        return delivered.HasErrorCode ? 6 : 5;
    }

    private bool TryFindStack(int ist, int newCpl, int cpl, uint external, out ulong rsp)
    {
        rsp = Reg(Gpr.Rsp);
        if (ist == 0 && newCpl == cpl)
            return true;
        uint offset = ist != 0 ? 0x1Cu + ((uint)ist * 8) : 4 + ((uint)newCpl * 8);
        if (offset + 7 > _state.Tr.Limit)
            return _linear.Trap.Raise(Vector.InvalidTss, Error(_state.Tr.Selector, external));
        return _linear.TryReadSystem(_state.Tr.Base + offset, 8, out rsp);
    }

    // All words are translated before the first is written, so an interrupted delivery leaves nothing behind and can be repeated (G10).
    private bool TryPushFrame(ReadOnlySpan<ulong> frame, ref ulong rsp, uint external)
    {
        ulong top = rsp & ~0xFUL;
        Span<WriteTarget> targets = stackalloc WriteTarget[6];
        for (int i = 0; i < frame.Length; i++)
        {
            ulong address = top - ((ulong)(i + 1) * 8);
            if (!_linear.IsCanonical(address))
                return _linear.Trap.Raise(Vector.StackFault, external);
            if (!_linear.TryPrepareSystemWrite(address, 8, out targets[i]))
                return false;
        }

        for (int i = 0; i < frame.Length; i++)
            _linear.Store(targets[i], frame[i]);
        rsp = top - ((ulong)frame.Length * 8);
        return true;
    }

    /// <summary>INT n and INT3. True: RIP is at the handler. False: the trap is set.</summary>
    private bool SoftwareInterrupt(byte vector, byte type, byte length)
    {
        if (TryDeliver(new VmEvent { IsValid = true, Vector = vector, Type = type, InstructionLength = length }, 0))
        {
            _nextRip = _state.Rip;
            _entered = true;
            return true;
        }

        return _linear.Trap.Exit();
    }
}
