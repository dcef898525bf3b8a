namespace Tdp.Harness.Conformance;

/// <summary>What became of one record.</summary>
internal enum ReplayVerdict
{
    /// <summary>The same answer and the same state.</summary>
    Match,

    /// <summary>Another answer, or another state than before.</summary>
    Mismatch,

    /// <summary>A rule of the recording says that there is nothing to compare with.</summary>
    Excluded,
}

/// <summary>One record replayed.</summary>
/// <param name="Verdict">What became of it.</param>
/// <param name="Operation">Leaf or operation.</param>
/// <param name="Outcome">The recorded status or result.</param>
/// <param name="Mismatch">For a mismatch: both answers.</param>
/// <param name="Rule">For an excluded record: the rule.</param>
internal readonly record struct ReplayStep(ReplayVerdict Verdict, string Operation, string Outcome, ReplayMismatch? Mismatch = null, string? Rule = null);

/// <summary>A recorded sequence, replayed record by record on a simulator of its own.</summary>
internal abstract class SequenceReplay : IDisposable
{
    /// <summary>Its name in the trace.</summary>
    public abstract string Name { get; }

    /// <summary>What was recorded, as the report calls it.</summary>
    public abstract string Kind { get; }

    /// <summary>Replays the next record.</summary>
    /// <exception cref="Cli.UsageException">The record cannot be understood.</exception>
    public abstract ReplayStep Play(in TraceRecord record);

    /// <inheritdoc/>
    public abstract void Dispose();

    /// <summary>Makes the replay of the sequence that a header begins.</summary>
    /// <exception cref="Cli.UsageException">It is the header of nothing known.</exception>
    public static SequenceReplay Begin(in TraceRecord header)
    {
        if (header.Text("t") is not "begin")
            throw header.Wrong("unknown record kind: 't' is " + header.Text("t") + "; allowed is begin");
        if (header.Has("base"))
            return new ModuleSequence(header);
        if (header.Has("cfg"))
            return new MmuSequence(header);
        throw header.Wrong("unknown record kind: the header has neither 'base' (TDX module) nor 'cfg' (TDP MMU)");
    }
}
