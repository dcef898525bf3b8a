namespace Tdp.Harness.Invariants;

/// <summary>
/// Judges what an operation has left behind, for whoever performed it: the rules that hold when a named operation has returned.
/// </summary>
/// <remarks>
/// A judgement is exact only while nobody undoes what it is about: between start and end of an invalidation, or with the operations that zap or convert the same pages held off. vCPUs may fault meanwhile; each
/// method says what that may add. Leaves are looked up with mmu_lock held for reading, so nothing is zapped under the look.
/// </remarks>
public sealed class OperationReferee
{
    private readonly CheckedVm _vm;

    /// <summary>Makes the referee of a VM.</summary>
    public OperationReferee(CheckedVm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        _vm = vm;
    }

    /// <summary>The leaves of a range and alias, in every root, valid or not.</summary>
    /// <param name="actor">Who looks; holds no lock of the MMU.</param>
    /// <param name="range">The pages.</param>
    /// <param name="alias">The alias.</param>
    public IReadOnlyList<EntryView> Leaves(Actor actor, GfnRange range, Alias alias)
    {
        List<EntryView> leaves = [];
        foreach (TreeEntry entry in RangeProbe.Leaves(_vm.Mmu, actor, range, alias))
        {
            leaves.Add(_vm.At(entry));
        }

        return leaves;
    }

    /// <summary>I44, I59, I60: the leaves that were there before are there still, for the same pages. New ones may have come.</summary>
    public void Untouched(Invariant<Aftermath> rule, Actor actor, string operation, IReadOnlyList<EntryView> before, GfnRange range, Alias alias)
    {
        ArgumentNullException.ThrowIfNull(before);
        HashSet<(ulong Gfn, ulong Pfn)> now = [];
        foreach (EntryView leaf in Leaves(actor, range, alias))
        {
            now.Add((leaf.RawGfn, leaf.Value.Pfn));
        }

        bool holds = true;
        foreach (EntryView leaf in before)
        {
            if (!now.Contains((leaf.RawGfn, leaf.Value.Pfn)))
            {
                holds = _vm.Verdicts.Judge(actor, rule, new Aftermath(_vm, operation) { Gone = leaf });
            }
        }

        if (holds)
        {
            _vm.Verdicts.Judge(actor, rule, new Aftermath(_vm, operation));
        }
    }

    /// <summary>I56, I61: no leaf of the alias maps a page of the range. Nobody may install one meanwhile.</summary>
    public void Emptied(Invariant<Aftermath> rule, Actor actor, string operation, GfnRange range, Alias alias)
        => None(rule, actor, operation, Leaves(actor, range, alias));

    /// <summary>I58: the old alias is gone, in the module, too, and the attributes are the new ones. No other conversion and no slot change of the range may run; faults may.</summary>
    public void Converted(Actor actor, GfnRange range, bool toPrivate)
    {
        string operation = $"the conversion of {range} to {(toPrivate ? "private" : "shared")}";
        Gfn? unconverted = null;
        for (Gfn gfn = range.Start; gfn < range.End && unconverted is null; gfn += 1)
        {
            unconverted = _vm.IsPrivate(gfn) == toPrivate ? null : gfn;
        }

        SeptView? sept = toPrivate ? null : FirstInSecureEpt(range);
        if (unconverted is not null || sept is not null)
        {
            _vm.Verdicts.Judge(actor, FaultRules.I58, new Aftermath(_vm, operation) { Unconverted = unconverted, SeptLeft = sept });
            return;
        }

        None(FaultRules.I58, actor, operation, Leaves(actor, range, toPrivate ? Alias.Shared : Alias.Private));
    }

    /// <summary>I62: whatever maps a page of the hole now maps the page that the file has there now. Faults may have come back; no other hole may be punched.</summary>
    public void HolePunched(Actor actor, Memslot slot, GfnRange range)
    {
        ArgumentNullException.ThrowIfNull(slot);
        List<EntryView> left = [];
        foreach (EntryView leaf in Leaves(actor, range, Alias.Private))
        {
            if (slot.Memfd?.Peek(slot.MemfdPageOf(leaf.Gfn)) != leaf.Value.Address)
            {
                left.Add(leaf);
            }
        }

        SeptView? sept = null;
        for (Gfn gfn = range.Start; gfn < range.End && sept is null && _vm.LiveTd is { } td; gfn += 1)
        {
            SeptView found = _vm.Module!.FindSeptEntry(td.Tdr, gfn.Gpa, Level.K4);
            bool isOld = found.Level == Level.K4 && found.State is not SeptState.FREE && slot.Memfd?.Peek(slot.MemfdPageOf(gfn)) != found.Hpa;
            sept = isOld ? found : null;
        }

        string operation = $"the hole punched into {range}";
        if (sept is not null)
        {
            _vm.Verdicts.Judge(actor, FaultRules.I62, new Aftermath(_vm, operation) { SeptLeft = sept });
            return;
        }

        None(FaultRules.I62, actor, operation, left);
    }

    /// <summary>The direct roots that a fast zap will have to empty: take it before.</summary>
    public IReadOnlyList<Root> RootsToEmpty()
    {
        List<Root> roots = [];
        foreach (Root root in _vm.Mmu.ListedRoots)
        {
            if (!root.IsMirror)
            {
                roots.Add(root);
            }
        }

        return roots;
    }

    /// <summary>I43: the roots that were there before hold nothing, and no vCPU in the guest runs on one of them. Whatever else goes on.</summary>
    public void FastZapped(Actor actor, IReadOnlyList<Root> before)
    {
        ArgumentNullException.ThrowIfNull(before);
        foreach (Root root in before)
        {
            Aftermath after = new(_vm, "a fast zap") { Left = FirstPresent(actor, root), InsideOnOldRoot = InsideOn(root) };
            _vm.Verdicts.Judge(actor, RootRules.I43, after);
        }
    }

    /// <summary>I51: an operation over a range gave mmu_lock up at most once per page that it passed, and once per level on the way there, in every tree.</summary>
    /// <param name="actor">Who performed it.</param>
    /// <param name="range">The pages.</param>
    /// <param name="walks">How often it walked over the range.</param>
    /// <param name="yields">How often it gave the lock up.</param>
    public void Yielded(Actor actor, GfnRange range, int walks, long yields)
    {
        int roots = 0;
        foreach (Root _ in _vm.Mmu.ListedRoots)
        {
            roots++;
        }

        // Roots come and go; a walk began with at most one more than there are now for each vCPU.
        long trees = roots + (_vm.Vm?.Vcpus.Length ?? 0);
        _vm.Verdicts.Judge(actor, WalkersAndMemory.I51, new YieldCount(_vm, range, yields, walks * trees * ((long)range.Pages + 5), null));
    }

    /// <summary>I79: nothing that the guest wrote, or can still write, escapes the dirty log. The harvest's flush is done; no vCPU runs.</summary>
    /// <param name="actor">Who harvested.</param>
    /// <param name="slot">The slot.</param>
    /// <param name="written">True for pages that the guest had written since the harvest before; null: nobody knows.</param>
    /// <param name="harvested">True for pages whose bit the harvest returned.</param>
    public void Harvested(Actor actor, Memslot slot, Func<Gfn, bool>? written, Func<Gfn, bool> harvested)
    {
        ArgumentNullException.ThrowIfNull(slot);
        ArgumentNullException.ThrowIfNull(harvested);
        HashSet<Gfn> translated = WritableTranslations();
        foreach (Root root in _vm.Mmu.ListedRoots)
        {
            if (root.IsMirror || root.PeekRole().IsInvalid || root.AddressSpace != slot.AddressSpace)
            {
                continue;
            }

            for (Gfn gfn = slot.BaseGfn; gfn < slot.Range.End; gfn += 1)
            {
                ulong page = gfn - slot.BaseGfn;
                bool isPending = slot.DirtyBitmap is { } log && (log.Peek(page >> 6) & (1UL << (int)(page & 63))) != 0;
                EntryView leaf = _vm.Find(root, gfn, Level.K4);

                // What the harvest returned is recorded once; a write after it needs a bit of its own.
                DirtyView before = new(_vm, gfn, default, written?.Invoke(gfn) ?? false, isPending || harvested(gfn), false);
                DirtyView after = new(_vm, gfn, leaf, false, isPending, translated.Contains(gfn));
                if (_vm.Verdicts.Judge(actor, AddedRules.I79, before))
                {
                    _vm.Verdicts.Judge(actor, AddedRules.I79, after);
                }
            }
        }
    }

    private HashSet<Gfn> WritableTranslations()
    {
        HashSet<Gfn> gfns = [];
        foreach (Vcpu vcpu in _vm.Vm is { } vm ? vm.Vcpus : [])
        {
            vcpu.TranslatesOn?.Tlb.ForEachLive(entry =>
            {
                const byte WritesWithoutWalk = 2 | 8;
                if ((entry.Rights & WritesWithoutWalk) == WritesWithoutWalk && (_vm.HasMirror || entry.Vcpu == vcpu.Id))
                {
                    for (ulong page = 0; page < new Level(entry.Level).Pages; page++)
                    {
                        gfns.Add(new Gfn(((entry.GpaPage >> 12) + page) & ~_vm.AliasMask));
                    }
                }
            });
        }

        return gfns;
    }

    private void None(Invariant<Aftermath> rule, Actor actor, string operation, IReadOnlyList<EntryView> left)
    {
        foreach (EntryView leaf in left)
        {
            _vm.Verdicts.Judge(actor, rule, new Aftermath(_vm, operation) { Left = leaf });
        }

        if (left.Count == 0)
        {
            _vm.Verdicts.Judge(actor, rule, new Aftermath(_vm, operation));
        }
    }

    private SeptView? FirstInSecureEpt(GfnRange range)
    {
        for (Gfn gfn = range.Start; gfn < range.End && _vm.LiveTd is { } td; gfn += 1)
        {
            SeptView found = _vm.Module!.FindSeptEntry(td.Tdr, gfn.Gpa, Level.K4);
            if (found.State is not (SeptState.FREE or SeptState.NL_MAPPED or SeptState.NL_BLOCKED))
            {
                return found;
            }
        }

        return null;
    }

    // Invalid roots are not freed under a reader; a fast zap leaves the table of a root that is still referenced, empty.
    private EntryView FirstPresent(Actor actor, Root root)
    {
        _vm.Mmu.Rcu.ReadEnter(actor);
        EntryView left = default;
        for (int index = 0; index < 512 && left.IsNone && !root.Table.IsFreed; index++)
        {
            if (root.Table.Peek(index) is { IsPresent: true } spte)
            {
                left = new EntryView(_vm, root.Table, index, spte, (ulong)index * root.Level.Pages, root.PeekRole(), true);
            }
        }

        bool isReused = root.Table.IsFreed || !ReferenceEquals(Listed(root), root);
        _vm.Mmu.Rcu.ReadExit(actor);
        return isReused ? default : left;
    }

    private Root? Listed(Root root)
    {
        foreach (Root other in _vm.Mmu.ListedRoots)
        {
            if (ReferenceEquals(other, root))
            {
                return root;
            }
        }

        return null;
    }

    private int InsideOn(Root root)
    {
        foreach (Vcpu vcpu in _vm.Vm is { } vm ? vm.Vcpus : [])
        {
            // The root is read last: a vCPU never comes back to an old one, so whoever has it now had it when it was seen inside.
            if (vcpu.Kick.Mode is TargetMode.Inside && vcpu.Processor is { InGuest: true } lp && ReferenceEquals(lp.Running, vcpu.Kick) && ReferenceEquals(vcpu.Mmu.DirectRoot, root))
            {
                return vcpu.Id;
            }
        }

        return -1;
    }
}
