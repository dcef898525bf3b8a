namespace Tdp.Mmu;

/// <content>Faults that need no new mapping: write tracking, the fast page fault, MMIO (tdp-mmu 5.2, 5.3 steps 1 and 2, 5.5).</content>
public sealed partial class TdpMmu
{
    private const int FastTries = 5;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult TrackedOrFast(ref Fault fault)
    {
        if (fault.Present && fault.Write && !fault.Rsvd && _backing.SlotOf(fault.Vcpu, fault.Gfn) is { } slot && slot.Range.Contains(fault.Gfn)
            && slot.IsWriteTracked(fault.Gfn))
            return FaultResult.WriteProtected;
        return TryFast(ref fault);
    }

    /// <summary>
    /// Repairs a present leaf of the direct root without mmu_lock: gives W back that dirty logging took, restores an access-tracked entry (KVM:
    /// fast_page_fault). Public for replay and tests; <see cref="HandleFault"/> does it on its own.
    /// </summary>
    /// <returns>Fixed, Spurious, or Invalid: not for the fast path.</returns>
    public FaultResult FastFault(MmuVcpu vcpu, Gpa addr, ulong errorCode)
    {
        ref Fault fault = ref Decode(vcpu, addr, errorCode);
        return TryFast(ref fault);
    }

    private bool CanBeFast(in Fault fault)
    {
        if (fault.Rsvd)
            return false;
        if (_hasMirror && fault.IsPrivate != _backing.IsPrivate(fault.Gfn))
            return false;
        return fault.Present ? fault.Write : !_adEnabled;
    }

    // RCU only. A zapper under mmu_lock write exchanges such a leaf, so either it takes what was set here, or the compare-exchange fails (tdp-mmu 5.5).
    private FaultResult TryFast(ref Fault fault)
    {
        if (!CanBeFast(fault) || fault.Vcpu.DirectRoot is not { } root)
            return FaultResult.Invalid;
        Actor actor = fault.Vcpu.Actor;
        Rcu.ReadEnter(actor);
        FaultResult result = FaultResult.Invalid;
        for (int i = 0; i < FastTries; i++)
        {
            SpteCursor at = LastEntry(root, fault.Gfn.Value);
            Spte old = at.Old;
            if (!at.IsLeaf)
                break;
            if (Allows(fault, old))
            {
                result = FaultResult.Spurious;
                break;
            }

            Spte @new = old;
            if (!_adEnabled && old.IsAccessTracked)
                @new = new Spte(old.RestoreFromAccessTracking().Value | Spte.AccessedBit);
            MmuSlot? slot = null;
            if (fault.Write && old.IsMmuWritable)
            {
                @new = new Spte(@new.Value | Spte.WritableBit);
                slot = _backing.SlotOf(fault.Vcpu, fault.Gfn);
                if (at.Level > 1 && slot is { IsDirtyLogged: true })
                    break;
            }

            if (@new == old || !Allows(fault, @new))
                break;

            // Linearizes here. Dirty stays as it is: the hardware sets it, and page-modification logging must see it do so.
            if (!at.Entry.TryReplace(ref at.Old, @new))
                continue;
            if (@new.IsWritable && !old.IsWritable && slot is { IsDirtyLogged: true })
                _backing.MarkDirty(actor, slot, fault.Gfn);
            result = FaultResult.Fixed;
            break;
        }

        Rcu.ReadExit(actor);
        if (result != FaultResult.Invalid)
            Statistics.Add(actor, MmuCounter.PfFast);
        return result;
    }

    // The lowest entry on the way to the page. RCU.
    private SpteCursor LastEntry(Root root, ulong gfn)
    {
        ulong rawGfn = gfn | root.RawBits;
        var at = new SpteCursor(_memory, root, rawGfn);
        while (at.TryStepDown(_memory, rawGfn))
        {
        }

        return at;
    }

    /// <summary>An MMIO misconfiguration (KVM: handle_mmio_page_fault; tdp-mmu 5.2 step 2). Invalid: rewrite the entry on the normal path.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult HandleMisconfiguration(MmuVcpu vcpu, Gpa addr, ulong errorCode)
    {
        if ((errorCode & PfErr.PrivateAccess) != 0)
        {
            Warn($"an MMIO misconfiguration of a private address, {addr}");
            vcpu.MemoryFault = default;
            return FaultResult.BadAddress;
        }

        Gfn gfn = Options.AliasBit.Strip(addr);
        ulong generation = _backing.SlotGeneration(vcpu);
        if (vcpu.MmioGfnPlusOne == gfn.Value + 1 && vcpu.MmioGeneration == generation && SpteFormat.IsSettled(generation))
            return CountEmulation(vcpu);
        Rcu.ReadEnter(vcpu.Actor);
        SpteCursor at = LastEntry(vcpu.DirectRoot!, gfn.Value);
        Spte entry = at.Old;
        Level level = new(at.Level);
        Rcu.ReadExit(vcpu.Actor);
        if (HasReservedBits(entry, level))
        {
            Warn($"reserved bits in {entry} at gfn {gfn}, {level}");
            return FaultResult.InvalidArgument;
        }

        if (!Format.IsMmio(entry))
            return FaultResult.Retry;
        if (!SpteFormat.IsMmioCurrent(entry, generation))
            return FaultResult.Invalid;
        RememberMmio(vcpu, gfn, generation);
        return CountEmulation(vcpu);
    }

    /// <summary>
    /// True when an access without memory may leave an MMIO entry behind: caching is on, and the frame number is one that the host could have and the tree can hold. Otherwise it is
    /// emulated each time (tdp-mmu 5.4 step 4).
    /// </summary>
    public bool CanHoldMmio(Gfn gfn) => Options.MmioCaching && gfn.Value < _endOfGfns && gfn.Value >> (9 * Options.RootLevel.Value) == 0;

    // Not while slots are being changed: the next access must look again.
    private static void RememberMmio(MmuVcpu vcpu, Gfn gfn, ulong generation)
    {
        if (!SpteFormat.IsSettled(generation))
            return;
        vcpu.MmioGfnPlusOne = gfn.Value + 1;
        vcpu.MmioGeneration = generation;
    }

    private FaultResult CountEmulation(MmuVcpu vcpu)
    {
        Statistics.Add(vcpu.Actor, MmuCounter.MmioCached);
        return FaultResult.Emulate;
    }

    // What the hardware calls a misconfiguration in an entry that KVM believes to be present (td-guest 1.3).
    private static bool HasReservedBits(Spte spte, Level level)
    {
        if (!spte.IsPresent || (spte.Value & Spte.Rwx) == 0)
            return false;
        if ((spte.Value & 3) == Spte.WritableBit)
            return true;
        if (spte.Kind(level) == SpteKind.Table)
            return (spte.Value & (Spte.WriteBack | (1 << 3) | Spte.IgnorePat)) != 0;
        return level > Level.G1 || (level > Level.K4 && (spte.Pfn & (level.Pages - 1)) != 0);
    }
}
