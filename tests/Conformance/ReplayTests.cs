using System.IO;
using System.Linq;
using Tdp.Harness.Conformance;

namespace Tdp.Tests.Conformance;

/// <summary>
/// The real TDX module 1.5.01, and the TDP MMU of Linux 6.16.1, were recorded call by call. Ours must give the same answers, registers, injected events, flushes and entries, and the same state
/// after every call.
/// </summary>
public sealed class ReplayTests
{
    [Theory]
    [InlineData("directed", 64, 8621)]
    [InlineData("hostflow", 18, 20780)]
    [InlineData("random-build", 12, 7201)]
    [InlineData("random-churn", 16, 16011)]
    [InlineData("random-life", 24, 24000)]
    [InlineData("random-mem", 32, 28806)]
    [InlineData("random-vcpu", 20, 20005)]
    [Trait("spec", "D33")]
    [Trait("spec", "TM07")]
    public void Every_recorded_answer_of_the_real_module_is_reproduced(string file, int sequences, long calls)
    {
        ReplayRun run = Recording.Replay(Path.Combine(Recording.Folder("module"), file + ".jsonl.gz"));
        AssertClean(run);
        ReplayedFile replayed = Assert.Single(run.Files);
        Assert.Equal("TDX module", replayed.Kind);
        Assert.Equal((sequences, calls, 0L), (replayed.Sequences, replayed.Calls, replayed.Excluded));
    }

    [Theory]
    [InlineData("directed", 60, 2441, 15)]
    [InlineData("random-age", 14, 7389, 0)]
    [InlineData("random-busy", 14, 6957, 0)]
    [InlineData("random-dirty", 14, 7486, 0)]
    [InlineData("random-huge", 14, 7104, 0)]
    [InlineData("random-mixed", 14, 7122, 0)]
    [InlineData("random-private", 14, 13991, 0)]
    [InlineData("random-zap", 14, 8445, 0)]
    [Trait("spec", "I44")]
    [Trait("spec", "I48")]
    [Trait("spec", "I49")]
    [Trait("spec", "I50")]
    public void Every_recorded_operation_of_the_kernel_is_reproduced_to_the_bit(string file, int sequences, long calls, long excluded)
    {
        ReplayRun run = Recording.Replay(Path.Combine(Recording.Folder("mmu"), file + ".jsonl.gz"));
        AssertClean(run);
        ReplayedFile replayed = Assert.Single(run.Files);
        Assert.Equal("TDP MMU", replayed.Kind);
        Assert.Equal((sequences, calls, excluded), (replayed.Sequences, replayed.Calls, replayed.Excluded));
        Assert.Equal(excluded, run.Excluded.Values.Sum());
    }

    [Fact]
    public void Only_records_that_the_recording_says_not_to_compare_are_left_out()
    {
        ReplayRun run = Recording.Replay(Path.Combine(Recording.Folder("mmu"), "directed.jsonl.gz"));
        Assert.Equal(
            [(MmuRules.FailedRemoval, 10L), (MmuRules.SharedMirrorZap, 1L), (MmuRules.SplitMirrorLeaf, 1L), (MmuRules.ChangedMirrorLeaf, 3L)],
            run.Excluded.Select(e => (e.Key, e.Value)));
    }

    [Fact]
    public void The_recordings_are_all_there()
    {
        Assert.Equal(7, Recording.Files("module").Length);
        Assert.Equal(8, Recording.Files("mmu").Length);
        string[] needed = ["TDH.SYS.CONFIG", "TDH.MNG.INIT", "TDH.MEM.PAGE.AUG", "TDH.MEM.PAGE.REMOVE", "TDG.MEM.PAGE.ACCEPT", "TDH.PHYMEM.PAGE.RECLAIM"];
        ReplayRun run = Recording.Replay(Path.Combine(Recording.Folder("module"), "directed.jsonl.gz"));
        Assert.Subset(run.Outcomes.Keys.Select(o => o.Operation).ToHashSet(StringComparer.Ordinal), needed.ToHashSet(StringComparer.Ordinal));
    }

    private static void AssertClean(ReplayRun run)
    {
        string first = string.Join('\n', run.Mismatches.Take(8).Select(m =>
            $"{m.Sequence} #{m.Index} {m.Operation}: {string.Join("; ", m.Answers.Where(a => a.Differs).Select(a => $"{a.What} recorded {a.Recorded}, simulated {a.Simulated}"))}"));
        Assert.True(run.Mismatches.Count == 0, $"{run.Calls} calls, {run.Mismatches.Count} mismatches\n{first}");
    }
}
