namespace Tdp.Module;

// EPT violations and misconfigurations of a TD (tdx-module 8.1, 8.2). The module looks at the Secure EPT entry when it handles the exit, not when the access
// happened: if another processor mapped the page in between, the host gets a spurious exit.
public sealed partial class TdxModule
{
    private const ulong ExtendedAccept = 1;
    private const ulong ExtendedPending = 6;
    private const ulong LinearValid = 1 << 7;
    private const ulong NmiUnblocking = 1 << 12;

    private bool HandleEptViolation(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        TdControl td = vcpu.Td;
        Vmcs vmcs = vcpu.Vmcs;
        ref VmExit exit = ref vmcs.Exit;
        ulong gpa = exit.Gpa;

        // The access belonged to an IRET that had unblocked NMIs already: it will be executed again (tdx-module 8.1).
        if ((exit.Qualification & NmiUnblocking) != 0 && !vmcs.EntryEvent.IsValid)
            vmcs.State.NmiBlocked = true;
        if (td.GpaWidth == 48 && (gpa >> 48) != 0 && (exit.Qualification & LinearValid) != 0)
            return InjectReservedPageFault(vmcs);
        if ((gpa & td.AliasBit.GpaMask) != 0)
            return HandleSharedViolation(ctx, vcpu, ref r);

        bool found = WalkTo(td, gpa, 0, out SeptPlace place);
        if ((found || SeptEntry.IsLeaf(place.Entry)) && SeptEntry.StateOf(place.Entry).IsAcceptable())
        {
            if ((td.TdCtls.Read() & 1) == 0)
            {
                InjectVe(vmcs, ExitReason.EptViolation, exit.Qualification, exit.Gla, gpa, exit.InstructionLength, exit.InstructionInfo);
                return true;
            }

            RecordFault(vcpu, gpa);
            return ExitViolation(ctx, ref r, exit, ExtendedPending, gpa);
        }

        RecordFault(vcpu, gpa);
        return ExitViolation(ctx, ref r, exit, 0, gpa);
    }

    private bool HandleSharedViolation(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        Vmcs vmcs = vcpu.Vmcs;
        ref VmExit exit = ref vmcs.Exit;

        // B07: the CPU did not convert because the last #VE is unread. An event in delivery goes to the host in both profiles (B09).
        if (exit.IsConvertible && vmcs.VeInfo!.IsValid && !vmcs.EntryEvent.IsValid && Profile.NestedConvertibleIsDoubleFault)
            return InjectFault(vmcs, VmEvent.Exception(VectorDf, 0));
        return ExitViolation(ctx, ref r, exit, 0, exit.Gpa);
    }

    private bool ExitViolation(LpContext ctx, ref SeamRegisters r, in VmExit exit, ulong extended, ulong gpa) => ExitAsync(
        ctx,
        ref r,
        TdxStatus.SUCCESS,
        (uint)ExitReason.EptViolation,
        exit.Qualification & EptQualificationMask,
        extended,
        gpa);

    // The first violations at one RIP are only counted, the later ones recorded (tdx-module 7.6).
    private void RecordFault(TdVcpu vcpu, ulong gpa)
    {
        vcpu.LastExitWasFault = true;
        if (vcpu.SameRipFaults < Options.EpfThreshold)
        {
            vcpu.SameRipFaults++;
            return;
        }

        if (vcpu.FaultCount < TdVcpu.FaultListSize && !vcpu.FaultList.AsSpan(0, vcpu.FaultCount).Contains(gpa))
            vcpu.FaultList[vcpu.FaultCount++] = gpa;
    }

    private static bool InjectReservedPageFault(Vmcs vmcs)
    {
        ref VmExit exit = ref vmcs.Exit;
        uint code = 1 | (1 << 3);
        if ((exit.Qualification & 2) != 0)
            code |= 1 << 1;
        if (vmcs.State.Cpl == 3)
            code |= 1 << 2;
        if ((exit.Qualification & 4) != 0)
            code |= 1 << 4;
        vmcs.State.Cr2 = exit.Gla;
        return InjectFault(vmcs, VmEvent.Exception(VectorPf, code));
    }

    private bool HandleMisconfiguration(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        ref VmExit exit = ref vcpu.Vmcs.Exit;
        if ((exit.Gpa & vcpu.Td.AliasBit.GpaMask) == 0)
            throw new ArchitecturalFatalException($"EPT misconfiguration of private GPA 0x{exit.Gpa:x}");
        return ExitAsync(ctx, ref r, TdxStatus.SUCCESS, (uint)exit.Reason, gpa: exit.Gpa);
    }
}
