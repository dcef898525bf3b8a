using System.Threading;

namespace Tdp.Harness.Conformance;

/// <summary>How often an operation ended in a way, and how often ours did too.</summary>
/// <param name="Calls">Records compared.</param>
/// <param name="Mismatches">Records that were answered in another way.</param>
internal readonly record struct ReplayCount(long Calls, long Mismatches);

/// <summary>What was found in one trace file.</summary>
/// <param name="File">The file as the user named it.</param>
/// <param name="Kind">What was recorded.</param>
/// <param name="Sequences">Sequences replayed.</param>
/// <param name="Calls">Records compared.</param>
/// <param name="Mismatches">Records that were answered in another way.</param>
/// <param name="Excluded">Records that a rule of the recording says not to compare.</param>
internal sealed record ReplayedFile(string File, string Kind, int Sequences, long Calls, long Mismatches, long Excluded);

/// <summary>
/// Replays trace files record by record and counts. The kind of a recording is read from the headers of its sequences; every sequence starts from nothing, on a simulator of its own.
/// </summary>
internal sealed class ReplayRun
{
    private readonly List<ReplayedFile> _files = [];
    private readonly List<ReplayMismatch> _mismatches = [];
    private readonly SortedDictionary<(string Kind, string Operation, string Outcome), ReplayCount> _outcomes = [];
    private readonly SortedDictionary<string, long> _excluded = new(StringComparer.Ordinal);

    /// <summary>Stops at the first mismatch.</summary>
    public bool StopsAtFirst { get; init; }

    /// <summary>Told now and then how far the replay is: file and records so far.</summary>
    public Action<string, long>? Progress { get; init; }

    /// <summary>The files, in the order in which they were replayed.</summary>
    public IReadOnlyList<ReplayedFile> Files => _files;

    /// <summary>Every mismatch, in the order of the records.</summary>
    public IReadOnlyList<ReplayMismatch> Mismatches => _mismatches;

    /// <summary>Counts by kind, operation and recorded status.</summary>
    public IReadOnlyDictionary<(string Kind, string Operation, string Outcome), ReplayCount> Outcomes => _outcomes;

    /// <summary>Records not compared, by the rule that says so.</summary>
    public IReadOnlyDictionary<string, long> Excluded => _excluded;

    /// <summary>True when the replay ended before the last record.</summary>
    public bool IsPartial { get; private set; }

    /// <summary>Records compared.</summary>
    public long Calls { get; private set; }

    /// <summary>Replays a file.</summary>
    /// <exception cref="Cli.UsageException">It is no trace, or damaged.</exception>
    public void Replay(string path, CancellationToken stop)
    {
        if (IsPartial)
            return;
        using TraceReader reader = TraceReader.Open(path);
        SequenceReplay? sequence = null;
        ReplayedFile file = new(path, string.Empty, 0, 0, 0, 0);
        try
        {
            while (!IsPartial && reader.TryRead(out TraceRecord record))
            {
                if (stop.IsCancellationRequested)
                {
                    IsPartial = true;
                    break;
                }

                if (record.IsHeader)
                {
                    sequence?.Dispose();
                    sequence = null;
                    sequence = SequenceReplay.Begin(record);
                    string kind = file.Kind.Length == 0 || file.Kind == sequence.Kind ? sequence.Kind : $"{file.Kind}, {sequence.Kind}";
                    file = file with { Kind = kind, Sequences = file.Sequences + 1 };
                    continue;
                }

                if (sequence is null)
                    throw record.Wrong("a record before the header of its sequence");
                if (record.Sequence != sequence.Name)
                    throw record.Wrong($"a record of sequence {record.Sequence} inside sequence {sequence.Name}");
                file = Count(file, sequence, sequence.Play(record));
                Progress?.Invoke(path, file.Calls + file.Excluded);
            }

            if (file.Sequences == 0 && !IsPartial)
                throw new Cli.UsageException($"FILE {path}: holds no records");
        }
        finally
        {
            sequence?.Dispose();
        }

        _files.Add(file);
    }

    private ReplayedFile Count(ReplayedFile file, SequenceReplay sequence, in ReplayStep step)
    {
        if (step.Verdict == ReplayVerdict.Excluded)
        {
            _excluded[step.Rule!] = _excluded.GetValueOrDefault(step.Rule!) + 1;
            return file with { Excluded = file.Excluded + 1 };
        }

        Calls++;
        (string, string, string) key = (sequence.Kind, step.Operation, step.Outcome);
        ReplayCount count = _outcomes.GetValueOrDefault(key);
        bool failed = step.Verdict == ReplayVerdict.Mismatch;
        _outcomes[key] = new ReplayCount(count.Calls + 1, count.Mismatches + (failed ? 1 : 0));
        if (!failed)
            return file with { Calls = file.Calls + 1 };
        _mismatches.Add(step.Mismatch!);
        IsPartial |= StopsAtFirst;
        return file with { Calls = file.Calls + 1, Mismatches = file.Mismatches + 1 };
    }
}
