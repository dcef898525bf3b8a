namespace Tdp.Module;

// TDH.VP.CREATE, ADDCX, INIT, FLUSH (tdx-module 4.7).
public sealed partial class TdxModule
{
    private const ulong ResetRip = 0xFFFF_FFF0;

    /// <summary>
    /// Simulator port (decisions D22, Direct64): the state with which a vCPU starts, applied by VP.INIT on top of the architectural reset state. The
    /// host-side VMM takes it from the guest image's boot protocol. To be called after VP.CREATE and before VP.INIT.
    /// </summary>
    /// <param name="tdvpr">The vCPU.</param>
    /// <param name="apply">Changes the state; called once, by VP.INIT.</param>
    public void UseEntryState(Hpa tdvpr, Action<GuestState> apply) => FindVcpu(tdvpr).EntryState = apply;

    private TdVcpu FindVcpu(Hpa tdvpr)
    {
        if (!_pamt.IsLegal(tdvpr.Value) || !_pamt.Covers(tdvpr.Value) || PamtEntry.TypeOf(_pamt.Word(_pamt.Entry4K(tdvpr.Value)).Read()) != PageType.TDVPR)
            throw new ArgumentException($"{tdvpr} is not a vCPU root page", nameof(tdvpr));
        return _vcpus[_memory.Record(tdvpr.Frame).Tag];
    }

    private TdxStatus VpCreate(LpContext ctx, ulong tdvpr, ulong tdr)
    {
        TdxStatus status = EnterTd(ctx, tdr, OperandId.RDX, OpStates.CreateVcpu, out MemGate gate);
        if (status.IsError)
            return status;
        status = _pamt.LockFree(ctx.Slot, tdvpr, OperandId.RCX, 0, out PageHold hold);
        if (!status.IsError)
        {
            _memory.Zero(new Hpa(tdvpr));
            TdControl td = gate.Td;
            _memory.Record(tdvpr >> 12).Tag = _vcpus.Add(number => new TdVcpu(new Hpa(tdvpr), td, number + 1));
            Take(ctx, td, tdvpr, PageType.TDVPR, ref hold);
        }

        Leave(ctx, ref gate);
        return status;
    }

    /// <summary>
    /// Locks the TDVPR of a VP leaf and the TDR it belongs to, and opens the gate (tdx-module 4.3, last line). On failure everything is released.
    /// </summary>
    private TdxStatus EnterVcpu(LpContext ctx, ulong tdvpr, OperandId operand, bool exclusive, bool tdrExclusive, out VcpuGate gate)
    {
        gate = default;
        TdxStatus status = _pamt.LockExplicit(ctx.Slot, tdvpr, operand, 0, exclusive, out gate.Tdvpr, out ulong word);
        if (status.IsError)
            return status;
        if (gate.Tdvpr.Level != 0 || PamtEntry.TypeOf(word) != PageType.TDVPR)
        {
            LeaveVcpu(ctx, ref gate);
            return TdxStatus.PAGE_METADATA_INCORRECT | operand;
        }

        // The vCPU page keeps its TD: the owner cannot have been reclaimed before it.
        ulong tdrEntry = _pamt.Entry4K(PamtEntry.OwnerFrame(word) << 12);
        TryLock tdrLock = _pamt.Lock(tdrEntry);
        LockAnswer answer = tdrExclusive ? tdrLock.TryExclusive(ctx.Slot, LockSide.Host) : tdrLock.TryShared(ctx.Slot, LockSide.Host, out gate.TdrHold);
        if (answer != LockAnswer.Taken)
        {
            LeaveVcpu(ctx, ref gate);
            return TdxStatus.OPERAND_BUSY | OperandId.TDR;
        }

        gate.Tdr = tdrEntry;
        gate.TdrExclusive = tdrExclusive;
        gate.Vcpu = _vcpus[_memory.Record(tdvpr >> 12).Tag];
        gate.Td = gate.Vcpu.Td;
        return TdxStatus.SUCCESS;
    }

    /// <summary>Steps 5 to 9 of the gate for a vCPU leaf; OP_STATE stays shared until <see cref="LeaveVcpu"/>.</summary>
    private static TdxStatus OpenVcpu(LpContext ctx, ref VcpuGate gate, uint allowed)
    {
        TdxStatus status = CheckOpen(gate.Td, out ulong state);
        if (status.IsError)
            return status;
        if (new TryLock(ref gate.Td.OpStateLock).TryShared(ctx.Slot, LockSide.Host, out gate.OpState) != LockAnswer.Taken)
            return TdxStatus.OPERAND_BUSY | OperandId.OP_STATE;
        gate.HasOpState = true;
        return CheckOpState(state, allowed);
    }

    private void LeaveVcpu(LpContext ctx, ref VcpuGate gate)
    {
        if (gate.Group != 0)
        {
            SharedGroup.Release(ctx.Slot, gate.Group);
            return;
        }

        LeaveOpState(ctx, ref gate);
        if (gate.Tdr != 0 && gate.TdrExclusive)
            _pamt.Lock(gate.Tdr).ReleaseExclusive();
        else if (gate.Tdr != 0)
            _pamt.Lock(gate.Tdr).ReleaseShared(ctx.Slot, gate.TdrHold);
        _pamt.Release(ctx.Slot, ref gate.Tdvpr);
    }

    private static void LeaveOpState(LpContext ctx, ref VcpuGate gate)
    {
        if (gate.Group != 0)
        {
            // Published last, so it is the highest.
            uint opState = 0x8000_0000u >> System.Numerics.BitOperations.LeadingZeroCount(gate.Group);
            SharedGroup.Release(ctx.Slot, opState);
            gate.Group ^= opState;
        }
        else if (gate.HasOpState)
            new TryLock(ref gate.Td.OpStateLock).ReleaseShared(ctx.Slot, gate.OpState);
        gate.HasOpState = false;
    }

    private TdxStatus VpAddcx(LpContext ctx, ulong page, ulong tdvpr)
    {
        TdxStatus status = EnterVcpu(ctx, tdvpr, OperandId.RDX, exclusive: true, tdrExclusive: false, out VcpuGate gate);
        if (status.IsError)
            return status;
        status = OpenVcpu(ctx, ref gate, OpStates.CreateVcpu);
        if (!status.IsError && gate.Vcpu.State != TdVcpuState.UNINITIALIZED)
            status = TdxStatus.VCPU_STATE_INCORRECT;
        if (!status.IsError && gate.Vcpu.Pages >= TdVcpu.MaxPages)
            status = TdxStatus.TDCX_NUM_INCORRECT;
        if (!status.IsError)
        {
            status = _pamt.LockFree(ctx.Slot, page, OperandId.RCX, 0, out PageHold hold);
            if (!status.IsError)
            {
                _memory.Zero(new Hpa(page));
                Take(ctx, gate.Td, page, PageType.TDCX, ref hold);
                gate.Vcpu.AddPage(new Hpa(page));
            }
        }

        LeaveVcpu(ctx, ref gate);
        return status;
    }

    private TdxStatus VpInit(LpContext ctx, int version, ref SeamRegisters r)
    {
        // Version 1 takes the TDR alone (decisions D05): R24 exists only with it.
        if (version > 1)
            return TdxStatus.OPERAND_INVALID | OperandId.RAX;
        TdxStatus status = EnterVcpu(ctx, r.Rcx, OperandId.RCX, exclusive: true, tdrExclusive: version == 1, out VcpuGate gate);
        if (status.IsError)
            return status;
        status = OpenVcpu(ctx, ref gate, OpStates.Initialized);
        if (!status.IsError)
            status = InitializeVcpu(ctx, gate.Td, gate.Vcpu, version == 1 ? (uint)r.R8 : null, r.Rdx);
        LeaveVcpu(ctx, ref gate);
        return status;
    }

    private TdxStatus InitializeVcpu(LpContext ctx, TdControl td, TdVcpu vcpu, uint? x2ApicId, ulong operand)
    {
        if (vcpu.Pages < TdVcpu.MinPages)
            return TdxStatus.TDCX_NUM_INCORRECT;
        if (vcpu.State != TdVcpuState.UNINITIALIZED)
            return TdxStatus.VCPU_STATE_INCORRECT;

        // VCPU_INDEX is taken with the count: two processors may initialise vCPUs of one TD at once.
        AtomicWord counts = td.VcpuCounts;
        ulong seen = counts.Read();
        do
        {
            if ((uint)seen >= td.Parameters.MaxVcpus)
                return TdxStatus.MAX_VCPUS_EXCEEDED;
        }
        while (!counts.CompareExchange(ref seen, seen + 1));

        vcpu.Index = (uint)seen;
        vcpu.X2ApicId = x2ApicId ?? vcpu.Index;
        _ = vcpu.TryAssociate(ctx.Id, out _);
        Reset(td, vcpu, operand);
        vcpu.EntryState?.Invoke(vcpu.Vmcs.State);
        vcpu.LastExit = TdExitKind.ASYNC_FAULT;
        vcpu.State = TdVcpuState.READY;
        return TdxStatus.SUCCESS;
    }

    // Architectural reset of a TD's vCPU (td-guest 1.1) and the VMCS controls that never change afterwards.
    private void Reset(TdControl td, TdVcpu vcpu, ulong operand)
    {
        Vmcs vmcs = vcpu.Vmcs;
        vmcs.Eptp = td.Eptp;
        vmcs.AliasBit = td.AliasBit;
        vmcs.GpaWidth = td.GpaWidth;
        vmcs.TscMultiplier = td.TscMultiplier;
        vmcs.TscOffset = td.TscOffset;
        vmcs.MsrBitmap = td.MsrBitmap!;
        vmcs.EncluFaults = Profile.EncluFaults;
        vmcs.HoldInterruptsWhileVeValid = Profile.InterruptsHeldWhileVeValid;
        vmcs.MonitorExits = !Profile.MonitorFollowsCpuid || !td.Cpuid!.HasMonitor;
        vmcs.WbinvdExits = true;
        vmcs.RdpmcExits = (td.Parameters.Attributes & TdParameters.Perfmon) == 0;
        vmcs.Cr0Owned = ControlRegisters.Cr0Owned;
        vmcs.Cr4Owned = ControlRegisters.Cr4Owned;

        GuestState state = vmcs.State;
        state[Gpr.Rbx] = (ulong)td.GpaWidth;
        state[Gpr.Rcx] = operand;
        state[Gpr.R8] = operand;
        state[Gpr.Rdx] = td.Cpuid!.Signature;
        state[Gpr.Rsi] = vcpu.Index;
        state.Rip = ResetRip;
        state.Rflags = 2;
        state.Cr0 = 0x21;
        state.Cr4 = 0x2040;
        state.Efer = 0x901;
        state.Xcr0 = 1;
        state.Cs = new Segment { Access = 0xC09B, Limit = uint.MaxValue };
        state.Ss = state.Ds = state.Es = state.Fs = state.Gs = new Segment { Access = 0xC093, Limit = uint.MaxValue };
        state.Ldtr = new Segment { Access = 0x10082 };
        state.Tr = new Segment { Access = 0x8B };
        state.GdtrLimit = 0xFFFF;
    }

    private TdxStatus VpFlush(LpContext ctx, ulong tdvpr)
    {
        TdxStatus status = EnterVcpu(ctx, tdvpr, OperandId.RCX, exclusive: true, tdrExclusive: false, out VcpuGate gate);
        if (status.IsError)
            return status;

        // FATAL and OP_STATE are not asked (tdx-module 11, quirk 14).
        if (TdControl.LifecycleOf(gate.Td.State.Read()) != TdLifecycle.KEYS_CONFIGURED)
        {
            status = TdxStatus.TD_KEYS_NOT_CONFIGURED;
        }
        else if (gate.Vcpu.Pages < TdVcpu.MinPages)
        {
            status = TdxStatus.TDCX_NUM_INCORRECT;
        }
        else if (gate.Vcpu.AssociatedLp != ctx.Id)
        {
            status = TdxStatus.VCPU_NOT_ASSOCIATED;
        }
        else
        {
            // Whoever enters here next is not "the vCPU that ran last", not even this one.
            ctx.Lp.Tlb.FlushContext(gate.Td.Eptp);
            ctx.LastRun = null;
            gate.Vcpu.Dissociate();
        }

        LeaveVcpu(ctx, ref gate);
        return status;
    }
}

/// <summary>What a TDH.VP leaf holds while it works. Lives on the caller's stack.</summary>
internal struct VcpuGate
{
    public TdVcpu Vcpu;
    public TdControl Td;
    public PageHold Tdvpr;

    /// <summary>Hazard holds of TDVPR, TDR and OP_STATE taken together; 0 when taken one by one.</summary>
    public uint Group;

    /// <summary>PAMT entry of the TDR; 0 when it is not held.</summary>
    public ulong Tdr;

    public int TdrHold;
    public bool TdrExclusive;
    public int OpState;
    public bool HasOpState;
}
