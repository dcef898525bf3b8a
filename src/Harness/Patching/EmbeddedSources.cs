using System.IO;
using System.Reflection;
using System.Text;

namespace Tdp.Harness.Patching;

/// <summary>
/// The sources that travel inside the tool: every room from Sync to Host, and the harness's own invariants and scenarios. They are what a patch is applied to,
/// so a patched build needs neither a checkout nor an SDK.
/// </summary>
public static class EmbeddedSources
{
    /// <summary>Reads all sources.</summary>
    /// <returns>Path as a patch names it (<c>src/Mmu/...</c>) to text, in ordinal order of the paths.</returns>
    public static SortedDictionary<string, string> Load()
    {
        Assembly tool = typeof(EmbeddedSources).Assembly;
        SortedDictionary<string, string> files = new(StringComparer.Ordinal);
        foreach (string name in tool.GetManifestResourceNames())
        {
            if (!name.StartsWith("src/", StringComparison.Ordinal) || !name.EndsWith(".cs", StringComparison.Ordinal))
            {
                continue;
            }

            using Stream stream = tool.GetManifestResourceStream(name) ?? throw new InvalidOperationException($"resource {name} is listed but cannot be opened");
            using StreamReader reader = new(stream, Encoding.UTF8);
            files.Add(name, reader.ReadToEnd());
        }

        return files;
    }
}
