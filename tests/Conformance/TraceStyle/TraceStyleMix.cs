namespace Tdp.Tests.Conformance.TraceStyle;

/// <summary>Which operations a sequence is made of, as in the random recordings.</summary>
public enum TraceStyleMix
{
    /// <summary>TDs under construction.</summary>
    Build,

    /// <summary>Blocking, tracking, splitting, joining, relocating.</summary>
    Churn,

    /// <summary>TDs created, built, run, torn down and reclaimed in any order.</summary>
    Life,

    /// <summary>Secure EPT operations beside running vCPUs.</summary>
    Mem,

    /// <summary>vCPUs that come and go.</summary>
    Vcpu,
}
