using Tdp.Module;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// The locks of every leaf (tdx-module 7.4), one at a time in the hands of another processor: who needs it alone is busy with any holder, who shares it only with
/// an exclusive one, and the status names the operand. Locks that a leaf does not take are no matter to it.
/// </summary>
public sealed class LeafLockTests
{
    private static readonly string[] s_ofTheTd = ["OP_STATE", "SEPT_TREE", "EPOCH", "RTMR"];
    private static readonly string[] s_ofTheModule = ["KOT", "SYS"];
    private static readonly (string Leaf, string Lock, string Mode, string Answer)[] s_table =
        [.. TestData.Lines("leaf-locks.csv").Select(line => line.Split(',')).Select(c => (c[0], c[1], c[2], c[3]))];

    public static TheoryData<string> Leaves() => [.. s_table.Select(row => row.Leaf).Distinct(StringComparer.Ordinal)];

    [Theory]
    [MemberData(nameof(Leaves))]
    [Trait("spec", "TM06")]
    [Trait("spec", "TM07")]
    public void A_leaf_is_busy_with_exactly_the_locks_of_the_table_and_says_which(string leaf)
    {
        using (LockSituation free = new(leaf))
            Assert.Equal("SUCCESS", free.Call());
        foreach ((_, string name, string mode, string answer) in s_table.Where(row => row.Leaf == leaf))
        {
            Check(leaf, name, exclusive: true, answer);
            if (name is not ("ENTRY" or "CHILD" or "WRITEBACK" or "TDMR"))
                Check(leaf, name, exclusive: false, mode == "X" ? answer : "SUCCESS");
        }
    }

    [Theory]
    [MemberData(nameof(Leaves))]
    public void A_lock_that_is_not_in_the_table_is_no_matter_to_the_leaf(string leaf)
    {
        int others = 0;
        foreach (string name in (string[])[.. s_ofTheTd, .. s_ofTheModule])
        {
            if (s_table.Any(row => row.Leaf == leaf && row.Lock == name))
                continue;
            using LockSituation situation = new(leaf);
            if (s_ofTheTd.Contains(name) && situation.Tdr == 0)
                continue;
            InjectedLock held = situation.Hold(name, exclusive: true)!.Value;
            Assert.True(situation.Call() == "SUCCESS", $"{leaf} with {name} held");

            // A TDR that is gone has taken its locks with it.
            if (situation.Tdr == 0 || situation.Rig.Module.Td(new Tdp.Platform.Hpa(situation.Tdr)) is not null)
                situation.Rig.Module.Release(held);
            others++;
        }

        Assert.True(others > 0, leaf);
    }

    // Without the lock the very same call succeeds: nothing of the lost attempt is in the way, and no lock stays behind (TM06).
    private static void Check(string leaf, string name, bool exclusive, string answer)
    {
        using LockSituation situation = new(leaf);
        string what = $"{leaf} while {name} is held {(exclusive ? "alone" : "shared")}";
        InjectedLock? held = situation.Hold(name, exclusive);
        Assert.True(held is not null, $"{what}: the test could not have the lock");
        Assert.True(situation.Call() is var came && came == answer, $"{what}: {came}, not {answer}");
        situation.Rig.Module.Release(held.Value);
        if (answer != "SUCCESS")
            Assert.True(situation.Call() is "SUCCESS", what);
        Assert.Empty(situation.Rig.Module.StrayLocks(new Tdp.Platform.HpaRange(SeptMachine.Small, 1UL << 30)));
    }
}
