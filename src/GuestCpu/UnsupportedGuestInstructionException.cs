using System.Globalization;

namespace Tdp.Cpu;

/// <summary>
/// The guest executed an instruction that real hardware knows and this CPU does not. Never silent, never skipped: the run ends (td-guest 2.1).
/// </summary>
public sealed class UnsupportedGuestInstructionException : Exception
{
    internal UnsupportedGuestInstructionException(string mnemonic, string code, string bytes, ulong rip, int cpl, int vcpu, string feature, int tier)
        : base(string.Create(
            CultureInfo.InvariantCulture,
            $"unsupported guest instruction {mnemonic} ({code}), bytes {bytes}, at RIP 0x{rip:x}, CPL {cpl}, vCPU {vcpu}, CPUID feature {feature}, instruction tier {tier}"))
    {
        Mnemonic = mnemonic;
        Code = code;
        Bytes = bytes;
        Rip = rip;
        Cpl = cpl;
        Vcpu = vcpu;
        Feature = feature;
        Tier = tier;
    }

    /// <summary>Mnemonic, as the decoder names it.</summary>
    public string Mnemonic { get; }

    /// <summary>The decoder's code: mnemonic with operand forms, such as <c>VEX_Vpaddd_ymm_ymm_ymmm256</c>.</summary>
    public string Code { get; }

    /// <summary>The instruction's bytes in hex.</summary>
    public string Bytes { get; }

    /// <summary>Linear address of the instruction.</summary>
    public ulong Rip { get; }

    /// <summary>Privilege level.</summary>
    public int Cpl { get; }

    /// <summary>vCPU number.</summary>
    public int Vcpu { get; }

    /// <summary>CPUID features that announce the instruction.</summary>
    public string Feature { get; }

    /// <summary>The tier of td-guest 2 to which the instruction belongs.</summary>
    public int Tier { get; }
}
