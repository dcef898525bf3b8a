namespace Tdp.Host;

/// <summary>How a run ended.</summary>
public enum RunOutcome
{
    /// <summary>The guest wrote an exit code.</summary>
    Exited,

    /// <summary>Triple fault of a vCPU.</summary>
    Shutdown,

    /// <summary>The guest reported a fatal error.</summary>
    FatalError,

    /// <summary>The VM is bugged or dead; see the message.</summary>
    VmDead,

    /// <summary>The host met an exit that it cannot handle.</summary>
    InternalError,

    /// <summary>Every vCPU waits and nothing can wake one.</summary>
    AllHalted,

    /// <summary>The host stopped the guest.</summary>
    Stopped,

    /// <summary>The script of a scripted guest has ended.</summary>
    ScriptEnd,
}

/// <summary>Faults by kind, from the vCPUs' and the MMU's counters.</summary>
public readonly record struct FaultCounts
{
    /// <summary>Private EPT violations.</summary>
    public required long Private { get; init; }

    /// <summary>Shared (or ordinary VM's) EPT violations and misconfigurations.</summary>
    public required long Shared { get; init; }

    /// <summary>Of these: an entry was installed.</summary>
    public required long Fixed { get; init; }

    /// <summary>Of these: the entry was already there.</summary>
    public required long Spurious { get; init; }

    /// <summary>Repeated locally because somebody else was at the entry.</summary>
    public required long Retried { get; init; }

    /// <summary>On addresses without memory.</summary>
    public required long Mmio { get; init; }

    /// <summary>Memory-fault exits to user space.</summary>
    public required long MemoryFaultExits { get; init; }
}

/// <summary>Everything that one run of a guest did (issue: "prints what happened"). Immutable.</summary>
public sealed record RunReport
{
    /// <summary>How it ended.</summary>
    public required RunOutcome Outcome { get; init; }

    /// <summary>The guest's exit code; 0 unless <see cref="RunOutcome.Exited"/>.</summary>
    public required uint ExitCode { get; init; }

    /// <summary>One line for outcomes that need one.</summary>
    public required string? Message { get; init; }

    /// <summary>TD or ordinary VM.</summary>
    public required VmKind Kind { get; init; }

    /// <summary>vCPUs.</summary>
    public required int Vcpus { get; init; }

    /// <summary>Simulated time from the first entry to the end, in ticks of 1 ns.</summary>
    public required ulong Ticks { get; init; }

    /// <summary>Faults by kind.</summary>
    public required FaultCounts Faults { get; init; }

    /// <summary>Sums over the vCPUs.</summary>
    public required VcpuStatistics VcpuTotals { get; init; }

    /// <summary>4 KiB pages accepted by the guest, as the module counted them; the initial image is not among them.</summary>
    public required long PagesAccepted { get; init; }

    /// <summary>4 KiB pages of the initial image.</summary>
    public required long PagesAdded { get; init; }

    /// <summary>Private pages mapped at run time.</summary>
    public required long PagesAugmented { get; init; }

    /// <summary>Private pages removed, teardown included.</summary>
    public required long PagesRemoved { get; init; }

    /// <summary>Conversions to shared, to private, and the pages they covered.</summary>
    public required (long ToShared, long ToPrivate, long Pages) Conversions { get; init; }

    /// <summary>SEAMCALLs of this run by leaf and status, teardown included; bring-up not.</summary>
    public required IReadOnlyList<LeafCount> Seamcalls { get; init; }

    /// <summary>TDCALLs by leaf and status.</summary>
    public required IReadOnlyList<LeafCount> Tdcalls { get; init; }

    /// <summary>The MMU's counters by name, when the guest stopped.</summary>
    public required IReadOnlyDictionary<string, long> Mmu { get; init; }

    /// <summary>Build-time measurement of the TD, 48 bytes; empty for an ordinary VM.</summary>
    public required ReadOnlyMemory<byte> Mrtd { get; init; }

    /// <summary>Frames that were leaked, with reasons.</summary>
    public required IReadOnlyList<LeakedFrame> Leaks { get; init; }

    /// <summary>Who has which frames after teardown, and whether PAMT and ledger agree.</summary>
    public required FrameAudit Frames { get; init; }

    /// <summary>What checkers found wrong.</summary>
    public required IReadOnlyList<Finding> Findings { get; init; }

    /// <summary>The kernel log.</summary>
    public required IReadOnlyList<string> KernelLog { get; init; }

    /// <summary>True when nothing was leaked, nothing was found, and the books agree.</summary>
    public bool IsClean => Leaks.Count == 0 && Findings.Count == 0 && Frames.Disagreements.Count == 0;
}
