namespace Tdp.Harness.Invariants;

/// <content>Events on what is not a page-table word: locks, roots, flags, the invalidation record, and the way into the guest.</content>
public sealed partial class EventReferee
{
    private void OnLock(in SyncEvent happened)
    {
        if (happened.Kind is not EventKind.LockRelease || happened.Object.Owner != _number || !string.Equals(happened.Object.Name, "mmu_lock", StringComparison.Ordinal))
        {
            return;
        }

        Actor? actor = happened.Actor ?? _running();
        ActorNotes? notes = actor is null ? null : _vm.NotesOf(actor);
        if (notes is { HasFrozen: true } && _vm.TableAround(notes.FrozenWord) is { IsNone: false } table)
        {
            // Nobody may leave a frozen entry behind.
            int index = (int)(notes.FrozenWord.Value & 0xFFF) >> 3;
            EntryView at = _vm.At(table, index, table.Peek(index));
            _vm.Verdicts.Judge(actor, TreeShape.I14, new EntryChange(at, notes.FrozenFrom, actor, notes.Freeze, _vm.Mmu.MmuLock.IsReadHeld(actor!), false, false));
        }

        if (!happened.Changed || _vm.Vm is not { } vm)
        {
            return;
        }

        // It was held for writing, and is free now.
        _vm.Verdicts.Judge(actor, LifeCycle.I77, new SeptZapFlag(_vm, vm.WaitForSeptZap.Peek(), false));
        if (notes is { HasEndedInvalidation: true })
        {
            notes.HasEndedInvalidation = false;
            for (int space = 0; space < vm.AddressSpaces; space++)
            {
                foreach (Memslot slot in vm.SlotsOf(space).PeekActive.Slots)
                {
                    MixedSweep.Check(_vm, actor, slot, isAtRest: false);
                }
            }
        }
    }

    private void OnSeq(in SyncEvent happened)
    {
        if (!happened.Changed || happened.Object.Owner != _number || !string.Equals(happened.Object.Name, "invalidate", StringComparison.Ordinal))
        {
            return;
        }

        Actor? actor = happened.Actor ?? _running();
        bool isEnding = string.Equals(happened.Site, "End", StringComparison.Ordinal);
        _vm.Verdicts.Judge(actor, FaultRules.I55, InvalidationView.Of(_vm, isEnding, isAtRest: false));
        if (isEnding && actor is not null)
        {
            _vm.NotesOf(actor).HasEndedInvalidation = true;
        }
    }

    private void OnCell(in SyncEvent happened)
    {
        Actor? actor = happened.Actor ?? _running();
        switch (happened.Object.Name)
        {
            case "root_role" when happened.Changed && happened.Object.Owner >> 32 == _number:
                OnRole(happened, actor);
                break;
            case "root_refs" when happened.Object.Owner >> 32 == _number && Numbered((uint)happened.Object.Owner) is { } counted:
                _vm.Verdicts.Judge(actor, RootRules.I38, RootView.Of(_vm, counted));
                break;
            case "tdp_mmu_roots" when happened.Changed && happened.Object.Owner == _number:
            case "root_next" when happened.Changed && happened.Object.Owner >> 32 == _number:
                OnList(actor);
                break;
            case "wait_for_sept_zap" when happened.Changed && happened.Object.Owner == _number:
                _vm.Verdicts.Judge(actor, LifeCycle.I77, new SeptZapFlag(_vm, happened.After != 0, actor is not null && _vm.Mmu.MmuLock.IsWriteHeld(actor)));
                break;
            case "invalidate_start" or "invalidate_end" when happened.Changed && happened.Object.Owner == _number && happened.After != ulong.MaxValue:
                bool isEnd = happened.Object.Name is "invalidate_end" && happened.After != 0;
                _vm.Verdicts.Judge(actor, TreeShape.I11, new StoredGfn(_vm, isEnd ? happened.After - 1 : happened.After, "the invalidation range"));
                break;
            default:
                break;
        }
    }

    private void OnRole(in SyncEvent happened, Actor? actor)
    {
        if (Numbered((uint)happened.Object.Owner) is not { } root)
        {
            return;
        }

        bool holdsWrite = actor is not null && _vm.Mmu.MmuLock.IsWriteHeld(actor);
        RootView view = RootView.Of(_vm, root) with { WasInvalid = new TableRole((uint)happened.Before).IsInvalid, IsChanging = true, MayInvalidate = holdsWrite || !HasUsers() };
        _vm.Verdicts.Judge(actor, RootRules.I40, view);
        _vm.Verdicts.Judge(actor, RootRules.I41, view);
        _vm.Verdicts.Judge(actor, RootRules.I37, view);
    }

    // The list has changed: it has one valid root of each kind, and who left it left it empty.
    private void OnList(Actor? actor)
    {
        foreach (Root root in _vm.Mmu.ListedRoots)
        {
            _vm.Verdicts.Judge(actor, RootRules.I37, RootView.Of(_vm, root));
            if (!_roots.Contains(root))
            {
                _roots.Add(root);
            }
        }

        for (int i = _roots.Count - 1; i >= 0; i--)
        {
            RootView view = RootView.Of(_vm, _roots[i]);
            if (view.IsListed)
            {
                continue;
            }

            _vm.Verdicts.Judge(actor, RootRules.I39, view with { Mapped = RemovedTable.Of(_vm, view.Root.Table).Left });
            _roots.RemoveAt(i);
        }
    }

    private Root? Numbered(uint number)
    {
        foreach (Root root in _vm.Mmu.ListedRoots)
        {
            if (root.Number == (int)number)
            {
                return root;
            }
        }

        return null;
    }

    private bool HasUsers()
    {
        foreach (Vcpu vcpu in _vm.Vm is { } vm ? vm.Vcpus : [])
        {
            if (vcpu.Mmu.DirectRoot is not null || vcpu.Mmu.MirrorRoot is not null)
            {
                return true;
            }
        }

        return false;
    }

    // The vCPU has shown itself as entering and now looks whether it may: whatever is so by now forbids the entry.
    private void OnKick(in SyncEvent happened)
    {
        if (happened.Kind is EventKind.Read && string.Equals(happened.Site, "TryEnter", StringComparison.Ordinal) && (happened.Actor ?? _running()) is { } actor)
        {
            _vm.NotesOf(actor).SawDeath = _vm.Mmu.Death.IsDead;
        }
    }

    private void Marked(in SyncEvent happened)
    {
        if ((happened.Actor ?? _running()) is not { } actor)
        {
            return;
        }

        ActorNotes notes = _vm.NotesOf(actor);
        switch (happened.Site)
        {
            case "vm-entry":
                notes.IsInGuest = true;
                foreach (Vcpu vcpu in _vm.Vm is { } vm ? vm.Vcpus : [])
                {
                    if (ReferenceEquals(vcpu.Mmu.Actor, actor) && vcpu.Kick.Mode is not TargetMode.Outside)
                    {
                        VcpuEntryView view = VcpuEntryView.Of(_vm, vcpu, isEntering: true, notes.SawDeath);
                        _vm.Verdicts.Judge(actor, LifeCycle.I73, view);
                        _vm.Verdicts.Judge(actor, RootRules.I42, view);
                    }
                }

                break;
            case "vm-exit":
                notes.IsInGuest = false;
                break;
            default:
                break;
        }
    }
}
