using System.IO;
using Tdp.Harness.Cli;
using Tdp.Harness.Reports;

namespace Tdp.Harness.Seamcall;

/// <summary><c>tdpmmu seamcall</c>: a session with the TDX module, from a script, from standard input, or by hand.</summary>
internal static class SeamcallVerb
{
    /// <summary>Runs the session.</summary>
    /// <returns>0, or 1 when an expectation or a check failed; 130 or 143 when the user ended it.</returns>
    /// <exception cref="UsageException">A line of a script is wrong; the message begins with file and line.</exception>
    public static int Run(SeamcallSettings settings, Screen screen, Interruption interruption, TextReader input, bool isTerminal)
    {
        CommandLine.RequireSupportedHost();
        bool byHand = settings.Script is null && isTerminal;
        using SeamcallSession session = new(settings.Processors, settings.Tdx15 ? BehaviourProfile.Tdx15 : BehaviourProfile.Documented, line =>
        {
            if (!settings.Json)
            {
                screen.Line(line);
            }
        });
        using StreamReader? file = Open(settings.Script);
        TextReader lines = file ?? input;
        string name = settings.Script ?? "standard input";
        string? wrong = null;
        for (int number = 1; wrong is null && !interruption.Token.IsCancellationRequested; number++)
        {
            if (byHand)
            {
                screen.Error.Write($"LP {session.CurrentLp}> ");
            }

            if (lines.ReadLine() is not { } line || (byHand && line.Trim() is "exit" or "quit"))
            {
                break;
            }

            try
            {
                session.Execute(number, line);
            }
            catch (SessionException e)
            {
                if (byHand)
                {
                    screen.Progress(e.Message);
                }
                else
                {
                    wrong = $"{name}:{number.ToString(System.Globalization.CultureInfo.InvariantCulture)}: {e.Message}";
                }
            }
        }

        if (settings.Json)
        {
            screen.WriteJson(new { calls = session.Records, failures = session.Failures });
        }

        if (wrong is not null)
        {
            throw new UsageException(wrong);
        }

        if (session.Failures.Count > 0)
        {
            screen.Progress($"tdpmmu: {name}: {session.Failures[0]}");
            return ExitCode.Failed;
        }

        return interruption.ExitCode(ExitCode.Ok);
    }

    private static StreamReader? Open(string? script)
    {
        try
        {
            return script is null ? null : new StreamReader(script);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"--script {script}: {e.Message}");
        }
    }
}
