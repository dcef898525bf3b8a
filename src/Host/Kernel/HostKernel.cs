namespace Tdp.Host;

/// <summary>Where the TDX module stands from the host's point of view (tdp-mmu 9.2).</summary>
public enum TdxModuleState
{
    /// <summary>tdx_enable has not been called.</summary>
    Uninitialized,

    /// <summary>TDs can be created.</summary>
    Initialized,

    /// <summary>Bring-up failed; final until reboot.</summary>
    Error,
}

/// <summary>
/// The host kernel around KVM, one per machine: who runs on which processor, free frames, KeyIDs, the kernel log, and the TDX module's bring-up
/// (tdp-mmu 9.1, 9.2). Every method takes the calling actor; see each for what it holds.
/// </summary>
public sealed class HostKernel
{
    private const string Subsystem = "virt/tdx";
    private const int MinTdxKeyIds = 2;
    private readonly SharedCell<TdxModuleState> _state = new("tdx_module_status");
    private readonly bool[] _lpInitialized;
    private readonly SyncGate _gate = new();
    private Errno? _sysInit;
    private readonly HashSet<int> _vms = [];
    private readonly Mutex _kvmLock = new("kvm_lock");
    private readonly List<Vm> _vmList = [];

    /// <summary>Makes the kernel of a machine with a module in its SEAM range. Nothing has been called yet.</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="module">Its TDX module; null models "module not loaded": only ordinary VMs are possible.</param>
    public HostKernel(Machine machine, TdxModule? module)
    {
        Machine = machine;
        Log = new KernelLog(machine);
        Frames = new HostFrames(machine);
        Processors = new ProcessorMap(machine);
        Hkids = new HkidAllocator(machine.Description.FirstPrivateHkid, machine.Description.EndPrivateHkid);
        Port = module is null ? null : new SeamcallPort(module, Log);
        _lpInitialized = new bool[machine.Processors.Count];
        TdxLock = new Mutex("tdx_lock");
        CpusLock = new RwLock(machine.Actors, "cpu_hotplug");
    }

    /// <summary>The machine.</summary>
    public Machine Machine { get; }

    /// <summary>The kernel log.</summary>
    public KernelLog Log { get; }

    /// <summary>Free frames by actor.</summary>
    public HostFrames Frames { get; }

    /// <summary>Who runs on which processor.</summary>
    public ProcessorMap Processors { get; }

    /// <summary>KeyIDs of TDs.</summary>
    public HkidAllocator Hkids { get; }

    /// <summary>SEAMCALLs; null when no module is loaded.</summary>
    public SeamcallPort? Port { get; }

    /// <summary>tdx_lock: serializes the calls that take module-global locks, because those answer BUSY (tdp-mmu 8.5).</summary>
    public Mutex TdxLock { get; }

    /// <summary>cpus_read_lock: held for read while the set of online processors matters.</summary>
    public RwLock CpusLock { get; }

    /// <summary>Parameters of the NX huge page workaround.</summary>
    public NxHugePageSettings NxHugePages { get; } = new();

    /// <summary>State of the bring-up.</summary>
    public TdxModuleState TdxState => _state.Peek();

    /// <summary>TDX_FEATURES0 as the module reported it; 0 before bring-up.</summary>
    public ulong TdxFeatures { get; private set; }

    /// <summary>Pages that a TD's control structure needs.</summary>
    public int TdcsPages { get; private set; }

    /// <summary>Pages that a vCPU needs, TDVPR included.</summary>
    public int TdvpsPages { get; private set; }

    /// <summary>True when TDH.VP.INIT version 1 exists: bit 20, topology enumeration (decisions D05).</summary>
    public bool HasVpInitVersion1 => (TdxFeatures & (1UL << 20)) != 0;

    /// <summary>Number for the next VM: the lowest that no VM has, so that worlds that come and go on one host are alike.</summary>
    internal int NextVmNumber()
    {
        using (_gate.Hold())
        {
            int number = 1;
            while (!_vms.Add(number))
                number++;
            return number;
        }
    }

    /// <summary>The VM with this number is gone.</summary>
    internal void ReturnVmNumber(int number)
    {
        using (_gate.Hold())
            _vms.Remove(number);
    }

    /// <summary>
    /// Switches the NX huge page workaround for VMs to come and for those that exist; the latter lose every direct mapping (tdp-mmu 6.4). Takes kvm_lock and each VM's slots_lock.
    /// </summary>
    public void SetNxHugePages(Actor actor, bool on)
    {
        _kvmLock.Enter(actor);
        bool isChange = NxHugePages.IsOn != on;
        NxHugePages.IsOn = on;
        foreach (Vm vm in _vmList)
        {
            if (!isChange && vm.Mmu.IsNxHugePages == on)
                continue;
            vm.SlotsLock.Enter(actor);
            vm.Mmu.SetNxHugePages(actor, on);
            vm.SlotsLock.Exit(actor);
        }

        _kvmLock.Exit(actor);
    }

    /// <summary>A VM exists.</summary>
    internal void Add(Actor actor, Vm vm)
    {
        _kvmLock.Enter(actor);
        _vmList.Add(vm);
        _kvmLock.Exit(actor);
    }

    /// <summary>A VM is about to be taken down.</summary>
    internal void Remove(Actor actor, Vm vm)
    {
        _kvmLock.Enter(actor);
        _vmList.Remove(vm);
        _kvmLock.Exit(actor);
    }

    /// <summary>
    /// The whole bring-up as KVM's module load does it: VMXON and tdx_cpu_enable on every processor, then tdx_enable. Idempotent.
    /// </summary>
    /// <returns>Success, or the errno of the step that failed, with its lines in the log.</returns>
    public Errno BringUp(Actor actor)
    {
        Detect();
        foreach (LogicalProcessor lp in Machine.Processors)
        {
            lp.VmxOn = true;
            Errno result = CpuEnable(actor, lp);
            if (result != Errno.None)
                return result;
        }

        CpusLock.EnterRead(actor);
        Errno enabled = Enable(actor);
        CpusLock.ExitRead(actor);
        return enabled;
    }

    /// <summary>tdx_cpu_enable: TDH.SYS.INIT once for the machine, then TDH.SYS.LP.INIT on this processor. VMX must be on there.</summary>
    /// <returns>Success also when the processor was enabled before.</returns>
    public Errno CpuEnable(Actor actor, LogicalProcessor lp)
    {
        if (Port is null)
        {
            Log.Add(Subsystem, "module not loaded");
            return Errno.ENODEV;
        }

        TdxLock.Enter(actor);
        try
        {
            if (_lpInitialized[lp.Id])
                return Errno.None;

            // The result of the one global call is cached: every later processor gets the same answer.
            _sysInit ??= Call(lp, TdhLeaf.SYS_INIT);
            if (_sysInit != Errno.None)
                return _sysInit.Value;
            Errno result = Call(lp, TdhLeaf.SYS_LP_INIT);
            _lpInitialized[lp.Id] = result == Errno.None;
            return result;
        }
        finally
        {
            TdxLock.Exit(actor);
        }
    }

    /// <summary>
    /// tdx_enable: metadata, TDMRs, SYS.CONFIG, one KEY.CONFIG per package, TDMR.INIT to the end. The caller holds <see cref="CpusLock"/> for read, runs
    /// on a processor that has been enabled, and every online processor has been. May be called by several; one does the work.
    /// </summary>
    /// <returns>Success, -EINVAL after an earlier failure, or the errno of the failing step.</returns>
    public Errno Enable(Actor actor)
    {
        if (Port is null)
            return Errno.ENODEV;
        TdxLock.Enter(actor);
        try
        {
            switch (_state.Read())
            {
                case TdxModuleState.Initialized:
                    return Errno.None;
                case TdxModuleState.Error:
                    return Errno.EINVAL;
                default:
                    Errno result = InitModule(actor);
                    _state.Write(result == Errno.None ? TdxModuleState.Initialized : TdxModuleState.Error);
                    if (result != Errno.None)
                        Log.Add(Subsystem, $"module initialization failed (-{(int)result})");
                    else
                        Log.Add(Subsystem, Port.Module.Profile.KernelLogFollowsCode ? "TDX-Module initialized" : "module initialized");
                    return result;
            }
        }
        finally
        {
            TdxLock.Exit(actor);
        }
    }

    /// <summary>Closes the books: empties every actor's page list, then looks at every frame of the machine. No actor may run.</summary>
    /// <param name="isAfterTeardown">No VM is left: whatever a VM or a list still has is wrong.</param>
    public FrameAudit Audit(bool isAfterTeardown)
    {
        Frames.DrainAll();
        return FrameAudit.Take(Machine, Port?.Module, isAfterTeardown);
    }

    /// <summary>
    /// Issues one call on a processor of every package (MNG.KEY.CONFIG, CACHE.WB). The caller holds tdx_lock where the leaf takes a module-global lock.
    /// </summary>
    /// <returns>The first status that is not SUCCESS.</returns>
    internal TdxStatus CallOnEachPackage(Actor actor, TdhLeaf leaf, ulong rcx)
    {
        for (int package = 0; package < Machine.Description.Packages; package++)
        {
            if (!HasProcessor(package))
                continue;
            if (!Processors.TryBorrowOf(actor, package, out ProcessorLoan loan))
                throw new InvalidOperationException($"{leaf.FullName()} needs a processor of package {package}, and all of them are held.");
            TdxStatus status;
            using (loan)
                status = CallToEnd(loan.Processor, leaf, rcx);
            if (status != TdxStatus.SUCCESS)
                return status;
        }

        return TdxStatus.SUCCESS;
    }

    // CACHE.WB is interruptible: resumed with RCX = 1, at most 10000 times (tdp-mmu 8.8).
    private TdxStatus CallToEnd(LogicalProcessor lp, TdhLeaf leaf, ulong rcx)
    {
        const int MaxResumes = 10_000;
        for (int i = 0; ; i++)
        {
            TdxStatus status = Port!.Call(lp, leaf, leaf == TdhLeaf.PHYMEM_CACHE_WB && i > 0 ? 1 : rcx);
            if (status != TdxStatus.INTERRUPTED_RESUMABLE || i == MaxResumes)
                return leaf == TdhLeaf.PHYMEM_CACHE_WB && status == TdxStatus.NO_HKID_READY_TO_WBCACHE ? TdxStatus.SUCCESS : status;
        }
    }

    private bool HasProcessor(int package)
    {
        foreach (LogicalProcessor lp in Machine.Processors)
        {
            if (lp.Package == package)
                return true;
        }

        return false;
    }

    private void Detect()
    {
        int first = Machine.Description.FirstPrivateHkid, end = Machine.Description.EndPrivateHkid;
        if (Port is null)
            return;
        bool asCode = Port.Module.Profile.KernelLogFollowsCode;
        Log.Add(Subsystem, $"BIOS enabled: private KeyID range{(asCode ? "" : ":")} [{first}, {end})");
        if (end - first < MinTdxKeyIds)
            Log.Add(Subsystem, "initialization failed: too few private KeyIDs available.");
    }

    private Errno InitModule(Actor actor)
    {
        LogicalProcessor lp = Processors.Of(actor);
        if (Machine.Description.EndPrivateHkid - Machine.Description.FirstPrivateHkid < MinTdxKeyIds)
            return Errno.ENODEV;
        Errno result = ReadMetadata(lp);
        if (result != Errno.None)
            return result;
        result = Configure(actor, lp);
        if (result != Errno.None)
            return result;

        // PAMT lines under KeyID 0 leave every cache before the module writes them with its own key: WBINVD on all processors, which has no
        // visible effect on simulated memory.
        TdxStatus keyed = CallOnEachPackage(actor, TdhLeaf.SYS_KEY_CONFIG, 0);
        if (keyed != TdxStatus.SUCCESS)
            return Port!.Explain(SeamRegisters.Call(TdhLeaf.SYS_KEY_CONFIG), keyed);

        ulong pamtBytes = 0;
        foreach (TdmrDescription tdmr in Machine.Description.Tdmrs)
        {
            result = InitTdmr(lp, tdmr);
            if (result != Errno.None)
                return result;
            pamtBytes += TdmrInfo.PamtBytes(tdmr);
        }

        Log.Add(Subsystem, $"{pamtBytes >> 10} {(Port!.Module.Profile.KernelLogFollowsCode ? "KB" : "KBs")} allocated for PAMT");
        return Errno.None;
    }

    private Errno ReadMetadata(LogicalProcessor lp)
    {
        const ulong Features0 = 0x0A00_0003_0000_0008, TdcsBaseSize = 0x9800_0001_0000_0100, TdvpsBaseSize = 0x9800_0001_0000_0200;
        const ulong NoRbpModification = 1 << 18;
        Errno result = ReadField(lp, Features0, out ulong features);
        if (result != Errno.None)
            return result;
        if ((features & NoRbpModification) == 0)
        {
            Log.Add(Subsystem, "module without NO_RBP_MOD cannot be used");
            return Errno.EINVAL;
        }

        TdxFeatures = features;
        result = ReadField(lp, TdcsBaseSize, out ulong tdcs);
        if (result != Errno.None)
            return result;
        result = ReadField(lp, TdvpsBaseSize, out ulong tdvps);
        TdcsPages = (int)(tdcs >> 12);
        TdvpsPages = (int)(tdvps >> 12);
        return result;
    }

    private Errno ReadField(LogicalProcessor lp, ulong field, out ulong value)
    {
        SeamRegisters registers = SeamRegisters.Call(TdhLeaf.SYS_RD, rdx: field);
        Errno result = Port!.Prerr(lp, ref registers);
        value = registers.R8;
        return result;
    }

    // The structures live only during SYS.CONFIG; the module keeps its own copy.
    private Errno Configure(Actor actor, LogicalProcessor lp)
    {
        IReadOnlyList<TdmrDescription> tdmrs = Machine.Description.Tdmrs;
        if (tdmrs.Count > TdmrInfo.MaxTdmrs)
        {
            Log.Add(Subsystem, "initialization failed: TDMRs exhausted");
            return Errno.ENOSPC;
        }

        Span<Hpa> frames = stackalloc Hpa[TdmrInfo.FramesFor(tdmrs.Count)];
        int taken = 0;
        try
        {
            for (; taken < frames.Length; taken++)
            {
                if (!Frames.TryTake(actor, FrameUse.Kernel, out frames[taken], out _))
                    return Errno.ENOMEM;
            }

            if (!TdmrInfo.Write(Machine.Memory, frames, tdmrs))
            {
                Log.Add(Subsystem, "initialization failed: reserved areas exhausted");
                return Errno.ENOSPC;
            }

            SeamRegisters registers = SeamRegisters.Call(TdhLeaf.SYS_CONFIG, frames[0].Value, (ulong)tdmrs.Count, Hkids.Global.Value);
            return Port!.Prerr(lp, ref registers);
        }
        finally
        {
            while (taken > 0)
                Frames.Give(actor, frames[--taken], FrameUse.Kernel);
        }
    }

    private Errno InitTdmr(LogicalProcessor lp, TdmrDescription tdmr)
    {
        ulong next;
        do
        {
            // The module reports progress in whole GiB, so most calls answer the address they were given.
            SeamRegisters registers = SeamRegisters.Call(TdhLeaf.SYS_TDMR_INIT, tdmr.Range.Base);
            Errno result = Port!.Prerr(lp, ref registers);
            if (result != Errno.None)
                return result;
            next = registers.Rdx;
        }
        while (next < tdmr.Range.End);
        return Errno.None;
    }

    private Errno Call(LogicalProcessor lp, TdhLeaf leaf)
    {
        SeamRegisters registers = SeamRegisters.Call(leaf);
        return Port!.Prerr(lp, ref registers);
    }
}
