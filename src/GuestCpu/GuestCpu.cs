namespace Tdp.Cpu;

/// <summary>
/// The x86-64 processor in non-root mode, for one vCPU: decodes with Iced, executes guest memory's bytes, walks the guest's page tables through the EPT,
/// delivers exceptions, and returns exits (td-guest 1-5; decisions D10).
/// </summary>
/// <remarks>
/// <para>Make one per vCPU and use it for that vCPU only; it may move from processor to processor. All members run on the thread that runs the vCPU.</para>
/// <para>Between two calls of <see cref="Enter"/> the vCPU's whole state is in its VMCS, so others may change it. In here the general registers live in
/// the interpreter's register file and the arithmetic flags in their lazy form; both are put back on every way out.</para>
/// </remarks>
public sealed partial class GuestCpu : IVmxEngine
{
    private readonly Machine _machine;
    private readonly PhysicalMemory _memory;
    private readonly GuestCpuOptions _options;
    private readonly LinearMemory _linear;
    private readonly BlockBuilder _builder;
    private readonly Dictionary<ulong, CodeBlock> _blocks = [];
    private SeedStream? _random;
    private readonly JumpSlot[] _jumps = new JumpSlot[JumpSlots];
    private LogicalProcessor _lp = null!;
    private Vmcs _vmcs = null!;
    private GuestState _state = null!;
    private RegisterFile _registers;
    private LazyFlags _flags;
    private WriteTarget _rmwTarget;
    private ulong _nextRip;

    private ulong _sliceEnd;

    // INT n went through its gate, which cleared TF: no single-step trap for it.
    private bool _entered;

    // 1 while a repeated string instruction stops between two elements: it will retire later.
    private ulong _notRetired;

    /// <summary>Makes the processor of one vCPU.</summary>
    /// <param name="machine">The machine whose memory it reaches.</param>
    /// <param name="options">Implementation choices; null for the defaults.</param>
    public GuestCpu(Machine machine, GuestCpuOptions? options = null)
    {
        _machine = machine;
        _memory = machine.Memory;
        _options = options ?? new GuestCpuOptions();
        _linear = new LinearMemory(machine, _options);
        _builder = new BlockBuilder(machine.Memory);
    }

    /// <summary>Blocks decoded so far, for reports.</summary>
    public ulong BlocksDecoded { get; private set; }

    /// <summary>
    /// Delivers the entry event, if any, and runs the vCPU until an exit, a kick or an interrupt. RIP is then at the instruction that exited; interrupted
    /// event delivery is in <see cref="Vmcs.IdtVectoring"/>, and it is the caller's to inject again.
    /// </summary>
    /// <param name="lp">The processor it runs on; nobody else uses it meanwhile.</param>
    /// <param name="vmcs">The vCPU; always the same one for one object.</param>
    /// <returns>The exit, which is also in <see cref="Vmcs.Exit"/>.</returns>
    /// <exception cref="UnsupportedGuestInstructionException">The guest uses an instruction that this CPU does not have.</exception>
    /// <exception cref="InvalidOperationException">The state cannot run: shut down, waiting to be started, or not in 64-bit mode.</exception>
    public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
    {
        _lp = lp;
        _vmcs = vmcs;
        _state = vmcs.State;
        CheckRunnable();
        _linear.Bind(lp, vmcs);
        _linear.Trap = default;
        LoadRegisters();
        _sliceEnd = _options.SliceInstructions == 0 ? ulong.MaxValue : _state.Retired + _options.SliceInstructions;
        vmcs.IdtVectoring = default;
        Run();
        StoreRegisters();
        return ref vmcs.Exit;
    }

    private void Run()
    {
        if (_vmcs.EntryEvent.IsValid && !TryInject())
            return;
        while (!LeaveForEvent())
        {
            // The instruction after STI or MOV SS, and every one under TF, runs alone.
            bool shadow = _state.StiShadow || _state.MovSsShadow;
            bool step = (_state.Rflags & Rflags.Trap) != 0;
            _entered = false;
            if (FindBlock(_state.Rip, shadow || step ? 1 : CodeBlock.MaxInstructions) is { } block)
            {
                // RF lasts until one instruction has completed; a fault sets it again in what it pushes.
                _state.Rflags &= ~Rflags.Resume;
                Execute(block, shadow || step ? 0 : _sliceEnd - _state.Retired);
            }

            if (_linear.Trap.Kind != TrapKind.None)
            {
                if (!HandleTrap())
                    return;
                continue;
            }

            if (shadow)
                _state.StiShadow = _state.MovSsShadow = false;
            if (step && !_entered && !TryDeliverStep())
                return;
        }
    }

    // True when the guest must be left before its next instruction. Order of recognition: td-guest 1.8.
    private bool LeaveForEvent()
    {
        if (_lp.ShouldExit)
        {
            if (_lp.PendingNmi.Read())
                Leave(ExitReason.ExceptionOrNmi, 0, 0, InterruptInfo(Vector.NonMaskable, VmEvent.Nmi));
            else if (_lp.PendingInterrupt.Read() is >= 0 and var vector)
                Leave(ExitReason.ExternalInterrupt, 0, 0, InterruptInfo((uint)vector, VmEvent.External));
            else
                Leave(ExitReason.ExternalInterrupt, 0, 0);
            return true;
        }

        if (_state.Retired >= _sliceEnd)
        {
            Leave(ExitReason.ExternalInterrupt, 0, 0);
            return true;
        }

        if (_state.StiShadow || _state.MovSsShadow)
            return false;
        if (_vmcs.NmiWindowExiting && !_state.NmiBlocked)
        {
            Leave(ExitReason.NmiWindow, 0, 0);
            return true;
        }

        bool held = _vmcs.HoldInterruptsWhileVeValid && _vmcs.VeInfo is { IsValid: true };
        if (_vmcs.InterruptWindowExiting && (_state.Rflags & Rflags.Interrupt) != 0 && !held)
        {
            Leave(ExitReason.InterruptWindow, 0, 0);
            return true;
        }

        if (_state.Activity != ActivityState.Halted)
            return false;

        // Halted with nothing to wake it: as if a host interrupt had come, so that the host can wait for a reason.
        Leave(ExitReason.ExternalInterrupt, 0, 0);
        return true;
    }

    private static uint InterruptInfo(uint vector, int type) => vector | ((uint)type << 8) | (1u << 31);

    private void Leave(ExitReason reason, ulong qualification, uint length, uint interruptInfo = 0, uint instructionInfo = 0) => _vmcs.Exit = new VmExit
    {
        Reason = reason,
        Qualification = qualification,
        InstructionLength = length,
        InterruptInfo = interruptInfo,
        InstructionInfo = instructionInfo,
    };

    private void CheckRunnable()
    {
        if (_state.Activity is ActivityState.Shutdown or ActivityState.WaitForSipi)
            throw new InvalidOperationException($"vCPU {_vmcs.VcpuId} cannot be entered: its activity state is {_state.Activity}");
        if ((_state.Efer & Efer.LongModeActive) == 0 || (_state.Cr0 & Cr0.Paging) == 0 || !_state.Cs.IsLong)
            throw new InvalidOperationException($"vCPU {_vmcs.VcpuId} is not in 64-bit mode (EFER 0x{_state.Efer:x}, CR0 0x{_state.Cr0:x}, CS access 0x{_state.Cs.Access:x}); other modes are instruction tier 3");
    }

    private void LoadRegisters()
    {
        Unsafe.As<RegisterFile, GprFile>(ref _registers) = _state.Gpr;
        _registers[RegisterFile.Zero >> 3] = 0;
        _registers[RegisterFile.FsBase >> 3] = _state.Fs.Base;
        _registers[RegisterFile.GsBase >> 3] = _state.Gs.Base;
        _flags.Set(_state.Rflags);
    }

    private void StoreRegisters()
    {
        _state.Gpr = Unsafe.As<RegisterFile, GprFile>(ref _registers);
        _state.Rflags = CurrentRflags();
    }

    private ulong CurrentRflags() => (_state.Rflags & ~Rflags.Arithmetic) | _flags.Value() | Rflags.Fixed;

    private void SetRflags(ulong value)
    {
        _state.Rflags = value | Rflags.Fixed;
        _flags.Set(value);
    }

    private ref ulong Reg(Gpr register) => ref _registers[(int)register];
}
