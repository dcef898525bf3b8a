using System.IO;
using System.Threading.Tasks;

namespace Tdp.Tests.EndToEnd;

/// <summary>Everything a user can get wrong is one line on standard error and exit code 2, from the process itself.</summary>
public sealed class BadInputTests
{
    private const ulong Base = 0x40_0000;

    [Theory]
    [InlineData("explode", "unknown verb 'explode'")]
    [InlineData("run --explode", "unknown flag '--explode'")]
    [InlineData("run LICENSE --vcpus 0", "--vcpus 0: allowed is a number from 1 to 32")]
    [InlineData("run LICENSE --memory 1K", "--memory 1K: allowed is a size from 4M to 3G")]
    [InlineData("run no-such-file.elf", "no-such-file.elf: no such file")]
    [InlineData("run LICENSE", "not an ELF file")]
    [InlineData("inspect LICENSE --at exit:1", "not an ELF file")]
    public async Task A_wrong_command_line_ends_with_one_line_and_exit_code_2(string line, string message)
        => AssertUsage(await Tool.RunAsync(line.Split(' ')), message);

    [Fact]
    public async Task A_32_bit_file_is_refused()
    {
        using ElfFile file = new ElfFile((Base, 0x1000)).With(4, 1).Write();
        AssertUsage(await Tool.RunAsync("run", file.Path), "32-bit ELF");
    }

    [Fact]
    public async Task A_dynamic_file_is_refused()
    {
        using ElfFile file = new ElfFile((Base, 0x1000)).With(16, 3, 0).Write();
        AssertUsage(await Tool.RunAsync("run", file.Path), "ET_DYN");
    }

    [Fact]
    public async Task Overlapping_segments_are_refused()
    {
        using ElfFile file = new ElfFile((Base, 0x3000), (Base + 0x2000, 0x1000)).Write();
        AssertUsage(await Tool.RunAsync("run", file.Path), "overlaps");
    }

    [Fact]
    public async Task A_segment_beyond_the_guest_s_memory_is_refused()
    {
        using ElfFile file = new ElfFile((Base, 0x1000), (0x1000_0000, 0x1000)).Write();
        AssertUsage(await Tool.RunAsync("run", file.Path, "--memory", "64M"), "beyond the guest's memory");
    }

    [Fact]
    public async Task A_truncated_file_is_refused()
    {
        using ElfFile file = new ElfFile((Base, 0x1000)).Write();
        await File.WriteAllBytesAsync(file.Path, (await File.ReadAllBytesAsync(file.Path))[..40]);
        AssertUsage(await Tool.RunAsync("run", file.Path), "the file ends after 40 of 64 bytes");
    }

    private static void AssertUsage(ToolResult result, string message)
    {
        Assert.Equal(2, result.ExitCode);
        Assert.Empty(result.Output);
        string line = Assert.Single(result.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith("tdpmmu: ", line, StringComparison.Ordinal);
        Assert.Contains(message, line, StringComparison.Ordinal);
    }
}
