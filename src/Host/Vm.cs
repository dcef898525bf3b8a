namespace Tdp.Host;

/// <summary>KVM's VM types (tdp-mmu 13).</summary>
public enum VmKind
{
    /// <summary>KVM_X86_DEFAULT_VM.</summary>
    Default = 0,

    /// <summary>KVM_X86_TDX_VM.</summary>
    Td = 5,
}

/// <summary>Choices at KVM_CREATE_VM. Constant for the life of the VM.</summary>
public sealed record VmOptions
{
    /// <summary>Ordinary VM or TD.</summary>
    public required VmKind Kind { get; init; }

    /// <summary>True: 5-level EPT, 52-bit guest addresses, alias bit 51. False: 4 levels, 48 bits, alias bit 47 (decisions D08).</summary>
    public bool IsFiveLevel { get; init; }

    /// <summary>KVM_X86_QUIRK_SLOT_ZAP_ALL: deleting or moving a slot zaps everything. Ordinary VMs only.</summary>
    public bool SlotZapAllQuirk { get; init; } = true;

    /// <summary>KVM_X86_QUIRK_IGNORE_GUEST_PAT. A TD always honours the guest's PAT.</summary>
    public bool IgnoreGuestPat { get; init; } = true;

    /// <summary>EPT A/D bits in hardware; always on for a TD (decisions D07).</summary>
    public bool AdEnabled { get; init; } = true;

    /// <summary>The NX huge page workaround.</summary>
    public bool NxHugePages { get; init; }

    /// <summary>The CPU lists the pages it dirties (PML). Needs <see cref="AdEnabled"/>; never used for a TD (tdp-mmu 6.7).</summary>
    public bool PageModificationLog { get; init; } = true;

    /// <summary>Accesses without memory leave MMIO entries behind. A TD needs it.</summary>
    public bool MmioCaching { get; init; } = true;

    /// <summary>Simulator: generation of the memslots at first, a multiple of 2, so that the wrap of its low 19 bits can be reached.</summary>
    public ulong FirstMemslotGeneration { get; init; }

    /// <summary>Dirty logging splits huge leaves when it begins instead of at the first write.</summary>
    public bool EagerPageSplit { get; init; } = true;
}

/// <summary>
/// One VM: an ordinary one or a trust domain. It owns slots, attributes, files, vCPUs and the MMU; the methods here and in <see cref="Memory"/> are its ioctls.
/// </summary>
/// <remarks>
/// Locks, outer to inner (tdp-mmu 7.1): cpus_read_lock, kvm->lock, every vcpu->mutex, slots_lock, slots_arch_lock, guest_memfd invalidate lock, mmu_lock,
/// tdp_mmu_pages_lock. slots_lock, kvm->lock and vcpu->mutex are never taken inside an SRCU section; a vCPU holds SRCU for the whole of its time outside
/// the guest.
/// </remarks>
public sealed class Vm
{
    private Vcpu[] _vcpus = [];
    private GuestMemfd[] _files = [];
    private readonly Vcpu?[] _running = new Vcpu?[Actor.Max];
    private readonly MemslotTable[] _slots;
    private bool _isDestroyed;

    private Vm(HostKernel kernel, VmOptions options, int number, MemoryAttributes? attributes)
    {
        ulong owner = (ulong)number;
        Kernel = kernel;
        Options = options;
        Number = number;
        Attributes = attributes;
        AliasBit = options.Kind == VmKind.Td ? new AliasBit(options.IsFiveLevel ? 51 : 47) : AliasBit.None;
        Lock = new Mutex("kvm->lock", owner);
        SlotsLock = new Mutex("slots_lock", owner);
        SlotsArchLock = new Mutex("slots_arch_lock", owner);
        Srcu = new RcuDomain(kernel.Machine.Actors, "srcu", owner);
        _slots = new MemslotTable[options.Kind == VmKind.Td ? 1 : 2];
        for (int i = 0; i < _slots.Length; i++)
            _slots[i] = new MemslotTable((owner << 1) | (uint)i, options.FirstMemslotGeneration + (uint)i);
        WaitForSeptZap = new SharedCell<bool>("wait_for_sept_zap", owner);
        UserMemory = new HostMemory(kernel, owner);
        Notifier = new MmuNotifier(this);
        UserMemory.Notifier = Notifier;
        Memory = new VmMemory(this);
        VcpuSet = new VcpuSet(this);
        DirtyLog = new DirtyLog(this);
        Apicv = new Apicv(this);
        WriteTracking = new WriteTracking(this);
        Td = options.Kind == VmKind.Td ? new TrustDomain(this) : null;
        Glue = Td is null ? null : new TdxGlue(this, Td);
        Mmu = new TdpMmu(
            kernel.Machine,
            new MmuOptions
            {
                VmNumber = owner,
                AliasBit = AliasBit,
                RootLevel = options.IsFiveLevel ? Level.T256 : Level.G512,
                HasMirror = Td is not null,
                AdEnabled = Td is not null || options.AdEnabled,
                IgnoreGuestPat = Td is null && options.IgnoreGuestPat,
                MmioCaching = options.MmioCaching,
                NxHugePages = options.NxHugePages || kernel.NxHugePages.IsOn,
                DirtyLogSize = Td is null && options.AdEnabled && options.PageModificationLog ? DirtyLog.PmlEntries : 0,
            },
            new GuestBacking(this),
            VcpuSet,
            Glue);
        NxRecovery = new NxRecovery(this);
    }

    /// <summary>The host it runs on.</summary>
    public HostKernel Kernel { get; }

    /// <summary>What it was created with.</summary>
    public VmOptions Options { get; }

    /// <summary>Number, from 1; names its locks and cells. Free again when the VM is destroyed.</summary>
    public int Number { get; }

    /// <summary>True for a trust domain.</summary>
    public bool IsTd => Td is not null;

    /// <summary>True when memory can be private: guest_memfd and attributes exist.</summary>
    public bool HasPrivateMemory => Td is not null;

    /// <summary>The alias bit; none in an ordinary VM.</summary>
    public AliasBit AliasBit { get; }

    /// <summary>Guest-physical address width.</summary>
    public int GpaWidth => Options.IsFiveLevel ? 52 : 48;

    /// <summary>Address spaces: 1 for a TD, 2 (SMM) for an ordinary VM.</summary>
    public int AddressSpaces => _slots.Length;

    /// <summary>kvm->lock.</summary>
    public Mutex Lock { get; }

    /// <summary>slots_lock.</summary>
    public Mutex SlotsLock { get; }

    /// <summary>slots_arch_lock.</summary>
    public Mutex SlotsArchLock { get; }

    /// <summary>SRCU of the memslots.</summary>
    public RcuDomain Srcu { get; }

    /// <summary>The page tables.</summary>
    public TdpMmu Mmu { get; }

    /// <summary>Slot, attribute and pre-fault ioctls.</summary>
    public VmMemory Memory { get; }

    /// <summary>Dirty logging.</summary>
    public DirtyLog DirtyLog { get; }

    /// <summary>APICv and the APIC access page.</summary>
    public Apicv Apicv { get; }

    /// <summary>External write tracking.</summary>
    public WriteTracking WriteTracking { get; }

    /// <summary>The worker that recovers huge pages from the NX workaround.</summary>
    public NxRecovery NxRecovery { get; }

    /// <summary>The VMM's own address space.</summary>
    public HostMemory UserMemory { get; }

    /// <summary>The MMU notifier.</summary>
    public MmuNotifier Notifier { get; }

    /// <summary>Private or shared, per frame; null in an ordinary VM.</summary>
    public MemoryAttributes? Attributes { get; }

    /// <summary>The TD's life; null in an ordinary VM.</summary>
    public TrustDomain? Td { get; }

    /// <summary>The glue to the module; null in an ordinary VM.</summary>
    public TdxGlue? Glue { get; }

    /// <summary>True while a removal retries with all vCPUs locked out: nobody enters (tdp-mmu 8.5). Written under mmu_lock write only (I77).</summary>
    public SharedCell<bool> WaitForSeptZap { get; }

    /// <summary>vCPUs by number.</summary>
    public ReadOnlySpan<Vcpu> Vcpus => _vcpus;

    /// <summary>guest_memfd files.</summary>
    public IReadOnlyList<GuestMemfd> Files => _files;

    /// <summary>Dead: every ioctl fails with -EIO and no vCPU enters again (I73).</summary>
    public bool IsDead => Mmu.Death.IsDead;

    internal VcpuSet VcpuSet { get; }

    /// <summary>KVM_CREATE_VM. A TD needs the module to be initialized; it starts without KeyID, in state UNINITIALIZED.</summary>
    /// <param name="actor">Who asks.</param>
    /// <param name="kernel">The host.</param>
    /// <param name="options">Kind and knobs.</param>
    /// <param name="vm">The VM on success.</param>
    /// <returns>-EOPNOTSUPP for a TD without the module, EPT A/D bits or MMIO caching; -ENOMEM.</returns>
    public static Errno Create(Actor actor, HostKernel kernel, VmOptions options, out Vm? vm)
    {
        vm = null;
        if (options.Kind == VmKind.Td && (kernel.Port is null || kernel.TdxState != TdxModuleState.Initialized || !options.AdEnabled || !options.MmioCaching))
            return Errno.EOPNOTSUPP;
        MemoryAttributes? attributes = null;
        if (options.Kind == VmKind.Td)
        {
            attributes = MemoryAttributes.TryCreate(kernel.Machine, kernel.Frames, actor, options.IsFiveLevel ? 52 : 48);
            if (attributes is null)
                return Errno.ENOMEM;
        }

        vm = new Vm(kernel, options, kernel.NextVmNumber(), attributes);
        kernel.Add(actor, vm);
        return Errno.None;
    }

    /// <summary>The slots of an address space.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public MemslotTable SlotsOf(int addressSpace) => _slots[addressSpace];

    /// <summary>A vCPU by number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Vcpu VcpuOf(int id) => _vcpus[id];

    /// <summary>KVM_CREATE_VCPU: the next number. A TD must be INITIALIZED and not yet RUNNABLE (tdp-mmu 8.8 step 3).</summary>
    /// <param name="actor">Who asks.</param>
    /// <param name="vcpu">The vCPU on success.</param>
    /// <returns>-EIO in a TD before INIT_VM or in a dead VM, -EINVAL beyond the number of processors, -ENOMEM.</returns>
    public Errno CreateVcpu(Actor actor, out Vcpu? vcpu)
    {
        vcpu = null;
        if (IsDead || (Td is not null && Td.State.Peek() != TdState.Initialized))
            return Errno.EIO;
        Lock.Enter(actor);
        try
        {
            if (_vcpus.Length >= Kernel.Machine.Processors.Count)
                return Errno.EINVAL;
            var made = new Vcpu(this, actor, _vcpus.Length);
            Errno result = made.SetUpDirtyLog(actor);
            if (result != Errno.None)
                return result;
            vcpu = made;

            // Requests are sent to whoever is in the array: published complete.
            Fence.StoreStore();
            _vcpus = [.. _vcpus, made];

            // Logging that began before could not tell this vCPU. A full barrier inside: whoever counts a slot after this sees it in the array.
            if (HasPml)
                made.Kick.Post(actor, VcpuSet.UpdateDirtyLogging);
            return Errno.None;
        }
        finally
        {
            Lock.Exit(actor);
        }
    }

    /// <summary>KVM_BUG_ON: the VM is dead from here on.</summary>
    public void Bug(Actor actor, string reason)
    {
        if (!IsDead)
            Kernel.Log.Add("kvm", $"VM {Number}: BUG: {reason}");
        Mmu.Bug(actor, reason);
    }

    /// <summary>
    /// The VM dies without this being a bug of the host: the guest did something fatal (tdp-mmu 5.8 "unexpected pending"), or the run makes no progress
    /// (decisions D23).
    /// </summary>
    public void Kill(Actor actor, string reason)
    {
        if (!Mmu.Death.Declare(reason))
            return;
        Kernel.Log.Add("kvm", $"VM {Number}: {reason}");
        VcpuSet.RequestAll(actor, VcpuRequest.VmDead, wait: true);
    }

    /// <summary>
    /// Makes every vCPU leave KVM_RUN with -EINTR at its next boundary, as a signal to its thread would; it stays pending until
    /// <see cref="Vcpu.ClearSignal"/>. Any actor, or none.
    /// </summary>
    public void SignalAll(Actor? actor)
    {
        foreach (Vcpu vcpu in Vcpus)
            vcpu.Signal(actor);
    }

    /// <summary>
    /// Last reference gone: the whole teardown in the order of tdp-mmu 8.8. No vCPU actor may run any more. Idempotent.
    /// </summary>
    /// <param name="actor">Who; holds no lock and stands on a processor.</param>
    public void Destroy(Actor actor)
    {
        if (_isDestroyed)
            return;
        _isDestroyed = true;
        Kernel.Remove(actor, this);

        // 1: closing the files removes every private leaf while the TD is alive.
        foreach (GuestMemfd file in _files)
            file.Close(actor);

        // 2: the KeyID goes; from here on pages can only be reclaimed.
        Td?.ReleaseHkid(actor);

        // 3: the notifier is unregistered: the direct roots lose everything.
        Notifier.Release(actor);

        // 4: vCPUs: references to roots, TDVPR and TDCX pages.
        foreach (Vcpu vcpu in _vcpus)
            vcpu.Destroy(actor);

        DirtyLog.Free(actor);

        // 5: mirror tables, bottom-up, each Secure EPT page reclaimed.
        Mmu.Destroy(actor);

        // 6: TDCS, TDR.
        Td?.Destroy(actor);
        foreach (MemslotTable slots in _slots)
        {
            foreach (Memslot slot in slots.Active.Slots)
                slot.DirtyBitmap?.Free();
        }

        foreach (GuestMemfd file in _files)
            file.FreeIndex();
        UserMemory.Notifier = null;
        UserMemory.Free(actor);
        Attributes?.Free(actor);
        Kernel.Frames.Drain(actor);
        Kernel.ReturnVmNumber(Number);
    }

    /// <summary>True when the CPU's page-modification log is used.</summary>
    internal bool HasPml => Mmu.Options.DirtyLogSize != 0;

    /// <summary>The vCPU that the actor has loaded now (KVM: kvm_get_running_vcpu), or null.</summary>
    internal Vcpu? RunningOn(Actor actor) => _running[actor.Index];

    /// <summary>The actor loads a vCPU, or puts it: null. Only its own element is touched.</summary>
    internal void SetRunning(Actor actor, Vcpu? vcpu) => _running[actor.Index] = vcpu;

    internal void AddFile(GuestMemfd file) => _files = [.. _files, file];
}
