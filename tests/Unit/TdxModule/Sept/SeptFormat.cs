using Tdp.Module;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// The Secure EPT entry and what the host is shown of it, written down a second time from the specification's tables (tdx-module 5.1, 5.2, 5.4). Nothing here
/// comes from the module's own constants but the names of the states.
/// </summary>
internal static class SeptFormat
{
    public const ulong Free = 0x80E0_0000_0000_0000;
    public const ulong Lock = 1UL << 11;
    public const ulong HostPriority = 1UL << 52;

    private const ulong Address = 0x000F_FFFF_FFFF_F000;

    /// <summary>The word of an entry without its address (tdx-module 5.1, "typical raw values").</summary>
    public static ulong Word(SeptState state, ulong page = 0) => page | state switch
    {
        SeptState.FREE => Free,
        SeptState.NL_MAPPED => 0x8000_0000_0000_0007,
        SeptState.NL_BLOCKED => 0x8080_0000_0000_0000,
        SeptState.MAPPED => 0x8000_0000_0000_00F7,
        SeptState.BLOCKED => 0x8080_0000_0000_00F0,
        SeptState.PENDING => 0x8100_0000_0000_00F0,
        SeptState.PENDING_BLOCKED => 0x8180_0000_0000_00F0,
        _ => throw new ArgumentOutOfRangeException(nameof(state), state, "not a state of stage 1"),
    };

    /// <summary>The public state in RDX bits 15:8 (tdx-module 5.2).</summary>
    public static ulong Public(SeptState state) => state switch
    {
        SeptState.FREE => 0,
        SeptState.BLOCKED => 1,
        SeptState.PENDING => 2,
        SeptState.PENDING_BLOCKED => 3,
        SeptState.MAPPED => 4,
        SeptState.NL_BLOCKED => 0x81,
        SeptState.NL_MAPPED => 0x84,
        _ => throw new ArgumentOutOfRangeException(nameof(state), state, "not a state of stage 1"),
    };

    public static bool IsLeaf(SeptState state) => state is SeptState.MAPPED or SeptState.BLOCKED or SeptState.PENDING or SeptState.PENDING_BLOCKED;

    /// <summary>The state of a word: the bits that differ between the typical values, address, lock and host priority left out.</summary>
    public static SeptState StateOf(ulong word)
    {
        ulong bare = word & ~(Address | Lock | HostPriority);
        foreach (SeptState state in (ReadOnlySpan<SeptState>)
            [SeptState.FREE, SeptState.NL_MAPPED, SeptState.NL_BLOCKED, SeptState.MAPPED, SeptState.BLOCKED, SeptState.PENDING, SeptState.PENDING_BLOCKED])
        {
            if (bare == Word(state))
                return state;
        }

        throw new ArgumentException($"0x{word:x16} is no Secure EPT entry of stage 1", nameof(word));
    }

    /// <summary>RCX as extended information shows an entry (tdx-module 5.4): a leaf with its address, of others the permissions only.</summary>
    public static ulong Shown(ulong word)
    {
        SeptState state = StateOf(word);
        if (state == SeptState.FREE)
            return 0x8000_0000_0000_0000;
        return IsLeaf(state) ? word & (0x8000_0000_0000_00FF | Address) : word & 0x87;
    }

    /// <summary>RDX of extended information.</summary>
    public static ulong Described(ulong word, int level) => (uint)level | (Public(StateOf(word)) << 8);
}
