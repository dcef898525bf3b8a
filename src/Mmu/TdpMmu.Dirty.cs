using System.Numerics;

namespace Tdp.Mmu;

/// <content>Write protection and dirty logging (tdp-mmu 6.1 rows 13 to 16, 6.7). In a TD these reach no mirror leaf: such slots have none.</content>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Takes W from every leaf of the slot at or above a level (KVM: kvm_tdp_mmu_wrprot_slot; row 13). mmu_lock read; may yield. MMU-writable stays, so the fast page
    /// fault can give W back.
    /// </summary>
    /// <returns>True when something changed; the caller flushes, outside mmu_lock.</returns>
    public bool WriteProtectSlot(Actor actor, MmuSlot slot, Level leastLevel)
    {
        MmuLock.AssertRead(actor);
        bool changed = false;
        for (Root? root = NextRoot(actor, null, RootKinds.Valid, slot.AddressSpace); root is not null; root = NextRoot(actor, root, RootKinds.Valid, slot.AddressSpace))
        {
            Rcu.ReadEnter(actor);
            var it = new TdpIterator(_memory, root, leastLevel.Value, slot.Range.Start.Value, root.RawBits);
            for (; it.Valid && it.Gfn < slot.Range.End.Value; it.Next())
            {
            again:
                if (YieldIfNeeded(actor, ref it, flush: false, shared: true))
                    continue;
                if (!it.IsLeaf || !it.Old.IsWritable)
                    continue;
                if (SetAtomic(actor, root, ref it, new Spte(it.Old.Value & ~Spte.WritableBit)) != ExternalResult.Ok)
                    goto again;
                changed = true;
            }

            Rcu.ReadExit(actor);
        }

        return changed;
    }

    /// <summary>
    /// Clears Dirty (or W, where W is what records) on every leaf of the slot (KVM: kvm_tdp_mmu_clear_dirty_slot; row 14). mmu_lock read; may yield.
    /// The caller flushes.
    /// </summary>
    public void ClearDirtySlot(Actor actor, MmuSlot slot)
    {
        MmuLock.AssertRead(actor);
        for (Root? root = NextRoot(actor, null, RootKinds.Valid, slot.AddressSpace); root is not null; root = NextRoot(actor, root, RootKinds.Valid, slot.AddressSpace))
        {
            ulong bit = RecordingBit(root, writeProtect: false);
            Rcu.ReadEnter(actor);
            var it = new TdpIterator(_memory, root, 1, slot.Range.Start.Value, root.RawBits);
            for (; it.Valid && it.Gfn < slot.Range.End.Value; it.Next())
            {
            again:
                if (!it.IsLeaf)
                    continue;
                if (YieldIfNeeded(actor, ref it, flush: false, shared: true))
                    continue;
                if ((it.Old.Value & bit) == 0)
                    continue;
                if (SetAtomic(actor, root, ref it, new Spte(it.Old.Value & ~bit)) != ExternalResult.Ok)
                    goto again;
            }

            Rcu.ReadExit(actor);
        }
    }

    /// <summary>
    /// Clears Dirty or W on the 4K leaves whose bits are set in a mask of 64 pages (KVM: kvm_tdp_mmu_clear_dirty_pt_masked; row 15). mmu_lock write. The caller
    /// flushes once, iff it took bits from the log.
    /// </summary>
    /// <param name="actor">Who harvests.</param>
    /// <param name="slot">The slot.</param>
    /// <param name="first">Page of bit 0.</param>
    /// <param name="mask">The pages.</param>
    /// <param name="writeProtect">Take W even where the CPU maintains Dirty: the VM has no page-modification log.</param>
    public void ClearDirtyMasked(Actor actor, MmuSlot slot, Gfn first, ulong mask, bool writeProtect)
    {
        MmuLock.AssertWrite(actor);
        for (Root? root = FirstInList(); root is not null; root = NextInList(root))
        {
            if (root.AddressSpace != slot.AddressSpace || !Match(root, RootKinds.Valid))
                continue;
            ulong bit = RecordingBit(root, writeProtect);
            ulong left = mask;
            Rcu.ReadEnter(actor);
            var it = new TdpIterator(_memory, root, 1, first.Value + (ulong)BitOperations.TrailingZeroCount(mask), root.RawBits);
            for (; it.Valid && it.Gfn < first.Value + 64 && left != 0; it.Next())
            {
                if (!it.IsLeaf || it.LevelNumber > 1 || (left & (1UL << (int)(it.Gfn - first.Value))) == 0)
                    continue;
                left &= ~(1UL << (int)(it.Gfn - first.Value));
                if ((it.Old.Value & bit) == 0)
                    continue;
                if (it.Old.NeedsAtomicUpdate(it.Level))
                    it.Old = new Spte(it.Entry.FetchClear(bit).Value & ~bit);
                else
                    it.Entry.Store(new Spte(it.Old.Value & ~bit));
            }

            Rcu.ReadExit(actor);
        }
    }

    /// <summary>
    /// Takes W and MMU-writable from the leaves that cover one page (KVM: kvm_tdp_mmu_write_protect_gfn; row 16). mmu_lock write. After it only the slow path can make
    /// the page writable.
    /// </summary>
    /// <returns>True when something changed; the caller flushes before it drops mmu_lock.</returns>
    public bool WriteProtectGfn(Actor actor, MmuSlot slot, Gfn gfn, Level leastLevel)
    {
        MmuLock.AssertWrite(actor);
        bool changed = false;
        for (Root? root = FirstInList(); root is not null; root = NextInList(root))
        {
            if (root.AddressSpace != slot.AddressSpace || !Match(root, RootKinds.Valid))
                continue;
            Rcu.ReadEnter(actor);
            var it = new TdpIterator(_memory, root, leastLevel.Value, gfn.Value, root.RawBits);
            for (; it.Valid && it.Gfn <= gfn.Value; it.Next())
            {
                if (!it.IsLeaf)
                    continue;
                var @new = new Spte(it.Old.Value & ~(Spte.WritableBit | Spte.MmuWritable));
                if (@new == it.Old)
                    break;
                SetExclusive(actor, root, ref it, @new);
                changed = true;
            }

            Rcu.ReadExit(actor);
        }

        return changed;
    }

    // Which bit makes the next write visible: W where nothing else records it, else Dirty (tdp-mmu 6.7).
    private ulong RecordingBit(Root root, bool writeProtect) =>
        writeProtect || !_adEnabled || (Options.DirtyLogSize != 0 && root.PeekRole().IsGuestMode) ? Spte.WritableBit : Spte.DirtyBit;
}
