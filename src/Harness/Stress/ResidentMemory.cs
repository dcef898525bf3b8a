using Tdp.Harness.Cli;
using Tdp.Harness.Reports;

namespace Tdp.Harness.Stress;

/// <summary>Notes the process's resident memory at the start of a run, after a tenth of it, and at the end.</summary>
internal sealed class ResidentMemory
{
    private const int WarmShare = 10;
    private readonly long _start = System.Environment.WorkingSet;
    private readonly TimeSpan _warmAfter;
    private readonly long _warmOperations;
    private long _warm;
    private long _warmAt;
    private long _end;

    private ResidentMemory(StressSettings settings)
    {
        _warmAfter = settings.Iterations is null ? (settings.Duration ?? TimeSpan.Zero) / WarmShare : TimeSpan.MaxValue;
        _warmOperations = settings.Iterations is { } operations ? operations / WarmShare : long.MaxValue;
        _end = _start;
    }

    /// <summary>Notes the start; the world has been built.</summary>
    public static ResidentMemory Begin(StressSettings settings) => new(settings);

    /// <summary>At a rendezvous.</summary>
    public void Note(StressProgress progress)
    {
        _end = System.Environment.WorkingSet;
        if (_warm == 0 && (progress.Elapsed >= _warmAfter || progress.Operations >= _warmOperations))
        {
            _warm = _end;
            _warmAt = progress.Operations;
        }
    }

    /// <summary>The figures.</summary>
    public MemoryReport Take() => new(_start, _warm == 0 ? _end : _warm, _warmAt, _end);
}
