using System.Globalization;
using Tdp.Host;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.EndToEnd.Guests;

/// <summary>
/// One line per thing that passes between guest, module and host: VM exits as the processor made them, events injected at entry, TDCALLs with their
/// answers, TD exits as the host saw them. For one vCPU.
/// </summary>
internal sealed class TraceRecorder : IModuleObserver, IExitObserver
{
    private readonly List<string> _lines = [];
    private TdxModule? _module;

    public IReadOnlyList<string> Lines => _lines;

    /// <summary>Lines are kept from the first one on that this accepts.</summary>
    public Func<string, bool> Begin { get; init; } = _ => true;

    public bool IsOn { get; private set; }

    public void Attach(TdxModule module)
    {
        _module = module;
        module.Observer = this;
    }

    /// <summary>A processor whose exits and entry events are recorded.</summary>
    public IVmxEngine Around(IVmxEngine engine) => new Engine(this, engine);

    void IExitObserver.Exited(Vcpu vcpu, ExitReason reason, ulong gpa)
    {
        VcpuRunState run = vcpu.RunState;
        string user = run.Exit switch
        {
            UserExit.Mmio => $" -> user MMIO {(run.IsWrite ? "write" : "read")} {run.Size} at 0x{run.Gpa:x}",
            UserExit.Io => $" -> user I/O port 0x{run.Port:x}",
            _ => "",
        };
        Add($"TD exit {(uint)reason} gpa 0x{gpa:x}{user}");
    }

    void IModuleObserver.Calling(LogicalProcessor lp, in SeamRegisters registers)
    {
        TdhLeaf leaf = (TdhLeaf)(ushort)registers.Rax;
        if (leaf is not TdhLeaf.VP_WR)
            Add(leaf == TdhLeaf.VP_ENTER ? "VP.ENTER" : $"{leaf.FullName()} 0x{registers.Rcx:x}");
    }

    void IModuleObserver.Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after)
    {
    }

    void IModuleObserver.GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited)
    {
        GuestState? state = _module!.CurrentVmcs(lp)?.State;
        switch (leaf)
        {
            case TdgLeaf.VP_VEINFO_GET when state is not null:
                Add(Invariant($"VEINFO.GET reason {state[Gpr.Rcx]} qualification 0x{state[Gpr.Rdx]:x} gla 0x{state[Gpr.R8]:x} gpa 0x{state[Gpr.R9]:x} length 0x{(uint)state[Gpr.R10]:x}"));
                break;
            case TdgLeaf.VP_VMCALL:
                Add("VMCALL");
                break;
            default:
                Add($"{leaf.FullName()}{(state is null || exited ? "" : $" 0x{state[Gpr.Rcx]:x}")} {(exited ? "exits" : status.ToString())}");
                break;
        }
    }

    private static string Invariant(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);

    private void Add(string line)
    {
        IsOn = IsOn || Begin(line);
        if (IsOn)
            _lines.Add(line);
    }

    private sealed class Engine(TraceRecorder recorder, IVmxEngine inner) : IVmxEngine
    {
        public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
        {
            if (vmcs.EntryEvent.IsValid)
                recorder.Add($"inject vector {vmcs.EntryEvent.Vector}");
            ref VmExit exit = ref inner.Enter(lp, vmcs);
            recorder.Add(exit.Reason == ExitReason.EptViolation
                ? $"VM exit 48 qualification 0x{exit.Qualification:x} gpa 0x{exit.Gpa:x} gla 0x{exit.Gla:x}"
                : $"VM exit {(uint)exit.Reason}");
            return ref exit;
        }
    }
}
