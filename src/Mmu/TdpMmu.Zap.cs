namespace Tdp.Mmu;

/// <content>Zaps: leaves of a range, whole roots, fast zap, one table, destruction (tdp-mmu 6.1 rows 1 to 11, 19).</content>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Removes every leaf of a range from the roots that the filter selects, invalid ones included (KVM: kvm_tdp_mmu_unmap_gfn_range; rows 6 to 10).
    /// mmu_lock write; it may be given up and retaken on the way if <paramref name="mayYield"/>. Tables stay. A larger leaf that overlaps the range goes whole.
    /// </summary>
    /// <param name="actor">Who zaps.</param>
    /// <param name="range">The pages.</param>
    /// <param name="filter">Which alias.</param>
    /// <param name="mayYield">The caller may block.</param>
    /// <param name="flush">A flush that is already owed.</param>
    /// <param name="addressSpace">Only this address space; -1 for all.</param>
    /// <returns>True: the caller must flush remote TLBs before it drops mmu_lock.</returns>
    public bool UnmapRange(Actor actor, GfnRange range, AliasFilter filter, bool mayYield = true, bool flush = false, int addressSpace = -1)
    {
        MmuLock.AssertWrite(actor);
        RootKinds kinds = KindsOf(filter) | RootKinds.Invalid;
        for (Root? root = NextRoot(actor, null, kinds, addressSpace); root is not null; root = NextRoot(actor, root, kinds, addressSpace))
            flush = ZapLeafsOf(actor, root, range.Start.Value, range.End.Value, mayYield, flush);
        return flush;
    }

    /// <summary><see cref="UnmapRange"/> and the flush it asks for, mmu_lock write held throughout (KVM: kvm_unmap_gfn_range + flush).</summary>
    public void UnmapAndFlush(Actor actor, GfnRange range, AliasFilter filter, bool mayYield = true, int addressSpace = -1)
    {
        if (UnmapRange(actor, range, filter, mayYield, flush: false, addressSpace))
            FlushRemoteTlbs(actor);
    }

    /// <summary>
    /// Removes every leaf of a range from all valid roots (KVM: kvm_tdp_mmu_zap_leafs; row 1). mmu_lock write. Never for a TD's private memory.
    /// </summary>
    /// <returns>True: the caller must flush before it drops mmu_lock.</returns>
    public bool ZapLeafs(Actor actor, GfnRange range, bool flush = false)
    {
        MmuLock.AssertWrite(actor);
        for (Root? root = NextRoot(actor, null, RootKinds.Valid); root is not null; root = NextRoot(actor, root, RootKinds.Valid))
            flush = ZapLeafsOf(actor, root, range.Start.Value, range.End.Value, mayYield: true, flush);
        return flush;
    }

    /// <summary>
    /// Leaves of ordinary memory ignore the guest's PAT, or honour it, from now on; those that exist keep what they have, so the caller zaps them in the same critical section
    /// (tdp-mmu 6.13). mmu_lock write.
    /// </summary>
    public void SetIgnoreGuestPat(Actor actor, bool on)
    {
        MmuLock.AssertWrite(actor);
        Format.SetIgnoreGuestPat(on);
        for (Root? root = FirstInList(); root is not null; root = NextInList(root))
            root.UseFormat(Format);
    }

    /// <summary>
    /// Empties every direct root, valid or not (KVM: kvm_tdp_mmu_zap_all; row 2): the owner's address space is gone, or the VM is being destroyed. Takes
    /// mmu_lock write. No flush: no vCPU can run any more.
    /// </summary>
    public void ZapAll(Actor actor)
    {
        const RootKinds Kinds = RootKinds.Direct | RootKinds.Invalid;
        MmuLock.EnterWrite(actor);
        for (Root? root = NextRoot(actor, null, Kinds); root is not null; root = NextRoot(actor, root, Kinds))
            ZapRoot(actor, root, shared: false);
        MmuLock.ExitWrite(actor);
    }

    /// <summary>
    /// Throws every direct mapping of the VM away at once (KVM: kvm_mmu_zap_all_fast; tdp-mmu 6.4). slots_lock is the caller's; no other lock. When it returns no vCPU runs
    /// on an old root and no old root maps anything; the mirror is untouched (I43, I44).
    /// </summary>
    public void ZapAllFast(Actor actor)
    {
        MmuLock.EnterWrite(actor);
        InvalidateDirectRoots(actor);
        MmuLock.ExitWrite(actor);
        ZapInvalidatedRoots(actor, shared: true);
    }

    // mmu_lock write. In the same critical section: a vCPU that loads roots after it gets a new one, one that runs on an old root is told here.
    private void InvalidateDirectRoots(Actor actor)
    {
        InvalidateRoots(actor, RootKinds.Direct);
        _vcpus.RequestAll(actor, VcpuRequest.FreeObsoleteRoots, wait: true);
    }

    /// <summary>
    /// Empties the roots that were invalidated and puts the TDP MMU's own reference of each (KVM: kvm_tdp_mmu_zap_invalidated_roots; row 4). Takes mmu_lock, read if
    /// <paramref name="shared"/>. The put comes after the zap: until then notifiers must reach the root (tdp-mmu 1.4).
    /// </summary>
    public void ZapInvalidatedRoots(Actor actor, bool shared)
    {
        if (shared)
            MmuLock.EnterRead(actor);
        else
            MmuLock.EnterWrite(actor);
        for (Root? root = NextRoot(actor, null, RootKinds.All); root is not null; root = NextRoot(actor, root, RootKinds.All))
        {
            if (!root.IsScheduledForZap)
                continue;
            root.IsScheduledForZap = false;
            if (!root.IsInvalid)
                Bug(actor, $"the valid root {root} is scheduled for zapping");
            ZapRoot(actor, root, shared);
            PutRoot(actor, root);
        }

        if (shared)
            MmuLock.ExitRead(actor);
        else
            MmuLock.ExitWrite(actor);
    }

    /// <summary>
    /// The last step of the VM's life (KVM: kvm_mmu_uninit_tdp_mmu; row 5): both kinds of roots invalidated and zapped under mmu_lock write, mirror tables bottom-up. No vCPU
    /// exists any more. Waits for every grace period and gives all tables back to the machine.
    /// </summary>
    public void Destroy(Actor actor)
    {
        InvalidateRoots(actor, RootKinds.Valid);
        ZapInvalidatedRoots(actor, shared: false);
        if (Statistics[MmuCounter.Tables] != 0)
            Warn($"{Statistics[MmuCounter.Tables]} tables are left after destruction");
        if (_rootHead.Read() >= 0)
            Warn("roots are left after destruction");
        Rcu.Barrier(actor);
        Tables.ReleaseStock();
    }

    /// <summary>
    /// Unlinks one table of a direct tree, if its parent entry still points to it (KVM: kvm_tdp_mmu_zap_sp, as NX recovery uses it; row 19). mmu_lock read and
    /// inside an RCU section: the table may be freed as soon as it is left, so the caller flushes before.
    /// </summary>
    /// <returns>True when the table was unlinked; false when somebody else had done so.</returns>
    public bool ZapTable(Actor actor, TablePage table)
    {
        MmuLock.AssertHeld(actor);
        Rcu.AssertReading(actor);
        if (table.IsRoot || table.IsMirror)
        {
            Warn($"{table} is not to be zapped by itself");
            return false;
        }

        var entry = new SpteRef(ref _memory.Word(table.ParentEntry.Value));
        Spte old = entry.Read();

        // The very table, not just any: the entry may have been zapped and linked again (tdp-mmu 6.9).
        bool mine = old.IsPresent && old.Address == table.Frame;
        bool done = false;
        if (mine)
        {
            Level level = table.Level.Up;
            done = entry.TryReplace(ref old, Spte.NonPresent);
            if (done)
                _ = Bookkeep(actor, mirror: false, table.Gfn.Value & ~(level.Pages - 1), old, Spte.NonPresent, level, shared: MmuLock.IsReadHeld(actor));
            else if (old.IsPresent && old.Address == table.Frame)
                Warn($"{table}: its parent entry changed but still points to it");
        }

        return done;
    }

    // KVM: tdp_mmu_zap_leafs, tdp-mmu 6.2.
    private bool ZapLeafsOf(Actor actor, Root root, ulong start, ulong end, bool mayYield, bool flush)
    {
        end = Math.Min(end, _endOfGfns);
        if (start >= end)
            return flush;
        MmuLock.AssertWrite(actor);
        bool owesFlush = !root.IsInvalid;
        bool direct = !root.IsMirror;
        long zapped = 0;
        Rcu.ReadEnter(actor);
        var it = new TdpIterator(_memory, root, 1, start, root.RawBits);
        for (; it.Valid && it.Gfn < end; it.Next())
        {
            if (mayYield && YieldIfNeeded(actor, ref it, flush, shared: false))
            {
                flush = false;
                continue;
            }

            if (!it.IsLeaf)
                continue;
            if (direct && it.LevelNumber == 1)
                zapped += ZapRun(ref it, end);
            else
                SetExclusive(actor, root, ref it, Spte.NonPresent);

            // Nobody runs on an invalid root; loading another one flushes.
            flush |= owesFlush;
        }

        Rcu.ReadExit(actor);
        if (zapped != 0)
        {
            Statistics.AddPages(actor, 1, -zapped);
            Statistics.Add(actor, MmuCounter.Zapped, zapped);
        }

        return flush;
    }

    // From a direct 4K leaf on through its table, as long as nobody waits for the lock. Such a leaf needs rows 8 and 9 of the bookkeeping only, which the caller does for all of them.
    private long ZapRun(scoped ref TdpIterator it, ulong end)
    {
        long zapped = 0;
        int left = NeedResched is null ? it.LeftInTable(end) : 1;
        SpteRef entry = it.Entry;
        Spte old = it.Old;
        while (true)
        {
            if (old.IsPresent)
            {
                WriteExclusive(entry, old, Spte.NonPresent, Level.K4);
                zapped++;
            }

            if (--left == 0 || MmuLock.IsContended())
                break;
            entry = entry.Next;
            old = entry.Read();
            it.Gfn++;
        }

        it.MoveTo(entry, old);
        return zapped;
    }

    // KVM: tdp_mmu_zap_root, tdp-mmu 6.3: pass after pass, so that the time between yields stays short.
    private void ZapRoot(Actor actor, Root root, bool shared)
    {
        Rcu.ReadEnter(actor);
        ZapRootPass(actor, root, shared, 1);
        ZapRootPass(actor, root, shared, 2);
        ZapRootPass(actor, root, shared, 3);
        ZapRootPass(actor, root, shared, root.Level.Value);
        Rcu.ReadExit(actor);
    }

    private void ZapRootPass(Actor actor, Root root, bool shared, int passLevel)
    {
        // Raw indexes: every entry of the root, whatever its alias (tdp-mmu 3.1).
        var it = new TdpIterator(_memory, root, passLevel, 0, 0);
        for (; it.Valid && it.Gfn < _endOfGfns; it.Next())
        {
        again:
            if (YieldIfNeeded(actor, ref it, flush: false, shared))
                continue;
            if (!it.Old.IsPresent || it.LevelNumber > passLevel)
                continue;
            if (!shared)
            {
                SetExclusive(actor, root, ref it, Spte.NonPresent);
            }
            else if (SetAtomic(actor, root, ref it, Spte.NonPresent) != ExternalResult.Ok)
            {
                if (Death.IsDead)
                    return;
                goto again;
            }
        }
    }
}
