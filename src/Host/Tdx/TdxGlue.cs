namespace Tdp.Host;

/// <summary>
/// Turns changes of mirror entries into SEAMCALLs (KVM: vmx/tdx.c; tdp-mmu 8.2, 8.3, 8.5, protocol P2).
/// </summary>
/// <remarks>
/// <list type="bullet">
/// <item>To present, mmu_lock read, entry frozen by the caller: SEPT.ADD, PAGE.AUG, or PAGE.ADD before finalize. BUSY is answered with Busy: the MMU
/// restores the entry
/// and the fault retries. Other vCPUs' calls, their guests' TDCALLs and VP.ENTER may be what was busy.</item>
/// <item>Leaf removal, mmu_lock write: BLOCK, TRACK, kick, REMOVE, WBINVD. BUSY is retried once with every vCPU locked out (wait_for_sept_zap) and must
/// then succeed (I29).
/// TRACK and its kick are one unit; units are serialized by mmu_lock write, so no vCPU is ever left two epochs behind (I27, I28).</item>
/// <item>Table removal: only after the KeyID is gone (I69).</item>
/// </list>
/// Any other answer of the module is a bug of this code or of the MMU: the VM dies (I80, I81), and a page that the module may still own is never used again.
/// </remarks>
public sealed class TdxGlue : IExternalPageTable
{
    private readonly Vm _vm;
    private readonly TrustDomain _td;
    private readonly HostKernel _kernel;
    private readonly TdxModule _module;
    private readonly FrameLedger _ledger;
    private readonly ProcessorMap _processors;
    private readonly ActorCounters _counters = new((int)GlueCounter.Count);

    internal TdxGlue(Vm vm, TrustDomain td)
    {
        _vm = vm;
        _td = td;
        _kernel = vm.Kernel;
        _module = vm.Kernel.Port!.Module;
        _ledger = vm.Kernel.Machine.Ledger;
        _processors = vm.Kernel.Processors;
    }

    /// <summary>What the glue counts, per actor.</summary>
    public enum GlueCounter
    {
        /// <summary>Pages mapped by AUG.</summary>
        Augmented,

        /// <summary>Pages mapped by ADD.</summary>
        Added,

        /// <summary>Secure EPT pages added.</summary>
        TablesAdded,

        /// <summary>Pages removed.</summary>
        Removed,

        /// <summary>To-present calls that answered BUSY.</summary>
        BusyMaps,

        /// <summary>Removals that needed the vCPUs locked out.</summary>
        KickRetries,

        /// <summary>TRACKs, each with its kick.</summary>
        Tracks,

        /// <summary>Number of counters.</summary>
        Count,
    }

    /// <summary>Sum of a counter over all actors; exact at quiescence.</summary>
    public long this[GlueCounter counter] => _counters.Sum((int)counter);

    /// <summary>One actor's share of a counter; exact when asked by that actor.</summary>
    public long Of(Actor actor, GlueCounter counter) => _counters.Of(actor, (int)counter);

    /// <inheritdoc/>
    public ExternalResult SetEntry(Actor actor, Gfn gfn, Spte old, Spte @new, Level level, TablePage child)
    {
        // Every change whose old value is present is the removal of that leaf, whatever the new value is (tdp-mmu 4.5).
        if (old.IsPresent)
            return RemoveLeaf(actor, gfn, old, level);
        if (!@new.IsPresent)
            return Dead(actor, "I06", $"a mirror entry changes from {old} to {@new} at gfn {gfn}");
        return @new.IsLast(level) ? MapLeaf(actor, gfn, @new, level) : Link(actor, gfn, level, child);
    }

    /// <inheritdoc/>
    public void FreeTable(Actor actor, TablePage table)
    {
        Hpa page = table.ExternalPage;
        if (_td.IsHkidAssigned)
        {
            // KVM does not zap Secure EPT tables at run time: the module still walks this page.
            _ledger.Leak(page, "Secure EPT page of a mirror table that was removed while the KeyID was assigned");
            Dead(actor, "I69", $"{table} was removed while the KeyID is assigned");
            return;
        }

        _td.Reclaim(actor, page, "Secure EPT page");
    }

    private ExternalResult Link(Actor actor, Gfn gfn, Level level, TablePage child)
    {
        if (child.IsNone || child.ExternalPage.Value == 0 || child.Level != level.Down || child.Gfn != gfn.AlignDown(level))
            return Dead(actor, "I09", $"the table linked at gfn {gfn}, {level} does not fit its entry");
        TdxStatus status = _module.MemSeptAdd(
            _processors.Of(actor), PageInfo.Of(gfn.Gpa, level), _td.Tdr, child.ExternalPage, out ulong entry, out ulong state);
        if (status == TdxStatus.SUCCESS)
        {
            _counters.Add(actor, (int)GlueCounter.TablesAdded);
            return ExternalResult.Ok;
        }

        return NotMapped(actor, TdhLeaf.MEM_SEPT_ADD, gfn, level, status, entry, state);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private ExternalResult MapLeaf(Actor actor, Gfn gfn, Spte @new, Level level)
    {
        if (level.Value != 1)
            return WrongLevel(actor, gfn, level);
        if ((@new.Value & Spte.Rwx) != Spte.Rwx)
            WarnOfRights(gfn);
        Hpa page = @new.Address;
        if (Checks.On && _ledger.UseOf(page) != FrameUse.GuestMemfd)
            ReportWrongOwner(page, "mapped");

        // Pairs with the store barrier in finalize: the state is read after pre_fault_allowed was seen (R25).
        Fence.LoadLoad();
        if (_td.State.Read() != TdState.Runnable)
            return AddPage(actor, gfn, page);
        TdxStatus status = _module.MemPageAug(
            _processors.Of(actor), PageInfo.Of(gfn.Gpa, level), _td.Tdr, page, out ulong entry, out ulong state);
        if (status.Value == 0)
        {
            _counters.Add(actor, (int)GlueCounter.Augmented);
            return ExternalResult.Ok;
        }

        return NotMapped(actor, TdhLeaf.MEM_PAGE_AUG, gfn, level, status, entry, state);
    }

    // The initial image: the source page was put down by INIT_MEM_REGION, which holds slots_lock (tdp-mmu 8.2).
    [MethodImpl(MethodImplOptions.NoInlining)]
    private ExternalResult AddPage(Actor actor, Gfn gfn, Hpa page)
    {
        if (_td.PageAddSource is not { } source || _td.IsPreFaultAllowed || !_vm.SlotsLock.IsHeld(actor))
            return Dead(actor, "I70", $"a private page at gfn {gfn} would be added outside of INIT_MEM_REGION");
        SeamRegisters registers = SeamRegisters.Call(TdhLeaf.MEM_PAGE_ADD, PageInfo.Of(gfn.Gpa, Level.K4), _td.Tdr.Value, page.Value, source.Value);
        TdxStatus status = _kernel.Port!.Call(_processors.Of(actor), ref registers);
        if (status == TdxStatus.SUCCESS)
        {
            _counters.Add(actor, (int)GlueCounter.Added);
            return ExternalResult.Ok;
        }

        return NotMapped(actor, TdhLeaf.MEM_PAGE_ADD, gfn, Level.K4, status, registers.Rcx, registers.Rdx);
    }

    private ExternalResult RemoveLeaf(Actor actor, Gfn gfn, Spte old, Level level)
    {
        _vm.Mmu.MmuLock.AssertWrite(actor);
        if (!_td.IsHkidAssigned)
            return Dead(actor, "I69", $"the leaf at gfn {gfn} is removed after the KeyID was released");
        if (level != Level.K4)
            return Dead(actor, "I07", $"a private leaf of {level} at gfn {gfn} is removed");

        // 1: after BLOCK no new translation of the page can be made.
        TdxStatus status = Issue(actor, TdhLeaf.MEM_RANGE_BLOCK, gfn);
        if (status != TdxStatus.SUCCESS)
            return Refused(actor, TdhLeaf.MEM_RANGE_BLOCK, gfn, status);

        // 2: while no vCPU has ever run there are no translations to wait for.
        if (_td.State.Read() == TdState.Runnable)
            Track(actor);

        // 3: nothing can use the page now.
        status = Issue(actor, TdhLeaf.MEM_PAGE_REMOVE, gfn);
        if (status != TdxStatus.SUCCESS)
            return Refused(actor, TdhLeaf.MEM_PAGE_REMOVE, gfn, status);

        // 4: its cache lines leave under the TD's key, before the host touches it with its own.
        Hpa page = old.Address;
        status = _module.PhymemPageWbinvd(_processors.Of(actor), page, _td.Hkid);
        if (status != TdxStatus.SUCCESS)
            return Refused(actor, TdhLeaf.PHYMEM_PAGE_WBINVD, gfn, status);
        _ledger.HandOver(page, FrameUse.Kernel, FrameUse.GuestMemfd);

        // 5: only parts with the partial-write erratum need the old content overwritten in full lines before anybody reads it.
        if (_kernel.Machine.Description.PartialWriteErratum)
            _kernel.Machine.Memory.Zero(page);
        _counters.Add(actor, (int)GlueCounter.Removed);
        return ExternalResult.Ok;
    }

    // TRACK moves the epoch, the kick makes every vCPU leave at least once; re-entry takes the new epoch and flushes (tdp-mmu 8.4).
    private void Track(Actor actor)
    {
        TdxStatus status = Issue(actor, TdhLeaf.MEM_TRACK, default);
        if (status != TdxStatus.SUCCESS)
        {
            // The removal goes on: REMOVE will tell whether tracking is done.
            Dead(actor, status.IsBusy ? "I29" : "I28", $"{TdhLeaf.MEM_TRACK.FullName()} failed: {status}");
        }

        _counters.Add(actor, (int)GlueCounter.Tracks);
        _vm.VcpuSet.RequestAll(actor, VcpuRequest.OutsideGuestMode, wait: true);
    }

    /// <summary>KVM's tdh_do_no_vcpus: one call, and on BUSY one more with every vCPU kept out (tdp-mmu 8.5). Caller holds mmu_lock write.</summary>
    private TdxStatus Issue(Actor actor, TdhLeaf leaf, Gfn gfn)
    {
        TdxStatus status = IssueOnce(actor, leaf, gfn);
        return status.IsBusy ? IssueAlone(actor, leaf, gfn) : status;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus IssueAlone(Actor actor, TdhLeaf leaf, Gfn gfn)
    {
        _counters.Add(actor, (int)GlueCounter.KickRetries);

        // A vCPU either is inside when the kick looks, and is waited for, or sees the flag after its own barrier and does not enter (R20).
        _vm.WaitForSeptZap.Write(true);
        _vm.VcpuSet.RequestAll(actor, VcpuRequest.OutsideGuestMode, wait: true);
        TdxStatus status = IssueOnce(actor, leaf, gfn);
        _vm.WaitForSeptZap.Write(false);
        return status;
    }

    private TdxStatus IssueOnce(Actor actor, TdhLeaf leaf, Gfn gfn)
    {
        LogicalProcessor lp = _processors.Of(actor);
        ulong operand = PageInfo.Of(gfn.Gpa, Level.K4);
        return leaf switch
        {
            TdhLeaf.MEM_RANGE_BLOCK => _module.MemRangeBlock(lp, operand, _td.Tdr, out _, out _),
            TdhLeaf.MEM_TRACK => _module.MemTrack(lp, _td.Tdr),
            TdhLeaf.MEM_PAGE_REMOVE => _module.MemPageRemove(lp, operand, _td.Tdr, out _, out _),
            _ => throw new HostBugException($"{leaf.FullName()} is not a removal step"),
        };
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ExternalResult NotMapped(Actor actor, TdhLeaf leaf, Gfn gfn, Level level, TdxStatus status, ulong entry, ulong state)
    {
        if (status.IsBusy)
        {
            _counters.Add(actor, (int)GlueCounter.BusyMaps);
            return ExternalResult.Busy;
        }

        return Dead(actor, "I80", $"{leaf.FullName()}(gfn {gfn}, {level}) failed: {status}, entry 0x{entry:x}, level and state 0x{state:x}");
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ExternalResult Refused(Actor actor, TdhLeaf leaf, Gfn gfn, TdxStatus status) =>
        Dead(actor, status.IsBusy ? "I29" : "I80", $"{leaf.FullName()}(gfn {gfn}) failed: {status}");

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ExternalResult Dead(Actor actor, string rule, string reason)
    {
        // Named by its own rule first; that the VM is bugged is a finding of I81 besides.
        _kernel.Machine.Findings.Add(rule, $"VM {_vm.Number}: {reason}");
        _vm.Bug(actor, reason);
        return ExternalResult.Error;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ExternalResult WrongLevel(Actor actor, Gfn gfn, Level level) => Dead(actor, "I07", $"a private leaf of {level} at gfn {gfn}");

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void WarnOfRights(Gfn gfn) => _vm.Mmu.Warn($"the mirror leaf at gfn {gfn} does not grant all of R, W and X (I08)");

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ReportWrongOwner(Hpa page, string what) =>
        _kernel.Machine.Findings.Add("I32", $"frame {page} is {what} as a private page, but belongs to {_ledger.UseOf(page)}");
}
