namespace Tdp.Mmu;

/// <content>Huge pages after the fact: splitting and recovery (tdp-mmu 6.8).</content>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Splits every leaf of the range above a level (KVM: kvm_tdp_mmu_try_split_huge_pages; row 17). mmu_lock held, read if <paramref name="shared"/>; it is given
    /// up to allocate and to yield. No flush: old and new translations are equal.
    /// </summary>
    /// <param name="actor">Who splits.</param>
    /// <param name="caches">Where tables come from; a vCPU's MMU or one made for the purpose.</param>
    /// <param name="slot">The slot.</param>
    /// <param name="range">The pages.</param>
    /// <param name="target">Leaves above it are split.</param>
    /// <param name="shared">mmu_lock is held for read.</param>
    /// <returns>False: out of memory.</returns>
    public bool TrySplitHuge(Actor actor, MmuVcpu caches, MmuSlot slot, GfnRange range, Level target, bool shared)
    {
        for (Root? root = NextRoot(actor, null, RootKinds.Valid, slot.AddressSpace); root is not null; root = NextRoot(actor, root, RootKinds.Valid, slot.AddressSpace))
        {
            if (SplitRoot(actor, caches, root, range, target, shared))
                continue;
            PutRoot(actor, root);
            return false;
        }

        return true;
    }

    /// <summary>
    /// Maps huge again what dirty logging had split, where nothing forbids it any more (KVM: kvm_tdp_mmu_recover_huge_pages; row 18). mmu_lock read; may yield.
    /// Flushes the slot itself before it yields and at the end.
    /// </summary>
    public void RecoverHuge(Actor actor, MmuSlot slot)
    {
        MmuLock.AssertRead(actor);
        if (slot.IsDirtyLogged)
        {
            Warn($"huge-page recovery of slot {slot.Id}, which is dirty-logged");
            return;
        }

        for (Root? root = NextRoot(actor, null, RootKinds.Valid, slot.AddressSpace); root is not null; root = NextRoot(actor, root, RootKinds.Valid, slot.AddressSpace))
            RecoverRoot(actor, root, slot);
    }

    private bool SplitRoot(Actor actor, MmuVcpu caches, Root root, GfnRange range, Level target, bool shared)
    {
        uint table = 0;
        bool enough = true;
        Rcu.ReadEnter(actor);
        var it = new TdpIterator(_memory, root, target.Value + 1, range.Start.Value, root.RawBits);
        for (; it.Valid && it.Gfn < range.End.Value; it.Next())
        {
        again:
            if (YieldIfNeeded(actor, ref it, flush: false, shared))
                continue;
            if (!it.Old.IsPresent || (it.Old.Value & Spte.LargeBit) == 0)
                continue;
            if (table == 0)
            {
                if (caches.TableCount == 0)
                {
                    enough = Allocate(actor, caches, ref it, shared);
                    if (!enough)
                        break;
                    continue;
                }

                table = caches.TakeTable();
            }

            InitChild(table, root, it.EntryAddress, new Gfn(it.Gfn), it.Level);
            if (SplitHuge(actor, root, ref it, table, shared) != ExternalResult.Ok)
                goto again;
            table = 0;
        }

        Rcu.ReadExit(actor);
        if (table != 0)
            FreeUnlinked(table);
        return enough;
    }

    // Memory comes from outside every lock; the walk goes on as after a yield.
    private bool Allocate(Actor actor, MmuVcpu caches, scoped ref TdpIterator it, bool shared)
    {
        Rcu.ReadExit(actor);
        if (shared)
            MmuLock.ExitRead(actor);
        else
            MmuLock.ExitWrite(actor);
        bool enough = caches.TopUp();
        if (shared)
            MmuLock.EnterRead(actor);
        else
            MmuLock.EnterWrite(actor);
        Rcu.ReadEnter(actor);
        it.Yielded = true;
        return enough;
    }

    /// <summary>Puts a filled table of 512 smaller leaves in the place of a large one (KVM: tdp_mmu_split_huge_page).</summary>
    private ExternalResult SplitHuge(Actor actor, Root root, scoped ref TdpIterator it, uint index, bool shared)
    {
        Level level = it.Level;
        FillFromHuge(index, it.Old, level);
        if (!shared)
            SetExclusive(actor, root, ref it, TableEntry(index));
        else if (SetAtomic(actor, root, ref it, TableEntry(index)) is var result && result != ExternalResult.Ok)
            return result;
        CountSplit(actor, level);
        return ExternalResult.Ok;
    }

    // Nobody sees the table yet.
    private void FillFromHuge(uint index, Spte huge, Level level)
    {
        Level below = level.Down;
        ulong child = huge.Value;
        if (below == Level.K4)
        {
            child &= ~Spte.LargeBit;

            // X was dropped only because the leaf was huge.
            if (_nxHugePages)
                child = new Spte(child).WithExecute(true).Value;
        }

        Span<ulong> entries = _memory.Table(new Hpa(Tables.Record(index).Frame));
        for (int i = 0; i < entries.Length; i++)
            entries[i] = child + ((ulong)i * below.Bytes);
    }

    private void CountSplit(Actor actor, Level level)
    {
        Statistics.Add(actor, MmuCounter.Tables);
        Statistics.AddPages(actor, level.Value - 1, 512);
    }

    private void RecoverRoot(Actor actor, Root root, MmuSlot slot)
    {
        ulong start = slot.Range.Start.Value;
        ulong end = slot.Range.End.Value;
        bool flush = false;
        Rcu.ReadEnter(actor);
        var it = new TdpIterator(_memory, root, 2, start, root.RawBits);
        for (; it.Valid && it.Gfn < end; it.Next())
        {
        again:
            if (YieldIfNeeded(actor, ref it, flush, shared: true))
            {
                flush = false;
                continue;
            }

            if (it.LevelNumber > Level.G1.Value || it.Old.Kind(it.Level) != SpteKind.Table || it.Gfn < start)
                continue;
            Gfn gfn = new(it.Gfn);
            Level most = slot.LargestAllowed(gfn, Level.G1);
            if (most > Level.K4)
            {
                Level backed = _backing.IsPrivate(gfn) ? Level.K4 : _backing.MaxHostLevel(slot, gfn);
                most = backed < most ? backed : most;
            }

            if (most.Value < it.LevelNumber)
                continue;
            switch (MakeHuge(actor, root, ref it, out Spte huge))
            {
                case HugeSearch.Nothing:
                    continue;
                case HugeSearch.Yielded:
                    flush = false;
                    goto again;
                default:
                    if (SetAtomic(actor, root, ref it, huge) != ExternalResult.Ok)
                        goto again;
                    flush = true;
                    break;
            }
        }

        // Tables were removed: the flush comes before RCU is left (tdp-mmu 7.2).
        if (flush)
            FlushSlot(actor, slot);
        Rcu.ReadExit(actor);
    }

    private enum HugeSearch
    {
        Nothing,
        Found,
        Yielded,
    }

    // A huge leaf with the attributes of the first leaf below (KVM: tdp_mmu_make_huge_spte).
    private HugeSearch MakeHuge(Actor actor, Root root, scoped ref TdpIterator parent, out Spte huge)
    {
        ulong end = parent.Gfn + parent.Level.Pages;
        huge = Spte.NonPresent;
        var it = new TdpIterator(_memory, root, 1, parent.Gfn, root.RawBits);
        for (; it.Valid && it.Gfn < end; it.Next())
        {
            if (!it.IsLeaf)
                continue;
            ulong address = it.Old.Value & Spte.AddressMask & ~(parent.Level.Bytes - 1);
            ulong value = (it.Old.Value & ~Spte.AddressMask) | address | Spte.LargeBit;
            huge = _nxHugePages ? new Spte(value).WithExecute(false) : new Spte(value);
            return HugeSearch.Found;
        }

        return HugeSearch.Nothing;
    }

    private void FlushSlot(Actor actor, MmuSlot slot)
    {
        Statistics.Add(actor, MmuCounter.FlushRange);
        _vcpus.FlushSlot(actor, slot);
    }
}
