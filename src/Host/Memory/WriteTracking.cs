namespace Tdp.Host;

/// <summary>Told of every write to a tracked page, on the vCPU's actor, after the write has been made (KVM: kvm_page_track_notifier_node.track_write).</summary>
public interface IWriteTracker
{
    /// <summary>The vCPU wrote.</summary>
    /// <param name="vcpu">Which.</param>
    /// <param name="gpa">First byte.</param>
    /// <param name="bytes">1, 2, 4 or 8.</param>
    void Wrote(Vcpu vcpu, ulong gpa, int bytes);
}

/// <summary>
/// External write tracking of one VM (KVM: page_track; tdp-mmu 5.3 step 1, 6.1 row 16): a tracked page is never mapped writable, so every write to it is emulated and reported.
/// </summary>
/// <remarks>Counts live in the MMU's slot; they change under slots_lock and mmu_lock write. A tracked page also forbids the huge pages around it.</remarks>
public sealed class WriteTracking
{
    private readonly Vm _vm;
    private IWriteTracker[] _trackers = [];

    internal WriteTracking(Vm vm) => _vm = vm;

    /// <summary>True while somebody listens: slots cannot be moved then (KVM: kvm_page_track_has_external_user).</summary>
    public bool HasUser => _trackers.Length != 0;

    /// <summary>Adds a listener. Takes slots_lock.</summary>
    public void Register(Actor actor, IWriteTracker tracker)
    {
        _vm.SlotsLock.Enter(actor);
        _trackers = [.. _trackers, tracker];
        _vm.SlotsLock.Exit(actor);
    }

    /// <summary>Removes a listener. Takes slots_lock.</summary>
    public void Unregister(Actor actor, IWriteTracker tracker)
    {
        _vm.SlotsLock.Enter(actor);
        _trackers = Array.FindAll(_trackers, t => !ReferenceEquals(t, tracker));
        _vm.SlotsLock.Exit(actor);
    }

    /// <summary>
    /// kvm_write_track_add_gfn: the page is write-protected in every valid root and stays so; when something was writable the flush is made before mmu_lock is dropped. Nests. Takes slots_lock,
    /// then mmu_lock write.
    /// </summary>
    /// <returns>-EINVAL when no slot has the page, or private memory stands behind it.</returns>
    public Errno Track(Actor actor, Gfn gfn, int addressSpace = 0)
    {
        _vm.SlotsLock.Enter(actor);
        Memslot? slot = SlotOf(gfn, addressSpace);
        if (slot is not null)
        {
            TdpMmu mmu = _vm.Mmu;
            mmu.MmuLock.EnterWrite(actor);
            slot.Mmu.TrackWrites(gfn, +1);
            if (mmu.WriteProtectGfn(actor, slot.Mmu, gfn, Level.K4))
                mmu.FlushRemoteTlbs(actor);
            mmu.MmuLock.ExitWrite(actor);
        }

        _vm.SlotsLock.Exit(actor);
        return slot is null ? Errno.EINVAL : Errno.None;
    }

    /// <summary>kvm_write_track_remove_gfn: when the last tracker is gone the next write faults and maps the page writable. Takes slots_lock, then mmu_lock write.</summary>
    /// <returns>-EINVAL when the page is not tracked.</returns>
    public Errno Untrack(Actor actor, Gfn gfn, int addressSpace = 0)
    {
        _vm.SlotsLock.Enter(actor);
        Memslot? slot = SlotOf(gfn, addressSpace);
        bool isTracked = slot is not null && slot.Mmu.IsWriteTracked(gfn);
        if (isTracked)
        {
            _vm.Mmu.MmuLock.EnterWrite(actor);
            slot!.Mmu.TrackWrites(gfn, -1);
            _vm.Mmu.MmuLock.ExitWrite(actor);
        }

        _vm.SlotsLock.Exit(actor);
        return isTracked ? Errno.None : Errno.EINVAL;
    }

    internal void Wrote(Vcpu vcpu, ulong gpa, int bytes)
    {
        foreach (IWriteTracker tracker in _trackers)
            tracker.Wrote(vcpu, gpa, bytes);
    }

    private Memslot? SlotOf(Gfn gfn, int addressSpace) =>
        (uint)addressSpace < (uint)_vm.AddressSpaces && _vm.SlotsOf(addressSpace).Active.Find(gfn) is { Memfd: null } slot ? slot : null;
}
