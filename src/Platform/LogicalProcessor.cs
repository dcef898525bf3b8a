namespace Tdp.Platform;

/// <summary>
/// One logical processor: what the hardware keeps per hyper-thread. Used by the one actor that currently runs on it; the members that others may
/// touch say so.
/// </summary>
public sealed class LogicalProcessor
{
    private readonly Machine _machine;

    // Moves with every access of this processor's guest.
    private Padded<ulong> _ticks;

    internal LogicalProcessor(Machine machine, int id, int package, TlbMode tlbMode, SeedStream evictions, HazardSlot hazards)
    {
        _machine = machine;
        Id = id;
        Package = package;
        Tlb = new Tlb(tlbMode, evictions);
        Hazards = hazards;
        PendingInterrupt = new SharedCell<int>("pending-interrupt", (ulong)id, -1);
        PendingNmi = new SharedCell<bool>("pending-nmi", (ulong)id);
    }

    /// <summary>Number, from 0.</summary>
    public int Id { get; }

    /// <summary>Package number.</summary>
    public int Package { get; }

    /// <summary>Its translation cache.</summary>
    public Tlb Tlb { get; }

    /// <summary>Its place in the table of shared lock holders (decisions D28).</summary>
    public HazardSlot Hazards { get; }

    /// <summary>True between VMXON and VMXOFF. SEAMCALL outside is #UD (tdx-module 1.9).</summary>
    public bool VmxOn { get; set; }

    /// <summary>True while the processor executes inside a TD or VM.</summary>
    public bool InGuest { get; set; }

    /// <summary>The kick target of the vCPU that runs here now; set by the Host around an entry. Engines poll it.</summary>
    public Kick? Running { get; set; }

    /// <summary>Vector of an external interrupt that waits for this processor, or -1. Any actor may write it.</summary>
    public SharedCell<int> PendingInterrupt { get; }

    /// <summary>An NMI waits for this processor. Any actor may write it.</summary>
    public SharedCell<bool> PendingNmi { get; }

    /// <summary>Ticks counted by this processor alone.</summary>
    public ulong Ticks
    {
        get => _ticks.Value;
        set => _ticks.Value = value;
    }

    /// <summary>True when the running guest must be left at the next boundary: a kick or a host interrupt. One or two plain loads.</summary>
    public bool ShouldExit
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (Running is { } kick && kick.ShouldExit) || PendingInterrupt.Read() >= 0 || PendingNmi.Read();
    }

    /// <summary>Adds to this processor's own time.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Spend(ulong ticks) => _ticks.Value += ticks;

    /// <summary>The time as RDTSC on the host sees it: monotone over all processors.</summary>
    public ulong ReadTime()
    {
        Ticks = _machine.Clock.Read(Ticks);
        return Ticks;
    }
}
