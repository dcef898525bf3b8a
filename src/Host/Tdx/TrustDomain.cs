using System.Buffers.Binary;

namespace Tdp.Host;

/// <summary>Where a TD is in its life, as KVM counts it (tdp-mmu 13).</summary>
public enum TdState
{
    /// <summary>No KeyID, no TDR.</summary>
    Uninitialized = 0,

    /// <summary>vCPUs and the initial image can be added.</summary>
    Initialized = 1,

    /// <summary>Finalized: it may run.</summary>
    Runnable = 2,
}

/// <summary>The argument of KVM_TDX_INIT_VM: what TD_PARAMS will say (decisions D22; tdx-module 4.6).</summary>
public sealed record TdConfiguration
{
    /// <summary>Bit 28 of ATTRIBUTES: a touch of unaccepted memory is a TD exit instead of a #VE.</summary>
    public const ulong SeptVeDisable = 1 << 28;

    /// <summary>ATTRIBUTES; null: nothing but what profile point B05 says about SEPT_VE_DISABLE.</summary>
    public ulong? Attributes { get; init; }

    /// <summary>XFAM: x87 and SSE.</summary>
    public ulong Xfam { get; init; } = 3;

    /// <summary>MAX_VCPUS.</summary>
    public ushort MaxVcpus { get; init; } = 1;

    /// <summary>CONFIG_FLAGS besides GPAW, which follows the VM: NO_RBP_MOD.</summary>
    public ulong ConfigFlags { get; init; } = 1 << 2;

    /// <summary>TSC_FREQUENCY in units of 25 MHz.</summary>
    public ushort TscFrequency { get; init; } = 40;
}

/// <summary>
/// The life of one TD: KeyID, TDR, TDCS, the initial image, finalization, and the way back (KVM: struct kvm_tdx; tdp-mmu 8.8, 5.10).
/// </summary>
/// <remarks>
/// Every ioctl here runs under the VM state guard: kvm->lock, every vcpu->mutex, slots_lock. <see cref="State"/> becomes Runnable before
/// <see cref="IsPreFaultAllowed"/>, with a store barrier between, so that whoever sees pre-fault allowed also sees Runnable and uses AUG, never ADD (R25).
/// </remarks>
public sealed partial class TrustDomain
{
    private readonly Vm _vm;
    private readonly HostKernel _kernel;
    private readonly List<Hpa> _tdcs = [];
    private Hpa _tdr;

    internal TrustDomain(Vm vm)
    {
        _vm = vm;
        _kernel = vm.Kernel;
        State = new SharedCell<TdState>("td_state", (ulong)vm.Number);
        PreFault = new SharedCell<bool>("pre_fault_allowed", (ulong)vm.Number);
    }

    /// <summary>Life-cycle state.</summary>
    public SharedCell<TdState> State { get; }

    /// <summary>True once KVM_PRE_FAULT_MEMORY may be used.</summary>
    public bool IsPreFaultAllowed => PreFault.Peek();

    /// <summary>The TD root page; 0 before INIT_VM.</summary>
    public Hpa Tdr => _tdr;

    /// <summary>Its KeyID; meaningful while <see cref="IsHkidAssigned"/>.</summary>
    public Hkid Hkid { get; private set; }

    /// <summary>True from MNG.CREATE to KEY.FREEID: leaves can be removed, tables cannot be reclaimed (I69).</summary>
    public bool IsHkidAssigned { get; private set; }

    /// <summary>ATTRIBUTES it was initialized with.</summary>
    public ulong Attributes { get; private set; }

    internal SharedCell<bool> PreFault { get; }

    /// <summary>Source page of the ADD that the mirror update in progress will make; set under slots_lock only (tdp-mmu 5.10).</summary>
    internal Hpa? PageAddSource { get; set; }

    /// <summary>
    /// KVM_TDX_INIT_VM: KeyID, MNG.CREATE, KEY.CONFIG on every package, MNG.ADDCX, MNG.INIT.
    /// </summary>
    /// <returns>-EINVAL twice or refused parameters, -EBUSY after a vCPU, -ENOSPC no KeyID, -ENOMEM, -EIO.</returns>
    public Errno Initialize(Actor actor, TdConfiguration configuration)
    {
        EnterGuard(actor);
        try
        {
            if (_vm.IsDead)
                return Errno.EIO;
            if (State.Peek() != TdState.Uninitialized)
                return Errno.EINVAL;
            if (_vm.Vcpus.Length != 0)
                return Errno.EBUSY;
            _kernel.CpusLock.EnterRead(actor);
            Errno result = Build(actor, configuration);
            _kernel.CpusLock.ExitRead(actor);
            if (result != Errno.None)
            {
                // Everything taken so far goes back; without a KeyID there is nothing that could leak.
                ReleaseHkid(actor);
                Destroy(actor);
                return result;
            }

            State.Write(TdState.Initialized);
            return Errno.None;
        }
        finally
        {
            ExitGuard(actor);
        }
    }

    /// <summary>KVM_TDX_FINALIZE_VM: MR.FINALIZE; the TD may run afterwards.</summary>
    /// <returns>-EINVAL not initialized or finalized before, -EBUSY, -EIO.</returns>
    public Errno Complete(Actor actor)
    {
        EnterGuard(actor);
        try
        {
            if (_vm.IsDead)
                return Errno.EIO;
            if (State.Peek() != TdState.Initialized)
                return Errno.EINVAL;
            SeamRegisters registers = SeamRegisters.Call(TdhLeaf.MR_FINALIZE, _tdr.Value);
            TdxStatus status = _kernel.Port!.Call(_kernel.Processors.Of(actor), ref registers);
            if (status.IsBusy)
                return Errno.EBUSY;
            if (status != TdxStatus.SUCCESS)
                return Refused(TdhLeaf.MR_FINALIZE, status);
            State.Write(TdState.Runnable);

            // Pairs with the load barrier of the map hook: pre-fault seen allowed implies Runnable seen (R25).
            Fence.StoreStore();
            PreFault.Write(true);
            return Errno.None;
        }
        finally
        {
            ExitGuard(actor);
        }
    }

    /// <summary>
    /// The TD ends: VP.FLUSH of every vCPU, VPFLUSHDONE, CACHE.WB on every package, KEY.FREEID. If a step fails the KeyID is leaked, and with it every
    /// page that needs
    /// it to be gone (tdp-mmu 8.8 teardown step 2).
    /// </summary>
    internal void ReleaseHkid(Actor actor)
    {
        if (!IsHkidAssigned)
            return;
        foreach (Vcpu vcpu in _vm.Vcpus)
            vcpu.Dissociate(actor);
        LogicalProcessor lp = _kernel.Processors.Of(actor);
        SeamcallPort port = _kernel.Port!;
        _kernel.TdxLock.Enter(actor);
        TdxStatus status = port.Call(lp, TdhLeaf.MNG_VPFLUSHDONE, _tdr.Value);
        TdhLeaf failed = TdhLeaf.MNG_VPFLUSHDONE;
        if (status == TdxStatus.SUCCESS)
        {
            failed = TdhLeaf.PHYMEM_CACHE_WB;
            status = _kernel.CallOnEachPackage(actor, failed, 0);
        }

        if (status == TdxStatus.SUCCESS)
        {
            failed = TdhLeaf.MNG_KEY_FREEID;
            status = port.Call(lp, failed, _tdr.Value);
        }

        _kernel.TdxLock.Exit(actor);
        if (status != TdxStatus.SUCCESS)
        {
            _kernel.Log.Warn("kvm", $"{failed.FullName()} failed: {status}; KeyID {Hkid} is leaked");
            _kernel.Hkids.Leak(actor, Hkid);
            return;
        }

        IsHkidAssigned = false;
        _kernel.Hkids.Return(actor, Hkid);
    }

    /// <summary>Reclaims the TDCS pages and, last, the TDR. What cannot be reclaimed is leaked with its reason.</summary>
    internal void Destroy(Actor actor)
    {
        foreach (Hpa page in _tdcs)
            Reclaim(actor, page, "TDCS page");
        _tdcs.Clear();
        if (_tdr.Value == 0)
            return;
        Hpa tdr = _tdr;
        _tdr = default;
        if (!ReclaimFromModule(actor, tdr, "TDR"))
            return;

        // The TDR was written with the module's own key.
        TdxStatus status = _kernel.Port!.Module.PhymemPageWbinvd(_kernel.Processors.Of(actor), tdr, _kernel.Hkids.Global);
        if (status != TdxStatus.SUCCESS)
        {
            _kernel.Log.Warn("kvm", $"{TdhLeaf.PHYMEM_PAGE_WBINVD.FullName()} of the TDR failed: {status}");
            _kernel.Machine.Ledger.Leak(tdr, "TDR could not be written back");
            return;
        }

        _kernel.Frames.Give(actor, tdr, FrameUse.Kernel);
    }

    /// <summary>TDH.PHYMEM.PAGE.RECLAIM of a control or table page; the frame is free afterwards, or leaked.</summary>
    internal void Reclaim(Actor actor, Hpa page, string what)
    {
        if (ReclaimFromModule(actor, page, what))
            _kernel.Frames.Give(actor, page, FrameUse.Kernel);
    }

    /// <summary>Takes a control page and gives it to the module with one call whose RCX is the page.</summary>
    internal Errno AddControlPage(Actor actor, TdhLeaf leaf, Hpa owner, List<Hpa> into)
    {
        if (!_kernel.Frames.TryTake(actor, FrameUse.Kernel, out Hpa page, out _))
            return Errno.ENOMEM;
        SeamRegisters registers = SeamRegisters.Call(leaf, page.Value, owner.Value);
        TdxStatus status = _kernel.Port!.Call(_kernel.Processors.Of(actor), ref registers);
        if (status != TdxStatus.SUCCESS)
        {
            _kernel.Frames.Give(actor, page, FrameUse.Kernel);
            return Refused(leaf, status);
        }

        into.Add(page);
        return Errno.None;
    }

    /// <summary>Logs a refused call: -EIO, or -EAGAIN where the module only lacked entropy.</summary>
    internal Errno Refused(TdhLeaf leaf, TdxStatus status)
    {
        _kernel.Log.Add("kvm", $"{leaf.FullName()} failed: {status} (0x{status.Value:x16})");
        return status == TdxStatus.RND_NO_ENTROPY ? Errno.EAGAIN : Errno.EIO;
    }

    private bool ReclaimFromModule(Actor actor, Hpa page, string what)
    {
        SeamRegisters registers = SeamRegisters.Call(TdhLeaf.PHYMEM_PAGE_RECLAIM, page.Value);
        TdxStatus status = IsHkidAssigned
            ? TdxStatus.LIFECYCLE_STATE_INCORRECT
            : _kernel.Port!.Call(_kernel.Processors.Of(actor), ref registers);
        if (status == TdxStatus.SUCCESS)
            return true;
        _kernel.Log.Warn("kvm", $"{TdhLeaf.PHYMEM_PAGE_RECLAIM.FullName()} of a {what} failed: {status}");
        _kernel.Machine.Ledger.Leak(page, $"{what}: {(IsHkidAssigned ? "its KeyID was never released" : status.ToString())}");
        return false;
    }

    private Errno Build(Actor actor, TdConfiguration configuration)
    {
        SeamcallPort port = _kernel.Port!;
        LogicalProcessor lp = _kernel.Processors.Of(actor);
        if (!_kernel.Hkids.TryTake(actor, out Hkid hkid))
            return Errno.ENOSPC;
        if (!_kernel.Frames.TryTake(actor, FrameUse.Kernel, out Hpa tdr, out _))
        {
            _kernel.Hkids.Return(actor, hkid);
            return Errno.ENOMEM;
        }

        // MNG.CREATE takes the key table exclusively: one TD at a time (tdp-mmu 8.5).
        _kernel.TdxLock.Enter(actor);
        TdxStatus status = port.Call(lp, TdhLeaf.MNG_CREATE, tdr.Value, hkid.Value);
        if (status != TdxStatus.SUCCESS)
        {
            _kernel.TdxLock.Exit(actor);
            _kernel.Hkids.Return(actor, hkid);
            _kernel.Frames.Give(actor, tdr, FrameUse.Kernel);
            return Refused(TdhLeaf.MNG_CREATE, status);
        }

        _tdr = tdr;
        Hkid = hkid;
        IsHkidAssigned = true;
        status = _kernel.CallOnEachPackage(actor, TdhLeaf.MNG_KEY_CONFIG, tdr.Value);
        _kernel.TdxLock.Exit(actor);
        if (status != TdxStatus.SUCCESS)
            return Refused(TdhLeaf.MNG_KEY_CONFIG, status);
        while (_tdcs.Count < _kernel.TdcsPages)
        {
            Errno added = AddControlPage(actor, TdhLeaf.MNG_ADDCX, tdr, _tdcs);
            if (added != Errno.None)
                return added;
        }

        return InitTd(actor, lp, configuration);
    }

    private Errno InitTd(Actor actor, LogicalProcessor lp, TdConfiguration configuration)
    {
        if (!_kernel.Frames.TryTakeZeroed(actor, FrameUse.Kernel, out Hpa parameters))
            return Errno.ENOMEM;
        Attributes = configuration.Attributes ?? (_kernel.Port!.Module.Profile.SeptVeDisableByDefault ? TdConfiguration.SeptVeDisable : 0);
        bool fiveLevel = _vm.Options.IsFiveLevel;
        Span<byte> page = _kernel.Machine.Memory.Frame(parameters);
        BinaryPrimitives.WriteUInt64LittleEndian(page, Attributes);
        BinaryPrimitives.WriteUInt64LittleEndian(page[8..], configuration.Xfam);
        BinaryPrimitives.WriteUInt16LittleEndian(page[16..], configuration.MaxVcpus);
        BinaryPrimitives.WriteUInt64LittleEndian(page[24..], 6 | ((fiveLevel ? 4UL : 3) << 3));
        BinaryPrimitives.WriteUInt64LittleEndian(page[32..], configuration.ConfigFlags | (fiveLevel ? 1UL : 0));
        BinaryPrimitives.WriteUInt16LittleEndian(page[40..], configuration.TscFrequency);
        SeamRegisters registers = SeamRegisters.Call(TdhLeaf.MNG_INIT, _tdr.Value, parameters.Value);
        TdxStatus status = _kernel.Port!.Call(lp, ref registers);
        _kernel.Frames.Give(actor, parameters, FrameUse.Kernel);
        if (status == TdxStatus.SUCCESS)
            return Errno.None;
        Errno refused = Refused(TdhLeaf.MNG_INIT, status);
        return status.Class == TdxStatus.OPERAND_INVALID ? Errno.EINVAL : refused;
    }

    // The VM state guard of 6.19: nobody creates, runs or changes anything meanwhile.
    private void EnterGuard(Actor actor)
    {
        _vm.Lock.Enter(actor);
        foreach (Vcpu vcpu in _vm.Vcpus)
            vcpu.Mutex.Enter(actor);
        _vm.SlotsLock.Enter(actor);
    }

    private void ExitGuard(Actor actor)
    {
        _vm.SlotsLock.Exit(actor);
        foreach (Vcpu vcpu in _vm.Vcpus)
            vcpu.Mutex.Exit(actor);
        _vm.Lock.Exit(actor);
    }
}
