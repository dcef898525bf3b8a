namespace Tdp.Mmu;

/// <content>Aging: which pages did the guest use (tdp-mmu 6.1 row 12). No mmu_lock: RCU and atomic bit operations only.</content>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Clears Accessed on every leaf of the range and says whether any had it (KVM: kvm_tdp_mmu_age_gfn_range). No lock needed, none forbidden. No flush: a page
    /// that is used through an old TLB entry merely looks unused.
    /// </summary>
    public bool Age(Actor actor, GfnRange range, AliasFilter filter, int addressSpace = -1) => AgeRange(actor, range, filter, testOnly: false, addressSpace);

    /// <summary>Says whether any leaf of the range has Accessed set (KVM: kvm_tdp_mmu_test_age_gfn). No lock needed.</summary>
    public bool TestAge(Actor actor, GfnRange range, AliasFilter filter, int addressSpace = -1) => AgeRange(actor, range, filter, testOnly: true, addressSpace);

    private bool AgeRange(Actor actor, GfnRange range, AliasFilter filter, bool testOnly, int addressSpace)
    {
        RootKinds kinds = KindsOf(filter);
        bool young = false;
        bool done = false;
        Rcu.ReadEnter(actor);
        for (Root? root = FirstInList(); root is not null && !done; root = NextInList(root))
        {
            if ((addressSpace >= 0 && root.AddressSpace != addressSpace) || !Match(root, kinds))
                continue;
            var it = new TdpIterator(_memory, root, 1, range.Start.Value, root.RawBits);
            for (; it.Valid && it.Gfn < range.End.Value; it.Next())
            {
                if (!it.IsLeaf || !it.Old.IsAccessed)
                    continue;
                if (testOnly)
                {
                    young = done = true;
                    break;
                }

                young |= AgeLeaf(root, ref it);
            }
        }

        Rcu.ReadExit(actor);
        return young;
    }

    // The entry may be frozen, zapped or detached at any moment. Clearing bit 8 without comparing is the kernel's way; what that does to FROZEN is told in tdp-mmu 4.13.
    private bool AgeLeaf(Root root, scoped ref TdpIterator it)
    {
        if (root.IsMirror)
        {
            Warn($"aging of a mirror leaf at gfn 0x{it.Gfn:x}");
            return false;
        }

        if (it.Old.IsAdEnabled)
            it.Old = it.Entry.FetchClear(Spte.AccessedBit);
        else
            _ = it.Entry.TryReplace(ref it.Old, it.Old.MarkForAccessTracking());
        return true;
    }
}
