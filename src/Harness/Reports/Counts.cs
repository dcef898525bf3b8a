using System.Globalization;
using System.Linq;

namespace Tdp.Harness.Reports;

/// <summary>One line of the SEAMCALL table.</summary>
/// <param name="Leaf">The leaf's name.</param>
/// <param name="Status">The status.</param>
/// <param name="Count">How often.</param>
internal sealed record SeamcallCount(string Leaf, string Status, long Count);

/// <summary>A frame that is never to be used again.</summary>
/// <param name="Frame">Its number.</param>
/// <param name="Reason">Why.</param>
internal sealed record LeakedFrameReport(string Frame, string Reason);

/// <summary>What became of every frame once the VM was gone.</summary>
/// <param name="Free">Frames that were used and are free again.</param>
/// <param name="Pamt">Frames that hold the module's own records.</param>
/// <param name="Leaked">Frames that are never to be used again.</param>
/// <param name="Unreturned">Frames that nobody gave back, or on which the module's records and the ledger disagree.</param>
/// <param name="Disagreements">The first of them.</param>
internal sealed record FrameReport(long Free, long Pamt, IReadOnlyList<LeakedFrameReport> Leaked, long Unreturned, IReadOnlyList<string> Disagreements)
{
    /// <summary>The report of an audit after teardown.</summary>
    public static FrameReport From(FrameAudit audit, IReadOnlyList<LeakedFrame> leaks)
        => new(
            audit[FrameUse.Free],
            audit[FrameUse.Kernel],
            [.. leaks.Select(l => new LeakedFrameReport(string.Create(CultureInfo.InvariantCulture, $"0x{l.Frame:x}"), l.Reason))],
            audit.DisagreementCount,
            audit.Disagreements);

    /// <inheritdoc/>
    public override string ToString()
        => string.Create(CultureInfo.InvariantCulture, $"frames after teardown: {Free:N0} used and free again, {Pamt:N0} PAMT, {Leaked.Count:N0} leaked, {Unreturned:N0} not accounted for");
}

/// <summary>Turns the counters of a machine into the rows of a report.</summary>
internal static class Counts
{
    /// <summary>Faults and what became of them.</summary>
    public static SortedDictionary<string, long> Faults(in VcpuStatistics vcpus, IReadOnlyDictionary<string, long> mmu) => new(StringComparer.Ordinal)
    {
        ["EPT violations, private"] = vcpus.PrivateFaults,
        ["EPT violations, shared"] = vcpus.SharedFaults,
        ["taken"] = mmu.GetValueOrDefault(nameof(MmuCounter.PfFixed)) + mmu.GetValueOrDefault(nameof(MmuCounter.PfSpurious)) + mmu.GetValueOrDefault(nameof(MmuCounter.PfEmulate))
            + mmu.GetValueOrDefault(nameof(MmuCounter.PfRetry)) + mmu.GetValueOrDefault(nameof(MmuCounter.PfOther)),
        ["fixed"] = mmu.GetValueOrDefault(nameof(MmuCounter.PfFixed)),
        ["fixed without a lock"] = mmu.GetValueOrDefault(nameof(MmuCounter.PfFast)),
        ["retried"] = mmu.GetValueOrDefault(nameof(MmuCounter.PfRetry)),
        ["spurious"] = mmu.GetValueOrDefault(nameof(MmuCounter.PfSpurious)),
        ["MMIO"] = vcpus.MmioFaults,
        ["memory-fault exits"] = vcpus.MemoryFaults,
    };

    /// <summary>The MMU's counters by name.</summary>
    public static Dictionary<string, long> Mmu(Vm vm)
        => Enum.GetValues<MmuCounter>().Where(c => c is not MmuCounter.Count).ToDictionary(c => c.ToString(), c => vm.Mmu.Statistics[c], StringComparer.Ordinal);

    /// <summary>The sum of what all vCPUs counted.</summary>
    public static VcpuStatistics Vcpus(Vm vm)
    {
        VcpuStatistics sum = default;
        foreach (Vcpu vcpu in vm.Vcpus)
        {
            sum.Add(vcpu.Statistics);
        }

        return sum;
    }

    /// <summary>Calls by leaf and status.</summary>
    public static IReadOnlyList<SeamcallCount> Calls(IEnumerable<LeafCount> counts, bool guest)
        => [.. counts.Where(c => c.IsGuest == guest).Select(c => new SeamcallCount(c.Leaf, c.Status.ToString(), c.Times))];
}
