using System.IO;
using System.Linq;
using System.Reflection;
using Tdp.Harness.Patching;
using Xunit.Abstractions;

namespace Tdp.Tests.Properties.Leaves;

/// <summary>
/// The model test can fail: against a module in which PAGE.REMOVE no longer asks for TLB tracking it finds a program, and shrinks it to the few steps that matter. And it looks at
/// something: the programs that it makes bring every leaf to success.
/// </summary>
public sealed class LeafMutantTests(ITestOutputHelper output)
{
    [Fact]
    [Trait("spec", "I26")]
    public void A_module_that_forgets_TLB_tracking_is_found_and_the_program_shrinks_to_the_steps_that_matter()
    {
        PropertyFailedException failure = Assert.Throws<PropertyFailedException>(() => PropertyRun.Execute(
            typeof(OnMutant).GetMethod(nameof(OnMutant.Goes_as_in_the_model), BindingFlags.Static | BindingFlags.Public)!, null, output, "(7,11400714819323198485)"));
        LeafProgram shrunk = Assert.IsType<LeafProgram>(Assert.Single(failure.Shrunk));
        output.WriteLine(shrunk.ToString());

        // A page, blocked, and something that needs it tracked; a composite step may stand for two of the three.
        Assert.True(shrunk.Running);
        Assert.InRange(shrunk.Steps.Count, 2, 5);
        Assert.Equal("ok", LeafRun.Execute(shrunk.ToString()));
    }

    [Fact]
    public void The_programs_bring_every_leaf_to_success_and_meet_every_kind_of_refusal()
    {
        Dictionary<string, int> answers = new(StringComparer.Ordinal);
        foreach (LeafProgram program in LeafPrograms.Programs().Generator.Sample(140, 80))
            Assert.Equal("ok", LeafRun.Execute(program, answers));
        foreach ((string key, int count) in answers.OrderBy(a => a.Key, StringComparer.Ordinal))
            output.WriteLine($"{key}: {count}");
        foreach (string leaf in (string[])
            [
                "PageAdd", "PageAug", "SeptAdd", "RangeBlock", "RangeUnblock", "PageRemove", "SeptRemove", "PagePromote", "PageDemote", "PageRelocate", "SeptRead", "Track",
            ])
            Assert.Contains($"{leaf} TDX_SUCCESS", answers.Keys);
        Assert.Contains("Accept TDX_SUCCESS stays", answers.Keys);
        foreach (string refusal in (string[])["OPERAND_BUSY", "TLB_TRACKING_NOT_DONE", "GPA_RANGE_NOT_BLOCKED", "EPT_WALK_FAILED", "PAGE_METADATA_INCORRECT", "PREVIOUS_TLB_EPOCH_BUSY", "PAGE_SIZE_MISMATCH"])
            Assert.Contains(answers.Keys, key => key.Contains(refusal, StringComparison.Ordinal));
    }

    /// <summary>The property on a copy of the module with one condition taken out. Internal, so xunit does not run it on its own.</summary>
    [Properties(Arbitrary = [typeof(LeafPrograms)], MaxTest = 300, StartSize = 10, EndSize = 60)]
#pragma warning disable xUnit1000 // Not public on purpose: run only by the test above.
    internal static class OnMutant
#pragma warning restore xUnit1000
    {
        private const string File = "src/TdxModule/HostLeaves/MemRemove.cs";
        private const string Right = "return IsTracked(gate.Td, pamtEntry) ? TdxStatus.SUCCESS";
        private const string Wrong = "return pamtEntry != 0 ? TdxStatus.SUCCESS";

        private static readonly Lazy<Func<string, string>> Copy = new(Build);

        [Property]
        public static void Goes_as_in_the_model(LeafProgram program) => Assert.Equal("ok", Copy.Value(program.ToString()));

        private static Func<string, string> Build()
        {
            SortedDictionary<string, string> sources = EmbeddedSources.Load();
            Assert.Contains(Right, sources[File], StringComparison.Ordinal);
            sources[File] = sources[File].Replace(Right, Wrong, StringComparison.Ordinal);
            foreach (string name in typeof(OnMutant).Assembly.GetManifestResourceNames().Where(n => n.StartsWith("Leaf", StringComparison.Ordinal)))
            {
                using StreamReader reader = new(typeof(OnMutant).Assembly.GetManifestResourceStream(name)!);
                sources[$"tests/{name}"] = reader.ReadToEnd();
            }

            MemoryBuildResult result = MemoryBuild.Compile(sources);
            Assert.Empty(result.Errors);
            MethodInfo run = new LoadedCopy(result.Image!).Assembly.GetType("Tdp.Tests.Properties.Leaves.LeafRun")!.GetMethod("Execute", [typeof(string)])!;
            return run.CreateDelegate<Func<string, string>>();
        }
    }
}
