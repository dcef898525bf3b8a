namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// Every check of every memory leaf, by its status, in its place among the checks, without a trace in the module's state.
/// </summary>
public sealed class LeafCheckTests
{
    public static TheoryData<string> Checks() => [.. LeafCheck.All.Select(c => c.ToString())];

    [Theory]
    [MemberData(nameof(Checks))]
    [Trait("spec", "TM07")]
    public void A_check_fails_with_its_status_whatever_a_later_check_would_say_and_changes_nothing(string name)
    {
        LeafCheck check = LeafCheck.Find(name);
        Assert.Equal([check.Answer], SeptResults.Of(check));
    }
}
