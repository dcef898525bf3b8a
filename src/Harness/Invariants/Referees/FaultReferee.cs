namespace Tdp.Harness.Invariants;

/// <summary>Judges every fault of a VM when it has ended, on the thread that took it (I11, I30, I52, I64, I67, I68, I78).</summary>
/// <remarks>
/// All locks are dropped by then, so that others may have gone on: what it compares is the thread's own (its row of the statistics, its own calls), or is left unjudged when somebody may
/// have interfered. With <c>isAlone</c> nobody else does anything while a fault runs, and the books of tables must balance, too.
/// </remarks>
public sealed class FaultReferee : IFaultObserver
{
    private readonly CheckedVm _vm;
    private readonly bool _isAlone;
    private readonly Began?[] _began = new Began?[Actor.Max];

    /// <summary>Makes the referee of a VM; install it as <see cref="TdpMmu.FaultObserver"/>.</summary>
    /// <param name="vm">The VM.</param>
    /// <param name="isAlone">Nobody else uses the VM's MMU while a fault runs.</param>
    public FaultReferee(CheckedVm vm, bool isAlone = false)
    {
        ArgumentNullException.ThrowIfNull(vm);
        _vm = vm;
        _isAlone = isAlone;
    }

    // Of one actor: where its counters stood when its fault began, and how many faults it has ended.
    private sealed class Began
    {
        public long Pages;
        public long Tables;
        public long Fast;
        public long Zapped;
        public long Spare;
        public long Taken;
        public long CountedBefore;
    }

    void IFaultObserver.Began(in Fault fault)
    {
        Actor actor = fault.Vcpu.Actor;
        _vm.NotesOf(actor).BeginFault();
        Began began = _began[actor.Index] ??= new Began { CountedBefore = Counted(actor) };
        MmuStatistics statistics = _vm.Mmu.Statistics;
        began.Pages = PagesOf(actor);
        began.Tables = statistics.Of(actor, MmuCounter.Tables);
        began.Fast = statistics.Of(actor, MmuCounter.PfFast);
        began.Zapped = statistics[MmuCounter.Zapped];
        began.Spare = Spare(fault.Vcpu);
    }

    void IFaultObserver.Ended(in Fault fault, FaultResult result)
    {
        Actor actor = fault.Vcpu.Actor;
        ActorNotes notes = _vm.NotesOf(actor);
        notes.IsFaulting = false;
        if (_began[actor.Index] is not { } began)
        {
            return;
        }

        began.Taken += fault.Prefetch ? 0 : 1;
        MmuStatistics statistics = _vm.Mmu.Statistics;
        FaultView view = new(_vm, fault.Vcpu, fault.Addr, fault.ErrorCode, fault.Prefetch, result)
        {
            Pages = PagesOf(actor) - began.Pages,
            Tables = statistics.Of(actor, MmuCounter.Tables) - began.Tables,
            Mapped = notes.Mapped,
            Linked = notes.Linked,
            BusyAnswers = notes.BusyAnswers,
            IsRestored = !notes.IsUnrestored,
            ChangesAfterFrozen = notes.ChangesAfterFrozen,
            TablesLost = _isAlone ? (int)(began.Spare - Spare(fault.Vcpu) - (statistics.Of(actor, MmuCounter.Tables) - began.Tables)) : 0,
            WasFast = statistics.Of(actor, MmuCounter.PfFast) != began.Fast,
            Found = result is FaultResult.Spurious ? Found(fault, notes, began) : default,
            Reported = fault.Vcpu.MemoryFault,
            Taken = began.Taken,
            Counted = Counted(actor) - began.CountedBefore,
        };
        Judge(actor, view, fault);
    }

    private void Judge(Actor actor, FaultView view, in Fault fault)
    {
        Verdicts verdicts = _vm.Verdicts;
        verdicts.Judge(actor, TreeShape.I11, new StoredGfn(_vm, fault.Gfn.Value, "a fault"));
        verdicts.Judge(actor, LifeCycle.I78, view);
        if (view.BusyAnswers != 0)
        {
            verdicts.Judge(actor, MirrorAndModule.I30, view);
        }

        if (view.Result is FaultResult.Retry && view.BusyAnswers == 0)
        {
            verdicts.Judge(actor, WalkersAndMemory.I52, view);
        }

        if (view.IsPrivate)
        {
            verdicts.Judge(actor, FaultRules.I68, view);
        }

        if (view.Result is FaultResult.Spurious && !view.Found.IsNone)
        {
            verdicts.Judge(actor, FaultRules.I67, view);
        }

        // Size 0: the host's own mapping failed; there is no memory-fault exit (tdp-mmu 5.4 step 9).
        if (view.Result is FaultResult.BadAddress && view.Reported.Size != 0)
        {
            (ulong seq, ulong inProgress) = _vm.Mmu.Invalidation.Peek();
            Memslot? slot = _vm.SlotOf(fault.Gfn);
            verdicts.Judge(actor, FaultRules.I64, view with
            {
                IsAttributeStill = seq == fault.Seq && inProgress == 0 && _vm.Vm?.Attributes is not null,
                IsAttributePrivate = _vm.IsPrivate(fault.Gfn),
                CanBack = slot is not null && (!view.IsPrivate || slot.Memfd is { IsClosed: false }),
            });
        }
    }

    // The leaf that made the fault spurious. It may have been zapped since, or lost a right: then nothing can be said.
    private EntryView Found(in Fault fault, ActorNotes notes, Began began)
    {
        if (!notes.LastLook.IsNone)
        {
            return notes.LastLook;
        }

        Root? root = (fault.Addr.Value >> 12 & _vm.AliasMask) == _vm.AliasMask ? fault.Vcpu.DirectRoot : fault.Vcpu.MirrorRoot;
        if (Explore.On || root is null)
        {
            return default;
        }

        Actor actor = fault.Vcpu.Actor;
        _vm.Mmu.Rcu.ReadEnter(actor);
        EntryView entry = _vm.Find(root, fault.Gfn, Level.K4);
        _vm.Mmu.Rcu.ReadExit(actor);
        bool isStill = _vm.Mmu.Statistics[MmuCounter.Zapped] == began.Zapped && _vm.Mmu.Invalidation.Peek() == (fault.Seq, 0UL) && !root.PeekRole().IsInvalid && fault.Slot is not { IsDirtyLogged: true };
        return isStill || entry.Kind is SpteKind.Leaf ? entry : default;
    }

    private long Counted(Actor actor)
    {
        MmuStatistics statistics = _vm.Mmu.Statistics;
        return statistics.Of(actor, MmuCounter.PfFixed) + statistics.Of(actor, MmuCounter.PfSpurious) + statistics.Of(actor, MmuCounter.PfEmulate);
    }

    private long PagesOf(Actor actor)
    {
        MmuStatistics statistics = _vm.Mmu.Statistics;
        return statistics.Of(actor, MmuCounter.Pages4K) + statistics.Of(actor, MmuCounter.Pages2M) + statistics.Of(actor, MmuCounter.Pages1G);
    }

    // Tables that are not linked: in the vCPU's cache, in stock, or not made yet.
    private long Spare(MmuVcpu vcpu) => _isAlone ? vcpu.TableCount + _vm.Mmu.TablesInStock + _vm.Mmu.Rcu.Pending - _vm.Mmu.TablesMade : 0;
}
