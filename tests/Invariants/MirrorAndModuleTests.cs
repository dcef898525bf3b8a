namespace Tdp.Tests.Invariants;

/// <summary>Mirror and module, broken one rule at a time (tdp-mmu 10.2).</summary>
public sealed class MirrorAndModuleTests
{
    private const ulong StateBits = 0x01F0_0000_0000_0000;
    private const ulong Blocked = 1UL << 55;
    private const ulong PamtTypeMask = 0xFF0000;

    [Fact, Breaks("I19"), Trait("spec", "I19")]
    public void A_mirror_leaf_that_the_module_does_not_have()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        ulong free = bed.SeptWord(bed.Mirrored(6));
        bed.Fires("I19", bed.AtRest, () => bed.SeptWord(leaf) = free);
    }

    [Fact, Breaks("I19"), Trait("spec", "I19")]
    public void A_mirror_leaf_that_is_blocked_in_the_module()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("I19", bed.AtRest, () => bed.SeptWord(leaf) |= Blocked);
    }

    [Fact, Breaks("I20"), Trait("spec", "I20")]
    public void A_Secure_EPT_leaf_that_the_mirror_does_not_have()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("I20", bed.AtRest, () =>
        {
            bed.Word(leaf) = Spte.NonPresent.Value;
            bed.Mmu.Statistics.AddPages(bed.Actor, 1, -1);
        });
    }

    [Fact, Breaks("I21"), Trait("spec", "I21")]
    public void A_mirror_table_with_another_external_page_than_the_Secure_EPT()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("I21", bed.AtRest, () => bed.Record(leaf.Table).External = bed.FileFrame(99).Value);
    }

    [Fact, Breaks("I21"), Trait("spec", "I21")]
    public void A_Secure_EPT_page_that_is_blocked()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView parent = bed.Mirrored(5, 2);
        bed.Fires("I21", bed.AtRest, () =>
        {
            ref ulong word = ref bed.SeptWord(parent);
            word = (word & ~7UL) | Blocked;
        });
    }

    [Fact, Breaks("I22"), Trait("spec", "I22")]
    public void A_mirror_leaf_whose_Secure_EPT_page_is_gone()
    {
        using Bed bed = Bed.Td(2048);
        bed.MapPrivate(5);
        EntryView parent = bed.Mirrored(5, 2);
        ulong free = bed.SeptWord(bed.Mirrored(1024, 2));
        bed.Fires("I22", bed.Sample, () => bed.SeptWord(parent) = free);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "I23")]
    public void A_frozen_entry_may_be_mapped_behind_only_by_who_froze_it(bool isOwn)
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        Actor other = bed.Machine.Actors.Create("other");
        bed.Mmu.MmuLock.EnterRead(other);
        bed.Read(() =>
        {
            bed.Change(hole, Spte.Frozen, isOwn ? bed.Actor : other);

            // What another thread froze has another owner: that is one rule about FROZEN and one about the call.
            Assert.Equal(isOwn ? [] : ["I23"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Aug(bed, 6))));
        });
        bed.Mmu.MmuLock.ExitRead(other);
    }

    [Fact, Breaks("I23"), Trait("spec", "I23")]
    public void A_page_that_is_augmented_behind_an_entry_that_is_not_frozen()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        SeamRegisters call = Aug(bed, 6);
        ref ulong hole = ref bed.Word(bed.Mirrored(6));
        hole = Spte.Frozen.Value;
        Judged(bed, "I23", () => bed.Read(() => Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], call)))));
        hole = Spte.NonPresent.Value;
        bed.Read(() => Assert.Equal(["I23"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], call))));
    }

    [Fact, Breaks("I24"), Trait("spec", "I24")]
    public void A_table_that_is_added_behind_an_entry_that_is_not_frozen()
    {
        using Bed bed = Bed.Td(2048);
        bed.MapPrivate(5);
        SeamRegisters call = SeamRegisters.Call(TdhLeaf.MEM_SEPT_ADD, PageInfo.Of(new Gfn(1024).Gpa, Level.M2), bed.Vm.Td!.Tdr.Value, bed.FileFrame(0).Value);
        ref ulong hole = ref bed.Word(bed.Mirrored(1024, 2));
        hole = Spte.Frozen.Value;
        Judged(bed, "I24", () => bed.Read(() => Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], call)))));
        hole = Spte.NonPresent.Value;
        bed.Read(() => Assert.Equal(["I24"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], call))));
    }

    [Theory]
    [InlineData(TdhLeaf.MEM_RANGE_BLOCK)]
    [InlineData(TdhLeaf.MEM_TRACK)]
    [Trait("spec", "I25")]
    public void A_removal_step_without_mmu_lock_is_seen_at_every_leaf(TdhLeaf leaf)
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Write(() => Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Removal(bed, leaf, 5)))));
        Assert.Equal(["I25"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Removal(bed, leaf, 5))));
    }

    [Fact, Breaks("I25"), Trait("spec", "I25")]
    public void A_block_under_mmu_lock_for_reading_only()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        Judged(bed, "I25", () => bed.Read(() => Assert.Equal(["I25"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Removal(bed, TdhLeaf.MEM_RANGE_BLOCK, 5))))));
    }

    [Fact, Breaks("I26"), Trait("spec", "I26")]
    public void A_page_that_is_removed_without_having_been_blocked()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Write(() => Assert.Equal(["I26"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Removal(bed, TdhLeaf.MEM_PAGE_REMOVE, 5)))));
    }

    [Fact, Breaks("I26"), Trait("spec", "I26")]
    public void A_page_that_is_removed_without_a_track_since_it_was_blocked()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Write(() =>
        {
            Assert.Empty(bed.Findings(() => Call(bed, Removal(bed, TdhLeaf.MEM_TRACK, 5), TdxStatus.SUCCESS)));
            Assert.Empty(bed.Findings(() => Call(bed, Removal(bed, TdhLeaf.MEM_RANGE_BLOCK, 5), TdxStatus.SUCCESS)));
            Assert.Equal(["I26"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Removal(bed, TdhLeaf.MEM_PAGE_REMOVE, 5))));
            Assert.Empty(bed.Findings(() => Call(bed, Removal(bed, TdhLeaf.MEM_TRACK, 5), TdxStatus.SUCCESS)));
            Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Removal(bed, TdhLeaf.MEM_PAGE_REMOVE, 5))));
        });
    }

    [Fact, Breaks("I26"), Trait("spec", "I26")]
    public void A_page_that_is_given_again_before_it_was_written_back()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        Hpa page = leaf.Value.Address;
        Zap(bed, 5);
        bed.Write(() =>
        {
            Call(bed, Removal(bed, TdhLeaf.MEM_RANGE_BLOCK, 5), TdxStatus.SUCCESS);
            Call(bed, Removal(bed, TdhLeaf.MEM_TRACK, 5), TdxStatus.SUCCESS);
            Call(bed, Removal(bed, TdhLeaf.MEM_PAGE_REMOVE, 5), TdxStatus.SUCCESS, page.Value);
        });
        Assert.Equal(["I26"], bed.Findings(bed.AtRest));
        ref ulong hole = ref bed.Word(bed.Mirrored(5));
        hole = Spte.Frozen.Value;
        bed.Read(() => Assert.Equal(["I26"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Aug(bed, 5)))));
        hole = Spte.NonPresent.Value;
        Call(bed, SeamRegisters.Call(TdhLeaf.PHYMEM_PAGE_WBINVD, page.Value | ((ulong)bed.Vm.Td!.Hkid.Value << bed.Machine.Description.HkidShift)), TdxStatus.SUCCESS);
        Assert.Empty(bed.Findings(bed.AtRest));
    }

    [Fact, Breaks("I27"), Trait("spec", "I27")]
    public void A_second_track_while_a_vCPU_is_inside_since_before_the_first()
    {
        using Bed bed = Bed.Td();
        LogicalProcessor host = bed.Machine.Processors[1];
        bed.World.Kernel.Processors.Bind(bed.Actor, 1);
        SeamRegisters enter = SeamRegisters.Call(TdhLeaf.VP_ENTER, bed.Vm.VcpuOf(0).Tdvpr.Value);
        Assert.True(bed.Module.BeginEnter(bed.Machine.Processors[0], ref enter));
        SeamRegisters track = Removal(bed, TdhLeaf.MEM_TRACK, 5);
        bed.Write(() =>
        {
            Assert.Empty(bed.Findings(() => Real(bed, host, track)));
            Assert.Equal(["I27"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(host, track)));
        });
    }

    [Fact, Breaks("I28"), Breaks("I27"), Trait("spec", "I28"), Trait("spec", "I27")]
    public void The_real_module_s_answer_to_a_track_without_a_kick()
    {
        using Bed bed = Bed.Td();
        LogicalProcessor host = bed.Machine.Processors[1];
        bed.World.Kernel.Processors.Bind(bed.Actor, 1);
        SeamRegisters enter = SeamRegisters.Call(TdhLeaf.VP_ENTER, bed.Vm.VcpuOf(0).Tdvpr.Value);
        Assert.True(bed.Module.BeginEnter(bed.Machine.Processors[0], ref enter));
        bed.Write(() =>
        {
            Assert.Empty(bed.Findings(() => Real(bed, host, Removal(bed, TdhLeaf.MEM_TRACK, 5))));
            Assert.Equal(["I27", "I28", "I80"], bed.Findings(() => Real(bed, host, Removal(bed, TdhLeaf.MEM_TRACK, 5))));
        });
    }

    [Fact, Breaks("I28"), Trait("spec", "I28")]
    public void A_track_that_meets_a_vCPU_two_epochs_behind()
    {
        using Bed bed = Bed.Td();
        SeamRegisters track = Removal(bed, TdhLeaf.MEM_TRACK, 5);
        bed.Write(() => Judged(bed, "I28", () => Assert.Empty(bed.Findings(() => Call(bed, track, TdxStatus.OPERAND_BUSY)))));

        // It is an answer that is neither SUCCESS nor BUSY as well.
        bed.Write(() => Assert.Equal(["I28", "I80"], bed.Findings(() => Call(bed, track, TdxStatus.PREVIOUS_TLB_EPOCH_BUSY))));
    }

    [Fact, Breaks("I29"), Trait("spec", "I29")]
    public void BUSY_although_every_vCPU_is_locked_out()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        SeamRegisters block = Removal(bed, TdhLeaf.MEM_RANGE_BLOCK, 5);
        bed.Write(() =>
        {
            Assert.Empty(bed.Findings(() => Call(bed, block, TdxStatus.OPERAND_BUSY)));
            bed.Vm.WaitForSeptZap.Write(true);
            Judged(bed, "I29", () => Assert.Empty(bed.Findings(() => Call(bed, block, TdxStatus.SUCCESS))));
            Assert.Equal(["I29"], bed.Findings(() => Call(bed, block, TdxStatus.OPERAND_BUSY)));
            bed.Vm.WaitForSeptZap.Write(false);
        });
    }

    [Fact, Breaks("I30"), Trait("spec", "I30")]
    public void A_refused_map_that_left_a_count_behind()
    {
        using Bed bed = Bed.Td();
        Fault(bed, busy: true, () => { }, FaultResult.Retry, "I30", []);
        Fault(bed, busy: true, () => bed.Mmu.Statistics.AddPages(bed.Actor, 1, 1), FaultResult.Retry, "I30", ["I30"]);
    }

    [Fact, Breaks("I30"), Trait("spec", "I30")]
    public void A_refused_link_that_lost_its_table()
    {
        using Bed bed = Bed.Td();
        Fault(bed, busy: true, () => bed.Mmu.Tables.Give(bed.Vcpu.TakeTable()), FaultResult.Retry, "I30", []);
        Fault(bed, busy: true, () => bed.Vcpu.TakeTable(), FaultResult.Retry, "I30", ["I30"]);
    }

    [Fact, Breaks("I30"), Breaks("I15"), Trait("spec", "I30"), Trait("spec", "I15")]
    public void A_refused_map_that_does_not_restore_its_entry()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        Fault(bed, busy: false, () => Assert.Equal(["I15"], bed.Findings(() => bed.Read(() =>
        {
            bed.Change(hole, Spte.Frozen);
            Call(bed, Aug(bed, 6), TdxStatus.OPERAND_BUSY);
            bed.Change(hole, bed.LeafOf(bed.FileFrame(6)));
        }))), FaultResult.Retry, "I30", ["I30"]);
    }

    [Fact, Breaks("I31"), Trait("spec", "I31")]
    public void A_page_in_two_mirror_leaves()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);

        // The file cannot have one frame at two indexes.
        bed.Fires("I31", bed.Sample, () => bed.Plant(hole, leaf.Value), "I32");
    }

    [Fact, Breaks("I31"), Trait("spec", "I31")]
    public void A_page_that_the_module_has_already_when_it_is_given()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        SeamRegisters call = Aug(bed, 6);
        bed.Word(bed.Mirrored(6)) = Spte.Frozen.Value;
        bed.Read(() =>
        {
            Judged(bed, "I31", () => Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], call))));
            ref ulong pamt = ref bed.PamtWord(bed.FileFrame(6));
            pamt = (pamt & ~PamtTypeMask) | ((ulong)PageType.REG << 16);
            Assert.Equal(["I31"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], call)));
        });
    }

    [Fact, Breaks("I31"), Breaks("I34"), Trait("spec", "I31"), Trait("spec", "I34")]
    public void A_page_in_a_mirror_leaf_and_in_a_direct_leaf()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.MapShared(6);
        EntryView other = bed.Shared(6);

        // A private page is the module's: the host must not map it for the shared alias whoever else has it.
        bed.Fires("I31", bed.Sample, () => bed.Word(other) = bed.LeafOf(leaf.Value.Address).Value, "I34");
    }

    [Fact, Breaks("I32"), Trait("spec", "I32")]
    public void A_mirror_leaf_of_a_page_that_the_file_does_not_have_there()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        bed.FileFrame(6);
        bed.Fires("I32", bed.Sample, () => bed.Plant(hole, bed.LeafOf(bed.FileFrame(7))));
    }

    [Fact, Breaks("I32"), Trait("spec", "I32")]
    public void A_page_of_another_index_when_it_is_given()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.FileFrame(6);
        bed.Word(bed.Mirrored(6)) = Spte.Frozen.Value;
        SeamRegisters call = SeamRegisters.Call(TdhLeaf.MEM_PAGE_AUG, new Gfn(6).Gpa.Value, bed.Vm.Td!.Tdr.Value, bed.FileFrame(7).Value);
        bed.Read(() => Assert.Equal(["I32"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], call))));
    }

    [Fact, Breaks("I33"), Trait("spec", "I33")]
    public void A_mirror_leaf_outside_every_slot()
    {
        using Bed bed = Bed.Td(700);
        bed.MapPrivate(690);
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, 710 << 12, 0x1000, MemoryAttributes.Private));
        EntryView hole = bed.Mirrored(710);
        bed.Fires("I33", bed.Sample, () => bed.Plant(hole, bed.LeafOf(bed.FileFrame(7))));
    }

    [Fact, Breaks("I34"), Trait("spec", "I34")]
    public void A_shared_mapping_of_a_page_that_the_module_owns()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapShared(5);
        bed.Fires("I34", bed.Sample, () => bed.Word(leaf) = bed.LeafOf(bed.Vm.Td!.Tdr).Value);
    }

    [Fact, Breaks("I34"), Trait("spec", "I34")]
    public void A_word_of_a_private_page_that_the_host_reads()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        SyncEvent read = new(EventKind.Read, ObjectId.Entry(leaf.Value.Pfn, 3), "Test", bed.Actor, false, 7, 7);
        SeamRegisters block = Removal(bed, TdhLeaf.MEM_RANGE_BLOCK, 5);
        bed.Write(() =>
        {
            bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], block);
            Judged(bed, "I34", () => Assert.Empty(bed.Findings(() => bed.Events.Occurred(read))));
            bed.Referees.Seamcalls!.Returned(bed.Machine.Processors[0], block, block with { Rax = TdxStatus.OPERAND_BUSY.Value });
        });
        Assert.Equal(["I34"], bed.Findings(() => bed.Events.Occurred(read)));
    }

    [Fact, Breaks("I35"), Trait("spec", "I35")]
    public void A_call_of_the_host_that_maps_a_pending_page()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        SeamRegisters block = Removal(bed, TdhLeaf.MEM_RANGE_BLOCK, 5);
        bed.Write(() =>
        {
            bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], block);
            ulong pending = bed.SeptWord(leaf);
            bed.SeptWord(leaf) |= Blocked;
            Judged(bed, "I35", () => Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Returned(bed.Machine.Processors[0], block, block with { Rax = 0 }))));
            bed.SeptWord(leaf) = (pending & ~StateBits) | Spte.Rwx;
            Assert.Equal(SeptState.MAPPED, bed.Module.FindSeptEntry(bed.Vm.Td!.Tdr, leaf.Gfn.Gpa, Level.K4).State);
            Assert.Equal(["I35"], bed.Findings(() => bed.Referees.Seamcalls!.Returned(bed.Machine.Processors[0], block, block with { Rax = 0 })));
        });
    }

    [Fact, Breaks("I35"), Trait("spec", "I35")]
    public void A_mirror_entry_that_changes_while_the_guest_accepts()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Feed(EventKind.Mark, ObjectKind.None, string.Empty, 0, 0, 0, "vm-entry");
        Assert.Equal(["I35"], bed.Findings(() => bed.Change(leaf, new Spte(leaf.Value.Value & ~Spte.AccessedBit))));
        bed.Feed(EventKind.Mark, ObjectKind.None, string.Empty, 0, 0, 0, "vm-exit");
        Assert.Empty(bed.Findings(() => bed.Change(leaf, leaf.Value)));
    }

    [Fact, Breaks("I36"), Trait("spec", "I36")]
    public void A_page_that_comes_back_mapped()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        Zap(bed, 5);
        ref ulong hole = ref bed.Word(leaf);
        hole = Spte.Frozen.Value;
        SeamRegisters aug = Aug(bed, 5);
        ulong free = bed.SeptWord(leaf);
        bed.Read(() =>
        {
            bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], aug);
            SeamRegisters done = aug;
            bed.Module.Observer = null;
            bed.Module.Seamcall(bed.Machine.Processors[0], ref done);
            Assert.Equal(TdxStatus.SUCCESS, done.Status);
            Judged(bed, "I36", () => Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Returned(bed.Machine.Processors[0], aug, done))));
        });

        // Once more, with a module that maps at once.
        ulong pending = bed.SeptWord(leaf);
        Zapped(bed, leaf, free);
        bed.Read(() =>
        {
            bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], aug);
            bed.SeptWord(leaf) = (pending & ~StateBits) | Spte.Rwx;
            Assert.Equal(["I36"], bed.Findings(() => bed.Referees.Seamcalls!.Returned(bed.Machine.Processors[0], aug, aug with { Rax = 0 })));
        });
    }

    [Fact, Breaks("TM01"), Trait("spec", "TM01")]
    public void A_page_in_the_Secure_EPT_that_PAMT_has_as_something_else()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Fires("TM01", bed.AtRest, () =>
        {
            ref ulong pamt = ref bed.PamtWord(leaf.Value.Address);
            pamt = (pamt & ~PamtTypeMask) | ((ulong)PageType.EPT << 16);
        });
    }

    private static SeamRegisters Aug(Bed bed, ulong gfn)
        => SeamRegisters.Call(TdhLeaf.MEM_PAGE_AUG, new Gfn(gfn).Gpa.Value, bed.Vm.Td!.Tdr.Value, bed.FileFrame(gfn).Value);

    private static SeamRegisters Removal(Bed bed, TdhLeaf leaf, ulong gfn)
        => leaf is TdhLeaf.MEM_TRACK ? SeamRegisters.Call(leaf, bed.Vm.Td!.Tdr.Value) : SeamRegisters.Call(leaf, new Gfn(gfn).Gpa.Value, bed.Vm.Td!.Tdr.Value);

    // A call that the module does not see: the referee hears of it and of its answer.
    private static void Call(Bed bed, SeamRegisters registers, TdxStatus answer, ulong rcx = 0)
    {
        LogicalProcessor lp = bed.World.Kernel.Processors.Of(bed.Actor);
        bed.Referees.Seamcalls!.Calling(lp, registers);
        bed.Referees.Seamcalls!.Returned(lp, registers, registers with { Rax = answer.Value, Rcx = rcx });
    }

    private static void Real(Bed bed, LogicalProcessor lp, SeamRegisters registers) => bed.Module.Seamcall(lp, ref registers);

    private static void Zap(Bed bed, ulong gfn)
        => bed.Write(() => bed.Mmu.UnmapAndFlush(bed.Actor, GfnRange.Of(new Gfn(gfn), 1), AliasFilter.Private));

    // The page removed again as far as the referee knows, its Secure EPT entry free.
    private static void Zapped(Bed bed, EntryView leaf, ulong free)
    {
        bed.SeptWord(leaf) = free;
        bed.Write(() =>
        {
            Call(bed, Removal(bed, TdhLeaf.MEM_RANGE_BLOCK, leaf.Gfn.Value), TdxStatus.SUCCESS);
            Call(bed, Removal(bed, TdhLeaf.MEM_TRACK, 0), TdxStatus.SUCCESS);
            Call(bed, Removal(bed, TdhLeaf.MEM_PAGE_REMOVE, leaf.Gfn.Value), TdxStatus.SUCCESS, bed.FileFrame(leaf.Gfn.Value).Value);
        });
        Call(bed, SeamRegisters.Call(TdhLeaf.PHYMEM_PAGE_WBINVD, bed.FileFrame(leaf.Gfn.Value).Value), TdxStatus.SUCCESS);
        ref ulong pamt = ref bed.PamtWord(bed.FileFrame(leaf.Gfn.Value));
        pamt &= ~PamtTypeMask;
    }

    private static void Judged(Bed bed, string rule, Action judge)
    {
        long before = bed.Checked.Verdicts.Times(Catalogue.Get(rule));
        judge();
        Assert.True(bed.Checked.Verdicts.Times(Catalogue.Get(rule)) > before, $"{rule} was not judged");
    }

    // A fault of vCPU 0 as the MMU would report it, with something happening inside.
    private static void Fault(Bed bed, bool busy, Action inside, FaultResult result, string rule, string[] expected)
    {
        IFaultObserver referee = new FaultReferee(bed.Checked, isAlone: true);
        if (bed.Mirrored(6).Level != Level.K4)
        {
            bed.MapPrivate(5);
        }

        ref Fault fault = ref bed.Mmu.Decode(bed.Vcpu, new Gfn(6).Gpa, PfErr.Write | PfErr.PrivateAccess);
        bed.Vcpu.TopUp();
        referee.Began(fault);
        if (busy)
        {
            ulong before = bed.Word(bed.Mirrored(6));
            bed.Word(bed.Mirrored(6)) = Spte.Frozen.Value;
            bed.Read(() => Call(bed, Aug(bed, 6), TdxStatus.OPERAND_BUSY));
            bed.Word(bed.Mirrored(6)) = before;
        }

        inside();
        Fault ended = fault;
        Judged(bed, rule, () => Assert.Equal(expected, bed.Findings(() => referee.Ended(ended, result))));
    }
}
