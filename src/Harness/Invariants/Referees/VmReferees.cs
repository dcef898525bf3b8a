namespace Tdp.Harness.Invariants;

/// <summary>Everybody who judges one VM, sharing one record: what a run attaches to a VM of its own and asks at the end.</summary>
public sealed class VmReferees
{
    private VmReferees(CheckedVm vm, SeamcallReferee? seamcalls)
    {
        Vm = vm;
        Seamcalls = seamcalls;
        Faults = new FaultReferee(vm);
        Operations = new OperationReferee(vm);
        Sweep = new Sweep(vm);
        Watch = new LivenessWatch(vm);
    }

    /// <summary>The VM as its checkers see it; counts and findings.</summary>
    public CheckedVm Vm { get; }

    /// <summary>Judges SEAMCALLs; null for an ordinary VM.</summary>
    public SeamcallReferee? Seamcalls { get; }

    /// <summary>Judges faults.</summary>
    public FaultReferee Faults { get; }

    /// <summary>Judges what operations have left behind.</summary>
    public OperationReferee Operations { get; }

    /// <summary>Judges the whole VM.</summary>
    public Sweep Sweep { get; }

    /// <summary>Judges progress.</summary>
    public LivenessWatch Watch { get; }

    /// <summary>
    /// Attaches to a VM: observes the module's calls and the MMU's faults from now on. Nothing is in flight. Of several TDs on one machine one at a time can be watched this way.
    /// </summary>
    public static VmReferees Attach(Vm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        CheckedVm view = new(vm);
        VmReferees referees = new(view, view.Module is null ? null : new SeamcallReferee(view));
        vm.Mmu.FaultObserver = referees.Faults;
        if (view.Module is { } module)
        {
            module.Observer = referees.Seamcalls;
        }

        return referees;
    }

    /// <summary>The observer of an explored run: judges after every event. Install it with <see cref="Hook.Install"/> while nothing is in flight.</summary>
    /// <param name="running">The actor that runs now.</param>
    public EventReferee Observe(Func<Actor?> running) => new(Vm, running);

    /// <summary>Judges everything that can be judged when no operation is in flight and no vCPU is in the guest.</summary>
    /// <param name="judge">Who looks; null outside the world.</param>
    public void AtRest(Actor? judge)
    {
        Sweep.AtRest(judge);
        Seamcalls?.AtRest();
    }

    /// <summary>Judges the books of frames when the VM is gone (I71).</summary>
    /// <param name="audit">The host's audit after teardown.</param>
    /// <param name="kernel">The host.</param>
    public void AfterTeardown(FrameAudit audit, HostKernel kernel)
    {
        ArgumentNullException.ThrowIfNull(audit);
        ArgumentNullException.ThrowIfNull(kernel);

        // Pages that the module still has; a page that the host leaks for its own reasons, such as poison, is none of these.
        int leaked = 0;
        foreach (LeakedFrame leak in kernel.Machine.Ledger.Leaks)
        {
            leaked += kernel.Port?.Module.Pamt(Hpa.OfFrame(leak.Frame)) is { Type: not (PageType.NDA or PageType.RSVD) } ? 1 : 0;
        }

        bool isLogged = false;
        foreach (string line in kernel.Log.Lines)
        {
            isLogged |= line.Contains("BUG", StringComparison.Ordinal) || line.Contains("WARN", StringComparison.Ordinal);
        }

        Vm.Verdicts.Judge(null, LifeCycle.I71, new FrameBooks(Vm, null, leaked, isLogged));
        foreach (string disagreement in audit.Disagreements)
        {
            Vm.Verdicts.Judge(null, LifeCycle.I71, new FrameBooks(Vm, disagreement, leaked, isLogged));
        }
    }

    /// <summary>Stops observing; before the VM is destroyed by somebody who holds no locks of the right kind, or when another VM is to be watched.</summary>
    public void Detach()
    {
        Vm.Mmu.FaultObserver = null;
        if (Vm.Module is { } module && ReferenceEquals(module.Observer, Seamcalls))
        {
            module.Observer = null;
        }
    }
}
