namespace Tdp.Harness.Invariants;

/// <summary>What holds a run up, as two looks at it some time apart tell.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="IsStuck">Nothing was finished between the two looks, for longer than anything may take.</param>
/// <param name="Waiting">Who has not finished, for the report.</param>
/// <param name="RetryingFault">A vCPU whose fault was answered RETRY again and again meanwhile, or -1.</param>
/// <param name="SrcuWaiter">Somebody waits for all SRCU sections.</param>
/// <param name="SrcuHolder">A vCPU that has been in one SRCU section since the first look, retrying; or -1.</param>
/// <param name="UnansweredKick">A vCPU that was told to leave the guest before the first look and has not answered; or -1.</param>
public readonly record struct StallView(CheckedVm Vm, bool IsStuck, string Waiting, int RetryingFault, bool SrcuWaiter, int SrcuHolder, int UnansweredKick) : ISubject
{
    /// <inheritdoc/>
    public string Describe()
        => $"nothing was finished; waiting for {Waiting}{(RetryingFault < 0 ? string.Empty : $"; the fault of vCPU {RetryingFault} retries and retries")}{(SrcuWaiter ? $"; a memslot update waits for SRCU, which vCPU {SrcuHolder} holds" : string.Empty)}{(UnansweredKick < 0 ? string.Empty : $"; vCPU {UnansweredKick} does not answer a kick")}";
}
