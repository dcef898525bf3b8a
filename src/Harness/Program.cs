using System.Text;
using Tdp.Harness.Cli;

namespace Tdp.Harness;

/// <summary>The entry point of the command <c>tdpmmu</c>.</summary>
internal static class Program
{
    private static int Main(string[] args)
    {
        Console.OutputEncoding = new UTF8Encoding(encoderShouldEmitUTF8Identifier: false);
        using Interruption interruption = new();
        return CommandLine.Execute(
            args,
            parsed => throw new EnvironmentException("not yet"),
            Console.Out,
            Console.Error);
    }
}
