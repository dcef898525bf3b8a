namespace Tdp.Mmu;

/// <summary>What distinguishes one VM's MMU from another's. Constant for the life of the VM.</summary>
public sealed record MmuOptions
{
    /// <summary>Number of the VM, for the names of its locks and cells.</summary>
    public ulong VmNumber { get; init; }

    /// <summary>The alias bit (KVM: gfn_direct_bits); <see cref="Tdp.Platform.AliasBit.None"/> for an ordinary VM.</summary>
    public AliasBit AliasBit { get; init; } = AliasBit.None;

    /// <summary>Level of the roots: 512G (4-level) or 256T (5-level).</summary>
    public Level RootLevel { get; init; } = Level.G512;

    /// <summary>The VM is a TD: private memory, mirror roots, MMIO entries that deliver #VE.</summary>
    public bool HasMirror { get; init; }

    /// <summary>The host's EPT has A/D bits. A TD requires it (tdp-mmu 2.5).</summary>
    public bool AdEnabled { get; init; } = true;

    /// <summary>EPT entries may be execute-only; if not, every present entry carries R.</summary>
    public bool ExecOnly { get; init; } = true;

    /// <summary>IPAT in every leaf, at first; see <see cref="TdpMmu.SetIgnoreGuestPat"/>. A TD always honours the guest's PAT.</summary>
    public bool IgnoreGuestPat { get; init; } = true;

    /// <summary>The NX huge page workaround is on at first; see <see cref="TdpMmu.SetNxHugePages"/>.</summary>
    public bool NxHugePages { get; init; }

    /// <summary>Accesses without memory leave MMIO entries behind (KVM: mmio_caching). A TD cannot do without.</summary>
    public bool MmioCaching { get; init; } = true;

    /// <summary>Entries of the CPU's page-modification log; 0: the VM has none.</summary>
    public int DirtyLogSize { get; init; }

    /// <summary>MAXPHYADDR; 0: the machine's. Whole-root walks end there (tdp-mmu 3.1).</summary>
    public int PhysicalAddressBits { get; init; }
}
