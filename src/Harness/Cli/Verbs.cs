using System.CommandLine;
using System.Globalization;
using System.IO;

namespace Tdp.Harness.Cli;

/// <summary>The verbs of the command: their options, and how these become settings.</summary>
internal static class Verbs
{
    private const int MaxVcpus = 32;
    private const ulong LeastMemory = 4UL << 20;
    private const ulong MostMemory = 3UL << 30;
    private const ulong DefaultMemory = 64UL << 20;

    /// <summary>Boots a guest program and reports what happened.</summary>
    public static Command Run(Func<RunSettings, int> act)
    {
        Argument<string> guest = Guest();
        Option<int> vcpus = Vcpus(1);
        Option<ulong?> memory = Memory();
        Option<bool> vm = Flags.Switch("--vm", "Run in an ordinary VM instead of a TD.");
        Option<string?> accept = Accept();
        Option<ulong> seed = Seed();
        Option<bool> json = Json("Write the report to stdout as JSON; the guest's console goes to stderr.");
        Option<string?> trace = Flags.Path("--trace", "Write every exit, fault and SEAMCALL to FILE, one per line.");
        Command command = new("run", "Boot a guest program in a TD (or an ordinary VM), show its console, and report faults, accepted pages, conversions and SEAMCALLs.")
        {
            guest, vcpus, memory, vm, accept, seed, json, trace,
        };
        command.SetAction(p => act(new RunSettings(
            Existing(p.GetRequiredValue(guest)), p.GetValue(vcpus), p.GetValue(memory) ?? DefaultMemory, p.GetValue(vm), p.GetValue(accept) is "eager", p.GetValue(seed), p.GetValue(json), p.GetValue(trace))));
        return command;
    }

    /// <summary>Runs generated programs on real threads and checks the invariants.</summary>
    public static Command Stress(Func<StressSettings, int> act)
    {
        Option<TimeSpan?> duration = Flags.Duration("--duration", "How long to run, such as 30s, 5m, 1h. 10s if neither this nor --iterations is given.");
        Option<long?> iterations = Flags.Count("--iterations", "How many operations to run, over all threads.");
        Option<int> vcpus = Vcpus(2);
        Option<ulong> seed = Seed();
        Option<string?> ops = Flags.Text("--ops", "all|LIST", $"Which operations are drawn: all, or names separated by commas: {StressOperations.Allowed}.", $"all, or a list of {StressOperations.Allowed}, with at least one of a vCPU and one of the host", s => StressOperations.TryParse(s, out _));
        Option<string?> busy = Flags.Text("--busy", "P%", "How many of the module calls that may answer BUSY do so without a reason. 0.3906% (1 of 256) if not given.", "a percentage from 0% to 50%, such as 5% or 0.1%", s => StressOperations.TryPercent(s, out _));
        Option<bool> json = Json("Write the report to stdout as JSON.");
        Option<bool> module = Flags.Switch("--module", "Stress the TDX module alone: any value in any register of any leaf, host and guest side, on two processors.");
        Option<long?> round = Flags.Whole("--round", "With --module: only this round, as a finding names it.");
        Command command = new("stress", "Run generated fault, zap, conversion, notifier and slot programs on real threads and check the invariants; or, with --module, garbage for the TDX module.")
        {
            duration, iterations, vcpus, seed, ops, busy, json, module, round,
        };
        command.Validators.Add(result =>
        {
            if (result.GetResult(duration) is { Implicit: false } && result.GetResult(iterations) is { Implicit: false })
            {
                result.AddError("--duration and --iterations: allowed is one of them");
            }

            if (result.GetValue(module) && result.GetResult(vcpus) is { Implicit: false })
            {
                result.AddError("--module and --vcpus: allowed is one of them; the module is stressed on two processors");
            }

            if (!result.GetValue(module) && result.GetResult(round) is { Implicit: false })
            {
                result.AddError("--round: allowed is with --module");
            }
        });
        command.SetAction(p =>
        {
            long? count = p.GetValue(iterations);
            TimeSpan? time = p.GetValue(duration);
            StressSettings settings = new(count is null ? time ?? TimeSpan.FromSeconds(10) : time, count, p.GetValue(vcpus), p.GetValue(seed), p.GetValue(json), p.GetValue(module), p.GetValue(round));
            if (p.GetValue(ops) is { } list && StressOperations.TryParse(list, out IReadOnlyList<string>? names))
            {
                settings = settings with { Ops = names };
            }

            if (p.GetValue(busy) is { } share && StressOperations.TryPercent(share, out int perMillion))
            {
                settings = settings with { BusyPerMillion = perMillion };
            }

            return act(settings);
        });
        return command;
    }

    /// <summary>Measures.</summary>
    public static Command Bench(Func<BenchSettings, int> act)
    {
        Option<int> pages = Flags.Number("--pages", "Pages that each thread faults in.", 512, 1 << 24, 1 << 17);
        Option<int> threads = Flags.Number("--threads", "Faulting threads. 1 and then 2 if not given.", 1, MaxVcpus, 0);
        Option<string?> root = Flags.Choice("--root", "Which tree takes the faults: the direct one (shared memory, ordinary VMs) or the mirror with its Secure EPT. Both if not given.", "direct", "mirror");
        Option<string?> order = Flags.Choice("--order", "The order of the pages: seq (each thread its own range), random, or overlap (all threads the same range). seq if not given.", "seq", "random", "overlap");
        Option<bool> json = Json("Write the rows to stdout as JSON.");
        Command faultIn = new("fault-in", "Fault pages in and compare with the floor: the tightest walk and compare-exchange over the same memory in the same order.")
        {
            pages, threads, root, order, json,
        };
        faultIn.SetAction(p => act(new BenchSettings(
            p.GetValue(pages), p.GetValue(threads) is var n and not 0 ? n : null, p.GetValue(root), p.GetValue(order) ?? "seq", p.GetValue(json))));
        return new Command("bench", "Measure the page-table code.") { faultIn };
    }

    /// <summary>Shows the three trees of a TD.</summary>
    public static Command Inspect(Func<InspectSettings, int> act)
    {
        Argument<string> guest = Guest();
        Option<string?> at = Flags.Text("--at", "exit:N|gpa:0x...", "Where to stop: when the host has handled the N-th exit of vCPU 0, or the first fault on the page with this address.", "exit:N with N above 0, or gpa:0x...", s => Place(s, out _, out _));
        Option<int> vcpus = Vcpus(1);
        Option<ulong?> memory = Memory();
        Option<string?> accept = Accept();
        Option<ulong> seed = Seed();
        Command command = new("inspect", "Run a guest program in a TD up to a point and show its three trees side by side: the shared EPT, the mirror, and the Secure EPT.")
        {
            guest, at, vcpus, memory, accept, seed,
        };
        command.SetAction(p =>
        {
            if (!Place(p.GetValue(at) ?? string.Empty, out long? exit, out ulong? gpa))
            {
                throw new UsageException("--at is missing: allowed is exit:N with N above 0, or gpa:0x...");
            }

            return act(new InspectSettings(Existing(p.GetRequiredValue(guest)), exit, gpa, p.GetValue(vcpus), p.GetValue(memory) ?? DefaultMemory, p.GetValue(accept) is "eager", p.GetValue(seed)));
        });
        return command;
    }

    /// <summary>Compares with recorded answers.</summary>
    public static Command Conformance(Func<ReplaySettings, int> act)
    {
        Argument<string[]> files = new("FILE") { Description = "Traces: one JSON object per line, plain or gzip. What was recorded is read from the file.", Arity = ArgumentArity.OneOrMore };
        Option<bool> stop = Flags.Switch("--stop-at-first", "End at the first mismatch.");
        Option<bool> json = Json("Write the report to stdout as JSON, with every mismatch.");
        Command replay = new("replay", "Replay recorded answers of the real TDX module, or of the kernel's own TDP MMU, and compare every answer and every state.")
        {
            files, stop, json,
        };
        replay.SetAction(p => act(new ReplaySettings(p.GetRequiredValue(files), p.GetValue(stop), p.GetValue(json))));
        return new Command("conformance", "Compare with recordings of the real thing.") { replay };
    }

    /// <summary>Checks and executes scenario files.</summary>
    public static Command Scenario(Func<ScenarioSettings, int> act)
    {
        Argument<string[]> files = new("FILE") { Description = "Scenario files, or names of built-in scenarios such as R05 (tdpmmu scenario list).", Arity = ArgumentArity.OneOrMore };
        Argument<string> name = new("NAME") { Description = "The name of a built-in scenario, such as R05." };
        Option<ulong> seed = Seed();
        Option<int> repeat = Flags.Number("--repeat", "How often each scenario is executed. How threads meet differs from time to time.", 1, 100_000_000, 20);
        Option<bool> json = Json("Write the report to stdout as JSON.");
        Command check = new("check", "Read scenario files and say what is wrong with them: file, line, column, and what is allowed.") { files };
        check.SetAction(p => act(new ScenarioSettings("check", p.GetValue(files) ?? [], 1, 1, false)));
        Command run = new("run", "Execute scenarios on real threads and judge the required outcome and the invariants.") { files, seed, repeat, json };
        run.SetAction(p => act(new ScenarioSettings("run", p.GetValue(files) ?? [], p.GetValue(seed), p.GetValue(repeat), p.GetValue(json))));
        Command list = new("list", "List the built-in scenarios: the race catalogue.") { json };
        list.SetAction(p => act(new ScenarioSettings("list", [], 1, 1, p.GetValue(json))));
        Command show = new("show", "Print the text of a built-in scenario.") { name };
        show.SetAction(p => act(new ScenarioSettings("show", [p.GetRequiredValue(name)], 1, 1, false)));
        return new Command("scenario", "Check, execute and list scenario files: small concurrent programs with a required outcome.") { check, run, list, show };
    }

    /// <summary>Computes the measurement of a guest's initial image.</summary>
    public static Command Measure(Func<MeasureSettings, int> act)
    {
        Argument<string> guest = Guest();
        Option<int> vcpus = Vcpus(1);
        Option<ulong?> memory = Memory();
        Option<string?> accept = Accept();
        Option<ulong> seed = Seed();
        Option<bool> steps = Flags.Switch("--steps", "Print every step of the measurement before the result.");
        Option<bool> json = Json("Write the report to stdout as JSON.");
        Command command = new("measure", "Print the MRTD that a TD of a guest program will have, given the same options as run.")
        {
            guest, vcpus, memory, accept, seed, steps, json,
        };
        command.SetAction(p => act(new MeasureSettings(
            Existing(p.GetRequiredValue(guest)), p.GetValue(vcpus), p.GetValue(memory) ?? DefaultMemory, p.GetValue(accept) is "eager", p.GetValue(seed), p.GetValue(steps), p.GetValue(json))));
        return command;
    }

    /// <summary>Drives the TDX module line by line.</summary>
    public static Command Seamcall(Func<SeamcallSettings, int> act)
    {
        Option<string?> script = Flags.Path("--script", "Read the session from FILE. Standard input if not given.");
        Option<int> lps = Flags.Number("--lps", "Logical processors of the machine, in two packages.", 2, MaxVcpus, 2);
        Option<string?> profile = Flags.Choice("--profile", "Behaviour where documents and code differ. documented if not given.", "documented", "tdx15");
        Option<bool> json = Json("Write the calls to stdout as JSON.");
        Command command = new("seamcall", "Try SEAMCALLs and TDCALLs by hand: one leaf with named operands a line. The line 'help' lists leaves and commands, 'help LEAF' what a leaf takes and answers.")
        {
            script, lps, profile, json,
        };
        command.SetAction(p => act(new SeamcallSettings(p.GetValue(script), p.GetValue(lps), p.GetValue(profile) is "tdx15", p.GetValue(json))));
        return command;
    }

    private static Argument<string> Guest() => new("GUEST.elf") { Description = "A static 64-bit x86 ELF program, such as those in samples/." };

    private static Option<int> Vcpus(int otherwise) => Flags.Number("--vcpus", "How many vCPUs.", 1, MaxVcpus, otherwise);

    private static Option<ulong?> Memory() => Flags.Size("--memory", "The guest's memory. 64M if not given.", LeastMemory, MostMemory);

    private static Option<ulong> Seed() => Flags.Word("--seed", "The master seed, decimal or 0x.", 1);

    private static Option<bool> Json(string description) => Flags.Switch("--json", description);

    private static Option<string?> Accept() => Flags.Choice("--accept", "When the guest accepts its memory: all of it at boot, or each page at its first touch. lazy if not given.", "eager", "lazy");

    private static string Existing(string path)
        => File.Exists(path) ? path : throw new UsageException($"GUEST.elf {path}: {(Directory.Exists(path) ? "is a folder; allowed is a static 64-bit x86 ELF file" : "no such file")}");

    private static bool Place(string text, out long? exit, out ulong? gpa)
    {
        exit = null;
        gpa = null;
        if (text.StartsWith("exit:", StringComparison.Ordinal) && long.TryParse(text.AsSpan(5), NumberStyles.None, CultureInfo.InvariantCulture, out long number) && number > 0)
        {
            exit = number;
        }
        else if (text.StartsWith("gpa:0x", StringComparison.OrdinalIgnoreCase) && Quantities.TryWord(text[4..], out ulong address))
        {
            gpa = address;
        }

        return exit is not null || gpa is not null;
    }
}
