namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// The list of every status that a leaf of the transition table can return. It is made from the two tables, committed beside them, and compared with what
/// the module has answered when every row and every check is driven.
/// </summary>
public sealed class StatusListTests
{
    [Fact]
    public void The_committed_list_is_what_the_tables_give()
    {
        SortedSet<string> wanted = new(StringComparer.Ordinal);
        foreach (SeptRow row in SeptRow.All.Where(r => r.Unreachable.Length == 0 && r.Answer != "WALK"))
            wanted.Add($"{row.Leaf},{row.Answer}");
        foreach (LeafCheck check in LeafCheck.All)
            wanted.Add($"{check.Leaf},{check.Answer}");
        string[] committed = [.. TestData.Lines("sept-statuses.csv")];
        Assert.True(wanted.SequenceEqual(committed, StringComparer.Ordinal), $"sept-statuses.csv should be{Environment.NewLine}leaf,answer{Environment.NewLine}{string.Join(Environment.NewLine, wanted)}");
    }

    // Drives whatever no other test has driven in this process, so that it stands for itself when it runs alone.
    [Fact]
    public void Every_status_in_the_list_comes_from_the_module_and_no_other_does()
    {
        SortedSet<string> seen = new(StringComparer.Ordinal);
        foreach (SeptRow row in SeptRow.All.Where(r => r.Unreachable.Length == 0))
        {
            foreach (string answer in SeptResults.Of(row))
                seen.Add($"{row.Leaf},{answer}");
        }

        foreach (LeafCheck check in LeafCheck.All)
        {
            foreach (string answer in SeptResults.Of(check))
                seen.Add($"{check.Leaf},{answer}");
        }

        Assert.Equal(TestData.Lines("sept-statuses.csv"), seen);
        Assert.True(seen.Count > 250, $"{seen.Count} statuses");
    }
}
