namespace Tdp.Module;

/// <summary>LIFECYCLE_STATE in the TDR (tdx-module 4.1).</summary>
public enum TdLifecycle : byte
{
    /// <summary>Created; the KeyID is not yet programmed.</summary>
    HKID_ASSIGNED = 0,

    /// <summary>The only state in which the TD's memory can be used.</summary>
    KEYS_CONFIGURED = 1,

    /// <summary>After VPFLUSHDONE: nobody may use the TD's memory.</summary>
    BLOCKED = 2,

    /// <summary>The KeyID is free again; pages can be reclaimed.</summary>
    TEARDOWN = 3,
}

/// <summary>OP_STATE in the TDCS (tdx-module 4.1).</summary>
public enum TdOpState : byte
{
    /// <summary>Before MNG.INIT.</summary>
    UNINITIALIZED = 0,

    /// <summary>Being built.</summary>
    INITIALIZED = 1,

    /// <summary>Finalized; may run.</summary>
    RUNNABLE = 2,

    /// <summary>Stage 2.</summary>
    LIVE_EXPORT = 3,

    /// <summary>Stage 2.</summary>
    PAUSED_EXPORT = 4,

    /// <summary>Stage 2.</summary>
    POST_EXPORT = 5,

    /// <summary>Stage 2.</summary>
    MEMORY_IMPORT = 6,

    /// <summary>Stage 2.</summary>
    STATE_IMPORT = 7,

    /// <summary>Stage 2.</summary>
    POST_IMPORT = 8,

    /// <summary>Stage 2.</summary>
    LIVE_IMPORT = 9,

    /// <summary>Stage 2.</summary>
    FAILED_IMPORT = 10,
}

/// <summary>STATE in the TDVPS (tdx-module 4.1).</summary>
public enum TdVcpuState : byte
{
    /// <summary>Before VP.INIT.</summary>
    UNINITIALIZED = 0,

    /// <summary>May be entered.</summary>
    READY = 2,

    /// <summary>In the guest.</summary>
    ACTIVE = 4,

    /// <summary>Can never be entered again.</summary>
    DISABLED = 8,

    /// <summary>Stage 2.</summary>
    IMPORT = 16,
}

/// <summary>LAST_TD_EXIT in the TDVPS (tdx-module 4.1): how the next VP.ENTER resumes.</summary>
public enum TdExitKind : byte
{
    /// <summary>The instruction will be executed again.</summary>
    ASYNC_FAULT = 0,

    /// <summary>The instruction is over.</summary>
    ASYNC_TRAP = 1,

    /// <summary>TDG.VP.VMCALL: the host answers in registers.</summary>
    TDVMCALL = 2,
}

/// <summary>The sets of OP_STATEs in which leaves are allowed: one bit per state (tdx-module 4.4).</summary>
internal static class OpStates
{
    public const uint Uninitialized = 1 << 0;
    public const uint Initialized = 1 << 1;
    public const uint CreateVcpu = (1 << 1) | (1 << 7);
    public const uint Enter = (1 << 2) | (1 << 3) | (1 << 9);
    public const uint SeptAdd = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 6) | (1 << 7) | (1 << 8) | (1 << 9);
    public const uint Aug = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 9);
    public const uint Change = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9);
    public const uint Track = 0x3FE;
    public const uint Remove = Change | (1 << 10);
    public const uint Read = 0x7FE;
    public const uint Write = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 6) | (1 << 7) | (1 << 8) | (1 << 9) | (1 << 10);

    /// <summary>RUNNABLE, LIVE_EXPORT, LIVE_IMPORT: blocking and TLB tracking are required before a page is taken away.</summary>
    public const uint TrackingRequired = (1 << 2) | (1 << 3) | (1 << 9);
}
