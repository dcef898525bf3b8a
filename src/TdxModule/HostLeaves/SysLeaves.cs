namespace Tdp.Module;

/// <summary>System state (tdx-module 2.1).</summary>
public enum SystemState : byte
{
    /// <summary>Loaded.</summary>
    SYSINIT_PENDING = 0,

    /// <summary>After SYS.INIT.</summary>
    SYSINIT_DONE = 1,

    /// <summary>After SYS.CONFIG.</summary>
    SYSCONFIG_DONE = 2,

    /// <summary>After the last package's SYS.KEY.CONFIG: TDs can exist.</summary>
    SYS_READY = 3,

    /// <summary>After SYS.SHUTDOWN.</summary>
    SYS_SHUTDOWN = 4,
}

// SYS.INIT, SYS.LP.INIT, SYS.KEY.CONFIG, SYS.SHUTDOWN (tdx-module 2.2). The global lock guards the system state; LP.INIT shares it, so that all
// processors can initialise at once.
public sealed partial class TdxModule
{
    private const int MaxHkids = 2048;
    private ulong _configuredPackages;

    /// <summary>The system state.</summary>
    public SystemState State
    {
        get => (SystemState)(byte)_system.Word(0).Read();
        private set
        {
            _system.Word(0).Write((ulong)value);
            UpdateGuard();
        }
    }

    private TryLock GlobalLock => new(ref _system[1]);

    private HazardSlot AnySlot => _lps[0].Slot;

    private void InitializeSystem()
    {
        if (_kot.Count > MaxHkids)
            throw new ArgumentException($"{_kot.Count} KeyIDs; the module knows {MaxHkids}.");
        for (int hkid = 0; hkid < _kot.Count; hkid++)
            _kot.Set(hkid, Machine.IsPrivate(hkid) ? HkidState.FREE : HkidState.RESERVED);
        InitializePackages();
    }

    private TdxStatus SysInit(ref SeamRegisters r)
    {
        ulong attributes = r.Rcx;
        r.Rcx = r.Rdx = r.R8 = r.R9 = r.R10 = 0;
        if (GlobalLock.TryExclusive(AnySlot, LockSide.Host) != LockAnswer.Taken)
            return TdxStatus.SYS_BUSY;
        TdxStatus status = TdxStatus.SUCCESS;
        if (attributes != 0)
            status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        else if (State != SystemState.SYSINIT_PENDING)
            status = TdxStatus.SYS_INIT_NOT_PENDING;
        else
            State = SystemState.SYSINIT_DONE;
        GlobalLock.ReleaseExclusive();
        return status;
    }

    private TdxStatus SysLpInit(LpContext ctx, ref SeamRegisters r)
    {
        r.Rcx = r.Rdx = r.R8 = 0;
        if (GlobalLock.TryShared(ctx.Slot, LockSide.Host, out int hold) != LockAnswer.Taken)
            return TdxStatus.SYS_BUSY;

        // B12: the documents let a processor come late.
        TdxStatus status = TdxStatus.SUCCESS;
        bool pending = State == SystemState.SYSINIT_DONE
            || (Profile.LateLpInitAllowed && State is SystemState.SYSCONFIG_DONE or SystemState.SYS_READY);
        if (!pending)
        {
            status = TdxStatus.SYS_LP_INIT_NOT_PENDING;
        }
        else if (ctx.IsInitialized)
        {
            status = TdxStatus.SYS_LP_INIT_DONE;
        }
        else
        {
            ctx.Lp.Tlb.FlushAll();
            ctx.IsInitialized = true;
        }

        GlobalLock.ReleaseShared(ctx.Slot, hold);
        return status;
    }

    private TdxStatus SysKeyConfig(LpContext ctx)
    {
        if (GlobalLock.TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return TdxStatus.SYS_BUSY;
        TdxStatus status = TdxStatus.SUCCESS;
        ulong package = 1UL << ctx.Lp.Package;
        if (State != SystemState.SYSCONFIG_DONE)
        {
            status = TdxStatus.SYS_KEY_CONFIG_NOT_PENDING;
        }
        else if ((_configuredPackages & package) != 0)
        {
            status = TdxStatus.KEY_CONFIGURED;
        }
        else
        {
            _configuredPackages |= package;
            if (_configuredPackages == AllPackages)
                State = SystemState.SYS_READY;
        }

        GlobalLock.ReleaseExclusive();
        return status;
    }

    private ulong AllPackages => (1UL << Machine.Description.Packages) - 1;

    private TdxStatus SysShutdown(LpContext ctx, ulong handoffVersion)
    {
        if (handoffVersion != 0)
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if (GlobalLock.TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
            return TdxStatus.SYS_BUSY;
        TdxStatus status = TdxStatus.SUCCESS;
        foreach (LpContext other in _lps)
        {
            if (other.Current is not null)
                status = TdxStatus.SYS_BUSY;
        }

        if (!status.IsError)
            State = SystemState.SYS_SHUTDOWN;
        GlobalLock.ReleaseExclusive();
        return status;
    }

    // SYS.CONFIG: every processor, or under B12 every one that is in VMX operation.
    private bool AreProcessorsInitialized()
    {
        foreach (LpContext lp in _lps)
        {
            if (!lp.IsInitialized && (!Profile.LateLpInitAllowed || lp.Lp.VmxOn))
                return false;
        }

        return true;
    }
}
