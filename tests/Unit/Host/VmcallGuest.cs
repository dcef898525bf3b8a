using Tdp.Platform;

namespace Tdp.Tests.Unit.Host;

/// <summary>Registers of one TDG.VP.VMCALL, in and out.</summary>
internal readonly record struct Vmcall(ulong R10, ulong R11, ulong R12 = 0, ulong R13 = 0, ulong R14 = 0, ulong R15 = 0);

/// <summary>A guest that makes one TDVMCALL after the other and keeps what came back. RBX, RDX, RSI, RDI, R8 and R9 hold 0xE0 + number.</summary>
internal sealed class VmcallGuest(params Vmcall[] calls) : IVmxEngine
{
    private int _next;

    public List<Vmcall> Results { get; } = [];

    /// <summary>Called before each call, with its number.</summary>
    public Action<int>? Before { get; init; }

    /// <summary>GPRs shown to the host: Linux's mask.</summary>
    public ulong Mask { get; init; } = 0xFFCC;

    public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        if (_next > 0)
            Results.Add(new Vmcall(state[Gpr.R10], state[Gpr.R11], state[Gpr.R12], state[Gpr.R13], state[Gpr.R14], state[Gpr.R15]));
        if (_next == calls.Length)
        {
            vmcs.Exit = new VmExit { Reason = ExitReason.SimulatorScriptEnd, InstructionLength = 1 };
            return ref vmcs.Exit;
        }

        Before?.Invoke(_next);
        Vmcall call = calls[_next++];
        state[Gpr.Rax] = 0;
        state[Gpr.Rcx] = Mask;
        foreach (Gpr register in (Gpr[])[Gpr.Rbx, Gpr.Rdx, Gpr.Rsi, Gpr.Rdi, Gpr.R8, Gpr.R9])
            state[register] = 0xE0 + (ulong)register;
        (state[Gpr.R10], state[Gpr.R11], state[Gpr.R12]) = (call.R10, call.R11, call.R12);
        (state[Gpr.R13], state[Gpr.R14], state[Gpr.R15]) = (call.R13, call.R14, call.R15);
        vmcs.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 };
        return ref vmcs.Exit;
    }
}
