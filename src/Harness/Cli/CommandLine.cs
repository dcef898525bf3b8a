using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.CommandLine.Parsing;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;

namespace Tdp.Harness.Cli;

/// <summary>What the verbs do once their settings are read.</summary>
internal sealed record Actions(
    Func<RunSettings, int> Run, Func<StressSettings, int> Stress, Func<BenchSettings, int> Bench, Func<InspectSettings, int> Inspect, Func<ReplaySettings, int> Replay,
    Func<ScenarioSettings, int> Scenario, Func<MeasureSettings, int> Measure, Func<SeamcallSettings, int> Seamcall);

/// <summary>The command <c>tdpmmu</c>: parsing, help with examples, and one-line errors. Nothing here draws, so a parse error and <c>--help</c> cost only the parser.</summary>
internal static class CommandLine
{
    private const string Description =
        "A TDP MMU and TDX module that can be put under a microscope: boot a confidential guest, fault its memory in through a mirror root and a Secure EPT, and see every step.";

    private static readonly Dictionary<string, string[]> Examples = new(StringComparer.Ordinal)
    {
        ["tdpmmu"] =
        [
            "tdpmmu run samples/hello.elf",
            "tdpmmu stress --duration 30s --vcpus 4",
            "tdpmmu bench fault-in --root mirror",
            "tdpmmu inspect samples/hello.elf --at exit:10",
            "tdpmmu scenario run R05 --repeat 1000",
        ],
        ["scenario"] = ["tdpmmu scenario list", "tdpmmu scenario run R01 R05 --repeat 1000", "tdpmmu scenario check my.scenario"],
        ["scenario check"] = ["tdpmmu scenario check my.scenario"],
        ["scenario run"] = ["tdpmmu scenario run R05", "tdpmmu scenario run my.scenario --repeat 10000 --seed 7", "tdpmmu scenario run R01 R02 R03 --json"],
        ["scenario list"] = ["tdpmmu scenario list"],
        ["scenario show"] = ["tdpmmu scenario show R05 > my.scenario"],
        ["run"] =
        [
            "tdpmmu run samples/hello.elf",
            "tdpmmu run samples/workload.elf --vcpus 4 --memory 128M --accept eager",
            "tdpmmu run samples/workload.elf --vm",
            "tdpmmu run samples/hello.elf --json --trace exits.txt",
        ],
        ["stress"] =
        [
            "tdpmmu stress --duration 60s --vcpus 4 --seed 1",
            "tdpmmu stress --duration 10m --vcpus 8 --ops all --busy 5%",
            "tdpmmu stress --ops write-private,map-shared,convert-private,punch-hole",
            "tdpmmu stress --iterations 100000 --seed 0x2a --json",
            "tdpmmu stress --module --iterations 1000000",
            "tdpmmu stress --module --seed 1 --round 7",
        ],
        ["bench"] = ["tdpmmu bench fault-in"],
        ["fault-in"] =
        [
            "tdpmmu bench fault-in",
            "tdpmmu bench fault-in --root direct --order random --pages 1048576 --threads 1",
            "tdpmmu bench fault-in --root mirror --json",
        ],
        ["measure"] =
        [
            "tdpmmu measure samples/hello.elf",
            "tdpmmu measure samples/hello.elf --vcpus 2 --memory 128M --steps",
        ],
        ["seamcall"] =
        [
            "tdpmmu seamcall --script samples/build-td.seamcall",
            "echo 'help TDH.MEM.PAGE.AUG' | tdpmmu seamcall",
            "tdpmmu seamcall",
        ],
        ["inspect"] =
        [
            "tdpmmu inspect samples/hello.elf --at exit:10",
            "tdpmmu inspect samples/hello.elf --at gpa:0x200000",
        ],
        ["conformance"] = ["tdpmmu conformance replay tests/Conformance/data/module/directed.jsonl.gz"],
        ["replay"] =
        [
            "tdpmmu conformance replay tests/Conformance/data/module/*.gz tests/Conformance/data/mmu/*.gz",
            "tdpmmu conformance replay trace.jsonl --stop-at-first",
            "tdpmmu conformance replay trace.jsonl.gz --json",
        ],
    };

    private static readonly Dictionary<string, string> Notes = new(StringComparer.Ordinal)
    {
        ["inspect"] = "An entry that one thread is changing shows as FROZEN: the value FROZEN_SPTE, formerly called REMOVED_SPTE.",
        ["tdpmmu"] = "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 this machine cannot run it, 130 and 143 interrupted after writing partial results.",
    };

    /// <summary>Builds the command.</summary>
    public static RootCommand Build(Actions actions)
    {
        RootCommand root = new(Description)
        {
            Verbs.Run(actions.Run),
            Verbs.Stress(actions.Stress),
            Verbs.Bench(actions.Bench),
            Verbs.Inspect(actions.Inspect),
            Verbs.Conformance(actions.Replay),
            Verbs.Scenario(actions.Scenario),
            Verbs.Measure(actions.Measure),
            Verbs.Seamcall(actions.Seamcall),
        };
        root.Options.Add(NoColor);
        foreach (Option option in root.Options)
        {
            if (option is HelpOption { Action: HelpAction usual } help)
            {
                help.Action = new HelpWithExamples(usual);
            }
        }

        return root;
    }

    /// <summary>Switches colours off. The environment variable NO_COLOR does the same.</summary>
    public static Option<bool> NoColor { get; } = new("--no-color") { Description = "No colours.", Recursive = true, Arity = ArgumentArity.Zero };

    /// <summary>Parses and runs.</summary>
    /// <param name="args">The arguments.</param>
    /// <param name="actions">What the verbs do.</param>
    /// <param name="output">For data and help.</param>
    /// <param name="error">For one-line errors.</param>
    /// <returns>The exit code.</returns>
    public static int Execute(string[] args, Func<ParseResult, Actions> actions, TextWriter output, TextWriter error)
    {
        ParseResult? parsed = null;
        Actions Late() => actions(parsed!);
        RootCommand root = Build(new Actions(
            s => Late().Run(s), s => Late().Stress(s), s => Late().Bench(s), s => Late().Inspect(s), s => Late().Replay(s), s => Late().Scenario(s),
            s => Late().Measure(s), s => Late().Seamcall(s)));
        parsed = root.Parse(args);
        bool aboutItself = parsed.Action is HelpWithExamples || root.Options.Any(o => o is VersionOption && parsed.GetResult(o) is not null);
        if (!aboutItself && Problem(parsed) is { } problem)
        {
            error.WriteLine($"tdpmmu: {problem}");
            return ExitCode.Usage;
        }

        try
        {
            return parsed.Invoke(new InvocationConfiguration { Output = output, Error = error, EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null });
        }
        catch (UsageException e)
        {
            error.WriteLine($"tdpmmu: {e.Message}");
            return ExitCode.Usage;
        }
        catch (EnvironmentException e)
        {
            error.WriteLine($"tdpmmu: {e.Message}");
            return ExitCode.Environment;
        }
    }

    /// <summary>Refuses machines whose page-table words and memory mapping are not the ones the simulator uses.</summary>
    public static void RequireSupportedHost()
    {
        if (!OperatingSystem.IsLinux() || RuntimeInformation.ProcessArchitecture is not Architecture.X64)
        {
            throw new EnvironmentException($"this host is {RuntimeInformation.RuntimeIdentifier}; supported is linux-x64");
        }
    }

    /// <summary>The first thing that is wrong with the command line, in one line, or <see langword="null"/>.</summary>
    private static string? Problem(ParseResult parsed)
    {
        Command command = parsed.CommandResult.Command;
        string verbs = string.Join(", ", command.Subcommands.Select(c => c.Name));
        if ((StrayFlag(parsed) ?? (parsed.UnmatchedTokens is [var first, ..] ? first : null)) is { } token)
        {
            string where = command is RootCommand ? string.Empty : $" for '{command.Name}'";
            if (token.StartsWith('-'))
            {
                return $"unknown flag '{token}'{where}: allowed is {string.Join(", ", FlagsOf(parsed.CommandResult))}";
            }

            return command.Subcommands.Count > 0 ? $"unknown verb '{token}'{where}: allowed is {verbs}" : $"unexpected argument '{token}'{where}";
        }

        if (command.Subcommands.Count > 0 && command.Action is null)
        {
            return $"no verb given{(command is RootCommand ? string.Empty : $" for '{command.Name}'")}: allowed is {verbs}";
        }

        foreach (ParseError problem in parsed.Errors)
        {
            return problem.SymbolResult switch
            {
                ArgumentResult { Tokens.Count: 0, Parent: OptionResult option } => $"{option.Option.Name}: a value is missing",
                OptionResult { Tokens.Count: 0, Implicit: false } option => $"{option.Option.Name}: a value is missing",
                ArgumentResult { Tokens.Count: 0 } argument => $"{argument.Argument.Name} is missing: {PathOf(parsed.CommandResult)} {argument.Argument.Name}",
                _ => OneLine(problem.Message),
            };
        }

        return null;
    }

    // An unknown flag lands in the first argument that takes any text.
    private static string? StrayFlag(ParseResult parsed)
        => parsed.CommandResult.Children.OfType<ArgumentResult>().SelectMany(a => a.Tokens).Select(t => t.Value).FirstOrDefault(t => t.Length > 1 && t[0] == '-');

    private static string PathOf(CommandResult result) => result.Parent is CommandResult parent ? $"{PathOf(parent)} {result.Command.Name}" : "tdpmmu";

    private static string OneLine(string text) => text.ReplaceLineEndings(" ").Trim();

    private static IEnumerable<string> FlagsOf(CommandResult? result)
    {
        for (SymbolResult? at = result; at is not null; at = at.Parent)
        {
            if (at is CommandResult command)
            {
                foreach (Option option in command.Command.Options)
                {
                    if (ReferenceEquals(at, result) || option.Recursive)
                    {
                        yield return option.Name;
                    }
                }
            }
        }
    }

    /// <summary>The usual help, then examples that can be pasted.</summary>
    private sealed class HelpWithExamples(HelpAction usual) : SynchronousCommandLineAction
    {
        public override bool ClearsParseErrors => true;

        public override int Invoke(ParseResult parseResult)
        {
            int code = usual.Invoke(parseResult);
            TextWriter output = parseResult.InvocationConfiguration.Output;
            Command command = parseResult.CommandResult.Command;
            string name = command is RootCommand ? "tdpmmu" : command.Name;
            foreach (Symbol parent in command.Parents)
            {
                // Verbs of verbs may share their name with a verb.
                name = Examples.ContainsKey($"{parent.Name} {name}") ? $"{parent.Name} {name}" : name;
            }

            output.WriteLine("Examples:");
            foreach (string example in Examples.GetValueOrDefault(name, []))
            {
                output.WriteLine($"  {example}");
            }

            output.WriteLine();
            if (Notes.TryGetValue(name, out string? note))
            {
                output.WriteLine(note);
            }

            return code;
        }
    }
}
