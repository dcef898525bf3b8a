namespace Tdp.Host;

/// <summary>
/// One vCPU: its mode and requests, its MMU, and KVM_RUN (tdp-mmu 7.3, 7.4, 8.6).
/// </summary>
/// <remarks>
/// The run loop is used by one actor at a time (vcpu->mutex), which stands on one logical processor. Others reach the vCPU through <see cref="Kick"/>,
/// <see cref="Signal"/> and <see cref="WakeUp"/> only.
/// Entry: mode becomes IN with a full barrier, SRCU is left, and only then requests, the signal and wait_for_sept_zap are read. Whoever wants the vCPU out
/// wrote first and
/// then looked at the mode: one of the two sees the other (R20). After the exit the mode becomes OUTSIDE and every ticket is acknowledged.
/// </remarks>
public sealed partial class Vcpu
{
    /// <summary>Identical exits without any change of a mapping after which a run is given up (decisions D23).</summary>
    public const int MostIdenticalExits = 1000;

    private readonly SharedCell<bool> _signal;
    private readonly SharedCell<bool> _wake;
    private readonly WaitFor _waitQueue;
    private readonly List<Hpa> _tdvpsPages = [];
    private Root? _loadedRoot;
    private LogicalProcessor? _associated;
    private Hpa _tdvpr;
    private SeamRegisters _registers;
    private VcpuStatistics _statistics;
    private Completion _completion;
    private ulong _sameExitGpa;
    private ulong _sameExitReason;
    private ulong _busError;
    private int _sameExits;
    private int _retries;
    private ulong _exitStatus;
    private ulong _exitGpa;

    internal Vcpu(Vm vm, Actor actor, int id)
    {
        ulong owner = ((ulong)vm.Number << 32) | (uint)id;
        Vm = vm;
        Id = id;
        Kick = new Kick($"vcpu{id}", owner);
        Mutex = new Mutex("vcpu->mutex", owner);
        Mmu = new MmuVcpu(vm.Mmu, actor, id);
        _signal = new SharedCell<bool>("signal", owner);
        _wake = new SharedCell<bool>("wake", owner);
        _waitQueue = new WaitFor($"vcpu{id}-wait", owner);
        if (vm.IsTd)
            return;
        Vmcs = new Vmcs { VcpuId = id, GpaWidth = vm.GpaWidth, WbinvdExits = false, MsrBitmap = GuestMsrs.Intercepts() };
        Msrs = new GuestMsrs(id, vm.Kernel.Machine);
    }

    private enum Completion
    {
        None,
        TdIoRead,
        TdMmioRead,
        TdMapGpa,
        TdUserCall,
        TdNothing,
        IoRead,
        MmioRead,
    }

    /// <summary>The VM.</summary>
    public Vm Vm { get; }

    /// <summary>Number, from 0.</summary>
    public int Id { get; }

    /// <summary>Mode, requests, acknowledgement.</summary>
    public Kick Kick { get; }

    /// <summary>vcpu->mutex: held for the whole of KVM_RUN.</summary>
    public Mutex Mutex { get; }

    /// <summary>Its roots and caches.</summary>
    public MmuVcpu Mmu { get; }

    /// <summary>What the last KVM_RUN said.</summary>
    public VcpuRunState RunState { get; } = new();

    /// <summary>The control structure of an ordinary VM's vCPU; null in a TD, where the module has it.</summary>
    public Vmcs? Vmcs { get; }

    /// <summary>MSRs that the host emulates.</summary>
    public GuestMsrs? Msrs { get; private set; }

    /// <summary>The TD vCPU's root page; 0 before INIT_VCPU.</summary>
    public Hpa Tdvpr => _tdvpr;

    /// <summary>True after KVM_TDX_INIT_VCPU; always in an ordinary VM.</summary>
    public bool IsInitialized { get; private set; }

    /// <summary>True while a signal makes KVM_RUN return -EINTR.</summary>
    public bool IsSignalPending => _signal.Read();

    /// <summary>Told after every exit, on the vCPU's actor; null for nobody. Not to be changed while the vCPU runs.</summary>
    public IExitObserver? ExitObserver { get; set; }

    /// <summary>What it did so far. Exact when it does not run.</summary>
    public VcpuStatistics Statistics => _statistics;

    /// <summary>
    /// The processor whose TLB the vCPU's next entry would use as it is, as far as the host is concerned; null when it flushes first: a request says so, or a root must be
    /// loaded. Of a TD the module flushes besides. For checkers, while the vCPU does not run.
    /// </summary>
    public LogicalProcessor? TranslatesOn
    {
        get
        {
            const ulong Flushing = (1UL << VcpuSet.TlbFlush) | (1UL << VcpuSet.TlbFlushCurrent) | (1UL << VcpuSet.FreeObsoleteRoots);
            bool isLoaded = Mmu.DirectRoot is not null && ReferenceEquals(Mmu.DirectRoot, _loadedRoot);
            return isLoaded && (Kick.PeekRequests() & Flushing) == 0 ? _associated : null;
        }
    }

    /// <summary>The processor with which the vCPU is associated, or null. For checkers.</summary>
    public LogicalProcessor? Processor => _associated;

    /// <summary>
    /// KVM_TDX_INIT_VCPU: VP.CREATE, VP.ADDCX for the rest of the TDVPS, VP.INIT. Once, before finalize. The calls run on the processor of the vCPU's own
    /// number if
    /// nobody holds it, so that its first entry there finds it associated.
    /// </summary>
    /// <param name="actor">Who asks; stands on a processor.</param>
    /// <param name="initialRcx">What the guest finds in RCX and R8 after an architectural reset.</param>
    /// <param name="entryState">Replaces the architectural reset state (ResetMode Direct64); null: none.</param>
    /// <returns>-EINVAL twice or not now, -ENOMEM, -EIO.</returns>
    public Errno Initialize(Actor actor, ulong initialRcx = 0, Action<GuestState>? entryState = null)
    {
        if (Vm.Td is not { } td)
            return Errno.ENOTTY;
        Vm.Lock.Enter(actor);
        Mutex.Enter(actor);
        Vm.SlotsLock.Enter(actor);
        try
        {
            if (Vm.IsDead)
                return Errno.EIO;
            if (IsInitialized || td.State.Peek() != TdState.Initialized)
                return Errno.EINVAL;
            return InitializeTd(actor, td, initialRcx, entryState);
        }
        finally
        {
            Vm.SlotsLock.Exit(actor);
            Mutex.Exit(actor);
            Vm.Lock.Exit(actor);
        }
    }

    /// <summary>
    /// The vCPU enters or leaves system-management mode, which has an address space of its own (KVM_SET_VCPU_EVENTS; decisions D35): its direct root is put and another one loaded at the next entry. Takes
    /// vcpu->mutex: the vCPU does not run meanwhile.
    /// </summary>
    /// <returns>-EINVAL in a TD, which has no such mode.</returns>
    public Errno SetSmm(Actor actor, bool isSmm)
    {
        if (Vm.IsTd)
            return Errno.EINVAL;
        Mutex.Enter(actor);
        if (Mmu.IsSmm != isSmm)
        {
            Mmu.Actor = actor;
            Mmu.IsSmm = isSmm;
            Vm.Mmu.UnloadRoots(Mmu);
        }

        Mutex.Exit(actor);
        return Errno.None;
    }

    /// <summary>As a signal to the thread would: KVM_RUN returns -EINTR at the next boundary. Any actor, or none.</summary>
    public void Signal(Actor? actor)
    {
        _signal.Write(true);

        // A full barrier inside: the vCPU either is kicked out, or reads the flag after its own barrier.
        Kick.Send(actor, wait: false);
        WakeUp();
    }

    /// <summary>The signal has been delivered. The vCPU's own actor.</summary>
    public void ClearSignal() => _signal.Write(false);

    /// <summary>Takes what SIGBUS said: the host address of a page that a memory error has destroyed. After KVM_RUN returned -EINTR; the vCPU's own actor.</summary>
    /// <returns>False: there was no such signal.</returns>
    public bool TakeBusError(out ulong address)
    {
        address = _busError;
        _busError = 0;
        return address != 0;
    }

    /// <summary>Ends a HLT. Any actor.</summary>
    public void WakeUp()
    {
        _wake.Write(true);
        _waitQueue.Wake();
    }

    /// <summary>
    /// Sleeps after a HLT exit, outside KVM_RUN: until <see cref="WakeUp"/>, a signal, or the VM's death. The vCPU's own actor; no lock may be held.
    /// </summary>
    public void WaitUntilWoken(Actor actor)
    {
        _waitQueue.Until(actor, () => _wake.Peek() || _signal.Peek() || Vm.IsDead);
        _wake.Write(false);
    }

    /// <summary>
    /// KVM_RUN: finishes what user space answered, then runs the guest until user space is needed.
    /// </summary>
    /// <param name="actor">The vCPU's actor; stands on a processor.</param>
    /// <param name="engine">The processor in non-root mode; the same for the life of the vCPU.</param>
    /// <returns>
    /// Success with <see cref="RunState"/> saying why; -EINTR signal; -EFAULT with a memory-fault exit; -EIO dead VM; -EINVAL not initialized or bad
    /// answer; -ENOMEM.
    /// </returns>
    public Errno Run(Actor actor, IVmxEngine engine)
    {
        Mutex.Enter(actor);
        try
        {
            if (Vm.IsDead)
                return Errno.EIO;
            if (!IsInitialized && Vm.IsTd)
                return Errno.EINVAL;
            if (Vm.Td is { } td && td.State.Read() != TdState.Runnable)
                return Errno.EINVAL;
            Mmu.Actor = actor;
            LogicalProcessor lp = Vm.Kernel.Processors.Of(actor);
            Load(actor, lp);
            Vm.SetRunning(actor, this);
            RunState.Exit = UserExit.None;
            Errno completed = Complete();
            if (completed != Errno.None || RunState.Exit != UserExit.None)
                return completed;
            Vm.Srcu.ReadEnter(actor);
            Errno result;
            try
            {
                result = Loop(actor, engine, lp);
            }
            finally
            {
                Vm.Srcu.ReadExit(actor);
            }

            _statistics.UserExits++;
            return result;
        }
        finally
        {
            Vm.SetRunning(actor, null);
            Mutex.Exit(actor);
        }
    }

    // The vCPU's own actor, from within a fault.
    internal void RaiseBusError(ulong address)
    {
        _busError = address;
        Signal(Mmu.Actor);
    }

    internal void CountHostRead() => _statistics.HostReads++;

    /// <summary>VP.FLUSH on the processor with which the vCPU is associated, if any.</summary>
    internal void Dissociate(Actor actor)
    {
        if (_associated is not { } lp)
            return;
        if (!Vm.Kernel.Processors.TryBorrow(actor, lp.Id, out ProcessorLoan loan))
            throw new InvalidOperationException($"vCPU {Id} is associated with LP {lp.Id}, which another actor holds.");
        TdxStatus status;
        using (loan)
            status = Vm.Kernel.Port!.Call(lp, TdhLeaf.VP_FLUSH, _tdvpr.Value);
        _associated = null;

        // "Not associated": it has never been entered, or the TD is going down.
        if (status != TdxStatus.SUCCESS && status != TdxStatus.VCPU_NOT_ASSOCIATED)
            Vm.Bug(actor, $"{TdhLeaf.VP_FLUSH.FullName()} of vCPU {Id} failed: {status}");
    }

    /// <summary>The vCPU ends: roots are put, TDCX pages and the TDVPR reclaimed.</summary>
    internal void Destroy(Actor actor)
    {
        Mmu.Actor = actor;
        Vm.Mmu.DestroyVcpu(Mmu);
        Mmu.LookupState = null;
        _loadedRoot = null;
        FreeDirtyLog(actor);
        if (Vm.Td is not { } td)
            return;
        foreach (Hpa page in _tdvpsPages)
            td.Reclaim(actor, page, "TDVPS page");
        _tdvpsPages.Clear();
        _tdvpr = default;
    }

    private Errno InitializeTd(Actor actor, TrustDomain td, ulong initialRcx, Action<GuestState>? entryState)
    {
        HostKernel kernel = Vm.Kernel;
        Errno created = td.AddControlPage(actor, TdhLeaf.VP_CREATE, td.Tdr, _tdvpsPages);
        if (created != Errno.None)
            return created;
        _tdvpr = _tdvpsPages[0];
        if (entryState is not null)
            kernel.Port!.Module.UseEntryState(_tdvpr, entryState);
        while (_tdvpsPages.Count < kernel.TdvpsPages)
        {
            Errno added = td.AddControlPage(actor, TdhLeaf.VP_ADDCX, _tdvpr, _tdvpsPages);
            if (added != Errno.None)
                return added;
        }

        bool isOwnNumber = kernel.Processors.TryBorrow(actor, Id, out ProcessorLoan loan);
        LogicalProcessor lp = isOwnNumber ? loan.Processor : kernel.Processors.Of(actor);
        SeamRegisters registers = SeamRegisters.Call(
            TdhLeaf.VP_INIT, _tdvpr.Value, initialRcx, (ulong)Id, version: kernel.HasVpInitVersion1 ? 1 : 0);

        // Version 1 takes the TDR exclusively: under mmu_lock write it cannot meet a removal of another vCPU's (R24).
        Vm.Mmu.MmuLock.EnterWrite(actor);
        TdxStatus status;
        using (loan)
            status = kernel.Port!.Call(lp, ref registers);
        Vm.Mmu.MmuLock.ExitWrite(actor);
        if (status != TdxStatus.SUCCESS)
            return td.Refused(TdhLeaf.VP_INIT, status);
        _associated = lp;
        Msrs = new GuestMsrs(Id, kernel.Machine);
        IsInitialized = true;
        return Errno.None;
    }

    // vcpu_load: a TD's vCPU is associated with one processor at most (tdp-mmu 8.6). Any vCPU that comes back to a processor may find translations there from
    // before flushes that were served elsewhere: the roots are loaded again, which flushes.
    private void Load(Actor actor, LogicalProcessor lp)
    {
        if (ReferenceEquals(_associated, lp))
            return;
        if (Vm.IsTd)
            Dissociate(actor);
        _associated = lp;
        _loadedRoot = null;
    }

    private Errno Loop(Actor actor, IVmxEngine engine, LogicalProcessor lp)
    {
        var outside = default(Spin);
        while (true)
        {
            if (Kick.HasRequests())
            {
                Errno served = ServeRequests(actor, lp);
                if (served != Errno.None || RunState.Exit != UserExit.None)
                    return served;
            }

            if (_signal.Read())
                return Errno.EINTR;
            if (Mmu.DirectRoot is null || !ReferenceEquals(Mmu.DirectRoot, _loadedRoot))
            {
                if (!LoadRoots(actor, lp))
                    return Vm.IsDead ? Errno.EIO : Errno.ENOMEM;
            }

            if (!TryEnter(actor, engine, lp))
            {
                // Whoever keeps the vCPUs out may need this CPU to finish.
                if (Vm.WaitForSeptZap.Peek())
                    outside.Once(actor, Vm.WaitForSeptZap.Id);
                continue;
            }

            _statistics.Exits++;
            lp.Spend(SimClock.ExitTicks);
            Errno result = Vm.IsTd ? HandleTdExit(actor, lp) : HandleVmExit(actor, lp);
            if (ExitObserver is not null)
                TellObserver();
            if (result != Errno.None || RunState.Exit != UserExit.None)
                return result;
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void TellObserver()
    {
        ExitReason reason = Vm.IsTd ? (ExitReason)(uint)_exitStatus : Vmcs!.Exit.Reason;
        bool isEpt = reason is ExitReason.EptViolation or ExitReason.EptMisconfiguration;
        ExitObserver!.Exited(this, reason, !isEpt ? 0 : Vm.IsTd ? _exitGpa : Vmcs!.Exit.Gpa);
    }

    // One pass through the guest; false when the entry was refused. SRCU is held before and after.
    private bool TryEnter(Actor actor, IVmxEngine engine, LogicalProcessor lp)
    {
        Kick.BeginEntry(actor);
        Vm.Srcu.ReadExit(actor);
        try
        {
            if (Kick.IsEntryForbidden() || _signal.Read() || Vm.WaitForSeptZap.Read() || Vm.IsDead)
            {
                // "Handled exit": the vCPU goes round its loop until the flag clears, outside the guest, so the kick completes (I76).
                _statistics.RefusedEntries++;
                return false;
            }

            lp.Running = Kick;
            Mark.At(actor, "vm-entry");
            if (Vm.IsTd)
            {
                _registers.Rax = (ulong)TdhLeaf.VP_ENTER;
                _registers.Rcx = _tdvpr.Value;
                Vm.Kernel.Port!.Module.Enter(lp, engine, ref _registers);
                _exitStatus = _registers.Rax;
                _exitGpa = _registers.R8;
            }
            else
            {
                lp.InGuest = true;
                engine.Enter(lp, Vmcs!);
            }

            Mark.At(actor, "vm-exit");
            return true;
        }
        finally
        {
            // Also when the engine gave up: whoever waits for this vCPU must not wait for ever.
            if (!Vm.IsTd)
                lp.InGuest = false;
            lp.Running = null;
            Kick.EndGuest(actor);
            Vm.Srcu.ReadEnter(actor);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno ServeRequests(Actor actor, LogicalProcessor lp)
    {
        if (Kick.TakeRequest(actor, VcpuSet.VmDead))
            return Errno.EIO;
        if (Kick.TakeRequest(actor, VcpuSet.DirtyRingSoftFull) && IsStoppedByRing(actor))
            return Errno.None;
        if (Kick.TakeRequest(actor, VcpuSet.FreeObsoleteRoots))
            Vm.Mmu.FreeObsoleteRoots(Mmu);

        // For a TD both are a global INVEPT: it cannot be known which alias changed, and shared entries carry the private root's tag (tdp-mmu 7.5).
        bool flush = Kick.TakeRequest(actor, VcpuSet.TlbFlush);
        if (Kick.TakeRequest(actor, VcpuSet.TlbFlushCurrent) | flush)
        {
            lp.Tlb.FlushAll();
            _statistics.TlbFlushes++;
        }

        if (Kick.TakeRequest(actor, VcpuSet.UpdateDirtyLogging))
            Vmcs!.LogsDirtyPages = Vm.DirtyLog.IsCpuLogging;

        // Being outside was all there was to do: the access page is found mapped or not by the next access.
        Kick.TakeRequest(actor, VcpuSet.ApicvUpdate);
        return Vm.IsDead ? Errno.EIO : Errno.None;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool LoadRoots(Actor actor, LogicalProcessor lp)
    {
        if (!Vm.Mmu.ReloadRoots(Mmu))
            return false;
        Root root = Mmu.DirectRoot!;
        _loadedRoot = root;

        // The private root is the module's; only the shared one is loaded (tdp-mmu 8.6).
        if (Vm.IsTd)
        {
            const ulong SharedEptPointer = 0x0024_0003_0000_203C;
            SeamRegisters registers = SeamRegisters.Call(TdhLeaf.VP_WR, _tdvpr.Value, SharedEptPointer, root.Frame.Value, Hpa.Mask);
            TdxStatus status = Vm.Kernel.Port!.Call(lp, ref registers);
            if (status != TdxStatus.SUCCESS)
            {
                Vm.Bug(actor, $"{TdhLeaf.VP_WR.FullName()} of the shared EPT pointer failed: {status}");
                return false;
            }
        }
        else
        {
            Vmcs!.Eptp = EptPointer.Make(root.Frame, root.Level, Vm.Options.AdEnabled);
        }

        lp.Tlb.FlushAll();
        return true;
    }
}
