namespace Tdp.Harness.Invariants;

/// <content>What is not about one tree: sums, the Secure EPT, slots, vCPUs, and the iterator.</content>
public sealed partial class Sweep
{
    private bool _yieldNext;

    private void Totals()
    {
        MmuStatistics statistics = _vm.Mmu.Statistics;
        Judge(WalkersAndMemory.I48, new Sum(statistics[MmuCounter.Tables], _tables.Count, 0, "linked tables"));
        for (Level level = Level.K4; level <= Level.G1; level = level.Up)
        {
            Judge(WalkersAndMemory.I49, new Sum(statistics.Pages(level), _leaves[level.Value], 0, $"leaves of {level}"));
        }
    }

    private void SecureEpt()
    {
        if (_vm.LiveTd is not { } td || _vm.ValidRoot(mirror: true) is null)
        {
            return;
        }

        _vm.Module!.ForEachSeptEntry(td.Tdr, (in SeptView view) => SecureEntry(td, view));
        foreach (EntryView left in _mirror.Values)
        {
            Pair(MirrorPair.Of(left, isChanging: false));
        }
    }

    private void SecureEntry(TrustDomain td, SeptView view)
    {
        _mirror.Remove((view.Gpa.Value >> 12, view.Level.Value), out EntryView entry);
        Pair(new MirrorPair(_vm, entry, view, false, false));
        PageType type = view.State is SeptState.NL_MAPPED or SeptState.NL_BLOCKED ? PageType.EPT : PageType.REG;
        Judge(AddedRules.TM01, new ModulePage(_vm, td.Tdr, view.Hpa, type, _vm.Module!.Pamt(view.Hpa)));
    }

    private void Pair(in MirrorPair pair)
    {
        Judge(MirrorAndModule.I19, pair);
        Judge(MirrorAndModule.I20, pair);
        Judge(MirrorAndModule.I21, pair);
        Judge(MirrorAndModule.I22, pair);
    }

    private void Slots()
    {
        if (_vm.Vm is not { } vm)
        {
            return;
        }

        for (int space = 0; space < vm.AddressSpaces; space++)
        {
            foreach (Memslot slot in vm.SlotsOf(space).PeekActive.Slots)
            {
                Judge(TreeShape.I11, new StoredGfn(_vm, slot.BaseGfn.Value | (slot.Range.End.Value - 1), "a slot"));
                MixedSweep.Check(_vm, _judge, slot, _isAtRest);
            }
        }
    }

    private void Vcpus()
    {
        foreach (Vcpu vcpu in _vm.Vm is { } vm ? vm.Vcpus : [])
        {
            Judge(RootRules.I42, VcpuEntryView.Of(_vm, vcpu, isEntering: false, wasVmDead: false));
        }
    }

    private void WholeVm()
    {
        Record();
        Flag(isWriteHeld: false);
        Judge(AddedRules.I81, new Health(_vm, _vm.Mmu.Warnings, _vm.Mmu.Death.Reason, _vm.IsDeathDeclared, Negative()));
    }

    private void Record()
    {
        Judge(FaultRules.I55, InvalidationView.Of(_vm, isEnding: false, _isAtRest));
        GfnRange range = _vm.Mmu.Invalidation.PeekRange();
        Judge(TreeShape.I11, new StoredGfn(_vm, range.IsEmpty ? 0 : range.Start.Value | (range.End.Value - 1), "the invalidation range"));
    }

    private void Flag(bool isWriteHeld)
    {
        if (_vm.Vm is { } vm)
        {
            Judge(LifeCycle.I77, new SeptZapFlag(_vm, vm.WaitForSeptZap.Peek(), isWriteHeld));
        }
    }

    private string? Negative()
    {
        for (MmuCounter counter = 0; counter < MmuCounter.Count; counter++)
        {
            if (_vm.Mmu.Statistics[counter] < 0)
            {
                return counter.ToString();
            }
        }

        return _vm.Vm is { Notifier.Active: < 0 } ? "mn_active_invalidate_count" : null;
    }

    // The MMU's own iterator over a tree that stands still, once without and once with a yield wherever one is allowed.
    private void Walk(Actor judge)
    {
        foreach (Root root in _vm.Mmu.Roots)
        {
            if (root.PeekRole().IsInvalid)
            {
                continue;
            }

            GfnRange range = WalkRecorder.RangeOf(_vm, root);
            WalkTrace trace = WalkRecorder.Record(_vm, judge, root, range, Level.K4, _yieldNext);
            Judge(WalkersAndMemory.I50, trace);
            Judge(WalkersAndMemory.I51, new YieldCount(_vm, range, 0, 0, trace));
        }

        _yieldNext = !_yieldNext;
    }
}
