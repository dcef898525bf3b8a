namespace Tdp.Module;

/// <summary>
/// CPUID of the simulated processor: an Intel part of family 6, model 0x8F with the instructions that the guest CPU has (td-guest 2.2). Not found
/// means zeros, as on hardware for leaves without content.
/// </summary>
internal static class NativeCpuid
{
    private const uint Signature = 0x000806F8;

    // SSE3, SSSE3, CX16, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, XSAVE, RDRAND.
    private const uint FeaturesEcx = (1u << 0) | (1u << 9) | (1u << 13) | (1u << 19) | (1u << 20) | (1u << 21) | (1u << 22) | (1u << 23) | (1u << 26) | (1u << 30);

    // FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
    private const uint FeaturesEdx = 0x078B_FBFD;

    public static CpuidValues Find(uint leaf, uint subleaf) => (leaf, subleaf) switch
    {
        (0x0, _) => new(0x23, 0x756E6547, 0x6C65746E, 0x49656E69),
        (0x1, _) => new(Signature, 0x0001_0800, FeaturesEcx, FeaturesEdx),

        // L1D 48 KiB, L1I 32 KiB, L2 2 MiB, L3 32 MiB; 64-byte lines.
        (0x4, 0) => new(0x0000_4121, 0x02C0_003F, 0x3F, 0),
        (0x4, 1) => new(0x0000_4122, 0x01C0_003F, 0x3F, 0),
        (0x4, 2) => new(0x0000_4143, 0x03C0_003F, 0x7FF, 0),
        (0x4, 3) => new(0x0000_4163, 0x03C0_003F, 0x7FFF, 4),

        // FSGSBASE, SMEP, ERMS; FSRM.
        (0x7, 0) => new(2, (1u << 0) | (1u << 7) | (1u << 9), 0, 1u << 4),

        // x87 and SSE; 576 bytes.
        (0xD, 0) => new(3, 576, 576, 0),
        (0xD, 1) => new(0, 576, 0, 0),
        (0x15, _) => new(1, 40, 25_000_000, 0),
        (0x80000000, _) => new(0x8000_0008, 0, 0, 0),

        // LAHF64; SYSCALL NX 1GB RDTSCP LM.
        (0x80000001, _) => new(0, 0, 1u << 0, (1u << 11) | (1u << 20) | (1u << 26) | (1u << 27) | (1u << 29)),

        // Invariant TSC.
        (0x80000007, _) => new(0, 0, 0, 1u << 8),
        (0x80000008, _) => new(0x0000_3034, 0, 0, 0),
        _ => default,
    };
}
