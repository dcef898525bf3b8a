namespace Tdp.Tests.Invariants;

/// <summary>Shape of the trees, broken one rule at a time (tdp-mmu 10.1).</summary>
public sealed class TreeShapeTests
{
    private const ulong OtherAddressSpace = 1 << 24;

    [Fact, Breaks("I01"), Trait("spec", "I01")]
    public void A_table_with_another_role_than_its_tree_s()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("I01", bed.AtRest, () => bed.Record(leaf.Table).Role ^= (uint)OtherAddressSpace);
    }

    [Fact, Breaks("I01"), Trait("spec", "I01")]
    public void A_table_whose_parent_pointer_names_another_entry()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapShared(5);
        bed.Fires("I01", bed.AtRest, () => bed.Record(leaf.Table).Parent += 8);
    }

    [Fact, Breaks("I01"), Trait("spec", "I01")]
    public void An_entry_that_points_to_no_table()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        EntryView hole = bed.Shared(5 + 512, 2);
        bed.Fires("I01", bed.AtRest, () => bed.Word(hole) = bed.Mmu.Format.Table(bed.Vm.UserMemory.Peek(bed.Hva + (5 << 12))!.Value, adDisabled: false).Value);
    }

    [Fact, Breaks("I02"), Trait("spec", "I02")]
    public void Two_entries_that_point_to_one_table()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        EntryView parent = bed.Shared(5, 2);
        EntryView hole = bed.Shared(5 + 512, 2);

        // The second entry is neither the table's parent nor where it starts.
        bed.Fires("I02", bed.AtRest, () => bed.Word(hole) = parent.Value.Value, "I01", "I03");
    }

    [Fact, Breaks("I02"), Trait("spec", "I02")]
    public void A_second_link_of_a_table_seen_when_it_is_made()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        EntryView parent = bed.Shared(5, 2);
        EntryView hole = bed.Shared(5 + 512, 2);
        string[] found = bed.Findings(() => bed.Change(hole, parent.Value));
        Assert.Equal(["I01", "I02", "I03"], found);
    }

    [Fact, Breaks("I03"), Trait("spec", "I03")]
    public void A_table_that_starts_elsewhere()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("I03", bed.AtRest, () => bed.Record(leaf.Table).Gfn += 512);
    }

    [Fact, Breaks("I04"), Trait("spec", "I04")]
    public void A_leaf_of_512G()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        EntryView hole = bed.Shared(1UL << 27, 4);
        bed.Fires("I04", bed.AtRest, () => bed.Word(hole) = bed.LeafOf(default, 4).Value);
    }

    [Fact, Breaks("I05"), Trait("spec", "I05")]
    public void A_present_entry_without_bit_63()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapShared(5);
        bed.Fires("I05", bed.AtRest, () => bed.Word(leaf) &= ~Spte.SuppressVe);
    }

    [Fact, Breaks("I05"), Trait("spec", "I05")]
    public void An_absent_value_that_nobody_writes()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        bed.Fires("I05", bed.AtRest, () => bed.Word(bed.Shared(6)) = Spte.SuppressVe | Spte.AccessedBit);
    }

    [Fact, Breaks("I06"), Trait("spec", "I06")]
    public void An_MMIO_entry_in_a_mirror()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I06", bed.AtRest, () => bed.Word(bed.Mirrored(6)) = bed.Mmu.Format.Mmio(new Gfn(6), 2).Value);
    }

    [Fact, Breaks("I07"), Trait("spec", "I07")]
    public void A_mirror_leaf_of_2M()
    {
        using Bed bed = Bed.Td(2048);
        bed.MapPrivate(5);
        Hpa first = bed.FileFrame(1024);
        EntryView hole = bed.Mirrored(1024, 2);
        bed.Fires("I07", bed.Sample, () => bed.Word(hole) = bed.LeafOf(first, 2).Value);
    }

    [Fact, Breaks("I08"), Trait("spec", "I08")]
    public void A_mirror_leaf_without_a_right()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("I08", bed.AtRest, () => bed.Word(leaf) &= ~Spte.ExecutableBit);
    }

    [Fact, Breaks("I08"), Trait("spec", "I08")]
    public void A_mirror_leaf_that_the_host_may_not_write_seen_at_the_change()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        Assert.Empty(bed.Findings(() => bed.Read(() => bed.Change(leaf, new Spte(leaf.Value.Value & ~Spte.DirtyBit)))));

        // Losing host-writable is broken by itself, too.
        Assert.Equal(["I08", "I17"], bed.Findings(() => bed.Read(() => bed.Change(leaf, new Spte(leaf.Value.Value & ~(Spte.HostWritable | Spte.MmuWritable | Spte.WritableBit))))));
    }

    [Fact, Breaks("I09"), Trait("spec", "I09")]
    public void A_mirror_table_without_an_external_page()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("I09", bed.Sample, () => bed.Record(leaf.Table).External = 0);
    }

    [Fact, Breaks("I09"), Trait("spec", "I09")]
    public void A_direct_table_with_an_external_page()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapShared(5);
        bed.Fires("I09", bed.AtRest, () => bed.Record(leaf.Table).External = bed.FileFrame(9).Value);
    }

    [Fact, Breaks("I10"), Trait("spec", "I10")]
    public void Two_tables_with_one_external_page()
    {
        using Bed bed = Bed.Td();
        EntryView one = bed.MapPrivate(5);
        EntryView other = bed.MapPrivate(600);
        bed.Fires("I10", bed.Sample, () => bed.Record(one.Table).External = other.Table.ExternalPage.Value);
    }

    [Fact, Breaks("I10"), Trait("spec", "I10")]
    public void An_external_page_that_is_a_table_of_the_host()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("I10", bed.Sample, () => bed.Record(leaf.Table).External = bed.Direct.Frame.Value);
    }

    [Fact, Breaks("I11"), Trait("spec", "I11")]
    public void An_invalidation_range_with_the_alias_bit()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I11", bed.Sample, () => bed.Write(() =>
        {
            bed.Mmu.Invalidation.Begin(bed.Actor);
            bed.Mmu.Invalidation.AddRange(bed.Actor, GfnRange.Of(new Gfn(bed.Checked.AliasMask | 5), 1));
        }));
    }

    [Fact, Breaks("I11"), Trait("spec", "I11")]
    public void An_invalidation_range_with_the_alias_bit_seen_when_it_is_stored()
    {
        using Bed bed = Bed.Td();
        Assert.Empty(bed.Findings(() => bed.Feed(EventKind.Write, ObjectKind.Cell, "invalidate_start", (ulong)bed.Vm.Number, ulong.MaxValue, 5)));
        Assert.Equal(["I11"], bed.Findings(() => bed.Feed(EventKind.Write, ObjectKind.Cell, "invalidate_start", (ulong)bed.Vm.Number, ulong.MaxValue, bed.Checked.AliasMask | 5)));
    }

    [Fact, Breaks("I12"), Trait("spec", "I12")]
    public void A_mirror_entry_in_the_shared_half()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView half = bed.Checked.At(bed.Mirror.Table, 256, Spte.NonPresent);
        bed.Fires("I12", bed.Sample, () => bed.Word(half) = Spte.Frozen.Value);
    }

    [Fact, Breaks("I12"), Trait("spec", "I12")]
    public void A_direct_entry_in_the_private_half()
    {
        using Bed bed = Bed.Td();
        bed.MapShared(5);
        EntryView half = bed.Checked.At(bed.Direct.Table, 0, Spte.NonPresent);
        bed.Fires("I12", bed.Sample, () => bed.Word(half) = Spte.Frozen.Value);
    }

    [Fact, Breaks("I13"), Trait("spec", "I13")]
    public void An_entry_that_nobody_thaws()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        bed.Fires("I13", bed.AtRest, () => bed.Word(hole) = Spte.Frozen.Value);
    }

    [Fact, Breaks("I14"), Trait("spec", "I14")]
    public void An_entry_that_is_frozen_without_mmu_lock()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        Assert.Empty(bed.Findings(() => bed.Read(() =>
        {
            bed.Change(hole, Spte.Frozen);
            bed.Look(hole);
            bed.Change(hole, Spte.NonPresent);
        })));
        Assert.Equal(["I14"], bed.Findings(() => bed.Change(hole, Spte.Frozen)));
    }

    [Fact, Breaks("I14"), Trait("spec", "I14")]
    public void A_frozen_entry_without_an_owner()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        bed.Word(hole) = Spte.Frozen.Value;
        Assert.Equal(["I14"], bed.Findings(() => bed.Look(hole)));
    }

    [Fact, Breaks("I14"), Trait("spec", "I14")]
    public void A_thread_that_leaves_mmu_lock_with_an_entry_still_frozen()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        bed.Read(() => bed.Change(hole, Spte.Frozen));
        Assert.Equal(["I14"], bed.Findings(() => bed.Feed(EventKind.LockRelease, ObjectKind.Lock, "mmu_lock", (ulong)bed.Vm.Number, 0, 0)));
    }

    [Fact, Breaks("I15"), Trait("spec", "I15")]
    public void A_stranger_who_thaws()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        Actor stranger = bed.Machine.Actors.Create("stranger");
        bed.Read(() =>
        {
            Assert.Empty(bed.Findings(() => bed.Change(hole, Spte.Frozen)));
            Assert.Equal(["I15"], bed.Findings(() => bed.Change(hole, Spte.NonPresent, stranger)));
        });
    }

    [Fact, Breaks("I15"), Trait("spec", "I15")]
    public void An_owner_who_stores_something_else_than_he_announced()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        Hpa announced = bed.FileFrame(6);
        SeamRegisters call = SeamRegisters.Call(TdhLeaf.MEM_PAGE_AUG, hole.Gfn.Gpa.Value, bed.Vm.Td!.Tdr.Value, announced.Value);
        bed.Read(() =>
        {
            bed.Change(hole, Spte.Frozen);
            Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], call)));

            // The page is not the file's either: two rules about the same wrong value.
            Assert.Equal(["I15", "I32"], bed.Findings(() => bed.Change(hole, bed.LeafOf(bed.FileFrame(7)))));
        });
    }

    [Fact, Breaks("I15"), Trait("spec", "I15")]
    public void An_entry_that_changed_while_the_module_was_at_work()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        SeamRegisters call = SeamRegisters.Call(TdhLeaf.MEM_PAGE_AUG, hole.Gfn.Gpa.Value, bed.Vm.Td!.Tdr.Value, bed.FileFrame(6).Value);
        SeamRegisters answer = call;
        answer.Rax = TdxStatus.OPERAND_BUSY.Value;
        bed.Word(hole) = Spte.Frozen.Value;
        bed.Read(() =>
        {
            LogicalProcessor lp = bed.Machine.Processors[0];
            bed.Referees.Seamcalls!.Calling(lp, call);
            Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Returned(lp, call, answer)));
            bed.Word(hole) = Spte.NonPresent.Value;
            Assert.Equal(["I15"], bed.Findings(() => bed.Referees.Seamcalls!.Returned(lp, call, answer)));
        });
    }

    [Fact, Breaks("I16"), Trait("spec", "I16")]
    public void A_writable_leaf_that_the_MMU_may_not_write()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapShared(5);
        bed.Fires("I16", bed.AtRest, () => bed.Word(leaf) &= ~Spte.MmuWritable);
    }

    [Fact, Breaks("I16"), Trait("spec", "I16")]
    public void An_MMU_writable_leaf_that_the_host_may_not_write()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        bed.Fires("I16", bed.AtRest, () => bed.Word(leaf) &= ~(Spte.HostWritable | Spte.WritableBit));
    }

    [Fact, Breaks("I17"), Trait("spec", "I17")]
    public void A_leaf_that_loses_host_writable()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        Spte less = new(leaf.Value.Value & ~(Spte.HostWritable | Spte.MmuWritable | Spte.WritableBit | Spte.DirtyBit));
        Assert.Equal(["I17"], bed.Findings(() => bed.Change(leaf, less)));

        // Back again only by a write fault, under mmu_lock.
        Assert.Equal(["I17"], bed.Findings(() => bed.Change(leaf, leaf.Value)));
        bed.Word(leaf) = less.Value;
        Assert.Empty(bed.Findings(() => bed.Read(() => bed.Change(leaf, leaf.Value))));
    }

    [Fact, Breaks("I18"), Trait("spec", "I18")]
    public void A_leaf_that_becomes_another_page_s()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        Assert.Empty(bed.Findings(() => bed.Change(leaf, new Spte(leaf.Value.Value & ~Spte.AccessedBit))));
        Assert.Equal(["I18"], bed.Findings(() => bed.Change(leaf, new Spte(leaf.Value.Value + 0x1000))));
    }
}
