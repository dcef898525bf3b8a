using Tdp.Platform;

namespace Tdp.Tests.Unit.Platform;

public sealed class EptWalkerTests : IDisposable
{
    private const ulong Base = 1UL << 30;
    private const ulong Table = EptEntry.Rwx;
    private const ulong LeafRwx = EptEntry.Rwx | EptEntry.WriteBack | EptEntry.SuppressVe;
    private readonly Machine _machine = new(MachineDescription.Golden15());
    private ulong _next = Base;

    public void Dispose() => _machine.Dispose();

    [Fact]
    public void A_walk_over_four_levels_reaches_the_byte()
    {
        ulong pointer = Map(0x1_2345_6000, LeafRwx | 0x4abc_d000, Level.K4);
        EptWalk walk = EptWalker.Walk(_machine.Memory, pointer, new Gpa(0x1_2345_6789), AccessKind.Write);
        Assert.Equal(EptOutcome.Ok, walk.Outcome);
        Assert.Equal(0x4abc_d789UL, walk.Address.Value);
        Assert.Equal(Level.K4, walk.Level);
    }

    [Theory]
    [InlineData(2, 0x4020_0000UL, 0x0012_3456UL)]
    [InlineData(3, 0x4000_0000UL, 0x1234_5678UL)]
    public void Large_leaves_keep_the_offset_inside_them(int level, ulong frame, ulong offset)
    {
        ulong pointer = Map(0x80_0000_0000, LeafRwx | EptEntry.Large | frame, new Level(level));
        EptWalk walk = EptWalker.Walk(_machine.Memory, pointer, new Gpa(0x80_0000_0000 + offset), AccessKind.Read);
        Assert.Equal(frame + offset, walk.Address.Value);
        Assert.Equal(new Level(level), walk.Level);
    }

    [Fact]
    public void Five_levels_translate_bit_51()
    {
        ulong pointer = Map(1UL << 51, LeafRwx | 0x4000_0000, Level.K4, Level.T256);
        Assert.Equal(EptOutcome.Ok, EptWalker.Walk(_machine.Memory, pointer, new Gpa(1UL << 51), AccessKind.Read).Outcome);
        Assert.Equal(Level.T256, EptWalker.Walk(_machine.Memory, pointer, new Gpa(1UL << 50), AccessKind.Read).Level);
    }

    [Theory]
    [InlineData(EptEntry.SuppressVe, false)]
    [InlineData(0UL, true)]
    [Trait("spec", "td-guest 5.3")]
    public void A_hole_is_convertible_iff_bit_63_is_clear(ulong entry, bool convertible)
    {
        ulong pointer = Map(0x5000, entry, Level.K4);
        EptWalk walk = EptWalker.Walk(_machine.Memory, pointer, new Gpa(0x5000), AccessKind.Read);
        Assert.Equal(EptOutcome.Violation, walk.Outcome);
        Assert.Equal(convertible, walk.IsConvertible);
        Assert.Equal(1UL, walk.Qualification(AccessKind.Read));
    }

    [Theory]
    [InlineData(Table | 0x000F_FFFF_FFFF_F000, 2)]
    [InlineData(Table | 0x0000_0001_0000_0000, 2)]
    [InlineData(Table | EptEntry.Accessed | 0x0008_0000_0000_0000, 2)]
    [InlineData(LeafRwx | 0x000F_FFFF_FFFF_F000, 1)]
    [InlineData(LeafRwx | EptEntry.Large | 0x0000_0000_C000_0000, 2)]
    public void An_entry_that_leads_where_no_memory_is_is_a_misconfiguration(ulong entry, int level)
    {
        ulong pointer = Map(0x5000, entry, new Level(level));
        Assert.Equal(EptOutcome.Misconfiguration, EptWalker.WalkToMemory(_machine.Memory, pointer, new Gpa(0x5000), AccessKind.Read).Outcome);

        // The translation itself knows nothing of where memory is: a device's page is one like others.
        bool isLeaf = level == 1 || (entry & EptEntry.Large) != 0;
        Assert.Equal(isLeaf ? EptOutcome.Ok : EptOutcome.Misconfiguration, EptWalker.Walk(_machine.Memory, pointer, new Gpa(0x5000), AccessKind.Read).Outcome);
    }

    [Fact]
    public void A_pointer_that_leads_where_no_memory_is_is_a_misconfiguration() =>
        Assert.Equal(EptOutcome.Misconfiguration, EptWalker.Walk(_machine.Memory, 0x000F_0000_0000_001E, new Gpa(0x5000), AccessKind.Read).Outcome);

    [Fact]
    public void Rights_are_those_that_every_level_grants()
    {
        ulong pointer = Map(0x5000, (LeafRwx & ~EptEntry.Write) | 0x4000_0000, Level.K4);
        EptWalk walk = EptWalker.Walk(_machine.Memory, pointer, new Gpa(0x5000), AccessKind.Write);
        Assert.Equal(EptOutcome.Violation, walk.Outcome);
        Assert.Equal(2UL | (5UL << 3), walk.Qualification(AccessKind.Write));
        Assert.Equal(EptOutcome.Ok, EptWalker.Walk(_machine.Memory, pointer, new Gpa(0x5000), AccessKind.Fetch).Outcome);
    }

    [Theory]
    [InlineData(EptEntry.Write | EptEntry.WriteBack, 1)]
    [InlineData(EptEntry.Write | EptEntry.Execute | EptEntry.WriteBack, 1)]
    [InlineData(EptEntry.Rwx | (2UL << 3), 1)]
    [InlineData(EptEntry.Rwx | EptEntry.WriteBack | EptEntry.Large | 0x1000, 2)]
    [InlineData(EptEntry.Rwx | (1UL << 3), 2)]
    public void Malformed_entries_are_misconfigurations(ulong entry, int level)
    {
        ulong pointer = Map(0, entry, new Level(level));
        Assert.Equal(EptOutcome.Misconfiguration, EptWalker.Walk(_machine.Memory, pointer, new Gpa(0), AccessKind.Read).Outcome);
    }

    [Fact]
    [Trait("spec", "D07")]
    public void Accessed_and_dirty_are_set_only_when_the_pointer_asks_for_them()
    {
        ulong pointer = Map(0x5000, LeafRwx | 0x4000_0000, Level.K4);
        ulong[] before = Snapshot(pointer, 0x5000);
        EptWalker.Walk(_machine.Memory, pointer, new Gpa(0x5000), AccessKind.Write);
        Assert.Equal(before, Snapshot(pointer, 0x5000));

        EptWalker.Walk(_machine.Memory, pointer | EptPointer.AccessedDirty, new Gpa(0x5000), AccessKind.Read);
        ulong[] read = Snapshot(pointer, 0x5000);
        Assert.All(read, e => Assert.NotEqual(0UL, e & EptEntry.Accessed));
        Assert.Equal(0UL, read[^1] & EptEntry.Dirty);
        EptWalker.Walk(_machine.Memory, pointer | EptPointer.AccessedDirty, new Gpa(0x5000), AccessKind.Write);
        Assert.NotEqual(0UL, Snapshot(pointer, 0x5000)[^1] & EptEntry.Dirty);
    }

    private ulong Map(ulong gpa, ulong leaf, Level at, Level? root = null)
    {
        Level top = root ?? Level.G512;
        Hpa table = NewTable();
        ulong pointer = EptPointer.Make(table, top, accessedDirty: false);
        for (Level level = top; level > at; level = level.Down)
        {
            Hpa child = NewTable();
            _machine.Memory.Table(table)[level.IndexOf(gpa >> 12)] = child.Value | Table;
            table = child;
        }

        _machine.Memory.Table(table)[at.IndexOf(gpa >> 12)] = leaf;
        return pointer;
    }

    private Hpa NewTable()
    {
        var table = new Hpa(_next);
        _next += 4096;
        _machine.Memory.Fill(table, EptEntry.SuppressVe);
        return table;
    }

    private ulong[] Snapshot(ulong pointer, ulong gpa)
    {
        var entries = new List<ulong>();
        Hpa table = EptPointer.RootOf(pointer);
        for (Level level = EptPointer.LevelOf(pointer); level >= Level.K4; level = level.Down)
        {
            ulong entry = _machine.Memory.Table(table)[level.IndexOf(gpa >> 12)];
            entries.Add(entry);
            table = new Hpa(entry & Hpa.Mask);
        }

        return [.. entries];
    }
}
