namespace Tdp.Host;

/// <content>One actor per vCPU, and the answers to its exits.</content>
public sealed partial class Vmm
{
    private const ulong OneHalted = 1UL << 32;

    private void RunVcpu(Actor actor, Vcpu vcpu)
    {
        HostKernel kernel = _world.Kernel;
        kernel.Processors.Bind(actor, vcpu.Id);
        try
        {
            IVmxEngine engine = _engines[vcpu.Id];
            while (!_ended.Read() && Answer(actor, vcpu, vcpu.Run(actor, engine)))
            {
            }
        }
        catch
        {
            // The others must not wait for this one; the exception goes on to Join.
            End(actor, RunOutcome.InternalError, $"vCPU {vcpu.Id} failed");
            throw;
        }
        finally
        {
            kernel.Frames.Drain(actor);
            kernel.Processors.Of(actor).ReadTime();
            kernel.Processors.Unbind(actor);
            LeaveRun(actor);
        }
    }

    // True: run the vCPU again.
    private bool Answer(Actor actor, Vcpu vcpu, Errno result)
    {
        VcpuRunState run = vcpu.RunState;
        switch (run.Exit)
        {
            case UserExit.Io when result == Errno.None:
                if (_devices.Io(run))
                    return true;
                End(actor, RunOutcome.Exited, null);
                return false;
            case UserExit.Mmio when result == Errno.None:
                VmmDevices.Mmio(_devices, run);
                return true;
            case UserExit.Hypercall when result == Errno.None:
                Errno converted = Convert(actor, run.Gpa, run.Length << 12, run.Flags != 0);
                run.Result = (ulong)converted;
                return true;
            case UserExit.MemoryFault when result == Errno.EFAULT:
                return AnswerMemoryFault(actor, vcpu, run);
            case UserExit.Hlt when result == Errno.None:
                return AnswerHlt(actor, vcpu);
            case UserExit.Tdx when result == Errno.None:
                // No quoting service: the preset answer says "unsupported".
                return true;
            case UserExit.SystemEvent:
                End(actor, RunOutcome.FatalError, $"the guest reported fatal error 0x{run.Code:x}: {VmmDevices.Printable(run.Text)}");
                return false;
            case UserExit.Shutdown:
                End(actor, RunOutcome.Shutdown, $"vCPU {vcpu.Id} shut down (triple fault)");
                return false;
            case UserExit.ScriptEnd:
                return false;
            case UserExit.InternalError:
                End(actor, RunOutcome.InternalError, run.Message);
                return false;
            default:
                return AnswerErrno(actor, vcpu, result);
        }
    }

    private bool AnswerErrno(Actor actor, Vcpu vcpu, Errno result)
    {
        switch (result)
        {
            case Errno.EINTR:
                // Cleared first: whoever ends the run sets the flag below before it signals.
                vcpu.ClearSignal();
                if (vcpu.TakeBusError(out ulong address))
                {
                    End(actor, RunOutcome.InternalError, $"SIGBUS: a memory error at host address 0x{address:x}, which vCPU {vcpu.Id} needs");
                    return false;
                }

                return !_ended.Read();
            case Errno.EIO when Vm.IsDead:
                End(actor, RunOutcome.VmDead, Vm.Mmu.Death.Reason);
                return false;
            default:
                End(actor, RunOutcome.InternalError, $"KVM_RUN of vCPU {vcpu.Id} failed with -{result}");
                return false;
        }
    }

    private bool AnswerMemoryFault(Actor actor, Vcpu vcpu, VcpuRunState run)
    {
        bool wantsPrivate = run.Flags != 0;
        bool isMemory = run.Gpa < MemoryBytes;
        if (isMemory && _options.MemoryFaults == MemoryFaultPolicy.Convert)
        {
            Errno result = Convert(actor, run.Gpa, run.Length, wantsPrivate);
            if (result == Errno.None)
                return true;
            return AnswerErrno(actor, vcpu, result);
        }

        End(
            actor,
            RunOutcome.InternalError,
            $"vCPU {vcpu.Id}: {(wantsPrivate ? "private" : "shared")} access to GPA 0x{run.Gpa:x}, "
            + $"which is {(!isMemory ? "not memory" : wantsPrivate ? "shared" : "private")}");
        return false;
    }

    private bool AnswerHlt(Actor actor, Vcpu vcpu)
    {
        ulong counts = Count(OneHalted);
        if (HaltedOf(counts) >= RunningOf(counts))
            End(actor, RunOutcome.AllHalted, "every vCPU waits for an event, and nothing can cause one");
        vcpu.WaitUntilWoken(actor);
        Count(unchecked(0 - OneHalted));
        return true;
    }

    // A vCPU that ends may leave only halted ones behind.
    private void LeaveRun(Actor actor)
    {
        ulong counts = Count(unchecked(0UL - 1));
        if (RunningOf(counts) == 0)
            End(actor, RunOutcome.ScriptEnd, null);
        else if (HaltedOf(counts) >= RunningOf(counts))
            End(actor, RunOutcome.AllHalted, "every vCPU that still runs waits for an event, and nothing can cause one");
    }

    // Running vCPUs in 31:0, halted ones above: one word, so that who changes one number sees the other as it was at that moment.
    private ulong Count(ulong delta)
    {
        ulong seen = _counts.Read();
        while (true)
        {
            ulong found = _counts.CompareExchange(seen, seen + delta);
            if (found == seen)
                return seen + delta;
            seen = found;
        }
    }

    private static uint RunningOf(ulong counts) => (uint)counts;

    private static uint HaltedOf(ulong counts) => (uint)(counts >> 32);

    // The first reason counts. Outcome and message are read after every vCPU has been joined.
    private void End(Actor? actor, RunOutcome outcome, string? message)
    {
        if (_ended.Swap(true))
            return;
        _outcome = outcome;
        _message = message;
        _vm?.SignalAll(actor);
    }
}
