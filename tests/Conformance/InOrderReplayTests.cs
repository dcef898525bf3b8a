using System.IO;
using System.Linq;
using Tdp.Harness.Conformance;

namespace Tdp.Tests.Conformance;

/// <summary>The module's calls take their usual locks together where they can. The real module's answers hold as well when they take them one by one.</summary>
public sealed class InOrderReplayTests
{
    [Theory]
    [InlineData("directed")]
    [InlineData("hostflow")]
    [InlineData("random-build")]
    [InlineData("random-churn")]
    [InlineData("random-life")]
    [InlineData("random-mem")]
    [InlineData("random-vcpu")]
    [Trait("spec", "D33")]
    [Trait("spec", "TM07")]
    public void Calls_that_take_their_locks_one_by_one_answer_as_the_real_module_did(string file)
    {
        using TraceReader reader = TraceReader.Open(Path.Combine(Recording.Folder("module"), file + ".jsonl.gz"));
        ModuleSequence? sequence = null;
        var locks = new List<object>();
        long calls = 0;
        while (reader.TryRead(out TraceRecord record))
        {
            if (record.IsHeader)
            {
                sequence?.Dispose();
                sequence = new ModuleSequence(record);
                locks.Add(CrowdedProcessors.Crowd(sequence.Machine));
                continue;
            }

            calls++;
            ReplayStep step = sequence!.Play(record);
            if (step.Verdict != ReplayVerdict.Match)
            {
                ReplayMismatch mismatch = step.Mismatch!;
                Assert.Fail($"{mismatch.Sequence} #{mismatch.Index} {mismatch.Operation}: " + string.Join("; ", mismatch.Answers.Where(a => a.Differs).Select(a => $"{a.What} recorded {a.Recorded}, simulated {a.Simulated}")));
            }
        }

        sequence?.Dispose();
        Assert.True(calls > 7000);
        GC.KeepAlive(locks);
    }
}
