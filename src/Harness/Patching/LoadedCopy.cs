using System.IO;
using System.Reflection;
using System.Runtime.Loader;

namespace Tdp.Harness.Patching;

/// <summary>
/// A compiled copy of the rooms in a load context of its own. Its types are foreign to this tool, so the two talk by text only: a request goes in, a report comes out.
/// Disposing lets the runtime unload the copy once nothing runs in it.
/// </summary>
public sealed class LoadedCopy : IDisposable
{
    /// <summary>The type in the copy that answers requests.</summary>
    public const string EntryType = "Tdp.Harness.Scenarios.TextEntry";

    /// <summary>The static method of <see cref="EntryType"/>: <see cref="string"/> to <see cref="string"/>.</summary>
    public const string EntryMethod = "Execute";

    private readonly AssemblyLoadContext _context;

    /// <summary>Loads an image that <see cref="MemoryBuild"/> made.</summary>
    /// <param name="image">The assembly's bytes.</param>
    public LoadedCopy(byte[] image)
    {
        _context = new AssemblyLoadContext(MemoryBuild.AssemblyName, isCollectible: true);
        using MemoryStream stream = new(image, writable: false);
        Assembly = _context.LoadFromStream(stream);
    }

    /// <summary>The loaded copy.</summary>
    public Assembly Assembly { get; }

    /// <summary>Sends one request to the copy.</summary>
    /// <param name="request">Text in the format of <see cref="EntryType"/>.</param>
    /// <returns>The copy's report.</returns>
    /// <exception cref="InvalidOperationException">The copy has no entry point.</exception>
    public string Execute(string request)
    {
        MethodInfo entry = Assembly.GetType(EntryType)?.GetMethod(EntryMethod, BindingFlags.Static | BindingFlags.Public)
            ?? throw new InvalidOperationException($"the compiled copy has no {EntryType}.{EntryMethod}");
        return entry.CreateDelegate<Func<string, string>>()(request);
    }

    /// <summary>Starts unloading the copy.</summary>
    public void Dispose() => _context.Unload();
}
