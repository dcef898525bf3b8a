namespace Tdp.Module;

/// <summary>What the module keeps per logical processor. Used only by the thread that currently runs on that processor.</summary>
internal sealed class LpContext
{
    public const int LeafSlots = 128;
    private const int Margin = 16;

    // A whole array per processor, hot words in the middle: no line is shared with a neighbour's counters.
    private readonly long[] _successes = new long[LeafSlots + (2 * Margin)];
    private readonly Dictionary<(int Leaf, ulong Status), long> _others = [];

    public LpContext(LogicalProcessor lp)
    {
        Lp = lp;
        Slot = lp.Hazards;
        Id = lp.Id;
    }

    public LogicalProcessor Lp { get; }

    public HazardSlot Slot { get; }

    public int Id { get; }

    /// <summary>SYS.LP.INIT done.</summary>
    public bool IsInitialized { get; set; }

    /// <summary>The vCPU that is inside its TD on this processor; null outside.</summary>
    public TdVcpu? Current { get; set; }

    /// <summary>The vCPU that ran here last: another one's entry flushes (tdx-module 6.3).</summary>
    public TdVcpu? LastRun { get; set; }

    /// <summary>A VM exit said that a bus lock was preempted; the next TD exit reports it in bit 26 of its reason (tdx-module 4.10).</summary>
    public bool BusLockPreempted { get; set; }

    /// <summary>Holds of TDVPR and TDR from VP.ENTER to the exit, when they were taken together; otherwise 0 and the three below.</summary>
    public uint RunGroup;

    /// <summary>Held from VP.ENTER to the exit.</summary>
    public PageHold RunTdvpr;

    /// <summary>Held from VP.ENTER to the exit: the TDR's PAMT entry and the shared hold on it.</summary>
    public ulong RunTdr;

    public int RunTdrHold;

    /// <summary>XMM registers of the host around VP.ENTER.</summary>
    public XmmFile HostXmm;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Count(int leaf, TdxStatus status)
    {
        if (status.Value == 0 && (uint)leaf < LeafSlots)
            _successes[Margin + leaf]++;
        else
            CountOther(leaf, status);
    }

    public void Collect(Dictionary<(int Leaf, ulong Status), long> into)
    {
        for (int leaf = 0; leaf < LeafSlots; leaf++)
        {
            if (_successes[Margin + leaf] != 0)
                into[(leaf, 0)] = into.GetValueOrDefault((leaf, 0UL)) + _successes[Margin + leaf];
        }

        foreach (((int leaf, ulong status), long count) in _others)
            into[(leaf, status)] = into.GetValueOrDefault((leaf, status)) + count;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void CountOther(int leaf, TdxStatus status)
    {
        System.Runtime.InteropServices.CollectionsMarshal.GetValueRefOrAddDefault(_others, (leaf, status.Value), out _)++;
    }
}
