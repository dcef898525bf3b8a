namespace Tdp.Harness.Scenarios;

/// <summary>
/// The guest side of one vCPU of a scenario: performs one guest step at a time behind the VMX engine's interface, without instructions. A page that it touches holds zeros or a mark of that very
/// page and alias; anything else means that memory changed hands under a translation (I82).
/// </summary>
/// <remarks>Used by the vCPU's own actor only. RIP counts accesses and completed calls, so whoever emulates an exit advances it as usual.</remarks>
internal sealed class ScenarioGuest : IVmxEngine
{
    private const ulong SubfunctionMapGpa = 0x10001;
    private const ulong StatusClass = 0xFFFF_FFFF_0000_0000;
    private const ulong MapGpaRetry = 1;

    private readonly Machine _machine;
    private readonly Func<bool> _othersHaveEnded;
    private readonly Action _isInside;
    private readonly Actor _actor;
    private readonly int _vcpu;
    private readonly ObjectId _busy;
    private ScenarioStep? _step;
    private ulong _offset;
    private ulong _size;
    private Call _call;
    private ulong _callRip;
    private ulong _acceptGpa;
    private ulong _mapFrom;
    private uint _writes;
    private ulong[] _operands = [0, 0, 0, 0];

    public ScenarioGuest(Machine machine, Actor actor, int vcpu, Func<bool> othersHaveEnded, Action isInside)
    {
        _isInside = isInside;
        _machine = machine;
        _actor = actor;
        _vcpu = vcpu;
        _othersHaveEnded = othersHaveEnded;
        _busy = ObjectId.Cell("accept-busy", (ulong)vcpu);
    }

    private enum Call : byte
    {
        None,
        VeInfo,
        AcceptOfTouch,
        Accept,
        MapGpa,
        Any,
    }

    /// <summary>True when there is nothing left to do; then <see cref="Result"/> says how it ended.</summary>
    public bool IsDone => _step is null;

    /// <summary>How the step ended.</summary>
    public StepResult Result { get; private set; }

    /// <summary>Gives the guest its next step.</summary>
    /// <param name="step">A guest step.</param>
    /// <param name="operands">RCX, RDX, R8 and R9 of a TDCALL.</param>
    public void Load(ScenarioStep step, ulong[] operands)
    {
        _step = step;
        _offset = 0;
        _size = step.Kind is StepKind.Accept && step.Level == Level.M2 ? Level.M2.Pages : 1;
        _mapFrom = step.Range.Start.Value << 12;
        _call = Call.None;
        _operands = operands;
        Result = StepResult.Ok;
    }

    /// <summary>Gives the step up with a result: an exit that the guest cannot go on from.</summary>
    public void Abandon(StepResult result)
    {
        _step = null;
        _call = Call.None;
        Result = result;
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
                if (_step is { Kind: StepKind.Stay })
                {
                    Abandon(StepResult.Ok);
                }

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

            if (_step is not { } step)
            {
                return ref Leave(vmcs, ExitReason.SimulatorScriptEnd);
            }

            switch (step.Kind)
            {
                case StepKind.Stay:
                    Wait(lp);
                    continue;
                case StepKind.Accept:
                    Issue(vmcs, Call.Accept);
                    continue;
                case StepKind.MapGpa:
                    Issue(vmcs, Call.MapGpa);
                    continue;
                case StepKind.Tdcall:
                    Issue(vmcs, Call.Any);
                    continue;
                default:
                    if (!TryAccess(lp, vmcs, step))
                    {
                        return ref vmcs.Exit;
                    }

                    continue;
            }
        }
    }

    private static ref VmExit Leave(Vmcs vmcs, ExitReason reason)
    {
        vmcs.Exit = new VmExit { Reason = reason, InstructionLength = 1 };
        return ref vmcs.Exit;
    }

    /// <summary>What a page holds that a guest wrote: its alias and frame number, in bits 63:32; who wrote and how often, below.</summary>
    public static ulong Mark(Gfn gfn, Alias alias) => ((ulong)alias << 63) | ((gfn.Value & 0x7FFF_FFFF) << 32);

    private void Wait(LogicalProcessor lp)
    {
        if (_offset == 0)
        {
            _offset = 1;
            _isInside();
        }

        if (_othersHaveEnded())
        {
            Abandon(StepResult.Ok);
            return;
        }

        default(Spin).Once(_actor, lp.PendingInterrupt.Id);
    }

    // False when the access left the guest.
    private bool TryAccess(LogicalProcessor lp, Vmcs vmcs, ScenarioStep step)
    {
        Gfn gfn = step.Range.Start + _offset;
        Alias alias = vmcs.AliasBit.Number == 0 ? Alias.Shared : step.Alias;
        ulong gpa = vmcs.AliasBit.Apply(gfn, alias).Value | ((ulong)(uint)(_vcpu & 0x1FF) << 3);
        AccessKind access = step.Kind switch { StepKind.Write => AccessKind.Write, StepKind.Fetch => AccessKind.Fetch, _ => AccessKind.Read };
        if (!GuestPhysical.TryTranslate(_machine, lp, vmcs, gpa, access, out ulong hpa))
        {
            GuestPhysical.DescribeLinear(vmcs, gpa, isPageTable: false);
            return TryConvert(vmcs);
        }

        AtomicScalar<ulong> word = _machine.Memory.Scalar<ulong>(hpa);
        ulong found = word.Read();
        if (found != 0 && (found & StatusClass) != Mark(gfn, alias))
        {
            _machine.Findings.Add("I82", $"vCPU {_vcpu} found 0x{found:x} on the {alias} page of gfn {gfn} (frame 0x{hpa >> 12:x}): neither zeros nor a mark of that page");
        }

        if (step.Kind is StepKind.Write)
        {
            word.Write(Mark(gfn, alias) | ((ulong)(uint)(_vcpu + 1) << 24) | (++_writes & 0xFF_FFFF));
        }

        vmcs.State.Rip++;
        vmcs.State.Retired++;
        lp.Spend(1);
        Next(1);
        return true;
    }

    private void Next(ulong pages)
    {
        _offset += pages;
        if (_step is { } step && _offset >= step.Range.Pages)
        {
            Abandon(Result);
        }
    }

    // The CPU's own conversion of a shared violation to #VE (td-guest 5.3).
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
        if (delivered is { Vector: 20, Type: VmEvent.HardwareException } && vmcs.IsTd)
        {
            Issue(vmcs, Call.VeInfo);
        }
        else
        {
            Abandon(new StepResult("event", $"vector {delivered.Vector}"));
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
                state[Gpr.Rax] = (ulong)TdgLeaf.VP_VEINFO_GET;
                break;
            case Call.AcceptOfTouch:
                state[Gpr.Rax] = (ulong)TdgLeaf.MEM_PAGE_ACCEPT;
                state[Gpr.Rcx] = _acceptGpa;
                break;
            case Call.Accept:
                state[Gpr.Rax] = (ulong)TdgLeaf.MEM_PAGE_ACCEPT;
                state[Gpr.Rcx] = ((_step!.Range.Start.Value + _offset) << 12) | (_size == 1 ? 0UL : 1);
                break;
            case Call.MapGpa:
                state[Gpr.Rax] = (ulong)TdgLeaf.VP_VMCALL;
                state[Gpr.Rcx] = 0xFC00;
                state[Gpr.R10] = 0;
                state[Gpr.R11] = SubfunctionMapGpa;
                state[Gpr.R12] = _mapFrom | (_step!.To is Alias.Shared ? vmcs.AliasBit.GpaMask : 0);
                state[Gpr.R13] = (_step.Range.End.Value << 12) - _mapFrom;
                break;
            default:
                state[Gpr.Rax] = (ulong)_step!.Leaf;
                state[Gpr.Rcx] = _operands[0];
                state[Gpr.Rdx] = _operands[1];
                state[Gpr.R8] = _operands[2];
                state[Gpr.R9] = _operands[3];
                break;
        }

        return ref Leave(vmcs, ExitReason.Tdcall);
    }

    private void Complete(Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        Call call = _call;
        _call = Call.None;
        TdxStatus status = new(state[Gpr.Rax]);
        switch (call)
        {
            case Call.VeInfo:
                CompleteVe(vmcs, status);
                break;
            case Call.AcceptOfTouch when status == TdxStatus.SUCCESS || status.Class == TdxStatus.PAGE_ALREADY_ACCEPTED:
                break;
            case Call.AcceptOfTouch when status.IsBusy:
                // The host, or another vCPU's accept, has the entry: a kernel asks again.
                default(Spin).Once(_actor, _busy);
                Issue(vmcs, Call.AcceptOfTouch);
                break;
            case Call.Accept:
                Result = StepResult.Of(status);
                Next(status == TdxStatus.SUCCESS ? _size : ulong.MaxValue >> 1);
                break;
            case Call.MapGpa:
                CompleteMapGpa(vmcs, status);
                break;
            default:
                Abandon(StepResult.Of(status));
                break;
        }
    }

    private void CompleteVe(Vmcs vmcs, TdxStatus status)
    {
        GuestState state = vmcs.State;
        ulong gpa = state[Gpr.R9];
        if (status != TdxStatus.SUCCESS || state[Gpr.Rcx] != (uint)ExitReason.EptViolation)
        {
            Abandon(new StepResult("event", $"#VE with reason {state[Gpr.Rcx]}, VEINFO.GET answered {status}"));
        }
        else if (_step is null)
        {
            // A #VE of a step that has ended otherwise.
        }
        else if (vmcs.AliasBit.Of(new Gpa(gpa)) is Alias.Shared)
        {
            Abandon(new StepResult("mmio"));
        }
        else if (_step.Has(StepWords.Strict))
        {
            Abandon(new StepResult("ve"));
        }
        else
        {
            _acceptGpa = gpa & ~0xFFFUL;
            Issue(vmcs, Call.AcceptOfTouch);
        }
    }

    private void CompleteMapGpa(Vmcs vmcs, TdxStatus status)
    {
        GuestState state = vmcs.State;
        ulong result = state[Gpr.R10];
        ulong next = state[Gpr.R11] & ~vmcs.AliasBit.GpaMask;
        if (status == TdxStatus.SUCCESS && result == MapGpaRetry && next >= _mapFrom && next < _step!.Range.End.Value << 12)
        {
            _mapFrom = next;
            Issue(vmcs, Call.MapGpa);
            return;
        }

        Abandon(status != TdxStatus.SUCCESS ? StepResult.Of(status) : new StepResult(result switch
        {
            0 => "ok",
            MapGpaRetry => "retry",
            0x8000_0000_0000_0000 => "invalid",
            0x8000_0000_0000_0002 => "align",
            0x8000_0000_0000_0003 => "unsupported",
            _ => $"R10 0x{result:x}",
        }));
    }
}
