namespace Tdp.Module;

/// <summary>Simulator knobs that no profile decides (tdx-module 13).</summary>
public sealed record TdxModuleOptions
{
    /// <summary>ACCEPT zeroes the page, as the architecture says. Off only for benchmarks of the page-table work alone (PF3).</summary>
    public bool ZeroOnAccept { get; init; } = true;

    /// <summary>Same-RIP private EPT violations that are only counted before GPAs are recorded (tdx-module 7.6).</summary>
    public int EpfThreshold { get; init; } = 6;

    /// <summary>
    /// The memory is not encrypted: what a shared operand names is read also where it is a page of the module (MNG.INIT). The machine of the conformance recordings
    /// was such a one; elsewhere a host reads zeros there.
    /// </summary>
    public bool MemoryIsFlat { get; init; }

    /// <summary>4 KiB pages whose PAMT one SYS.TDMR.INIT call initialises, a power of two from 1024 (the real module's) to 262144.</summary>
    public int TdmrInitPages { get; init; } = 1024;
}
