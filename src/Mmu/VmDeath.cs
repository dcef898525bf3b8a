namespace Tdp.Mmu;

/// <summary>BUG(host): the host kernel stops. Never a state of one VM.</summary>
public sealed class HostBugException : Exception
{
    /// <summary>Makes the exception with what was found.</summary>
    public HostBugException(string message)
        : base(message)
    {
    }
}

/// <summary>Whether a VM is bugged and dead (KVM_BUG_ON: vm_bugged, vm_dead), and why (decisions D24). The first reason is kept.</summary>
public sealed class VmDeath
{
    private readonly SharedCell<bool> _dead;
    private readonly SyncGate _gate = new();
    private string? _reason;

    /// <summary>Makes the record of VM <paramref name="vm"/>, alive.</summary>
    public VmDeath(ulong vm) => _dead = new SharedCell<bool>("vm_dead", vm);

    /// <summary>True once the VM is dead; it never lives again. Any thread.</summary>
    public bool IsDead => _dead.Peek();

    /// <summary>Why, or null while it lives.</summary>
    public string? Reason
    {
        get
        {
            using (_gate.Hold())
                return _reason;
        }
    }

    /// <summary>The VM dies. True for the first caller, who must then send <see cref="VcpuRequest.VmDead"/> to every vCPU.</summary>
    public bool Declare(string reason)
    {
        using (_gate.Hold())
            _reason ??= reason;
        return !_dead.Swap(true);
    }
}
