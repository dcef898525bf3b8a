namespace Tdp.Module;

// What the module does with a VM exit of a TD: serve it, inject an event, or make it a TD exit (tdx-module 8.1, 8.4).
public sealed partial class TdxModule
{
    private const byte VectorUd = 6;
    private const byte VectorDf = 8;
    private const byte VectorGp = 13;
    private const byte VectorPf = 14;
    private const byte VectorMc = 18;
    private const byte VectorVe = 20;
    private const ulong ResumeFlag = 1UL << 16;
    private const uint PoisonLength = 0xCC;

    /// <summary>Bit 26 of an exit reason.</summary>
    private const uint BusLockPreempted = 1u << 26;

    /// <summary>Bit 31 of an exit reason: the VM entry failed.</summary>
    private const uint EntryFailed = 1u << 31;

    /// <summary>SMI exit: a machine check caused it.</summary>
    private const ulong MachineCheckSmi = 1;

    /// <summary>Notification exit: the guest's context is lost.</summary>
    private const ulong ContextInvalid = 1;
    private const ulong EptQualificationMask = ~0x1F80UL;

    /// <summary>
    /// The exit half (decisions D25): looks at the exit that the engine left in the current VMCS. True: enter the engine again, an event may wait in
    /// <see cref="Vmcs.EntryEvent"/>. False: TD exit, the processor is in the host and the registers are those of tdx-module 4.10.
    /// </summary>
    public bool HandleExit(LogicalProcessor lp, ref SeamRegisters registers)
    {
        LpContext ctx = _lps[lp.Id];
        TdVcpu vcpu = ctx.Current ?? throw new InvalidOperationException($"LP {lp.Id} is not inside a TD.");
        Vmcs vmcs = vcpu.Vmcs;

        // Another processor found the TD's memory broken, or killed it otherwise: nothing of it is touched any more.
        if (TdControl.IsFatal(vcpu.Td.State.Read()))
        {
            ref VmExit last = ref vmcs.Exit;
            return ExitAsync(ctx, ref registers, TdxStatus.NON_RECOVERABLE_TD_NON_ACCESSIBLE, (uint)last.Reason, last.Qualification, interrupt: last.InterruptInfo);
        }

        // Progress since the entry ends the suspicion of zero-stepping (tdx-module 7.6).
        if (vmcs.State.Rip != vcpu.RipAtEntry)
        {
            vcpu.SameRipFaults = 0;
            vcpu.FaultCount = 0;
        }

        vcpu.LastExitWasFault = false;
        if (vmcs.IdtVectoring.IsValid)
        {
            // Delivered again at the next entry, unless the module injects something itself. An NMI must find NMIs unblocked then.
            vmcs.EntryEvent = vmcs.IdtVectoring;
            if (vmcs.IdtVectoring.Type == VmEvent.Nmi)
                vmcs.State.NmiBlocked = false;
            vmcs.IdtVectoring = default;
        }

        return DispatchExit(ctx, vcpu, ref registers);
    }

    private bool DispatchExit(LpContext ctx, TdVcpu vcpu, ref SeamRegisters registers)
    {
        ref VmExit exit = ref vcpu.Vmcs.Exit;
        switch (exit.Reason)
        {
            case ExitReason.EptViolation:
                return HandleEptViolation(ctx, vcpu, ref registers);
            case ExitReason.EptMisconfiguration:
                return HandleMisconfiguration(ctx, vcpu, ref registers);
            case ExitReason.Tdcall:
                return HandleTdcall(ctx, vcpu, ref registers);
            case ExitReason.ExternalInterrupt:
                return ExitAsync(ctx, ref registers, TdxStatus.SUCCESS, (uint)exit.Reason, exit.Qualification, interrupt: exit.InterruptInfo);
            case ExitReason.ExceptionOrNmi:
                return HandleException(ctx, vcpu, ref registers);
            case ExitReason.Init or ExitReason.TaskSwitch or ExitReason.BusLock or ExitReason.SimulatorScriptEnd:
                return ExitAsync(ctx, ref registers, TdxStatus.SUCCESS, (uint)exit.Reason, exit.Qualification);
            case ExitReason.OtherSmi:
                TdxStatus smi = (exit.Qualification & MachineCheckSmi) != 0 ? TdxStatus.NON_RECOVERABLE_TD_NON_ACCESSIBLE : TdxStatus.SUCCESS;
                return ExitAsync(ctx, ref registers, smi, (uint)exit.Reason, exit.Qualification, interrupt: exit.InterruptInfo);
            case ExitReason.Notify:
                return HandleNotification(ctx, vcpu, ref registers);
            case ExitReason.MachineCheck:
                return ExitAsync(ctx, ref registers, TdxStatus.NON_RECOVERABLE_TD_NON_ACCESSIBLE, (uint)exit.Reason | EntryFailed, exit.Qualification);
            case ExitReason.NmiWindow:
                return OpenNmiWindow(vcpu);
            case ExitReason.TripleFault:
                return ExitAsync(ctx, ref registers, TdxStatus.NON_RECOVERABLE_VCPU, (uint)exit.Reason, exit.Qualification);
            default:
                return HandleInstruction(ctx, vcpu, ref registers);
        }
    }

    // An NMI is the host's. A machine check makes the TD's memory untouchable. Other exceptions exit only where a debugger asked for them.
    private bool HandleException(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        ref VmExit exit = ref vcpu.Vmcs.Exit;
        bool isNmi = ((exit.InterruptInfo >> 8) & 7) == VmEvent.Nmi;
        bool isMachineCheck = !isNmi && (byte)exit.InterruptInfo == VectorMc;
        if (!isNmi && !isMachineCheck && !IsDebug(vcpu))
            throw new ArchitecturalFatalException($"exit of a production TD for exception 0x{exit.InterruptInfo:x}");
        TdxStatus outcome = isMachineCheck ? TdxStatus.NON_RECOVERABLE_TD_NON_ACCESSIBLE : TdxStatus.SUCCESS;
        return ExitAsync(ctx, ref r, outcome, (uint)exit.Reason, exit.Qualification, interrupt: exit.InterruptInfo);
    }

    private bool HandleNotification(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        ref VmExit exit = ref vcpu.Vmcs.Exit;
        if ((exit.Qualification & NmiUnblocking) != 0)
            vcpu.Vmcs.State.NmiBlocked = true;
        TdxStatus outcome = (exit.Qualification & ContextInvalid) != 0 ? TdxStatus.NON_RECOVERABLE_TD : TdxStatus.SUCCESS;
        return ExitAsync(ctx, ref r, outcome, (uint)exit.Reason, exit.Qualification);
    }

    // The bus lock is reported whatever the exit itself was: with its TD exit, or by a TD exit of its own.
    private bool HandlePreemptedBusLock(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        ctx.BusLockPreempted = true;
        vcpu.Vmcs.Exit.Reason = (ExitReason)((uint)vcpu.Vmcs.Exit.Reason & ~BusLockPreempted);
        return DispatchExit(ctx, vcpu, ref r) && ExitAsync(ctx, ref r, TdxStatus.SUCCESS, (uint)ExitReason.BusLock);
    }

    private static bool IsDebug(TdVcpu vcpu) => (vcpu.Td.Parameters.Attributes & TdParameters.Debug) != 0;

    private bool HandleInstruction(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        Vmcs vmcs = vcpu.Vmcs;
        ref VmExit exit = ref vmcs.Exit;
        switch (exit.Reason)
        {
            case ExitReason.IoInstruction or ExitReason.ApicWrite:
                return InjectInstructionVe(vmcs, exit.Qualification);
            case ExitReason.Hlt or ExitReason.Invd or ExitReason.Wbinvd or ExitReason.Vmcall or ExitReason.Pconfig:
            case ExitReason.Monitor or ExitReason.Mwait:
                return InjectInstructionVe(vmcs, 0);
            case ExitReason.Cpuid:
                return HandleCpuid(vcpu);
            case ExitReason.Rdmsr:
                return HandleRdmsr(vcpu);
            case ExitReason.Wrmsr:
                return HandleWrmsr(vcpu);
            case ExitReason.CrAccess:
                return HandleControlRegister(vcpu);
            case ExitReason.Xsetbv:
                return HandleXsetbv(vcpu);
            case ExitReason.Rdpmc or ExitReason.Enqcmd or ExitReason.SimulatorEnclu:
                return InjectGp(vmcs);
            case ExitReason.Enqcmds or ExitReason.Seamcall:
                return InjectFault(vmcs, VmEvent.Exception(VectorUd));
            case ExitReason.Enclv:
                return Forbid(vmcs, Profile.EnclvIsUndefined);
            case ExitReason.Getsec or ExitReason.Rsm or ExitReason.Vmclear or ExitReason.Vmlaunch or ExitReason.Vmptrld or ExitReason.Vmptrst:
            case ExitReason.Vmread or ExitReason.Vmresume or ExitReason.Vmwrite or ExitReason.Vmxoff or ExitReason.Vmxon or ExitReason.Invept:
            case ExitReason.Invvpid or ExitReason.Vmfunc or ExitReason.Encls:
                return Forbid(vmcs, Profile.VmxInstructionsAreUndefined);
            default:
                return HandleUnexpected(ctx, vcpu, ref r);
        }
    }

    // An exit that no table lists: a debug TD's host may look at it, a production TD is dead (tdx-module 8.4, last line).
    private bool HandleUnexpected(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        ref VmExit exit = ref vcpu.Vmcs.Exit;
        if (((uint)exit.Reason & BusLockPreempted) != 0)
            return HandlePreemptedBusLock(ctx, vcpu, ref r);
        return ExitAsync(ctx, ref r, IsDebug(vcpu) ? TdxStatus.SUCCESS : TdxStatus.NON_RECOVERABLE_TD, (uint)exit.Reason, exit.Qualification);
    }

    private static bool Forbid(Vmcs vmcs, bool undefined) => undefined ? InjectFault(vmcs, VmEvent.Exception(VectorUd)) : InjectGp(vmcs);

    private static bool InjectGp(Vmcs vmcs) => InjectFault(vmcs, VmEvent.Exception(VectorGp, 0));

    // The instruction is not retired: RIP stays, RF is set so that an instruction breakpoint does not fire again.
    private static bool InjectFault(Vmcs vmcs, VmEvent what)
    {
        vmcs.EntryEvent = what;
        vmcs.State.Rflags |= ResumeFlag;
        return true;
    }

    private static bool InjectInstructionVe(Vmcs vmcs, ulong qualification)
    {
        ref VmExit exit = ref vmcs.Exit;
        InjectVe(vmcs, exit.Reason, qualification, 0, 0, exit.InstructionLength, exit.InstructionInfo);
        return true;
    }

    /// <summary>#VE, or #DF when the last one has not been read (tdx-module 8.3; B09).</summary>
    private static void InjectVe(Vmcs vmcs, ExitReason reason, ulong qualification, ulong gla, ulong gpa, uint length, uint info)
    {
        VeInfo area = vmcs.VeInfo!;
        if (area.IsValid)
        {
            InjectFault(vmcs, VmEvent.Exception(VectorDf, 0));
            return;
        }

        area.Fill((uint)reason, qualification, gla, gpa, length, info);
        InjectFault(vmcs, VmEvent.Exception(VectorVe));
    }

    private static bool OpenNmiWindow(TdVcpu vcpu)
    {
        Vmcs vmcs = vcpu.Vmcs;
        vmcs.NmiWindowExiting = false;
        if (vcpu.PendingNmi && !vmcs.VeInfo!.IsValid)
        {
            vcpu.PendNmi = 0;
            vmcs.EntryEvent = VmEvent.NonMaskable();
        }

        return true;
    }

    /// <summary>The module emulated the instruction: past it, STI and MOV SS blocking over.</summary>
    private static bool Retire(Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        state.Rip += vmcs.Exit.InstructionLength;
        state.StiShadow = false;
        state.MovSsShadow = false;
        state.Rflags &= ~ResumeFlag;
        return true;
    }
}
