using System.Diagnostics;
using System.IO;
using System.Threading.Tasks;

namespace Tdp.Tests.EndToEnd;

/// <summary>What a run of the command left.</summary>
internal sealed record ToolResult(int ExitCode, string Output, string Error);

/// <summary>Runs the command as its users do: as a process of its own.</summary>
internal static class Tool
{
    /// <summary>The folder that holds the solution.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>Path of a sample.</summary>
    public static string Sample(string name) => Path.Combine(Root, "samples", name);

    /// <summary>Runs the command to its end.</summary>
    public static async Task<ToolResult> RunAsync(params string[] args)
    {
        using Process process = Start(args);
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> error = process.StandardError.ReadToEndAsync();
        await process.WaitForExitAsync();
        return new ToolResult(process.ExitCode, await output, await error);
    }

    /// <summary>Starts the command.</summary>
    public static Process Start(params string[] args)
    {
        ProcessStartInfo start = new("dotnet") { RedirectStandardOutput = true, RedirectStandardError = true, WorkingDirectory = Root };
        start.ArgumentList.Add("exec");
        start.ArgumentList.Add(Path.Combine(AppContext.BaseDirectory, "tdpmmu.dll"));
        foreach (string arg in args)
        {
            start.ArgumentList.Add(arg);
        }

        return Process.Start(start) ?? throw new InvalidOperationException("dotnet did not start");
    }

    private static string FindRoot()
    {
        for (DirectoryInfo? folder = new(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            if (File.Exists(Path.Combine(folder.FullName, "TdpMmu.sln")))
            {
                return folder.FullName;
            }
        }

        throw new InvalidOperationException("TdpMmu.sln was not found above the test binaries.");
    }
}
