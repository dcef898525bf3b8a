namespace Tdp.Mmu;

/// <content>How an entry changes: the two ways to write one, the bookkeeping of a change, and the removal of a table (tdp-mmu 4.4 to 4.6, protocol P2).</content>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Turns a hole into the leaf of an ordinary 4K page under mmu_lock read: <see cref="SetAtomic(Actor, Root, SpteRef, ref Spte, Spte, ulong, int)"/> with only those rows of the
    /// bookkeeping that apply (4, 7, 8 and 9). False: retry.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool SetOrdinaryLeaf(Actor actor, Root root, SpteRef entry, Spte leaf, Gfn gfn)
    {
        if (root.IsMirror)
            return SetOrdinaryMirrorLeaf(actor, entry, leaf, gfn);
        Spte seen = Spte.NonPresent;
        if (!entry.TryReplace(ref seen, leaf))
            return false;
        Statistics.AddPages(actor, 1, 1);
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool SetOrdinaryMirrorLeaf(Actor actor, SpteRef entry, Spte leaf, Gfn gfn)
    {
        Spte seen = Spte.NonPresent;
        if (!entry.TryFreeze(ref seen))
            return false;
        if (_external!.SetEntry(actor, gfn, Spte.NonPresent, leaf, Level.K4, TablePage.None) != ExternalResult.Ok)
        {
            entry.Thaw(Spte.NonPresent);
            return false;
        }

        entry.Thaw(leaf);
        Statistics.AddPages(actor, 1, 1);
        return true;
    }

    /// <summary>
    /// Changes an entry under mmu_lock read (KVM: tdp_mmu_set_spte_atomic). Other readers, the fast page fault and aging may be at the same entry.
    /// </summary>
    /// <returns>
    /// Ok; Busy when another actor changed the entry first (then <paramref name="seen"/> is what it holds now) or the module answered BUSY (then the entry is as
    /// before); Error when the VM is dead.
    /// </returns>
    /// <remarks>
    /// Linearization: of a direct entry at the compare-exchange; of a mirror entry at the store that thaws it. Between freeze and thaw nobody else changes the
    /// entry (I15), and a failed external operation leaves no trace (I30).
    /// </remarks>
    private ExternalResult SetAtomic(Actor actor, Root root, SpteRef entry, scoped ref Spte seen, Spte @new, ulong gfn, int level)
    {
        Spte old = seen;
        if (root.IsMirror)
        {
            if (!entry.TryFreeze(ref seen))
                return ExternalResult.Busy;
            ExternalResult followed = Bookkeep(actor, mirror: true, gfn, old, @new, new Level(level), shared: true);
            entry.Thaw(followed == ExternalResult.Ok ? @new : old);
            return followed;
        }

        if (!entry.TryReplace(ref seen, @new))
            return ExternalResult.Busy;
        ExternalResult result = Bookkeep(actor, mirror: false, gfn, old, @new, new Level(level), shared: true);
        if (result != ExternalResult.Ok)
            Bug(actor, $"a direct entry could not follow its change: {old} to {@new}");
        return result;
    }

    // The same for a walk over a range, which may have given mmu_lock up since its snapshot.
    private ExternalResult SetAtomic(Actor actor, Root root, scoped ref TdpIterator it, Spte @new)
    {
        if (Checks.On && it.Yielded)
            WarnYielded(it.Gfn, it.LevelNumber);
        if (Checks.On && (it.Old.IsFrozen || @new.IsFrozen))
            WarnFrozen(it.Gfn, it.LevelNumber);
        return SetAtomic(actor, root, it.Entry, ref it.Old, @new, it.Gfn, it.LevelNumber);
    }

    /// <summary>
    /// Changes an entry under mmu_lock write (KVM: tdp_mmu_iter_set_spte). Only the fast page fault, aging and the hardware may be at the same
    /// entry, and only at a leaf that needs an atomic update: that one is exchanged, so that what they set is in the value bookkeeping sees.
    /// </summary>
    private void SetExclusive(Actor actor, Root root, scoped ref TdpIterator it, Spte @new)
    {
        MmuLock.AssertWrite(actor);
        if (Checks.On && it.Yielded)
            WarnYielded(it.Gfn, it.LevelNumber);
        if (Checks.On && (it.Old.IsFrozen || @new.IsFrozen))
            WarnFrozen(it.Gfn, it.LevelNumber);
        it.Old = WriteExclusive(it.Entry, it.Old, @new, it.Level);
        if (Bookkeep(actor, root.IsMirror, it.Gfn, it.Old, @new, it.Level, shared: false) != ExternalResult.Ok)
            Bug(actor, $"gfn 0x{it.Gfn:x} {it.Level}: the external table did not follow {it.Old} to {@new} under mmu_lock write");
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Spte WriteExclusive(SpteRef entry, Spte old, Spte @new, Level level)
    {
        if (old.NeedsAtomicUpdate(level))
            return entry.Exchange(@new);
        entry.Store(@new);
        return old;
    }

    /// <summary>
    /// Everything that must follow one change (KVM: handle_changed_spte; tdp-mmu 4.5). It must never read the entry again: in a mirror it holds FROZEN
    /// while this runs.
    /// </summary>
    private ExternalResult Bookkeep(Actor actor, bool mirror, ulong gfn, Spte old, Spte @new, Level level, bool shared)
    {
        bool was = old.IsPresent;
        bool isNow = @new.IsPresent;
        bool wasLeaf = was && old.IsLast(level);
        bool isLeaf = isNow && @new.IsLast(level);
        bool pfnChanged = ((old.Value ^ @new.Value) & Spte.AddressMask) != 0;
        if (level.Value is < 1 or > 5 || (gfn & (level.Pages - 1)) != 0)
            Warn($"change of an entry at gfn 0x{gfn:x}, {level}");
        if (wasLeaf && isLeaf && pfnChanged)
        {
            // A translation of the old page may be in a TLB: zap and flush must come between (I18).
            HostBug($"gfn 0x{gfn:x} {level}: leaf {old} was replaced by leaf {@new} of another page");
        }

        if (old == @new)
            return ExternalResult.Ok;
        if (isLeaf && !@new.HoldsWritableRules)
            WarnWritable(@new);
        if (!was && !isNow)
        {
            if (!Format.IsMmio(old) && !Format.IsMmio(@new) && !@new.IsFrozen)
                Warn($"gfn 0x{gfn:x} {level}: a change between two non-present values, {old} to {@new}");
            return ExternalResult.Ok;
        }

        if (was && !wasLeaf && (isLeaf || !isNow || pfnChanged))
        {
            if (isNow && !isLeaf)
                Warn($"gfn 0x{gfn:x} {level}: a table was replaced by another table, {old} to {@new}");
            RemoveTable(actor, Tables.IndexOf(old.Address), shared);
        }
        else if (mirror)
        {
            TablePage child = isNow && !isLeaf ? new TablePage(Tables, Tables.IndexOf(@new.Address)) : TablePage.None;
            ExternalResult result = _external!.SetEntry(actor, new Gfn(gfn), old, @new, level, child);
            if (result != ExternalResult.Ok)
                return result;
        }

        if (wasLeaf != isLeaf)
        {
            Statistics.AddPages(actor, level.Value, isLeaf ? 1 : -1);
            if (wasLeaf)
                Statistics.Add(actor, MmuCounter.Zapped);
        }

        return ExternalResult.Ok;
    }

    /// <summary>
    /// Takes a table apart whose parent entry this thread has just changed (KVM: handle_removed_pt; tdp-mmu 4.6). Walkers that entered it earlier may still be
    /// inside: shared removal freezes every entry, so that none of them can write one later (I46); exclusive removal has only RCU readers beside it.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void RemoveTable(Actor actor, uint index, bool shared)
    {
        TablePage table = new(Tables, index);
        if (Checks.On && (index == 0 || (Tables.Record(index).Flags & TableRecord.Freed) != 0))
        {
            Machine.Findings.Add("I45", $"removal of a table that was freed (record {index})");
            return;
        }

        Level level = table.Level;
        bool mirror = table.IsMirror;
        Unlink(actor, table);
        Hpa frame = table.Frame;
        ulong gfn = table.Gfn.Value;
        for (int i = 0; i < 512; i++, gfn += level.Pages)
        {
            var entry = new SpteRef(ref _memory.Word(frame.Value + ((ulong)(uint)i << 3)));
            Spte old;
            if (shared)
            {
                old = FreezeWhenThawed(actor, entry);
            }
            else
            {
                old = entry.Read();
                if (!old.IsPresent)
                    continue;
                old = WriteExclusive(entry, old, Spte.Frozen, level);
            }

            if (Bookkeep(actor, mirror, gfn, old, Spte.Frozen, level, shared) != ExternalResult.Ok)
                Bug(actor, $"gfn 0x{gfn:x} {level}: the external table kept {old} of a removed table");
        }

        if (mirror)
        {
            _external!.FreeTable(actor, table);
            Tables.Record(index).External = 0;
        }

        Rcu.Call(actor, this, index);
    }

    // Another reader may have frozen the entry for an external operation and still has to thaw it: take what it leaves there.
    private static Spte FreezeWhenThawed(Actor actor, SpteRef entry)
    {
        Spte old = entry.Exchange(Spte.Frozen);
        if (old.IsFrozen)
        {
            var spin = default(Spin);
            do
            {
                spin.Once(actor, ref entry.Word);
                old = entry.Exchange(Spte.Frozen);
            }
            while (old.IsFrozen);
        }

        return old;
    }

    private void Unlink(Actor actor, TablePage table)
    {
        Statistics.Add(actor, MmuCounter.Tables, -1);
        Statistics.Add(actor, MmuCounter.TablesRemoved);
        if (!table.IsNxHugePageDisallowed)
            return;
        _pagesLock.Enter(actor);
        Forget(actor, table.Index);
        _pagesLock.Exit(actor);
    }

    // After a grace period: nobody can be inside any more, so every entry must still be what its remover left (I46, I47).
    private void FreeTableNow(uint index)
    {
        if (Checks.On)
            CheckDetached(index);
        Tables.Give(index);
    }

    private void CheckDetached(uint index)
    {
        ref TableRecord record = ref Tables.Record(index);
        foreach (ulong word in _memory.Table(new Hpa(record.Frame)))
        {
            if ((word & Spte.PresentBit) == 0)
                continue;
            Machine.Findings.Add("I46", $"detached table, gfn 0x{record.Gfn:x}: {new Spte(word)} was written after its remover had passed");
            return;
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void WarnFrozen(ulong gfn, int level) => Warn($"gfn 0x{gfn:x} {new Level(level)}: FROZEN is not a value to replace or to store");

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void WarnYielded(ulong gfn, int level) => Warn($"gfn 0x{gfn:x} {new Level(level)}: a write after the lock was given up");

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void WarnWritable(Spte spte) => Warn($"leaf {spte} breaks W => MMU-writable => host-writable (I16)");

    /// <summary>
    /// Gives mmu_lock up if somebody waits for it (or the scheduler wants the CPU) and the walk has made progress since the last time (KVM:
    /// tdp_mmu_iter_cond_resched; tdp-mmu 3.3). After true the caller goes on to the next entry at once and its flush is done.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool YieldIfNeeded(Actor actor, scoped ref TdpIterator it, bool flush, bool shared)
    {
        if (NeedResched is null && !MmuLock.IsContended())
            return false;
        return Yield(actor, ref it, flush, shared);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool Yield(Actor actor, scoped ref TdpIterator it, bool flush, bool shared)
    {
        if (NeedResched is { } wanted && !wanted() && !MmuLock.IsContended())
            return false;
        if (it.Goal == it.YieldedGoal)
            return false;
        if (flush)
            FlushRemoteTlbs(actor);
        Rcu.ReadExit(actor);
        if (shared)
        {
            MmuLock.ExitRead(actor);
            MmuLock.EnterRead(actor);
        }
        else
        {
            MmuLock.ExitWrite(actor);
            MmuLock.EnterWrite(actor);
        }

        Rcu.ReadEnter(actor);
        if (it.Gfn > it.Goal)
            Warn($"a yield at gfn 0x{it.Gfn:x}, past its goal 0x{it.Goal:x}");
        it.Yielded = true;
        Statistics.Add(actor, MmuCounter.Yields);
        return true;
    }
}
