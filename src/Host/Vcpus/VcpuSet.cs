namespace Tdp.Host;

/// <summary>
/// Requests to all vCPUs of a VM (KVM: make_all_cpus_request; tdp-mmu 7.4).
/// </summary>
/// <remarks>
/// Store-buffer pattern, twice. The requester has changed something (an SPTE, a flag), sets the request bit, and compare-exchanges the mode, which is a full
/// barrier; the vCPU writes its mode with a full barrier and then reads requests and flags. At least one of them sees the other's write. With wait, the
/// caller goes on when each
/// target has acknowledged the ticket it was given, that is, was outside the guest at some moment after the caller's writes (decisions D16).
/// </remarks>
internal sealed class VcpuSet : IVcpuSet
{
    /// <summary>KVM_REQ_OUTSIDE_GUEST_MODE: no bit, only a ticket.</summary>
    public const int NoAction = -1;

    /// <summary>KVM_REQ_TLB_FLUSH.</summary>
    public const int TlbFlush = 0;

    /// <summary>KVM_REQ_VM_DEAD.</summary>
    public const int VmDead = 1;

    /// <summary>KVM_REQ_DIRTY_RING_SOFT_FULL: stays pending while the ring is.</summary>
    public const int DirtyRingSoftFull = 3;

    /// <summary>KVM_REQ_APICV_UPDATE, arch 25.</summary>
    public const int ApicvUpdate = 8 + 25;

    /// <summary>KVM_REQ_TLB_FLUSH_CURRENT, arch 26.</summary>
    public const int TlbFlushCurrent = 8 + 26;

    /// <summary>KVM_REQ_UPDATE_CPU_DIRTY_LOGGING, arch 30.</summary>
    public const int UpdateDirtyLogging = 8 + 30;

    /// <summary>KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, arch 31.</summary>
    public const int FreeObsoleteRoots = 8 + 31;

    private readonly Vm _vm;

    public VcpuSet(Vm vm) => _vm = vm;

    public void RequestAll(Actor actor, VcpuRequest request, bool wait) =>
        RequestAll(actor, request == VcpuRequest.OutsideGuestMode ? NoAction : BitOf(request), wait);

    /// <summary>The same for a request that only the Host makes.</summary>
    /// <param name="actor">Who asks.</param>
    /// <param name="bit">Request bit, or <see cref="NoAction"/>.</param>
    /// <param name="wait">Return when every vCPU was outside.</param>
    public void RequestAll(Actor actor, int bit, bool wait)
    {
        ReadOnlySpan<Vcpu> vcpus = _vm.Vcpus;
        Span<ulong> tickets = stackalloc ulong[vcpus.Length];
        for (int i = 0; i < vcpus.Length; i++)
        {
            Kick kick = vcpus[i].Kick;

            // OUTSIDE_GUEST_MODE has no action: only the ticket counts.
            if (bit != NoAction)
                kick.Post(actor, bit);
            tickets[i] = kick.Send(actor, wait);
            if (bit == VmDead)
                vcpus[i].WakeUp();
        }

        if (!wait)
            return;
        for (int i = 0; i < vcpus.Length; i++)
        {
            if (tickets[i] != 0)
                vcpus[i].Kick.AwaitAck(actor, tickets[i]);
        }
    }

    private static int BitOf(VcpuRequest request) => request switch
    {
        VcpuRequest.TlbFlush => TlbFlush,
        VcpuRequest.VmDead => VmDead,
        VcpuRequest.FreeObsoleteRoots => FreeObsoleteRoots,
        VcpuRequest.TlbFlushCurrent => TlbFlushCurrent,
        _ => throw new ArgumentOutOfRangeException(nameof(request), $"{request} is not a request bit"),
    };
}
