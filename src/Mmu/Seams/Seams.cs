namespace Tdp.Mmu;

/// <summary>What the external page table answered to one change (tdp-mmu 4.12).</summary>
public enum ExternalResult
{
    /// <summary>Done.</summary>
    Ok = 0,

    /// <summary>-EBUSY: somebody else was inside; nothing changed. Legal for to-present changes only; the fault retries.</summary>
    Busy = -16,

    /// <summary>-EIO: anything else. The implementer has declared the VM dead, with its reason.</summary>
    Error = -5,
}

/// <summary>
/// The tree that a mirror mirrors (KVM: set_external_spte, free_external_spt; a TD's Secure EPT). Implemented by the Host's TDX glue
/// (decisions D09; tdp-mmu 4.4, 8.2, 8.3).
/// </summary>
public interface IExternalPageTable
{
    /// <summary>
    /// Makes the external tree follow one change of a mirror entry. The entry itself holds FROZEN while a to-present change is in flight, and its new value
    /// while a removal is.
    /// </summary>
    /// <param name="actor">Who changes. Holds mmu_lock: read for a to-present change, write for the removal of a leaf.</param>
    /// <param name="gfn">First frame number of the entry, natural.</param>
    /// <param name="old">Value before.</param>
    /// <param name="new">Value after. Present leaf: map; present non-leaf: link; otherwise <paramref name="old"/> was a leaf: remove it.</param>
    /// <param name="level">Level of the entry (not of the table it points to).</param>
    /// <param name="child">The table being linked, with its external page; <see cref="TablePage.None"/> for a leaf.</param>
    /// <returns><see cref="ExternalResult.Busy"/> only for a to-present change.</returns>
    ExternalResult SetEntry(Actor actor, Gfn gfn, Spte old, Spte @new, Level level, TablePage child);

    /// <summary>
    /// A mirror table was detached and its entries removed: take its external page back from the module. Whatever happens, the page
    /// belongs to the implementer from now on (freed, or leaked with a reason).
    /// </summary>
    void FreeTable(Actor actor, TablePage table);
}

/// <summary>
/// What stands behind guest frame numbers: slots, attributes, host pages, guest_memfd. Implemented by the Host (decisions section 5).
/// </summary>
public interface IGuestBacking
{
    /// <summary>
    /// KVM's faultin_pfn (tdp-mmu 5.4, all steps but 2): finds the slot, compares the access with the attribute, finds the page. Runs without mmu_lock, after
    /// the MMU's snapshot <see cref="Fault.Seq"/>. On <see cref="FaultResult.Continue"/> the output fields of the fault are set
    /// (<see cref="Fault.Slot"/>, <see cref="Fault.Pfn"/>, <see cref="Fault.MapWritable"/>, <see cref="Fault.MaxLevel"/> lowered for private memory).
    /// No slot and a shared access: Continue with <see cref="Fault.Slot"/> null and <see cref="Fault.SlotGeneration"/> set.
    /// </summary>
    /// <returns>Continue, Retry, Emulate, or an errno; -EFAULT with <see cref="MmuVcpu.MemoryFault"/> filled.</returns>
    FaultResult Resolve(ref Fault fault);

    /// <summary>The slot of a frame number in the vCPU's view, or null. For the fast path and write tracking; may return a slot flagged INVALID.</summary>
    MmuSlot? SlotOf(MmuVcpu vcpu, Gfn gfn);

    /// <summary>True when the attribute of the frame number is PRIVATE.</summary>
    bool IsPrivate(Gfn gfn);

    /// <summary>The size of the host's own mapping of the page, read from the host's page tables; the caller holds mmu_lock (tdp-mmu 5.7 step 3).</summary>
    Level MaxHostLevel(MmuSlot slot, Gfn gfn);

    /// <summary>The guest may now write the page without a further exit: record it in the slot's dirty log.</summary>
    void MarkDirty(Actor actor, MmuSlot slot, Gfn gfn);

    /// <summary>The memslot generation of the vCPU's view, for MMIO entries (tdp-mmu 2.6). Bit 63: an update is in progress.</summary>
    ulong SlotGeneration(MmuVcpu vcpu);
}

/// <summary>Requests to vCPUs (tdp-mmu 7.4).</summary>
public enum VcpuRequest
{
    /// <summary>KVM_REQ_TLB_FLUSH: flush everything before entering.</summary>
    TlbFlush,

    /// <summary>KVM_REQ_VM_DEAD: leave the run loop with -EIO.</summary>
    VmDead,

    /// <summary>KVM_REQ_OUTSIDE_GUEST_MODE: no action, only be outside once.</summary>
    OutsideGuestMode,

    /// <summary>KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: drop invalid roots and reload.</summary>
    FreeObsoleteRoots,

    /// <summary>KVM_REQ_TLB_FLUSH_CURRENT: flush the current root.</summary>
    TlbFlushCurrent,
}

/// <summary>The vCPUs of the VM, as the MMU needs them. Implemented by the Host on <see cref="Kick"/>.</summary>
public interface IVcpuSet
{
    /// <summary>
    /// Posts a request to every vCPU and makes those in the guest leave it. With <paramref name="wait"/>, returns only when each was outside at some moment
    /// after the caller's earlier writes (tdp-mmu 7.4). May be called under mmu_lock: a target needs no lock to acknowledge.
    /// </summary>
    void RequestAll(Actor actor, VcpuRequest request, bool wait);

    /// <summary>A flush of a frame range; hardware without one flushes the whole VM (tdp-mmu 7.5).</summary>
    void FlushRange(Actor actor, GfnRange range) => RequestAll(actor, VcpuRequest.TlbFlush, wait: true);

    /// <summary>A flush of a whole slot; hardware without one flushes the whole VM.</summary>
    void FlushSlot(Actor actor, MmuSlot slot) => FlushRange(actor, slot.Range);
}

/// <summary>
/// Sees each fault of a VM begin and end, on the thread that takes it (I30, I52, I64, I67, I68, I78). For checkers: called only where they run at all
/// (<see cref="Checks.On"/>).
/// </summary>
public interface IFaultObserver
{
    /// <summary>A fault was decoded; nothing has been looked up and no lock is held.</summary>
    void Began(in Fault fault);

    /// <summary>
    /// The fault ended, all locks are dropped. A fault that <see cref="TdpMmu.HandleFault"/> answered without a record (a vCPU without roots, MMIO found by the
    /// hardware) has neither begun nor ended here.
    /// </summary>
    /// <param name="fault">Its record, as the fault left it.</param>
    /// <param name="result">The answer.</param>
    void Ended(in Fault fault, FaultResult result);
}
