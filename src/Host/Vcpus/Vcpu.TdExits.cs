namespace Tdp.Host;

/// <content>Exits of a TD's vCPU (tdp-mmu 5.8, 8.6; tdx-module 4.10).</content>
public sealed partial class Vcpu
{
    private const ulong EeqTypeMask = 0xF;
    private const ulong EeqPendingViolation = 6;
    private const ulong QualificationRead = 1;
    private const ulong QualificationWrite = 2;
    private const ulong QualificationFetch = 4;
    private const ulong QualificationRights = 0x38;

    // Registers as VP.ENTER left them. Success with RunState.Exit None: go round the loop.
    private Errno HandleTdExit(Actor actor, LogicalProcessor lp)
    {
        TdxStatus status = _registers.Status;
        if ((status.Value >> 32) != 0)
            return HandleTdError(actor, status);
        var reason = (ExitReason)(uint)status.Value;
        switch (reason)
        {
            case ExitReason.EptViolation:
                return HandleTdViolation(actor, lp);
            case ExitReason.Tdcall:
                _statistics.Vmcalls++;
                ResetProgress();
                return HandleVmcall(actor);
            case ExitReason.ExternalInterrupt:
                // A kick, or an interrupt for the host, which takes it now.
                if (lp.PendingInterrupt.Read() >= 0)
                    lp.PendingInterrupt.Write(-1);
                return Errno.None;
            case ExitReason.ExceptionOrNmi:
                lp.PendingNmi.Write(false);
                return Errno.None;
            case ExitReason.EptMisconfiguration:
                Vm.Bug(actor, $"an EPT misconfiguration exit of a TD at GPA 0x{_registers.R8:x}");
                return Errno.EIO;
            case ExitReason.SimulatorScriptEnd:
                RunState.Exit = UserExit.ScriptEnd;
                return Errno.None;
            default:
                return InternalError($"TD exit with reason {(uint)reason} ({reason}), qualification 0x{_registers.Rcx:x}", (ulong)reason);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno HandleTdError(Actor actor, TdxStatus status)
    {
        var reason = (ExitReason)(ushort)status.Value;
        if (status.IsBusy || status.Class == TdxStatus.OPERAND_BUSY_HOST_PRIORITY)
        {
            // Epoch or tree lock: a handled exit. We are outside now, so whoever waits for our acknowledgement gets it (tdp-mmu 8.5).
            _statistics.BusyEntries++;
            default(Spin).Once(actor, ObjectId.Lock("mmu_lock", (ulong)Vm.Number));
            return Errno.None;
        }

        // No source says what the host does; a handled exit, re-entered with bit 52 of RCX clear (decisions 11.5).
        if (status.Class == TdxStatus.HOST_PRIORITY_BUSY_TIMEOUT)
            return Errno.None;
        if (status.Class == TdxStatus.NON_RECOVERABLE_VCPU && reason == ExitReason.TripleFault)
        {
            RunState.Exit = UserExit.Shutdown;
            return Errno.None;
        }

        // The simulator's own exit is not one that a module knows; it comes back as an unexpected exit.
        if ((uint)status.Value == (uint)ExitReason.SimulatorScriptEnd)
        {
            RunState.Exit = UserExit.ScriptEnd;
            return Errno.None;
        }

        if ((status.Value >> 40) == 0x8000FF)
        {
            Vm.Bug(actor, $"VP.ENTER of vCPU {Id} faulted: {status}");
            return Errno.EIO;
        }

        return InternalError($"VP.ENTER of vCPU {Id} returned {status} (0x{status.Value:x16})", status.Value);
    }

    // KVM: tdx_handle_ept_violation.
    private Errno HandleTdViolation(Actor actor, LogicalProcessor lp)
    {
        ulong gpa = _registers.R8;
        ulong qualification = _registers.Rcx & 0xFFFF_FFFF;
        bool isPrivate = Vm.AliasBit.Of(new Gpa(gpa)) == Alias.Private;
        ulong error;
        if (isPrivate)
        {
            if ((_registers.Rdx & EeqTypeMask) == EeqPendingViolation && (qualification & QualificationRights) == 0)
                return UnexpectedPending(actor, gpa);

            // What the access was is discarded: a private fault is always a write (tdp-mmu 5.1).
            error = PfErr.Write | PfErr.PrivateAccess | PfErr.GuestFinal;
            _statistics.PrivateFaults++;
        }
        else
        {
            if ((qualification & QualificationFetch) != 0)
            {
                Vm.Bug(actor, $"an instruction fetch from shared GPA 0x{gpa:x}");
                return Errno.EIO;
            }

            error = ErrorCodeOf(qualification);
            _statistics.SharedFaults++;
        }

        FaultResult result = Vm.Mmu.HandleFault(Mmu, new Gpa(gpa), error);
        if (result == FaultResult.Retry && isPrivate)
            result = RetryLocally(actor, gpa, error);
        return AfterFault(actor, result, ExitReason.EptViolation, gpa);
    }

    // Each entry with the same unresolved fault brings the module nearer to its zero-step mitigation, which makes others' calls BUSY: repeat here, without
    // entering
    // (tdp-mmu 5.8).
    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult RetryLocally(Actor actor, ulong gpa, ulong error)
    {
        var spin = default(Spin);
        while (true)
        {
            _statistics.LocalRetries++;

            // An obsolete root can only be replaced by the outer loop.
            if (_signal.Read() || (Kick.HasRequests() && (Kick.PeekRequests() & (1UL << VcpuSet.FreeObsoleteRoots)) != 0))
                return FaultResult.Retry;
            if (Vm.IsDead)
                return FaultResult.IoError;

            // Deletion of the slot waits for our SRCU section: leave the loop, or both wait for ever (I75).
            if (Vm.SlotsOf(0).Active.Find(Vm.AliasBit.Strip(new Gpa(gpa))) is { IsInvalid: true })
                return FaultResult.Retry;
            spin.Once(actor, ObjectId.Lock("mmu_lock", (ulong)Vm.Number));
            FaultResult result = Vm.Mmu.HandleFault(Mmu, new Gpa(gpa), error);
            if (result != FaultResult.Retry)
                return result;
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno UnexpectedPending(Actor actor, ulong gpa)
    {
        Vm.Kill(actor, $"Guest access before accepting 0x{gpa:x} on vCPU {Id}");
        return Errno.EIO;
    }

    // Exit qualification to PFERR (tdp-mmu 5.1).
    private static ulong ErrorCodeOf(ulong qualification) =>
        ((qualification & QualificationRead) != 0 ? PfErr.User : 0)
        | ((qualification & QualificationWrite) != 0 ? PfErr.Write : 0)
        | ((qualification & QualificationFetch) != 0 ? PfErr.Fetch : 0)
        | ((qualification & QualificationRights) != 0 ? PfErr.Present : 0)
        | PfErr.GuestFinal;

    // What a fault's result means for the run loop, TD and ordinary VM alike; Emulate of a TD: re-enter, the guest then takes #VE.
    private Errno AfterFault(Actor actor, FaultResult result, ExitReason reason, ulong gpa)
    {
        if (result == FaultResult.Fixed)
        {
            _statistics.Fixed++;
            ResetProgress();
            return Errno.None;
        }

        return AfterOtherFault(actor, result, reason, gpa);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno AfterOtherFault(Actor actor, FaultResult result, ExitReason reason, ulong gpa)
    {
        switch (result)
        {
            case FaultResult.Spurious:
                _statistics.Spurious++;
                return CheckProgress(actor, reason, gpa);
            case FaultResult.Emulate:
                _statistics.MmioFaults++;
                return CheckProgress(actor, reason, gpa);
            case FaultResult.Retry:
                YieldAfterRetry(actor);
                return Errno.None;
            case FaultResult.WriteProtected:
                // A TD's instruction cannot be emulated: it is executed again, and again (tdp-mmu 5.2 step 4).
                return CheckProgress(actor, reason, gpa);
            case FaultResult.BadAddress:
                MemoryFaultInfo fault = Mmu.MemoryFault;
                if (fault.Size == 0)
                    return Errno.EFAULT;
                _statistics.MemoryFaults++;
                RunState.Exit = UserExit.MemoryFault;
                RunState.Gpa = fault.Gpa.Value;
                RunState.Length = fault.Size;
                RunState.Flags = fault.IsPrivate ? MemoryAttributes.Private : 0;
                return Errno.EFAULT;
            case < 0:
                return (Errno)(-(int)result);
            default:
                Vm.Bug(actor, $"a fault at GPA 0x{gpa:x} answered {result}");
                return Errno.EIO;
        }
    }

    // Somebody holds what the fault needs: go round, but let him run. With more actors than CPUs he may be waiting for ours.
    private void YieldAfterRetry(Actor actor)
    {
        const int MostTurns = 16;
        var spin = default(Spin);
        _retries = Math.Min(_retries + 1, MostTurns);
        for (int i = Explore.On ? 1 : _retries; i > 0; i--)
            spin.Once(actor, ObjectId.Lock("mmu_lock", (ulong)Vm.Number));
    }

    // D23: the same exit over and over, with no mapping changed between, will never end by itself.
    private Errno CheckProgress(Actor actor, ExitReason reason, ulong gpa)
    {
        if (gpa != _sameExitGpa || (ulong)reason != _sameExitReason)
        {
            _sameExitGpa = gpa;
            _sameExitReason = (ulong)reason;
            _sameExits = 0;
        }

        if (++_sameExits < MostIdenticalExits)
            return Errno.None;
        string text = $"vCPU {Id} makes no progress: {MostIdenticalExits} identical exits with reason {(uint)reason} at GPA 0x{gpa:x}";
        Vm.Kill(actor, text);
        return InternalError(text, (ulong)reason);
    }

    private void ResetProgress()
    {
        _sameExits = 0;
        _retries = 0;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno InternalError(string message, ulong code)
    {
        RunState.Exit = UserExit.InternalError;
        RunState.Message = message;
        RunState.Code = code;
        return Errno.None;
    }
}
