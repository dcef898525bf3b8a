using System.Globalization;

namespace Tdp.Harness.Conformance;

/// <summary>
/// The machine on which the recordings of the real module were made, with our module on it (decisions D33): performs one recorded call and says what it answered.
/// Strictly one call at a time; up to four processors may be inside TDs between calls.
/// </summary>
internal sealed class ModuleReplayMachine : IDisposable
{
    // The recorder's clock and its stubs of the hardware.
    private const ulong TicksPerSeamcall = 1UL << 20;
    private const ulong TicksPerGuestOperation = 1UL << 32;
    private const ulong RipStep = 0x100;
    private const uint InstructionLength = 4;
    private const int InterruptVector = 0x20;
    private const uint InterruptInfo = 0x8000_0020;
    private const ulong GlobalHkid = 32;
    private readonly Dictionary<string, Stack<InjectedLock>> _locks = new(StringComparer.Ordinal);

    /// <summary>Builds it.</summary>
    /// <param name="isReady">True when SYS.* bring-up is already done.</param>
    public ModuleReplayMachine(bool isReady)
    {
        // The recorder's processors had no TLB: every access walks.
        Machine = new Machine(MachineDescription.Conformance(), seed: 1, TlbMode.Off);
        Module = new TdxModule(Machine, BehaviourProfile.Tdx15, new TdxModuleOptions { MemoryIsFlat = true });
        foreach (LogicalProcessor lp in Machine.Processors)
            lp.VmxOn = true;
        if (isReady)
            ModuleBringUp.Run(Machine, Module, GlobalHkid);
    }

    /// <summary>The machine.</summary>
    public Machine Machine { get; }

    /// <summary>The module under test.</summary>
    public TdxModule Module { get; }

    /// <inheritdoc/>
    public void Dispose() => Machine.Dispose();

    /// <summary>Performs a call.</summary>
    /// <exception cref="Cli.UsageException">Its operands make no sense.</exception>
    public ModuleAnswer Perform(ModuleCall call)
    {
        LogicalProcessor lp = Machine.Processors[call.Lp];
        ulong flushes = lp.Tlb.Flushes;
        ModuleAnswer answer = call.Kind switch
        {
            CallKind.Seamcall => Seamcall(lp, call),
            CallKind.Tdcall => Tdcall(lp, call),
            CallKind.Guest => GuestOperation(lp, call),
            _ => Environment(call),
        };
        answer.Flushed = lp.Tlb.Flushes != flushes;
        return answer;
    }

    private void Advance(ulong ticks)
    {
        foreach (LogicalProcessor lp in Machine.Processors)
            lp.Spend(ticks);
    }

    private ModuleAnswer Seamcall(LogicalProcessor lp, ModuleCall call)
    {
        Advance(TicksPerSeamcall);
        if (Module.CurrentVmcs(lp) is not null)
            return new ModuleAnswer { End = CallEnd.Td, Trouble = "the processor is still inside a TD" };
        SeamRegisters registers = call.Before;

        // The recorder forced its guests into 64-bit mode.
        var tdvpr = new Hpa(registers.Rcx & ~0xFFFUL);
        if ((ushort)registers.Rax == (ushort)TdhLeaf.VP_INIT && Module.Pamt(tdvpr) is { Type: PageType.TDVPR })
            Module.UseEntryState(tdvpr, GuestStart.Flat64);
        Module.Seamcall(lp, ref registers);
        if (Module.CurrentVmcs(lp) is { } vmcs)
            return new ModuleAnswer { End = CallEnd.Td, Injected = TakeInjected(vmcs) };
        return new ModuleAnswer { End = CallEnd.Ret, Rax = registers.Rax, Registers = registers, HasRegisters = true };
    }

    private ModuleAnswer Tdcall(LogicalProcessor lp, ModuleCall call)
    {
        Advance(TicksPerGuestOperation);
        if (Module.CurrentVmcs(lp) is not { } vmcs)
            return NotInside();
        GuestState state = vmcs.State;
        SeamRegisters before = call.Before;
        for (int i = 0; i < 16; i++)
            state[(Gpr)i] = before[(Gpr)i];
        ulong rip = state.Rip;
        vmcs.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = InstructionLength };
        SeamRegisters host = default;
        if (!Module.HandleExit(lp, ref host))
            return Exited(host);

        bool again = state.Rip == rip && !vmcs.EntryEvent.IsValid;
        SeamRegisters after = default;
        for (int i = 0; i < 16; i++)
            after[(Gpr)i] = state[(Gpr)i];
        return new ModuleAnswer
        {
            End = CallEnd.Td,
            Rax = again ? null : after.Rax,
            Registers = after,
            HasRegisters = true,
            Injected = TakeInjected(vmcs),
            Again = again,
            Trouble = again && after.Rax != before.Rax ? "RAX changed although the call will be repeated" : null,
        };
    }

    private ModuleAnswer GuestOperation(LogicalProcessor lp, ModuleCall call)
    {
        Advance(TicksPerGuestOperation);
        if (Module.CurrentVmcs(lp) is not { } vmcs)
            return NotInside();
        switch (call.Operation)
        {
            case "GUEST.ACCESS":
                if (!call.Has("samerip"))
                    vmcs.State.Rip += RipStep;
                ulong gpa = call.In("gpa");
                if (GuestPhysical.TryTranslate(Machine, lp, vmcs, gpa, AccessOf(call), out ulong hpa))
                    return new ModuleAnswer { End = CallEnd.Hit, Hit = hpa };
                GuestPhysical.DescribeLinear(vmcs, gpa, isPageTable: false);
                vmcs.Exit.InstructionLength = InstructionLength;
                break;
            case "GUEST.INTR":
                vmcs.Exit = new VmExit { Reason = ExitReason.ExternalInterrupt, InterruptInfo = InterruptInfo };
                break;
            case "GUEST.TRIPLEFAULT":
                vmcs.Exit = new VmExit { Reason = ExitReason.TripleFault };
                break;
            default:
                vmcs.Exit = new VmExit { Reason = (ExitReason)call.In("reason", ushort.MaxValue) };
                break;
        }

        SeamRegisters host = default;
        return Module.HandleExit(lp, ref host)
            ? new ModuleAnswer { End = CallEnd.Td, Injected = TakeInjected(vmcs) }
            : Exited(host);
    }

    private ModuleAnswer Environment(ModuleCall call)
    {
        string? trouble = null;
        switch (call.Operation)
        {
            case "ENV.WRITE":
                Write(call);
                break;
            case "ENV.INTR":
                foreach (LogicalProcessor lp in Machine.Processors)
                    lp.PendingInterrupt.Write(call.In("pending") != 0 ? InterruptVector : -1);
                break;
            case "ENV.LOCK":
                trouble = Hold(call);
                break;
            default:
                trouble = Drop(call);
                break;
        }

        return new ModuleAnswer { End = CallEnd.Ok, Trouble = trouble };
    }

    private void Write(ModuleCall call)
    {
        ulong start = call.In("pa");
        int length = call.Record.Integer("len", 1, 1 << 20);
        if (!Machine.Memory.Exists(new Hpa(start)) || !Machine.Memory.Exists(new Hpa(start + (ulong)length - 1)))
            throw call.Record.Wrong(string.Create(CultureInfo.InvariantCulture, $"'pa' is 0x{start:x}; the machine has no memory there"));
        string hex = call.Record.Text("data");
        Span<byte> target = Machine.Memory.Bytes(new Hpa(start), length);
        target.Clear();
        if (Convert.FromHexString(hex, target, out int read, out _) != System.Buffers.OperationStatus.Done || read != hex.Length)
            throw call.Record.Wrong("'data' is not hex, or longer than 'len'");
    }

    private string? Hold(ModuleCall call)
    {
        ModuleLock kind = LockOf(call);
        string mode = call.InText("mode");
        if (mode is not ("ex" or "sh"))
            throw call.Record.Wrong($"'mode' is {mode}; allowed is ex, sh");
        Level level = Level.FromTdx(kind == ModuleLock.SeptEntry ? call.In("level", 4) : call.In("size", 2));
        Hpa where = new(kind == ModuleLock.Page ? call.In("pa") : call.In("tdr"));
        if (kind != ModuleLock.Kot && Module.Pamt(where) is null)
            return $"no initialised TDMR holds the page {where}";
        if (Module.TryHold(kind, mode == "ex", where, new Gpa(call.In("gpa")), level) is not { } held)
            return "the lock is busy";
        string key = KeyOf(call);
        if (!_locks.TryGetValue(key, out Stack<InjectedLock>? holds))
            _locks[key] = holds = [];
        holds.Push(held);
        return null;
    }

    private string? Drop(ModuleCall call)
    {
        if (!_locks.TryGetValue(KeyOf(call), out Stack<InjectedLock>? holds) || !holds.TryPop(out InjectedLock held))
            return "the lock is not held";
        Module.Release(held);
        return null;
    }

    private static ModuleLock LockOf(ModuleCall call) => call.InText("what") switch
    {
        "page" => ModuleLock.Page,
        "sept_tree" => ModuleLock.SeptTree,
        "epoch" => ModuleLock.Epoch,
        "op_state" => ModuleLock.OpState,
        "kot" => ModuleLock.Kot,
        "sept_entry" => ModuleLock.SeptEntry,
        string other => throw call.Record.Wrong($"'what' is {other}; allowed is page, sept_tree, epoch, op_state, kot, sept_entry"),
    };

    private static string KeyOf(ModuleCall call) => string.Create(
        CultureInfo.InvariantCulture,
        $"{LockOf(call)} {call.In("tdr"):x} {call.In("pa"):x} {call.In("size")} {call.In("gpa"):x} {call.In("level")}");

    private static AccessKind AccessOf(ModuleCall call) => call.In("acc") switch
    {
        1 => AccessKind.Read,
        2 => AccessKind.Write,
        4 => AccessKind.Fetch,
        ulong other => throw call.Record.Wrong($"'acc' is {other}; allowed is 1, 2, 4"),
    };

    // No engine delivers it: the recorder's guest had no handlers either.
    private static (int Vector, int Type)? TakeInjected(Vmcs vmcs)
    {
        VmEvent waiting = vmcs.EntryEvent;
        vmcs.EntryEvent = default;
        return waiting.IsValid ? (waiting.Vector, waiting.Type) : null;
    }

    private static ModuleAnswer Exited(in SeamRegisters host) => new() { End = CallEnd.Exit, Rax = host.Rax, Registers = host, HasRegisters = true };

    private static ModuleAnswer NotInside() => new() { End = CallEnd.Ret, Trouble = "the processor is not inside a TD" };
}
