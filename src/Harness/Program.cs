using System.CommandLine;
using System.Text;
using Tdp.Harness.Bench;
using Tdp.Harness.Cli;
using Tdp.Harness.Conformance;
using Tdp.Harness.Reports;
using Tdp.Harness.Running;
using Tdp.Harness.ScenarioFiles;
using Tdp.Harness.Seamcall;
using Tdp.Harness.Stress;

namespace Tdp.Harness;

/// <summary>The entry point of the command <c>tdpmmu</c>.</summary>
internal static class Program
{
    private static int Main(string[] args)
    {
        Console.OutputEncoding = new UTF8Encoding(encoderShouldEmitUTF8Identifier: false);
        using Interruption interruption = new();
        try
        {
            return CommandLine.Execute(args, parsed => Actions(parsed, interruption), Console.Out, Console.Error);
        }
        catch (Exception e)
        {
            // A bug of the simulator, not of the guest or of the user: the line says what, the rest is for whoever mends it.
            Console.Error.WriteLine($"tdpmmu: internal error: {e.GetType().Name}: {e.Message.ReplaceLineEndings(" ")}");
            Console.Error.WriteLine(e.StackTrace);
            return ExitCode.Failed;
        }
    }

    private static Actions Actions(ParseResult parsed, Interruption interruption)
    {
        Screen screen = new(Console.Out, Console.Error, parsed.GetValue(CommandLine.NoColor));
        return new Actions(
            s => RunVerb.Run(s, screen, interruption),
            s => s.Module ? ModuleStressVerb.Run(s, screen, interruption) : StressVerb.Run(s, screen, interruption),
            s => BenchVerb.Run(s, screen, interruption),
            s => InspectVerb.Run(s, screen, interruption),
            s => ConformanceVerb.Replay(s, screen, interruption),
            s => s.Verb switch
            {
                "check" => ScenarioVerb.Check(s.Files, screen),
                "run" => ScenarioVerb.Run(s, screen, interruption),
                "list" => ScenarioVerb.List(s.Json, screen),
                _ => ScenarioVerb.Show(s.Files[0], screen),
            },
            s => MeasureVerb.Run(s, screen),
            s => SeamcallVerb.Run(s, screen, interruption, Console.In, !Console.IsInputRedirected));
    }
}
