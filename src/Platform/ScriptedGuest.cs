namespace Tdp.Platform;

/// <summary>What a scripted guest does in one step.</summary>
public enum GuestStepKind : byte
{
    /// <summary>Touch one guest physical address.</summary>
    Access,

    /// <summary>TDCALL with the registers given.</summary>
    Tdcall,

    /// <summary>HLT.</summary>
    Halt,
}

/// <summary>One step of a scripted guest.</summary>
/// <param name="Kind">What it does.</param>
/// <param name="Gpa">Address, for an access.</param>
/// <param name="Access">Read, write or fetch, for an access.</param>
/// <param name="Value">Value written by a write access (8 bytes); RAX of a TDCALL.</param>
/// <param name="Rcx">RCX of a TDCALL.</param>
/// <param name="Rdx">RDX of a TDCALL.</param>
public readonly record struct GuestStep(GuestStepKind Kind, ulong Gpa, AccessKind Access, ulong Value, ulong Rcx, ulong Rdx)
{
    /// <summary>Reads 8 bytes.</summary>
    public static GuestStep Read(ulong gpa) => new(GuestStepKind.Access, gpa, AccessKind.Read, 0, 0, 0);

    /// <summary>Writes 8 bytes.</summary>
    public static GuestStep Write(ulong gpa, ulong value) => new(GuestStepKind.Access, gpa, AccessKind.Write, value, 0, 0);

    /// <summary>TDG.MEM.PAGE.ACCEPT of a 4 KiB page.</summary>
    public static GuestStep Accept(ulong gpa) => new(GuestStepKind.Tdcall, 0, AccessKind.None, 6, gpa, 0);

    /// <summary>Any TDCALL.</summary>
    public static GuestStep Call(ulong leaf, ulong rcx, ulong rdx) => new(GuestStepKind.Tdcall, 0, AccessKind.None, leaf, rcx, rdx);

    /// <summary>HLT.</summary>
    public static GuestStep Halt() => new(GuestStepKind.Halt, 0, AccessKind.None, 0, 0, 0);
}

/// <summary>
/// A guest without instructions: it performs a list of steps behind the same interface as the real CPU, for tests and benchmarks. RIP is the index of
/// the step and every instruction is one long, so whoever emulates an exit advances it as usual.
/// </summary>
/// <remarks>
/// A #VE for an EPT violation is answered the way a lazily accepting kernel would: VEINFO.GET, then ACCEPT of the 4 KiB page, then the step again.
/// Any other event is recorded in <see cref="Events"/> and ends the script.
/// </remarks>
public sealed class ScriptedGuest : IVmxEngine
{
    private const ulong LeafVeInfoGet = 3;
    private const ulong LeafPageAccept = 6;
    private readonly Machine _machine;
    private readonly GuestStep[] _steps;
    private readonly List<VmEvent> _events = [];
    private readonly List<ulong> _values = [];
    private Handler _handler;

    /// <summary>Makes a guest.</summary>
    /// <param name="machine">The machine it runs on.</param>
    /// <param name="steps">What it does, in order.</param>
    public ScriptedGuest(Machine machine, params GuestStep[] steps)
    {
        _machine = machine;
        _steps = steps;
    }

    private enum Handler : byte
    {
        None,
        GetVeInfo,
        Accept,
        Dead,
    }

    /// <summary>Events that were delivered to the guest, in order.</summary>
    public IReadOnlyList<VmEvent> Events => _events;

    /// <summary>Values that read steps found and statuses (RAX) that TDCALL steps got, in order.</summary>
    public IReadOnlyList<ulong> Values => _values;

    /// <summary>True when every step has been performed.</summary>
    public bool IsDone { get; private set; }

    /// <inheritdoc/>
    public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        if (vmcs.EntryEvent.IsValid)
            Deliver(vmcs);
        while (true)
        {
            if (lp.ShouldExit)
                return ref Leave(vmcs, ExitReason.ExternalInterrupt);
            if (_handler != Handler.None)
            {
                if (HandleVe(vmcs, state))
                    return ref vmcs.Exit;
                continue;
            }

            // The RIP of a TDCALL moves only when the module has finished the call: then its status is in RAX.
            if (_awaited is { } index && state.Rip == index + 1)
            {
                _values.Add(state[Gpr.Rax]);
                _awaited = null;
            }

            if (state.Rip >= (ulong)_steps.Length)
            {
                IsDone = true;
                return ref Leave(vmcs, ExitReason.SimulatorScriptEnd);
            }

            if (Perform(lp, vmcs, state, _steps[state.Rip]))
                return ref vmcs.Exit;
        }
    }

    private ulong? _awaited;

    // True when the step ended in an exit.
    private bool Perform(LogicalProcessor lp, Vmcs vmcs, GuestState state, GuestStep step)
    {
        switch (step.Kind)
        {
            case GuestStepKind.Access:
                if (!GuestPhysical.TryTranslate(_machine, lp, vmcs, step.Gpa, step.Access, out ulong hpa))
                {
                    GuestPhysical.DescribeLinear(vmcs, step.Gpa, isPageTable: false);
                    return !TryConvert(vmcs);
                }

                if (step.Access == AccessKind.Write)
                    _machine.Memory.Scalar<ulong>(hpa & ~7UL).Write(step.Value);
                else
                    _values.Add(_machine.Memory.Scalar<ulong>(hpa & ~7UL).Read());
                state.Rip++;
                state.Retired++;
                lp.Spend(1);
                return false;
            case GuestStepKind.Tdcall:
                state[Gpr.Rax] = step.Value;
                state[Gpr.Rcx] = step.Rcx;
                state[Gpr.Rdx] = step.Rdx;
                _awaited = state.Rip;
                Leave(vmcs, ExitReason.Tdcall);
                return true;
            default:
                Leave(vmcs, ExitReason.Hlt);
                return true;
        }
    }

    // The CPU's own conversion of a shared violation (td-guest 5.3): no event is being delivered here, so only VE_INFO decides.
    private bool TryConvert(Vmcs vmcs)
    {
        ref VmExit exit = ref vmcs.Exit;
        if (exit.Reason != ExitReason.EptViolation || !exit.IsConvertible || vmcs.VeInfo is not { IsValid: false } area)
            return false;
        if (vmcs.AliasBit.Of(new Gpa(exit.Gpa)) != Alias.Shared)
            return false;
        area.Fill((uint)exit.Reason, exit.Qualification, exit.Gla, exit.Gpa, 0xCC, 0);
        vmcs.EntryEvent = VmEvent.Exception(20);
        Deliver(vmcs);
        return true;
    }

    private void Deliver(Vmcs vmcs)
    {
        VmEvent delivered = vmcs.EntryEvent;
        vmcs.EntryEvent = default;
        _events.Add(delivered);
        _handler = delivered is { Vector: 20, Type: VmEvent.HardwareException } && vmcs.IsTd ? Handler.GetVeInfo : Handler.Dead;
        _saved = (vmcs.State[Gpr.Rax], vmcs.State[Gpr.Rcx], vmcs.State[Gpr.Rdx], vmcs.State.Rip);
        vmcs.State.Rip = HandlerRip;
    }

    private const ulong HandlerRip = 0xFFFF_0000;
    private (ulong Rax, ulong Rcx, ulong Rdx, ulong Rip) _saved;

    // True when the handler left the guest.
    private bool HandleVe(Vmcs vmcs, GuestState state)
    {
        switch (_handler)
        {
            case Handler.GetVeInfo when state.Rip == HandlerRip:
                state[Gpr.Rax] = LeafVeInfoGet;
                Leave(vmcs, ExitReason.Tdcall);
                return true;
            case Handler.GetVeInfo:
                // R9 holds the GPA; a violation of the shared alias has nothing to accept.
                ulong gpa = state[Gpr.R9];
                if (state[Gpr.Rcx] != (uint)ExitReason.EptViolation || (gpa & vmcs.AliasBit.GpaMask) != 0)
                {
                    _handler = Handler.Dead;
                    return false;
                }

                _handler = Handler.Accept;
                state[Gpr.Rcx] = gpa & ~0xFFFUL;
                return false;
            case Handler.Accept when state.Rip == HandlerRip + 1:
                state[Gpr.Rax] = LeafPageAccept;
                Leave(vmcs, ExitReason.Tdcall);
                return true;
            case Handler.Accept:
                _handler = Handler.None;
                (state[Gpr.Rax], state[Gpr.Rcx], state[Gpr.Rdx], state.Rip) = _saved;
                return false;
            default:
                IsDone = true;
                Leave(vmcs, ExitReason.SimulatorScriptEnd);
                return true;
        }
    }

    private static ref VmExit Leave(Vmcs vmcs, ExitReason reason)
    {
        vmcs.Exit = new VmExit { Reason = reason, InstructionLength = 1 };
        return ref vmcs.Exit;
    }
}
