namespace Tdp.Platform;

/// <summary>
/// Simulated time in ticks of 1 ns (decisions section 8). Every logical processor counts its own ticks; a read returns the larger of its own
/// and the last published value and publishes it, so time never runs backwards between processors.
/// </summary>
public sealed class SimClock
{
    /// <summary>Ticks that a VM exit and re-entry cost.</summary>
    public const ulong ExitTicks = 1000;

    /// <summary>Ticks that a SEAMCALL or TDCALL costs.</summary>
    public const ulong ModuleCallTicks = 500;

    private readonly SharedCell<ulong> _published = new("clock");

    /// <summary>The last published time, without publishing.</summary>
    public ulong Peek() => _published.Peek();

    /// <summary>The time on a processor whose own count is <paramref name="own"/>. Linearizes at the successful compare-exchange.</summary>
    public ulong Read(ulong own)
    {
        ulong seen = _published.Read();
        while (own > seen)
        {
            ulong found = _published.CompareExchange(seen, own);
            if (found == seen)
                return own;
            seen = found;
        }

        return seen;
    }
}
