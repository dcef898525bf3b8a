namespace Tdp.Module;

/// <summary>Which lock an injected holder takes (tdx-module 7.2, 7.4).</summary>
public enum ModuleLock : byte
{
    /// <summary>The PAMT entry of a page at a size.</summary>
    Page,

    /// <summary>A TD's Secure EPT tree.</summary>
    SeptTree,

    /// <summary>A TD's epoch lock.</summary>
    Epoch,

    /// <summary>A TD's OP_STATE lock.</summary>
    OpState,

    /// <summary>The key ownership table.</summary>
    Kot,

    /// <summary>One Secure EPT entry; always exclusive.</summary>
    SeptEntry,

    /// <summary>A TD's run-time measurement registers.</summary>
    Rtmr,

    /// <summary>The system state (the module's global lock).</summary>
    System,

    /// <summary>Initialisation of the TDMR that contains an address; a mutex.</summary>
    Tdmr,

    /// <summary>Cache write-back of a package; a mutex. The address is the package's number.</summary>
    WriteBack,
}

/// <summary>A lock that a test holds as if another processor were inside a leaf. Give it to <see cref="TdxModule.Release(InjectedLock)"/>.</summary>
/// <param name="Kind">Which lock.</param>
/// <param name="IsExclusive">How it is held; mutexes always exclusively.</param>
/// <param name="Where">The page, the TD, or what <see cref="ModuleLock"/> says.</param>
/// <param name="Gpa">For an entry: the address.</param>
/// <param name="Level">For a page its size, for an entry its level.</param>
/// <param name="Hold">Bookkeeping of the lock.</param>
public readonly record struct InjectedLock(ModuleLock Kind, bool IsExclusive, Hpa Where, Gpa Gpa, Level Level, int Hold);

// Test port: injected lock holders (decisions D28, D33). They use the machine's spare hazard slot, so at most one test driver at a time.
public sealed partial class TdxModule
{
    /// <summary>Tries to take a lock for a test. Null when it cannot be had; the usual side effects of a lost host attempt remain.</summary>
    public InjectedLock? TryHold(ModuleLock kind, bool exclusive, Hpa where = default, Gpa gpa = default, Level level = default)
    {
        if (kind == ModuleLock.SeptEntry)
        {
            SeptPlace place = Locate(where, gpa, level);
            return TryLockEntry(ref place) ? new InjectedLock(kind, true, where, gpa, level, 0) : null;
        }

        if (kind is ModuleLock.Tdmr or ModuleLock.WriteBack)
            return new TryMutex(ref MutexOf(kind, where)).TryTake() ? new InjectedLock(kind, true, where, gpa, level, 0) : null;
        TryLock target = LockOf(kind, where, level);
        int hold = 0;
        LockAnswer answer = exclusive
            ? target.TryExclusive(Machine.SpareHazards, LockSide.Host)
            : target.TryShared(Machine.SpareHazards, LockSide.Host, out hold);
        return answer == LockAnswer.Taken ? new InjectedLock(kind, exclusive, where, gpa, level, hold) : null;
    }

    /// <summary>Gives an injected lock back. A host-priority bit that was set meanwhile stays.</summary>
    public void Release(InjectedLock held)
    {
        if (held.Kind == ModuleLock.SeptEntry)
            UnlockEntry(Locate(held.Where, held.Gpa, held.Level));
        else if (held.Kind is ModuleLock.Tdmr or ModuleLock.WriteBack)
            new TryMutex(ref MutexOf(held.Kind, held.Where)).Release();
        else if (held.IsExclusive)
            LockOf(held.Kind, held.Where, held.Level).ReleaseExclusive();
        else
            LockOf(held.Kind, held.Where, held.Level).ReleaseShared(Machine.SpareHazards, held.Hold);
    }

    private TryLock LockOf(ModuleLock kind, Hpa where, Level level) => kind switch
    {
        ModuleLock.Page => _pamt.Lock(_pamt.EntryAt(where.Value, level.Value == 0 ? 0 : level.Tdx)),
        ModuleLock.Kot => KotLock,
        ModuleLock.SeptTree => new TryLock(ref TdAt(where).SeptTreeLock),
        ModuleLock.Epoch => new TryLock(ref TdAt(where).EpochLock),
        ModuleLock.OpState => new TryLock(ref TdAt(where).OpStateLock),
        ModuleLock.Rtmr => new TryLock(ref TdAt(where).RtmrLock),
        ModuleLock.System => GlobalLock,
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "not a lock word"),
    };

    private ref ulong MutexOf(ModuleLock kind, Hpa where)
    {
        int index = kind == ModuleLock.WriteBack ? (int)where.Value : _tdmrs.FindIndex(tdmr => tdmr.Range.Contains(where.Value));
        if (index < 0 || (kind == ModuleLock.WriteBack && index >= _packages.Length))
            throw new ArgumentException($"there is no {kind} at {where}", nameof(where));
        return ref kind == ModuleLock.WriteBack ? ref _packageLocks![index] : ref _tdmrLocks![index];
    }

    private TdControl TdAt(Hpa tdr) => Pamt(tdr) is { Type: PageType.TDR }
        ? _tds[_memory.Record(tdr.Frame).Tag]
        : throw new ArgumentException($"{tdr} is not a TD root page", nameof(tdr));

    private SeptPlace Locate(Hpa tdr, Gpa gpa, Level level) => WalkTo(TdAt(tdr), gpa.Value, level.Tdx, out SeptPlace place)
        ? place
        : throw new ArgumentException($"there is no entry of level {level} for GPA 0x{gpa.Value:x}", nameof(gpa));
}
