namespace Tdp.Host;

/// <summary>
/// The MMU notifier of a VM: what the host's memory management says before and after it takes pages away (tdp-mmu 6.6). It knows host virtual
/// addresses, so it reaches the shared alias only: private memory has none (I60).
/// </summary>
/// <remarks>
/// From the return of start to the return of end no fault installs a mapping of the range: start raises the invalidation count under mmu_lock, end moves the
/// sequence. mn_active_invalidate_count holds up memslot updates meanwhile (R30). mn_invalidate_lock is taken alone.
/// </remarks>
public sealed class MmuNotifier
{
    private readonly Vm _vm;
    private readonly SpinLock _lock;
    private readonly SharedCell<int> _active;
    private readonly WaitFor _idle;

    internal MmuNotifier(Vm vm)
    {
        _vm = vm;
        _lock = new SpinLock("mn_invalidate_lock", (ulong)vm.Number);
        _active = new SharedCell<int>("mn_active_invalidate_count", (ulong)vm.Number);
        _idle = new WaitFor("mn_memslots_update", (ulong)vm.Number);
    }

    /// <summary>Invalidations between start and end now.</summary>
    public int Active => _active.Peek();

    /// <summary>
    /// Pages are about to go: raises the invalidation count, zaps the direct leaves of the range in every root, flushes. On return nothing of the guest maps
    /// the pages (I56). May wait for vCPUs to leave the guest; takes SRCU and mmu_lock.
    /// </summary>
    /// <param name="actor">Who.</param>
    /// <param name="hvaStart">First byte.</param>
    /// <param name="hvaEnd">One past the last byte.</param>
    /// <param name="mayBlock">False: the zap does not yield mmu_lock.</param>
    public void InvalidateRangeStart(Actor actor, ulong hvaStart, ulong hvaEnd, bool mayBlock = true)
    {
        Count(actor, +1);
        _vm.Srcu.ReadEnter(actor);
        bool isLocked = false;
        bool flush = false;
        for (int space = 0; space < _vm.AddressSpaces; space++)
        {
            foreach (Memslot slot in _vm.SlotsOf(space).Active.Slots)
            {
                GfnRange range = slot.GfnsOf(hvaStart, hvaEnd);
                if (range.IsEmpty)
                    continue;
                if (!isLocked)
                {
                    isLocked = true;
                    _vm.Mmu.MmuLock.EnterWrite(actor);
                    _vm.Mmu.Invalidation.Begin(actor);
                }

                _vm.Mmu.Invalidation.AddRange(actor, range);
                flush |= _vm.Mmu.UnmapRange(actor, range, AliasFilter.Shared, mayBlock, addressSpace: space);
            }
        }

        if (isLocked)
        {
            if (flush)
                _vm.Mmu.FlushRemoteTlbs(actor);
            _vm.Mmu.MmuLock.ExitWrite(actor);
        }

        _vm.Srcu.ReadExit(actor);
    }

    /// <summary>The pages are gone: the sequence moves, so every lookup that was older is refused. Same range as the start.</summary>
    public void InvalidateRangeEnd(Actor actor, ulong hvaStart, ulong hvaEnd)
    {
        _vm.Srcu.ReadEnter(actor);
        if (Intersects(hvaStart, hvaEnd))
        {
            _vm.Mmu.MmuLock.EnterWrite(actor);
            _vm.Mmu.Invalidation.End(actor);
            _vm.Mmu.MmuLock.ExitWrite(actor);
        }

        _vm.Srcu.ReadExit(actor);
        Count(actor, -1);
        _idle.Wake();
    }

    /// <summary>
    /// clear_flush_young and clear_young: clears Accessed in every direct leaf of the range. Without any lock but SRCU, and without a flush: a page that is used through an
    /// old TLB entry merely looks unused for a while (tdp-mmu 6.1 row 12, 7.5).
    /// </summary>
    /// <returns>True when a page of the range had been used.</returns>
    public bool ClearYoung(Actor actor, ulong hvaStart, ulong hvaEnd) => Age(actor, hvaStart, hvaEnd, isTest: false);

    /// <summary>test_young: whether a page of the range was used since the last <see cref="ClearYoung"/>. Changes nothing.</summary>
    public bool TestYoung(Actor actor, ulong hvaStart, ulong hvaEnd) => Age(actor, hvaStart, hvaEnd, isTest: true);

    /// <summary>release: the VMM's address space is gone. Every direct root loses everything; private memory has nothing to do with it (tdp-mmu 6.6). No vCPU runs any more.</summary>
    public void Release(Actor actor) => _vm.Mmu.ZapAll(actor);

    /// <summary>
    /// Runs <paramref name="publish"/> at a moment when no invalidation is between start and end, and keeps the next one from starting meanwhile. For memslot
    /// updates, which hold slots_lock.
    /// </summary>
    internal void WhenIdle(Actor actor, Action publish)
    {
        while (true)
        {
            _idle.Until(actor, () => _active.Peek() == 0);
            _lock.Enter(actor);
            bool isIdle = _active.Read() == 0;
            if (isIdle)
                publish();
            _lock.Exit(actor);
            if (isIdle)
                return;
        }
    }

    private bool Age(Actor actor, ulong hvaStart, ulong hvaEnd, bool isTest)
    {
        bool isYoung = false;
        _vm.Srcu.ReadEnter(actor);
        for (int space = 0; space < _vm.AddressSpaces; space++)
        {
            foreach (Memslot slot in _vm.SlotsOf(space).Active.Slots)
            {
                GfnRange range = slot.GfnsOf(hvaStart, hvaEnd);
                if (range.IsEmpty || (isTest && isYoung))
                    continue;
                isYoung |= isTest
                    ? _vm.Mmu.TestAge(actor, range, AliasFilter.Shared, space)
                    : _vm.Mmu.Age(actor, range, AliasFilter.Shared, space);
            }
        }

        _vm.Srcu.ReadExit(actor);
        return isYoung;
    }

    private bool Intersects(ulong hvaStart, ulong hvaEnd)
    {
        for (int space = 0; space < _vm.AddressSpaces; space++)
        {
            foreach (Memslot slot in _vm.SlotsOf(space).Active.Slots)
            {
                if (!slot.GfnsOf(hvaStart, hvaEnd).IsEmpty)
                    return true;
            }
        }

        return false;
    }

    private void Count(Actor actor, int delta)
    {
        _lock.Enter(actor);
        _active.Write(_active.Read() + delta);
        _lock.Exit(actor);
    }
}
