using System.Linq;
using Tdp.Harness.Scenarios;
using Tdp.Platform;

namespace Tdp.Tests.Properties;

/// <summary>
/// Whatever concurrent program of faults, zaps, conversions, notifiers and slot changes runs on real threads, every invariant that can be judged on the way holds on the way, and every one that can be judged
/// at rest or after teardown holds then.
/// </summary>
[Properties(Arbitrary = [typeof(StressPrograms)], QuietOnSuccess = true)]
public sealed class StressProperties
{
    [Property(MaxTest = 60)]
    [Trait("spec", "I13")]
    [Trait("spec", "I19")]
    [Trait("spec", "I20")]
    [Trait("spec", "I21")]
    [Trait("spec", "I23")]
    [Trait("spec", "I24")]
    [Trait("spec", "I25")]
    [Trait("spec", "I26")]
    [Trait("spec", "I27")]
    [Trait("spec", "I28")]
    [Trait("spec", "I29")]
    [Trait("spec", "I44")]
    [Trait("spec", "I45")]
    [Trait("spec", "I46")]
    [Trait("spec", "I48")]
    [Trait("spec", "I49")]
    [Trait("spec", "I56")]
    [Trait("spec", "I57")]
    [Trait("spec", "I58")]
    [Trait("spec", "I59")]
    [Trait("spec", "I60")]
    [Trait("spec", "I61")]
    [Trait("spec", "I69")]
    [Trait("spec", "I70")]
    [Trait("spec", "I71")]
    [Trait("spec", "I80")]
    [Trait("spec", "I81")]
    [Trait("spec", "I82")]
    public void A_concurrent_program_breaks_no_invariant(StressProgram program, TlbMode mode, bool busy)
        => Assert.Empty(StressRun.Execute(program, StressPrograms.Pages, tlbMode: mode, busyPerMillion: busy ? 62_500 : 0));

    [Property(MaxTest = 200)]
    public bool The_text_of_a_program_reads_back(StressProgram program)
        => string.Equals(program.ToString(), StressProgram.Parse(program.ToString()).ToString(), StringComparison.Ordinal);

    [Property(MaxTest = 100)]
    public bool Every_shrunk_program_is_smaller(StressProgram program)
        => program.Shrink().All(s => Weight(s) < Weight(program) && s.Vcpus.Count == program.Vcpus.Count && s.Hosts.Count == program.Hosts.Count);

    private static long Weight(StressProgram program) => program.Vcpus.Concat(program.Hosts).SelectMany(t => t).Sum(op => 10_000L + op.Page + op.Count);
}
