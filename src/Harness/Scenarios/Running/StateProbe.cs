using Tdp.Harness.Invariants;

namespace Tdp.Harness.Scenarios;

/// <summary>Looks at ranges of a VM at rest: one word of the format for each frame.</summary>
internal sealed class StateProbe(ScenarioWorld world, ScenarioVmState state)
{
    /// <summary>What the direct trees that are valid say of each frame: the size of the leaf, mmio, or none.</summary>
    public IReadOnlyList<(Gfn Gfn, string Word)> Direct(GfnRange range) => Words(range, isMirror: false);

    /// <summary>What the mirror says of each frame at 4K: leaf, frozen or none.</summary>
    public IReadOnlyList<(Gfn Gfn, string Word)> Mirror(GfnRange range) => Words(range, isMirror: true);

    /// <summary>The Secure EPT state of each frame; FREE where a table is missing.</summary>
    public IReadOnlyList<(Gfn Gfn, string Word)> Sept(GfnRange range)
    {
        List<(Gfn, string)> words = [];
        for (Gfn gfn = range.Start; gfn < range.End; gfn += 1)
        {
            SeptView view = world.Module.FindSeptEntry(state.Vm.Td!.Tdr, gfn.Gpa, Level.K4);
            words.Add((gfn, view.Level == Level.K4 || view.State is not (SeptState.NL_MAPPED or SeptState.NL_BLOCKED) ? view.State.ToString() : "FREE"));
        }

        return words;
    }

    /// <summary>private, shared or mixed.</summary>
    public string Attribute(GfnRange range)
        => state.Vm.Attributes is not { } attributes || attributes.IsAll(range, isPrivate: false) ? "shared" : attributes.IsAll(range, isPrivate: true) ? "private" : "mixed";

    /// <summary>The MIXED flag around a frame.</summary>
    public bool IsMixed(Gfn gfn, Level level) => state.Vm.SlotsOf(0).Active.Find(gfn) is { } slot && slot.Mmu.IsMixed(gfn, level);

    /// <summary>yes, no or some.</summary>
    public string Dirty(int id, GfnRange range)
    {
        WordRun? bitmap = state.Live(id)?.DirtyBitmap;
        ulong[] harvest = state.HarvestOf(id);
        Gfn start = state.Slots[id].Declared.Range.Start;
        bool any = false;
        bool all = true;
        for (Gfn gfn = range.Start; gfn < range.End; gfn += 1)
        {
            ulong page = gfn - start;
            bool isInside = gfn >= start && page >> 6 < (ulong)harvest.Length;
            bool set = isInside && (((bitmap is not null && page >> 6 < bitmap.Length ? bitmap[page >> 6].Peek() : 0) | harvest[page >> 6]) & (1UL << (int)(page & 63))) != 0;
            any |= set;
            all &= set;
        }

        return all ? "yes" : any ? "some" : "no";
    }

    private List<(Gfn, string)> Words(GfnRange range, bool isMirror)
    {
        TdpMmu mmu = state.Vm.Mmu;
        List<(Gfn, string)> words = [];
        for (Gfn gfn = range.Start; gfn < range.End; gfn += 1)
        {
            string word = "none";
            foreach (Root root in mmu.Roots)
            {
                if (root.IsMirror == isMirror && !root.IsInvalid && Word(mmu, root, gfn) is { Length: > 0 } found)
                {
                    word = found;
                }
            }

            words.Add((gfn, word));
        }

        return words;
    }

    private string Word(TdpMmu mmu, Root root, Gfn gfn)
    {
        ulong raw = gfn.Value | (root.IsMirror ? 0 : state.Vm.AliasBit.GfnMask);
        TablePage table = root.Table;
        for (Level level = root.Level; ; level = level.Down)
        {
            Spte spte = table[level.IndexOf(raw)];
            switch (spte.Kind(level))
            {
                case SpteKind.Leaf:
                    return root.IsMirror ? "leaf" : level.ToString();
                case SpteKind.Table when TreeWalk.TableBehind(mmu, spte) is { IsNone: false } child:
                    table = child;
                    continue;
                default:
                    return spte.IsFrozen ? "frozen" : !root.IsMirror && mmu.Format.IsMmio(spte) ? "mmio" : string.Empty;
            }
        }
    }
}
