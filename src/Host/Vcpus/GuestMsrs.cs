namespace Tdp.Host;

/// <summary>
/// The MSRs that the host emulates for one vCPU: those that KVM accepts in a TD guest's hypercall (td-guest 4.2), and those an ordinary VM's guest may use
/// besides the ones that
/// the processor keeps itself. Used by the vCPU's actor only.
/// </summary>
public sealed class GuestMsrs
{
    private const uint ApicBase = 0x1B, FeatureControl = 0x3A, UcodeRevision = 0x8B, PlatformInfo = 0xCE, MtrrCap = 0xFE;
    private const uint McgCap = 0x179, MiscEnable = 0x1A0, McgStatus = 0x17A, MtrrDefaultType = 0x2FF, Pat = 0x277, TscDeadline = 0x6E0;
    private const uint Efer = 0xC000_0080, ArchCapabilities = 0x10A, PowerControl = 0x1FC, MiscFeatures = 0x140, PollControl = 0x4B56_4D05;
    private const uint Tsc = 0x10;
    private readonly Dictionary<uint, ulong> _values = [];
    private readonly int _vcpu;
    private readonly Machine _machine;

    internal GuestMsrs(int vcpu, Machine machine)
    {
        _vcpu = vcpu;
        _machine = machine;
        _values[UcodeRevision] = 0x1_0000_0000;
        _values[ArchCapabilities] = 0;
        _values[PowerControl] = 0;
        _values[Pat] = 0x0007_0406_0007_0406;
        _values[TscDeadline] = 0;
        _values[MiscEnable] = 1;
        _values[PlatformInfo] = 0;
        _values[MiscFeatures] = 0;
        _values[MtrrDefaultType] = 0;
        _values[McgStatus] = 0;
        _values[PollControl] = 1;
    }

    /// <summary>Which MSRs of an ordinary VM exit: all but those that the processor switches or keeps itself.</summary>
    internal static MsrBitmap Intercepts()
    {
        var bitmap = new MsrBitmap();
        ReadOnlySpan<uint> native =
        [
            0x174, 0x175, 0x176, Pat, Efer, 0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103,
        ];
        foreach (uint msr in native)
        {
            bitmap.Set(msr, write: false, exits: false);
            bitmap.Set(msr, write: true, exits: false);
        }

        bitmap.Set(Tsc, write: false, exits: false);
        return bitmap;
    }

    /// <summary>RDMSR. False: the MSR does not exist here (INVALID_OPERAND for a TD, #GP for an ordinary VM).</summary>
    public bool TryRead(uint msr, out ulong value)
    {
        switch (msr)
        {
            case ApicBase:
                value = 0xFEE0_0000 | (1 << 11) | (1 << 10) | (_vcpu == 0 ? 1UL << 8 : 0);
                return true;
            case FeatureControl:
                value = 1;
                return true;
            case Efer:
                value = 0xD01;
                return true;
            case MtrrCap:
                value = 0x508;
                return true;
            case McgCap:
                value = 0;
                return true;
            case Tsc:
                value = _machine.Clock.Peek();
                return true;
            case 0x802 or 0x803 or 0x80D or 0x80F or 0x828 or 0x82F or 0x830 or (>= 0x832 and <= 0x839) or 0x83E:
                value = msr switch
                {
                    0x802 => (uint)_vcpu,
                    0x803 => 0x5_0014,
                    0x80D => (((uint)_vcpu >> 4) << 16) | (1u << (_vcpu & 15)),
                    _ => _values.GetValueOrDefault(msr),
                };
                return true;
            case (>= 0x200 and <= 0x20F) or 0x250 or 0x258 or 0x259 or (>= 0x268 and <= 0x26F):
                value = _values.GetValueOrDefault(msr);
                return true;
            default:
                return _values.TryGetValue(msr, out value);
        }
    }

    /// <summary>WRMSR. False: the MSR does not exist here, is read-only, or cannot hold the value.</summary>
    public bool TryWrite(uint msr, ulong value)
    {
        switch (msr)
        {
            case ApicBase or FeatureControl or Efer or MtrrCap or McgCap or PlatformInfo or Tsc or 0x802 or 0x803 or 0x80D or 0x839:
                return false;
            case 0x80F or 0x828 or 0x82F or 0x830 or (>= 0x832 and <= 0x838) or 0x83E:
            case (>= 0x200 and <= 0x20F) or 0x250 or 0x258 or 0x259 or (>= 0x268 and <= 0x26F):
                _values[msr] = value;
                return true;
            case Pat:
                if (!IsPat(value))
                    return false;
                _values[msr] = value;
                return true;
            default:
                if (!_values.ContainsKey(msr))
                    return false;
                _values[msr] = value;
                return true;
        }
    }

    private static bool IsPat(ulong value)
    {
        for (int i = 0; i < 8; i++, value >>= 8)
        {
            if ((byte)value is not (0 or 1 or 4 or 5 or 6 or 7))
                return false;
        }

        return true;
    }
}
