using System.Collections.Concurrent;
using System.Runtime.ExceptionServices;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// What came of each row and each check, driven once per process whoever asks first: the test of the row, or the comparison of the list of statuses with
/// everything that was seen.
/// </summary>
internal static class SeptResults
{
    private static readonly ConcurrentDictionary<string, Lazy<Result>> s_results = new(StringComparer.Ordinal);

    /// <summary>Drives a row if nobody has; throws what it threw. Returns the answers that came, as the tables write them.</summary>
    public static IReadOnlyCollection<string> Of(SeptRow row) => Get($"row {row.Id}", () =>
    {
        SeptRowRun[] runs = [.. SeptRowRun.Of(row)];
        Assert.NotEmpty(runs);
        return [.. runs.Select(run => run.Check()).Distinct(StringComparer.Ordinal)];
    });

    /// <summary>The same of a check.</summary>
    public static IReadOnlyCollection<string> Of(LeafCheck check) =>
        Get($"check {check}", () => [check.IsGuest ? GuestCheckRun.Check(check) : Statuses.Name(LeafCheckRun.Check(check))]);

    private static IReadOnlyCollection<string> Get(string key, Func<IReadOnlyCollection<string>> drive)
    {
        Result result = s_results.GetOrAdd(key, _ => new Lazy<Result>(() => Drive(drive))).Value;
        result.Failure?.Throw();
        return result.Answers;
    }

    private static Result Drive(Func<IReadOnlyCollection<string>> drive)
    {
        try
        {
            return new Result(drive(), null);
        }
        catch (Exception failure) when (failure is not OutOfMemoryException)
        {
            return new Result([], ExceptionDispatchInfo.Capture(failure));
        }
    }

    private sealed record Result(IReadOnlyCollection<string> Answers, ExceptionDispatchInfo? Failure);
}
