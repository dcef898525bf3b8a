using System.IO;
using System.Text.Json;
using System.Threading.Tasks;

namespace Tdp.Tests.EndToEnd;

/// <summary>The committed guest programs print in a TD and in an ordinary VM what they print natively, however many vCPUs they have.</summary>
public sealed class SampleTests
{
    [Theory]
    [InlineData("hello", 1, false)]
    [InlineData("hello", 1, true)]
    [InlineData("hello", 2, false)]
    [InlineData("convert", 1, false)]
    [InlineData("convert", 1, true)]
    [InlineData("mmio", 1, false)]
    [InlineData("mmio", 1, true)]
    [InlineData("workload", 1, false)]
    [InlineData("workload", 2, false)]
    [InlineData("workload", 4, false)]
    [InlineData("workload", 1, true)]
    [InlineData("workload", 2, true)]
    [InlineData("workload", 4, true)]
    public async Task A_sample_prints_its_native_output(string name, int vcpus, bool ordinaryVm)
    {
        string[] args = ["run", Tool.Sample(name + ".elf"), "--vcpus", $"{vcpus}", "--json", .. ordinaryVm ? ["--vm"] : Array.Empty<string>()];
        ToolResult result = await Tool.RunAsync(args);
        Assert.True(result.ExitCode == 0, result.Error);
        using JsonDocument report = JsonDocument.Parse(result.Output);
        // A sample may print lines that only a trust domain can print; then it has a second text.
        string expected = Tool.Sample(name + ".td.expected.txt");
        if (ordinaryVm || !File.Exists(expected))
            expected = Tool.Sample(name + ".expected.txt");
        Assert.Equal(await File.ReadAllTextAsync(expected), report.RootElement.GetProperty("console").GetString());
    }

    [Fact]
    public async Task Eager_acceptance_accepts_all_memory_before_the_program_starts()
    {
        ToolResult lazy = await Tool.RunAsync("run", Tool.Sample("hello.elf"), "--memory", "16M", "--json");
        ToolResult eager = await Tool.RunAsync("run", Tool.Sample("hello.elf"), "--memory", "16M", "--accept", "eager", "--json");
        Assert.Equal(0, lazy.ExitCode);
        Assert.Equal(0, eager.ExitCode);
        using JsonDocument few = JsonDocument.Parse(lazy.Output);
        using JsonDocument all = JsonDocument.Parse(eager.Output);
        long accepted = all.RootElement.GetProperty("pages_accepted").GetInt64();
        Assert.True(accepted > few.RootElement.GetProperty("pages_accepted").GetInt64());
        Assert.InRange(accepted, 3000, 4096);
    }

    [Fact]
    public async Task After_teardown_no_frame_is_missing()
    {
        ToolResult result = await Tool.RunAsync("run", Tool.Sample("convert.elf"), "--json");
        Assert.Equal(0, result.ExitCode);
        using JsonDocument report = JsonDocument.Parse(result.Output);
        JsonElement frames = report.RootElement.GetProperty("frames");
        Assert.Equal(0, frames.GetProperty("leaked").GetArrayLength());
        Assert.Equal(0, frames.GetProperty("unreturned").GetInt64());
        Assert.Equal(0, report.RootElement.GetProperty("findings").GetArrayLength());
    }
}
