namespace Tdp.Platform;

/// <summary>
/// Whether checkers that look at every access run. Read once per process from the <c>TdpMmu.Checks</c> runtime option (on unless set to false) so
/// that benchmarks run with none of them compiled in (decisions section 9). No other static field here.
/// </summary>
public static class Checks
{
    /// <summary>True unless the process was started without checks.</summary>
    public static readonly bool On = !AppContext.TryGetSwitch("TdpMmu.Checks", out bool on) || on;
}
