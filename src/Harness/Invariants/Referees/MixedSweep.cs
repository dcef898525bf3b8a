namespace Tdp.Harness.Invariants;

/// <summary>Judges the MIXED flags of a slot (I65). Whoever asks holds mmu_lock for writing, is between two events of a scheduler, or is alone.</summary>
internal static class MixedSweep
{
    /// <summary>Judges every huge range that lies wholly inside the slot.</summary>
    /// <param name="vm">The VM; one without attributes has nothing to judge.</param>
    /// <param name="judge">Who looks, or null.</param>
    /// <param name="slot">The slot.</param>
    /// <param name="isAtRest">No conversion is in progress.</param>
    public static void Check(CheckedVm vm, Actor? judge, Memslot slot, bool isAtRest)
    {
        if (vm.Vm?.Attributes is null)
        {
            return;
        }

        for (Level level = Level.M2; level <= Level.G1; level = level.Up)
        {
            for (Gfn gfn = (slot.BaseGfn + (level.Pages - 1)).AlignDown(level); gfn + level.Pages <= slot.Range.End; gfn += level.Pages)
            {
                GfnRange range = GfnRange.Of(gfn, level.Pages);
                vm.Verdicts.Judge(judge, FaultRules.I65, new MixedView(vm, slot, range, level, slot.Mmu.IsMixed(gfn, level), IsMixed(vm, range), !isAtRest && vm.IsInvalidating(range)));
            }
        }
    }

    private static bool IsMixed(CheckedVm vm, GfnRange range)
    {
        bool first = vm.IsPrivate(range.Start);
        for (Gfn gfn = range.Start + 1; gfn < range.End; gfn += 1)
        {
            if (vm.IsPrivate(gfn) != first)
            {
                return true;
            }
        }

        return false;
    }
}
