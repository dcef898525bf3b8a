namespace Tdp.Harness;

/// <summary>The entry point of the command <c>tdpmmu</c>.</summary>
internal static class Program
{
    private static int Main(string[] args)
    {
        Console.Error.WriteLine($"tdpmmu: {args.Length}");
        return 2;
    }
}
