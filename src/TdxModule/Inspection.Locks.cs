namespace Tdp.Module;

/// <summary>A lock that is held although no call is in progress and no guest runs under it.</summary>
/// <param name="Kind">Which lock.</param>
/// <param name="Where">The page or the TD; the number of a TDMR, a package or a processor.</param>
/// <param name="Text">What is held, for a report.</param>
public readonly record struct StrayLock(ModuleLock Kind, Hpa Where, string Text);

/// <summary>Receives PAMT entries; <paramref name="page"/> is the first address that the entry covers.</summary>
public delegate void PamtVisitor(Hpa page, in PamtView entry);

// What checkers ask of a module at rest (TM01 to TM06). No locks and no events.
public sealed partial class TdxModule
{
    /// <summary>
    /// Calls <paramref name="visit"/> for every PAMT entry of any size that is assigned or has a lock bit set, inside initialised GiBs. Entries of free and of
    /// reserved pages without lock bits are left out. Host priority (bit 1 of <see cref="PamtView.LockBits"/>) counts as a lock bit, the bias mark does not.
    /// </summary>
    /// <param name="range">Where to look; an entry is visited when it starts inside.</param>
    /// <param name="visit">Called in ascending order, large entries before the small ones below them.</param>
    public void ForEachPamtEntry(HpaRange range, PamtVisitor visit)
    {
        for (ulong gib = range.Base & ~(GibBytes - 1); gib < range.End && gib < _memory.Top; gib += GibBytes)
        {
            if (!_pamt.Covers(gib))
                continue;
            for (int level = 2; level >= 0; level--)
            {
                ulong bytes = 1UL << (12 + (9 * level));
                ulong from = Math.Max(gib, (range.Base + bytes - 1) & ~(bytes - 1));
                ulong end = Math.Min(gib + GibBytes, range.End);
                ulong entry = from < end ? _pamt.EntryAt(from, level) : 0;
                for (ulong page = from; page < end; page += bytes, entry += PamtEntry.Bytes)
                {
                    ulong word = _memory.Word(entry);
                    if (PamtEntry.TypeOf(word) is not (PageType.NDA or PageType.RSVD) || (word & TryLock.Mask & ~TryLock.Biased) != 0)
                        visit(new Hpa(page), ViewOf(entry, level));
                }
            }
        }
    }

    /// <summary>
    /// The leaf that covers a private GPA whatever its state, also below blocked tables; null when there is none. What a translation that is still in a
    /// TLB may go back to.
    /// </summary>
    public SeptView? FindSeptLeaf(Hpa tdr, Gpa gpa)
    {
        TdControl td = TdAt(tdr);
        if (td.Eptp == 0)
            return null;
        ulong table = td.Eptp & SeptEntry.Address;
        for (int at = td.RootLevel; ; at--)
        {
            int shift = 12 + (9 * at);
            ulong entry = _memory.Word(table + (((gpa.Value >> shift) & 0x1FF) << 3));
            if (SeptEntry.IsLeaf(entry))
                return View(entry, at, gpa.Value & ~((1UL << shift) - 1));
            if (at == 0 || SeptEntry.StateOf(entry) is not (SeptState.NL_MAPPED or SeptState.NL_BLOCKED) || !_memory.Exists(new Hpa(entry & SeptEntry.Address)))
                return null;
            table = entry & SeptEntry.Address;
        }
    }

    /// <summary>
    /// Every lock that is held beyond what the vCPUs inside their TDs hold (TDVPR and TDR, shared). Empty whenever no call is in progress (TM06). Locks of
    /// tests (<see cref="TryHold"/>) count as held.
    /// </summary>
    /// <param name="range">The part of the PAMT to look at.</param>
    public IReadOnlyList<StrayLock> StrayLocks(HpaRange range)
    {
        List<StrayLock> stray = [];
        Dictionary<ulong, int> readers = RunningReaders(stray);
        if (Machine.SpareHazards.Holds != 0)
            stray.Add(new StrayLock(ModuleLock.Page, default, $"a test holds {Machine.SpareHazards.Holds} shared locks"));
        foreach (TdControl td in _tds.All())
        {
            Judge(td.OpStateLock, ModuleLock.OpState, td.Tdr, 0, stray);
            Judge(td.SeptTreeLock, ModuleLock.SeptTree, td.Tdr, 0, stray);
            Judge(td.EpochLock, ModuleLock.Epoch, td.Tdr, 0, stray);
            Judge(td.RtmrLock, ModuleLock.Rtmr, td.Tdr, 0, stray);
            ulong state = td.State.PlainRead();
            if (td.Eptp != 0 && TdControl.LifecycleOf(state) == TdLifecycle.KEYS_CONFIGURED)
                JudgeEntries(td, td.Eptp & SeptEntry.Address, td.RootLevel, 0, stray);
        }

        Judge(_kot.Lock, ModuleLock.Kot, default, 0, stray);
        Judge(_system[1], ModuleLock.System, default, 0, stray);
        for (int i = 0; i < _tdmrs.Count; i++)
        {
            if (_tdmrLocks![i] != 0)
                stray.Add(new StrayLock(ModuleLock.Tdmr, new Hpa(_tdmrs[i].Range.Base), $"TDMR {i}: mutex taken"));
        }

        for (int i = 0; i < _packages.Length; i++)
        {
            if (_packageLocks![i] != 0)
                stray.Add(new StrayLock(ModuleLock.WriteBack, new Hpa((ulong)i), $"package {i}: write-back mutex taken"));
        }

        ForEachPamtEntry(range, (Hpa page, in PamtView view) =>
            Judge(view.LockBits, ModuleLock.Page, page, readers.GetValueOrDefault(_pamt.EntryAt(page.Value, view.Level.Tdx)), stray));
        return stray;
    }

    private PamtView ViewOf(ulong entry, int level)
    {
        ulong word = _memory.Word(entry);
        PageType type = PamtEntry.TypeOf(word);
        bool owned = type is not (PageType.NDA or PageType.RSVD or PageType.TDR);
        ulong bepoch = type is PageType.REG or PageType.EPT ? _memory.Word(entry + 8) : 0;
        return new PamtView(type, Hpa.OfFrame(owned ? PamtEntry.OwnerFrame(word) : 0), Level.FromTdx(level), bepoch, (ushort)word);
    }

    // What the guests that are inside hold by counting in the words, by address of the entry; what they hold in hazard slots is judged at once.
    private Dictionary<ulong, int> RunningReaders(List<StrayLock> stray)
    {
        Dictionary<ulong, int> readers = [];
        foreach (LpContext lp in _lps)
        {
            int published = 0;
            if (lp.Current is not null && lp.RunGroup != 0)
            {
                published = System.Numerics.BitOperations.PopCount(lp.RunGroup);
            }
            else if (lp.Current is not null)
            {
                Count(lp.RunTdvpr.Entry1G, lp.RunTdvpr.First);
                Count(lp.RunTdvpr.Entry2M, lp.RunTdvpr.Second);
                Count(lp.RunTdvpr.Entry, lp.RunTdvpr.Last);
                Count(lp.RunTdr, lp.RunTdrHold);
            }

            if (lp.Slot.Holds != published)
                stray.Add(new StrayLock(ModuleLock.Page, new Hpa((ulong)lp.Id), $"LP {lp.Id} shares {lp.Slot.Holds} locks, its guest accounts for {published}"));

            void Count(ulong entry, int hold)
            {
                if (entry != 0 && hold >= 0)
                    published++;
                else if (entry != 0)
                    readers[entry] = readers.GetValueOrDefault(entry) + 1;
            }
        }

        return readers;
    }

    private static void Judge(ulong word, ModuleLock kind, Hpa where, int readers, List<StrayLock> stray)
    {
        int counted = (int)((word & 0x7FFC) >> 2);
        if ((word & TryLock.Exclusive) != 0)
            stray.Add(new StrayLock(kind, where, $"{kind} {where} is held exclusively"));
        else if (counted != readers)
            stray.Add(new StrayLock(kind, where, $"{kind} {where} is shared by {counted}, running guests account for {readers}"));
    }

    private void JudgeEntries(TdControl td, ulong table, int level, ulong start, List<StrayLock> stray)
    {
        for (int i = 0; i < 512; i++)
        {
            ulong entry = _memory.Word(table + ((ulong)i << 3));
            ulong gpa = start + ((ulong)i << (12 + (9 * level)));
            if ((entry & SeptEntry.Lock) != 0)
                stray.Add(new StrayLock(ModuleLock.SeptEntry, td.Tdr, $"TD {td.Tdr}: the entry of GPA 0x{gpa:x}, level {level}, is locked: 0x{entry:x}"));
            if (level > 0 && SeptEntry.StateOf(entry) is SeptState.NL_MAPPED or SeptState.NL_BLOCKED && _memory.Exists(new Hpa(entry & SeptEntry.Address)))
                JudgeEntries(td, entry & SeptEntry.Address, level - 1, gpa, stray);
        }
    }
}
