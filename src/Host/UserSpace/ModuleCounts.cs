namespace Tdp.Host;

/// <summary>The module's counters at one moment, so that a run's own share is a difference. Taken at quiescence.</summary>
internal readonly struct ModuleCounts
{
    private readonly IReadOnlyDictionary<(int Leaf, ulong Status), long>? _host;
    private readonly IReadOnlyDictionary<(int Leaf, ulong Status), long>? _guest;

    private ModuleCounts(TdxModule module)
    {
        _host = module.SeamcallCounts();
        _guest = module.TdcallCounts();
        PagesAccepted = module.PagesAccepted;
    }

    /// <summary>4 KiB pages accepted so far.</summary>
    public long PagesAccepted { get; }

    public static ModuleCounts Of(TdxModule? module) => module is null ? default : new ModuleCounts(module);

    public List<LeafCount> SeamcallsSince(ModuleCounts before) => Since(_host, before._host, static leaf => ((TdhLeaf)leaf).FullName());

    public List<LeafCount> TdcallsSince(ModuleCounts before) => Since(_guest, before._guest, static leaf => ((TdgLeaf)leaf).FullName());

    private static List<LeafCount> Since(
        IReadOnlyDictionary<(int Leaf, ulong Status), long>? after, IReadOnlyDictionary<(int Leaf, ulong Status), long>? before, Func<int, string> name)
    {
        var counts = new List<LeafCount>();
        if (after is null)
            return counts;
        var keys = new List<(int Leaf, ulong Status)>(after.Keys);
        keys.Sort();
        foreach ((int leaf, ulong status) in keys)
        {
            long count = after[(leaf, status)] - (before?.GetValueOrDefault((leaf, status)) ?? 0);
            if (count != 0)
                counts.Add(new LeafCount(name(leaf), new TdxStatus(status).ToString(), status, count));
        }

        return counts;
    }
}
