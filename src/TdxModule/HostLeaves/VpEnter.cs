namespace Tdp.Module;

// TDH.VP.ENTER and the TD exit (tdx-module 4.9, 4.10, 6.3, 7.6; decisions D25): two halves with an "in TD" state per processor between them.
public sealed partial class TdxModule
{
    private const ulong EnterRecoverabilityHint = 1UL << 52;
    private const ulong EnterResumeL1 = 1UL << 53;
    private const ulong OutcomeFatal = 1UL << 61;
    private const ulong OutcomeHint = 1UL << 60;

    /// <summary>
    /// The entry half of TDH.VP.ENTER. True: the processor is in the TD, run <see cref="CurrentVmcs"/> on an engine and call <see cref="HandleExit"/>.
    /// False: back in the host, registers as the SEAMCALL left them.
    /// </summary>
    /// <param name="lp">The processor; it stays with this vCPU until the exit.</param>
    /// <param name="registers">RCX: TDVPR and flags; the others as the last exit asked for.</param>
    public bool BeginEnter(LogicalProcessor lp, ref SeamRegisters registers)
    {
        registers.Rax = (ulong)TdhLeaf.VP_ENTER;
        Seamcall(lp, ref registers);
        return _lps[lp.Id].Current is not null;
    }

    /// <summary>
    /// Runs a vCPU until it leaves its TD: the loop over the engine that the real module is (decisions D10, D25).
    /// </summary>
    public void Enter(LogicalProcessor lp, IVmxEngine engine, ref SeamRegisters registers)
    {
        if (!BeginEnter(lp, ref registers))
            return;
        Vmcs vmcs = _lps[lp.Id].Current!.Vmcs;
        do
        {
            lp.InGuest = true;
            engine.Enter(lp, vmcs);
            lp.InGuest = false;
            lp.Spend(SimClock.ExitTicks);
        }
        while (HandleExit(lp, ref registers));
    }

    private TdxStatus EnterHalf(LpContext ctx, ref SeamRegisters r, out TdVcpu? entered)
    {
        entered = null;
        ulong flags = r.Rcx;
        if ((flags & ~(SeptEntry.Address | EnterRecoverabilityHint | EnterResumeL1)) != 0)
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        TdxStatus status = TdxStatus.SUCCESS;
        if (!TryEnterVcpuAtOnce(ctx, flags & SeptEntry.Address, out VcpuGate gate))
        {
            status = EnterVcpu(ctx, flags & SeptEntry.Address, OperandId.RCX, exclusive: false, tdrExclusive: false, out gate);
            if (status.IsError)
                return status;
            status = OpenVcpu(ctx, ref gate, OpStates.Enter);
        }

        if (!status.IsError)
            status = Prepare(ctx, ref gate, flags, ref r);
        if (status.Value != 0)
        {
            LeaveVcpu(ctx, ref gate);
            return status;
        }

        LeaveOpState(ctx, ref gate);
        LoadGuestRegisters(ctx, gate.Vcpu, flags, r);

        // TDR and TDVPR stay shared for the whole run: whoever needs one alone is busy until the exit (tdx-module 0.4, fact 7).
        ctx.RunGroup = gate.Group;
        ctx.RunTdvpr = gate.Tdvpr;
        ctx.RunTdr = gate.Tdr;
        ctx.RunTdrHold = gate.TdrHold;
        ctx.LastRun = gate.Vcpu;
        ctx.Current = gate.Vcpu;
        entered = gate.Vcpu;
        return TdxStatus.SUCCESS;
    }

    // Steps 3 to 5 with one fence, if nothing is unusual; any failure is left to the ordered way, which names it.
    private bool TryEnterVcpuAtOnce(LpContext ctx, ulong tdvpr, out VcpuGate gate)
    {
        gate = default;
        if (Explore.On || !_pamt.IsLegal(tdvpr) || !_pamt.Covers(tdvpr))
            return false;
        ulong entry = _pamt.Entry4K(tdvpr);
        if (PamtEntry.TypeOf(_pamt.Word(entry).Read()) != PageType.TDVPR)
            return false;
        if (_vcpus.Find(_memory.Record(tdvpr >> 12).Tag) is not { } vcpu)
            return false;
        TdControl td = vcpu.Td;
        ulong tdrEntry = _pamt.Entry4K(td.Tdr.Value);
        if (!SharedGroup.TryTake(ctx.Slot, ref _memory.Word(entry), ref _memory.Word(tdrEntry), ref td.OpStateLock, out uint holds))
            return false;

        // Judged again under the locks: a vCPU page still is one, and then its TD still exists.
        if (PamtEntry.TypeOf(_pamt.Word(entry).PlainRead()) == PageType.TDVPR
            && ReferenceEquals(_vcpus.Find(_memory.Record(tdvpr >> 12).Tag), vcpu)
            && TdControl.IsOpen(td.State.Read(), OpStates.Enter))
        {
            gate.Vcpu = vcpu;
            gate.Td = td;
            gate.Group = holds;
            gate.HasOpState = true;
            return true;
        }

        SharedGroup.Release(ctx.Slot, holds);
        return false;
    }

    // Steps 6 to 14. A status that is not zero means "do not enter"; 48 is the filter's EPT violation.
    private TdxStatus Prepare(LpContext ctx, ref VcpuGate gate, ulong flags, ref SeamRegisters r)
    {
        TdVcpu vcpu = gate.Vcpu;
        if (vcpu.Pages < TdVcpu.MinPages)
            return TdxStatus.TDCX_NUM_INCORRECT;
        if (vcpu.State != TdVcpuState.READY)
            return TdxStatus.VCPU_STATE_INCORRECT;
        if (!vcpu.TryAssociate(ctx.Id, out bool fresh))
            return TdxStatus.VCPU_ASSOCIATED;

        // From here a failure leaves the association (tdx-module 4.9).
        if (((flags & EnterRecoverabilityHint) != 0 && vcpu.LastExit != TdExitKind.ASYNC_TRAP) || (flags & EnterResumeL1) != 0)
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        TdControl td = gate.Td;
        TryLock epochLock = new(ref td.EpochLock);
        if (epochLock.TryShared(ctx.Slot, LockSide.Host, out int hold) != LockAnswer.Taken)
            return TdxStatus.OPERAND_BUSY | OperandId.TD_EPOCH;
        ulong epoch = EpochWord.Epoch(td.Epoch.Read());
        td.Epoch.Add(EpochWord.OneVcpu(epoch));
        epochLock.ReleaseShared(ctx.Slot, hold);

        // A fresh association has no translations here: VP.FLUSH dropped them.
        bool stale = epoch != vcpu.Epoch && !fresh;
        vcpu.Epoch = epoch;
        if (vcpu.FaultCount != 0)
        {
            // An entry that the filter stops has dropped what its epoch made stale, and nothing more: nobody ran.
            if (stale)
                ctx.Lp.Tlb.FlushContext(td.Eptp);
            stale = false;
            TdxStatus status = FilterFaults(ctx, vcpu, ref r);
            if (status.Value != 0)
            {
                td.Epoch.Add(unchecked(0UL - EpochWord.OneVcpu(epoch)));
                return status;
            }
        }

        // Translations are not told apart by vCPU: another one's run in between makes a flush necessary anyway.
        if (stale || !ReferenceEquals(ctx.LastRun, vcpu))
            ctx.Lp.Tlb.FlushContext(td.Eptp);
        vcpu.State = TdVcpuState.ACTIVE;
        return TdxStatus.SUCCESS;
    }

    // Zero-step filter: the guest does not run while a recorded GPA would still fault (tdx-module 7.6).
    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus FilterFaults(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        TdControl td = vcpu.Td;
        TryLock treeLock = new(ref td.SeptTreeLock);
        if (treeLock.TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE;
        TdxStatus status = TdxStatus.SUCCESS;
        for (int i = 0; i < vcpu.FaultCount; i++)
        {
            _ = WalkTo(td, vcpu.FaultList[i], 0, out SeptPlace place);

            // The real module keeps the guest out for a PENDING page as well, although only the guest can accept it: a host that lost seven faults in a
            // row to conversions would never get its lazily accepting guest in again.
            bool isResolved = SeptEntry.IsLeaf(place.Entry)
                && ((place.Entry & SeptEntry.Rwx) == SeptEntry.Rwx
                    || (Profile.ZeroStepAdmitsPending && (td.TdCtls.Read() & 1) == 0 && SeptEntry.StateOf(place.Entry).IsAcceptable()));
            if (!isResolved)
            {
                // As after an exit of a guest that ran, but that RBP is not touched.
                r = new SeamRegisters { Rcx = 2, R8 = vcpu.FaultList[i] & ~0xFFFUL, Rbp = r.Rbp };
                vcpu.LastExit = TdExitKind.ASYNC_FAULT;
                status = new TdxStatus((ulong)ExitReason.EptViolation);
                break;
            }
        }

        if (status.Value == 0)
            NotifyZeroStep(td, vcpu);
        treeLock.ReleaseExclusive();
        return status;
    }

    // The guest asked to be told when its host seems to single it through faults: the exit that came last is shown to it as a #VE, if one may be injected now.
    private static void NotifyZeroStep(TdControl td, TdVcpu vcpu)
    {
        Vmcs vmcs = vcpu.Vmcs;
        ref VmExit exit = ref vmcs.Exit;
        if ((td.NotifyEnables.Read() & 1) == 0
            || !vcpu.LastExitWasFault
            || vmcs.VeInfo!.IsValid
            || vmcs.EntryEvent.IsValid
            || vmcs.State.NmiBlocked
            || (exit.Qualification & NmiUnblocking) != 0)
            return;
        InjectVe(vmcs, ExitReason.EptViolation, exit.Qualification, 0, exit.Gpa, exit.InstructionLength, exit.InstructionInfo);
    }

    private void LoadGuestRegisters(LpContext ctx, TdVcpu vcpu, ulong flags, in SeamRegisters r)
    {
        GuestState state = vcpu.Vmcs.State;
        if (vcpu.LastExit == TdExitKind.TDVMCALL)
        {
            SeamRegisters host = r;
            for (int i = 0; i < 16; i++)
            {
                if (((vcpu.VmcallMask >> i) & 1) != 0)
                    state[(Gpr)i] = host[(Gpr)i];
                if (((vcpu.VmcallMask >> (16 + i)) & 1) != 0)
                    state.Xmm[i] = ctx.HostXmm[i];
            }

            state[Gpr.Rax] = 0;
            state[Gpr.Rcx] = vcpu.VmcallMask;
        }
        else if (vcpu.LastExit == TdExitKind.ASYNC_TRAP)
        {
            ulong hint = (flags & EnterRecoverabilityHint) != 0 ? 1UL << 60 : 0;
            state[Gpr.Rax] = (state[Gpr.Rax] & ~(1UL << 60)) | hint;
        }

        vcpu.RipAtEntry = state.Rip;
        if (vcpu.PendingNmi && !vcpu.Vmcs.VeInfo!.IsValid)
            vcpu.Vmcs.NmiWindowExiting = true;
    }

    /// <summary>
    /// An asynchronous TD exit: nothing of the guest is in the registers (tdx-module 4.10). What becomes of vCPU and TD follows from the outcome's bits: fatal (61)
    /// leaves the vCPU as it is and kills the TD, non-recoverable (62) disables the vCPU, the recoverability hint (60) makes the exit a trap.
    /// </summary>
    private bool ExitAsync(
        LpContext ctx,
        ref SeamRegisters r,
        TdxStatus outcome,
        uint reason,
        ulong qualification = 0,
        ulong extended = 0,
        ulong gpa = 0,
        uint interrupt = 0)
    {
        TdVcpu vcpu = ctx.Current!;
        bool keepsRbp = vcpu.Td.Parameters.NoRbpMod;
        if (ctx.BusLockPreempted)
        {
            reason |= BusLockPreempted;
            ctx.BusLockPreempted = false;
        }

        if (outcome.Value == 0)
            LeaveTd(ctx, TdExitKind.ASYNC_FAULT, TdVcpuState.READY);
        else
            LeaveInTrouble(ctx, outcome);
        ulong rbp = keepsRbp ? r.Rbp : 0;
        r = default;
        r.Rax = outcome.Value | reason;
        r.Rcx = (uint)qualification;
        r.Rdx = extended;
        r.R8 = gpa & ~0xFFFUL;
        r.R9 = interrupt;
        r.Rbp = rbp;
        return false;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void LeaveInTrouble(LpContext ctx, TdxStatus outcome)
    {
        TdVcpu vcpu = ctx.Current!;
        if ((outcome.Value & OutcomeFatal) != 0)
        {
            // The vCPU stays ACTIVE for ever. Of a TD whose memory may not be touched not even the count of its epoch is put right.
            vcpu.Td.SetFatal();
            if (outcome == TdxStatus.NON_RECOVERABLE_TD_NON_ACCESSIBLE)
                GiveBackRun(ctx);
            else
                LeaveTd(ctx, vcpu.LastExit, vcpu.State);
        }
        else if (outcome.IsNonRecoverable)
        {
            LeaveTd(ctx, vcpu.LastExit, TdVcpuState.DISABLED);
        }
        else
        {
            LeaveTd(ctx, (outcome.Value & OutcomeHint) != 0 ? TdExitKind.ASYNC_TRAP : TdExitKind.ASYNC_FAULT, TdVcpuState.READY);
        }
    }

    // The end of a run: vCPU READY, count of its epoch one lower, locks given back (tdx-module 4.10, exit sequence). The count falls after the last use
    // of a translation: a REMOVE that sees it may take the page.
    private void LeaveTd(LpContext ctx, TdExitKind kind, TdVcpuState next)
    {
        TdVcpu vcpu = ctx.Current!;
        vcpu.LastExit = kind;
        vcpu.State = next;
        vcpu.LastExitTsc = ctx.Lp.Ticks;
        vcpu.Td.Epoch.Add(unchecked(0UL - EpochWord.OneVcpu(vcpu.Epoch)));
        GiveBackRun(ctx);
    }

    private void GiveBackRun(LpContext ctx)
    {
        ctx.Current = null;
        if (ctx.RunGroup != 0)
        {
            SharedGroup.Release(ctx.Slot, ctx.RunGroup);
            return;
        }

        _pamt.Lock(ctx.RunTdr).ReleaseShared(ctx.Slot, ctx.RunTdrHold);
        _pamt.Release(ctx.Slot, ref ctx.RunTdvpr);
    }
}
