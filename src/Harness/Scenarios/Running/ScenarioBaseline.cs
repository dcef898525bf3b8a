namespace Tdp.Harness.Scenarios;

/// <summary>Counters when the setup had been done: what the actors caused is the difference.</summary>
internal sealed class ScenarioBaseline
{
    private readonly Dictionary<(string Leaf, bool IsGuest, ulong Status), long> _calls = [];
    private readonly long[][] _counters;
    private int _logLines;

    private ScenarioBaseline(int vms) => _counters = new long[vms][];

    /// <summary>Before the first setup.</summary>
    public static ScenarioBaseline None { get; } = new(0);

    /// <summary>Takes the counters of a world.</summary>
    public static ScenarioBaseline Take(ScenarioWorld world)
    {
        ScenarioBaseline baseline = new(world.States.Count);
        if (Asks(world.Scenario, SubjectKind.Log))
        {
            baseline._logLines = world.Kernel.Log.Lines.Count;
        }

        if (Asks(world.Scenario, SubjectKind.Calls))
        {
            foreach (LeafCount count in world.Module.Counts())
            {
                baseline._calls[(count.Leaf, count.IsGuest, count.Status.Value)] = count.Times;
            }
        }

        for (int i = 0; i < world.States.Count; i++)
        {
            baseline._counters[i] = new long[(int)MmuCounter.Count + 1];
            MmuStatistics statistics = world.States[i].Vm.Mmu.Statistics;
            for (int counter = 0; counter < (int)MmuCounter.Count; counter++)
            {
                baseline._counters[i][counter] = statistics[(MmuCounter)counter];
            }

            baseline._counters[i][(int)MmuCounter.Count] = world.States[i].Vm.Mmu.Warnings;
        }

        return baseline;
    }

    /// <summary>Calls of a leaf since then, of one status (without TDX_ and operand) or of any.</summary>
    public long Calls(TdxModule module, string leaf, bool isGuest, string status)
    {
        long calls = 0;
        foreach (LeafCount count in module.Counts())
        {
            if (count.IsGuest == isGuest && string.Equals(count.Leaf, leaf, StringComparison.Ordinal) && (status.Length == 0 || StatusWords.Of(count.Status) == status))
            {
                calls += count.Times - _calls.GetValueOrDefault((count.Leaf, count.IsGuest, count.Status.Value));
            }
        }

        return calls;
    }

    /// <summary>Lines of the kernel log since then that contain a text.</summary>
    public long Log(KernelLog log, string text)
    {
        long count = 0;
        IReadOnlyList<string> lines = log.Lines;
        for (int i = _logLines; i < lines.Count; i++)
        {
            count += lines[i].Contains(text, StringComparison.Ordinal) ? 1 : 0;
        }

        return count;
    }

    /// <summary>A counter of a VM's MMU: pages and tables as they are, the others since then.</summary>
    public long Count(int vm, TdpMmu mmu, string name)
    {
        MmuStatistics now = mmu.Statistics;
        long[] then = _counters[vm];
        long Since(MmuCounter counter) => now[counter] - then[(int)counter];
        return name switch
        {
            "pages4k" => now[MmuCounter.Pages4K],
            "pages2m" => now[MmuCounter.Pages2M],
            "pages1g" => now[MmuCounter.Pages1G],
            "tables" => now[MmuCounter.Tables],
            "fixed" => Since(MmuCounter.PfFixed),
            "spurious" => Since(MmuCounter.PfSpurious),
            "retries" => Since(MmuCounter.PfRetry),
            "emulated" => Since(MmuCounter.PfEmulate),
            "zapped" => Since(MmuCounter.Zapped),
            "flushes" => Since(MmuCounter.FlushAll) + Since(MmuCounter.FlushRange),
            _ => mmu.Warnings - then[(int)MmuCounter.Count],
        };
    }

    private static bool Asks(Scenario scenario, SubjectKind kind)
    {
        foreach (Requirement requirement in scenario.Requirements)
        {
            foreach (IReadOnlyList<Clause> alternative in requirement.Alternatives)
            {
                foreach (Clause clause in alternative)
                {
                    if (clause.Kind == kind)
                    {
                        return true;
                    }
                }
            }
        }

        return false;
    }
}
