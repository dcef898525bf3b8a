namespace Tdp.Host;

/// <summary>
/// CPUID as the host answers it: always for an ordinary VM, and for a TD those leaves that its guest asks for by TDVMCALL (td-guest 4.3). A fixed table:
/// what the simulated
/// processor can do does not depend on the machine that simulates it.
/// </summary>
public static class HostCpuid
{
    private const uint MaxBasic = 0x16;
    private const uint MaxHypervisor = 0x4000_0001;
    private const uint MaxExtended = 0x8000_0008;

    /// <summary>The four result registers.</summary>
    /// <param name="Eax">EAX.</param>
    /// <param name="Ebx">EBX.</param>
    /// <param name="Ecx">ECX.</param>
    /// <param name="Edx">EDX.</param>
    public readonly record struct Values(uint Eax, uint Ebx, uint Ecx, uint Edx);

    /// <summary>Answers one leaf; a leaf above the maximum of its range reads as zero.</summary>
    /// <param name="leaf">EAX.</param>
    /// <param name="subleaf">ECX.</param>
    /// <param name="vcpu">Number of the vCPU: its APIC id.</param>
    /// <param name="vcpus">How many there are.</param>
    public static Values Query(uint leaf, uint subleaf, int vcpu, int vcpus) => leaf switch
    {
        // GenuineIntel.
        0 => new(MaxBasic, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
        1 => new(0x0008_06F8, ((uint)vcpu << 24) | ((uint)vcpus << 16) | (8 << 8), Leaf1Ecx, Leaf1Edx),
        7 when subleaf == 0 => new(0, (1 << 9) | (1 << 18), 0, 0),
        0xB => Topology(subleaf, vcpu, vcpus),
        0x15 => new(1, 40, 25_000_000, 0),
        0x16 => new(1000, 1000, 100, 0),

        // KVMKVMKVM, padded with zero bytes.
        0x4000_0000 => new(MaxHypervisor, 0x4B4D_564B, 0x564B_4D56, 0x0000_004D),
        0x8000_0000 => new(MaxExtended, 0, 0, 0),
        0x8000_0001 => new(0, 0, 1, (1 << 11) | (1 << 20) | (1 << 26) | (1 << 27) | (1 << 29)),
        0x8000_0007 => new(0, 0, 0, 1 << 8),
        0x8000_0008 => new(0x0000_3034, 0, 0, 0),
        _ => default,
    };

    // SSE3, SSSE3, CX16, SSE4.1, SSE4.2, x2APIC, POPCNT, RDRAND, hypervisor.
    private const uint Leaf1Ecx = (1 << 0) | (1 << 9) | (1 << 13) | (1 << 19) | (1 << 20) | (1 << 21) | (1 << 23) | (1 << 30) | (1u << 31);

    // FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, PGE, MCA, CMOV, PAT, CLFLUSH, MMX, FXSR, SSE, SSE2.
    private const uint Leaf1Edx = 0x0789_AB7F | (1 << 26);

    private static Values Topology(uint subleaf, int vcpu, int vcpus) => subleaf switch
    {
        0 => new(0, 1, 0x100, (uint)vcpu),
        1 => new(8, (uint)vcpus, 0x201, (uint)vcpu),
        _ => new(0, 0, subleaf, (uint)vcpu),
    };
}
