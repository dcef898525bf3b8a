using Tdp.Platform;

namespace Tdp.Tests.Unit.Platform;

public sealed class UnitTests
{
    [Fact]
    public void Levels_count_pages_and_bytes_as_tdp_mmu_1_1_says()
    {
        Assert.Equal([1UL, 512, 262144, 134217728], new[] { 1, 2, 3, 4 }.Select(l => new Level(l).Pages));
        Assert.Equal(1UL << 21, Level.M2.Bytes);
        Assert.Equal(1, Level.M2.Tdx);
        Assert.Equal(Level.G1, Level.FromTdx(2));
    }

    [Fact]
    public void The_worked_page_has_the_indexes_of_tdp_mmu_15()
    {
        const ulong Gfn = 0x123456;
        Assert.Equal([0x056, 0x11A, 4, 0], new[] { Level.K4, Level.M2, Level.G1, Level.G512 }.Select(l => l.IndexOf(Gfn)));
        ulong shared = AliasBit.Bit47.Apply(new Gfn(Gfn), Alias.Shared).Value;
        Assert.Equal(0x8001_2345_6000UL, shared);
        Assert.Equal(256, Level.G512.IndexOf(shared >> 12));
        Assert.Equal(0x8_0000_0000UL, AliasBit.Bit47.GfnMask);
        Assert.Equal(0x80_0000_0000UL, AliasBit.Bit51.GfnMask);
    }

    [Theory]
    [InlineData(47)]
    [InlineData(51)]
    [Trait("spec", "G13")]
    public void An_alias_bit_goes_on_and_comes_off(int number)
    {
        var bit = new AliasBit(number);
        var gfn = new Gfn(0x1234);
        foreach (Alias alias in new[] { Alias.Private, Alias.Shared })
        {
            Gpa gpa = bit.Apply(gfn, alias) + 0x123;
            Assert.Equal(alias, bit.Of(gpa));
            Assert.Equal(gfn, bit.Strip(gpa));
        }

        Assert.Equal(Alias.Shared, AliasBit.None.Of(new Gpa(0x1000)));
    }

    [Fact]
    [Trait("spec", "I11")]
    public void A_frame_number_has_at_most_52_address_bits()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => new Gfn(Gfn.Limit + 1));
        Assert.Equal(Gfn.Limit, new Gfn(Gfn.Limit).Value);
    }

    [Fact]
    public void Ranges_are_half_open()
    {
        var range = GfnRange.Of(new Gfn(10), 5);
        Assert.True(range.Contains(new Gfn(14)));
        Assert.False(range.Contains(new Gfn(15)));
        Assert.False(range.Overlaps(GfnRange.Of(new Gfn(15), 1)));
        Assert.Equal(2UL, range.Intersect(GfnRange.Of(new Gfn(13), 10)).Pages);
        Assert.True(range.Intersect(GfnRange.Of(new Gfn(20), 1)).IsEmpty);
    }
}
