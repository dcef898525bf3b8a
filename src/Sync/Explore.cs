namespace Tdp.Sync;

/// <summary>
/// The one switch between a free run and an explored run. It is read once per process from the <c>TdpMmu.Explore</c>
/// runtime option, so the JIT knows its value when it compiles the hot paths at tier 1 and folds every hook away
/// (decisions D21; race-explorer 3.1). This class has no other static field: a second one would keep the class
/// initialisation check alive in every primitive.
/// </summary>
public static class Explore
{
    /// <summary>True when every primitive announces its events to <see cref="Hook"/>; constant for the life of the process.</summary>
    public static readonly bool On = AppContext.TryGetSwitch("TdpMmu.Explore", out bool on) && on;
}
