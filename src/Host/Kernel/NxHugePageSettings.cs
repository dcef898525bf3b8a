namespace Tdp.Host;

/// <summary>
/// The kernel's module parameters about the NX huge page workaround: nx_huge_pages, nx_huge_pages_recovery_ratio, nx_huge_pages_recovery_period_ms (tdp-mmu 6.9). For all VMs.
/// Change them through <see cref="HostKernel.SetNxHugePages"/> and <see cref="SetRecovery"/>.
/// </summary>
public sealed class NxHugePageSettings
{
    private const ulong NanosecondsPerMillisecond = 1_000_000;
    private const ulong HourInMilliseconds = 60 * 60 * 1000;
    private readonly SharedCell<bool> _isOn = new("nx_huge_pages");
    private readonly SharedCell<uint> _ratio = new("nx_huge_pages_recovery_ratio", 0, 60);
    private readonly SharedCell<uint> _period = new("nx_huge_pages_recovery_period_ms");

    /// <summary>New VMs map huge pages without execute.</summary>
    public bool IsOn
    {
        get => _isOn.Peek();
        internal set => _isOn.Write(value);
    }

    /// <summary>Each pass zaps one in so many tables; 0: no recovery.</summary>
    public uint Ratio => _ratio.Peek();

    /// <summary>Time between passes in milliseconds; 0: an hour divided by the ratio, at least a second.</summary>
    public uint PeriodMilliseconds => _period.Peek();

    /// <summary>Changes ratio and period; the next look of each VM's worker uses them.</summary>
    public void SetRecovery(uint ratio, uint periodMilliseconds)
    {
        _ratio.Write(ratio);
        _period.Write(periodMilliseconds);
    }

    /// <summary>Simulated nanoseconds between passes (KVM: calc_nx_huge_pages_recovery_period).</summary>
    /// <param name="isOn">The VM has the workaround on.</param>
    /// <param name="nanoseconds">The period.</param>
    /// <returns>False: there is no recovery.</returns>
    public bool TryGetPeriod(bool isOn, out ulong nanoseconds)
    {
        uint ratio = _ratio.Read();
        ulong period = _period.Read();
        nanoseconds = 0;
        if (!isOn || ratio == 0)
            return false;
        if (period == 0)
            period = HourInMilliseconds / Math.Min(ratio, 3600u);
        nanoseconds = period * NanosecondsPerMillisecond;
        return true;
    }
}
