using System.IO;
using System.Text.Json;
using System.Threading.Tasks;

namespace Tdp.Tests.EndToEnd;

/// <summary>tdpmmu seamcall and tdpmmu measure as their users start them.</summary>
public sealed class SeamcallTests
{
    [Fact]
    public async Task The_sample_script_prints_what_is_committed()
    {
        ToolResult result = await Tool.RunAsync("seamcall", "--script", Tool.Sample("build-td.seamcall"));
        Assert.True(result.ExitCode == 0, result.Output + result.Error);
        Assert.Equal(await File.ReadAllTextAsync(Tool.Sample("build-td.expected.txt")), result.Output);
    }

    [Theory]
    [InlineData("boot\nTDH.MEM.TRACK", 2, ":2: TDH.MEM.TRACK: tdr is missing: TDH.MEM.TRACK tdr=...")]
    [InlineData("TDH.NO.SUCH x=1", 2, ":1: leaf 'TDH.NO.SUCH': no such leaf; help lists them")]
    [InlineData("TDH.MEM.TRACK tdr=zz", 2, ":1: 'zz': allowed is a number (decimal, 0x..., 4K, 2M), a variable, or alloc")]
    [InlineData("TDH.MEM.TRACK tdr=1 lvl=2", 2, ":1: TDH.MEM.TRACK lvl: no such operand; allowed is tdr, version, or a register")]
    [InlineData("# nothing\n\nlp 9", 2, ":3: lp 9: allowed is 0 to 1")]
    [InlineData("TDG.VP.INFO", 2, ":1: TDG.VP.INFO: LP 0 is in the host; TDH.VP.ENTER comes first")]
    [InlineData("dance", 2, ":1: 'dance': allowed is a leaf, $NAME = VALUE, boot, lp, access, interrupt, expect, fill, show, check, times, help")]
    [InlineData("TDH.MEM.TRACK tdr=0x100000000\nexpect TDX_SUCCESS", 1, ": line 2: expected TDX_SUCCESS, the last answer is TDX_SYS_NOT_READY")]
    public async Task What_is_wrong_in_a_script_is_one_line_with_its_number(string script, int code, string message)
    {
        string file = Path.GetTempFileName();
        await File.WriteAllTextAsync(file, script);
        ToolResult result = await Tool.RunAsync("seamcall", "--script", file);
        File.Delete(file);
        Assert.Equal(code, result.ExitCode);
        Assert.Equal($"tdpmmu: {file}{message}{Environment.NewLine}", result.Error);
    }

    [Fact]
    public async Task Json_has_one_object_per_call_and_any_register_can_be_given()
    {
        string file = Path.GetTempFileName();
        await File.WriteAllTextAsync(file, "boot\nTDH.MEM.TRACK tdr=0 rcx=0xffffffffffffffff\nTDH.PHYMEM.PAGE.RDMD page=0x100000000\n");
        ToolResult result = await Tool.RunAsync("seamcall", "--script", file, "--json");
        File.Delete(file);
        Assert.True(result.ExitCode == 0, result.Error);
        using JsonDocument report = JsonDocument.Parse(result.Output);
        JsonElement calls = report.RootElement.GetProperty("calls");
        Assert.Equal(2, calls.GetArrayLength());
        Assert.Equal("TDX_OPERAND_INVALID | OPERAND_ID_RCX", calls[0].GetProperty("status").GetString());
        Assert.Equal("NDA", calls[1].GetProperty("results").GetProperty("type").GetString());
    }

    [Fact]
    public async Task Measure_prints_the_measurement_that_a_run_reports_and_every_step_of_it()
    {
        ToolResult measured = await Tool.RunAsync("measure", Tool.Sample("hello.elf"), "--memory", "16M", "--steps", "--json");
        ToolResult ran = await Tool.RunAsync("run", Tool.Sample("hello.elf"), "--memory", "16M", "--json");
        Assert.Equal(0, measured.ExitCode);
        Assert.Equal(0, ran.ExitCode);
        using JsonDocument measure = JsonDocument.Parse(measured.Output);
        using JsonDocument run = JsonDocument.Parse(ran.Output);
        string? mrtd = measure.RootElement.GetProperty("mrtd").GetString();
        Assert.Equal(run.RootElement.GetProperty("mrtd").GetString(), mrtd);
        JsonElement steps = measure.RootElement.GetProperty("steps");
        Assert.Equal(17 * run.RootElement.GetProperty("pages_added").GetInt64(), steps.GetArrayLength());
        Assert.Equal(mrtd, steps[steps.GetArrayLength() - 1].GetProperty("digest").GetString());
    }
}
