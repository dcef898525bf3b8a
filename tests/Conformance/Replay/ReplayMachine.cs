using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Conformance;

/// <summary>The machine on which the traces were recorded (conformance/README 2, 3), and the execution of one line on it.</summary>
internal sealed class ReplayMachine : IDisposable
{
    private const ulong TicksPerSeamcall = 1UL << 20;
    private const ulong TicksPerGuestOperation = 1UL << 32;
    private const uint StubInstructionLength = 4;
    private readonly Dictionary<string, InjectedLock> _locks = new(StringComparer.Ordinal);
    private readonly Machine _machine = new(MachineDescription.Conformance(), seed: 1, TlbMode.Off);

    public ReplayMachine(bool isReady)
    {
        Module = new TdxModule(_machine, BehaviourProfile.Tdx15);
        foreach (LogicalProcessor lp in _machine.Processors)
            lp.VmxOn = true;
        if (isReady)
            ModuleBringUp.Run(_machine, Module, globalHkid: 32);
    }

    public TdxModule Module { get; }

    public void Dispose() => _machine.Dispose();

    /// <summary>Executes a line; returns what differs from the recorded answer, the states apart.</summary>
    public List<string> Execute(TraceLine line)
    {
        LogicalProcessor lp = _machine.Processors[line.Lp];
        ulong flushes = lp.Tlb.Flushes;
        List<string> wrong = [];
        switch (line.Operation)
        {
            case "ENV.WRITE":
                Span<byte> target = _machine.Memory.Bytes(new Hpa(line.In("pa")), line.Length);
                target.Clear();
                Convert.FromHexString(line.Data).CopyTo(target);
                return wrong;
            case "ENV.INTR":
                foreach (LogicalProcessor each in _machine.Processors)
                    each.PendingInterrupt.Write(line.In("pending") != 0 ? 0x20 : -1);
                return wrong;
            case "ENV.LOCK":
                Hold(line, wrong);
                return wrong;
            case "ENV.UNLOCK":
                _locks.Remove(LockKey(line), out InjectedLock held);
                Module.Release(held);
                return wrong;
            default:
                if (line.Operation.StartsWith("TDG.", StringComparison.Ordinal))
                    Tdcall(lp, line, wrong);
                else if (line.Operation.StartsWith("GUEST.", StringComparison.Ordinal))
                    GuestOperation(lp, line, wrong);
                else
                    Seamcall(lp, line, wrong);
                if (lp.Tlb.Flushes != flushes != line.Flushes)
                    wrong.Add($"flush: recorded {line.Flushes}, simulated {lp.Tlb.Flushes != flushes}");
                return wrong;
        }
    }

    private void Advance(ulong ticks)
    {
        foreach (LogicalProcessor lp in _machine.Processors)
            lp.Spend(ticks);
    }

    private void Seamcall(LogicalProcessor lp, TraceLine line, List<string> wrong)
    {
        Advance(TicksPerSeamcall);
        SeamRegisters registers = default;
        Load(ref registers, line);
        registers.Rax = line.Operation == "RAW"
            ? line.RawRax
            : (ulong)Enum.Parse<TdhLeaf>(line.Operation[4..].Replace('.', '_')) | ((ulong)line.Version << 16);
        if (line.Operation == "TDH.VP.INIT" && Module.Pamt(new Hpa(registers.Rcx & ~0xFFFUL)) is { Type: PageType.TDVPR })
            Module.UseEntryState(new Hpa(registers.Rcx & ~0xFFFUL), GuestStart.Flat64);
        SeamRegisters before = registers;
        Module.Seamcall(lp, ref registers);
        bool inside = Module.CurrentVmcs(lp) is not null;
        if (inside != (line.Result == "td"))
            wrong.Add($"recorded r={line.Result}, simulated {(inside ? "td" : "ret")}");
        if (inside)
            CompareInjection(lp, line, wrong);
        else
            Compare(line, before, registers, registers.Rax, wrong);
    }

    private void Tdcall(LogicalProcessor lp, TraceLine line, List<string> wrong)
    {
        Advance(TicksPerGuestOperation);
        if (Module.CurrentVmcs(lp) is not { } vmcs)
        {
            wrong.Add("the processor is not in the TD");
            return;
        }

        GuestState state = vmcs.State;
        SeamRegisters before = default;
        Load(ref before, line);
        before.Rax = (ulong)Enum.Parse<TdgLeaf>(line.Operation[4..].Replace('.', '_')) | ((ulong)line.Version << 16);
        for (int i = 0; i < 16; i++)
            state[(Gpr)i] = before[(Gpr)i];
        ulong rip = state.Rip;
        vmcs.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = StubInstructionLength };
        SeamRegisters host = default;
        bool inside = Module.HandleExit(lp, ref host);
        if (inside != (line.Result == "td"))
            wrong.Add($"recorded r={line.Result}, simulated {(inside ? "td" : "exit")}");
        if (!inside)
        {
            Compare(line, default, host, host.Rax, wrong);
            return;
        }

        bool again = state.Rip == rip && !vmcs.EntryEvent.IsValid;
        if (again != line.StopsToBeRepeated)
            wrong.Add($"again: recorded {line.StopsToBeRepeated}, simulated {again}");
        if (again && state[Gpr.Rax] != before.Rax)
            wrong.Add("RAX changed although the call will be repeated");
        CompareInjection(lp, line, wrong);
        SeamRegisters after = default;
        for (int i = 0; i < 16; i++)
            after[(Gpr)i] = state[(Gpr)i];
        Compare(line, before, after, again ? null : after.Rax, wrong);
    }

    private void GuestOperation(LogicalProcessor lp, TraceLine line, List<string> wrong)
    {
        Advance(TicksPerGuestOperation);
        if (Module.CurrentVmcs(lp) is not { } vmcs)
        {
            wrong.Add("the processor is not in the TD");
            return;
        }

        ulong? hit = null;
        switch (line.Operation)
        {
            case "GUEST.ACCESS":
                if (!line.Has("samerip"))
                    vmcs.State.Rip += 0x100;
                if (GuestPhysical.TryTranslate(_machine, lp, vmcs, line.In("gpa"), (AccessKind)line.In("acc"), out ulong hpa))
                    hit = hpa;
                else
                    GuestPhysical.DescribeLinear(vmcs, line.In("gpa"), isPageTable: false);
                vmcs.Exit.InstructionLength = StubInstructionLength;
                break;
            case "GUEST.INTR":
                vmcs.Exit = new VmExit { Reason = ExitReason.ExternalInterrupt, InterruptInfo = 0x8000_0020 };
                break;
            case "GUEST.TRIPLEFAULT":
                vmcs.Exit = new VmExit { Reason = ExitReason.TripleFault };
                break;
            case "GUEST.EXIT":
                vmcs.Exit = new VmExit { Reason = (ExitReason)line.In("reason") };
                break;
            default:
                throw new InvalidOperationException($"unknown operation {line.Operation}");
        }

        if (hit is not null)
        {
            if (line.Result != "hit" || hit != line.HitAt)
                wrong.Add($"recorded r={line.Result} hpa 0x{line.HitAt:x}, simulated hit 0x{hit:x}");
            return;
        }

        SeamRegisters host = default;
        bool inside = Module.HandleExit(lp, ref host);
        string result = inside ? "td" : "exit";
        if (result != line.Result)
            wrong.Add($"recorded r={line.Result}, simulated {result}");
        if (inside)
            CompareInjection(lp, line, wrong);
        else
            Compare(line, default, host, host.Rax, wrong);
    }

    private void CompareInjection(LogicalProcessor lp, TraceLine line, List<string> wrong)
    {
        // No engine delivers it: the recorder's guest has no handlers either.
        Vmcs vmcs = Module.CurrentVmcs(lp)!;
        VmEvent waiting = vmcs.EntryEvent;
        vmcs.EntryEvent = default;
        (int, int)? actual = waiting.IsValid ? (waiting.Vector, waiting.Type) : null;
        if (actual != line.Injected)
            wrong.Add($"injected: recorded {line.Injected}, simulated {actual}");
    }

    private static void Load(ref SeamRegisters registers, TraceLine line)
    {
        for (int i = 0; i < 16; i++)
            registers[(Gpr)i] = line.In(TraceReplay.NameOf(i));
    }

    // Registers that the line does not list keep their value; SYS.INFO's buffers and what it says about them apart.
    private static void Compare(TraceLine line, SeamRegisters before, SeamRegisters after, ulong? rax, List<string> wrong)
    {
        if (line.Rax is { } expectedRax && rax is { } actualRax && expectedRax != actualRax)
            wrong.Add($"rax: recorded {new TdxStatus(expectedRax)}, simulated {new TdxStatus(actualRax)}");
        SeamRegisters expected = before;
        foreach ((string register, ulong value) in line.Outputs())
            expected[(Gpr)TraceReplay.NumberOf(register)] = value;
        for (int i = 1; i < 16; i++)
        {
            if (expected[(Gpr)i] != after[(Gpr)i])
                wrong.Add($"{TraceReplay.NameOf(i)}: recorded 0x{expected[(Gpr)i]:x}, simulated 0x{after[(Gpr)i]:x}");
        }
    }

    private void Hold(TraceLine line, List<string> wrong)
    {
        ModuleLock kind = line.InText("what") switch
        {
            "page" => ModuleLock.Page,
            "sept_tree" => ModuleLock.SeptTree,
            "epoch" => ModuleLock.Epoch,
            "op_state" => ModuleLock.OpState,
            "kot" => ModuleLock.Kot,
            "sept_entry" => ModuleLock.SeptEntry,
            string other => throw new InvalidOperationException($"unknown lock {other}"),
        };
        Level level = Level.FromTdx((int)(kind == ModuleLock.SeptEntry ? line.In("level") : line.In("size")));
        Hpa where = new(kind == ModuleLock.Page ? line.In("pa") : line.In("tdr"));
        if (Module.TryHold(kind, line.InText("mode") == "ex", where, new Gpa(line.In("gpa")), level) is { } held)
            _locks[LockKey(line)] = held;
        else
            wrong.Add("the injected lock was busy");
    }

    private static string LockKey(TraceLine line) =>
        $"{line.InText("what")} {line.In("tdr"):x} {line.In("pa"):x} {line.In("size")} {line.In("gpa"):x} {line.In("level")}";
}
