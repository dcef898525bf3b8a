namespace Tdp.Cpu;

/// <content>RDMSR and WRMSR: the bitmap decides about an exit, the rest is native (td-guest 4.2).</content>
public sealed partial class GuestCpu
{
    private const uint MsrTsc = 0x10;
    private const uint MsrSysenterCs = 0x174;
    private const uint MsrSysenterEsp = 0x175;
    private const uint MsrSysenterEip = 0x176;
    private const uint MsrPat = 0x277;
    private const uint MsrXss = 0xDA0;
    private const uint MsrX2ApicTpr = 0x808;
    private const uint MsrEfer = 0xC000_0080;
    private const uint MsrStar = 0xC000_0081;
    private const uint MsrLstar = 0xC000_0082;
    private const uint MsrFmask = 0xC000_0084;
    private const uint MsrFsBase = 0xC000_0100;
    private const uint MsrGsBase = 0xC000_0101;
    private const uint MsrKernelGsBase = 0xC000_0102;
    private const uint MsrTscAux = 0xC000_0103;

    // Registers that hold a value and do nothing here: SPEC_CTRL, MISC_PACKAGE_CTLS, DS_AREA, UARCH_MISC_CTL.
    private readonly Dictionary<uint, ulong> _plainMsrs = new() { [0x48] = 0, [0xBC] = 0, [0x600] = 0, [0x1B01] = 0 };

    private bool ReadMsr(byte length)
    {
        var msr = (uint)Reg(Gpr.Rcx);
        if (_vmcs.MsrBitmap.Exits(msr, write: false))
            return Exit(ExitReason.Rdmsr, length);
        switch (msr)
        {
            case MsrTsc:
                SetPair(TimeStamp());
                return true;
            case MsrSysenterCs:
                SetPair(_state.SysenterCs);
                return true;
            case MsrSysenterEsp:
                SetPair(_state.SysenterEsp);
                return true;
            case MsrSysenterEip:
                SetPair(_state.SysenterEip);
                return true;
            case MsrPat:
                SetPair(_state.Pat);
                return true;
            case MsrXss:
                SetPair(_state.Xss);
                return true;
            case MsrX2ApicTpr:
                SetPair(_state.Cr8 << 4);
                return true;
            case MsrEfer:
                SetPair(_state.Efer);
                return true;
            case MsrStar:
                SetPair(_state.Star);
                return true;
            case MsrLstar:
                SetPair(_state.Lstar);
                return true;
            case MsrFmask:
                SetPair(_state.Fmask);
                return true;
            case MsrFsBase:
                SetPair(_state.Fs.Base);
                return true;
            case MsrGsBase:
                SetPair(_state.Gs.Base);
                return true;
            case MsrKernelGsBase:
                SetPair(_state.KernelGsBase);
                return true;
            case MsrTscAux:
                SetPair(_state.TscAux);
                return true;
        }

        if (!_plainMsrs.TryGetValue(msr, out ulong value))
            return _linear.Trap.GeneralProtection();
        SetPair(value);
        return true;
    }

    private bool WriteMsr(byte length)
    {
        var msr = (uint)Reg(Gpr.Rcx);
        ulong value = Pair;
        if (_vmcs.MsrBitmap.Exits(msr, write: true))
            return Exit(ExitReason.Wrmsr, length);
        if (msr is MsrLstar or MsrFsBase or MsrGsBase or MsrKernelGsBase or MsrSysenterEsp or MsrSysenterEip && !_linear.IsCanonical(value))
            return _linear.Trap.GeneralProtection();
        switch (msr)
        {
            case MsrSysenterCs:
                _state.SysenterCs = (uint)value;
                return true;
            case MsrSysenterEsp:
                _state.SysenterEsp = value;
                return true;
            case MsrSysenterEip:
                _state.SysenterEip = value;
                return true;
            case MsrPat:
                return WritePat(value);
            case MsrXss:
                _state.Xss = value;
                return true;
            case MsrX2ApicTpr:
                if (value > 0xFF)
                    return _linear.Trap.GeneralProtection();
                _state.Cr8 = value >> 4;
                return true;
            case MsrEfer:
                return WriteEfer(value);
            case MsrStar:
                _state.Star = value;
                return true;
            case MsrLstar:
                _state.Lstar = value;
                return true;
            case MsrFmask:
                _state.Fmask = (uint)value;
                return true;
            case MsrFsBase or MsrGsBase:
                SetBase(msr == MsrFsBase, value);
                return true;
            case MsrKernelGsBase:
                _state.KernelGsBase = value;
                return true;
            case MsrTscAux:
                _state.TscAux = (uint)value;
                return true;
            case 0x49 or 0x10B:
                // PRED_CMD, FLUSH_CMD: commands to predictors and caches that do not exist here.
                return value <= 1 || _linear.Trap.GeneralProtection();
        }

        if (!_plainMsrs.ContainsKey(msr))
            return _linear.Trap.GeneralProtection();
        _plainMsrs[msr] = value;
        return true;
    }

    private bool WritePat(ulong value)
    {
        for (int entry = 0; entry < 8; entry++)
        {
            // Memory types 2 and 3 do not exist, nor does anything above 7.
            if ((byte)(value >> (entry * 8)) is 2 or 3 or > 7)
                return _linear.Trap.GeneralProtection();
        }

        _state.Pat = value;
        return true;
    }

    private bool WriteEfer(ulong value)
    {
        const ulong Known = Efer.SyscallEnable | Efer.LongMode | Efer.LongModeActive | Efer.NoExecuteEnable;
        ulong changed = value ^ _state.Efer;
        if ((value & ~Known) != 0 || (changed & Efer.LongMode) != 0)
            return _linear.Trap.GeneralProtection();
        _state.Efer = (value & ~Efer.LongModeActive) | (_state.Efer & Efer.LongModeActive);
        if ((changed & Efer.NoExecuteEnable) != 0)
            _linear.FlushAll();
        return true;
    }
}
