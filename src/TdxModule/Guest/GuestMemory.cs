namespace Tdp.Module;

// How a TDCALL reaches its operands in guest memory: as the guest itself would, with the same consequences (tdx-module 8.1, last paragraph).
public sealed partial class TdxModule
{
    /// <summary>
    /// Translates an operand's address for the module. Anything but <see cref="GuestCallEnd.Answered"/> ends the call: a #VE was injected or the guest
    /// left, and the guest executes TDCALL again afterwards.
    /// </summary>
    private GuestCallEnd Reach(LpContext ctx, TdVcpu vcpu, ulong gpa, bool write, ref SeamRegisters r, out ulong address)
    {
        TdControl td = vcpu.Td;
        address = 0;
        if ((gpa & td.AliasBit.GpaMask) != 0)
            return ReachShared(ctx, vcpu, gpa, write, ref r, out address);
        ulong wanted = write ? EptEntry.Write : EptEntry.Read;
        _ = WalkTo(td, gpa, 0, out SeptPlace place);
        if (SeptEntry.IsLeaf(place.Entry) && (place.Entry & wanted) != 0)
        {
            address = WithoutAcceptCounter(place) | (gpa & ((1UL << ((9 * place.Level) + 12)) - 1));
            return GuestCallEnd.Answered;
        }

        ulong qualification = wanted | ((place.Entry & SeptEntry.Rwx) << 3);
        bool pending = SeptEntry.IsLeaf(place.Entry) && SeptEntry.StateOf(place.Entry).IsAcceptable();
        if (pending && (td.TdCtls.Read() & 1) == 0)
        {
            InjectVe(vcpu.Vmcs, ExitReason.EptViolation, qualification, 0, gpa, PoisonLength, 0);
            return GuestCallEnd.Injected;
        }

        return ExitReach(ctx, ref r, ExitReason.EptViolation, qualification, pending ? ExtendedPending : 0, gpa);
    }

    private GuestCallEnd ReachShared(LpContext ctx, TdVcpu vcpu, ulong gpa, bool write, ref SeamRegisters r, out ulong address)
    {
        Vmcs vmcs = vcpu.Vmcs;
        AccessKind access = write ? AccessKind.Write : AccessKind.Read;
        address = 0;
        if (vmcs.SharedEptp == 0)
            return ExitReach(ctx, ref r, ExitReason.EptViolation, (ulong)access, 0, gpa);
        EptWalk walk = EptWalker.WalkToMemory(_memory, vmcs.SharedEptp, new Gpa(gpa), access);
        if (walk.Outcome == EptOutcome.Ok)
        {
            // The shared EPT is the host's and may lead where no memory is: no page, no operand.
            address = walk.Address.Value;
            return _memory.Exists(walk.Address) ? GuestCallEnd.Answered : ExitReach(ctx, ref r, ExitReason.EptMisconfiguration, 0, 0, gpa);
        }

        if (walk.IsConvertible && !vmcs.VeInfo!.IsValid)
        {
            InjectVe(vmcs, ExitReason.EptViolation, walk.Qualification(access), 0, gpa, PoisonLength, 0);
            return GuestCallEnd.Injected;
        }

        ExitReason reason = walk.Outcome == EptOutcome.Violation ? ExitReason.EptViolation : ExitReason.EptMisconfiguration;
        return ExitReach(ctx, ref r, reason, reason == ExitReason.EptViolation ? walk.Qualification(access) : 0, 0, gpa);
    }

    private GuestCallEnd ExitReach(LpContext ctx, ref SeamRegisters r, ExitReason reason, ulong qualification, ulong extended, ulong gpa)
    {
        ExitAsync(ctx, ref r, TdxStatus.SUCCESS, (uint)reason, qualification, extended, gpa);
        return GuestCallEnd.Exited;
    }

    private GuestCallEnd PageAttributesRead(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r, out TdxStatus status)
    {
        GuestState state = vcpu.Vmcs.State;
        ulong gpa = state[Gpr.Rcx];
        status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if (!IsLegalPrivate(vcpu.Td, gpa))
            return GuestCallEnd.Answered;
        _ = WalkTo(vcpu.Td, gpa, 0, out SeptPlace place);
        if (!TryLockForGuest(ref place, out status))
            return GuestCallEnd.Answered;
        UnlockEntry(place);
        if (!SeptEntry.IsLeaf(place.Entry) || SeptEntry.StateOf(place.Entry).IsBlocked())
            return ExitReach(ctx, ref r, ExitReason.EptViolation, 0, 0, gpa);
        bool pending = SeptEntry.StateOf(place.Entry).IsAcceptable();
        state[Gpr.Rcx] = (gpa & ~((1UL << ((9 * place.Level) + 12)) - 1)) | (uint)place.Level | (pending ? 1UL << 62 : 0);

        // Sixteen bits per VM; those of the L1 guest are 0 in this version.
        state[Gpr.Rdx] = 0;
        status = TdxStatus.SUCCESS;
        return GuestCallEnd.Answered;
    }

    // Only attributes of L2 VMs can change, and there are none: what is asked for is refused in the documented order (tdx-module 5.10).
    private GuestCallEnd PageAttributesWrite(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r, out TdxStatus status)
    {
        GuestState state = vcpu.Vmcs.State;
        ulong pageInfo = state[Gpr.Rcx];
        status = TdxStatus.SUCCESS;
        if (state[Gpr.Rdx] != 0)
            status = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        else if (state[Gpr.R8] != 0)
            status = TdxStatus.OPERAND_INVALID | OperandId.R8;
        else if (!PageInfo.IsLegal(pageInfo, 0, 2) || (pageInfo & vcpu.Td.IllegalGpaBits) != 0)
            status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if (status.IsError)
            return GuestCallEnd.Answered;
        int level = PageInfo.LevelOf(pageInfo);
        bool found = WalkTo(vcpu.Td, PageInfo.GpaOf(pageInfo), level, out SeptPlace place);
        if (found && !TryLockForGuest(ref place, out status))
            return GuestCallEnd.Answered;
        if (found)
            UnlockEntry(place);
        SeptState entry = SeptEntry.StateOf(place.Entry);
        if (found && entry != SeptState.FREE && !SeptEntry.IsLeaf(place.Entry))
        {
            status = TdxStatus.PAGE_SIZE_MISMATCH | (uint)level;
            return GuestCallEnd.Answered;
        }

        if (found && entry is SeptState.MAPPED or SeptState.PENDING)
            return GuestCallEnd.Answered;
        _ = ExitForAccept(level, place, out AcceptExit exit);
        return ExitReach(ctx, ref r, ExitReason.EptViolation, exit.Qualification, exit.Extended - ExtendedAccept + ExtendedAttributes, PageInfo.GpaOf(pageInfo));
    }

    private const ulong ExtendedAttributes = 5;
}
