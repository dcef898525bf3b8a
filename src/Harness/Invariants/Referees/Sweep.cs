namespace Tdp.Harness.Invariants;

/// <summary>
/// Looks at a whole VM: every tree whole, read the simple way, and for a TD the whole Secure EPT, and judges what can be judged of a state. Keep one per VM: it remembers the roots it has seen.
/// </summary>
/// <remarks>
/// It shares no code with the MMU's iterator, which it checks. <see cref="AtRest"/> wants a world in which nobody does anything; <see cref="Sample"/> makes one as far as the trees go, by taking mmu_lock for
/// writing: then no fault is inside, no leaf is half removed, and only aging, fast faults and the guests' accepts go on, which change nothing that is judged. Attribute stores go on, too:
/// what they cover is excepted through the invalidation record.
/// </remarks>
public sealed partial class Sweep
{
    private readonly CheckedVm _vm;
    private readonly Dictionary<ulong, Pointed> _tables = [];
    private readonly Dictionary<ulong, TablePage> _externals = [];
    private readonly Dictionary<(ulong Gfn, int Level), EntryView> _mirror = [];
    private readonly Dictionary<ulong, EntryView> _private = [];
    private readonly List<EntryView> _direct = [];
    private readonly Dictionary<Root, bool> _seen = [];
    private readonly List<Root> _gone = [];
    private readonly long[] _leaves = new long[6];
    private Actor? _judge;
    private bool _isAtRest;

    /// <summary>Makes the sweep of a VM.</summary>
    public Sweep(CheckedVm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        _vm = vm;
    }

    private readonly record struct Pointed(EntryView First, int Pointers);

    /// <summary>Judges everything. No operation is in flight and no vCPU is in the guest.</summary>
    /// <param name="judge">Who looks, an actor that holds no lock; null outside the world: then the MMU's iterator is not asked to walk.</param>
    public void AtRest(Actor? judge)
    {
        Begin(judge, isAtRest: true);
        Trees();
        Totals();
        Pages();
        SecureEpt();
        Slots();
        Vcpus();
        WholeVm();
        TlbSweep.Check(_vm, judge);
        if (judge is not null)
        {
            Walk(judge);
        }
    }

    /// <summary>Judges the trees of a running VM. Takes mmu_lock for writing, so that no fault and no zap is inside.</summary>
    /// <param name="judge">Who looks; holds no lock of the MMU.</param>
    public void Sample(Actor judge)
    {
        ArgumentNullException.ThrowIfNull(judge);
        _vm.Mmu.MmuLock.EnterWrite(judge);
        Begin(judge, isAtRest: false);
        Trees();
        Pages();
        Slots();
        Record();
        Flag(isWriteHeld: false);
        _vm.Mmu.MmuLock.ExitWrite(judge);
    }

    private void Begin(Actor? judge, bool isAtRest)
    {
        _judge = judge;
        _isAtRest = isAtRest;
        _tables.Clear();
        _externals.Clear();
        _mirror.Clear();
        _private.Clear();
        _direct.Clear();
        Array.Clear(_leaves);
    }

    private bool Judge<T>(Invariant<T> rule, in T subject)
        where T : struct, ISubject => _vm.Verdicts.Judge(_judge, rule, subject);

    private void Trees()
    {
        foreach (Root root in _vm.Mmu.ListedRoots)
        {
            OneRoot(root);
            Table(root.Table, default, 0);
            Visit(root, root.Table, 0);
        }

        Vanished();
        foreach ((ulong _, Pointed pointed) in _tables)
        {
            TablePage table = _vm.TableBehind(pointed.First.Value);
            Table(table, pointed.First, pointed.Pointers);
        }
    }

    private void OneRoot(Root root)
    {
        RootView view = RootView.Of(_vm, root) with { WasInvalid = _seen.GetValueOrDefault(root) };
        Judge(RootRules.I37, view);
        Judge(RootRules.I38, view);
        Judge(RootRules.I39, view);
        Judge(RootRules.I40, view);
        Judge(RootRules.I41, view);
        _seen[root] = view.Role.IsInvalid;
    }

    // A root that was there last time and is not in the list any more.
    private void Vanished()
    {
        _gone.Clear();
        foreach (Root root in _seen.Keys)
        {
            RootView view = RootView.Of(_vm, root);
            if (!view.IsListed)
            {
                Judge(RootRules.I39, view);
                _gone.Add(root);
            }
        }

        foreach (Root root in _gone)
        {
            _seen.Remove(root);
        }
    }

    private void Table(TablePage table, in EntryView parent, int pointers)
    {
        if (table.IsNone)
        {
            return;
        }

        TablePage twin = TablePage.None;
        if (table.ExternalPage.Value != 0 && !_externals.TryAdd(table.ExternalPage.Value, table))
        {
            twin = _externals[table.ExternalPage.Value];
        }

        TableView view = new(_vm, table, parent.IsNone ? 0 : pointers, twin, true);
        Judge(TreeShape.I02, view);
        Judge(TreeShape.I09, view);
        Judge(TreeShape.I10, view);
        Judge(WalkersAndMemory.I45, view);
        Judge(TreeShape.I11, new StoredGfn(_vm, table.IsRoot ? 0 : table.Gfn.Value, table.IsRoot ? "a root" : "a table"));
    }

    private void Visit(Root root, TablePage table, ulong first)
    {
        TableRole role = root.PeekRole();
        for (int index = 0; index < 512; index++)
        {
            Spte spte = table.Peek(index);
            if (spte == Spte.NonPresent)
            {
                continue;
            }

            ulong raw = first + ((ulong)index * table.Level.Pages);
            EntryView at = new(_vm, table, index, spte, raw, role, true);
            Entry(at);
            if (at.Kind is SpteKind.Leaf)
            {
                Leaf(at);
            }
            else if (at.Kind is SpteKind.Table)
            {
                Descend(root, at);
            }
        }
    }

    private void Entry(in EntryView at)
    {
        Judge(TreeShape.I04, at);
        Judge(TreeShape.I05, at);
        Judge(TreeShape.I12, at);
        if (at.IsMirror)
        {
            Judge(TreeShape.I06, at);
        }

        if (_isAtRest)
        {
            Judge(TreeShape.I13, at);
        }
    }

    private void Descend(Root root, in EntryView at)
    {
        Judge(TreeShape.I01, at);
        Judge(TreeShape.I03, at);
        TablePage child = _vm.TableBehind(at.Value);
        if (child.IsNone)
        {
            return;
        }

        if (at.IsMirror)
        {
            _mirror[(at.Gfn.Value, at.Level.Value)] = at;
        }

        if (_tables.TryGetValue(child.Frame.Value, out Pointed before))
        {
            _tables[child.Frame.Value] = before with { Pointers = before.Pointers + 1 };
            return;
        }

        _tables.Add(child.Frame.Value, new Pointed(at, 1));
        if (!child.IsFreed)
        {
            Visit(root, child, at.RawGfn);
        }
    }

    private void Leaf(in EntryView at)
    {
        Judge(TreeShape.I16, at);
        _leaves[Math.Min(at.Level.Value, 5)]++;
        if (!at.IsMirror)
        {
            _direct.Add(at);
            return;
        }

        Judge(TreeShape.I07, at);
        Judge(TreeShape.I08, at);
        _mirror[(at.Gfn.Value, at.Level.Value)] = at;
        EntryView other = _private.GetValueOrDefault(at.Value.Pfn);
        _private.TryAdd(at.Value.Pfn, at);
        Judge(MirrorAndModule.I31, new PageUse(at, other, false, _vm.Mmu.Death.IsDead));
        if (_vm.Vm is null)
        {
            return;
        }

        LeafView leaf = LeafView.Of(at, _isAtRest);
        Judge(MirrorAndModule.I33, leaf);
        Judge(FaultRules.I63, leaf);

        // While a hole is being punched the file loses a page after the mirror has; the other way round never.
        Judge(MirrorAndModule.I32, leaf);
        if (!_isAtRest && _vm.LiveTd is not null)
        {
            Judge(MirrorAndModule.I22, MirrorPair.Of(at, isChanging: false));
        }
    }

    // The direct leaves, now that all private pages are known.
    private void Pages()
    {
        foreach (EntryView at in _direct)
        {
            LeafView leaf = LeafView.Of(at, _isAtRest);
            Judge(FaultRules.I63, leaf);
            if (at.Level > Level.K4)
            {
                Judge(FaultRules.I66, leaf);
            }

            // Above 1G there are no leaves (I04); nothing more is to be said of one.
            for (ulong page = 0; at.Level <= Level.G1 && page < at.Level.Pages; page++)
            {
                SharedPage(at, at.Value.Address + (page << 12));
            }
        }
    }

    private void SharedPage(in EntryView at, Hpa page)
    {
        if (_vm.HasMirror && _private.TryGetValue(page.Frame, out EntryView other) && !at.TreeRole.IsInvalid)
        {
            Judge(MirrorAndModule.I31, new PageUse(other, at, false, _vm.Mmu.Death.IsDead));
        }

        if (!_vm.Machine.Memory.Exists(page))
        {
            return;
        }

        if (Judge(MirrorAndModule.I34, new PageAccess(_vm.Machine, _vm.Module, page, null, true, $"a leaf of the direct tree maps the page")) && _vm.Vm is not null)
        {
            FrameRecord record = _vm.Machine.Memory.Record(page.Frame);
            Judge(AddedRules.I82, new HeldFrame(_vm, page, null, record.Generation, FrameUse.HostShared, record.Use, at));
        }
    }
}
