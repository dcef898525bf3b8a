namespace Tdp.Tests.Invariants;

/// <summary>Roots, broken one rule at a time (tdp-mmu 10.3).</summary>
public sealed class RootTests
{
    [Fact, Breaks("I37"), Trait("spec", "I37")]
    public void A_second_valid_direct_root_of_a_TD()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I37", bed.AtRest, () =>
        {
            // A TD has no nested guests; if it had, it would need another root.
            MmuVcpu nested = new(bed.Mmu, bed.Actor, 0) { IsGuestMode = true };
            Assert.True(bed.Mmu.LoadRoot(nested, mirror: false));
        });
    }

    [Fact, Breaks("I37"), Trait("spec", "I37")]
    public void Two_valid_roots_of_one_role()
    {
        using Bed bed = Bed.Ordinary();
        Root first = bed.Direct;
        bed.Write(() => bed.Mmu.InvalidateRoots(bed.Actor, RootKinds.Direct));
        bed.Mmu.FreeObsoleteRoots(bed.Vcpu);
        Assert.True(bed.Mmu.ReloadRoots(bed.Vcpu));
        SharedCell<uint> role = Bed.Field<SharedCell<uint>>(first, "_role");
        ulong owner = ((ulong)bed.Vm.Number << 32) | (uint)first.Number;
        uint before = role.Peek();
        bed.Write(() => Assert.Empty(bed.Findings(() => bed.Feed(EventKind.Write, ObjectKind.Cell, "root_role", owner, before & ~TableRole.Invalid, before))));
        role.Write(before & ~TableRole.Invalid);

        // It came back to life as well, and without the lock.
        Assert.Equal(["I37", "I40"], bed.Findings(() => bed.Feed(EventKind.Write, ObjectKind.Cell, "root_role", owner, before, role.Peek())));
    }

    [Fact, Breaks("I38"), Trait("spec", "I38")]
    public void A_root_with_fewer_references_than_users()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I38", bed.AtRest, () => bed.Direct.References.Dec());
    }

    [Fact, Breaks("I38"), Trait("spec", "I38")]
    public void A_put_too_many_seen_at_the_put()
    {
        using Bed bed = Bed.Td();
        Root root = bed.Mirror;
        ulong owner = ((ulong)bed.Vm.Number << 32) | (uint)root.Number;
        Assert.Empty(bed.Findings(() => bed.Feed(EventKind.Update, ObjectKind.Cell, "root_refs", owner, 3, 2)));
        root.References.Dec();
        Assert.Equal(["I38"], bed.Findings(() => bed.Feed(EventKind.Update, ObjectKind.Cell, "root_refs", owner, 2, 1)));
    }

    [Fact, Breaks("I39"), Trait("spec", "I39")]
    public void A_root_that_left_the_list_while_it_was_valid()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        Root root = bed.Direct;
        bed.Fires("I39", bed.AtRest, () =>
        {
            bed.Vm.Memory.ZapAllFast(bed.Actor);
            bed.Mmu.FreeObsoleteRoots(bed.Vcpu);
            SharedCell<uint> role = Bed.Field<SharedCell<uint>>(root, "_role");
            role.Write(role.Peek() & ~TableRole.Invalid);
        });
    }

    [Fact, Breaks("I39"), Trait("spec", "I39")]
    public void A_root_that_left_the_list_with_something_in_it()
    {
        using Bed bed = Bed.Ordinary();
        EntryView leaf = bed.MapShared(5);
        Root root = bed.Direct;
        EventReferee events = bed.Events;
        bed.Vm.Memory.ZapAllFast(bed.Actor);
        bed.Mmu.FreeObsoleteRoots(bed.Vcpu);
        bed.Machine.Memory.Word(root.Frame.Value) = leaf.Value.Value | Spte.LargeBit;
        Assert.Equal(["I39"], bed.Findings(() => events.Occurred(new SyncEvent(EventKind.Write, ObjectId.Cell("tdp_mmu_roots", (ulong)bed.Vm.Number), "Test", bed.Actor, true, 0, ulong.MaxValue))));
    }

    [Fact, Breaks("I40"), Trait("spec", "I40")]
    public void An_invalid_root_that_becomes_valid_again()
    {
        using Bed bed = Bed.Ordinary();
        bed.MapShared(5);
        Root root = bed.Direct;
        bed.Write(() => bed.Mmu.InvalidateRoots(bed.Actor, RootKinds.Direct));
        SharedCell<uint> role = Bed.Field<SharedCell<uint>>(root, "_role");
        bed.Fires("I40", bed.AtRest, () => role.Write(role.Peek() & ~TableRole.Invalid));
    }

    [Fact, Breaks("I40"), Trait("spec", "I40")]
    public void A_root_that_is_invalidated_without_mmu_lock()
    {
        using Bed bed = Bed.Ordinary();
        Root root = bed.Direct;
        ulong owner = ((ulong)bed.Vm.Number << 32) | (uint)root.Number;
        uint valid = root.PeekRole().Value;
        root.Invalidate();
        bed.Write(() => Assert.Empty(bed.Findings(() => bed.Feed(EventKind.Write, ObjectKind.Cell, "root_role", owner, valid, root.PeekRole().Value))));
        Assert.Equal(["I40"], bed.Findings(() => bed.Feed(EventKind.Write, ObjectKind.Cell, "root_role", owner, valid, root.PeekRole().Value)));
    }

    [Fact, Breaks("I41"), Trait("spec", "I41")]
    public void A_mirror_root_that_is_invalidated_while_a_vCPU_has_it()
    {
        using Bed bed = Bed.Td();
        bed.Fires("I41", bed.AtRest, () => bed.Write(() => bed.Mmu.InvalidateRoots(bed.Actor, RootKinds.Mirror)));
    }

    [Fact, Breaks("I42"), Trait("spec", "I42")]
    public void A_vCPU_with_a_direct_root_but_no_mirror_root()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.Fires("I42", bed.AtRest, () => bed.Vcpu.MirrorRoot = null);
    }

    [Fact, Breaks("I43"), Trait("spec", "I43")]
    public void A_fast_zap_that_leaves_an_old_root_full()
    {
        using Bed bed = Bed.Td();
        bed.MapShared(5);
        OperationReferee operations = bed.Referees.Operations;
        IReadOnlyList<Root> before = operations.RootsToEmpty();
        bed.Vm.Memory.ZapAllFast(bed.Actor);
        Assert.Empty(bed.Findings(() => operations.FastZapped(bed.Actor, before)));
        bed.Mmu.FreeObsoleteRoots(bed.Vcpu);
        Assert.True(bed.Mmu.ReloadRoots(bed.Vcpu));
        bed.MapShared(6);
        before = operations.RootsToEmpty();

        // Half a fast zap: the roots are invalid, and that is all.
        bed.Write(() => bed.Mmu.InvalidateRoots(bed.Actor, RootKinds.Direct));
        Assert.Equal(["I43"], bed.Findings(() => operations.FastZapped(bed.Actor, before)));
    }

    [Fact, Breaks("I43"), Trait("spec", "I43")]
    public void A_vCPU_that_stays_on_an_old_root()
    {
        using Bed bed = Bed.Td();
        bed.MapShared(5);
        OperationReferee operations = bed.Referees.Operations;
        IReadOnlyList<Root> before = operations.RootsToEmpty();
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        LogicalProcessor lp = vcpu.Processor!;
        lp.Running = vcpu.Kick;
        lp.InGuest = true;
        vcpu.Kick.BeginEntry(bed.Actor);

        // A fast zap that tells nobody.
        bed.Write(() => bed.Mmu.InvalidateRoots(bed.Actor, RootKinds.Direct));
        bed.Mmu.ZapInvalidatedRoots(bed.Actor, shared: true);
        Assert.Equal(["I43"], bed.Findings(() => operations.FastZapped(bed.Actor, before)));
    }

    [Theory]
    [InlineData("a fast zap")]
    [InlineData("aging")]
    [Trait("spec", "I44")]
    public void Operations_on_the_shared_alias_leave_the_mirror_alone(string operation)
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        bed.MapShared(6);
        GfnRange range = GfnRange.Of(new Gfn(0), 16);
        IReadOnlyList<EntryView> before = bed.Referees.Operations.Leaves(bed.Actor, range, Alias.Private);
        Assert.Single(before);
        if (operation is "aging")
        {
            bed.Mmu.Age(bed.Actor, range, AliasFilter.Shared);
        }
        else
        {
            bed.Vm.Memory.ZapAllFast(bed.Actor);
        }

        Assert.Empty(bed.Findings(() => bed.Referees.Operations.Untouched(RootRules.I44, bed.Actor, operation, before, range, Alias.Private)));
    }

    [Fact, Breaks("I44"), Trait("spec", "I44")]
    public void An_operation_on_the_shared_alias_that_takes_a_mirror_leaf_along()
    {
        using Bed bed = Bed.Td();
        bed.MapPrivate(5);
        GfnRange range = GfnRange.Of(new Gfn(0), 16);
        IReadOnlyList<EntryView> before = bed.Referees.Operations.Leaves(bed.Actor, range, Alias.Private);
        bed.Write(() => bed.Mmu.UnmapAndFlush(bed.Actor, range, AliasFilter.Both));
        Assert.Equal(["I44"], bed.Findings(() => bed.Referees.Operations.Untouched(RootRules.I44, bed.Actor, "a fast zap", before, range, Alias.Private)));
    }
}
