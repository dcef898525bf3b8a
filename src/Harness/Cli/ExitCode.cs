namespace Tdp.Harness.Cli;

/// <summary>What the command's exit code says.</summary>
internal static class ExitCode
{
    /// <summary>Everything asked for was done and held.</summary>
    public const int Ok = 0;

    /// <summary>The guest failed, an invariant did not hold, or something was leaked.</summary>
    public const int Failed = 1;

    /// <summary>The command line or an input file is wrong.</summary>
    public const int Usage = 2;

    /// <summary>This machine cannot run it: not Linux on x64, or not enough memory.</summary>
    public const int Environment = 3;

    /// <summary>Ended by SIGINT after partial results were written.</summary>
    public const int Interrupted = 130;

    /// <summary>Ended by SIGTERM after partial results were written.</summary>
    public const int Terminated = 143;
}

/// <summary>Something the user gave is wrong. The message is one line that names it, its value, and what is allowed; it becomes <c>tdpmmu: message</c>.</summary>
internal sealed class UsageException(string message) : Exception(message);

/// <summary>This machine cannot do it. The message is one line.</summary>
internal sealed class EnvironmentException(string message) : Exception(message);
