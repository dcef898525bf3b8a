namespace Tdp.Host;

/// <summary>What user space does with a memory-fault exit (tdp-mmu 5.4; policy SharedTouchOfPrivate).</summary>
public enum MemoryFaultPolicy
{
    /// <summary>Converts the page to what the access wanted, and re-enters.</summary>
    Convert,

    /// <summary>Ends the run with a message.</summary>
    Stop,
}

/// <summary>Told after every exit of a vCPU, on its own actor, before it is entered again; for traces and for stopping at a chosen moment.</summary>
public interface IExitObserver
{
    /// <summary>An exit was handled.</summary>
    /// <param name="vcpu">The vCPU, outside the guest.</param>
    /// <param name="reason">Exit reason; the low half of RAX in a TD.</param>
    /// <param name="gpa">Guest-physical address for EPT exits, with the alias bit, otherwise 0.</param>
    void Exited(Vcpu vcpu, ExitReason reason, ulong gpa);
}

/// <summary>What a user-space VMM builds and how it behaves.</summary>
public sealed record VmmOptions
{
    /// <summary>The guest. Its options say TD or VM, vCPUs and memory; null: nothing is loaded and <see cref="Engine"/> must be given.</summary>
    public GuestImage? Image { get; init; }

    /// <summary>TD or ordinary VM, when there is no image.</summary>
    public VmKind Kind { get; init; } = VmKind.Td;

    /// <summary>vCPUs, when there is no image.</summary>
    public int Vcpus { get; init; } = 1;

    /// <summary>Memory from GPA 0, when there is no image. Bytes, a multiple of 4096.</summary>
    public ulong MemoryBytes { get; init; } = 16 << 20;

    /// <summary>5-level EPT and alias bit 51.</summary>
    public bool IsFiveLevel { get; init; }

    /// <summary>TD parameters; MAX_VCPUS is set by the VMM.</summary>
    public TdConfiguration Td { get; init; } = new();

    /// <summary>Makes the processor of a vCPU; null: the real guest CPU.</summary>
    public Func<Machine, int, IVmxEngine>? Engine { get; init; }

    /// <summary>Called for each console byte, under a lock of the VMM's, on the writing vCPU's thread.</summary>
    public Action<byte>? Console { get; init; }

    /// <summary>Memory-fault exits.</summary>
    public MemoryFaultPolicy MemoryFaults { get; init; } = MemoryFaultPolicy.Convert;

    /// <summary>Shared memory and ordinary VM memory in 2 MiB host pages where possible.</summary>
    public bool HugePages { get; init; }

    /// <summary>Sees every exit; null for nobody.</summary>
    public IExitObserver? ExitObserver { get; init; }

    /// <summary>Measures the initial image (MR.EXTEND).</summary>
    public bool IsMeasured { get; init; } = true;
}
