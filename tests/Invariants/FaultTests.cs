namespace Tdp.Tests.Invariants;

/// <summary>Faults, invalidation and attributes, broken one rule at a time (tdp-mmu 10.5).</summary>
public sealed class FaultTests
{
    [Fact, Breaks("I53"), Trait("spec", "I53")]
    public void A_leaf_that_is_created_during_an_invalidation()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView inside = bed.Mirrored(6);
        EntryView outside = bed.Mirrored(9);
        Begin(bed, 6, 2);
        bed.Read(() =>
        {
            Assert.Empty(bed.Findings(() => Born(bed, outside)));
            Assert.Equal(["I53"], bed.Findings(() => Born(bed, inside)));
        });
    }

    [Fact, Breaks("I53"), Trait("spec", "I53")]
    public void A_page_that_is_augmented_during_an_invalidation()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        SeamRegisters aug = SeamRegisters.Call(TdhLeaf.MEM_PAGE_AUG, new Gfn(6).Gpa.Value, bed.Vm.Td!.Tdr.Value, bed.FileFrame(6).Value);
        bed.Word(bed.Mirrored(6)) = Spte.Frozen.Value;
        bed.Read(() => Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], aug))));
        Begin(bed, 0, 16);
        bed.Read(() => Assert.Equal(["I53"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], aug))));
    }

    [Fact, Breaks("I54"), Trait("spec", "I54")]
    public void A_leaf_from_a_look_up_that_is_older_than_the_last_invalidation()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        EntryView hole = bed.Mirrored(6);
        ref Fault fault = ref bed.Mmu.Decode(bed.Vcpu, new Gfn(6).Gpa, PfErr.Write | PfErr.PrivateAccess);
        fault.Seq = bed.Mmu.Invalidation.Peek().Seq;
        ((IFaultObserver)bed.Referees.Faults).Began(fault);
        bed.Read(() => Assert.Empty(bed.Findings(() => Born(bed, hole))));
        bed.Word(hole) = Spte.NonPresent.Value;
        Begin(bed, 100, 1);
        bed.Write(() => bed.Mmu.Invalidation.End(bed.Actor));
        bed.Read(() => Assert.Equal(["I54"], bed.Findings(() => Born(bed, hole))));
    }

    [Fact, Breaks("I55"), Trait("spec", "I55")]
    public void An_invalidation_that_nobody_ends()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I55", bed.AtRest, () => Begin(bed, 6, 1));
    }

    [Fact, Breaks("I55"), Trait("spec", "I55")]
    public void An_invalidation_that_ends_without_a_range()
    {
        using Bed bed = Bed.Td();
        Begin(bed, 6, 1);
        Assert.Empty(bed.Findings(() => End(bed)));
        bed.Write(() => bed.Mmu.Invalidation.End(bed.Actor));
        bed.Write(() => bed.Mmu.Invalidation.Begin(bed.Actor));
        Assert.Equal(["I55"], bed.Findings(() => End(bed)));
    }

    [Fact, Breaks("I56"), Trait("spec", "I56")]
    public void A_leaf_that_the_start_of_an_invalidation_has_left()
    {
        using Bed bed = Bed.Td();
        bed.MapShared(6);
        GfnRange range = GfnRange.Of(new Gfn(0), 16);
        Assert.Equal(["I56"], bed.Findings(() => bed.Referees.Operations.Emptied(FaultRules.I56, bed.Actor, "the start of an invalidation", range, Alias.Shared)));
        bed.Vm.Notifier.InvalidateRangeStart(bed.Actor, bed.Hva, bed.Hva + (16 << 12));
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Emptied(FaultRules.I56, bed.Actor, "the start of an invalidation", range, Alias.Shared)));
        bed.Vm.Notifier.InvalidateRangeEnd(bed.Actor, bed.Hva, bed.Hva + (16 << 12));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "I57")]
    public void A_translation_that_would_be_flushed_before_it_is_used_is_no_finding(bool isRequested)
    {
        using Bed bed = Bed.Td();
        Touch(bed, 6);
        bed.Word(bed.Shared(6)) = Spte.NonPresent.Value;
        bed.Mmu.Statistics.AddPages(bed.Actor, 1, -1);
        if (isRequested)
        {
            bed.Mmu.FlushRemoteTlbs(bed.Actor);
        }

        Assert.Equal(isRequested ? [] : ["I57"], bed.Findings(bed.AtRest));
    }

    [Fact, Breaks("I57"), Trait("spec", "I57")]
    public void A_translation_that_outlives_its_leaf()
    {
        using Bed bed = Bed.Td();
        Touch(bed, 6);
        bed.Fires("I57", bed.AtRest, () =>
        {
            bed.Word(bed.Shared(6)) = Spte.NonPresent.Value;
            bed.Mmu.Statistics.AddPages(bed.Actor, 1, -1);
        });
    }

    [Fact, Breaks("I57"), Trait("spec", "I57")]
    public void A_private_translation_that_outlives_the_Secure_EPT_leaf()
    {
        using Bed bed = Bed.Td();
        Errno ran = bed.Vm.VcpuOf(0).Run(bed.Actor, new ScriptedGuest(bed.Machine, GuestStep.Accept(5 << 12), GuestStep.Write(5 << 12, 1)));
        Assert.Equal(Errno.None, ran);
        EntryView leaf = bed.Mirrored(5);
        ulong free = bed.SeptWord(bed.Mirrored(6));

        // The mirror has a leaf that the module lacks, too.
        bed.Fires("I57", bed.AtRest, () => bed.SeptWord(leaf) = free, "I19");
    }

    [Fact, Breaks("I58"), Trait("spec", "I58")]
    public void A_conversion_that_left_the_old_alias()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        GfnRange range = GfnRange.Of(new Gfn(4), 4);
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, 4 << 12, 4 << 12, 0));
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Converted(bed.Actor, range, toPrivate: false)));
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, 4 << 12, 4 << 12, MemoryAttributes.Private));
        bed.MapPrivate(5);

        // Only the attributes, as if nobody had unmapped.
        bed.Vm.Attributes!.Store(range, isPrivate: false);
        Assert.Equal(["I58"], bed.Findings(() => bed.Referees.Operations.Converted(bed.Actor, range, toPrivate: false)));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "I58")]
    public void A_conversion_that_left_an_attribute(bool toPrivate)
    {
        using Bed bed = Bed.Td();
        bed.Vm.Attributes!.Store(GfnRange.Of(new Gfn(4), 4), toPrivate);
        bed.Vm.Attributes.Store(GfnRange.Of(new Gfn(6), 1), !toPrivate);
        Assert.Equal(["I58"], bed.Findings(() => bed.Referees.Operations.Converted(bed.Actor, GfnRange.Of(new Gfn(4), 4), toPrivate)));
    }

    [Fact, Breaks("I59"), Trait("spec", "I59")]
    public void A_conversion_that_zaps_its_neighbour()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.MapPrivate(6);
        GfnRange around = GfnRange.Of(new Gfn(0), 16);
        List<EntryView> before = [.. bed.Referees.Operations.Leaves(bed.Actor, around, Alias.Private).Where(e => e.Gfn.Value != 5)];
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, 5 << 12, 0x1000, 0));
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Untouched(FaultRules.I59, bed.Actor, "the conversion", before, around, Alias.Private)));
        bed.Write(() => bed.Mmu.UnmapAndFlush(bed.Actor, GfnRange.Of(new Gfn(6), 1), AliasFilter.Private));
        Assert.Equal(["I59"], bed.Findings(() => bed.Referees.Operations.Untouched(FaultRules.I59, bed.Actor, "the conversion", before, around, Alias.Private)));
    }

    [Fact, Breaks("I60"), Trait("spec", "I60")]
    public void A_notifier_that_takes_a_private_page()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        GfnRange range = GfnRange.Of(new Gfn(0), 16);
        IReadOnlyList<EntryView> before = bed.Referees.Operations.Leaves(bed.Actor, range, Alias.Private);
        bed.Vm.Notifier.InvalidateRangeStart(bed.Actor, bed.Hva, bed.Hva + (16 << 12));
        bed.Vm.Notifier.InvalidateRangeEnd(bed.Actor, bed.Hva, bed.Hva + (16 << 12));
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Untouched(FaultRules.I60, bed.Actor, "a notifier", before, range, Alias.Private)));
        bed.Write(() => bed.Mmu.UnmapAndFlush(bed.Actor, range, AliasFilter.Private));
        Assert.Equal(["I60"], bed.Findings(() => bed.Referees.Operations.Untouched(FaultRules.I60, bed.Actor, "a notifier", before, range, Alias.Private)));
    }

    [Fact, Breaks("I61"), Trait("spec", "I61")]
    public void A_leaf_in_a_deleted_slot()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        GfnRange range = GfnRange.Of(new Gfn(0), bed.Pages);
        Bed.Ok(bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(0, MemslotFlags.None, 0, 0, bed.Hva)));
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Emptied(FaultRules.I61, bed.Actor, "the deletion of a slot", range, Alias.Shared)));

        // A fault that saw the slot before comes too late.
        bed.Mmu.FreeObsoleteRoots(bed.Vcpu);
        Assert.True(bed.Mmu.ReloadRoots(bed.Vcpu));
        bed.Machine.Memory.Word(bed.Direct.Frame.Value) = bed.LeafOf(leaf.Value.Address, 3).Value;
        Assert.Equal(["I61"], bed.Findings(() => bed.Referees.Operations.Emptied(FaultRules.I61, bed.Actor, "the deletion of a slot", range, Alias.Shared)));
    }

    [Fact, Breaks("I62"), Trait("spec", "I62")]
    public void A_leaf_of_a_page_that_the_hole_swallowed()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.MapPrivate(20);
        Memslot slot = bed.Checked.SlotOf(new Gfn(5))!;
        Bed.Ok(bed.File.PunchHole(bed.Actor, 5, 1));
        GfnRange hole = GfnRange.Of(new Gfn(5), 1);
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.HolePunched(bed.Actor, slot, hole)));
        bed.Word(leaf) = leaf.Value.Value;
        Assert.Equal(["I62"], bed.Findings(() => bed.Referees.Operations.HolePunched(bed.Actor, slot, hole)));
    }

    [Fact, Breaks("I62"), Trait("spec", "I62")]
    public void A_Secure_EPT_entry_of_a_page_that_the_hole_swallowed()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.MapPrivate(20);
        Memslot slot = bed.Checked.SlotOf(new Gfn(5))!;
        ulong mapped = bed.SeptWord(leaf);
        Bed.Ok(bed.File.PunchHole(bed.Actor, 5, 1));
        bed.SeptWord(leaf) = mapped;
        Assert.Equal(["I62"], bed.Findings(() => bed.Referees.Operations.HolePunched(bed.Actor, slot, GfnRange.Of(new Gfn(5), 1))));
    }

    [Fact, Breaks("I63"), Trait("spec", "I63")]
    public void A_private_leaf_of_a_shared_page()
    {
        using Bed bed = Bed.Td(700);
        bed.MapPrivate(600);
        bed.Fires("I63", bed.AtRest, () => bed.Vm.Attributes!.Store(GfnRange.Of(new Gfn(600), 1), isPrivate: false));
    }

    [Fact, Breaks("I63"), Trait("spec", "I63")]
    public void A_shared_leaf_of_a_private_page_unless_it_is_being_converted()
    {
        using Bed bed = Bed.Td(700);
        bed.MapShared(600);
        bed.Vm.Attributes!.Store(GfnRange.Of(new Gfn(600), 1), isPrivate: true);
        Assert.Equal(["I63"], bed.Findings(bed.Sample));
        Begin(bed, 600, 1);
        Assert.Empty(bed.Findings(bed.Sample));
    }

    [Fact, Breaks("I64"), Trait("spec", "I64")]
    public void A_memory_fault_exit_that_reports_something_else()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        MemoryFaultInfo right = new(new Gfn(6).Gpa, 4096, IsPrivate: false);
        Gpa address = bed.Mmu.Options.AliasBit.Apply(new Gfn(6), Alias.Shared);
        Assert.Empty(Ended(bed, address, PfErr.Write, FaultResult.BadAddress, right));
        foreach (MemoryFaultInfo wrong in (MemoryFaultInfo[])[right with { Gpa = address }, right with { Gpa = new Gfn(7).Gpa }, right with { Size = 8192 }, right with { IsPrivate = true }])
        {
            Assert.Equal(["I64"], Ended(bed, address, PfErr.Write, FaultResult.BadAddress, wrong));
        }

        // The access was right all the time: the page is shared.
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, 6 << 12, 0x1000, 0));
        Assert.Equal(["I64"], Ended(bed, address, PfErr.Write, FaultResult.BadAddress, right));
    }

    [Fact]
    [Trait("spec", "I64")]
    public void A_host_mapping_that_fails_is_no_memory_fault_exit_and_repeats_no_older_one()
    {
        using Bed bed = Bed.Td();
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        ScriptedGuest guest = new(bed.Machine, GuestStep.Write(bed.Mmu.Options.AliasBit.Apply(new Gfn(6), Alias.Shared).Value, 1), GuestStep.Write(bed.Mmu.Options.AliasBit.Apply(new Gfn(7), Alias.Shared).Value, 1));
        Assert.Equal(Errno.EFAULT, vcpu.Run(bed.Actor, guest));
        Assert.Equal((UserExit.MemoryFault, new Gfn(6).Gpa.Value), (vcpu.RunState.Exit, vcpu.RunState.Gpa));
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, 6 << 12, 2 << 12, 0));
        Bed.Ok(bed.Vm.UserMemory.Write(bed.Actor, bed.Hva + (7 << 12), [1]));
        bed.Vm.UserMemory.Protect(bed.Actor, bed.Hva + (7 << 12), 1);
        Assert.Equal(Errno.EFAULT, vcpu.Run(bed.Actor, guest));
        Assert.Equal(UserExit.None, vcpu.RunState.Exit);
        Assert.Equal(1, vcpu.Statistics.MemoryFaults);
        Assert.Empty(bed.Machine.Findings.All);
    }

    [Fact, Breaks("I65"), Trait("spec", "I65")]
    public void A_mixed_range_that_is_not_flagged()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I65", bed.AtRest, () => bed.Vm.Attributes!.Store(GfnRange.Of(new Gfn(200), 1), isPrivate: false));
    }

    [Fact, Breaks("I65"), Trait("spec", "I65")]
    public void A_conversion_that_ends_without_its_flags()
    {
        using Bed bed = Bed.Td();
        Begin(bed, 200, 1);
        End(bed);
        bed.Write(() => bed.Mmu.Invalidation.End(bed.Actor));
        Assert.Empty(bed.Findings(() => bed.Feed(EventKind.LockRelease, ObjectKind.Lock, "mmu_lock", (ulong)bed.Vm.Number, 0, 0, changed: true)));
        End(bed);
        bed.Vm.Attributes!.Store(GfnRange.Of(new Gfn(200), 1), isPrivate: false);
        Assert.Equal(["I65"], bed.Findings(() => bed.Feed(EventKind.LockRelease, ObjectKind.Lock, "mmu_lock", (ulong)bed.Vm.Number, 0, 0, changed: true)));
    }

    [Fact, Breaks("I66"), Trait("spec", "I66")]
    public void A_huge_leaf_over_a_mixed_range()
    {
        using Bed bed = Bed.Td(1024);
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, 512 << 12, 512 << 12, 0));
        bed.MapShared(5);
        EntryView hole = bed.Shared(512, 2);
        Hpa page = new(bed.Vm.UserMemory.Peek(bed.Hva + (5 << 12))!.Value.Value & ~0x1FFFFFUL);
        bed.Read(() =>
        {
            Assert.Empty(bed.Findings(() => bed.Change(hole, bed.LeafOf(page, 2))));
            bed.Change(hole, Spte.NonPresent);
            bed.Checked.SlotOf(new Gfn(512))!.Mmu.UpdateMixed(GfnRange.Of(new Gfn(513), 1), gfn => gfn.Value == 513);
            Assert.Equal(["I66"], bed.Findings(() => bed.Change(hole, bed.LeafOf(page, 2))));
        });
    }

    [Fact, Breaks("I67"), Trait("spec", "I67")]
    public void SPURIOUS_without_a_leaf()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        Assert.Empty(Ended(bed, new Gfn(5).Gpa, PfErr.Write | PfErr.PrivateAccess, FaultResult.Spurious));
        Assert.Equal(["I67"], Ended(bed, new Gfn(6).Gpa, PfErr.Write | PfErr.PrivateAccess, FaultResult.Spurious));
    }

    [Fact, Breaks("I67"), Trait("spec", "I67")]
    public void SPURIOUS_for_a_write_to_a_leaf_that_forbids_it()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        bed.Word(leaf) &= ~Spte.WritableBit;
        Assert.Empty(Ended(bed, new Gfn(5).Gpa, PfErr.User, FaultResult.Spurious));
        Assert.Equal(["I67"], Ended(bed, new Gfn(5).Gpa, PfErr.Write, FaultResult.Spurious));
    }

    [Theory]
    [InlineData(FaultResult.Emulate)]
    [InlineData(FaultResult.WriteProtected)]
    [Trait("spec", "I68")]
    public void An_answer_that_a_private_fault_never_gets(FaultResult result)
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        Assert.Empty(Ended(bed, bed.Mmu.Options.AliasBit.Apply(new Gfn(6), Alias.Shared), PfErr.Write, result));
        Assert.Equal(["I68"], Ended(bed, new Gfn(5).Gpa, PfErr.Write | PfErr.PrivateAccess, result));
    }

    [Fact, Breaks("I68"), Trait("spec", "I68")]
    public void A_private_fault_on_the_fast_path()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        Assert.Empty(Ended(bed, new Gfn(5).Gpa, PfErr.Write | PfErr.PrivateAccess, FaultResult.Fixed));
        Assert.Equal(["I68"], Ended(bed, new Gfn(5).Gpa, PfErr.Write | PfErr.PrivateAccess, FaultResult.Fixed, inside: () => bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.PfFast)));
    }

    private static void Begin(Bed bed, ulong gfn, ulong pages) => bed.Write(() =>
    {
        bed.Mmu.Invalidation.Begin(bed.Actor);
        bed.Mmu.Invalidation.AddRange(bed.Actor, GfnRange.Of(new Gfn(gfn), pages));
    });

    private static void End(Bed bed) => bed.Feed(EventKind.Write, ObjectKind.Seq, "invalidate", (ulong)bed.Vm.Number, 1, 2, "End");

    // The mirror leaf that a fault would make, in one step.
    private static void Born(Bed bed, EntryView hole) => bed.Change(hole, bed.LeafOf(bed.FileFrame(hole.Gfn.Value)));

    private static void Touch(Bed bed, ulong gfn)
    {
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, gfn << 12, 0x1000, 0));
        Bed.Ok(bed.Vm.VcpuOf(0).Run(bed.Actor, new ScriptedGuest(bed.Machine, GuestStep.Write(bed.Mmu.Options.AliasBit.Apply(new Gfn(gfn), Alias.Shared).Value, 1))));
    }

    // A fault of vCPU 0 that ends with a given answer.
    private static string[] Ended(Bed bed, Gpa address, ulong error, FaultResult result, MemoryFaultInfo reported = default, Action? inside = null)
    {
        IFaultObserver referee = bed.Referees.Faults;
        ref Fault decoded = ref bed.Mmu.Decode(bed.Vcpu, address, error);
        decoded.Seq = bed.Mmu.Invalidation.Peek().Seq;
        Fault fault = decoded;
        bed.Vcpu.MemoryFault = reported;
        referee.Began(fault);
        inside?.Invoke();
        return bed.Findings(() => referee.Ended(fault, result));
    }
}
