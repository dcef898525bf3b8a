using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>Entry values as the kernel's own code produced them (tdp-mmu 2.2, 2.6).</summary>
public sealed class SpteTests
{
    private const ulong Pfn = 0x7ABCD;
    private static readonly SpteFormat Td = new(new MmuOptions { HasMirror = true, AliasBit = AliasBit.Bit47, IgnoreGuestPat = false });
    private static readonly SpteFormat Vm = new(new MmuOptions());

    [Fact]
    [Trait("spec", "I05")]
    public void Fixed_values_are_those_of_the_kernel()
    {
        Assert.Equal(0x8000_0000_0000_0000UL, Spte.NonPresent.Value);
        Assert.Equal(0x8000_0000_0000_05A0UL, Spte.Frozen.Value);
        Assert.False(Spte.Frozen.IsPresent);
        Assert.False(Td.IsMmio(Spte.Frozen) || Vm.IsMmio(Spte.Frozen) || Td.IsMmio(Spte.NonPresent) || Vm.IsMmio(Spte.NonPresent));
    }

    [Fact]
    [Trait("spec", "I08")]
    public void Leaves_and_tables_have_the_golden_values()
    {
        Assert.Equal(0x8000_0000_0000_0907UL | 0x1234_5000, Td.Table(new Hpa(0x1234_5000), adDisabled: false).Value);
        Assert.Equal(0x8010_0000_0000_0807UL | 0x1234_5000, Vm.Table(new Hpa(0x1234_5000), adDisabled: true).Value);
        Assert.Equal(0x8600_0000_7ABC_DB37UL, Leaf(Td).Value);
        Assert.Equal(0x8600_0000_7ABC_DA37UL, Leaf(Td, prefetch: true).Value);
        Assert.Equal(0x8600_0000_7ABC_DB77UL, Leaf(Vm).Value);
        Assert.Equal(0x8600_0000_7AA0_0BF7UL, Vm.Leaf(0, 2, 0x7AA00, Vm.WriteBackType, true, false, false).Value);
    }

    [Theory]
    [InlineData(true, false, true, true, true)]
    [InlineData(true, true, true, false, false)]
    [InlineData(false, false, false, false, false)]
    [Trait("spec", "I16")]
    public void W_needs_MMU_writable_and_that_needs_host_writable(bool hostWritable, bool tracked, bool host, bool mmu, bool w)
    {
        Spte leaf = Vm.Leaf(0, 1, Pfn, Vm.WriteBackType, hostWritable, tracked, false);
        Assert.Equal((host, mmu, w), (leaf.IsHostWritable, leaf.IsMmuWritable, leaf.IsWritable));
        Assert.True(leaf.HoldsWritableRules);
        Assert.False(new Spte(leaf.Value & ~Spte.HostWritable | Spte.MmuWritable).HoldsWritableRules);
        Assert.False(new Spte((leaf.Value & ~Spte.MmuWritable) | Spte.WritableBit).HoldsWritableRules);
    }

    [Fact]
    public void Access_tracking_puts_R_and_X_aside_and_gives_them_back_without_W()
    {
        Spte leaf = Vm.Leaf(Spte.AdDisabled, 1, Pfn, Vm.WriteBackType, true, false, false);
        Spte tracked = leaf.MarkForAccessTracking();
        Assert.True(tracked.IsAccessTracked && tracked.IsPresent && !tracked.IsAccessed);
        Assert.Equal(0UL, tracked.Value & Spte.Rwx);
        Spte back = tracked.RestoreFromAccessTracking();
        Assert.Equal(5UL, back.Value & Spte.Rwx);
        Assert.Equal(0UL, back.Value & Spte.SavedRx);
        Assert.Equal(Leaf(Vm).Value & ~Spte.AccessedBit, Leaf(Vm).MarkForAccessTracking().Value);
    }

    [Fact]
    public void An_atomic_update_is_needed_where_somebody_may_change_the_leaf_without_the_lock()
    {
        Spte leaf = Leaf(Vm);
        Assert.False(leaf.NeedsAtomicUpdate(Level.K4));
        Assert.True(new Spte(leaf.Value & ~Spte.WritableBit).NeedsAtomicUpdate(Level.K4));
        Assert.True(new Spte(leaf.Value & ~Spte.DirtyBit).NeedsAtomicUpdate(Level.K4));
        Assert.True(new Spte(leaf.Value | Spte.AdDisabled).NeedsAtomicUpdate(Level.K4));
        Assert.False(new Spte(leaf.Value & ~Spte.AccessedBit).NeedsAtomicUpdate(Level.K4));
        Assert.False(Spte.Frozen.NeedsAtomicUpdate(Level.K4));
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(0xFFUL)]
    [InlineData(0x7FFFFUL)]
    [InlineData(0x12345UL)]
    public void Mmio_entries_carry_the_page_and_nineteen_bits_of_the_generation(ulong generation)
    {
        foreach (SpteFormat format in new[] { Td, Vm })
        {
            Spte mmio = format.Mmio(new Gfn(0x3001), generation);
            Assert.True(format.IsMmio(mmio) && !mmio.IsPresent);
            Assert.Equal(0x3001UL, mmio.Pfn);
            Assert.True(SpteFormat.IsMmioCurrent(mmio, generation));
            Assert.False(SpteFormat.IsMmioCurrent(mmio, generation ^ 1));
            Assert.False(SpteFormat.IsMmioCurrent(mmio, generation | (1UL << 63)));
        }

        // In a TD the hardware must deliver #VE, in an ordinary VM it must find a misconfiguration.
        Assert.Equal(0UL, Td.Mmio(new Gfn(0x3001), generation).Value & (Spte.SuppressVe | Spte.Rwx));
        Assert.Equal(6UL, Vm.Mmio(new Gfn(0x3001), generation).Value & (Spte.SuppressVe | Spte.Rwx));
    }

    [Fact]
    public void The_kernels_own_mmio_entry_is_reproduced() => Assert.Equal(0x0010_0000_0300_111EUL, Vm.Mmio(new Gfn(0x3001), 0x123).Value);

    private static Spte Leaf(SpteFormat format, bool prefetch = false) => format.Leaf(0, 1, Pfn, format.WriteBackType, true, false, prefetch);
}
