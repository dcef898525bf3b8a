namespace Tdp.Module;

/// <summary>What a guest's MSR access becomes (tdx-module 8.8).</summary>
internal enum MsrKind : byte
{
    /// <summary>#VE: the default for everything not listed.</summary>
    Ve,

    /// <summary>No exit.</summary>
    Native,

    /// <summary>Answered by the module.</summary>
    Emulated,

    /// <summary>#GP(0).</summary>
    Gp,
}

/// <summary>The table of MSR classes. A pure function of the TD's parameters; the MSR bitmap is built from it once per TD.</summary>
internal static class MsrPolicy
{
    private const uint Tsc = 0x10;
    private const uint XapicDisableStatus = 0xBD;
    private const uint ArchCapabilities = 0x10A;
    private const uint MiscEnable = 0x1A0;
    private const uint DebugCtl = 0x1D9;
    private const uint PerfCapabilities = 0x345;
    private const uint VmxFirst = 0x480;
    private const uint VmxLast = 0x492;
    private const uint Xss = 0xDA0;
    private const uint Efer = 0xC000_0080;

    public static MsrBitmap BuildBitmap(TdParameters parameters)
    {
        var bitmap = new MsrBitmap();
        for (int range = 0; range < 2; range++)
        {
            uint start = range == 0 ? 0 : 0xC000_0000;
            for (uint msr = start; msr < start + 0x2000; msr++)
            {
                bitmap.Set(msr, write: false, Classify(msr, write: false, parameters) != MsrKind.Native);
                bitmap.Set(msr, write: true, Classify(msr, write: true, parameters) != MsrKind.Native);
            }
        }

        return bitmap;
    }

    public static MsrKind Classify(uint msr, bool write, TdParameters parameters)
    {
        bool perfmon = (parameters.Attributes & TdParameters.Perfmon) != 0;
        switch (msr)
        {
            case 0x48 or 0x49 or 0x10B or 0x174 or 0x175 or 0x176 or 0x277 or 0x600 or 0x1B01:
            case 0xC000_0081 or 0xC000_0082 or 0xC000_0084 or (>= 0xC000_0100 and <= 0xC000_0103):
            case (>= 0x808 and <= 0x80C) or 0x80E or (>= 0x810 and <= 0x827) or 0x83F:
                return MsrKind.Native;
            case Tsc or 0xBC or 0xC80:
                return write ? MsrKind.Ve : MsrKind.Native;
            case Xss or Efer:
                return write ? MsrKind.Emulated : MsrKind.Native;
            case XapicDisableStatus or ArchCapabilities:
                return write ? MsrKind.Native : MsrKind.Emulated;
            case DebugCtl:
                return MsrKind.Emulated;
            case MiscEnable:
                return write ? MsrKind.Ve : MsrKind.Emulated;
            case PerfCapabilities:
                return write ? MsrKind.Ve : MsrKind.Emulated;
            case >= VmxFirst and <= VmxLast:
                return write ? MsrKind.Gp : msr is (>= 0x481 and <= 0x484) or 0x48A ? MsrKind.Ve : MsrKind.Emulated;
            case (>= 0x8C and <= 0x8F) or (>= 0x98 and <= 0x9B) or 0x9E or 0x195 or 0x276 or 0x500 or 0xD90 or 0xD93:
            case 0x800 or 0x801 or (>= 0x804 and <= 0x807) or (>= 0x829 and <= 0x82E) or 0x831 or (>= 0x840 and <= 0x8FF):
                return MsrKind.Gp;
            case (>= 0xC1 and <= 0xC8) or (>= 0x186 and <= 0x18D) or 0x1A6 or 0x1A7 or (>= 0x309 and <= 0x310) or (>= 0x38D and <= 0x392):
            case (>= 0x3F1 and <= 0x3F7) or (>= 0x4C1 and <= 0x4C8):
                return Feature(perfmon);
            case 0xE1 or 0x122:
                return Feature(false);
            case 0x1C4 or 0x1C5:
                return Feature((parameters.Xfam & (1UL << 18)) != 0);
            case >= 0x560 and <= 0x587:
                return Feature((parameters.Xfam & (1UL << 8)) != 0);
            case >= 0x6A0 and <= 0x6A8:
                return Feature((parameters.Xfam & (1UL << 11)) != 0);
            case 0x6E1:
                return Feature((parameters.Attributes & TdParameters.Pks) != 0);
            case >= 0x985 and <= 0x98A:
                return Feature((parameters.Xfam & (1UL << 14)) != 0);
            case 0x14CE or 0x14CF or (>= 0x1200 and <= 0x121F) or (>= 0x1500 and <= 0x151F) or (>= 0x1600 and <= 0x161F):
                return Feature((parameters.Xfam & (1UL << 15)) != 0);

            // Not enumerated by the simulated processor.
            case 0x87 or (>= 0x1F8 and <= 0x1FA) or 0x6E0 or (>= 0x981 and <= 0x984):
                return MsrKind.Gp;
            default:
                return MsrKind.Ve;
        }
    }

    private static MsrKind Feature(bool enabled) => enabled ? MsrKind.Native : MsrKind.Gp;

    /// <summary>Value of an emulated read.</summary>
    public static ulong Read(uint msr, TdParameters parameters) => msr switch
    {
        ArchCapabilities => parameters.ArchCapabilities,
        XapicDisableStatus => 1,

        // Fast strings; perfmon available; BTS and PEBS unavailable.
        MiscEnable => 1 | ((parameters.Attributes & TdParameters.Perfmon) != 0 ? 1UL << 7 : 0) | (1UL << 11) | (1UL << 12),
        _ => 0,
    };

    /// <summary>A write of XSS is legal inside XFAM.</summary>
    public static bool IsLegalXss(ulong value, TdParameters parameters) => (value & ~(parameters.Xfam & 0x1D900)) == 0;
}
