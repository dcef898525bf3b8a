using Tdp.Module;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// Every stage 1 row of the transition table, at every level and in every situation to which it applies: an entry is brought into the row's state by real calls,
/// the leaf is called, and status, registers and the whole state of the module afterwards are compared with what the table and the specification say.
/// </summary>
public sealed class SeptRowTests
{
    public static TheoryData<string> Rows() => [.. SeptRow.All.Where(r => r.Unreachable.Length == 0).Select(r => r.ToString())];

    public static TheoryData<string> UnreachableRows() => [.. SeptRow.All.Where(r => r.Unreachable.Length != 0).Select(r => r.ToString())];

    [Theory]
    [MemberData(nameof(Rows))]
    [Trait("spec", "TM02")]
    [Trait("spec", "TM03")]
    [Trait("spec", "TM06")]
    [Trait("spec", "TM07")]
    public void The_entry_changes_as_the_table_says_and_nothing_else_does(string name)
    {
        SeptRow row = SeptRow.Find(name.Split(' ')[0]);
        Assert.NotEmpty(SeptResults.Of(row));
    }

    // What the reason says is shown: the two leaves that make a non-leaf entry refuse level 0, whatever the entry is.
    [Theory]
    [MemberData(nameof(UnreachableRows))]
    public void A_row_that_no_call_leads_to_is_one_whose_state_no_leaf_makes_at_its_level(string name)
    {
        SeptRow row = SeptRow.Find(name.Split(' ')[0]);
        Assert.Equal((0, 0), (row.LevelsUpTo(3).Min(), row.LevelsUpTo(3).Max()));
        Assert.True(row.From is SeptState.NL_MAPPED or SeptState.NL_BLOCKED);
        foreach (SeptState state in (SeptState[])[SeptState.FREE, SeptState.PENDING, SeptState.MAPPED])
        {
            using SeptScene scene = new(new SceneSetup(state, 0, SceneMode.Built));
            TdxStatus refusal = Statuses.Parse("OPERAND_INVALID|RCX");
            Assert.Equal(refusal, scene.Rig.Call(TdhLeaf.MEM_SEPT_ADD, scene.Operand, scene.Tdr, scene.Rig.Page().Value));
            Assert.Equal(refusal, scene.Rig.Call(TdhLeaf.MEM_PAGE_DEMOTE, scene.Operand, scene.Tdr, scene.Rig.Page().Value));
        }
    }

    [Fact]
    public void All_rows_are_here_and_each_is_either_driven_or_named_as_unreachable()
    {
        string[] numbers = [.. SeptRow.All.Where(r => !r.Id.EndsWith('+')).Select(r => r.Id)];
        Assert.Equal(Enumerable.Range(1, SeptRow.Expected).Select(i => i.ToString("000", System.Globalization.CultureInfo.InvariantCulture)), numbers);
        Assert.Equal(["002", "003", "090", "091"], SeptRow.All.Where(r => r.Unreachable.Length != 0).Select(r => r.Id));

        // Combinations of a row with a level and a situation. The only ones that are left out name their reason.
        SeptRowRun[] runs = [.. SeptRow.All.Where(r => r.Unreachable.Length == 0).SelectMany(SeptRowRun.Of)];
        Assert.True(runs.Length > 1200, $"{runs.Length} combinations");
        IGrouping<string?, SeptRowRun>[] left = [.. SeptRow.All.Where(r => r.Unreachable.Length == 0).SelectMany(SeptRowRun.LeftOut).GroupBy(r => r.Setup.Obstacle, StringComparer.Ordinal)];
        Assert.Equal(["an accepted 1 GiB page of a TD under construction needs 262,144 PAGE.ADDs"], left.Select(g => g.Key));
        foreach (SeptRow row in SeptRow.All.Where(r => r.Unreachable.Length == 0))
            Assert.Contains(runs, run => run.Row == row);
    }
}
