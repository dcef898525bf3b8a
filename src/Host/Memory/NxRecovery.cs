namespace Tdp.Host;

/// <summary>
/// The worker that gives huge pages back to one VM (KVM: kvm-nx-lpage-recovery; tdp-mmu 6.9): now and then it zaps the oldest of the tables that instruction fetches have caused, so that data accesses
/// map huge again, and code faults its 4K pages in anew.
/// </summary>
/// <remarks>Time is the machine's simulated time. Whoever plays the worker calls <see cref="RunIfDue"/>; one actor at a time. It takes SRCU, mmu_lock read and RCU.</remarks>
public sealed class NxRecovery
{
    private readonly Vm _vm;
    private ulong _last;

    internal NxRecovery(Vm vm)
    {
        _vm = vm;
        _last = vm.Kernel.Machine.Clock.Peek();
    }

    /// <summary>Tables zapped so far.</summary>
    public long Recovered { get; private set; }

    /// <summary>Makes a pass if the period is over.</summary>
    /// <returns>True when a pass was made.</returns>
    public bool RunIfDue(Actor actor)
    {
        if (!_vm.Kernel.NxHugePages.TryGetPeriod(_vm.Mmu.IsNxHugePages, out ulong period))
            return false;
        ulong now = _vm.Kernel.Machine.Clock.Peek();
        if (now - _last < period)
            return false;
        _last = now;
        Run(actor);
        return true;
    }

    /// <summary>One pass: a fraction of the list, rounded up.</summary>
    /// <returns>Tables zapped.</returns>
    public long Run(Actor actor)
    {
        uint ratio = _vm.Kernel.NxHugePages.Ratio;
        if (ratio == 0)
            return 0;
        long listed = _vm.Mmu.Statistics[MmuCounter.NxSplits];
        _vm.Srcu.ReadEnter(actor);
        long zapped = _vm.Mmu.RecoverNxPages(actor, (listed + ratio - 1) / ratio, IsDirtyLogged);
        _vm.Srcu.ReadExit(actor);
        Recovered += zapped;
        return zapped;
    }

    // A huge page in a dirty-logged slot would be split again at the first write: leave it.
    private bool IsDirtyLogged(TablePage table) =>
        _vm.SlotsOf(table.Role.AddressSpace).Active.Find(table.Gfn) is { } slot && (slot.Flags & MemslotFlags.LogDirtyPages) != 0;
}
