namespace Tdp.Harness.Scenarios;

/// <summary>
/// Where the pages of the module's stress lie: small pools, each with a purpose, so that operands drawn at random meet each other often. All of it is in the first TDMR; the second one is
/// initialised late or never.
/// </summary>
internal sealed class FuzzLayout
{
    /// <summary>Candidates for a TD's root page.</summary>
    public const int Tdrs = 3;

    /// <summary>Candidates for a vCPU's root page.</summary>
    public const int Tdvprs = 5;

    /// <summary>Guest memory is named in this many ranges of 2M.</summary>
    public const int GuestRanges = 6;

    /// <summary>Pages with parameters, TDMR_INFOs, sources and shared EPT entries.</summary>
    public const int HostPages = 24;

    private const int FirstTdvpr = 4;
    private const int FirstTdcx = 16;
    private const int Tdcxs = 96;
    private const int FirstSept = 112;
    private const int Septs = 48;
    private const int FirstData = 160;
    private const int DataPages = 96;
    private const int LargeRanges = 6;
    private readonly ulong _base;

    /// <summary>Makes the layout of a machine.</summary>
    public FuzzLayout(MachineDescription machine) => _base = machine.Tdmrs[0].Range.Base;

    /// <summary>Everything that a TD may be given lies here.</summary>
    public HpaRange Pools => new(_base, 32UL << 20);

    /// <summary>First of the host's own pages.</summary>
    public ulong Host => _base + (32UL << 20);

    /// <summary>Page n of the host's.</summary>
    public ulong HostPage(int number) => Host + ((ulong)number << 12);

    /// <summary>Root page candidate n.</summary>
    public ulong Tdr(int number) => _base + ((ulong)number << 12);

    /// <summary>vCPU page candidate n.</summary>
    public ulong Tdvpr(int number) => _base + ((ulong)(FirstTdvpr + number) << 12);

    /// <summary>A page for control structures.</summary>
    public ulong Tdcx(SeedStream random) => Page(FirstTdcx, Tdcxs, random);

    /// <summary>A page for Secure EPTs.</summary>
    public ulong Sept(SeedStream random) => Page(FirstSept, Septs, random);

    /// <summary>A page for guest memory, now and then one inside a large range.</summary>
    public ulong Data(SeedStream random) => random.Below(12) == 0 ? Large(random) + (random.Below(512) << 12) : Page(FirstData, DataPages, random);

    /// <summary>A range of 2M for guest memory.</summary>
    public ulong Large(SeedStream random) => LargeRange((int)random.Below(LargeRanges));

    /// <summary>Range n of 2M.</summary>
    public ulong LargeRange(int number) => _base + (4UL << 20) + ((ulong)number << 21);

    /// <summary>Every page that a TD may have, one after the other and again from the start: root pages come last.</summary>
    public ulong Nth(ulong number)
    {
        ulong small = FirstData + DataPages;
        ulong at = number % (small + LargeRanges);
        return at < LargeRanges ? LargeRange((int)at) : _base + ((small - 1 - (at - LargeRanges)) << 12);
    }

    /// <summary>Any page of any pool.</summary>
    public ulong Any(SeedStream random) => random.Below(8) == 0 ? Large(random) : _base + (random.Below(FirstData + DataPages) << 12);

    /// <summary>A private guest address, aligned to a level of the module's numbering.</summary>
    public static ulong Gpa(SeedStream random, int level) => level switch
    {
        0 => (random.Below(random.Below(8) == 0 ? 3UL : 2) << 21) + (random.Below(6) << 12),
        1 => random.Below(GuestRanges) << 21,
        2 => random.Below(2) << 30,
        _ => 0,
    };

    private ulong Page(int first, int count, SeedStream random) => _base + ((ulong)(first + (int)random.Below((ulong)count)) << 12);
}
