using System.Diagnostics;
using System.IO;
using System.IO.Compression;
using System.Linq;
using System.Text;
using System.Text.Json;
using System.Threading.Tasks;

namespace Tdp.Tests.EndToEnd;

/// <summary><c>tdpmmu conformance replay</c> as a process: what it prints, how it ends, and what it says of files it cannot use.</summary>
public sealed class ConformanceVerbTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("tdpmmu-replay");

    public void Dispose() => _folder.Delete(recursive: true);

    [Fact]
    public async Task Traces_of_both_kinds_are_told_apart_by_their_content()
    {
        // Names that lie, and a plain file beside a compressed one.
        string module = Write("mmu.gz", Sequence("module", "d-block-unblock"));
        string mmu = WriteGzip("module.jsonl", Sequence("mmu", "d-unmap-td1-l4"));
        ToolResult result = await Tool.RunAsync("conformance", "replay", module, mmu);
        Assert.True(result.ExitCode == 0, result.Output + result.Error);
        Assert.Matches(@"(?m)^ +TDH\.MEM\.RANGE\.BLOCK +TDX_SUCCESS +(\d+) +\1 +0 *$", result.Output);
        Assert.Matches(@"(?m)^ +unmap +true +(\d+) +\1 +0 *$", result.Output);
        int calls = Lines("module", "d-block-unblock") + Lines("mmu", "d-unmap-td1-l4") - 2;
        Assert.Equal($"{calls} calls, 0 mismatches", result.Output.TrimEnd().Split('\n')[^1]);
    }

    [Fact]
    public async Task A_changed_answer_is_shown_with_its_call_both_answers_and_the_entries()
    {
        string[] lines = Sequence("module", "d-block-unblock");
        int at = Array.FindLastIndex(lines, l => l.Contains("\"op\":\"TDH.MEM.RANGE.BLOCK\"", StringComparison.Ordinal) && l.Contains("\"st\":\"TDX_SUCCESS\"", StringComparison.Ordinal));
        lines[at] = lines[at].Replace("\"rax\":\"0x0\"", "\"rax\":\"0x8000020000000092\"", StringComparison.Ordinal);
        string file = Write("changed.jsonl", lines);
        ToolResult result = await Tool.RunAsync("conformance", "replay", file);
        Assert.Equal(1, result.ExitCode);
        Assert.Contains($"mismatch at {file}:{at + 1}: d-block-unblock #", result.Output, StringComparison.Ordinal);
        Assert.Matches(@"rcx 0x[0-9a-f]+: GPA 0x[0-9a-f]+, level \d", result.Output);
        Assert.Matches(@"rax +TDX_OPERAND_BUSY \| OPERAND_ID_SEPT_TREE \(0x8000020000000092\) +TDX_SUCCESS \(0x0\) +differs", result.Output);
        Assert.Matches(@"Secure EPT of 0x100000000, level \d .*BLOCKED", result.Output);
        Assert.Matches(@"PAMT 0x[0-9a-f]+: (REG|EPT), owner 0x100000000", result.Output);
        Assert.Equal($"{lines.Length - 1} calls, 1 mismatches", result.Output.TrimEnd().Split('\n')[^1]);
    }

    [Fact]
    public async Task Stop_at_first_ends_there_and_json_holds_every_mismatch()
    {
        string[] lines = [.. Sequence("mmu", "d-huge").Select(l => l.Replace("\"ret\":\"FIXED\"", "\"ret\":\"SPURIOUS\"", StringComparison.Ordinal))];
        int wrong = Sequence("mmu", "d-huge").Count(l => l.Contains("\"ret\":\"FIXED\"", StringComparison.Ordinal));
        string file = Write("changed.jsonl", lines);
        using JsonDocument all = JsonDocument.Parse((await Tool.RunAsync("conformance", "replay", file, "--json")).Output);
        Assert.Equal(wrong, all.RootElement.GetProperty("mismatched").GetInt32());
        Assert.Equal(wrong, all.RootElement.GetProperty("mismatches").GetArrayLength());
        Assert.Equal(lines.Length - 1, all.RootElement.GetProperty("calls").GetInt32());
        JsonElement first = all.RootElement.GetProperty("mismatches")[0];
        Assert.Equal("ret", first.GetProperty("answers")[0].GetProperty("what").GetString());
        Assert.Equal(("SPURIOUS", "FIXED"), (first.GetProperty("answers")[0].GetProperty("recorded").GetString(), first.GetProperty("answers")[0].GetProperty("simulated").GetString()));

        ToolResult stopped = await Tool.RunAsync("conformance", "replay", file, file, "--stop-at-first");
        Assert.Equal(1, stopped.ExitCode);
        Assert.Matches(@"(?m)^\d+ calls, 1 mismatches$", stopped.Output.TrimEnd());
        Assert.Contains("stopped at the first mismatch", stopped.Output, StringComparison.Ordinal);
        Assert.Matches(@"d0, 2M, gfn 0x[0-9a-f]+: ", stopped.Output);
    }

    [Fact]
    public async Task What_the_recording_says_not_to_compare_is_counted_with_its_rule()
    {
        string file = Write("whatif.jsonl", [.. Sequence("mmu", "d-td-whatif3"), .. Sequence("mmu", "d-td-busy-l4")]);
        ToolResult result = await Tool.RunAsync("conformance", "replay", file);
        Assert.True(result.ExitCode == 0, result.Output + result.Error);
        Assert.Contains("not compared, 1 record: mirror table removed under the read lock", result.Output, StringComparison.Ordinal);
        Assert.Contains("not compared, 5 records: failed removal (injrm)", result.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_file_that_does_not_exist_is_refused() => AssertUsage(await Tool.RunAsync("conformance", "replay", "no-such.jsonl"), "FILE no-such.jsonl: no such file");

    [Fact]
    public async Task A_folder_is_refused() => AssertUsage(await Tool.RunAsync("conformance", "replay", _folder.FullName), "is a folder");

    [Fact]
    public async Task An_empty_file_is_refused() => AssertUsage(await Tool.RunAsync("conformance", "replay", Write("empty.jsonl", [])), "empty.jsonl: holds no records");

    [Fact]
    public async Task A_truncated_gzip_file_is_refused()
    {
        string file = WriteGzip("cut.jsonl.gz", Sequence("module", "d-block-unblock"));
        byte[] bytes = await File.ReadAllBytesAsync(file);
        await File.WriteAllBytesAsync(file, bytes[..(bytes.Length / 2)]);
        AssertUsage(await Tool.RunAsync("conformance", "replay", file), "the gzip data is truncated here", @"cut\.jsonl\.gz:\d+: ");
    }

    [Fact]
    public async Task A_gzip_file_that_is_cut_after_a_whole_line_is_refused()
    {
        // The text is whole; only the length at the end of the file is missing.
        string path = WriteGzip("cut.jsonl.gz", Sequence("module", "d-mng-create"));
        byte[] bytes = await File.ReadAllBytesAsync(path);
        await File.WriteAllBytesAsync(path, bytes[..^8]);
        AssertUsage(await Tool.RunAsync("conformance", "replay", path), "the gzip data is truncated here");
    }

    [Fact]
    public async Task Gzip_members_may_follow_each_other()
    {
        byte[] first = await File.ReadAllBytesAsync(WriteGzip("1.gz", Sequence("module", "d-mng-create")));
        byte[] second = await File.ReadAllBytesAsync(WriteGzip("2.gz", Sequence("module", "d-track")));
        string path = Path.Combine(_folder.FullName, "both.gz");
        await File.WriteAllBytesAsync(path, [.. first, .. second]);
        ToolResult result = await Tool.RunAsync("conformance", "replay", path);
        Assert.Equal(0, result.ExitCode);
        Assert.EndsWith($"{Lines("module", "d-mng-create") + Lines("module", "d-track") - 2} calls, 0 mismatches", result.Output.TrimEnd(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_damaged_gzip_file_is_refused()
    {
        string file = WriteGzip("bad.jsonl.gz", Sequence("module", "d-block-unblock"));
        byte[] bytes = await File.ReadAllBytesAsync(file);
        bytes.AsSpan(bytes.Length / 2, 64).Fill(0xFF);
        await File.WriteAllBytesAsync(file, bytes);
        AssertUsage(await Tool.RunAsync("conformance", "replay", file), "bad.jsonl.gz:", @"bad\.jsonl\.gz:\d+: ");
    }

    [Theory]
    [InlineData(3, "{\"seq\":", "trace.jsonl:3: not JSON")]
    [InlineData(3, "[1,2]", "trace.jsonl:3: not a JSON object")]
    [InlineData(1, "{\"seq\":\"x\",\"t\":\"begin\"}", "trace.jsonl:1: unknown record kind")]
    [InlineData(1, "{\"seq\":\"x\",\"t\":\"end\",\"base\":\"ready\"}", "trace.jsonl:1: unknown record kind")]
    [InlineData(1, "{\"seq\":\"x\",\"t\":\"begin\",\"base\":\"warm\"}", "trace.jsonl:1: 'base' is warm; allowed is ready, cold")]
    [InlineData(2, "{\"seq\":\"y\",\"i\":0}", "trace.jsonl:2: a record of sequence y inside sequence d-block-unblock")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":0,\"in\":{},\"r\":\"ret\"}", "trace.jsonl:2: the member 'op' is missing")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":0,\"op\":\"TDH.MEM.PAGE.STEAL\",\"in\":{},\"r\":\"ret\"}", "trace.jsonl:2: unknown operation TDH.MEM.PAGE.STEAL")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":9,\"op\":\"TDH.MEM.TRACK\",\"in\":{},\"r\":\"ret\"}", "trace.jsonl:2: 'lp' is 9; allowed is a number from 0 to 3")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":0,\"op\":\"TDH.MEM.TRACK\",\"in\":{\"rcx\":\"12\"},\"r\":\"ret\"}", "trace.jsonl:2: 'rcx' is \"12\"; allowed is a whole number or 0x...")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":0,\"op\":\"TDH.MEM.TRACK\",\"in\":{\"cl\":\"0x12\"},\"r\":\"ret\"}", "trace.jsonl:2: unknown register cl")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":0,\"op\":\"TDH.MEM.TRACK\",\"in\":{},\"r\":\"lost\"}", "trace.jsonl:2: 'r' is lost; allowed is ret, td, exit, hit, ok")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":0,\"op\":\"ENV.WRITE\",\"in\":{\"pa\":\"0xffffffff0000\"},\"data\":\"\",\"len\":8,\"r\":\"ok\"}", "trace.jsonl:2: 'pa' is 0xffffffff0000; the machine has no memory there")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":0,\"op\":\"ENV.LOCK\",\"in\":{\"what\":\"door\",\"mode\":\"ex\"},\"r\":\"ok\"}", "trace.jsonl:2: 'what' is door")]
    [InlineData(2, "{\"seq\":\"d-block-unblock\",\"i\":0,\"lp\":0,\"op\":\"TDH.MEM.TRACK\",\"in\":{},\"r\":\"ret\",\"T\":{\"0x1000\":[1]}}", "trace.jsonl:2: 'T' is [1]; allowed is null or 10 numbers")]
    public async Task A_line_that_cannot_be_understood_is_named_with_file_and_line(int line, string text, string message)
    {
        string[] lines = Sequence("module", "d-block-unblock");
        lines[line - 1] = text;
        AssertUsage(await Tool.RunAsync("conformance", "replay", Write("trace.jsonl", lines)), message);
    }

    [Fact]
    public async Task A_record_before_any_header_is_refused() => AssertUsage(
        await Tool.RunAsync("conformance", "replay", Write("trace.jsonl", Sequence("module", "d-block-unblock")[1..])),
        "trace.jsonl:1: a record before the header of its sequence");

    [Theory]
    [InlineData("{\"seq\":\"x\",\"i\":0,\"op\":\"teleport\",\"ret\":null,\"st\":[0,0,0],\"tb\":0}", "trace.jsonl:2: unknown operation teleport")]
    [InlineData("{\"seq\":\"x\",\"i\":0,\"op\":\"wrprot\",\"in\":{\"slot\":7,\"min\":1},\"ret\":0,\"st\":[0,0,0],\"tb\":0}", "trace.jsonl:2: there is no slot 7")]
    [InlineData("{\"seq\":\"x\",\"i\":0,\"op\":\"uninit\",\"st\":[0,0,0],\"tb\":0}", "trace.jsonl:2: the member 'ret' is missing")]
    public async Task A_line_of_an_MMU_recording_that_cannot_be_understood_is_named(string text, string message)
    {
        const string Header = "{\"seq\":\"x\",\"t\":\"begin\",\"cfg\":{\"td\":0,\"level\":4,\"ad\":1,\"xo\":1,\"ipat\":1,\"maxpa\":52,\"pml\":0,\"nx\":0,\"gen\":\"0x0\",\"direct_bits\":\"0x0\"}}";
        AssertUsage(await Tool.RunAsync("conformance", "replay", Write("trace.jsonl", [Header, text])), message);
    }

    [Fact]
    public async Task Control_C_prints_what_was_seen_so_far()
    {
        // The same trace again and again: far more than is replayed before the first line of progress.
        string trace = Path.Combine(Tool.Root, "tests", "Conformance", "data", "module", "random-life.jsonl.gz");
        using Process process = Tool.Start(["conformance", "replay", .. Enumerable.Repeat(trace, 200)]);
        Assert.Contains("random-life", await process.StandardError.ReadLineAsync(), StringComparison.Ordinal);
        using (Process kill = Process.Start("kill", ["-INT", $"{process.Id}"]))
        {
            await kill.WaitForExitAsync();
        }

        string output = await process.StandardOutput.ReadToEndAsync();
        await process.WaitForExitAsync();
        Assert.Equal(130, process.ExitCode);
        Assert.Contains("interrupted", output, StringComparison.Ordinal);
        Assert.Matches(@"(?m)^ +TDH\.MNG\.CREATE +TDX_SUCCESS +(\d+) +\1 +0 *$", output);
        Assert.Matches("^[1-9][0-9]* calls, 0 mismatches$", output.TrimEnd().Split('\n')[^1]);
    }

    private static string[] Sequence(string kind, string name)
    {
        using FileStream stream = File.OpenRead(Path.Combine(Tool.Root, "tests", "Conformance", "data", kind, "directed.jsonl.gz"));
        using var gzip = new GZipStream(stream, CompressionMode.Decompress);
        using var reader = new StreamReader(gzip);
        return [.. reader.ReadToEnd().Split('\n').Where(l => l.StartsWith($"{{\"seq\":\"{name}\",", StringComparison.Ordinal))];
    }

    private static int Lines(string kind, string name) => Sequence(kind, name).Length;

    private string Write(string name, string[] lines)
    {
        string path = Path.Combine(_folder.FullName, name);
        File.WriteAllLines(path, lines);
        return path;
    }

    private string WriteGzip(string name, string[] lines)
    {
        string path = Path.Combine(_folder.FullName, name);
        using var gzip = new GZipStream(File.Create(path), CompressionLevel.Optimal);
        gzip.Write(Encoding.UTF8.GetBytes(string.Join('\n', lines) + "\n"));
        return path;
    }

    private static void AssertUsage(ToolResult result, string message, string? place = null)
    {
        Assert.Equal(2, result.ExitCode);
        Assert.Empty(result.Output);
        string line = Assert.Single(result.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith("tdpmmu: ", line, StringComparison.Ordinal);
        Assert.Contains(message, line, StringComparison.Ordinal);
        if (place is not null)
            Assert.Matches(place, line);
    }
}
