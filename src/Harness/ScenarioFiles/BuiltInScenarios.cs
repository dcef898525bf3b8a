using System.IO;
using System.Text;

namespace Tdp.Harness.ScenarioFiles;

/// <summary>The scenarios and patches that travel inside the tool: the race catalogue R01..R35 (tdp-mmu 11).</summary>
public static class BuiltInScenarios
{
    private const string Folder = "scenarios/";

    /// <summary>Their names, in order.</summary>
    public static IReadOnlyList<string> Names { get; } = List(".scenario");

    /// <summary>The names of the patches, in order.</summary>
    public static IReadOnlyList<string> Patches { get; } = List(".patch");

    /// <summary>The text of a scenario, or <see langword="null"/> if there is none with this name.</summary>
    public static string? Text(string name) => Read(name + ".scenario");

    /// <summary>The text of a patch, or <see langword="null"/> if there is none with this name.</summary>
    public static string? Patch(string name) => Read(name + ".patch");

    private static List<string> List(string ending)
    {
        List<string> names = [];
        foreach (string name in typeof(BuiltInScenarios).Assembly.GetManifestResourceNames())
        {
            if (name.StartsWith(Folder, StringComparison.Ordinal) && name.EndsWith(ending, StringComparison.Ordinal))
            {
                names.Add(name[Folder.Length..^ending.Length]);
            }
        }

        names.Sort(StringComparer.Ordinal);
        return names;
    }

    private static string? Read(string file)
    {
        using Stream? stream = typeof(BuiltInScenarios).Assembly.GetManifestResourceStream(Folder + file);
        if (stream is null)
        {
            return null;
        }

        using StreamReader reader = new(stream, Encoding.UTF8);
        return reader.ReadToEnd();
    }
}
