namespace Tdp.Module;

/// <summary>State of a Secure EPT entry of the L1 guest: the module's own seven-bit code (tdx-module 5.2).</summary>
public enum SeptState : byte
{
    /// <summary>Points to a Secure EPT page.</summary>
    NL_MAPPED = 0x00,

    /// <summary>Points to a Secure EPT page; no new translations below.</summary>
    NL_BLOCKED = 0x08,

    /// <summary>Removed during import (stage 2).</summary>
    REMOVED = 0x0C,

    /// <summary>Nothing mapped.</summary>
    FREE = 0x0E,

    /// <summary>Accessible leaf.</summary>
    MAPPED = 0x60,

    /// <summary>Exported, written since (stage 2).</summary>
    EXPORTED_DIRTY = 0x63,

    /// <summary>Write-blocked for export (stage 2).</summary>
    BLOCKEDW = 0x64,

    /// <summary>Exported, clean (stage 2).</summary>
    EXPORTED_BLOCKEDW = 0x66,

    /// <summary>Exported, dirty, write-blocked (stage 2).</summary>
    EXPORTED_DIRTY_BLOCKEDW = 0x67,

    /// <summary>Was MAPPED; blocked.</summary>
    BLOCKED = 0x68,

    /// <summary>Augmented, not accepted.</summary>
    PENDING = 0x70,

    /// <summary>Pending, exported, written since (stage 2).</summary>
    PENDING_EXPORTED_DIRTY = 0x73,

    /// <summary>Pending, write-blocked (stage 2).</summary>
    PENDING_BLOCKEDW = 0x74,

    /// <summary>Pending, exported (stage 2).</summary>
    PENDING_EXPORTED_BLOCKEDW = 0x76,

    /// <summary>Pending, exported, dirty, write-blocked (stage 2).</summary>
    PENDING_EXPORTED_DIRTY_BLOCKEDW = 0x77,

    /// <summary>Was PENDING; blocked.</summary>
    PENDING_BLOCKED = 0x78,
}

/// <summary>Sets of states and what the host sees of them.</summary>
public static class SeptStates
{
    /// <summary>The code in RDX bits 15:8 of extended information (tdx-module 5.4).</summary>
    public static uint Public(this SeptState state) => state switch
    {
        SeptState.FREE => 0,
        SeptState.BLOCKED => 1,
        SeptState.PENDING => 2,
        SeptState.PENDING_BLOCKED => 3,
        SeptState.MAPPED => 4,
        SeptState.REMOVED => 5,
        SeptState.BLOCKEDW => 8,
        SeptState.EXPORTED_BLOCKEDW => 9,
        SeptState.EXPORTED_DIRTY => 0x0B,
        SeptState.EXPORTED_DIRTY_BLOCKEDW => 0x0C,
        SeptState.PENDING_BLOCKEDW => 0x10,
        SeptState.PENDING_EXPORTED_BLOCKEDW => 0x11,
        SeptState.PENDING_EXPORTED_DIRTY => 0x13,
        SeptState.PENDING_EXPORTED_DIRTY_BLOCKEDW => 0x14,
        SeptState.NL_BLOCKED => 0x81,
        SeptState.NL_MAPPED => 0x84,
        _ => throw new ArchitecturalFatalException($"Secure EPT entry with state code 0x{(int)state:x2}"),
    };

    /// <summary>NL_BLOCKED, BLOCKED or PENDING_BLOCKED.</summary>
    public static bool IsBlocked(this SeptState state) => state is SeptState.NL_BLOCKED or SeptState.BLOCKED or SeptState.PENDING_BLOCKED;

    /// <summary>A leaf that the guest may use.</summary>
    public static bool IsGuestAccessible(this SeptState state) => state
        is SeptState.MAPPED or SeptState.BLOCKEDW or SeptState.EXPORTED_BLOCKEDW or SeptState.EXPORTED_DIRTY or SeptState.EXPORTED_DIRTY_BLOCKEDW;

    /// <summary>A leaf that waits for ACCEPT.</summary>
    public static bool IsAcceptable(this SeptState state) => state is SeptState.PENDING or SeptState.PENDING_EXPORTED_DIRTY;

    /// <summary>MAPPED or PENDING: what PROMOTE merges.</summary>
    public static bool IsMergeable(this SeptState state) => state is SeptState.MAPPED or SeptState.PENDING;
}
