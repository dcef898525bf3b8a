using System.IO;
using Tdp.Harness.Patching;
using Tdp.Tests.Unit.Architecture;

namespace Tdp.Tests.Unit.Harness;

/// <summary>The tree compiles in memory, as it is, in one assembly: what every patched build starts from.</summary>
public sealed class MemoryBuildTests
{
    private static readonly string[] Folders = ["Sync", "Platform", "TdxModule", "Mmu", "GuestCpu", "GuestKernel", "Host", "Harness/Invariants", "Harness/Scenarios"];

    [Fact]
    public void Every_source_of_every_patchable_room_is_embedded_and_nothing_else()
    {
        string root = Repository.Path("src");
        IEnumerable<string> onDisk = Folders
            .Select(f => Path.Combine(root, f))
            .Where(Directory.Exists)
            .SelectMany(f => Directory.EnumerateFiles(f, "*.cs", SearchOption.AllDirectories))
            .Select(f => "src/" + Path.GetRelativePath(root, f).Replace('\\', '/'))
            .Where(f => !f.Contains("/obj/", StringComparison.Ordinal) && !f.Contains("/bin/", StringComparison.Ordinal))
            .Order(StringComparer.Ordinal);
        Assert.Equal(onDisk, EmbeddedSources.Load().Keys);
    }

    [Fact]
    public void The_embedded_sources_compile_unpatched()
    {
        MemoryBuildResult result = MemoryBuild.Compile(EmbeddedSources.Load());
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
    public void A_source_that_does_not_compile_is_reported_with_its_path_and_line()
    {
        MemoryBuildResult result = MemoryBuild.Compile(new Dictionary<string, string>(StringComparer.Ordinal) { ["src/Mmu/Broken.cs"] = "namespace Tdp;\nclass Broken { int F() => nothing; }\n" });
        Assert.Null(result.Image);
        Assert.Equal("src/Mmu/Broken.cs(2,27): CS0103: The name 'nothing' does not exist in the current context", Assert.Single(result.Errors));
    }
}
