namespace Tdp.Harness.Invariants;

/// <summary>What must hold of one VM when no operation is in flight, for whoever wants one look only. Findings go to the machine's log under the rule's number.</summary>
/// <remarks>No vCPU is in the guest and no actor changes the VM. Who looks again and again keeps a <see cref="Sweep"/>.</remarks>
public static class AtRest
{
    /// <summary>Checks a VM.</summary>
    /// <param name="vm">The VM; not destroyed.</param>
    public static void Check(Vm vm) => new Sweep(new CheckedVm(vm)).AtRest(null);
}
