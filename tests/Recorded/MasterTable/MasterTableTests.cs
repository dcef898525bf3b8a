using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Recorded.MasterTable;

/// <summary>
/// The master table of operations (tdp-mmu 6.1), row by row: which trees an operation changes, how it holds mmu_lock while it does, where its flush comes, whether it gives way. Judged by the events
/// of the primitives, with every kind of root present at once.
/// </summary>
public sealed class MasterTableTests
{
    private static readonly Row[] Table =
    [
        new(1, "zap of a range of frames", Trees.Direct | Trees.DirectSmm, LockMode.Write, FlushRule.BeforeUnlock, Yields: true, FlushesBeforeYield: true,
            () => TableWorld.Ordinary(), w => w.Vm.Memory.AssignNoncoherentDevice(w.Actor, true)),
        new(2, "zap all: the owner's memory is gone", Trees.Direct | Trees.DirectInvalid, LockMode.Write, FlushRule.None, Yields: true, FlushesBeforeYield: false,
            TableWorld.Td, w => w.Vm.Notifier.Release(w.Actor)),
        new(3, "fast zap, front", Trees.None, LockMode.Write, FlushRule.None, Yields: false, FlushesBeforeYield: false,
            EmptyTd, w => w.Vm.Memory.ZapAllFast(w.Actor)),
        new(4, "fast zap, back", Trees.Direct | Trees.DirectInvalid, LockMode.Read, FlushRule.None, Yields: true, FlushesBeforeYield: false,
            TableWorld.Td, w => w.Vm.Memory.ZapAllFast(w.Actor)),
        new(5, "destruction", Trees.Mirror, LockMode.Write, FlushRule.None, Yields: true, FlushesBeforeYield: false,
            TableWorld.Td, w => w.Vm.Destroy(w.Actor)),
        new(6, "MMU notifier", Trees.Direct | Trees.DirectInvalid, LockMode.Write, FlushRule.BeforeUnlock, Yields: true, FlushesBeforeYield: true,
            TableWorld.Td, w => w.Vm.Notifier.InvalidateRangeStart(w.Actor, w.Hva, w.Hva + 0x10000)),
        new(7, "punch hole", Trees.Mirror, LockMode.Write, FlushRule.BeforeUnlock, Yields: true, FlushesBeforeYield: true,
            TableWorld.Td, w => w.File!.PunchHole(w.Actor, 3, 3)),
        new(8, "conversion to shared", Trees.Mirror, LockMode.Write, FlushRule.BeforeUnlock, Yields: true, FlushesBeforeYield: true,
            TableWorld.Td, w => w.Vm.Memory.SetAttributes(w.Actor, 0x3000, 0x3000, 0)),
        new(9, "conversion to private", Trees.Direct | Trees.DirectInvalid, LockMode.Write, FlushRule.BeforeUnlock, Yields: true, FlushesBeforeYield: true,
            TableWorld.Td, w => w.Vm.Memory.SetAttributes(w.Actor, 0x8000, 0x3000, MemoryAttributes.Private)),
        new(10, "deletion of a slot", Trees.Direct | Trees.DirectInvalid | Trees.Mirror, LockMode.Write, FlushRule.BeforeUnlock, Yields: true, FlushesBeforeYield: true,
            TableWorld.Td, w => w.Set(w.Main with { MemorySize = 0 })),
        new(11, "deletion of a slot under the zap-all quirk", Trees.Direct | Trees.DirectInvalid | Trees.DirectSmm, LockMode.Read, FlushRule.None, Yields: true, FlushesBeforeYield: false,
            () => TableWorld.Ordinary(), w => w.Set(w.Main with { MemorySize = 0 })),
        new(12, "aging", Trees.Direct, LockMode.None, FlushRule.None, Yields: false, FlushesBeforeYield: false,
            TableWorld.Td, w => Assert.True(w.Vm.Notifier.ClearYoung(w.Actor, w.Hva, w.Hva + 0x10000))),
        new(13, "write protection of a slot", Trees.Direct, LockMode.Read, FlushRule.AfterUnlock, Yields: true, FlushesBeforeYield: false,
            TableWorld.Td, w => w.Set(w.Plain with { Flags = MemslotFlags.LogDirtyPages })),
        new(14, "clearing Dirty in a slot", Trees.Direct, LockMode.Read, FlushRule.AfterUnlock, Yields: true, FlushesBeforeYield: false,
            () => TableWorld.Ordinary(), w => w.Set(w.Main with { Flags = MemslotFlags.LogDirtyPages })),
        new(15, "harvest of the dirty log", Trees.Direct, LockMode.Write, FlushRule.AfterUnlock, Yields: false, FlushesBeforeYield: false,
            () => Logged(pml: true), w => Assert.Equal(Errno.None, w.Vm.DirtyLog.Get(w.Actor, 0, new ulong[TableWorld.Pages / 64]))),
        new(16, "write protection of one frame", Trees.Direct, LockMode.Write, FlushRule.BeforeUnlock, Yields: false, FlushesBeforeYield: false,
            () => TableWorld.Ordinary(), w => Assert.Equal(Errno.None, w.Vm.WriteTracking.Track(w.Actor, new Gfn(3)))),
        new(17, "eager split", Trees.Direct, LockMode.Read, FlushRule.None, Yields: true, FlushesBeforeYield: false,
            () => TableWorld.Ordinary(isHuge: true), w => Split(w, shared: true)),
        new(18, "huge-page recovery", Trees.Direct, LockMode.Read, FlushRule.BeforeRcuExit, Yields: true, FlushesBeforeYield: true,
            SplitWorld, w => Shared(w, () => w.Vm.Mmu.RecoverHuge(w.Actor, w.Vm.SlotsOf(0).Active.ById(0)!.Mmu))),
        new(19, "NX recovery", Trees.Direct, LockMode.Read, FlushRule.BeforeRcuExit, Yields: true, FlushesBeforeYield: true,
            NxWorld, w => Assert.Equal(3, w.Vm.Mmu.RecoverNxPages(w.Actor, 3, static _ => false))),
        new(20, "a fault", Trees.Mirror, LockMode.Read, FlushRule.None, Yields: false, FlushesBeforeYield: false,
            TableWorld.Td, w => Assert.Equal(FaultResult.Fixed, w.Fault(0, 700, Alias.Private))),
    ];

    public static TheoryData<int> Rows => [.. Table.Select(r => r.Number)];

    [Fact]
    [Trait("spec", "tdp-mmu 6.1")]
    public void Every_row_of_the_master_table_is_here_once() => Assert.Equal(Enumerable.Range(1, 20), Table.Select(r => r.Number));

    [Theory]
    [MemberData(nameof(Rows))]
    [Trait("spec", "tdp-mmu 6.1")]
    [Trait("spec", "I44")]
    [Trait("spec", "I60")]
    public void An_operation_changes_the_trees_of_its_row_under_its_lock_and_flushes_where_its_row_says(int number)
    {
        Row row = Table[number - 1];
        using TableWorld world = row.World();
        OperationTrace trace = world.Record(() => row.Operation(world));
        Trim(trace, number);
        Assert.Equal((row.Name, row.Trees), (row.Name, trace.Changed));
        foreach (TraceStep write in trace.Of("write"))
            Assert.Equal((row.Name, row.Lock), (row.Name, write.Lock));
        Assert.Equal((row.Name, row.Flush), (row.Name, trace.FlushOfLastChange()));
        Assert.Empty(trace.Of("yield"));

        if (number is 3 or 4 or 11)
        {
            // Roots become invalid under mmu_lock write, and the vCPUs are told in the same critical section; the mirror never does.
            Assert.NotEmpty(trace.Of("role"));
            Assert.All(trace.Of("role"), s => Assert.Equal((LockMode.Write, true), (s.Lock, s.Tree is Trees.Direct or Trees.DirectSmm)));
            Assert.NotEmpty(trace.Of("request"));
            Assert.All(trace.Of("request"), s => Assert.Equal(LockMode.Write, s.Lock));
        }
        else if (number == 5)
        {
            Assert.Equal(Trees.Mirror | Trees.Direct, trace.Of("role").Aggregate(Trees.None, (all, s) => all | s.Tree));
        }
        else
        {
            Assert.Empty(trace.Of("role"));
        }

        if (number is 15)
            Assert.All(trace.Of("write"), s => Assert.Equal(1, s.Level));
    }

    [Theory]
    [MemberData(nameof(Rows))]
    [Trait("spec", "tdp-mmu 6.1")]
    [Trait("spec", "tdp-mmu 3.3")]
    [Trait("spec", "I51")]
    public void When_the_processor_is_wanted_an_operation_gives_way_as_its_row_says_and_does_the_same(int number)
    {
        Row row = Table[number - 1];
        using TableWorld world = row.World();
        world.Vm.Mmu.NeedResched = static () => true;
        OperationTrace trace = world.Record(() => row.Operation(world));
        Trim(trace, number);
        Assert.Equal((row.Name, row.Trees), (row.Name, trace.Changed));
        Assert.Equal((row.Name, row.Yields), (row.Name, trace.Of("yield").Any()));
        if (row.FlushesBeforeYield)
            Assert.Equal((row.Name, 0), (row.Name, trace.UnflushedYields()));
        else if (row.Yields)
            Assert.True(trace.UnflushedYields() > 0, $"{row.Name} flushed although its row says that it does not");
        foreach (TraceStep write in trace.Of("write"))
            Assert.Equal((row.Name, row.Lock), (row.Name, write.Lock));
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.1")]
    public void A_notifier_that_may_not_block_does_not_give_way()
    {
        using TableWorld world = TableWorld.Td();
        world.Vm.Mmu.NeedResched = static () => true;
        OperationTrace trace = world.Record(() => world.Vm.Notifier.InvalidateRangeStart(world.Actor, world.Hva, world.Hva + 0x10000, mayBlock: false));
        Assert.Equal(Trees.Direct | Trees.DirectInvalid, trace.Changed);
        Assert.Empty(trace.Of("yield"));
        Assert.Single(trace.Of("flush"));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(6)]
    [InlineData(7)]
    [InlineData(8)]
    [InlineData(9)]
    [InlineData(15)]
    [InlineData(16)]
    [InlineData(18)]
    [Trait("spec", "tdp-mmu 6.1")]
    public void What_was_done_before_is_not_flushed_again(int number)
    {
        Row row = Table[number - 1];
        using TableWorld world = row.World();
        row.Operation(world);
        OperationTrace again = world.Record(() => row.Operation(world));
        Assert.Equal((row.Name, Trees.None, 0), (row.Name, again.Changed, again.Of("flush").Count()));
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.1")]
    public void Arming_the_log_flushes_even_if_nothing_had_to_be_changed()
    {
        using TableWorld world = TableWorld.Td();
        world.Set(new UserMemoryRegion(2, MemslotFlags.None, 0x8_0000_000, 0x1000, world.PlainHva));
        OperationTrace trace = world.Record(() => world.Set(new UserMemoryRegion(2, MemslotFlags.LogDirtyPages, 0x8_0000_000, 0x1000, world.PlainHva)));
        Assert.Equal((Trees.None, FlushRule.AfterUnlock), (trace.Changed, trace.FlushOfLastChange()));
    }

    [Fact]
    [Trait("spec", "I57")]
    [Trait("spec", "tdp-mmu 7.5")]
    public void Zapping_an_invalid_root_alone_needs_no_flush()
    {
        using TableWorld world = TableWorld.Td();
        world.Vm.Mmu.MmuLock.EnterWrite(world.Actor);
        world.Vm.Mmu.InvalidateRoots(world.Actor, RootKinds.Direct);
        world.Vm.Mmu.MmuLock.ExitWrite(world.Actor);
        OperationTrace trace = world.Record(() => world.Vm.Notifier.InvalidateRangeStart(world.Actor, world.Hva, world.Hva + 0x10000));
        Assert.Equal(Trees.DirectInvalid, trace.Changed);
        Assert.Empty(trace.Of("flush"));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "tdp-mmu 6.1")]
    public void An_eager_split_works_under_both_modes_of_the_lock(bool shared)
    {
        using TableWorld world = TableWorld.Ordinary(isHuge: true);
        long huge = world.Vm.Mmu.Statistics.Pages(Level.M2);
        OperationTrace trace = world.Record(() => Split(world, shared));
        Assert.All(trace.Of("write"), s => Assert.Equal((shared ? LockMode.Read : LockMode.Write, 2), (s.Lock, s.Level)));
        Assert.Equal((Trees.Direct, FlushRule.None), (trace.Changed, trace.FlushOfLastChange()));
        Assert.Equal(huge - 3, world.Vm.Mmu.Statistics.Pages(Level.M2));
    }

    [Fact]
    [Trait("spec", "I44")]
    [Trait("spec", "tdp-mmu 6.1")]
    public void Rows_13_to_18_leave_the_mirror_of_a_td_bit_identical()
    {
        using TableWorld world = TableWorld.Td();
        List<ulong> before = world.Content(mirror: true);
        MmuSlot plain = world.Vm.SlotsOf(0).Active.ById(1)!.Mmu;
        OperationTrace trace = world.Record(() =>
        {
            world.Set(world.Plain with { Flags = MemslotFlags.LogDirtyPages });
            Shared(world, () => world.Vm.Mmu.ClearDirtySlot(world.Actor, plain));
            Assert.Equal(Errno.None, world.Vm.DirtyLog.Get(world.Actor, 1, new ulong[TableWorld.PlainPages / 64]));
            Assert.Equal(Errno.None, world.Vm.WriteTracking.Track(world.Actor, new Gfn(TableWorld.PlainSlot)));
            Assert.Equal(Errno.None, world.Vm.WriteTracking.Untrack(world.Actor, new Gfn(TableWorld.PlainSlot)));
            world.Set(world.Plain);
        });
        Assert.Equal(Trees.Direct, trace.Changed);
        Assert.Equal(before, world.Content(mirror: true));

        // The slot with private memory cannot even be asked for.
        Assert.Equal(Errno.EINVAL, world.Vm.Memory.SetUserMemoryRegion(world.Actor, world.Main with { Flags = world.Main.Flags | MemslotFlags.LogDirtyPages }));
        Assert.Equal(Errno.EINVAL, world.Vm.WriteTracking.Track(world.Actor, new Gfn(3)));
    }

    [Fact]
    [Trait("spec", "R31")]
    [Trait("spec", "tdp-mmu 6.1")]
    public void Row_1_would_reach_the_mirror_of_a_td_which_is_why_no_ioctl_leads_there()
    {
        using TableWorld world = TableWorld.Td();
        OperationTrace trace = world.Record(() =>
        {
            Assert.Equal(Errno.None, world.Vm.Memory.AssignNoncoherentDevice(world.Actor, true));
            Assert.Equal(Errno.None, world.Vm.Memory.AssignNoncoherentDevice(world.Actor, false));
        });
        Assert.Equal(Trees.None, trace.Changed);
        OperationTrace misuse = world.Record(() =>
        {
            world.Vm.Mmu.MmuLock.EnterWrite(world.Actor);
            world.Vm.Mmu.ZapLeafs(world.Actor, GfnRange.Of(new Gfn(0), 16));
            world.Vm.Mmu.MmuLock.ExitWrite(world.Actor);
        });
        Assert.Equal(Trees.Mirror | Trees.Direct, misuse.Changed);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.6")]
    public void A_fault_that_replaces_a_table_by_a_leaf_flushes_before_the_lock_is_dropped()
    {
        using TableWorld world = SplitWorld();
        OperationTrace trace = world.Record(() => Assert.Equal(FaultResult.Fixed, world.Fault(0, 3)));
        Assert.Equal((Trees.Direct, FlushRule.BeforeUnlock), (trace.Changed, trace.FlushOfLastChange() == FlushRule.BeforeRcuExit ? FlushRule.BeforeUnlock : trace.FlushOfLastChange()));
        Assert.All(trace.Of("flush"), s => Assert.Equal(LockMode.Read, s.Lock));
    }

    // Row 5 is the last step of what destroying a VM does, row 3 the first of a fast zap.
    private static void Trim(OperationTrace trace, int number)
    {
        if (number == 5)
            trace.From("role", Trees.Direct);
        else if (number == 3)
            trace.Until("request");
    }

    // Nothing is left for the back half of a fast zap, so only its front is seen.
    private static TableWorld EmptyTd()
    {
        TableWorld world = TableWorld.Td();
        world.Vm.Notifier.Release(world.Actor);
        return world;
    }

    private static TableWorld Logged(bool pml)
    {
        TableWorld world = TableWorld.Ordinary(new VmOptions { Kind = VmKind.Default, PageModificationLog = pml });
        world.Set(world.Main with { Flags = MemslotFlags.LogDirtyPages });
        world.Vm.Mmu.MmuLock.EnterWrite(world.Actor);
        world.Vm.Mmu.UnmapAndFlush(world.Actor, GfnRange.Of(new Gfn(0), TableWorld.Pages), AliasFilter.Shared);
        world.Vm.Mmu.MmuLock.ExitWrite(world.Actor);
        world.Map(0, 3, 4, 600);
        return world;
    }

    private static void Split(TableWorld world, bool shared)
    {
        var tables = new MmuVcpu(world.Vm.Mmu, world.Actor, -1);
        MmuSlot slot = world.Vm.SlotsOf(0).Active.ById(0)!.Mmu;
        if (shared)
        {
            Shared(world, () => Assert.True(world.Vm.Mmu.TrySplitHuge(world.Actor, tables, slot, slot.Range, Level.K4, shared: true)));
        }
        else
        {
            world.Vm.Mmu.MmuLock.EnterWrite(world.Actor);
            Assert.True(world.Vm.Mmu.TrySplitHuge(world.Actor, tables, slot, slot.Range, Level.K4, shared: false));
            world.Vm.Mmu.MmuLock.ExitWrite(world.Actor);
        }

        world.Vm.Mmu.DestroyVcpu(tables);
    }

    private static TableWorld SplitWorld()
    {
        TableWorld world = TableWorld.Ordinary(isHuge: true);
        Split(world, shared: true);
        return world;
    }

    private static TableWorld NxWorld()
    {
        TableWorld world = TableWorld.Ordinary(new VmOptions { Kind = VmKind.Default, NxHugePages = true }, isHuge: true);
        foreach (ulong gfn in (ReadOnlySpan<ulong>)[3, 600, 1030])
            Assert.True(world.Fault(0, gfn, access: PfErr.Fetch) is FaultResult.Fixed or FaultResult.Spurious);
        return world;
    }

    private static void Shared(TableWorld world, Action body)
    {
        world.Vm.Mmu.MmuLock.EnterRead(world.Actor);
        body();
        world.Vm.Mmu.MmuLock.ExitRead(world.Actor);
    }

    private sealed record Row(
        int Number, string Name, Trees Trees, LockMode Lock, FlushRule Flush, bool Yields, bool FlushesBeforeYield, Func<TableWorld> World, Action<TableWorld> Operation);
}
