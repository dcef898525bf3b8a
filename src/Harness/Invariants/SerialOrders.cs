namespace Tdp.Harness.Invariants;

/// <summary>A call of a set that ran at once: how to make it on a world, and what it answered.</summary>
/// <typeparam name="TWorld">A module with what its calls need, equal to the one on which the set ran.</typeparam>
/// <param name="Name">For reports.</param>
/// <param name="Make">Makes the call and returns what it answers.</param>
/// <param name="Answer">What it answered when the set ran.</param>
public sealed record ConcurrentCall<TWorld>(string Name, Func<TWorld, TdxStatus> Make, TdxStatus Answer);

/// <summary>
/// TM10: what a set of calls did at once is what some serial order of them does. Every order is tried on a world of its own, so the set must be small (five calls
/// are 120 worlds).
/// </summary>
/// <remarks>
/// A call that answered BUSY lost a race and did nothing, so it takes no place in the order. An interrupted call that is made again until it ends
/// is one call.
/// </remarks>
public static class SerialOrders
{
    /// <summary>Looks for an order that explains what was seen; a finding under TM10 when there is none.</summary>
    /// <param name="fresh">Makes a world as it was before the set; disposed when it is <see cref="IDisposable"/>.</param>
    /// <param name="calls">The set.</param>
    /// <param name="picture">Takes the picture of a world.</param>
    /// <param name="seen">The picture after the set.</param>
    /// <param name="findings">Where to report.</param>
    /// <returns>The names of the calls in the order found; null when no order explains what was seen.</returns>
    public static IReadOnlyList<string>? Check<TWorld>(
        Func<TWorld> fresh, IReadOnlyList<ConcurrentCall<TWorld>> calls, Func<TWorld, ModulePicture> picture, ModulePicture seen, FindingLog findings)
    {
        ArgumentNullException.ThrowIfNull(fresh);
        ArgumentNullException.ThrowIfNull(calls);
        ArgumentNullException.ThrowIfNull(picture);
        ArgumentNullException.ThrowIfNull(seen);
        ArgumentNullException.ThrowIfNull(findings);
        List<ConcurrentCall<TWorld>> effective = [];
        foreach (ConcurrentCall<TWorld> call in calls)
        {
            if (!call.Answer.IsBusy)
                effective.Add(call);
        }

        string nearest = "no order gives these answers";
        foreach (ConcurrentCall<TWorld>[] order in Orders(effective, 0))
        {
            TWorld world = fresh();
            bool answersAlike = true;
            foreach (ConcurrentCall<TWorld> call in order)
                answersAlike = answersAlike && call.Make(world) == call.Answer;
            IReadOnlyList<string> differences = answersAlike ? picture(world).DifferencesTo(seen) : [];
            (world as IDisposable)?.Dispose();
            if (answersAlike && differences.Count == 0)
                return Array.ConvertAll(order, call => call.Name);
            if (answersAlike)
                nearest = $"in the order {string.Join(", ", Array.ConvertAll(order, call => call.Name))}: {differences[0]}";
        }

        findings.Add("TM10", $"no serial order of {string.Join(", ", effective.ConvertAll(call => $"{call.Name} ({call.Answer})"))} gives what was seen; {nearest}");
        return null;
    }

    private static IEnumerable<ConcurrentCall<TWorld>[]> Orders<TWorld>(List<ConcurrentCall<TWorld>> calls, int from)
    {
        if (from >= calls.Count - 1)
        {
            yield return [.. calls];
            yield break;
        }

        for (int i = from; i < calls.Count; i++)
        {
            (calls[from], calls[i]) = (calls[i], calls[from]);
            foreach (ConcurrentCall<TWorld>[] order in Orders(calls, from + 1))
                yield return order;
            (calls[from], calls[i]) = (calls[i], calls[from]);
        }
    }
}
