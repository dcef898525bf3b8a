namespace Tdp.Host;

/// <summary>The module's counters at one moment, so that a run's own share is a difference. Taken at quiescence.</summary>
internal readonly struct ModuleCounts
{
    private readonly IReadOnlyList<LeafCount>? _counts;

    private ModuleCounts(IReadOnlyList<LeafCount> counts) => _counts = counts;

    /// <summary>Successful 4 KiB accepts so far: the Host maps nothing larger (decisions D04).</summary>
    public long PagesAccepted
    {
        get
        {
            string accept = TdgLeaf.MEM_PAGE_ACCEPT.FullName();
            foreach (LeafCount count in _counts ?? [])
            {
                if (count.IsGuest && count.Leaf == accept && count.Status == TdxStatus.SUCCESS)
                    return count.Times;
            }

            return 0;
        }
    }

    public static ModuleCounts Of(TdxModule? module) => module is null ? default : new ModuleCounts(module.Counts());

    /// <summary>What was added since, host leaves or guest leaves.</summary>
    public List<LeafCount> Since(ModuleCounts before, bool guest)
    {
        var earlier = new Dictionary<(string Leaf, TdxStatus Status), long>();
        foreach (LeafCount count in before._counts ?? [])
        {
            if (count.IsGuest == guest)
                earlier[(count.Leaf, count.Status)] = count.Times;
        }

        var result = new List<LeafCount>();
        foreach (LeafCount count in _counts ?? [])
        {
            long times = count.Times - earlier.GetValueOrDefault((count.Leaf, count.Status));
            if (count.IsGuest == guest && times != 0)
                result.Add(count with { Times = times });
        }

        return result;
    }
}
