namespace Tdp.Tests.Invariants;

/// <summary>Walkers and memory, broken one rule at a time (tdp-mmu 10.4).</summary>
public sealed class WalkerTests
{
    [Fact, Breaks("I45"), Trait("spec", "I45")]
    public void A_linked_table_that_was_freed()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapShared(5);
        bed.Fires("I45", bed.Sample, () => bed.Record(leaf.Table).Flags |= TableRecord.Freed);
    }

    [Fact, Breaks("I45"), Trait("spec", "I45")]
    public void A_look_into_a_table_that_was_freed()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        Assert.Empty(bed.Findings(() => bed.Look(leaf)));
        bed.Vm.Memory.ZapAllFast(bed.Actor);
        bed.Mmu.Rcu.Barrier(bed.Actor);
        Assert.True(leaf.Table.IsFreed);
        Assert.Equal(["I45"], bed.Findings(() => bed.Look(leaf)));
    }

    [Fact, Breaks("I45"), Trait("spec", "I45")]
    public void A_write_into_a_freed_table_is_seen_when_it_is_taken_again()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        bed.Vm.Memory.ZapAllFast(bed.Actor);
        bed.Mmu.Rcu.Barrier(bed.Actor);
        bed.Word(leaf) = leaf.Value.Value;
        Assert.Equal(["I45"], bed.Findings(bed.Mmu.Tables.ReleaseStock));
    }

    [Fact, Breaks("I46"), Trait("spec", "I46")]
    public void A_leaf_that_is_written_where_the_remover_has_been()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        EntryView parent = bed.Shared(5, 2);
        EntryView later = bed.Shared(9);
        Actor walker = bed.Machine.Actors.Create("walker");
        bed.Mmu.MmuLock.EnterRead(walker);
        bed.Read(() =>
        {
            Assert.Empty(bed.Findings(() => bed.Change(parent, Spte.NonPresent)));
            for (int index = 0; index < 8; index++)
            {
                EntryView at = bed.Checked.At(leaf.Table, index, Spte.NonPresent);
                Assert.Empty(bed.Findings(() => bed.Change(at, Spte.Frozen)));
            }

            // In front of the remover an old walker may still win; he will find it (4.6 step 2).
            Assert.Empty(bed.Findings(() => bed.Change(later, leaf.Value, walker)));
            Assert.Equal(["I46"], bed.Findings(() => bed.Change(leaf, leaf.Value, walker)));
        });
        bed.Mmu.MmuLock.ExitRead(walker);
    }

    [Fact, Breaks("I46"), Trait("spec", "I46")]
    public void The_MMU_s_own_look_at_a_detached_table_when_it_is_freed()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        Actor reader = bed.Machine.Actors.Create("reader");
        bed.Mmu.Rcu.ReadEnter(reader);
        bed.Vm.Memory.ZapAllFast(bed.Actor);
        bed.Word(leaf) = leaf.Value.Value;
        bed.Mmu.Rcu.ReadExit(reader);
        Assert.Equal(["I46"], bed.Findings(() => bed.Mmu.Rcu.Barrier(bed.Actor)));
    }

    [Fact, Breaks("I47"), Trait("spec", "I47")]
    public void A_remover_that_skips_an_entry()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        EntryView parent = bed.Shared(5, 2);
        Assert.Empty(Remove(skip: -1));
        bed.Change(parent, parent.Value);
        bed.Machine.Memory.Fill(leaf.Table.Frame, Spte.NonPresent.Value);
        bed.Word(leaf) = leaf.Value.Value;
        Assert.Equal(["I47"], Remove(skip: leaf.Index));

        string[] Remove(int skip)
        {
            long before = bed.Checked.Verdicts.Times(WalkersAndMemory.I47);
            string[] found = bed.Findings(() => bed.Read(() =>
            {
                bed.Change(parent, Spte.NonPresent);
                for (int index = 0; index < 512; index++)
                {
                    if (index != skip)
                    {
                        bed.Change(bed.Checked.At(leaf.Table, index, Spte.NonPresent), Spte.Frozen);
                    }
                }
            }));
            Assert.Equal(before + 1, bed.Checked.Verdicts.Times(WalkersAndMemory.I47));
            return found;
        }
    }

    [Fact, Breaks("I48"), Trait("spec", "I48")]
    public void A_table_count_that_is_one_too_high()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I48", bed.AtRest, () => bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.Tables));
    }

    [Fact, Breaks("I48"), Trait("spec", "I48")]
    public void A_table_count_that_is_further_off_than_links_are_in_flight()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        EntryView parent = bed.Shared(5, 2);
        bed.Read(() =>
        {
            // Unlinked, and not counted yet: one thread, one table.
            Assert.Empty(bed.Findings(() => bed.Change(parent, Spte.NonPresent)));
            bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.Tables);
            bed.Change(parent, parent.Value);
            Assert.Equal(["I48"], bed.Findings(() => bed.Change(parent, Spte.NonPresent)));
        });
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [Trait("spec", "I49")]
    public void A_page_count_of_any_level(int level)
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I49", bed.AtRest, () => bed.Mmu.Statistics.AddPages(bed.Actor, level, 1));
    }

    [Fact, Breaks("I49"), Trait("spec", "I49")]
    public void A_leaf_that_nobody_counted()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapShared(5);
        bed.MapShared(6);
        bed.Fires("I49", bed.AtRest, () => bed.Word(bed.Shared(6)) = Spte.NonPresent.Value);
        Assert.Equal(SpteKind.Leaf, leaf.Kind);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    [Trait("spec", "I50")]
    [Trait("spec", "I51")]
    public void A_walk_of_the_MMU_s_iterator_visits_every_entry_once_in_pre_order(bool yields)
    {
        using Bed bed = Bed.Ordinary();
        foreach (ulong gfn in (ulong[])[0, 1, 7, 511, 512, 1030, 1535])
        {
            bed.MapShared(gfn);
        }

        foreach ((ulong start, ulong end) in ((ulong, ulong)[])[(0, 2048), (1, 2), (510, 514), (1030, 1031), (600, 1000), (3, 2040)])
        {
            GfnRange range = new(new Gfn(start), new Gfn(end));
            WalkTrace trace = WalkRecorder.Record(bed.Checked, bed.Actor, bed.Direct, range, Level.K4, yields);
            Assert.True(WalkersAndMemory.I50.Holds(trace), trace.Describe());
            Assert.True(WalkersAndMemory.I51.Holds(new YieldCount(bed.Checked, range, 0, 0, trace)), trace.Describe());

            // One page is one goal, and a yield needs a new one.
            Assert.Equal(yields && range.Pages > 1, trace.Steps.Any(s => s.IsYield));
        }
    }

    [Fact, Breaks("I50"), Trait("spec", "I50")]
    public void A_walk_that_misses_repeats_or_swaps_an_entry()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        GfnRange range = GfnRange.Of(new Gfn(0), 16);
        WalkTrace sound = WalkRecorder.Record(bed.Checked, bed.Actor, bed.Direct, range, Level.K4, yields: true);
        List<WalkStep> visits = [.. sound.Steps.Where(s => !s.IsYield)];
        WalkTrace plain = WalkRecorder.Record(bed.Checked, bed.Actor, bed.Direct, range, Level.K4, yields: false);
        Assert.Empty(bed.Findings(() => bed.Checked.Verdicts.Judge(bed.Actor, WalkersAndMemory.I50, plain)));
        for (int at = 0; at < plain.Steps.Count; at++)
        {
            List<WalkStep> missing = [.. plain.Steps];
            missing.RemoveAt(at);
            List<WalkStep> twice = [.. plain.Steps];
            twice.Insert(at, twice[at]);
            List<WalkStep> swapped = [.. plain.Steps];
            int other = (at + 1) % swapped.Count;
            (swapped[at], swapped[other]) = (swapped[other], swapped[at]);
            foreach (List<WalkStep> steps in (List<WalkStep>[])[missing, twice, swapped])
            {
                Assert.Equal(["I50"], bed.Findings(() => bed.Checked.Verdicts.Judge(bed.Actor, WalkersAndMemory.I50, plain with { Steps = steps })));
            }
        }

        // What was yielded at must be visited after all.
        int yield = sound.Steps.ToList().FindIndex(s => s.IsYield);
        List<WalkStep> skipping = [.. sound.Steps];
        int again = skipping.FindIndex(yield + 1, s => !s.IsYield && s.Gfn == skipping[yield].Gfn && s.Level == skipping[yield].Level);
        skipping.RemoveAt(again);
        Assert.Equal(["I50"], bed.Findings(() => bed.Checked.Verdicts.Judge(bed.Actor, WalkersAndMemory.I50, sound with { Steps = skipping })));
        Assert.True(visits.Count > plain.Steps.Count);
    }

    [Fact, Breaks("I51"), Trait("spec", "I51")]
    public void A_walk_that_yields_twice_at_one_goal()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        GfnRange range = GfnRange.Of(new Gfn(0), 16);
        WalkTrace sound = WalkRecorder.Record(bed.Checked, bed.Actor, bed.Direct, range, Level.K4, yields: true);
        Assert.Empty(bed.Findings(() => bed.Checked.Verdicts.Judge(bed.Actor, WalkersAndMemory.I51, new YieldCount(bed.Checked, range, 0, 0, sound))));
        List<WalkStep> steps = [.. sound.Steps];
        int yield = steps.FindIndex(s => s.IsYield);
        steps.Insert(yield, steps[yield]);
        Assert.Equal(["I51"], bed.Findings(() => bed.Checked.Verdicts.Judge(bed.Actor, WalkersAndMemory.I51, new YieldCount(bed.Checked, range, 0, 0, sound with { Steps = steps }))));
    }

    [Fact, Breaks("I51"), Trait("spec", "I51")]
    public void A_zap_that_gave_the_lock_up_more_often_than_it_had_goals()
    {
        using Bed bed = Bed.Td();
        for (ulong gfn = 0; gfn < 64; gfn++)
        {
            bed.MapPrivate(gfn);
        }

        GfnRange range = GfnRange.Of(new Gfn(0), 64);
        bed.Mmu.NeedResched = static () => true;
        bed.Write(() => bed.Mmu.UnmapAndFlush(bed.Actor, range, AliasFilter.Private));
        bed.Mmu.NeedResched = null;
        long yields = bed.Mmu.Statistics.Of(bed.Actor, MmuCounter.Yields);
        Assert.True(yields > 60, $"only {yields} yields");
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Yielded(bed.Actor, range, 1, yields)));
        Assert.Equal(["I51"], bed.Findings(() => bed.Referees.Operations.Yielded(bed.Actor, range, 1, 1000)));
    }

    [Fact, Breaks("I52"), Trait("spec", "I52")]
    public void A_fault_that_goes_on_after_it_met_FROZEN()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView frozen = bed.Mirrored(6);
        EntryView other = bed.Mirrored(7);
        Actor owner = bed.Machine.Actors.Create("owner");
        bed.Mmu.MmuLock.EnterRead(owner);
        bed.Change(frozen, Spte.Frozen, owner);
        Assert.Empty(Fault(() => bed.Look(frozen)));
        Assert.Equal(["I52"], Fault(() =>
        {
            bed.Look(frozen);
            bed.Change(other, Spte.Frozen);
            bed.Change(other, Spte.NonPresent);
        }));
        bed.Mmu.MmuLock.ExitRead(owner);

        string[] Fault(Action inside)
        {
            IFaultObserver referee = bed.Referees.Faults;
            Fault fault = bed.Mmu.Decode(bed.Vcpu, new Gfn(6).Gpa, PfErr.Write | PfErr.PrivateAccess);
            return bed.Findings(() =>
            {
                referee.Began(fault);
                bed.Read(inside);
                referee.Ended(fault, FaultResult.Retry);
            });
        }
    }

    [Fact, Breaks("I52"), Trait("spec", "I52")]
    public void A_retried_fault_that_counted_a_page()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        IFaultObserver referee = bed.Referees.Faults;
        Fault fault = bed.Mmu.Decode(bed.Vcpu, new Gfn(6).Gpa, PfErr.Write | PfErr.PrivateAccess);
        referee.Began(fault);
        Assert.Empty(bed.Findings(() => referee.Ended(fault, FaultResult.Retry)));
        referee.Began(fault);
        bed.Mmu.Statistics.AddPages(bed.Actor, 1, 1);
        Assert.Equal(["I52"], bed.Findings(() => referee.Ended(fault, FaultResult.Retry)));
    }
}
