using System.Globalization;
using System.Text;

namespace Tdp.Harness.Scenarios;

/// <summary>What one step of a stress program does.</summary>
public enum StressStep : byte
{
    /// <summary>Guest: writes to private pages, accepting those that are pending.</summary>
    WritePrivate,

    /// <summary>Guest: reads private pages, accepting those that are pending.</summary>
    ReadPrivate,

    /// <summary>Guest: writes to shared pages.</summary>
    WriteShared,

    /// <summary>Guest: reads shared pages.</summary>
    ReadShared,

    /// <summary>Guest: asks for a conversion to shared (MapGPA), then writes to the first page.</summary>
    MapShared,

    /// <summary>Guest: asks for a conversion to private (MapGPA), then accepts and writes the first page.</summary>
    MapPrivate,

    /// <summary>Host: converts a range to shared.</summary>
    ConvertShared,

    /// <summary>Host: converts a range to private.</summary>
    ConvertPrivate,

    /// <summary>Host: punches a hole into the guest_memfd.</summary>
    PunchHole,

    /// <summary>Host: an MMU notifier takes shared host memory away and gives it back.</summary>
    Notify,

    /// <summary>Host: deletes the spare memslot if it is there, creates it if not.</summary>
    FlipSlot,

    /// <summary>Host: invalidates the direct roots and zaps them.</summary>
    FastZap,

    /// <summary>Host: ages a range of shared pages.</summary>
    Age,

    /// <summary>Host: maps a range before it is touched, as a vCPU that waits until that vCPU is outside (KVM_PRE_FAULT_MEMORY).</summary>
    PreFault,

    /// <summary>Host: an external interrupt for the processor of a vCPU.</summary>
    Interrupt,

    /// <summary>Host: looks whether a range of shared pages was used.</summary>
    TestAge,

    /// <summary>Host: switches dirty logging of the spare memslot on or off.</summary>
    FlipLog,

    /// <summary>Host: harvests the dirty log of the spare memslot (KVM_GET_DIRTY_LOG).</summary>
    Harvest,

    /// <summary>Host: a signal to the thread of a vCPU, whose KVM_RUN returns.</summary>
    Signal,
}

/// <summary>One step with its range of pages, counted from the start of the world's memory.</summary>
/// <param name="Step">What is done.</param>
/// <param name="Page">The first page.</param>
/// <param name="Count">How many pages, at least 1.</param>
public readonly record struct StressOp(StressStep Step, int Page, int Count)
{
    /// <summary>True when a vCPU does it, false when a thread of the host does.</summary>
    public bool IsGuest => Step <= StressStep.MapPrivate;

    /// <inheritdoc/>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Step}({Page}+{Count})");

    /// <summary>Reads what <see cref="ToString"/> writes.</summary>
    /// <exception cref="FormatException">The text is something else.</exception>
    public static StressOp Parse(string text)
    {
        int open = text.IndexOf('(', StringComparison.Ordinal);
        int plus = text.IndexOf('+', StringComparison.Ordinal);
        if (open > 0 && plus > open && text.EndsWith(')')
            && Enum.TryParse(text.AsSpan(0, open), out StressStep step)
            && int.TryParse(text.AsSpan(open + 1, plus - open - 1), NumberStyles.None, CultureInfo.InvariantCulture, out int page)
            && int.TryParse(text.AsSpan(plus + 1, text.Length - plus - 2), NumberStyles.None, CultureInfo.InvariantCulture, out int count)
            && count > 0)
        {
            return new StressOp(step, page, count);
        }

        throw new FormatException($"'{text}' is not a step such as WritePrivate(3+1)");
    }
}

/// <summary>
/// What every thread of a stress run does: one list of steps per vCPU, one per host thread. Threads run side by side; the lists fix only the order within a thread.
/// </summary>
public sealed class StressProgram
{
    /// <summary>Makes a program.</summary>
    /// <param name="vcpus">One list per vCPU; guest steps only.</param>
    /// <param name="hosts">One list per host thread; host steps only.</param>
    public StressProgram(IReadOnlyList<IReadOnlyList<StressOp>> vcpus, IReadOnlyList<IReadOnlyList<StressOp>> hosts)
    {
        Vcpus = vcpus;
        Hosts = hosts;
    }

    /// <summary>The steps of each vCPU.</summary>
    public IReadOnlyList<IReadOnlyList<StressOp>> Vcpus { get; }

    /// <summary>The steps of each host thread.</summary>
    public IReadOnlyList<IReadOnlyList<StressOp>> Hosts { get; }

    /// <summary>Steps in all.</summary>
    public int Length
    {
        get
        {
            int length = 0;
            foreach (IReadOnlyList<StressOp> ops in Vcpus)
            {
                length += ops.Count;
            }

            foreach (IReadOnlyList<StressOp> ops in Hosts)
            {
                length += ops.Count;
            }

            return length;
        }
    }

    /// <summary>One line per thread: <c>vcpu0: WritePrivate(3+1) ReadShared(4+2)</c>.</summary>
    public override string ToString()
    {
        StringBuilder text = new();
        Append(text, "vcpu", Vcpus);
        Append(text, "host", Hosts);
        return text.ToString();
    }

    /// <summary>Reads what <see cref="ToString"/> writes.</summary>
    /// <exception cref="FormatException">The text is something else.</exception>
    public static StressProgram Parse(string text)
    {
        List<IReadOnlyList<StressOp>> vcpus = [];
        List<IReadOnlyList<StressOp>> hosts = [];
        foreach (string line in text.Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries))
        {
            int colon = line.IndexOf(':', StringComparison.Ordinal);
            List<StressOp> ops = [];
            foreach (string word in line[(colon + 1)..].Split(' ', StringSplitOptions.RemoveEmptyEntries))
            {
                ops.Add(StressOp.Parse(word));
            }

            bool guest = line.StartsWith("vcpu", StringComparison.Ordinal);
            if (colon < 0 || (!guest && !line.StartsWith("host", StringComparison.Ordinal)) || !ops.TrueForAll(op => op.IsGuest == guest))
            {
                throw new FormatException($"'{line}' is not a line such as 'vcpu0: WritePrivate(3+1)' or 'host0: PunchHole(0+8)'");
            }

            (guest ? vcpus : hosts).Add(ops);
        }

        return new StressProgram(vcpus, hosts);
    }

    /// <summary>
    /// Smaller programs of the same shape, the smallest first: without a thread's steps, without half of them, without one, with one step narrowed to a page.
    /// The number of threads stays, so that a shrunk program runs in the same world.
    /// </summary>
    public IEnumerable<StressProgram> Shrink()
    {
        for (int thread = 0; thread < Vcpus.Count + Hosts.Count; thread++)
        {
            IReadOnlyList<StressOp> ops = Thread(thread);
            for (int length = ops.Count; length > 0; length /= 2)
            {
                for (int start = 0; start + length <= ops.Count; start += length)
                {
                    List<StressOp> rest = [.. ops];
                    rest.RemoveRange(start, length);
                    yield return With(thread, rest);
                }
            }
        }

        for (int thread = 0; thread < Vcpus.Count + Hosts.Count; thread++)
        {
            IReadOnlyList<StressOp> ops = Thread(thread);
            for (int i = 0; i < ops.Count; i++)
            {
                if (ops[i].Count > 1)
                {
                    yield return With(thread, [.. Replace(ops, i, ops[i] with { Count = 1 })]);
                }

                if (ops[i].Page > 0)
                {
                    yield return With(thread, [.. Replace(ops, i, ops[i] with { Page = ops[i].Page / 2 })]);
                }
            }
        }
    }

    private static void Append(StringBuilder text, string name, IReadOnlyList<IReadOnlyList<StressOp>> threads)
    {
        for (int i = 0; i < threads.Count; i++)
        {
            text.Append(CultureInfo.InvariantCulture, $"{name}{i}:");
            foreach (StressOp op in threads[i])
            {
                text.Append(' ').Append(op.ToString());
            }

            text.Append('\n');
        }
    }

    private static List<StressOp> Replace(IReadOnlyList<StressOp> ops, int index, StressOp op)
    {
        List<StressOp> copy = [.. ops];
        copy[index] = op;
        return copy;
    }

    private IReadOnlyList<StressOp> Thread(int index) => index < Vcpus.Count ? Vcpus[index] : Hosts[index - Vcpus.Count];

    private StressProgram With(int thread, IReadOnlyList<StressOp> ops)
    {
        List<IReadOnlyList<StressOp>> vcpus = [.. Vcpus];
        List<IReadOnlyList<StressOp>> hosts = [.. Hosts];
        if (thread < Vcpus.Count)
        {
            vcpus[thread] = ops;
        }
        else
        {
            hosts[thread - Vcpus.Count] = ops;
        }

        return new StressProgram(vcpus, hosts);
    }
}
