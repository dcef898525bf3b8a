namespace Tdp.Harness.Scenarios;

/// <summary>Where the memory of a stress world lies, in the guest's frame numbers.</summary>
/// <param name="First">The first page of the main slot, which has a guest_memfd.</param>
/// <param name="Pages">Pages of the main slot.</param>
/// <param name="SpareFirst">The first page of the spare slot, which comes and goes and has no guest_memfd.</param>
/// <param name="SparePages">Pages of the spare slot.</param>
public sealed record StressLayout(Gfn First, int Pages, Gfn SpareFirst, int SparePages)
{
    /// <summary>A layout of <paramref name="pages"/> pages from 1 GiB on, and a spare slot of 64 pages behind them in the same region of 1 GiB.</summary>
    public static StressLayout Of(int pages)
    {
        Gfn first = new(0x40000);
        return new StressLayout(first, pages, first + (((ulong)pages + 1023) & ~511UL), 64);
    }

    /// <summary>The frame number of a page of a program. Shared steps on the last sixteenth go to the spare slot, so that it is in use when it disappears.</summary>
    public Gfn FrameOf(int page, Alias alias)
    {
        int edge = Pages - (Pages / 16);
        return alias is Alias.Shared && page >= edge ? SpareFirst + (ulong)((page - edge) % SparePages) : First + (ulong)page;
    }
}
