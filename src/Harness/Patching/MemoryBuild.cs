using System.Collections.Immutable;
using System.IO;
using System.Linq;
using System.Text;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.Emit;

namespace Tdp.Harness.Patching;

/// <summary>
/// Compiles the rooms together, in memory, into one assembly. The references are the framework's own assemblies and the decoder; never the rooms as they were built into this tool,
/// because the copy must consist of its own types only.
/// </summary>
public static class MemoryBuild
{
    /// <summary>The name of every assembly this class makes.</summary>
    public const string AssemblyName = "TdpMmu.InMemory";

    private static readonly CSharpParseOptions Parse = new(LanguageVersion.CSharp14, DocumentationMode.None);

    private static readonly CSharpCompilationOptions Options = new(
        OutputKind.DynamicallyLinkedLibrary,
        optimizationLevel: OptimizationLevel.Release,
        allowUnsafe: true,
        deterministic: true,
        nullableContextOptions: NullableContextOptions.Enable);

    /// <summary>Compiles a set of sources.</summary>
    /// <param name="sources">Path to text; the paths appear in the messages.</param>
    /// <returns>The image, or the compiler's errors.</returns>
    public static MemoryBuildResult Compile(IReadOnlyDictionary<string, string> sources)
    {
        ArgumentNullException.ThrowIfNull(sources);
        IEnumerable<SyntaxTree> trees = sources.OrderBy(s => s.Key, StringComparer.Ordinal).Select(s => CSharpSyntaxTree.ParseText(s.Value, Parse, s.Key, Encoding.UTF8));
        CSharpCompilation compilation = CSharpCompilation.Create(AssemblyName, trees, References(), Options);
        using MemoryStream image = new();
        EmitResult result = compilation.Emit(image, options: new EmitOptions(debugInformationFormat: DebugInformationFormat.Embedded));
        ImmutableArray<string> errors = [.. result.Diagnostics.Where(d => d.Severity is DiagnosticSeverity.Error).Select(Describe)];
        return new MemoryBuildResult(result.Success ? image.ToArray() : null, errors);
    }

    private static string Describe(Diagnostic diagnostic)
    {
        FileLinePositionSpan place = diagnostic.Location.GetLineSpan();
        string message = diagnostic.GetMessage(System.Globalization.CultureInfo.InvariantCulture);
        return string.Create(System.Globalization.CultureInfo.InvariantCulture, $"{place.Path}({place.StartLinePosition.Line + 1},{place.StartLinePosition.Character + 1}): {diagnostic.Id}: {message}");
    }

    private static IEnumerable<MetadataReference> References()
    {
        string list = AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES") as string ?? throw new InvalidOperationException("the runtime does not say which assemblies it trusts");
        return list.Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries).Where(IsReference).Select(path => MetadataReference.CreateFromFile(path));
    }

    private static bool IsReference(string path)
        => Path.GetFileNameWithoutExtension(path) is var name
            && (name is "Iced" or "netstandard" or "mscorlib" or "System" || (name.StartsWith("System.", StringComparison.Ordinal) && name is not "System.CommandLine"));
}

/// <summary>What a compilation in memory gave: an image, or errors.</summary>
/// <param name="Image">The assembly, or <see langword="null"/> when it did not compile.</param>
/// <param name="Errors">One line per error: <c>path(line,column): id: message</c>.</param>
public sealed record MemoryBuildResult(byte[]? Image, ImmutableArray<string> Errors);
