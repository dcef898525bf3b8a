namespace Tdp.Harness.Invariants;

/// <summary>
/// What must hold of one VM when no operation is in flight: reads every tree whole, and the whole Secure EPT, and compares. Findings go to the machine's log under the rule's number.
/// </summary>
/// <remarks>No vCPU is in the guest and no actor changes the VM.</remarks>
public sealed class AtRest
{
    private readonly Vm _vm;
    private readonly FindingLog _findings;
    private readonly Dictionary<ulong, TreeEntry> _tableOwners = [];
    private readonly Dictionary<ulong, TablePage> _externalPages = [];
    private readonly Dictionary<(ulong Gfn, int Level), TreeEntry> _mirror = [];
    private readonly Dictionary<ulong, TreeEntry> _privateFrames = [];
    private readonly long[] _leaves = new long[6];
    private long _tables;

    private AtRest(Vm vm)
    {
        _vm = vm;
        _findings = vm.Kernel.Machine.Findings;
    }

    /// <summary>Checks a VM.</summary>
    /// <param name="vm">The VM; not destroyed.</param>
    public static void Check(Vm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        AtRest check = new(vm);
        IReadOnlyList<Root> roots = vm.Mmu.Roots;
        foreach (Root root in roots)
        {
            check.Tree(root);
        }

        foreach (Root root in roots)
        {
            if (!root.IsMirror)
            {
                check.SharedFrames(root);
            }
        }

        check.Totals();
        if (vm.Td is { IsHkidAssigned: true } td && vm.Mmu.Roots.Count > 0)
        {
            check.SecureEpt(td);
        }

        if (vm.WaitForSeptZap.Peek())
        {
            check.Report("I77", "wait_for_sept_zap is set");
        }
    }

    private void Report(string rule, string text) => _findings.Add(rule, $"VM {_vm.Number}: {text}");

    private void Tree(Root root)
    {
        foreach (TreeEntry entry in TreeWalk.Read(_vm.Mmu, root))
        {
            if (entry.Spte.IsFrozen)
            {
                Report("I13", entry.ToString());
                continue;
            }

            switch (entry.Spte.Kind(entry.Level))
            {
                case SpteKind.Table:
                    Table(entry);
                    break;
                case SpteKind.Leaf:
                    Leaf(entry);
                    break;
                default:
                    // What is absent and no hole is an MMIO entry, and only a direct tree has those.
                    if (root.IsMirror)
                    {
                        Report("I06", entry.ToString());
                    }
                    else if (!_vm.Mmu.Format.IsMmio(entry.Spte))
                    {
                        Report("I05", entry.ToString());
                    }

                    break;
            }

            Alias(entry);
        }
    }

    private void Table(TreeEntry entry)
    {
        _tables++;
        TablePage child = TreeWalk.TableBehind(_vm.Mmu, entry.Spte);
        if (child.IsNone)
        {
            Report("I45", $"{entry} points to a frame that holds no table");
            return;
        }

        if (!_tableOwners.TryAdd(child.Frame.Value, entry))
        {
            Report("I02", $"{entry} and {_tableOwners[child.Frame.Value]} point to {child}");
        }

        ulong place = entry.Table.Frame.Value + ((ulong)entry.Index << 3);
        if (child.Level != entry.Level.Down || child.ParentEntry.Value != place || child.IsMirror != entry.Root.IsMirror)
        {
            Report("I01", $"{entry} points to {child}, whose parent entry is at {child.ParentEntry}");
        }

        if (child.Gfn.Value != (entry.RawGfn & ~_vm.AliasBit.GfnMask))
        {
            Report("I03", $"{entry} points to {child}");
        }

        External(entry, child);
    }

    private void External(TreeEntry entry, TablePage child)
    {
        bool has = child.ExternalPage.Value != 0;
        if (has != entry.Root.IsMirror)
        {
            Report("I09", $"{child} has {(has ? $"external page {child.ExternalPage}" : "no external page")}");
        }

        if (!has)
        {
            return;
        }

        if (!_externalPages.TryAdd(child.ExternalPage.Value, child) || _vm.Kernel.Machine.Ledger.UseOf(child.ExternalPage) is FrameUse.HostTable)
        {
            Report("I10", $"external page {child.ExternalPage} of {child} is used twice");
        }

        _mirror[(child.Gfn.Value, entry.Level.Value)] = entry;
    }

    private void Leaf(TreeEntry entry)
    {
        Spte spte = entry.Spte;
        _leaves[Math.Min(entry.Level.Value, 5)]++;
        if ((spte.Value & Spte.SuppressVe) == 0)
        {
            Report("I05", entry.ToString());
        }

        if (!spte.HoldsWritableRules)
        {
            Report("I16", entry.ToString());
        }

        if (!entry.Root.IsMirror)
        {
            return;
        }

        if (entry.Level != Level.K4)
        {
            Report("I07", entry.ToString());
        }

        if ((spte.Value & Spte.Rwx) != Spte.Rwx || !spte.IsHostWritable || !spte.IsMmuWritable || !spte.IsAdEnabled)
        {
            Report("I08", entry.ToString());
        }

        if (!_privateFrames.TryAdd(spte.Pfn, entry))
        {
            Report("I31", $"{entry} and {_privateFrames[spte.Pfn]} map the same page");
        }

        _mirror[(entry.RawGfn, entry.Level.Value)] = entry;
        Gfn gfn = new(entry.RawGfn);
        Memslot? slot = _vm.SlotsOf(0).Active.Find(gfn);
        if (slot?.Memfd is null)
        {
            Report("I33", $"{entry} lies in {(slot is null ? "no slot" : slot.ToString())}");
        }
        else if (slot.Memfd.Peek(slot.MemfdPageOf(gfn)) is not { } frame || frame.Frame != spte.Pfn)
        {
            Report("I32", $"{entry}: the slot's file has {slot.Memfd.Peek(slot.MemfdPageOf(gfn))?.ToString() ?? "no page"} there");
        }

        if (_vm.Attributes is { } attributes && !attributes.IsPrivate(gfn))
        {
            Report("I63", $"{entry}: the frame number is shared");
        }

        FrameUse use = _vm.Kernel.Machine.Ledger.UseOf(spte.Address);
        if (use != FrameUse.Module)
        {
            Report("TM01", $"{entry}: the ledger says {use}");
        }
    }

    // I12: what lies above the alias bit belongs to the direct tree, what lies below to the mirror.
    private void Alias(TreeEntry entry)
    {
        ulong mask = _vm.AliasBit.GfnMask;
        if (mask != 0 && entry.Level.Pages <= mask && ((entry.RawGfn & mask) != 0) == entry.Root.IsMirror)
        {
            Report("I12", entry.ToString());
        }
    }

    // Direct leaves, once all private frames are known.
    private void SharedFrames(Root root)
    {
        foreach (TreeEntry entry in TreeWalk.Read(_vm.Mmu, root))
        {
            if (entry.Spte.Kind(entry.Level) is not SpteKind.Leaf)
            {
                continue;
            }

            for (ulong page = 0; page < entry.Level.Pages; page++)
            {
                SharedFrame(root, entry, page);
            }
        }
    }

    private void SharedFrame(Root root, TreeEntry entry, ulong page)
    {
        ulong frame = entry.Spte.Pfn + page;
        if (_privateFrames.TryGetValue(frame, out TreeEntry other) && !root.PeekRole().IsInvalid)
        {
            Report("I31", $"{entry} and {other} map the same page");
        }

        FrameUse use = _vm.Kernel.Machine.Ledger.UseOf(Hpa.OfFrame(frame));
        if (use is not FrameUse.HostShared)
        {
            Report("I45", $"{entry} maps frame 0x{frame:x}, which is {use}");
        }

        Gfn gfn = new((entry.RawGfn & ~_vm.AliasBit.GfnMask) + page);
        if (_vm.Attributes is { } attributes && attributes.IsPrivate(gfn))
        {
            Report("I63", $"{entry}: frame number {gfn} is private");
        }
    }

    private void Totals()
    {
        if (_vm.Mmu.Statistics[MmuCounter.Tables] != _tables)
        {
            Report("I48", $"{_vm.Mmu.Statistics[MmuCounter.Tables]} tables are counted, {_tables} are linked");
        }

        for (Level level = Level.K4; level <= Level.G1; level = level.Up)
        {
            if (_vm.Mmu.Statistics.Pages(level) != _leaves[level.Value])
            {
                Report("I49", $"{_vm.Mmu.Statistics.Pages(level)} leaves of {level} are counted, {_leaves[level.Value]} are there");
            }
        }
    }

    private void SecureEpt(TrustDomain td)
    {
        _vm.Kernel.Port!.Module.ForEachSeptEntry(td.Tdr, (in SeptView view) => SecureEntry(td, view));
        foreach (TreeEntry left in _mirror.Values)
        {
            Report(left.Spte.Kind(left.Level) is SpteKind.Table ? "I21" : "I19", $"{left}, but the Secure EPT has nothing there");
        }
    }

    private void SecureEntry(TrustDomain td, SeptView view)
    {
        string what = $"GPA {view.Gpa}, {view.Level}: Secure EPT {view.State}, page {view.Hpa}";
        bool isTable = view.State is SeptState.NL_MAPPED or SeptState.NL_BLOCKED;
        if (!_mirror.Remove((view.Gpa.Value >> 12, view.Level.Value), out TreeEntry entry))
        {
            Report(isTable ? "I21" : "I20", $"{what}, but the mirror has nothing there");
            return;
        }

        SpteKind kind = entry.Spte.Kind(view.Level);
        if (!isTable)
        {
            if (kind is not SpteKind.Leaf || view.Hpa != entry.Spte.Address || view.State is not (SeptState.MAPPED or SeptState.PENDING))
            {
                Report("I19", $"{what}; mirror {entry.Spte}");
            }

            Owned(td, view.Hpa, PageType.REG, what);
            return;
        }

        if (kind is not SpteKind.Table || view.State is not SeptState.NL_MAPPED || view.Hpa != TreeWalk.TableBehind(_vm.Mmu, entry.Spte).ExternalPage)
        {
            Report("I21", $"{what}; mirror {entry.Spte}, external page {(kind is SpteKind.Table ? TreeWalk.TableBehind(_vm.Mmu, entry.Spte).ExternalPage : default)}");
        }

        Owned(td, view.Hpa, PageType.EPT, what);
    }

    private void Owned(TrustDomain td, Hpa page, PageType type, string what)
    {
        PamtView? record = _vm.Kernel.Port!.Module.Pamt(page);
        if (record is not { } pamt || pamt.Type != type || pamt.Owner != td.Tdr)
        {
            Report("TM01", $"{what}: the module records {record?.ToString() ?? "nothing"}");
        }
    }
}
