using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Text.RegularExpressions;

namespace Tdp.Tests.Unit.Sync;

public sealed partial class HookIsFreeTests
{
    [Theory]
    [InlineData("Walk")]
    [InlineData("Install")]
    [InlineData("Set")]
    [Trait("spec", "X6")]
    public void A_primitive_compiles_to_as_many_bytes_as_one_without_hooks(string pair)
    {
        Dictionary<string, int> sizes = Sizes.Value;
        Assert.True(sizes.ContainsKey("Hooked" + pair), $"no tier-1 code seen for Hooked{pair}: {string.Join(", ", sizes.Keys)}");
        Assert.Equal(sizes["Bare" + pair], sizes["Hooked" + pair]);
    }

    private static readonly Lazy<Dictionary<string, int>> Sizes = new(Measure);

    private static Dictionary<string, int> Measure()
    {
        string listing = Path.Combine(Path.GetTempPath(), $"tdpmmu-hook-{Environment.ProcessId}.txt");
        var start = new ProcessStartInfo("dotnet", [Path.Combine(AppContext.BaseDirectory, "TdpMmu.HookProbe.dll")]) { RedirectStandardOutput = true };
        start.Environment["DOTNET_JitDisasm"] = "Hooked* Bare*";
        start.Environment["DOTNET_JitStdOutFile"] = listing;
        start.Environment["DOTNET_TC_CallCountingDelayMs"] = "0";
        start.Environment["DOTNET_TieredPGO"] = "0";
        start.Environment["DOTNET_TieredCompilation"] = "1";
        try
        {
            using Process process = Process.Start(start)!;
            process.StandardOutput.ReadToEnd();
            process.WaitForExit();
            Assert.Equal(0, process.ExitCode);
            var sizes = new Dictionary<string, int>(StringComparer.Ordinal);
            string method = "";
            foreach (string line in File.ReadLines(listing))
            {
                Match header = Header().Match(line);
                if (header.Success)
                    method = header.Groups["tier"].Value == "Tier1" ? header.Groups["name"].Value : "";
                Match total = Total().Match(line);
                if (total.Success && method.Length > 0)
                    sizes[method] = int.Parse(total.Groups["bytes"].Value, CultureInfo.InvariantCulture);
            }

            return sizes;
        }
        finally
        {
            File.Delete(listing);
        }
    }

    [GeneratedRegex(@"^; Assembly listing for method \S*:(?<name>\w+)\(.*\((?<tier>\w+)", RegexOptions.ExplicitCapture)]
    private static partial Regex Header();

    [GeneratedRegex(@"^; Total bytes of code (?<bytes>\d+)", RegexOptions.ExplicitCapture)]
    private static partial Regex Total();
}
