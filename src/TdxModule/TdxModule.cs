namespace Tdp.Module;

/// <summary>
/// The simulated Intel TDX module 1.5 (tdx-module.md; decisions D05, D15, D25, D28, D32, D33): SEAMCALL and TDCALL leaves over real PAMT and Secure EPT
/// pages in the machine's memory.
/// </summary>
/// <remarks>
/// Any number of processors may call at once; each <see cref="LogicalProcessor"/> is used by one thread at a time. No call ever waits: who cannot have
/// a lock gets <c>TDX_OPERAND_BUSY</c> with the operand that was busy, and everything taken so far is given back (tdx-module 7.1).
/// Lock order inside a leaf: TDVPR, TDR, OP_STATE, Secure EPT tree, Secure EPT entry, then pages; since nothing waits it only decides which busy code
/// a loser reports. A failed call changes nothing but what tdx-module 7.3 lists.
/// </remarks>
public sealed partial class TdxModule
{
    /// <summary>Numbers that no leaf has are counted together here; guest leaves follow.</summary>
    private const int UnknownLeaf = 95;
    private const ulong ReservedRax = ~0xFF_FFFFUL;
    private readonly PhysicalMemory _memory;
    private readonly Pamt _pamt;
    private readonly KeyOwnership _kot;
    private readonly LpContext[] _lps;
    private readonly WordBlock _system = new(0, separateLines: true, "sys-state", "sys-lock");
    private readonly ControlTable<TdControl> _tds = new();
    private readonly ControlTable<TdVcpu> _vcpus = new();
    private IBusyInjector? _injector;
    private IModuleObserver? _observer;

    // True while a call cannot take the short way: ports are installed, or the system is not ready.
    private bool _guarded = true;

    /// <summary>Loads the module on a machine. It starts in SYSINIT_PENDING; the host brings it up (tdx-module 2).</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="profile">Where documents and code differ.</param>
    /// <param name="options">Simulator knobs.</param>
    public TdxModule(Machine machine, BehaviourProfile profile, TdxModuleOptions? options = null)
    {
        Machine = machine;
        Profile = profile;
        Options = options ?? new TdxModuleOptions();
        _memory = machine.Memory;
        _pamt = new Pamt(machine);
        _kot = new KeyOwnership(1 << machine.Description.HkidBits);
        _lps = new LpContext[machine.Processors.Count];
        for (int i = 0; i < _lps.Length; i++)
            _lps[i] = new LpContext(machine.Processors[i]);
        InitializeSystem();
        InitializeReportKey();
    }

    /// <summary>The machine.</summary>
    public Machine Machine { get; }

    /// <summary>The behaviour points in force.</summary>
    public BehaviourProfile Profile { get; }

    /// <summary>The simulator knobs in force.</summary>
    public TdxModuleOptions Options { get; }

    /// <summary>Test port: injected BUSY answers; null for none. Not to be set while processors call.</summary>
    public IBusyInjector? BusyInjector
    {
        get => _injector;
        set
        {
            _injector = value;
            UpdateGuard();
        }
    }

    /// <summary>Observer of calls; null for none. Not to be set while processors call.</summary>
    public IModuleObserver? Observer
    {
        get => _observer;
        set
        {
            _observer = value;
            UpdateGuard();
        }
    }

    /// <summary>The XMM registers that the host passes at VP.ENTER and finds after a TD exit, by the guest's mask.</summary>
    public ref XmmFile HostXmm(LogicalProcessor lp) => ref _lps[lp.Id].HostXmm;

    /// <summary>The control structure of the vCPU that is inside its TD on this processor; null when none is.</summary>
    public Vmcs? CurrentVmcs(LogicalProcessor lp) => _lps[lp.Id].Current?.Vmcs;

    /// <summary>
    /// Executes one SEAMCALL on a processor. VP.ENTER performs only its entry half; afterwards <see cref="CurrentVmcs"/> says whether the processor is
    /// in the TD. A processor outside VMX operation gets the value that Linux's wrapper makes of #UD (tdx-module 1.9).
    /// </summary>
    /// <param name="lp">The processor; it must not be inside a TD.</param>
    /// <param name="registers">Registers in and out; RAX holds leaf and version, then the status.</param>
    public void Seamcall(LogicalProcessor lp, ref SeamRegisters registers)
    {
        LpContext ctx = _lps[lp.Id];
        if (ctx.Current is not null)
            throw new InvalidOperationException($"LP {lp.Id} executed SEAMCALL while it is inside a TD.");
        if (!lp.VmxOn)
        {
            registers.Rax = VmxOffStatus;
            return;
        }

        lp.Spend(SimClock.ModuleCallTicks);
        if (_observer is null)
        {
            Dispatch(ctx, ref registers);
            return;
        }

        SeamRegisters before = registers;
        _observer.Calling(lp, before);
        Dispatch(ctx, ref registers);
        _observer.Returned(lp, before, registers);
    }

    private const ulong VmxOffStatus = 0x8000FF00_00000006;

    // tdx-module 1.3, in order; an unknown leaf before SYS_READY is "not ready".
    private void Dispatch(LpContext ctx, ref SeamRegisters registers)
    {
        ulong rax = registers.Rax;
        int leaf = (ushort)rax;
        int version = (byte)(rax >> 16);
        TdxStatus status;
        if ((rax & ReservedRax) != 0 || (version != 0 && !HasVersions((TdhLeaf)leaf)))
            status = TdxStatus.OPERAND_INVALID | OperandId.RAX;
        else if (_guarded && Refuses(ctx, (TdhLeaf)leaf, out TdxStatus refusal))
            status = refusal;
        else
            status = Execute(ctx, (TdhLeaf)leaf, version, ref registers);
        registers.Rax = status.Value;
        ctx.Count(leaf < UnknownLeaf ? leaf : UnknownLeaf, status);
    }

    private bool HasVersions(TdhLeaf leaf) => leaf
        is TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_SEPT_REMOVE or TdhLeaf.MEM_PAGE_PROMOTE or TdhLeaf.MNG_RD or TdhLeaf.VP_RD
        || (leaf == TdhLeaf.VP_INIT && Profile.OffersVpInitVersion1);

    private bool Refuses(LpContext ctx, TdhLeaf leaf, out TdxStatus status)
    {
        SystemState state = State;
        if (state == SystemState.SYS_SHUTDOWN && leaf != TdhLeaf.SYS_LP_SHUTDOWN)
        {
            status = TdxStatus.SYS_SHUTDOWN;
            return true;
        }

        if (state != SystemState.SYS_READY && !IsBringUp(leaf))
        {
            status = TdxStatus.SYS_NOT_READY;
            return true;
        }

        status = default;
        return _injector is not null && Enum.IsDefined(leaf) && _injector.TryInject(ctx.Lp, leaf, out status);
    }

    private static bool IsBringUp(TdhLeaf leaf) => leaf
        is TdhLeaf.SYS_INFO or TdhLeaf.SYS_RD or TdhLeaf.SYS_RDALL or TdhLeaf.SYS_INIT or TdhLeaf.SYS_LP_INIT or TdhLeaf.SYS_CONFIG
        or TdhLeaf.SYS_KEY_CONFIG or TdhLeaf.SYS_LP_SHUTDOWN or TdhLeaf.SYS_UPDATE;

    private TdxStatus Execute(LpContext ctx, TdhLeaf leaf, int version, ref SeamRegisters r)
    {
        switch (leaf)
        {
            case TdhLeaf.MEM_PAGE_AUG:
                return PageAug(ctx, r.Rcx, r.Rdx, r.R8, out r.Rcx, out r.Rdx);
            case TdhLeaf.MEM_SEPT_ADD:
                return SeptAdd(ctx, version, ref r);
            case TdhLeaf.MEM_RANGE_BLOCK:
                return RangeBlock(ctx, r.Rcx, r.Rdx, out r.Rcx, out r.Rdx);
            case TdhLeaf.MEM_RANGE_UNBLOCK:
                return RangeUnblock(ctx, r.Rcx, r.Rdx, out r.Rcx, out r.Rdx);
            case TdhLeaf.MEM_TRACK:
                return Track(ctx, r.Rcx);
            case TdhLeaf.MEM_PAGE_REMOVE:
                return PageRemove(ctx, r.Rcx, r.Rdx, out r.Rcx, out r.Rdx);
            case TdhLeaf.VP_ENTER:
                return EnterHalf(ctx, ref r, out _);
            case TdhLeaf.MEM_PAGE_ADD:
                return PageAdd(ctx, r.Rcx, r.Rdx, r.R8, r.R9, out r.Rcx, out r.Rdx);
            case TdhLeaf.MEM_SEPT_REMOVE:
                return SeptRemove(ctx, version, ref r);
            case TdhLeaf.MEM_SEPT_RD:
                return SeptRead(ctx, ref r);
            case TdhLeaf.MEM_PAGE_PROMOTE:
                return PagePromote(ctx, version, ref r);
            case TdhLeaf.MEM_PAGE_DEMOTE:
                return PageDemote(ctx, ref r);
            case TdhLeaf.MEM_PAGE_RELOCATE:
                return PageRelocate(ctx, r.Rcx, r.Rdx, r.R8, out r.Rcx, out r.Rdx);
            case TdhLeaf.MEM_RD:
                return MemRead(ctx, ref r);
            case TdhLeaf.MEM_WR:
                return MemWrite(ctx, ref r);
            case TdhLeaf.MR_EXTEND:
                return MrExtend(ctx, r.Rcx, r.Rdx, out r.Rcx, out r.Rdx);
            case TdhLeaf.MR_FINALIZE:
                return MrFinalize(ctx, r.Rcx);
            default:
                return ExecuteManagement(ctx, leaf, version, ref r);
        }
    }

    private TdxStatus ExecuteManagement(LpContext ctx, TdhLeaf leaf, int version, ref SeamRegisters r)
    {
        switch (leaf)
        {
            case TdhLeaf.MNG_CREATE:
                return MngCreate(ctx, r.Rcx, r.Rdx);
            case TdhLeaf.MNG_KEY_CONFIG:
                return MngKeyConfig(ctx, r.Rcx);
            case TdhLeaf.MNG_ADDCX:
                return MngAddcx(ctx, r.Rcx, r.Rdx);
            case TdhLeaf.MNG_INIT:
                return MngInit(ctx, ref r);
            case TdhLeaf.MNG_VPFLUSHDONE:
                return MngVpFlushDone(ctx, r.Rcx);
            case TdhLeaf.MNG_KEY_FREEID:
                return MngKeyFreeId(ctx, r.Rcx);
            case TdhLeaf.MNG_KEY_RECLAIMID:
                return TdxStatus.SUCCESS;
            case TdhLeaf.MNG_RD:
                return MngRead(ctx, version, ref r);
            case TdhLeaf.MNG_WR:
                return MngWrite(ctx, ref r);
            case TdhLeaf.VP_CREATE:
                return VpCreate(ctx, r.Rcx, r.Rdx);
            case TdhLeaf.VP_ADDCX:
                return VpAddcx(ctx, r.Rcx, r.Rdx);
            case TdhLeaf.VP_INIT:
                return VpInit(ctx, version, ref r);
            case TdhLeaf.VP_FLUSH:
                return VpFlush(ctx, r.Rcx);
            case TdhLeaf.VP_RD:
                return VpRead(ctx, version, ref r);
            case TdhLeaf.VP_WR:
                return VpWrite(ctx, ref r);
            case TdhLeaf.PHYMEM_PAGE_RDMD:
                return PageReadMetadata(ctx, ref r);
            case TdhLeaf.PHYMEM_PAGE_RECLAIM:
                return PageReclaim(ctx, ref r);
            case TdhLeaf.PHYMEM_PAGE_WBINVD:
                return PageWbinvd(ctx, r.Rcx);
            case TdhLeaf.PHYMEM_CACHE_WB:
                return CacheWb(ctx, r.Rcx);
            default:
                return ExecuteSystem(ctx, leaf, ref r);
        }
    }

    private TdxStatus ExecuteSystem(LpContext ctx, TdhLeaf leaf, ref SeamRegisters r)
    {
        switch (leaf)
        {
            case TdhLeaf.SYS_INIT:
                return SysInit(ref r);
            case TdhLeaf.SYS_LP_INIT:
                return SysLpInit(ctx, ref r);
            case TdhLeaf.SYS_INFO:
                return SysInfo(ctx, ref r);
            case TdhLeaf.SYS_RD:
                return SysRead(ctx, ref r);
            case TdhLeaf.SYS_CONFIG:
                return SysConfig(ctx, r.Rcx, r.Rdx, r.R8);
            case TdhLeaf.SYS_KEY_CONFIG:
                return SysKeyConfig(ctx);
            case TdhLeaf.SYS_TDMR_INIT:
                return SysTdmrInit(r.Rcx, ref r.Rdx);
            case TdhLeaf.SYS_SHUTDOWN:
                return SysShutdown(ctx, r.Rcx);
            case TdhLeaf.SYS_LP_SHUTDOWN:
                return TdxStatus.SUCCESS;
            default:
                return TdxStatus.OPERAND_INVALID | OperandId.RAX;
        }
    }

    private void UpdateGuard() => _guarded = _injector is not null || _observer is not null || State != SystemState.SYS_READY;
}
