using System.Collections;
using System.Reflection;
using System.Threading;

namespace Tdp.Tests.Invariants;

/// <summary>Life cycle and liveness, broken one rule at a time (tdp-mmu 10.6), and the rules of 10.7.</summary>
public sealed class LifeCycleTests
{
    [Fact, Breaks("I69"), Trait("spec", "I69")]
    public void A_table_that_is_reclaimed_while_the_TD_has_its_KeyID()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        SeamRegisters reclaim = SeamRegisters.Call(TdhLeaf.PHYMEM_PAGE_RECLAIM, leaf.Table.ExternalPage.Value);
        Assert.Equal(["I69"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], reclaim)));
        bed.File.Close(bed.Actor);
        bed.Vm.Td!.ReleaseHkid(bed.Actor);
        Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], reclaim)));
    }

    [Fact, Breaks("I69"), Trait("spec", "I69")]
    public void A_leaf_that_is_removed_after_the_KeyID_is_gone()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        SeamRegisters block = SeamRegisters.Call(TdhLeaf.MEM_RANGE_BLOCK, new Gfn(5).Gpa.Value, bed.Vm.Td!.Tdr.Value);
        bed.Write(() => Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], block))));
        bed.Vm.Td.ReleaseHkid(bed.Actor);
        bed.Write(() => Assert.Equal(["I69"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], block))));
    }

    [Theory]
    [InlineData(false, TdhLeaf.MEM_PAGE_AUG)]
    [InlineData(true, TdhLeaf.MEM_PAGE_ADD)]
    [Trait("spec", "I70")]
    public void The_wrong_leaf_for_the_TD_s_state(bool isFinal, TdhLeaf wrong)
    {
        using Bed bed = Bed.Td(finalize: isFinal);
        EntryView top = bed.Mirrored(6);
        bed.Word(top) = Spte.Frozen.Value;
        TdhLeaf right = wrong is TdhLeaf.MEM_PAGE_AUG ? TdhLeaf.MEM_PAGE_ADD : TdhLeaf.MEM_PAGE_AUG;
        bed.Read(() =>
        {
            Assert.DoesNotContain("I70", bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Map(bed, right))));
            Assert.Contains("I70", bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Map(bed, wrong))));
        });
    }

    [Fact, Breaks("I70"), Trait("spec", "I70")]
    public void A_page_that_is_added_after_finalize()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Word(bed.Mirrored(6)) = Spte.Frozen.Value;
        bed.Read(() =>
        {
            Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Map(bed, TdhLeaf.MEM_PAGE_AUG))));
            Assert.Equal(["I70"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], Map(bed, TdhLeaf.MEM_PAGE_ADD))));
        });
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    [Trait("spec", "I71")]
    public void The_books_of_a_VM_that_is_gone(bool keepsFrame)
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        if (keepsFrame)
        {
            Assert.True(bed.Machine.Frames.TryTake(bed.Actor, FrameUse.GuestMemfd, out _));
        }

        bed.Referees.Detach();
        bed.Vm.Destroy(bed.Actor);
        Assert.Equal(keepsFrame ? ["I71"] : [], bed.Findings(() => bed.Referees.AfterTeardown(bed.World.Kernel.Audit(isAfterTeardown: true), bed.World.Kernel)));
    }

    [Fact, Breaks("I71"), Trait("spec", "I71")]
    public void A_page_that_the_module_keeps_without_a_word_in_the_log()
    {
        using Bed bed = Bed.Td();
        EntryView leaf = bed.MapPrivate(5);
        bed.Referees.Detach();
        bed.Vm.Destroy(bed.Actor);
        FrameAudit audit = bed.World.Kernel.Audit(isAfterTeardown: true);
        Assert.Empty(bed.Findings(() => bed.Referees.AfterTeardown(audit, bed.World.Kernel)));

        // The module has it for ever, and nobody has said so.
        bed.PamtWord(leaf.Value.Address) |= (ulong)PageType.REG << 16;
        bed.Machine.Ledger.Leak(leaf.Value.Address, "on purpose");
        Assert.Equal(["I71"], bed.Findings(() => bed.Referees.AfterTeardown(audit, bed.World.Kernel)));
        bed.World.Kernel.Log.Add("kvm", "BUG: the page is leaked");
        Assert.Empty(bed.Findings(() => bed.Referees.AfterTeardown(audit, bed.World.Kernel)));
    }

    [Fact, Breaks("I72"), Trait("spec", "I72")]
    public void A_call_on_a_processor_that_was_never_initialized()
    {
        using Bed bed = Bed.Td();
        SeamRegisters read = SeamRegisters.Call(TdhLeaf.MNG_RD, bed.Vm.Td!.Tdr.Value);
        Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], read)));
        object context = ((IList)Bed.Field<object>(bed.Module, "_lps"))[0]!;
        context.GetType().GetProperty("IsInitialized", BindingFlags.Instance | BindingFlags.Public)!.SetValue(context, false);
        Assert.Equal(["I72"], bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], read)));

        // The machine-check handler may ask at any time, and bring-up has to begin somewhere.
        Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], SeamRegisters.Call(TdhLeaf.PHYMEM_PAGE_RDMD, 0))));
        Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], SeamRegisters.Call(TdhLeaf.SYS_LP_INIT))));
    }

    [Fact, Breaks("I73"), Trait("spec", "I73")]
    public void A_vCPU_that_enters_although_it_could_see_that_the_VM_is_dead()
    {
        using Bed bed = Bed.Td();
        Kick kick = bed.Vm.VcpuOf(0).Kick;
        kick.BeginEntry(bed.Actor);
        Assert.Empty(Enter());

        // Dead between the look and the entry: the kick that follows gets it out again.
        Look();
        bed.Mmu.Death.Declare("on purpose");
        Assert.Empty(bed.Findings(Entry));
        Assert.Equal(["I73"], Enter());
        kick.EndGuest(bed.Actor);

        string[] Enter()
        {
            Look();
            return bed.Findings(Entry);
        }

        void Look() => bed.Feed(EventKind.Read, ObjectKind.Kick, "vcpu0", 0, 0, 0, "TryEnter");

        void Entry() => bed.Feed(EventKind.Mark, ObjectKind.None, string.Empty, 0, 0, 0, "vm-entry");
    }

    [Fact, Breaks("I74"), Trait("spec", "I74")]
    public void A_fault_that_retries_for_ever()
    {
        using Bed bed = Bed.Td();
        LivenessWatch watch = bed.Referees.Watch;
        watch.Remember();
        bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.PfRetry, 1000);

        // As long as anything is finished elsewhere, nobody is stuck; nor is a fault that retried and was fixed.
        Assert.Empty(bed.Findings(() => watch.Judge(isStuck: false)));
        bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.PfFixed);
        Assert.Empty(bed.Findings(() => watch.Judge(isStuck: true)));
        watch.Remember();
        bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.PfRetry, 1000);
        Assert.Equal(["I74"], bed.Findings(() => watch.Judge(isStuck: true)));
    }

    [Fact, Breaks("I75"), Trait("spec", "I75")]
    public void A_slot_deletion_that_waits_for_a_vCPU_that_retries_inside_SRCU()
    {
        using Bed bed = Bed.Td();
        Actor deleter = bed.Machine.Actors.Create("deleter");
        bed.Vm.Srcu.ReadEnter(bed.Actor);
        Assert.Empty(bed.Findings(() => bed.Referees.Watch.Judge(isStuck: true)));
        deleter.Start(bed.Vm.Srcu.Synchronize_For());
        SpinWait.SpinUntil(() => bed.Vm.Srcu.Waiters > 0);
        bed.Referees.Watch.Remember();
        bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.PfRetry, 1000);
        Assert.Equal(["I75"], bed.Findings(() => bed.Referees.Watch.Judge(isStuck: true)));
        bed.Vm.Srcu.ReadExit(bed.Actor);
        deleter.Join();
        Assert.Equal(0, bed.Vm.Srcu.Waiters);
    }

    [Fact, Breaks("I76"), Trait("spec", "I76")]
    public void A_kick_that_a_vCPU_does_not_answer()
    {
        using Bed bed = Bed.Td();
        Kick kick = bed.Vm.VcpuOf(0).Kick;
        Actor kicker = bed.Machine.Actors.Create("kicker");
        kick.BeginEntry(bed.Actor);
        bed.Referees.Watch.Remember();

        // Nobody has told it to leave yet.
        Assert.Empty(bed.Findings(() => bed.Referees.Watch.Judge(isStuck: true)));
        kicker.Start(k => kick.AwaitAck(k, kick.Send(k, wait: true)));
        SpinWait.SpinUntil(() => kick.Mode is TargetMode.Exiting);
        bed.Referees.Watch.Remember();
        Assert.Equal(["I76"], bed.Findings(() => bed.Referees.Watch.Judge(isStuck: true)));
        kick.EndGuest(bed.Actor);
        kicker.Join();
        Assert.Empty(bed.Findings(() => bed.Referees.Watch.Judge(isStuck: true)));
    }

    [Fact, Breaks("I77"), Trait("spec", "I77")]
    public void A_lock_out_that_outlives_its_lock()
    {
        using Bed bed = Bed.Td();
        bed.Fires("I77", bed.AtRest, () => bed.Vm.WaitForSeptZap.Write(true));
    }

    [Fact, Breaks("I77"), Trait("spec", "I77")]
    public void A_lock_out_that_begins_without_the_lock()
    {
        using Bed bed = Bed.Td();
        bed.Write(() => Assert.Empty(bed.Findings(Set)));
        Assert.Equal(["I77"], bed.Findings(Set));

        void Set() => bed.Feed(EventKind.Write, ObjectKind.Cell, "wait_for_sept_zap", (ulong)bed.Vm.Number, 0, 1);
    }

    [Fact, Breaks("I78"), Trait("spec", "I78")]
    public void More_faults_counted_than_taken()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        IFaultObserver referee = bed.Referees.Faults;
        Fault fault = bed.Mmu.Decode(bed.Vcpu, new Gfn(6).Gpa, PfErr.Write | PfErr.PrivateAccess);
        referee.Began(fault);
        Assert.Empty(bed.Findings(() => referee.Ended(fault, FaultResult.Retry)));
        referee.Began(fault);
        bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.PfFixed, 5);
        Assert.Equal(["I78"], bed.Findings(() => referee.Ended(fault, FaultResult.Retry)));
    }

    [Fact, Breaks("I79"), Trait("spec", "I79")]
    public void A_harvest_that_forgets_a_page_that_was_written()
    {
        using Bed bed = Bed.Ordinary(512, flags: MemslotFlags.LogDirtyPages);
        Memslot slot = Logged(bed, out HashSet<Gfn> harvested);
        Assert.Contains(new Gfn(5), harvested);
        Trap(bed, slot);
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Harvested(bed.Actor, slot, g => g.Value == 5, harvested.Contains)));
        Assert.Equal(["I79"], bed.Findings(() => bed.Referees.Operations.Harvested(bed.Actor, slot, g => g.Value is 5 or 9, harvested.Contains)));
    }

    [Fact, Breaks("I79"), Trait("spec", "I79")]
    public void A_harvest_that_leaves_a_page_writable()
    {
        using Bed bed = Bed.Ordinary(512, flags: MemslotFlags.LogDirtyPages);
        Memslot slot = Logged(bed, out HashSet<Gfn> harvested);
        Assert.Equal(["I79"], bed.Findings(() => bed.Referees.Operations.Harvested(bed.Actor, slot, null, harvested.Contains)));
    }

    [Fact, Breaks("I79"), Trait("spec", "I79")]
    public void A_harvest_that_does_not_flush()
    {
        using Bed bed = Bed.Ordinary(512, flags: MemslotFlags.LogDirtyPages);
        Memslot slot = Logged(bed, out HashSet<Gfn> harvested);
        bed.Read(() => bed.Mmu.WriteProtectSlot(bed.Actor, slot.Mmu, Level.K4));
        Assert.Equal(["I79"], bed.Findings(() => bed.Referees.Operations.Harvested(bed.Actor, slot, null, harvested.Contains)));
        bed.Mmu.FlushRemoteTlbs(bed.Actor);
        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Harvested(bed.Actor, slot, null, harvested.Contains)));
    }

    [Fact, Breaks("I80"), Trait("spec", "I80")]
    public void A_call_that_the_module_refuses()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        SeamRegisters aug = Map(bed, TdhLeaf.MEM_PAGE_AUG);
        bed.Word(bed.Mirrored(6)) = Spte.Frozen.Value;
        bed.Read(() =>
        {
            bed.Referees.Seamcalls!.Calling(bed.Machine.Processors[0], aug);
            Assert.Empty(bed.Findings(() => bed.Referees.Seamcalls!.Returned(bed.Machine.Processors[0], aug, aug with { Rax = (TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE).Value })));
            Assert.Equal(["I80"], bed.Findings(() => bed.Referees.Seamcalls!.Returned(bed.Machine.Processors[0], aug, aug with { Rax = TdxStatus.EPT_ENTRY_STATE_INCORRECT.Value })));
        });
    }

    [Fact, Breaks("I81"), Trait("spec", "I81")]
    public void A_warning()
    {
        using Bed bed = Bed.Td();
        Assert.Empty(bed.Findings(bed.AtRest));
        Assert.Equal(["I81"], bed.Findings(() => bed.Mmu.Warn("on purpose")));
        Assert.Equal(["I81"], bed.Findings(bed.AtRest));
    }

    [Fact, Breaks("I81"), Trait("spec", "I81")]
    public void A_VM_that_dies_and_was_not_meant_to()
    {
        using Bed bed = Bed.Td();
        bed.Fires("I81", bed.AtRest, () => bed.Mmu.Death.Declare("on purpose"));
        bed.Checked.IsDeathDeclared = true;
        Assert.Empty(bed.Findings(bed.AtRest));
    }

    [Fact, Breaks("I81"), Trait("spec", "I81")]
    public void A_count_below_zero()
    {
        using Bed bed = Bed.Td();
        bed.Fires("I81", bed.AtRest, () => bed.Mmu.Statistics.Add(bed.Actor, MmuCounter.Zapped, -1));
    }

    [Fact, Breaks("I82"), Trait("spec", "I82")]
    public void A_translation_of_a_frame_that_has_changed_hands()
    {
        using Bed bed = Bed.Td();
        Bed.Ok(bed.Vm.Memory.SetAttributes(bed.Actor, 6 << 12, 0x1000, 0));
        Bed.Ok(bed.Vm.VcpuOf(0).Run(bed.Actor, new ScriptedGuest(bed.Machine, GuestStep.Write(bed.Mmu.Options.AliasBit.Apply(new Gfn(6), Alias.Shared).Value, 1))));
        EntryView leaf = bed.Shared(6);
        bed.Fires("I82", bed.AtRest, () => bed.Machine.Memory.Record(leaf.Value.Pfn).Generation++);
    }

    [Fact, Breaks("I82"), Trait("spec", "I82")]
    public void A_leaf_of_a_frame_that_the_host_has_freed()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        bed.Fires("I82", bed.AtRest, () => bed.Machine.Memory.Record(leaf.Value.Pfn).Use = FrameUse.Free);
    }

    private static SeamRegisters Map(Bed bed, TdhLeaf leaf) => SeamRegisters.Call(leaf, new Gfn(6).Gpa.Value, bed.Vm.Td!.Tdr.Value, bed.FileFrame(6).Value);

    // Page 5 has been written through a real translation, and its bit has been taken from the log.
    private static Memslot Logged(Bed bed, out HashSet<Gfn> harvested)
    {
        Bed.Ok(bed.Vm.VcpuOf(0).Run(bed.Actor, new ScriptedGuest(bed.Machine, GuestStep.Write(5 << 12, 1))));
        Memslot slot = bed.Checked.SlotOf(new Gfn(5))!;
        harvested = [];
        for (ulong word = 0; word < slot.DirtyBitmap!.Length; word++)
        {
            ulong bits = slot.DirtyBitmap[word].Exchange(0);
            for (int bit = 0; bit < 64; bit++)
            {
                if ((bits & (1UL << bit)) != 0)
                {
                    harvested.Add(slot.BaseGfn + ((word * 64) + (ulong)bit));
                }
            }
        }

        return slot;
    }

    private static void Trap(Bed bed, Memslot slot)
    {
        bed.Read(() => bed.Mmu.WriteProtectSlot(bed.Actor, slot.Mmu, Level.K4));
        bed.Mmu.FlushRemoteTlbs(bed.Actor);
    }
}

internal static class Waiting
{
    /// <summary>A thread that waits for every reader of the domain.</summary>
    public static Action<Actor> Synchronize_For(this RcuDomain domain) => actor => domain.Synchronize(actor);
}
