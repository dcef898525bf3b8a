using System.Linq;
using System.Reflection;
using Tdp.Harness.Patching;
using Tdp.Harness.Scenarios;
using Xunit.Abstractions;

namespace Tdp.Tests.Properties;

/// <summary>
/// The stress property finds a bug that was put into the host on purpose, shrinks the program to the two steps that matter, and the replay triple repeats it. The bug: a conversion zaps the alias that it should
/// leave alone.
/// </summary>
public sealed class SeededBugTests(ITestOutputHelper output)
{
    [Fact]
    [Trait("spec", "I58")]
    public void A_conversion_that_zaps_the_wrong_alias_is_found_shrunk_and_replayed()
    {
        PropertyFailedException first = Assert.Throws<PropertyFailedException>(() => Run(null));
        StressProgram shrunk = Assert.IsType<StressProgram>(Assert.Single(first.Shrunk));
        output.WriteLine(first.Message);

        // A page must be mapped in one alias and then be converted; nothing else is needed, and one page is enough.
        StressOp[] steps = [.. shrunk.Vcpus.Concat(shrunk.Hosts).SelectMany(t => t)];
        Assert.InRange(steps.Length, 1, 2);
        Assert.All(steps, step => Assert.Equal(1, step.Count));

        PropertyFailedException again = Assert.Throws<PropertyFailedException>(() => Run(first.Replay));
        Assert.Equal(first.Replay, again.Replay);
        Assert.Equal(shrunk.ToString(), Assert.IsType<StressProgram>(Assert.Single(again.Shrunk)).ToString());
    }

    private void Run(string? replay)
        => PropertyRun.Execute(typeof(OnPatchedHost).GetMethod(nameof(OnPatchedHost.Breaks_no_invariant), BindingFlags.Static | BindingFlags.Public)!, null, output, replay ?? "(7,11400714819323198485)");

    /// <summary>The property on the patched copy. Internal, so xunit does not run it on its own. One vCPU alone: the same program always does the same.</summary>
    [Properties(Arbitrary = [typeof(AlonePrograms)], MaxTest = 50)]
#pragma warning disable xUnit1000 // Not public on purpose: run only by the test above.
    internal static class OnPatchedHost
#pragma warning restore xUnit1000
    {
        private const string File = "src/Host/Memory/VmMemory.cs";
        private const string Right = "toPrivate ? AliasFilter.Shared : AliasFilter.Private";
        private const string Wrong = "toPrivate ? AliasFilter.Private : AliasFilter.Shared";

        private static readonly Lazy<LoadedCopy> Copy = new(() =>
        {
            SortedDictionary<string, string> sources = EmbeddedSources.Load();
            Assert.Contains(Right, sources[File], StringComparison.Ordinal);
            sources[File] = sources[File].Replace(Right, Wrong, StringComparison.Ordinal);
            MemoryBuildResult result = MemoryBuild.Compile(sources);
            Assert.Empty(result.Errors);
            return new LoadedCopy(result.Image!);
        });

        [Property]
        public static void Breaks_no_invariant(StressProgram program) => Assert.Equal("ok", Copy.Value.Execute("program\n" + program));
    }

    internal static class AlonePrograms
    {
        public static Arbitrary<StressProgram> Programs() => Arb.From(
            from size in Gen.Sized(Gen.Constant)
            from seed in Gen.Choose(0, int.MaxValue)
            select StressGenerator.Program((ulong)seed, 1, 0, 2 + size, StressPrograms.Pages),
            program => program.Shrink());
    }
}
