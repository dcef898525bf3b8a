namespace Tdp.Harness.Invariants;

/// <summary>
/// Judges a VM after every event of an explored run: each event the rules that are bound to its kind of object (decisions section 9). Install it as the hook's observer.
/// </summary>
/// <remarks>
/// It runs on the thread that performed the event, before anybody else may go on, so it looks at a state between two shared accesses. It reads without events and without locks, and allocates nothing once every
/// table and actor has been seen. Who performed an event on a word is known to the scheduler only; it tells.
/// It needs the VM's <see cref="SeamcallReferee"/> and <see cref="FaultReferee"/> beside it, which share the record: see <see cref="VmReferees"/>.
/// </remarks>
public sealed partial class EventReferee : IObserver
{
    private readonly CheckedVm _vm;
    private readonly Func<Actor?> _running;
    private readonly ulong _number;
    private readonly List<Root> _roots = [];
    private TableState[] _tables = new TableState[256];
    private long _linked;

    /// <summary>Makes the referee of a VM and counts its tables as they are.</summary>
    /// <param name="vm">The VM; nothing is in flight.</param>
    /// <param name="running">The actor that runs now; null when none does that the VM knows.</param>
    public EventReferee(CheckedVm vm, Func<Actor?> running)
    {
        ArgumentNullException.ThrowIfNull(vm);
        ArgumentNullException.ThrowIfNull(running);
        _vm = vm;
        _running = running;
        _number = vm.Mmu.Options.VmNumber;
        foreach (Root root in vm.Mmu.ListedRoots)
        {
            _roots.Add(root);
            foreach (TreeEntry entry in TreeWalk.Read(vm.Mmu, root))
            {
                if (entry.Spte.Kind(entry.Level) is SpteKind.Table && vm.TableBehind(entry.Spte) is { IsNone: false } child)
                {
                    State(child).Pointers++;
                    _linked++;
                }
            }
        }
    }

    // Of one table: present entries that point to it; who takes it apart, and the entries from 0 on that he has done with.
    private struct TableState
    {
        public int Pointers;
        public Actor? Remover;
        public int Passed;
    }

    /// <inheritdoc/>
    public void Occurred(in SyncEvent happened)
    {
        if (happened.Kind is EventKind.Mark)
        {
            Marked(happened);
            return;
        }

        switch (happened.Object.Kind)
        {
            case ObjectKind.Entry:
                OnWord(happened);
                break;
            case ObjectKind.Cell:
                OnCell(happened);
                break;
            case ObjectKind.Lock:
                OnLock(happened);
                break;
            case ObjectKind.Seq:
                OnSeq(happened);
                break;
            case ObjectKind.Kick:
                OnKick(happened);
                break;
            default:
                break;
        }
    }

    private ref TableState State(TablePage table)
    {
        if (table.Index >= (uint)_tables.Length)
        {
            Array.Resize(ref _tables, Math.Max((int)table.Index + 1, 2 * _tables.Length));
        }

        return ref _tables[table.Index];
    }

    private void OnWord(in SyncEvent happened)
    {
        if (!_vm.Machine.Memory.TryFindNamed(happened.Object.Owner, out Hpa frame))
        {
            return;
        }

        Actor? actor = happened.Actor ?? _running();
        TablePage table = _vm.Mmu.TableIn(frame);
        if (table.IsNone)
        {
            OnOtherWord(happened, frame, actor);
            return;
        }

        // Nobody may look into a freed table: whoever does came here by a pointer that he should not have any more.
        _vm.Verdicts.Judge(actor, WalkersAndMemory.I45, new TableView(_vm, table, State(table).Pointers, TablePage.None, true));
        if (table.IsFreed)
        {
            return;
        }

        int index = (int)happened.Object.Index;
        if (happened.Changed)
        {
            Changed(table, index, new Spte(happened.Before), new Spte(happened.After), actor);
        }
        else
        {
            Looked(table, index, new Spte(happened.After), actor, happened.Kind is EventKind.Read or EventKind.PlainRead);
        }
    }

    // A word of a page that the module owns: only the module, or the guest through it, may touch it.
    private void OnOtherWord(in SyncEvent happened, Hpa frame, Actor? actor)
    {
        if (_vm.Module is null || actor is null || _vm.Machine.Ledger.UseOf(frame) is not FrameUse.Module)
        {
            return;
        }

        ActorNotes notes = _vm.NotesOf(actor);
        _vm.Verdicts.Judge(actor, MirrorAndModule.I34, new PageAccess(_vm.Machine, _vm.Module, frame, actor, !notes.IsInModule && !notes.IsInGuest, happened.Changed ? "wrote a word of the page" : "read a word of the page"));
    }

    // A load, or an update that changed nothing: a lost compare-exchange, or a remover's exchange that found FROZEN and must come again.
    private void Looked(TablePage table, int index, Spte value, Actor? actor, bool isLoad)
    {
        ref TableState state = ref State(table);
        if (isLoad && actor is not null && ReferenceEquals(state.Remover, actor) && !value.IsPresent)
        {
            Pass(table, ref state, index);
        }

        if (actor is not null && _vm.NotesOf(actor) is { IsFaulting: true } faulting)
        {
            faulting.LastLook = new EntryView(_vm, table, index, value, table.Gfn.Value + ((ulong)index * table.Level.Pages), table.Role, true);
            faulting.HasMetFrozen |= value.IsFrozen;
        }

        if (value.IsFrozen && _vm.At(table, index, value) is { IsReachable: true } at)
        {
            ActorNotes? owner = _vm.FreezerOf(at.Address);
            bool holdsRead = owner is not null && _vm.Mmu.MmuLock.IsReadHeld(owner.Actor);
            _vm.Verdicts.Judge(actor, TreeShape.I14, new EntryChange(at, Spte.NonPresent, owner?.Actor, owner?.Freeze ?? default, holdsRead, false, false));
        }
    }

    private void Changed(TablePage table, int index, Spte before, Spte after, Actor? actor)
    {
        EntryView at = _vm.At(table, index, after);
        ActorNotes? notes = actor is null ? null : _vm.NotesOf(actor);
        ActorNotes? owner = _vm.FreezerOf(at.Address);
        bool isPassed = State(table).Remover is not null && index < State(table).Passed;
        EntryChange change = new(at, before, actor, owner?.Freeze ?? default, actor is not null && _vm.Mmu.MmuLock.IsReadHeld(actor), actor is not null && _vm.Mmu.MmuLock.IsWriteHeld(actor), isPassed);
        Frozen(ref change, notes, owner);
        OfChange(change);
        OfEntry(at, actor);
        if (notes is not null)
        {
            notes.ChangesAfterFrozen += notes.IsFaulting && notes.HasMetFrozen && !before.IsFrozen ? 1 : 0;
            if (notes.IsInGuest && at.IsMirror)
            {
                SeamcallView guest = new(_vm, TdhLeaf.VP_ENTER, -1, actor, default, null) { Entry = at, IsMirrorChangedByGuest = true };
                _vm.Verdicts.Judge(actor, MirrorAndModule.I35, guest);
            }
        }

        if (at.Kind is SpteKind.Leaf && change.KindBefore is not SpteKind.Leaf)
        {
            Born(at, actor);
        }

        Pointers(at, change.KindBefore is SpteKind.Table ? before : default, actor);
        ref TableState state = ref State(table);
        if (actor is not null && ReferenceEquals(state.Remover, actor))
        {
            Pass(table, ref state, index);
        }
    }

    // Who freezes an entry owns it until he thaws it (I14, I15).
    private void Frozen(ref EntryChange change, ActorNotes? notes, ActorNotes? owner)
    {
        if (change.After.IsFrozen && change.At.IsReachable && notes is not null)
        {
            notes.HasFrozen = true;
            notes.FrozenWord = change.At.Address;
            notes.FrozenFrom = change.Before;
            notes.Announced = default;
            notes.IsRefused = false;
            change = change with { Owner = notes.Freeze };
            _vm.Verdicts.Judge(change.Actor, TreeShape.I14, change);
            return;
        }

        if (!change.Before.IsFrozen || owner is null)
        {
            return;
        }

        _vm.Verdicts.Judge(change.Actor, TreeShape.I15, change);
        if (ReferenceEquals(notes, owner))
        {
            owner.IsUnrestored |= owner.IsRefused && change.After != owner.FrozenFrom;
            owner.HasFrozen = false;
        }
    }

    private void OfChange(in EntryChange change)
    {
        if (change.IsLeafToLeaf)
        {
            _vm.Verdicts.Judge(change.Actor, TreeShape.I17, change);
            _vm.Verdicts.Judge(change.Actor, TreeShape.I18, change);
        }

        if (change.IsPassed)
        {
            _vm.Verdicts.Judge(change.Actor, WalkersAndMemory.I46, change);
        }
    }

    private void OfEntry(in EntryView at, Actor? actor)
    {
        Verdicts verdicts = _vm.Verdicts;
        verdicts.Judge(actor, TreeShape.I04, at);
        verdicts.Judge(actor, TreeShape.I05, at);
        if (at.Value != Spte.NonPresent && _vm.AliasMask != 0)
        {
            verdicts.Judge(actor, TreeShape.I12, at);
        }

        if (at.IsMirror)
        {
            verdicts.Judge(actor, TreeShape.I06, at);
        }

        if (at.Kind is SpteKind.Table)
        {
            verdicts.Judge(actor, TreeShape.I01, at);
            verdicts.Judge(actor, TreeShape.I03, at);
        }
        else if (at.Kind is SpteKind.Leaf)
        {
            verdicts.Judge(actor, TreeShape.I16, at);
            if (at.IsMirror)
            {
                verdicts.Judge(actor, TreeShape.I07, at);
                verdicts.Judge(actor, TreeShape.I08, at);
            }
        }
    }

    private void Born(in EntryView at, Actor? actor)
    {
        Verdicts verdicts = _vm.Verdicts;
        LeafBirth birth = LeafBirth.Of(at, actor);
        verdicts.Judge(actor, FaultRules.I53, birth);
        verdicts.Judge(actor, FaultRules.I54, birth);
        if (_vm.Vm is null)
        {
            return;
        }

        LeafView leaf = LeafView.Of(at, isAtRest: false);
        verdicts.Judge(actor, FaultRules.I63, leaf);
        if (at.IsMirror)
        {
            verdicts.Judge(actor, MirrorAndModule.I32, leaf);
            verdicts.Judge(actor, MirrorAndModule.I33, leaf);
            if (_vm.LiveTd is not null)
            {
                verdicts.Judge(actor, MirrorAndModule.I22, MirrorPair.Of(at, isChanging: false));
            }
        }
        else if (at.Level > Level.K4)
        {
            verdicts.Judge(actor, FaultRules.I66, leaf);
        }
    }

    // Tables that the change links or unlinks (I02, I09, I10, I11, I48).
    private void Pointers(in EntryView at, Spte unlinked, Actor? actor)
    {
        if (unlinked.IsPresent && (at.Kind is not SpteKind.Table || at.Value.Address != unlinked.Address) && _vm.TableBehind(unlinked) is { IsNone: false } gone)
        {
            ref TableState state = ref State(gone);
            state.Pointers--;
            state.Remover = actor;
            state.Passed = 0;
            _linked--;
            Count(actor);
        }

        if (at.Kind is SpteKind.Table && (!unlinked.IsPresent || at.Value.Address != unlinked.Address) && _vm.TableBehind(at.Value) is { IsNone: false } child)
        {
            ref TableState state = ref State(child);
            state.Pointers++;
            state.Remover = null;
            _linked++;
            TableView view = new(_vm, child, state.Pointers, Twin(child), true);
            _vm.Verdicts.Judge(actor, TreeShape.I02, view);
            _vm.Verdicts.Judge(actor, TreeShape.I09, view);
            _vm.Verdicts.Judge(actor, TreeShape.I10, view);
            _vm.Verdicts.Judge(actor, TreeShape.I11, new StoredGfn(_vm, child.Gfn.Value, "a table"));
            Count(actor);
        }
    }

    // The count follows the write of the entry: each thread inside may be one behind.
    private void Count(Actor? actor)
        => _vm.Verdicts.Judge(actor, WalkersAndMemory.I48, new Sum(_vm.Mmu.Statistics[MmuCounter.Tables], _linked, Math.Max(1, _vm.ActorsInside()), "linked tables"));

    private TablePage Twin(TablePage table)
    {
        for (uint index = 1; table.ExternalPage.Value != 0 && index < (uint)_tables.Length && index <= (uint)_vm.Mmu.TablesMade; index++)
        {
            TablePage other = _vm.Mmu.TableAt(index);
            if (index != table.Index && _tables[index].Pointers > 0 && other.ExternalPage == table.ExternalPage)
            {
                return other;
            }
        }

        return TablePage.None;
    }

    private void Pass(TablePage table, ref TableState state, int index)
    {
        bool wasDone = state.Passed == 512;
        state.Passed = Math.Max(state.Passed, index + 1);
        if (!wasDone && state.Passed == 512)
        {
            _vm.Verdicts.Judge(state.Remover, WalkersAndMemory.I47, RemovedTable.Of(_vm, table));
        }
    }
}
