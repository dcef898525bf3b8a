namespace Tdp.Host;

/// <summary>Why APICv is off for a VM (KVM: enum kvm_apicv_inhibit; those that VMX knows).</summary>
[Flags]
public enum ApicvInhibit
{
    /// <summary>No reason: it is on.</summary>
    None = 0,

    /// <summary>Switched off by the module parameter.</summary>
    Disabled = 1 << 0,

    /// <summary>Hyper-V AutoEOI.</summary>
    HyperV = 1 << 1,

    /// <summary>No in-kernel local APIC.</summary>
    Absent = 1 << 2,

    /// <summary>A debugger blocks interrupts.</summary>
    BlockIrq = 1 << 3,

    /// <summary>Two vCPUs have the same physical APIC id.</summary>
    PhysicalIdAliased = 1 << 4,

    /// <summary>The guest changed its APIC id.</summary>
    ApicIdModified = 1 << 5,

    /// <summary>The guest moved its APIC.</summary>
    ApicBaseModified = 1 << 6,
}

/// <summary>
/// APICv of one VM as far as page tables are concerned: the APIC access page, a slot of the host's own at 0xFEE00000, is mapped while APICv is on and must be unmapped when it goes off
/// (tdp-mmu 5.4 step 6, 6.13).
/// </summary>
public sealed class Apicv
{
    /// <summary>APIC_DEFAULT_PHYS_BASE.</summary>
    public const ulong AccessPage = 0xFEE0_0000;

    private readonly Vm _vm;
    private readonly Mutex _updateLock;
    private readonly SharedCell<ApicvInhibit> _inhibits;

    internal Apicv(Vm vm)
    {
        _vm = vm;
        _updateLock = new Mutex("apicv_update_lock", (ulong)vm.Number);
        _inhibits = new SharedCell<ApicvInhibit>("apicv_inhibit_reasons", (ulong)vm.Number);
    }

    /// <summary>Reasons against it now.</summary>
    public ApicvInhibit Inhibits => _inhibits.Peek();

    /// <summary>Read by faults in the slot of the access page.</summary>
    internal bool IsActive => _inhibits.Read() == ApicvInhibit.None;

    /// <summary>
    /// Creates the access page in every address space (KVM: kvm_alloc_apic_access_page). Ordinary VMs only: a TD has x2APIC and no such page. Once; takes slots_lock.
    /// </summary>
    /// <returns>-EINVAL for a TD or a second time, -EEXIST when a slot of user space is in the way, -ENOMEM.</returns>
    public Errno CreateAccessPage(Actor actor)
    {
        if (_vm.IsTd)
            return Errno.EINVAL;
        ulong address = _vm.UserMemory.Map(actor, 1);
        return address == 0 ? Errno.ENOMEM : _vm.Memory.CreateInternalSlot(actor, VmMemory.ApicAccessSlot, AccessPage, 0x1000, address, MemslotFlags.ApicAccess);
    }

    /// <summary>
    /// Adds or removes a reason (KVM: kvm_set_or_clear_apicv_inhibit). When APICv goes off, the access page is zapped in every root, inside an invalidation, and the flush is made before the call
    /// returns. When it comes back, the next access maps the page. For a TD it is a bug of the host: its module runs vCPUs with APICv or not at all.
    /// </summary>
    /// <param name="actor">Who; holds no lock.</param>
    /// <param name="reasons">The reasons.</param>
    /// <param name="set">Add or remove.</param>
    public void Inhibit(Actor actor, ApicvInhibit reasons, bool set)
    {
        _updateLock.Enter(actor);
        ApicvInhibit before = _inhibits.Read();
        ApicvInhibit after = set ? before | reasons : before & ~reasons;
        if (_vm.IsTd && after != ApicvInhibit.None)
        {
            _updateLock.Exit(actor);
            _vm.Bug(actor, $"APICv of a TD is inhibited: {reasons}");
            return;
        }

        if ((before == ApicvInhibit.None) != (after == ApicvInhibit.None))
        {
            // Whoever is in the guest leaves before the reason is visible; whoever enters afterwards looks at it.
            _vm.VcpuSet.RequestAll(actor, VcpuSet.ApicvUpdate, wait: false);
            _inhibits.Write(after);
            if (after != ApicvInhibit.None)
                _vm.Memory.ZapRange(actor, GfnRange.Of(new Gfn(AccessPage >> 12), 1));
        }
        else
        {
            _inhibits.Write(after);
        }

        _updateLock.Exit(actor);
    }
}
