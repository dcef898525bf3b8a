namespace Tdp.Host;

/// <content>Zaps that neither slots nor attributes ask for, and what does not zap although one might think so (tdp-mmu 6.1 row 1, 6.13).</content>
public sealed partial class VmMemory
{
    private int _noncoherentDevices;

    /// <summary>Devices with non-coherent DMA that are assigned now.</summary>
    public int NoncoherentDevices => _noncoherentDevices;

    /// <summary>
    /// A device with non-coherent DMA is assigned or taken away (KVM: kvm_arch_register_noncoherent_dma). The first and the last one decide whether the guest's PAT counts, so every leaf must be built
    /// anew. Where it always counts, in a TD or without the quirk, there is nothing to zap. Takes slots_lock, then mmu_lock write.
    /// </summary>
    /// <param name="actor">Who.</param>
    /// <param name="isAssigned">One more device, or one less.</param>
    /// <returns>-EINVAL when there is none to take away.</returns>
    public Errno AssignNoncoherentDevice(Actor actor, bool isAssigned)
    {
        _vm.SlotsLock.Enter(actor);
        try
        {
            if (!isAssigned && _noncoherentDevices == 0)
                return Errno.EINVAL;
            int before = _noncoherentDevices;
            _noncoherentDevices += isAssigned ? 1 : -1;
            if ((before == 0) == (_noncoherentDevices == 0) || _vm.IsTd || !_vm.Options.IgnoreGuestPat)
                return Errno.None;
            Zap(actor, new GfnRange(default, new Gfn(_vm.Mmu.EndOfGfns)), newIgnoreGuestPat: _noncoherentDevices == 0);
            return Errno.None;
        }
        finally
        {
            _vm.SlotsLock.Exit(actor);
        }
    }

    /// <summary>
    /// kvm_zap_gfn_range: removes every leaf of the range from every valid root, as one invalidation, and flushes before mmu_lock is dropped. Never for a TD: the mask reaches its mirror,
    /// and what is removed from there the guest loses.
    /// </summary>
    internal void ZapRange(Actor actor, GfnRange range) => Zap(actor, range, newIgnoreGuestPat: null);

    private void Zap(Actor actor, GfnRange range, bool? newIgnoreGuestPat)
    {
        TdpMmu mmu = _vm.Mmu;
        mmu.MmuLock.EnterWrite(actor);
        mmu.Invalidation.Begin(actor);
        mmu.Invalidation.AddRange(actor, range);

        // In the same critical section, so that no leaf of the new kind is zapped and none of the old kind made.
        if (newIgnoreGuestPat is { } ignored)
            mmu.SetIgnoreGuestPat(actor, ignored);
        if (mmu.ZapLeafs(actor, range))
            mmu.FlushRemoteTlbs(actor, range);
        mmu.Invalidation.End(actor);
        mmu.MmuLock.ExitWrite(actor);
    }
}
