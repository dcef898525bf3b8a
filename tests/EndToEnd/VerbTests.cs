using System.Diagnostics;
using System.IO;
using System.Text.Json;
using System.Threading.Tasks;

namespace Tdp.Tests.EndToEnd;

/// <summary>The verbs besides run, as processes: what they print, and how they end.</summary>
public sealed class VerbTests
{
    [Fact]
    public async Task Stress_ends_clean_after_the_operations_asked_for()
    {
        ToolResult result = await Tool.RunAsync("stress", "--iterations", "30000", "--vcpus", "2", "--seed", "0x2a", "--json");
        Assert.True(result.ExitCode == 0, result.Output + result.Error);
        using JsonDocument report = JsonDocument.Parse(result.Output);
        Assert.Equal(30_000, report.RootElement.GetProperty("operations").GetInt64());
        Assert.Equal(42, report.RootElement.GetProperty("seed").GetInt64());
        Assert.Equal(0, report.RootElement.GetProperty("broken").GetArrayLength());
        Assert.Equal(0, report.RootElement.GetProperty("frames").GetProperty("unreturned").GetInt64());
        Assert.True(report.RootElement.GetProperty("pages_accepted").GetInt64() > 0);
        Assert.Equal("tdpmmu stress --iterations 30000 --vcpus 2 --seed 42", report.RootElement.GetProperty("repeat").GetString());
    }

    [Fact]
    public async Task A_terminated_stress_run_keeps_its_results()
    {
        using Process process = Tool.Start("stress", "--duration", "1h", "--json");
        Assert.StartsWith("stress: ", await process.StandardError.ReadLineAsync(), StringComparison.Ordinal);
        using (Process kill = Process.Start("kill", ["-TERM", $"{process.Id}"]))
        {
            await kill.WaitForExitAsync();
        }

        string output = await process.StandardOutput.ReadToEndAsync();
        await process.WaitForExitAsync();
        Assert.Equal(143, process.ExitCode);
        using JsonDocument report = JsonDocument.Parse(output);
        Assert.True(report.RootElement.GetProperty("interrupted").GetBoolean());
        Assert.Equal(0, report.RootElement.GetProperty("broken").GetArrayLength());
    }

    [Fact]
    public async Task Bench_prints_one_row_per_root_and_thread_count()
    {
        ToolResult result = await Tool.RunAsync("bench", "fault-in", "--pages", "4096", "--threads", "1", "--json");
        Assert.True(result.ExitCode == 0, result.Error);
        using JsonDocument report = JsonDocument.Parse(result.Output);
        JsonElement rows = report.RootElement.GetProperty("rows");
        Assert.Equal(3, rows.GetArrayLength());
        foreach (JsonElement row in rows.EnumerateArray())
        {
            Assert.Contains(row.GetProperty("root").GetString(), (string[])["direct", "mirror"]);
            Assert.Equal("seq", row.GetProperty("order").GetString());
            Assert.Equal(1, row.GetProperty("threads").GetInt32());
            foreach (string name in (string[])["floor_ns", "ns_per_fault", "ratio_to_floor", "faults_per_s", "bytes_per_page"])
            {
                Assert.True(row.GetProperty(name).GetDouble() > 0, name);
            }

            Assert.Equal(0, row.GetProperty("allocated_bytes_per_fault").GetDouble(), 0.5);
        }
    }

    [Fact]
    public async Task Bench_lets_two_threads_take_the_same_pages()
    {
        ToolResult result = await Tool.RunAsync("bench", "fault-in", "--pages", "4096", "--threads", "2", "--order", "overlap", "--root", "mirror", "--json");
        Assert.True(result.ExitCode == 0, result.Error);
        using JsonDocument report = JsonDocument.Parse(result.Output);
        Assert.Equal(2, report.RootElement.GetProperty("rows").GetArrayLength());
    }

    [Fact]
    public async Task A_guest_that_never_ends_is_stopped_and_reported()
    {
        // jmp to itself
        using ElfFile file = new ElfFile((0x40_0000, 0x1000)).WithCode(0xEB, 0xFE).Write();
        using Process process = Tool.Start("run", file.Path, "--json");
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Assert.StartsWith("run: ", await process.StandardError.ReadLineAsync(), StringComparison.Ordinal);
        using (Process kill = Process.Start("kill", ["-TERM", $"{process.Id}"]))
        {
            await kill.WaitForExitAsync();
        }

        await process.WaitForExitAsync();
        Assert.Equal(143, process.ExitCode);
        using JsonDocument report = JsonDocument.Parse(await output);
        Assert.Equal("Stopped", report.RootElement.GetProperty("outcome").GetString());
        Assert.Equal(0, report.RootElement.GetProperty("frames").GetProperty("unreturned").GetInt64());
    }

    [Fact]
    public async Task Inspect_shows_the_three_trees_side_by_side()
    {
        ToolResult result = await Tool.RunAsync("inspect", Tool.Sample("convert.elf"), "--at", "exit:200");
        Assert.True(result.ExitCode == 0, result.Error);
        Assert.Contains("vCPU 0, exit 200 handled", result.Output, StringComparison.Ordinal);
        Assert.Matches(@"address +pages +level +shared EPT +mirror +Secure EPT", result.Output);
        Assert.Matches(@"table 0x[0-9a-f]+, external (0x[0-9a-f]+) +NL_MAPPED \1", result.Output);
        Assert.Matches(@"leaf rwx.* MAPPED", result.Output);
    }

    [Fact]
    public async Task Inspect_stops_at_the_first_fault_on_a_page()
    {
        string trace = Path.GetTempFileName();
        ToolResult all = await Tool.RunAsync("run", Tool.Sample("hello.elf"), "--json", "--trace", trace);
        Assert.Equal(0, all.ExitCode);
        string fault = Array.Find(await File.ReadAllLinesAsync(trace), l => l.Contains("EptViolation gpa ", StringComparison.Ordinal))!;
        File.Delete(trace);
        string gpa = fault[(fault.LastIndexOf(' ') + 1)..];
        ToolResult result = await Tool.RunAsync("inspect", Tool.Sample("hello.elf"), "--at", $"gpa:{gpa}");
        Assert.True(result.ExitCode == 0, result.Error);
        Assert.Contains($"EptViolation at GPA {gpa}", result.Output, StringComparison.Ordinal);

        // The page is mapped and waits for the guest to accept it.
        Assert.Contains("PENDING", result.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Inspect_says_when_the_point_is_never_reached()
    {
        ToolResult result = await Tool.RunAsync("inspect", Tool.Sample("hello.elf"), "--at", "exit:1000000");
        Assert.Equal(1, result.ExitCode);
        Assert.Contains("before the point was reached", result.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task An_instruction_outside_the_tier_is_named_with_its_bytes_and_address()
    {
        // vpaddd ymm0, ymm0, ymm0
        using ElfFile file = new ElfFile((0x40_0000, 0x1000)).WithCode(0xC5, 0xFD, 0xFE, 0xC0).Write();
        ToolResult result = await Tool.RunAsync("run", file.Path);
        Assert.Equal(1, result.ExitCode);
        string line = result.Error.Trim().Split('\n')[^1];
        Assert.StartsWith("tdpmmu: ", line, StringComparison.Ordinal);
        Assert.Contains("vpaddd", line, StringComparison.OrdinalIgnoreCase);
        Assert.Matches("(?i)C5 ?FD ?FE ?C0", line);
        Assert.Contains("0x400000", line, StringComparison.OrdinalIgnoreCase);
    }

    [Fact]
    public async Task The_report_of_a_run_names_faults_conversions_and_calls()
    {
        ToolResult result = await Tool.RunAsync("run", Tool.Sample("convert.elf"));
        Assert.True(result.ExitCode == 0, result.Error);
        Assert.Contains("in a TD, 1 vCPU: exit code 0", result.Output, StringComparison.Ordinal);
        Assert.Matches(@"conversions: [1-9]\d* to shared, [1-9]\d* to private", result.Output);
        Assert.Matches(@"TDH\.MEM\.PAGE\.AUG +TDX_SUCCESS", result.Output);
        Assert.Matches(@"TDG\.MEM\.PAGE\.ACCEPT +TDX_SUCCESS", result.Output);
        Assert.Contains("0 leaked, 0 not accounted for", result.Output, StringComparison.Ordinal);
    }
}
