using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>PROMOTE, DEMOTE and RELOCATE beyond the transition table: which children may be merged, interruption, competing locks, contents, stale epochs.</summary>
public sealed class SplitAndJoinTests
{
    private static readonly TdxStatus s_conditions = Statuses.Parse("EPT_INVALID_PROMOTE_CONDITIONS|RCX");
    private static readonly TdxStatus s_busy = Statuses.Parse("OPERAND_BUSY|RCX");

    // A free-running AUG or SEPT.ADD locks the entry of its 4 KiB page first and finds out afterwards that the page is part of a larger one. A DEMOTE that wrote over
    // that lock would hand the page to both.
    [Theory]
    [InlineData(SeptState.PENDING, 1)]
    [InlineData(SeptState.PENDING_BLOCKED, 1)]
    [InlineData(SeptState.PENDING_BLOCKED, 2)]
    [Trait("spec", "TM02")]
    [Trait("spec", "TM07")]
    public void DEMOTE_is_busy_while_somebody_has_locked_a_small_entry_of_the_page(SeptState state, int level)
    {
        using SeptScene scene = new(new SceneSetup(state, level, SceneMode.Built));
        ulong table = scene.Rig.Page().Value;
        Hpa inside = new(scene.Page + 0x12_3000);
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.Page, true, inside, level: Level.K4)!.Value;
        ModuleState before = scene.Snapshot();
        Assert.Equal(s_busy, scene.Rig.Call(TdhLeaf.MEM_PAGE_DEMOTE, scene.Operand, scene.Tdr, table));
        Assert.Empty(ModuleState.Differences(before, scene.Snapshot()));
        scene.Rig.Module.Release(held);
        scene.Rig.Must(TdhLeaf.MEM_PAGE_DEMOTE, scene.Operand, scene.Tdr, table);
        Assert.Empty(scene.Broken());
    }

    [Fact]
    [Trait("spec", "TM02")]
    public void PROMOTE_to_1G_is_busy_while_somebody_has_locked_a_small_entry_of_the_range()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.NL_MAPPED, 2, SceneMode.Built, SceneChildren.Pending));
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.Page, true, new Hpa(scene.Page + 0x3FFF_F000), level: Level.K4)!.Value;
        ModuleState before = scene.Snapshot();
        SeamRegisters after = scene.Rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr));
        Assert.Equal((s_busy, 0UL, 0UL), (after.Status, after.Rcx, after.Rdx));
        Assert.Empty(ModuleState.Differences(before, scene.Snapshot()));
        scene.Rig.Module.Release(held);
        scene.Rig.Must(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr);
        Assert.Empty(scene.Broken());
    }

    [Theory]
    [InlineData("pending among mapped")]
    [InlineData("mapped among pending")]
    [InlineData("blocked among mapped")]
    [InlineData("hole")]
    [InlineData("two pages exchanged")]
    [InlineData("range not aligned")]
    [Trait("spec", "TC39")]
    [Trait("spec", "TM07")]
    public void Children_that_are_not_512_alike_leaves_of_one_aligned_range_are_not_merged_and_stay_as_they_are(string difference)
    {
        using SeptScene scene = new(new SceneSetup(SeptState.NL_MAPPED, 1, SceneMode.Untracked));
        ulong large = scene.Rig.LargePage().Value;
        scene.Rig.LargePage();
        ulong first = difference == "range not aligned" ? large + 0x1000 : large;
        bool mapped = difference.EndsWith("mapped", StringComparison.Ordinal);
        int odd = difference.StartsWith("mapped", StringComparison.Ordinal) ? 0 : 300;
        for (int i = 0; i < 512; i++)
        {
            ulong page = difference == "two pages exchanged" && i is 300 or 301 ? first + ((ulong)(601 - i) << 12) : first + ((ulong)i << 12);
            if (difference != "hole" || i != 511)
                scene.Rig.Must(TdhLeaf.MEM_PAGE_AUG, scene.Gpa + ((ulong)i << 12), scene.Tdr, page);
        }

        for (int i = 0; i < 512; i++)
        {
            if (mapped && (i != odd || difference.StartsWith("blocked", StringComparison.Ordinal)))
                scene.Accept(scene.Gpa + ((ulong)i << 12), 0, 1);
        }

        if (difference == "mapped among pending")
            scene.Accept(scene.Gpa, 0, 1);
        if (difference == "blocked among mapped")
            scene.Rig.Must(TdhLeaf.MEM_RANGE_BLOCK, scene.Gpa + (300UL << 12), scene.Tdr);
        scene.Rig.Block(scene.Operand);
        ModuleState before = scene.Snapshot();
        SeamRegisters after = scene.Rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr));
        Assert.Equal((s_conditions, 0UL, 0x8101UL), (after.Status, after.Rcx, after.Rdx));
        Assert.Empty(ModuleState.Differences(before, scene.Snapshot()));
        Assert.Empty(scene.Broken());
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [Trait("spec", "TC40")]
    [Trait("spec", "TC41")]
    public void What_was_split_can_be_put_together_again_and_is_the_same(int level)
    {
        using SeptScene scene = new(new SceneSetup(SeptState.PENDING, level, SceneMode.Untracked));
        ModuleState whole = scene.Snapshot();
        ulong epoch = whole.Tds[scene.Tdr].Epoch;
        scene.Rig.Block(scene.Operand);
        ulong table = scene.Rig.Page().Value;
        scene.Rig.Must(TdhLeaf.MEM_PAGE_DEMOTE, scene.Operand, scene.Tdr, table);
        Assert.Equal(512, scene.Snapshot().Entries.Count(e => e.Key.Level == level - 1 && SeptFormat.StateOf(e.Value) == SeptState.PENDING));
        scene.Rig.Block(scene.Operand);
        Assert.Equal(table, scene.Rig.Must(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr).Rcx);
        SeamRegisters metadata = scene.Rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, scene.Page);
        Assert.Equal((3UL, scene.Tdr, (ulong)level), (metadata.Rcx, metadata.Rdx, metadata.R8));

        // BEPOCH of the large page is the one of its last block before the split: nobody writes it when the parts are joined (tdx-module 11, quirk 10).
        Assert.Equal(epoch, metadata.R9);
        whole.Tds[scene.Tdr] = whole.Tds[scene.Tdr] with { Epoch = epoch + 2 };
        whole.Pages[(scene.Page, level)] = whole.Pages[(scene.Page, level)] with { Bepoch = epoch };
        Assert.Empty(ModuleState.Differences(whole, scene.Snapshot()));
        scene.Rig.Must(TdhLeaf.PHYMEM_PAGE_WBINVD, table);
    }

    [Theory]
    [InlineData(TdhLeaf.MEM_PAGE_PROMOTE, false)]
    [InlineData(TdhLeaf.MEM_PAGE_PROMOTE, true)]
    [InlineData(TdhLeaf.MEM_PAGE_DEMOTE, false)]
    [InlineData(TdhLeaf.MEM_PAGE_DEMOTE, true)]
    [Trait("spec", "TM07")]
    public void A_split_or_a_join_that_an_event_interrupts_has_done_nothing_and_is_done_when_it_is_called_again(TdhLeaf leaf, bool nmi)
    {
        bool split = leaf == TdhLeaf.MEM_PAGE_DEMOTE;
        using SeptScene scene = new(split
            ? new SceneSetup(SeptState.BLOCKED, 1, SceneMode.Tracked)
            : new SceneSetup(SeptState.NL_BLOCKED, 1, SceneMode.Tracked, SceneChildren.Mapped));
        SeamRegisters call = SeamRegisters.Call(leaf, scene.Operand, scene.Tdr, scene.Rig.Page().Value);
        ModuleState before = scene.Snapshot();
        Pend(scene, nmi, true);
        for (int i = 0; i < 3; i++)
        {
            SeamRegisters stopped = scene.Rig.Raw(0, call);
            Assert.Equal(0x8000_0004_0000_0000UL, stopped.Rax);
            Assert.Equal((call.Rcx, call.Rdx, call.R8), (stopped.Rcx, stopped.Rdx, stopped.R8));
            Assert.Empty(ModuleState.Differences(before, scene.Snapshot()));
        }

        // The event is one of processor 0: the call on another one goes through.
        Assert.True(scene.Rig.Raw(2, call).Status.IsSuccess);
        Pend(scene, nmi, false);
        Assert.Empty(scene.Broken());
    }

    private static void Pend(SeptScene scene, bool nmi, bool pending)
    {
        if (nmi)
            scene.Rig.Lp(0).PendingNmi.Write(pending);
        else
            scene.Rig.Lp(0).PendingInterrupt.Write(pending ? 0x31 : -1);
    }

    [Fact]
    public void A_child_that_a_guest_is_accepting_makes_PROMOTE_busy_and_keeps_the_priority_of_the_host()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.NL_MAPPED, 1, SceneMode.Built, SceneChildren.Pending));
        ulong child = scene.Gpa + (77UL << 12);
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.SeptEntry, true, scene.Rig.Tdr, new Gpa(child), Level.K4)!.Value;
        ModuleState expected = scene.Snapshot();
        SeamRegisters after = scene.Rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr));
        Assert.Equal((s_busy, 7UL, 0x8401UL), (after.Status, after.Rcx, after.Rdx));
        expected.Entries[(scene.Tdr, child, 0)] |= SeptFormat.HostPriority;
        Assert.Empty(ModuleState.Differences(expected, scene.Snapshot()));
        scene.Rig.Module.Release(held);
        scene.Rig.Must(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr);
    }

    // The host may split a page that the guest has half accepted; every part waits for ACCEPT again (tdx-module 5.7; I26).
    [Fact]
    [Trait("spec", "TM09")]
    public void A_partly_accepted_large_page_is_split_into_512_that_wait_and_each_is_cleared_when_accepted()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.PENDING, 1, SceneMode.Untracked));
        AcceptSome(scene, 3);
        PhysicalMemory memory = scene.Rig.Machine.Memory;
        for (int i = 0; i < 512; i++)
            memory.Word(scene.Page + ((ulong)i << 12)) = 0xDEAD;

        // SEPT.RD shows the progress in the address, PAGE.REMOVE and DEMOTE hide it (tdx-module 11, quirk 5).
        Assert.Equal(scene.Page | 0x3000 | SeptFormat.Shown(SeptFormat.Word(SeptState.PENDING)), scene.Rig.Must(TdhLeaf.MEM_SEPT_RD, scene.Operand, scene.Tdr).Rcx);
        foreach (TdhLeaf leaf in (TdhLeaf[])[TdhLeaf.MEM_PAGE_REMOVE, TdhLeaf.MEM_PAGE_DEMOTE])
        {
            SeamRegisters refused = scene.Rig.Raw(0, SeamRegisters.Call(leaf, scene.Operand, scene.Tdr, scene.Rig.Page().Value));
            Assert.Equal(Statuses.Parse("GPA_RANGE_NOT_BLOCKED|RCX"), refused.Status);
            Assert.Equal(scene.Page | SeptFormat.Shown(SeptFormat.Word(SeptState.PENDING)), refused.Rcx);
            Assert.Equal(3, scene.Rig.Module.FindSeptEntry(scene.Rig.Tdr, new Gpa(scene.Gpa), Level.M2).AcceptedPages);
        }

        scene.Rig.Block(scene.Operand);
        scene.Rig.Must(TdhLeaf.MEM_PAGE_DEMOTE, scene.Operand, scene.Tdr, scene.Rig.Page().Value);
        scene.Accept(scene.Gpa, 0, 512);
        for (int i = 0; i < 512; i++)
            Assert.Equal(0UL, memory.Word(scene.Page + ((ulong)i << 12)));
        Assert.Empty(scene.Broken());
    }

    [Fact]
    [Trait("spec", "TM09")]
    public void An_interrupted_ACCEPT_of_2M_goes_on_where_it_stopped_and_clears_each_page_once()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.PENDING, 1, SceneMode.Untracked));
        PhysicalMemory memory = scene.Rig.Machine.Memory;
        for (int i = 0; i < 512; i++)
            memory.Word(scene.Page + ((ulong)i << 12)) = 0xDEAD;
        AcceptSome(scene, 5);
        for (int i = 0; i < 512; i++)
            Assert.Equal(i < 5 ? 0UL : 0xDEAD, memory.Word(scene.Page + ((ulong)i << 12)));

        // What the guest may not touch yet could still be written by whoever maps it; the pages that are done are not cleared a second time.
        memory.Word(scene.Page) = 0xBEEF;
        scene.Accept(scene.Gpa, 1, 1);
        Assert.Equal(0xBEEFUL, memory.Word(scene.Page));
        for (int i = 1; i < 512; i++)
            Assert.Equal(0UL, memory.Word(scene.Page + ((ulong)i << 12)));
        Assert.Equal(SeptFormat.Word(SeptState.MAPPED, scene.Page), scene.Snapshot().Entries[(scene.Tdr, scene.Gpa, 1)]);
    }

    [Fact]
    public void Progress_of_ACCEPT_in_the_parts_does_not_keep_them_from_being_joined_to_1G()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.NL_MAPPED, 2, SceneMode.Untracked, SceneChildren.Pending));

        // This scene does not zero, so the progress is put into the entry as an interrupted ACCEPT of page 9 would have.
        scene.Rig.Machine.Memory.Word(scene.Table + (9 * 8)) |= 0x11_7000;
        Assert.Equal(0x117, scene.Rig.Module.FindSeptEntry(scene.Rig.Tdr, new Gpa(scene.Gpa + (9UL << 21)), Level.M2).AcceptedPages);
        scene.Rig.Block(scene.Operand);
        Assert.Equal(scene.Table, scene.Rig.Must(TdhLeaf.MEM_PAGE_PROMOTE, scene.Operand, scene.Tdr).Rcx);
        Assert.Equal(SeptFormat.Word(SeptState.PENDING, SeptMachine.Whole), scene.Snapshot().Entries[(scene.Tdr, scene.Gpa, 2)]);
        Assert.Empty(scene.Broken());
    }

    [Fact]
    [Trait("spec", "TM04")]
    [Trait("spec", "I26")]
    public void A_page_is_not_moved_split_or_joined_under_a_guest_that_may_still_use_it()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.MAPPED, 0, SceneMode.Untracked));
        Vmcs vmcs = scene.Rig.EnterTd(1);
        Assert.True(GuestPhysical.TryTranslate(scene.Rig.Machine, scene.Rig.Lp(1), vmcs, scene.Gpa, AccessKind.Write, out _));
        scene.Rig.Block(scene.Operand);
        ulong target = scene.Rig.Page().Value;
        Assert.Equal(Statuses.Parse("TLB_TRACKING_NOT_DONE|RCX"), scene.Rig.Call(TdhLeaf.MEM_PAGE_RELOCATE, scene.Operand, scene.Tdr, target));

        // The translation is still there and still leads to the page; after the next entry it does not.
        Assert.True(GuestPhysical.TryTranslate(scene.Rig.Machine, scene.Rig.Lp(1), vmcs, scene.Gpa, AccessKind.Write, out ulong before));
        Assert.Equal(scene.Page, before);
        Assert.Empty(scene.Broken());
        scene.Rig.Interrupt(1);
        Assert.Equal(scene.Page, scene.Rig.Must(TdhLeaf.MEM_PAGE_RELOCATE, scene.Operand, scene.Tdr, target).Rcx);
        scene.Rig.EnterTd(1);
        Assert.True(GuestPhysical.TryTranslate(scene.Rig.Machine, scene.Rig.Lp(1), vmcs, scene.Gpa, AccessKind.Write, out ulong after));
        Assert.Equal(target, after);
        Assert.Empty(scene.Broken());
    }

    // ACCEPT of 2 MiB by vCPU 0 that an event stops after so many pages: it is looked for after each.
    private static void AcceptSome(SeptScene scene, int pages)
    {
        Vmcs vmcs = scene.EnterGuest();
        ulong rip = vmcs.State.Rip;
        scene.Rig.Lp(0).PendingInterrupt.Write(0x31);
        for (int i = 0; i < pages; i++)
        {
            vmcs.State[Gpr.Rax] = 6;
            vmcs.State[Gpr.Rcx] = scene.Operand;
            Assert.False(scene.Rig.Serve(0, new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 }).IsValid);
            Assert.Equal((rip, 6UL), (vmcs.State.Rip, vmcs.State[Gpr.Rax]));
        }

        scene.Rig.Lp(0).PendingInterrupt.Write(-1);
        scene.Rig.Interrupt(0);
    }
}
