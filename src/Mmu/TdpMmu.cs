namespace Tdp.Mmu;

/// <summary>
/// The TDP MMU of one VM: the page tables of its guest-physical space and every operation on them.
/// </summary>
/// <remarks>
/// Protocol, in the order in which things may be held: slots_lock (Host) > mmu_lock > pages lock; RCU read sections inside mmu_lock or alone.
/// <list type="bullet">
/// <item>mmu_lock read: faults and every walker that changes entries by compare-exchange. A direct entry changes in that one step. A mirror entry is frozen, the external
/// table is made to follow, then the entry is thawed to its new value, or to its old one if that failed (protocol P2; tdp-mmu 4.4).</item>
/// <item>mmu_lock write: zaps, invalidation, root validity. Entries are stored; what the fast page fault or the hardware may still change is exchanged.</item>
/// <item>RCU alone: aging, fast page fault, readers. They use atomic read-modify-writes only and may meet FROZEN or a detached table.</item>
/// <item>A detached table is freed after a grace period. Whoever holds an old pointer finds nothing present in it (tdp-mmu 7.2).</item>
/// </list>
/// The MMU knows mirror roots and an external page table; it does not know who stands behind it.
/// </remarks>
public sealed partial class TdpMmu : IRcuReclaimer
{
    private readonly IGuestBacking _backing;
    private readonly IVcpuSet _vcpus;
    private readonly IExternalPageTable? _external;
    private readonly PhysicalMemory _memory;
    private readonly SpinLock _pagesLock;
    private readonly ulong _aliasGfnMask;
    private readonly ulong _endOfGfns;
    private readonly bool _hasMirror;
    private readonly bool _adEnabled;
    private readonly SyncGate _warningGate = new();
    private long _warnings;

    /// <summary>Makes the MMU of a VM without any root.</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="options">What the VM is.</param>
    /// <param name="backing">What stands behind frame numbers.</param>
    /// <param name="vcpus">The VM's vCPUs.</param>
    /// <param name="external">The table that mirror roots mirror; required exactly for a VM with a mirror.</param>
    /// <exception cref="ArgumentException">The options contradict each other.</exception>
    public TdpMmu(Machine machine, MmuOptions options, IGuestBacking backing, IVcpuSet vcpus, IExternalPageTable? external = null)
    {
        if (options.HasMirror != (external is not null))
            throw new ArgumentException("a VM has an external page table exactly if it has a mirror", nameof(external));
        if (options.HasMirror != (options.AliasBit.Number != 0))
            throw new ArgumentException("a VM has an alias bit exactly if it has a mirror", nameof(options));
        if (options.HasMirror && !options.AdEnabled)
            throw new ArgumentException("a TD needs a host with EPT A/D bits (tdp-mmu 2.5)", nameof(options));
        if (options.HasMirror && !options.MmioCaching)
            throw new ArgumentException("a TD needs MMIO caching: its MMIO entries are what makes the guest take #VE (tdp-mmu 2.6)", nameof(options));
        if (options.RootLevel != Level.G512 && options.RootLevel != Level.T256)
            throw new ArgumentException("the root level is 4 or 5", nameof(options));
        Machine = machine;
        Options = options;
        Format = new SpteFormat(options);
        Tables = new TableStore(machine);
        Death = new VmDeath(options.VmNumber);
        MmuLock = new RwLock(machine.Actors, "mmu_lock", options.VmNumber);
        Rcu = new RcuDomain(machine.Actors, "tables", options.VmNumber);
        Invalidation = new Invalidation(MmuLock, options.VmNumber, Warn);
        _pagesLock = new SpinLock("tdp_mmu_pages_lock", options.VmNumber);
        _rootHead = new SharedCell<int>("tdp_mmu_roots", options.VmNumber, -1);
        _memory = machine.Memory;
        _backing = backing;
        _vcpus = vcpus;
        _external = external;
        _hasMirror = options.HasMirror;
        _adEnabled = options.AdEnabled;
        _nxHugePages = options.NxHugePages;
        _aliasGfnMask = options.AliasBit.GfnMask;
        _endOfGfns = 1UL << ((options.PhysicalAddressBits == 0 ? machine.Description.PhysicalAddressBits : options.PhysicalAddressBits) - 12);
    }

    /// <summary>The machine.</summary>
    public Machine Machine { get; }

    /// <summary>What the VM is.</summary>
    public MmuOptions Options { get; }

    /// <summary>How the VM's entries are built.</summary>
    public SpteFormat Format { get; }

    /// <summary>mmu_lock: read for faults, write for zaps and invalidations (tdp-mmu 7.1).</summary>
    public RwLock MmuLock { get; }

    /// <summary>The invalidation record.</summary>
    public Invalidation Invalidation { get; }

    /// <summary>Protects table memory that walkers reach.</summary>
    public RcuDomain Rcu { get; }

    /// <summary>Whether the VM is bugged and dead.</summary>
    public VmDeath Death { get; }

    /// <summary>Counters.</summary>
    public MmuStatistics Statistics { get; } = new();

    /// <summary>WARNs so far; each is also a finding of the machine under I81.</summary>
    public long Warnings
    {
        get
        {
            using (_warningGate.Hold())
                return _warnings;
        }
    }

    /// <summary>
    /// Test port: "the scheduler wants the CPU". Polled where the kernel polls need_resched; the walk yields when it answers true and progress was made.
    /// </summary>
    public Func<bool>? NeedResched { get; set; }

    /// <summary>Told of every fault; null for nobody. Not to be changed while vCPUs fault.</summary>
    public IFaultObserver? FaultObserver { get; set; }

    /// <summary>One past the largest frame number of the host: whole-root walks end there (tdp-mmu 1.1, 3.1).</summary>
    public ulong EndOfGfns => _endOfGfns;

    internal TableStore Tables { get; }

    /// <summary>WARN: something that the real host would log once and survive. Counted, and a finding under I81.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void Warn(string what)
    {
        using (_warningGate.Hold())
            _warnings++;
        Machine.Findings.Add("I81", $"VM {Options.VmNumber}: WARN: {what}");
    }

    /// <summary>KVM_BUG_ON: the VM is bugged and dead from here on, and its vCPUs are told. Counted as a finding under I81.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void Bug(Actor actor, string what)
    {
        Machine.Findings.Add("I81", $"VM {Options.VmNumber}: BUG: {what}");
        if (Death.Declare(what))
            _vcpus.RequestAll(actor, VcpuRequest.VmDead, wait: true);
    }

    /// <summary>Remote TLB flush of the VM: every vCPU flushes before it runs again; returns when none runs on old translations (tdp-mmu 7.5).</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void FlushRemoteTlbs(Actor actor)
    {
        Statistics.Add(actor, MmuCounter.FlushAll);
        _vcpus.RequestAll(actor, VcpuRequest.TlbFlush, wait: true);
    }

    /// <summary>Remote TLB flush of a frame range.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void FlushRemoteTlbs(Actor actor, GfnRange range)
    {
        Statistics.Add(actor, MmuCounter.FlushRange);
        _vcpus.FlushRange(actor, range);
    }

    /// <inheritdoc/>
    void IRcuReclaimer.Reclaim(ulong cookie)
    {
        if (cookie >= RootCookie)
            FreeRootSlot((int)(cookie - RootCookie));
        else
            FreeTableNow((uint)cookie);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void HostBug(string what) => throw new HostBugException(what);
}
