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

    /// <summary>The TDR that the last call on an open TD named, and that TD: from operand to object without a lookup.</summary>
    /// <remarks>
    /// The object may be dead by now and the page another TD's root. Whoever uses it takes the lock of the TDR's page and then looks at the object's own
    /// state: a TD loses KEYS_CONFIGURED for ever before its TDR can be reclaimed, under that lock held alone.
    /// </remarks>
    public ulong LastTdr = ulong.MaxValue;

    /// <summary>See <see cref="LastTdr"/>; null before the first one, when a caller may name the start value of <see cref="LastTdr"/>.</summary>
    public TdControl? LastTd;

    /// <summary>
    /// The last walk to a 4 KiB entry on this processor: the TD, the 2 MiB region, the Secure EPT page of that region, and <see cref="TdControl.PathsCut"/> from
    /// before the walk. While that has not moved, the same walk would end in the same page, so the next page of the region needs none.
    /// </summary>
    public TdControl? WalkTd;

    /// <summary>See <see cref="WalkTd"/>.</summary>
    public ulong WalkRegion;

    /// <summary>See <see cref="WalkTd"/>.</summary>
    public ulong WalkTable;

    /// <summary>See <see cref="WalkTd"/>.</summary>
    public ulong WalkPathsCut;

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

    /// <summary>One more success of a leaf below <see cref="LeafSlots"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void CountSuccess(int leaf) => _successes[Margin + leaf]++;

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
