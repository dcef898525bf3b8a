namespace Tdp.Mmu;

/// <content>The NX huge page workaround: its switch, the tables it causes, and their recovery (tdp-mmu 6.4, 6.9).</content>
public sealed partial class TdpMmu
{
    // Read by faults and walks under mmu_lock, changed under mmu_lock write.
    private bool _nxHugePages;
    private uint _nxHead;
    private uint _nxTail;

    /// <summary>True while huge pages are mapped without execute. Stable under mmu_lock.</summary>
    public bool IsNxHugePages => _nxHugePages;

    /// <summary>Tables that the NX workaround caused, oldest first. Under the pages lock, or at quiescence.</summary>
    public IReadOnlyList<TablePage> NxList
    {
        get
        {
            var list = new List<TablePage>();
            for (uint index = _nxHead; index != 0; index = Tables.Record(index).NxNext)
                list.Add(new TablePage(Tables, index));
            return list;
        }
    }

    /// <summary>
    /// Switches the workaround (KVM: set_nx_huge_pages): the next faults build other leaves, so everything direct is zapped fast. The switch and the invalidation of
    /// the roots lie in one critical section: no root ever holds leaves of both kinds. slots_lock is the caller's; no other lock.
    /// </summary>
    public void SetNxHugePages(Actor actor, bool on)
    {
        MmuLock.EnterWrite(actor);
        _nxHugePages = on;
        Format.IsNxHugePages = on;
        InvalidateDirectRoots(actor);
        MmuLock.ExitWrite(actor);
        ZapInvalidatedRoots(actor, shared: true);
    }

    /// <summary>
    /// Zaps the oldest tables that the NX workaround caused, so that the next data access maps a huge page again (KVM: kvm_recover_nx_huge_pages, in the form of 6.18;
    /// row 19). Takes mmu_lock read and RCU, and flushes inside both: a table must not be freed while a TLB may still lead to it. Gives way when somebody waits.
    /// </summary>
    /// <param name="actor">Who recovers. Holds no lock but SRCU.</param>
    /// <param name="most">How many tables at most.</param>
    /// <param name="isDirtyLogged">True when the table's first page lies in a dirty-logged slot of its address space: such a table is taken off the list and stays.</param>
    /// <returns>Tables that were zapped.</returns>
    public long RecoverNxPages(Actor actor, long most, Func<TablePage, bool> isDirtyLogged)
    {
        long zapped = 0;
        bool flush = false;
        MmuLock.EnterRead(actor);
        Rcu.ReadEnter(actor);
        for (long i = 0; i < most && TakeOldest(actor, out TablePage table); i++)
        {
            if (!isDirtyLogged(table) && ZapTable(actor, table))
            {
                zapped++;
                flush = true;
            }

            if (i + 1 == most || !IsWantedElsewhere())
                continue;
            if (flush)
                FlushRemoteTlbs(actor);
            flush = false;
            Rcu.ReadExit(actor);
            MmuLock.ExitRead(actor);
            MmuLock.EnterRead(actor);
            Rcu.ReadEnter(actor);
            Statistics.Add(actor, MmuCounter.Yields);
        }

        if (flush)
            FlushRemoteTlbs(actor);
        Rcu.ReadExit(actor);
        MmuLock.ExitRead(actor);
        return zapped;
    }

    /// <summary>
    /// One step of <see cref="RecoverNxPages"/> without the flush. mmu_lock held and inside an RCU section, which the caller leaves only after it has flushed;
    /// the table may be looked at until then.
    /// </summary>
    /// <param name="actor">Who recovers.</param>
    /// <param name="isDirtyLogged">True when the table lies in a dirty-logged slot.</param>
    /// <param name="table">The table.</param>
    /// <returns>False: the list is empty.</returns>
    public bool RecoverNxPage(Actor actor, Func<TablePage, bool> isDirtyLogged, out TablePage table)
    {
        MmuLock.AssertHeld(actor);
        Rcu.AssertReading(actor);
        if (!TakeOldest(actor, out table))
            return false;
        if (!isDirtyLogged(table))
            ZapTable(actor, table);
        return true;
    }

    // Off the list, its mark gone: whatever happens to the table now, the workaround has forgotten it. RCU keeps it from being freed meanwhile.
    private bool TakeOldest(Actor actor, out TablePage table)
    {
        _pagesLock.Enter(actor);
        uint index = _nxHead;
        if (index != 0)
            Forget(actor, index);
        _pagesLock.Exit(actor);
        table = index == 0 ? TablePage.None : new TablePage(Tables, index);
        return index != 0;
    }

    private bool IsWantedElsewhere() => NeedResched?.Invoke() == true || MmuLock.IsContended();

    // Pages lock held.
    private void Forget(Actor actor, uint index)
    {
        Tables.Record(index).Flags &= unchecked((byte)~TableRecord.NxDisallowed);
        RemoveFromNxList(actor, index);
    }

    // Pages lock held.
    private void AddToNxList(Actor actor, uint index)
    {
        ref TableRecord record = ref Tables.Record(index);
        if ((record.Flags & TableRecord.OnNxList) != 0)
            return;
        record.Flags |= TableRecord.OnNxList;
        record.NxPrevious = _nxTail;
        record.NxNext = 0;
        if (_nxTail == 0)
            _nxHead = index;
        else
            Tables.Record(_nxTail).NxNext = index;
        _nxTail = index;
        Statistics.Add(actor, MmuCounter.NxSplits);
    }

    // Pages lock held.
    private void RemoveFromNxList(Actor actor, uint index)
    {
        ref TableRecord record = ref Tables.Record(index);
        if ((record.Flags & TableRecord.OnNxList) == 0)
            return;
        record.Flags &= unchecked((byte)~TableRecord.OnNxList);
        if (record.NxPrevious == 0)
            _nxHead = record.NxNext;
        else
            Tables.Record(record.NxPrevious).NxNext = record.NxNext;
        if (record.NxNext == 0)
            _nxTail = record.NxPrevious;
        else
            Tables.Record(record.NxNext).NxPrevious = record.NxPrevious;
        Statistics.Add(actor, MmuCounter.NxSplits, -1);
    }
}
