namespace Tdp.Module;

/// <summary>One Secure EPT entry as inspection shows it.</summary>
/// <param name="Gpa">First address that the entry covers.</param>
/// <param name="Level">Its level.</param>
/// <param name="State">Its state.</param>
/// <param name="Hpa">The page, or the Secure EPT page it points to; 0 for FREE.</param>
/// <param name="AcceptedPages">4 KiB pages of a PENDING 2 MiB leaf that an interrupted ACCEPT has zeroed.</param>
/// <param name="Raw">The word.</param>
public readonly record struct SeptView(Gpa Gpa, Level Level, SeptState State, Hpa Hpa, int AcceptedPages, ulong Raw);

/// <summary>A page's PAMT entry as PHYMEM.PAGE.RDMD would show it.</summary>
/// <param name="Type">Page type.</param>
/// <param name="Owner">The owning TDR; 0 for NDA, RSVD and TDR pages.</param>
/// <param name="Level">Size of the entry that covers the page.</param>
/// <param name="Bepoch">TD_EPOCH at the last block; REG and EPT pages only.</param>
/// <param name="LockBits">Bits 15:0 of the lock word.</param>
public readonly record struct PamtView(PageType Type, Hpa Owner, Level Level, ulong Bepoch, ushort LockBits);

/// <summary>A TD as inspection shows it.</summary>
public sealed record TdView
{
    /// <summary>TD root page.</summary>
    public required Hpa Tdr { get; init; }

    /// <summary>KeyID.</summary>
    public required Hkid Hkid { get; init; }

    /// <summary>FATAL.</summary>
    public required bool IsFatal { get; init; }

    /// <summary>LIFECYCLE_STATE.</summary>
    public required TdLifecycle Lifecycle { get; init; }

    /// <summary>OP_STATE.</summary>
    public required TdOpState OpState { get; init; }

    /// <summary>CHLDCNT, 4 KiB units.</summary>
    public required long ChildCount { get; init; }

    /// <summary>NUM_TDCX.</summary>
    public required int ControlPages { get; init; }

    /// <summary>NUM_VCPUS.</summary>
    public required uint Vcpus { get; init; }

    /// <summary>NUM_ASSOC_VCPUS.</summary>
    public required uint AssociatedVcpus { get; init; }

    /// <summary>TD_EPOCH.</summary>
    public required ulong Epoch { get; init; }

    /// <summary>REFCOUNT[0].</summary>
    public required uint RefCount0 { get; init; }

    /// <summary>REFCOUNT[1].</summary>
    public required uint RefCount1 { get; init; }

    /// <summary>Secure EPT pointer; 0 before MNG.INIT.</summary>
    public required ulong Eptp { get; init; }

    /// <summary>Level of the root's entries; None before MNG.INIT.</summary>
    public required Level RootLevel { get; init; }

    /// <summary>MRTD, 48 bytes; zero before MR.FINALIZE.</summary>
    public required IReadOnlyList<byte> Mrtd { get; init; }
}

/// <summary>A vCPU as inspection shows it.</summary>
/// <param name="Tdvpr">vCPU root page.</param>
/// <param name="Tdr">Its TD.</param>
/// <param name="State">STATE.</param>
/// <param name="LastExit">LAST_TD_EXIT.</param>
/// <param name="Pages">Pages, counting the TDVPR.</param>
/// <param name="AssociatedLp">The associated processor, or -1.</param>
/// <param name="Epoch">VCPU_EPOCH.</param>
/// <param name="InsideLp">The processor that is inside the TD as this vCPU now, or -1. A vCPU of a dead TD stays ACTIVE without being anywhere.</param>
public readonly record struct VcpuView(Hpa Tdvpr, Hpa Tdr, TdVcpuState State, TdExitKind LastExit, int Pages, int AssociatedLp, ulong Epoch, int InsideLp);

/// <summary>What a TD has besides its pages.</summary>
/// <param name="Measured">MRTD if it were finished now; the final value after MR.FINALIZE; zeros before MNG.INIT.</param>
/// <param name="Rtmr">RTMR0 to 3, 48 bytes each.</param>
/// <param name="Settings">TD_CTLS, NOTIFY_ENABLES, HP_LOCK_TIMEOUT in ticks, VM_CTLS of four VMs.</param>
public readonly record struct TdContents(ReadOnlyMemory<byte> Measured, ReadOnlyMemory<byte> Rtmr, ReadOnlyMemory<ulong> Settings);

/// <summary>Receives the entries of a walk.</summary>
public delegate void SeptVisitor(in SeptView entry);

// Read-only views for checkers, replay and inspect. No locks and no events: for quiescent use, or for snapshots that may be torn.
public sealed partial class TdxModule
{
    /// <summary>TDs that exist, in order of creation.</summary>
    public IReadOnlyList<TdView> Tds()
    {
        var views = new List<TdView>();
        foreach (TdControl td in _tds.All())
            views.Add(View(td));
        return views;
    }

    /// <summary>vCPUs that exist.</summary>
    public IReadOnlyList<VcpuView> Vcpus()
    {
        var views = new List<VcpuView>();
        foreach (TdVcpu vcpu in _vcpus.All())
        {
            (TdVcpuState state, int lp) = vcpu.Peek();
            views.Add(new VcpuView(vcpu.Tdvpr, vcpu.Td.Tdr, state, vcpu.LastExit, vcpu.Pages, lp, vcpu.Epoch, Array.FindIndex(_lps, each => ReferenceEquals(each.Current, vcpu))));
        }

        return views;
    }

    /// <summary>The TD with this root page; null when the page is none.</summary>
    public TdView? Td(Hpa tdr) => Pamt(tdr) is { Type: PageType.TDR } ? View(_tds[_memory.Record(tdr.Frame).Tag]) : null;

    /// <summary>Measurements and settings of a TD. Only while no processor calls.</summary>
    /// <exception cref="ArgumentException"><paramref name="tdr"/> is not a TD root page.</exception>
    public TdContents Contents(Hpa tdr)
    {
        TdControl td = TdAt(tdr);
        byte[] measured = td.MrtdStream?.GetCurrentHash() ?? (byte[])td.Mrtd.Clone();
        return new TdContents(measured, (byte[])td.Rtmr.Clone(), td.PeekSettings());
    }

    /// <summary>The PAMT entry that covers a page; null outside initialised TDMRs.</summary>
    public PamtView? Pamt(Hpa page)
    {
        if (!_pamt.IsLegal(page.Value) || !_pamt.Covers(page.Value))
            return null;
        ulong entry = _pamt.FindLeaf(page.Value, out int level);
        return ViewOf(entry, level);
    }

    /// <summary>Calls <paramref name="visit"/> for every entry of a TD's Secure EPT that is not FREE, parents before children, ascending addresses.</summary>
    public void ForEachSeptEntry(Hpa tdr, SeptVisitor visit)
    {
        TdControl td = TdAt(tdr);
        if (td.Eptp != 0)
            Visit(td.Eptp & SeptEntry.Address, td.RootLevel, 0, visit);
    }

    /// <summary>The entry at which a walk to a level ends: the entry itself, or the one where the walk stopped above it.</summary>
    public SeptView FindSeptEntry(Hpa tdr, Gpa gpa, Level level)
    {
        TdControl td = TdAt(tdr);
        if (td.Eptp == 0)
            throw new ArgumentException($"the TD {tdr} has no Secure EPT yet", nameof(tdr));
        ulong table = td.Eptp & SeptEntry.Address;
        for (int at = td.RootLevel; ; at--)
        {
            int shift = 12 + (9 * at);
            ulong entry = _memory.Word(table + (((gpa.Value >> shift) & 0x1FF) << 3));
            if (at == level.Tdx || (entry & SeptEntry.Rwx) == 0 || SeptEntry.IsLeaf(entry))
                return View(entry, at, gpa.Value & ~((1UL << shift) - 1));
            table = entry & SeptEntry.Address;
        }
    }

    /// <summary>What an entry's word says, wherever it was read.</summary>
    /// <param name="raw">The word.</param>
    /// <param name="gpa">First address that the entry covers.</param>
    /// <param name="level">Its level.</param>
    public static SeptView ReadSeptEntry(ulong raw, Gpa gpa, Level level) => View(raw, level.Tdx, gpa.Value);

    /// <summary>How often each leaf returned each status, host leaves (<see cref="TdhLeaf"/>) first. Exact when no processor calls.</summary>
    public IReadOnlyList<LeafCount> Counts()
    {
        var all = new Dictionary<(int Leaf, ulong Status), long>();
        foreach (LpContext lp in _lps)
            lp.Collect(all);
        var counts = new List<LeafCount>(all.Count);
        foreach (((int leaf, ulong status), long times) in all)
        {
            bool guest = leaf >= GuestLeafBase;
            string name = leaf == UnknownLeaf ? "TDH (unknown)"
                : leaf == GuestLeafBase + UnknownGuestLeaf ? "TDG (unknown)"
                : guest ? ((TdgLeaf)(leaf - GuestLeafBase)).FullName()
                : ((TdhLeaf)leaf).FullName();
            counts.Add(new LeafCount(name, guest, new TdxStatus(status), times));
        }

        counts.Sort((a, b) => a.IsGuest != b.IsGuest ? a.IsGuest.CompareTo(b.IsGuest)
            : a.Leaf != b.Leaf ? string.CompareOrdinal(a.Leaf, b.Leaf)
            : a.Status.Value.CompareTo(b.Status.Value));
        return counts;
    }

    private void Visit(ulong table, int level, ulong start, SeptVisitor visit)
    {
        for (int i = 0; i < 512; i++)
        {
            ulong entry = _memory.Word(table + ((ulong)i << 3));
            if (SeptEntry.IsFree(entry))
                continue;
            ulong gpa = start + ((ulong)i << (12 + (9 * level)));
            SeptView view = View(entry, level, gpa);
            visit(view);

            // A checker also gets broken trees to see: it stops at what can be no table.
            if (level > 0 && view.State is SeptState.NL_MAPPED or SeptState.NL_BLOCKED && _memory.Exists(view.Hpa))
                Visit(entry & SeptEntry.Address, level - 1, gpa, visit);
        }
    }

    private static SeptView View(ulong entry, int level, ulong gpa)
    {
        SeptState state = SeptEntry.StateOf(entry);
        ulong counter = level == 1 && state == SeptState.PENDING ? (entry & SeptEntry.AcceptCounter) >> 12 : 0;
        ulong page = state == SeptState.FREE ? 0 : entry & SeptEntry.Address & ~(counter << 12);
        return new SeptView(new Gpa(gpa), Level.FromTdx(level), state, new Hpa(page), (int)counter, entry);
    }

    private static TdView View(TdControl td)
    {
        ulong state = td.State.Peek();
        ulong epoch = td.Epoch.Peek();
        ulong counts = td.VcpuCounts.Peek();
        return new TdView
        {
            Tdr = td.Tdr,
            Hkid = new Hkid(td.Hkid),
            IsFatal = TdControl.IsFatal(state),
            Lifecycle = TdControl.LifecycleOf(state),
            OpState = TdControl.OpStateOf(state),
            ChildCount = td.ChildCount(),
            ControlPages = TdControl.PagesOf(state),
            Vcpus = (uint)counts,
            AssociatedVcpus = (uint)(counts >> 32),
            Epoch = EpochWord.Epoch(epoch),
            RefCount0 = EpochWord.Count(epoch, 0),
            RefCount1 = EpochWord.Count(epoch, 1),
            Eptp = td.Eptp,
            RootLevel = td.Eptp == 0 ? default : Level.FromTdx(td.RootLevel),
            Mrtd = [.. td.Mrtd],
        };
    }
}

/// <summary>How often a leaf returned a status.</summary>
/// <param name="Leaf">Full name of the leaf.</param>
/// <param name="IsGuest">True for a TDCALL leaf.</param>
/// <param name="Status">The status.</param>
/// <param name="Times">How often.</param>
public readonly record struct LeafCount(string Leaf, bool IsGuest, TdxStatus Status, long Times);
