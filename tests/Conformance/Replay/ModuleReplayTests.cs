using System.IO;
using System.Linq;

namespace Tdp.Tests.Conformance;

/// <summary>
/// The real TDX module 1.5.01 was recorded call by call. Ours must give the same statuses, registers, injected events, flushes, and the same state of TDs, vCPUs,
/// Secure EPT and PAMT after every call. Sequences that use a leaf we do not have would be listed in <see cref="Skipped"/>; there are none.
/// </summary>
public sealed class ModuleReplayTests
{
    private static readonly string s_folder = Path.Combine(AppContext.BaseDirectory, "data", "module");

    /// <summary>Operations that are recorded and not implemented.</summary>
    private static readonly string[] Skipped = [];

    public static TheoryData<string> Files() => [.. Directory.GetFiles(s_folder, "*.jsonl.gz").Select(f => Path.GetFileName(f)!).Order(StringComparer.Ordinal)];

    [Theory]
    [MemberData(nameof(Files))]
    [Trait("spec", "D33")]
    [Trait("spec", "TM07")]
    public void Every_recorded_answer_of_the_real_module_is_reproduced(string file)
    {
        TraceReplay replay = new();
        replay.Run(Path.Combine(s_folder, file));
        string first = string.Join(Environment.NewLine, replay.Mismatches.Take(8).Select(m => $"{m.Sequence} #{m.Index} {m.Operation}: {m.What}{Environment.NewLine}    {m.Line}"));
        Assert.True(replay.Mismatches.Count == 0, $"{replay.Summary()}{Environment.NewLine}{first}");
        Assert.True(replay.Calls > 5000, $"only {replay.Calls} calls were compared");
        Assert.DoesNotContain(replay.Operations.Keys, operation => Skipped.Contains(operation));
    }

    [Fact]
    public void The_traces_cover_the_whole_life_of_a_TD()
    {
        Assert.True(Files().Count >= 7, $"{Files().Count} trace files in {s_folder}");
        string[] needed = ["TDH.SYS.CONFIG", "TDH.MNG.INIT", "TDH.MEM.PAGE.AUG", "TDH.MEM.PAGE.REMOVE", "TDG.MEM.PAGE.ACCEPT", "TDH.PHYMEM.PAGE.RECLAIM"];
        HashSet<string> seen = [.. TraceLine.Read(Path.Combine(s_folder, "directed.jsonl.gz")).Where(l => !l.IsHeader).Select(l => l.Operation)];
        Assert.Subset(seen, needed.ToHashSet());
    }
}
