namespace Tdp.Cpu;

/// <summary>What a fetch through a shared mapping, or a page table in shared memory, does in a TD (td-guest 1.3).</summary>
public enum SharedFetchPolicy : byte
{
    /// <summary>#PF with the reserved bit set in its error code.</summary>
    PageFault,

    /// <summary>It works like any other access.</summary>
    Allow,
}

/// <summary>Choices that the architecture leaves to the implementation, for one vCPU. Immutable.</summary>
public sealed record GuestCpuOptions
{
    /// <summary>Master seed of the streams that the CPU draws from, one per vCPU number (decisions section 8).</summary>
    public ulong Seed { get; init; } = 1;

    /// <summary>Code and page tables in shared memory of a TD.</summary>
    public SharedFetchPolicy SharedFetch { get; init; }

    /// <summary>
    /// Instructions after which an entry ends as if a host interrupt had come, at the next end of a block; 0 for no limit. Makes the time slices of a run
    /// repeatable (td-guest 3.1).
    /// </summary>
    public ulong SliceInstructions { get; init; }

    /// <summary>Most blocks kept in the decode cache before it starts over; at least 16.</summary>
    public int CachedBlocks { get; init; } = 32768;

    /// <summary>MAXPHYADDR as the guest sees it: bits from here to 51 are reserved in its page tables. 52 in a TD (td-guest 1.2).</summary>
    public int PhysicalAddressBits { get; init; } = 52;
}
