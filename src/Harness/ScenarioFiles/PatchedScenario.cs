using System.Globalization;
using Tdp.Harness.Patching;
using Tdp.Harness.Scenarios;

namespace Tdp.Harness.ScenarioFiles;

/// <summary>Executes a scenario on a build of the rooms to which its patches have been applied (decisions D19).</summary>
public static class PatchedScenario
{
    /// <summary>Executes it.</summary>
    /// <param name="text">The scenario's text.</param>
    /// <param name="file">Its name, for messages.</param>
    /// <param name="patches">Patches in the order in which they are applied.</param>
    /// <param name="seed">The master seed.</param>
    /// <param name="repeat">How often.</param>
    /// <exception cref="PatchException">A patch does not fit, or the patched sources do not compile.</exception>
    public static ScenarioReport Execute(string text, string file, IReadOnlyList<UnifiedDiff> patches, ulong seed, int repeat)
    {
        ArgumentNullException.ThrowIfNull(patches);
        SortedDictionary<string, string> sources = EmbeddedSources.Load();
        foreach (UnifiedDiff patch in patches)
        {
            patch.Apply(sources);
        }

        MemoryBuildResult build = MemoryBuild.Compile(sources);
        if (build.Image is null)
        {
            throw new PatchException($"{file}: the patched sources do not compile: {build.Errors[0]}");
        }

        using LoadedCopy copy = new(build.Image);
        return ScenarioReport.Parse(copy.Execute(string.Create(CultureInfo.InvariantCulture, $"scenario {seed} {repeat} {file}\n{text}")));
    }
}
