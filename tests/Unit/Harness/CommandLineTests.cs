using System.IO;
using Tdp.Harness.Cli;

namespace Tdp.Tests.Unit.Harness;

/// <summary>The command line: what is read, and that everything wrong is one line that names the flag, the value and what is allowed.</summary>
public sealed class CommandLineTests : IDisposable
{
    private readonly string _file = Path.GetTempFileName();
    private readonly List<object> _seen = [];

    [Theory]
    [InlineData("", "no verb given: allowed is run, stress, bench, inspect, conformance, scenario, measure, seamcall")]
    [InlineData("explode", "unknown verb 'explode': allowed is run, stress, bench, inspect, conformance, scenario, measure, seamcall")]
    [InlineData("--explode", "unknown flag '--explode': allowed is --help, --version, --no-color")]
    [InlineData("run", "GUEST.elf is missing: tdpmmu run GUEST.elf")]
    [InlineData("run no-such.elf", "GUEST.elf no-such.elf: no such file")]
    [InlineData("run FILE --vcpus 0", "--vcpus 0: allowed is a number from 1 to 32")]
    [InlineData("run FILE --vcpus many", "--vcpus many: allowed is a number from 1 to 32")]
    [InlineData("run FILE --vcpus", "--vcpus: a value is missing")]
    [InlineData("run FILE --memory 1K", "--memory 1K: allowed is a size from 4M to 3G in steps of 2M, such as 64M")]
    [InlineData("run FILE --memory 5M", "--memory 5M: allowed is a size from 4M to 3G in steps of 2M, such as 64M")]
    [InlineData("run FILE --accept never", "--accept never: allowed is eager or lazy")]
    [InlineData("run FILE --seed 0xzz", "--seed 0xzz: allowed is a 64-bit number, decimal or 0x...")]
    [InlineData("run FILE --speed 3", "unknown flag '--speed' for 'run': allowed is --vcpus, --memory, --vm, --accept, --seed, --json, --trace, --help, --no-color")]
    [InlineData("run --speed", "unknown flag '--speed' for 'run': allowed is --vcpus, --memory, --vm, --accept, --seed, --json, --trace, --help, --no-color")]
    [InlineData("run FILE other", "unexpected argument 'other' for 'run'")]
    [InlineData("stress --duration 3", "--duration 3: allowed is a duration above 0, such as 500ms, 30s, 5m, 1h")]
    [InlineData("stress --duration 3s --iterations 9", "--duration and --iterations: allowed is one of them")]
    [InlineData("stress --busy 5", "--busy 5: allowed is a percentage from 0% to 50%, such as 5% or 0.1%")]
    [InlineData("stress --busy 51%", "--busy 51%: allowed is a percentage from 0% to 50%, such as 5% or 0.1%")]
    [InlineData("stress --iterations 0", "--iterations 0: allowed is a number above 0")]
    [InlineData("stress --module --vcpus 2", "--module and --vcpus: allowed is one of them; the module is stressed on two processors")]
    [InlineData("stress --round 3", "--round: allowed is with --module")]
    [InlineData("stress --module --round -1", "--round -1: allowed is a number from 0 up")]
    [InlineData("bench", "no verb given for 'bench': allowed is fault-in")]
    [InlineData("bench zap", "unknown verb 'zap' for 'bench': allowed is fault-in")]
    [InlineData("bench fault-in --order backwards", "--order backwards: allowed is seq or random or overlap")]
    [InlineData("inspect FILE", "--at is missing: allowed is exit:N with N above 0, or gpa:0x...")]
    [InlineData("inspect FILE --at exit:0", "--at exit:0: allowed is exit:N with N above 0, or gpa:0x...")]
    [InlineData("conformance", "no verb given for 'conformance': allowed is replay")]
    [InlineData("conformance replay", "FILE is missing: tdpmmu conformance replay FILE")]
    [InlineData("conformance replay FILE --loud", "unknown flag '--loud' for 'replay': allowed is --stop-at-first, --json, --help, --no-color")]
    public void A_wrong_command_line_is_one_line_and_exit_code_2(string line, string message)
    {
        (int code, string output, string error) = Execute(line);
        Assert.Equal($"tdpmmu: {message}{Environment.NewLine}", error);
        Assert.Equal(2, code);
        Assert.Empty(output);
        Assert.Empty(_seen);
    }

    [Theory]
    [InlineData("write-private")]
    [InlineData("punch-hole")]
    [InlineData("write-private,punch-hole,zap")]
    [InlineData("write-private,write-private,punch-hole")]
    public void A_list_of_operations_needs_known_names_and_work_for_both_kinds_of_threads(string list)
    {
        (int code, _, string error) = Execute($"stress --ops {list}");
        Assert.Equal((2, $"tdpmmu: --ops {list}: allowed is all, or a list of {StressOperations.Allowed}, with at least one of a vCPU and one of the host{Environment.NewLine}"), (code, error));
    }

    [Fact]
    public void Stress_reads_operations_and_the_share_of_busy_answers()
    {
        Assert.Equal(0, Execute("stress --ops write-private,punch-hole --busy 5%").Code);
        Assert.Equal(0, Execute("stress --ops all --busy 0.1%").Code);
        StressSettings[] seen = [.. _seen.Cast<StressSettings>()];
        Assert.Equal(["write-private", "punch-hole"], seen[0].Ops!);
        Assert.Equal((50_000, 1_000), (seen[0].BusyPerMillion, seen[1].BusyPerMillion));
        Assert.Null(seen[1].Ops);
    }

    [Fact]
    public void Run_reads_every_flag()
    {
        Assert.Equal(0, Execute("run FILE --vcpus 4 --memory 128M --vm --accept eager --seed 0x2a --json --trace out.txt").Code);
        Assert.Equal(new RunSettings(_file, 4, 128UL << 20, true, true, 42, true, "out.txt"), Assert.Single(_seen));
    }

    [Fact]
    public void Run_needs_only_the_guest()
    {
        Assert.Equal(0, Execute("run FILE").Code);
        Assert.Equal(new RunSettings(_file, 1, 64UL << 20, false, false, 1, false, null), Assert.Single(_seen));
    }

    [Fact]
    public void Stress_runs_for_ten_seconds_unless_told_otherwise()
    {
        Assert.Equal(0, Execute("stress").Code);
        Assert.Equal(0, Execute("stress --iterations 500 --vcpus 3").Code);
        Assert.Equal([new StressSettings(TimeSpan.FromSeconds(10), null, 2, 1, false), new StressSettings(null, 500, 3, 1, false)], _seen.Cast<StressSettings>());
    }

    [Fact]
    public void Stress_of_the_module_reads_its_round()
    {
        Assert.Equal(0, Execute("stress --module --iterations 1000000").Code);
        Assert.Equal(0, Execute("stress --module --seed 7 --round 12").Code);
        Assert.Equal([new StressSettings(null, 1_000_000, 2, 1, false, true), new StressSettings(TimeSpan.FromSeconds(10), null, 2, 7, false, true, 12)], _seen.Cast<StressSettings>());
    }

    [Fact]
    public void Bench_measures_both_roots_on_one_and_two_threads_unless_told_otherwise()
    {
        Assert.Equal(0, Execute("bench fault-in").Code);
        Assert.Equal(new BenchSettings(1 << 17, null, null, "seq", false), Assert.Single(_seen));
    }

    [Fact]
    public void Inspect_reads_an_exit_number_or_an_address()
    {
        Assert.Equal(0, Execute("inspect FILE --at exit:12").Code);
        Assert.Equal(0, Execute("inspect FILE --at gpa:0x200000").Code);
        Assert.Equal([(12L, null), (null, 0x200000UL)], _seen.Cast<InspectSettings>().Select(s => (s.ExitNumber, s.Gpa)));
    }

    [Theory]
    [InlineData("--help")]
    [InlineData("run --help")]
    [InlineData("stress --help")]
    [InlineData("bench fault-in --help")]
    [InlineData("inspect --help")]
    public void Help_goes_to_standard_output_with_examples(string line)
    {
        (int code, string output, string error) = Execute(line);
        Assert.Equal(0, code);
        Assert.Empty(error);
        Assert.Contains("Examples:", output, StringComparison.Ordinal);
        Assert.Contains("  tdpmmu ", output, StringComparison.Ordinal);
    }

    [Fact]
    public void The_former_name_of_the_frozen_value_is_mentioned_once()
        => Assert.Contains("FROZEN_SPTE, formerly called REMOVED_SPTE", Execute("inspect --help").Output, StringComparison.Ordinal);

    [Theory]
    [InlineData("4096", 4096UL)]
    [InlineData("4K", 4096UL)]
    [InlineData("3m", 3UL << 20)]
    [InlineData("2G", 2UL << 30)]
    public void Sizes_count_in_powers_of_1024(string text, ulong bytes)
    {
        Assert.True(Quantities.TrySize(text, out ulong read));
        Assert.Equal(bytes, read);
    }

    [Theory]
    [InlineData("")]
    [InlineData("K")]
    [InlineData("-4K")]
    [InlineData("1.5G")]
    [InlineData("20000000000G")]
    public void Other_sizes_are_refused(string text) => Assert.False(Quantities.TrySize(text, out _));

    public void Dispose() => File.Delete(_file);

    private (int Code, string Output, string Error) Execute(string line)
    {
        using StringWriter output = new();
        using StringWriter error = new();
        int Seen(object settings)
        {
            _seen.Add(settings);
            return 0;
        }

        string[] args = [.. line.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(a => a is "FILE" ? _file : a)];
        int code = CommandLine.Execute(args, _ => new Actions(Seen, Seen, Seen, Seen, Seen, Seen, Seen, Seen), output, error);
        return (code, output.ToString(), error.ToString());
    }
}
