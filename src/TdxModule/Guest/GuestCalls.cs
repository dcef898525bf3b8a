namespace Tdp.Module;

/// <summary>How a TDCALL ended.</summary>
internal enum GuestCallEnd : byte
{
    /// <summary>Status in RAX, RIP advanced.</summary>
    Answered,

    /// <summary>Stopped for an interrupt: RAX and RIP as they were, the guest executes TDCALL again.</summary>
    Again,

    /// <summary>An event was injected instead.</summary>
    Injected,

    /// <summary>TD exit; the host's registers are filled.</summary>
    Exited,
}

// The TDCALL dispatcher and the leaves that only touch the vCPU itself (tdx-module 1.3, 8.3, 8.6, 8.7).
public sealed partial class TdxModule
{
    private const ulong EferLma = 1UL << 10;
    private const ulong TdcallExit = (ulong)ExitReason.Tdcall;

    private bool HandleTdcall(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r)
    {
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        if (!state.Cs.IsLong || (state.Efer & EferLma) == 0)
            return InjectGp(vmcs);
        ctx.Lp.Spend(SimClock.ModuleCallTicks);
        ulong rax = state[Gpr.Rax];
        TdgLeaf leaf = (TdgLeaf)(ushort)rax;
        int version = (byte)(rax >> 16);
        TdxStatus status = TdxStatus.OPERAND_INVALID | OperandId.RAX;
        GuestCallEnd end = GuestCallEnd.Answered;
        if ((rax & ReservedRax) == 0 && (version == 0 || leaf == TdgLeaf.VM_RD))
            end = ExecuteGuest(ctx, vcpu, leaf, version, ref r, out status);
        if (end == GuestCallEnd.Answered)
            end = Answer(ctx, vcpu, ref status, ref r);
        else if (end == GuestCallEnd.Again)
            vcpu.HostPrioritySince = null;
        _observer?.GuestCalled(ctx.Lp, leaf, status, end == GuestCallEnd.Exited);

        // An ACCEPT that became an exit has no status yet; a VMCALL is over when it exits.
        if (end == GuestCallEnd.Answered || leaf == TdgLeaf.VP_VMCALL)
            ctx.Count(GuestLeafBase + Math.Min((int)leaf, UnknownGuestLeaf), status);
        return end != GuestCallEnd.Exited;
    }

    /// <summary>Guest leaves are counted from here, behind the host leaves.</summary>
    private const int GuestLeafBase = 96;

    private const int UnknownGuestLeaf = LpContext.LeafSlots - GuestLeafBase - 1;

    private GuestCallEnd ExecuteGuest(LpContext ctx, TdVcpu vcpu, TdgLeaf leaf, int version, ref SeamRegisters r, out TdxStatus status)
    {
        GuestState state = vcpu.Vmcs.State;
        switch (leaf)
        {
            case TdgLeaf.MEM_PAGE_ACCEPT:
                return AcceptCall(ctx, vcpu, ref r, out status);
            case TdgLeaf.VP_VMCALL:
                return VmCall(ctx, vcpu, ref r, out status);
            case TdgLeaf.MR_RTMR_EXTEND:
                return RtmrExtend(ctx, vcpu, ref r, out status);
            case TdgLeaf.MR_REPORT:
                return MrReport(ctx, vcpu, ref r, out status);
            case TdgLeaf.MR_VERIFYREPORT:
                return VerifyReport(ctx, vcpu, ref r, out status);
            case TdgLeaf.MEM_PAGE_ATTR_RD:
                return PageAttributesRead(ctx, vcpu, ref r, out status);
            case TdgLeaf.MEM_PAGE_ATTR_WR:
                return PageAttributesWrite(ctx, vcpu, ref r, out status);
            case TdgLeaf.VP_VEINFO_GET:
                status = VeInfoGet(vcpu);
                break;
            case TdgLeaf.VP_INFO:
                status = VpInfo(vcpu);
                break;
            case TdgLeaf.VP_CPUIDVE_SET:
                status = CpuidVeSet(vcpu);
                break;
            case TdgLeaf.VM_RD:
                status = GuestVmRead(vcpu.Td, version, state);
                break;
            case TdgLeaf.VM_WR:
                status = GuestVmWrite(vcpu.Td, state);
                break;
            case TdgLeaf.VP_RD:
                status = GuestVpRead(vcpu, state);
                break;
            case TdgLeaf.VP_WR:
                status = GuestVpWrite(vcpu, state);
                break;
            case TdgLeaf.SYS_RD:
                status = GuestSysRead(state);
                break;
            default:
                status = TdxStatus.OPERAND_INVALID | OperandId.RAX;
                break;
        }

        return GuestCallEnd.Answered;
    }

    // The common end: host priority is hidden from the guest and timed (tdx-module 7.5); RAX, then past the instruction. A call that left the TD has no result
    // and so does not stop the timer.
    private GuestCallEnd Answer(LpContext ctx, TdVcpu vcpu, ref TdxStatus status, ref SeamRegisters r)
    {
        bool timedOut = false;
        if (status.Class == TdxStatus.OPERAND_BUSY_HOST_PRIORITY)
        {
            status = TdxStatus.OPERAND_BUSY | status.Operand;
            ulong now = ctx.Lp.ReadTime();
            vcpu.HostPrioritySince ??= now;
            timedOut = now - vcpu.HostPrioritySince.Value >= vcpu.Td.HpLockTimeout.Read();
        }
        else
        {
            vcpu.HostPrioritySince = null;
        }

        vcpu.Vmcs.State[Gpr.Rax] = status.Value;
        Retire(vcpu.Vmcs);
        if (!timedOut)
            return GuestCallEnd.Answered;
        vcpu.HostPrioritySince = null;
        ExitAsync(ctx, ref r, TdxStatus.HOST_PRIORITY_BUSY_TIMEOUT, 0);
        return GuestCallEnd.Exited;
    }

    private GuestCallEnd VmCall(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r, out TdxStatus status)
    {
        GuestState state = vcpu.Vmcs.State;
        ulong mask = state[Gpr.Rcx];

        // RAX, RCX and RSP are never passed; RBP not by a TD that asked for it.
        ulong forbidden = 0x13UL | (vcpu.Td.Parameters.NoRbpMod ? 0x20UL : 0) | 0xFFFF_FFFF_0000_0000;
        status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if ((mask & forbidden) != 0)
            return GuestCallEnd.Answered;
        status = TdxStatus.SUCCESS;
        vcpu.VmcallMask = mask;
        Retire(vcpu.Vmcs);
        SeamRegisters host = default;
        for (int i = 0; i < 16; i++)
        {
            if (((mask >> i) & 1) != 0)
                host[(Gpr)i] = state[(Gpr)i];
        }

        // Only touched when the guest passes any: sixteen vectors are not free.
        if ((mask >> 16) != 0)
        {
            for (int i = 0; i < 16; i++)
                ctx.HostXmm[i] = ((mask >> (16 + i)) & 1) != 0 ? state.Xmm[i] : default;
        }

        LeaveTd(ctx, TdExitKind.TDVMCALL, TdVcpuState.READY);
        host.Rax = TdcallExit;
        host.Rcx = mask;
        if (vcpu.Td.Parameters.NoRbpMod)
            host.Rbp = r.Rbp;
        if (ctx.BusLockPreempted)
        {
            host.Rax |= BusLockPreempted;
            ctx.BusLockPreempted = false;
        }

        r = host;
        return GuestCallEnd.Exited;
    }

    private static TdxStatus VeInfoGet(TdVcpu vcpu)
    {
        GuestState state = vcpu.Vmcs.State;
        VeInfo area = vcpu.Vmcs.VeInfo!;
        bool valid = area.IsValid;
        state[Gpr.Rcx] = valid ? area.Reason : 0;
        state[Gpr.Rdx] = valid ? area.Qualification : 0;
        state[Gpr.R8] = valid ? area.Gla : 0;
        state[Gpr.R9] = valid ? area.Gpa : 0;
        state[Gpr.R10] = valid ? area.InstructionLength | ((ulong)area.InstructionInfo << 32) : 0;
        area.IsValid = false;

        // A held NMI may come now (tdx-module 8.3).
        if (vcpu.PendingNmi)
            vcpu.Vmcs.NmiWindowExiting = true;
        return valid ? TdxStatus.SUCCESS : TdxStatus.NO_VALID_VE_INFO;
    }

    private static TdxStatus VpInfo(TdVcpu vcpu)
    {
        GuestState state = vcpu.Vmcs.State;
        state[Gpr.Rcx] = (ulong)vcpu.Td.GpaWidth;
        state[Gpr.Rdx] = vcpu.Td.Parameters.Attributes;
        state[Gpr.R8] = (uint)vcpu.Td.VcpuCounts.Read() | ((ulong)vcpu.Td.Parameters.MaxVcpus << 32);
        state[Gpr.R9] = vcpu.Index;
        state[Gpr.R10] = 1;
        state[Gpr.R11] = 0;
        return TdxStatus.SUCCESS;
    }

    private static TdxStatus CpuidVeSet(TdVcpu vcpu)
    {
        ulong flags = vcpu.Vmcs.State[Gpr.Rcx];
        if ((flags & ~3UL) != 0)
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        vcpu.CpuidVeSupervisor = (byte)(flags & 1);
        vcpu.CpuidVeUser = (byte)((flags >> 1) & 1);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus GuestVmRead(TdControl td, int version, GuestState state)
    {
        ulong id = state[Gpr.Rdx];
        state[Gpr.R8] = 0;
        if (version >= 1)
            state[Gpr.Rdx] = FieldId.Null;
        if (version > 1)
            return TdxStatus.OPERAND_INVALID | OperandId.RAX;
        return state[Gpr.Rcx] != 0
            ? TdxStatus.OPERAND_INVALID | OperandId.RCX
            : ReadTd(td, id, FieldCaller.Guest, version == 1, ref state[Gpr.Rdx], ref state[Gpr.R8]);
    }

    private TdxStatus GuestVmWrite(TdControl td, GuestState state)
    {
        ulong value = state[Gpr.R8];
        state[Gpr.R8] = 0;
        return state[Gpr.Rcx] != 0
            ? TdxStatus.OPERAND_INVALID | OperandId.RCX
            : WriteTd(td, state[Gpr.Rdx], value, state[Gpr.R9], FieldCaller.Guest, ref state[Gpr.R8]);
    }

    private static TdxStatus GuestVpRead(TdVcpu vcpu, GuestState state)
    {
        ulong id = state[Gpr.Rdx];
        state[Gpr.R8] = 0;
        state[Gpr.Rdx] = FieldId.Null;
        return state[Gpr.Rcx] != 0
            ? TdxStatus.OPERAND_INVALID | OperandId.RCX
            : ReadVp(vcpu, id, FieldCaller.Guest, withNext: true, ref state[Gpr.Rdx], ref state[Gpr.R8]);
    }

    private TdxStatus GuestVpWrite(TdVcpu vcpu, GuestState state)
    {
        ulong value = state[Gpr.R8];
        state[Gpr.R8] = 0;
        return state[Gpr.Rcx] != 0
            ? TdxStatus.OPERAND_INVALID | OperandId.RCX
            : WriteVp(vcpu, state[Gpr.Rdx], value, state[Gpr.R9], FieldCaller.Guest, ref state[Gpr.R8]);
    }

    private TdxStatus GuestSysRead(GuestState state)
    {
        ulong id = state[Gpr.Rdx];
        state[Gpr.R8] = 0;
        state[Gpr.Rdx] = FieldId.Null;
        return ReadSystem(id, FieldCaller.Guest, ref state[Gpr.Rdx], ref state[Gpr.R8]);
    }
}
