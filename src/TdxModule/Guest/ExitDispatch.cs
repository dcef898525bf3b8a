namespace Tdp.Module;

// What the module does with a VM exit of a TD: serve it, inject an event, or make it a TD exit (tdx-module 8.1, 8.4).
public sealed partial class TdxModule
{
    private const byte VectorUd = 6;
    private const byte VectorDf = 8;
    private const byte VectorGp = 13;
    private const byte VectorPf = 14;
    private const byte VectorVe = 20;
    private const ulong ResumeFlag = 1UL << 16;
    private const uint PoisonLength = 0xCC;
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

        // Progress since the entry ends the suspicion of zero-stepping (tdx-module 7.6).
        if (vmcs.State.Rip != vcpu.RipAtEntry)
        {
            vcpu.SameRipFaults = 0;
            vcpu.FaultCount = 0;
        }

        vcpu.LastExitWasFault = false;
        if (vmcs.IdtVectoring.IsValid)
        {
            // Delivered again at the next entry, unless the module injects something itself.
            vmcs.EntryEvent = vmcs.IdtVectoring;
            vmcs.IdtVectoring = default;
        }

        ref VmExit exit = ref vmcs.Exit;
        switch (exit.Reason)
        {
            case ExitReason.EptViolation:
                return HandleEptViolation(ctx, vcpu, ref registers);
            case ExitReason.EptMisconfiguration:
                return HandleMisconfiguration(ctx, vcpu, ref registers);
            case ExitReason.Tdcall:
                return HandleTdcall(ctx, vcpu, ref registers);
            case ExitReason.ExternalInterrupt or ExitReason.ExceptionOrNmi:
                return ExitAsync(ctx, ref registers, TdxStatus.SUCCESS, (uint)exit.Reason, TdExitKind.ASYNC_FAULT, exit.Qualification, interrupt: exit.InterruptInfo);
            case ExitReason.Init or ExitReason.OtherSmi or ExitReason.TaskSwitch or ExitReason.SimulatorScriptEnd:
                return ExitAsync(ctx, ref registers, TdxStatus.SUCCESS, (uint)exit.Reason, TdExitKind.ASYNC_FAULT, exit.Qualification);
            case ExitReason.NmiWindow:
                return OpenNmiWindow(vcpu);
            case ExitReason.TripleFault:
                LeaveTd(ctx, TdExitKind.ASYNC_FAULT, TdVcpuState.DISABLED);
                registers = default;
                registers.Rax = TdxStatus.NON_RECOVERABLE_VCPU.Value | (uint)exit.Reason;
                return false;
            default:
                return HandleInstruction(ctx, vcpu, ref registers);
        }
    }

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
        uint reason = (uint)vcpu.Vmcs.Exit.Reason;
        if ((vcpu.Td.Parameters.Attributes & TdParameters.Debug) != 0)
            return ExitAsync(ctx, ref r, TdxStatus.SUCCESS, reason, TdExitKind.ASYNC_FAULT, vcpu.Vmcs.Exit.Qualification);
        vcpu.Td.SetFatal();
        ExitAsync(ctx, ref r, TdxStatus.NON_RECOVERABLE_TD, reason, TdExitKind.ASYNC_FAULT);
        return false;
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
            vcpu.PendingNmi = false;
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
