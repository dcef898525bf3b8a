namespace Tdp.Harness.Scenarios;

/// <summary>
/// The guest side of a stress run: performs the steps of one vCPU behind the VMX engine's interface, without instructions. It accepts what is pending, skips what has become MMIO, and checks what
/// it reads: a page holds zeros or what a vCPU wrote to this very page through this very alias. Anything else means that memory changed hands under a translation.
/// </summary>
/// <remarks>Used by the vCPU's own actor only. An access moves RIP by one, a call when the module completes it; a step that faulted is done again at the same RIP.</remarks>
public sealed class StressGuest : IVmxEngine
{
    private const ulong LeafVmcall = 0;
    private const ulong LeafVeInfoGet = 3;
    private const ulong LeafPageAccept = 6;
    private const ulong SubfunctionMapGpa = 0x10001;
    private const ulong StatusClass = 0xFFFF_FFFF_0000_0000;
    private const ulong PageAlreadyAccepted = 0x0000_0B0A_0000_0000;
    private const ulong OperandBusy = 0x8000_0200_0000_0000;
    private const ulong MapGpaRetry = 1;

    private readonly Machine _machine;
    private readonly StressLayout _layout;
    private readonly int _vcpu;
    private IReadOnlyList<StressOp> _ops = [];
    private int _op;
    private int _offset;
    private bool _mapped;
    private ulong _mapFrom;
    private ulong _mapEnd;
    private Call _call;
    private ulong _callRip;
    private ulong _acceptGpa;
    private uint _counter;

    /// <summary>Makes the guest side of one vCPU.</summary>
    public StressGuest(Machine machine, StressLayout layout, int vcpu)
    {
        _machine = machine;
        _layout = layout;
        _vcpu = vcpu;
    }

    private enum Call : byte
    {
        None,
        VeInfo,
        Accept,
        MapGpa,
    }

    /// <summary>True when every loaded step has been performed.</summary>
    public bool IsDone => _op >= _ops.Count;

    /// <summary>Pages read or written.</summary>
    public long Accesses { get; private set; }

    /// <summary>Pages accepted, without those that another vCPU had accepted already.</summary>
    public long Accepts { get; private set; }

    /// <summary>MapGPA calls that succeeded.</summary>
    public long Conversions { get; private set; }

    /// <summary>#VEs taken.</summary>
    public long VirtualizationExceptions { get; private set; }

    /// <summary>Accesses skipped because no slot backed the shared page any more.</summary>
    public long MmioSkips { get; private set; }

    /// <summary>Gives the vCPU its next steps. Only while it is outside and <see cref="IsDone"/>.</summary>
    public void Load(IReadOnlyList<StressOp> ops)
    {
        _ops = ops;
        _op = 0;
        Begin();
    }

    /// <inheritdoc/>
    public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
    {
        ArgumentNullException.ThrowIfNull(lp);
        ArgumentNullException.ThrowIfNull(vmcs);
        while (true)
        {
            if (vmcs.EntryEvent.IsValid)
            {
                Deliver(vmcs);
            }

            if (lp.ShouldExit)
            {
                return ref Leave(vmcs, ExitReason.ExternalInterrupt);
            }

            if (_call is not Call.None)
            {
                if (vmcs.State.Rip != _callRip + 1)
                {
                    return ref Repeat(vmcs);
                }

                Complete(vmcs);
                continue;
            }

            if (IsDone)
            {
                return ref Leave(vmcs, ExitReason.SimulatorScriptEnd);
            }

            if (_mapFrom < _mapEnd)
            {
                Issue(vmcs, Call.MapGpa);
                return ref Repeat(vmcs);
            }

            if (!TryAccess(lp, vmcs))
            {
                return ref vmcs.Exit;
            }
        }
    }

    private static ref VmExit Leave(Vmcs vmcs, ExitReason reason)
    {
        vmcs.Exit = new VmExit { Reason = reason, InstructionLength = 1 };
        return ref vmcs.Exit;
    }

    // Zero, or a mark of this page and alias; the rest of the mark says who wrote and when.
    private static ulong Mark(ulong gfn, Alias alias) => ((ulong)alias << 63) | ((gfn & 0x7FFF_FFFF) << 32);

    private void Begin()
    {
        _offset = 0;
        _mapped = false;
        _mapFrom = _mapEnd = 0;
        if (IsDone)
        {
            return;
        }

        StressOp op = _ops[_op];
        if (op.Step is StressStep.MapShared or StressStep.MapPrivate)
        {
            // Conversions stay inside the main slot: only it can hold both kinds.
            _mapFrom = (_layout.First + (ulong)op.Page).Value << 12;
            _mapEnd = _mapFrom + ((ulong)op.Count << 12);
            _mapped = true;
        }
    }

    private void Next()
    {
        _offset++;
        if (_mapped || _offset >= _ops[_op].Count)
        {
            _op++;
            Begin();
        }
    }

    // False when the access left the guest.
    private bool TryAccess(LogicalProcessor lp, Vmcs vmcs)
    {
        StressOp op = _ops[_op];
        Alias alias = op.Step is StressStep.WriteShared or StressStep.ReadShared or StressStep.MapShared ? Alias.Shared : Alias.Private;
        bool write = op.Step is not (StressStep.ReadPrivate or StressStep.ReadShared);
        Gfn gfn = _mapped ? _layout.First + (ulong)op.Page : _layout.FrameOf(op.Page + _offset, alias);
        ulong gpa = (gfn.Value << 12) | (alias is Alias.Shared ? vmcs.AliasBit.GpaMask : 0) | ((ulong)(uint)(_vcpu & 0x1FF) << 3);
        if (!GuestPhysical.TryTranslate(_machine, lp, vmcs, gpa, write ? AccessKind.Write : AccessKind.Read, out ulong hpa))
        {
            GuestPhysical.DescribeLinear(vmcs, gpa, isPageTable: false);
            return TryConvert(vmcs);
        }

        AtomicScalar<ulong> word = _machine.Memory.Scalar<ulong>(hpa);
        ulong found = word.Read();
        if (found != 0 && (found & StatusClass) != Mark(gfn.Value, alias))
        {
            ReportForeign(gfn, alias, found, hpa);
        }

        if (write)
        {
            word.Write(Mark(gfn.Value, alias) | ((ulong)(uint)(_vcpu + 1) << 24) | (++_counter & 0xFF_FFFF));
        }

        vmcs.State.Rip++;
        vmcs.State.Retired++;
        lp.Spend(1);
        Accesses++;
        Next();
        return true;
    }

    // The CPU's own conversion of a shared violation to #VE.
    private static bool TryConvert(Vmcs vmcs)
    {
        ref VmExit exit = ref vmcs.Exit;
        if (exit.Reason is not ExitReason.EptViolation || !exit.IsConvertible || vmcs.VeInfo is not { IsValid: false } area || vmcs.AliasBit.Of(new Gpa(exit.Gpa)) is not Alias.Shared)
        {
            return false;
        }

        area.Fill((uint)exit.Reason, exit.Qualification, exit.Gla, exit.Gpa, 0xCC, 0);
        vmcs.EntryEvent = VmEvent.Exception(20);
        return true;
    }

    private void Deliver(Vmcs vmcs)
    {
        VmEvent delivered = vmcs.EntryEvent;
        vmcs.EntryEvent = default;
        if (delivered is { Vector: 20, Type: VmEvent.HardwareException })
        {
            VirtualizationExceptions++;
            Issue(vmcs, Call.VeInfo);
        }
        else
        {
            _machine.Findings.Add("I81", $"vCPU {_vcpu} got vector {delivered.Vector} (error code 0x{delivered.ErrorCode:x}) while doing {(IsDone ? "nothing" : _ops[_op].ToString())}");
            _call = Call.None;
            if (!IsDone)
            {
                Next();
            }
        }
    }

    private void Issue(Vmcs vmcs, Call call)
    {
        _call = call;
        _callRip = vmcs.State.Rip;
    }

    // Executes the TDCALL, the first time or again after an exit that did not complete it.
    private ref VmExit Repeat(Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        switch (_call)
        {
            case Call.VeInfo:
                state[Gpr.Rax] = LeafVeInfoGet;
                break;
            case Call.Accept:
                state[Gpr.Rax] = LeafPageAccept;
                state[Gpr.Rcx] = _acceptGpa;
                break;
            default:
                StressOp op = _ops[_op];
                state[Gpr.Rax] = LeafVmcall;
                state[Gpr.Rcx] = 0xFC00;
                state[Gpr.R10] = 0;
                state[Gpr.R11] = SubfunctionMapGpa;
                state[Gpr.R12] = _mapFrom | (op.Step is StressStep.MapShared ? vmcs.AliasBit.GpaMask : 0);
                state[Gpr.R13] = _mapEnd - _mapFrom;
                break;
        }

        return ref Leave(vmcs, ExitReason.Tdcall);
    }

    private void Complete(Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        Call call = _call;
        _call = Call.None;
        ulong status = state[Gpr.Rax];
        switch (call)
        {
            case Call.VeInfo when status == 0 && state[Gpr.Rcx] == (uint)ExitReason.EptViolation:
                ulong gpa = state[Gpr.R9];
                if (vmcs.AliasBit.Of(new Gpa(gpa)) is Alias.Shared)
                {
                    MmioSkips++;
                    Next();
                    return;
                }

                _acceptGpa = gpa & ~0xFFFUL;
                Issue(vmcs, Call.Accept);
                return;
            case Call.VeInfo:
                _machine.Findings.Add("I81", $"vCPU {_vcpu}: VEINFO.GET answered 0x{status:x}, reason {state[Gpr.Rcx]}");
                Next();
                return;
            case Call.Accept when status == 0:
                Accepts++;
                return;
            case Call.Accept when (status & StatusClass) is PageAlreadyAccepted:
                return;
            case Call.Accept when (status & StatusClass) is OperandBusy:
                Issue(vmcs, Call.Accept);
                return;
            case Call.Accept:
                _machine.Findings.Add("I81", $"vCPU {_vcpu}: ACCEPT of GPA 0x{_acceptGpa:x} answered 0x{status:x}");
                Next();
                return;
            default:
                CompleteMapGpa(vmcs, status);
                return;
        }
    }

    private void CompleteMapGpa(Vmcs vmcs, ulong status)
    {
        GuestState state = vmcs.State;
        ulong result = state[Gpr.R10];
        ulong next = state[Gpr.R11] & ~vmcs.AliasBit.GpaMask;
        if (status == 0 && result == 0)
        {
            Conversions++;
            _mapFrom = _mapEnd;
        }
        else if (status == 0 && result == MapGpaRetry && next >= _mapFrom && next < _mapEnd)
        {
            _mapFrom = next;
        }
        else
        {
            _machine.Findings.Add("I81", $"vCPU {_vcpu}: MapGPA of 0x{_mapFrom:x}..0x{_mapEnd:x} answered RAX 0x{status:x}, R10 0x{result:x}, R11 0x{next:x}");
            _op++;
            Begin();
        }
    }

    private void ReportForeign(Gfn gfn, Alias alias, ulong found, ulong hpa)
    {
        FrameRecord record = _machine.Memory.Record(hpa >> 12);
        _machine.Findings.Add("I82", $"vCPU {_vcpu} found 0x{found:x} on the {alias} page of gfn {gfn} (frame 0x{hpa >> 12:x}, {record.Use}): neither zeros nor a mark of that page");
    }
}
