using System.IO;
using Tdp.Harness.Patching;
using Tdp.Harness.Scenarios;
using Tdp.Tests.Unit.House;

namespace Tdp.Tests.Unit.Harness;

/// <summary>The tree compiles in memory, as it is, in one assembly: what every patched build starts from.</summary>
public sealed class MemoryBuildTests
{
    private static readonly string[] Folders = ["Sync", "Platform", "TdxModule", "Mmu", "GuestCpu", "GuestKernel", "Host", "Explorer", "Harness/Invariants", "Harness/Scenarios"];

    [Fact]
    public void Every_source_of_every_patchable_room_is_embedded_and_nothing_else()
    {
        string root = Repository.Path("src");
        IEnumerable<string> onDisk = Folders
            .Select(f => Path.Combine(root, f))
            .Where(Directory.Exists)
            .SelectMany(f => Directory.EnumerateFiles(f, "*.cs", SearchOption.AllDirectories))
            .Append(Path.Combine(root, "Harness", "GlobalUsings.cs"))
            .Select(f => "src/" + Path.GetRelativePath(root, f).Replace('\\', '/'))
            .Where(f => !f.Contains("/obj/", StringComparison.Ordinal) && !f.Contains("/bin/", StringComparison.Ordinal))
            .Order(StringComparer.Ordinal);
        Assert.Equal(onDisk, EmbeddedSources.Load().Keys);
    }

    private static readonly Lazy<MemoryBuildResult> Unpatched = new(() => MemoryBuild.Compile(EmbeddedSources.Load()));

    [Fact]
    public void The_embedded_sources_compile_unpatched()
    {
        MemoryBuildResult result = Unpatched.Value;
        Assert.Empty(result.Errors);
        Assert.NotNull(result.Image);
    }

    [Fact]
    public void A_compiled_copy_is_loaded_beside_the_tool_s_own_types()
    {
        Dictionary<string, string> sources = new(EmbeddedSources.Load(), StringComparer.Ordinal)
        {
            ["src/Extra.cs"] = "namespace Tdp.Extra; public static class Probe { public static string Name => typeof(Probe).Assembly.GetName().Name!; }",
        };
        MemoryBuildResult result = MemoryBuild.Compile(sources);
        Assert.Empty(result.Errors);
        using LoadedCopy copy = new(result.Image!);
        Assert.Equal(MemoryBuild.AssemblyName, copy.Assembly.GetType("Tdp.Extra.Probe")!.GetProperty("Name")!.GetValue(null));
        Assert.DoesNotContain(copy.Assembly.GetReferencedAssemblies(), a => a.Name!.StartsWith("TdpMmu", StringComparison.Ordinal));
    }

    [Fact]
    public void A_compiled_copy_takes_a_scripted_fault_and_runs_a_small_program()
    {
        using LoadedCopy copy = new(Unpatched.Value.Image!);
        Assert.StartsWith("ok: ", copy.Execute("fault"), StringComparison.Ordinal);
        Assert.Equal("ok", copy.Execute("program\nvcpu0: WritePrivate(0+4) MapShared(1+2) MapPrivate(1+1) ReadPrivate(0+4)\nhost0: PunchHole(2+4) Notify(0+8) ConvertShared(0+2)\n"));
    }

    [Theory]
    [InlineData("        _vm.VcpuSet.RequestAll(actor, VcpuRequest.OutsideGuestMode, wait: true);\n    }\n\n    /// <summary>KVM's tdh_do_no_vcpus", "    }\n\n    /// <summary>KVM's tdh_do_no_vcpus", "^I(26|27|28|80): ")]
    [InlineData("TdxStatus status = Issue(actor, TdhLeaf.MEM_TRACK, default);", "TdxStatus status = TdxStatus.SUCCESS;", "^I26: ")]
    [Trait("spec", "I26")]
    public void A_patched_copy_without_the_kick_or_without_the_track_is_found_out_by_the_same_program(string right, string wrong, string expected)
    {
        SortedDictionary<string, string> sources = EmbeddedSources.Load();
        const string Glue = "src/Host/Tdx/TdxGlue.cs";
        Assert.Contains(right, sources[Glue], StringComparison.Ordinal);
        sources[Glue] = sources[Glue].Replace(right, wrong, StringComparison.Ordinal);
        MemoryBuildResult result = MemoryBuild.Compile(sources);
        Assert.Empty(result.Errors);
        using LoadedCopy copy = new(result.Image!);

        // Real threads: whether they meet is up to the machine, so a program that found nothing is followed by another one.
        string? found = Enumerable.Range(1, 50)
            .Select(seed => copy.Execute("program\n" + StressGenerator.Program((ulong)seed, 2, 2, 400, TextEntry.ProgramPages)))
            .FirstOrDefault(report => report is not "ok");
        Assert.Matches(expected, found);
    }

    [Fact]
    public void A_source_that_does_not_compile_is_reported_with_its_path_and_line()
    {
        MemoryBuildResult result = MemoryBuild.Compile(new Dictionary<string, string>(StringComparer.Ordinal) { ["src/Mmu/Broken.cs"] = "namespace Tdp;\nclass Broken { int F() => nothing; }\n" });
        Assert.Null(result.Image);
        Assert.Equal("src/Mmu/Broken.cs(2,27): CS0103: The name 'nothing' does not exist in the current context", Assert.Single(result.Errors));
    }
}
