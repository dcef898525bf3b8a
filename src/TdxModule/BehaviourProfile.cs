namespace Tdp.Module;

/// <summary>
/// Where published text and the module's code differ, or where the user chooses (decisions section 2). Immutable; read by the module and the
/// Host, never by the CPU. A scenario may override single points with <c>with</c>.
/// </summary>
public sealed record BehaviourProfile
{
    /// <summary>The default: as the project's seed documents say.</summary>
    public static readonly BehaviourProfile Documented = new();

    /// <summary>As module 1.5.01 and current kernel code do it.</summary>
    public static readonly BehaviourProfile Tdx15 = new()
    {
        Name = "Tdx15",
        VmxInstructionsAreUndefined = true,
        EnclvIsUndefined = true,
        EncluFaults = false,
        SeptVeDisableByDefault = true,
        MonitorFollowsCpuid = true,
        NestedConvertibleIsDoubleFault = false,
        InterruptsHeldWhileVeValid = false,
        KernelLogFollowsCode = true,
        KexecRefused = false,
        LateLpInitAllowed = false,
        OffersVpInitVersion1 = false,
        ZeroStepAdmitsPending = false,
    };

    /// <summary>Name for reports.</summary>
    public string Name { get; init; } = "Documented";

    /// <summary>B01: VMX instructions, ENCLS, GETSEC and RSM in a TD are #UD; otherwise #GP(0).</summary>
    public bool VmxInstructionsAreUndefined { get; init; }

    /// <summary>B02: ENCLV in a TD is #UD; otherwise #GP(0).</summary>
    public bool EnclvIsUndefined { get; init; }

    /// <summary>B03: ENCLU in a TD is #GP(0); otherwise it does not exit.</summary>
    public bool EncluFaults { get; init; } = true;

    /// <summary>B05: ATTRIBUTES.SEPT_VE_DISABLE when the scenario does not say. Read by the Host.</summary>
    public bool SeptVeDisableByDefault { get; init; }

    /// <summary>B06: MONITOR and MWAIT are #VE only if the TD's CPUID(1).ECX[3] is 0; otherwise always.</summary>
    public bool MonitorFollowsCpuid { get; init; }

    /// <summary>B07: a convertible shared access while #VE information is valid is #DF(0); otherwise a TD exit.</summary>
    public bool NestedConvertibleIsDoubleFault { get; init; } = true;

    /// <summary>B08: maskable interrupts wait between #VE and VEINFO.GET whatever the gate; otherwise only NMIs do.</summary>
    public bool InterruptsHeldWhileVeValid { get; init; } = true;

    /// <summary>B10: kernel log wording follows the code instead of the seed documents. Read by the Host.</summary>
    public bool KernelLogFollowsCode { get; init; }

    /// <summary>B11: kexec is refused while TDX is enabled. Read by the Host.</summary>
    public bool KexecRefused { get; init; } = true;

    /// <summary>B12: a processor that was offline at SYS.CONFIG may still do LP.INIT, and SYS.CONFIG asks only for the online ones (VMX on).</summary>
    public bool LateLpInitAllowed { get; init; } = true;

    /// <summary>B13: VP.INIT version 1 and TDX_FEATURES0 bit 20.</summary>
    public bool OffersVpInitVersion1 { get; init; } = true;

    /// <summary>
    /// The zero-step filter of VP.ENTER lets a guest in whose recorded GPA is PENDING and would give it a #VE. The real module does not (a recorded answer), so a
    /// guest that accepts in its #VE handler could be kept out for ever; Linux guests never depend on it.
    /// </summary>
    public bool ZeroStepAdmitsPending { get; init; } = true;

    /// <inheritdoc/>
    public override string ToString() => Name;
}
