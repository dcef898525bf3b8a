using System.Security.Cryptography;

namespace Tdp.Module;

/// <summary>
/// One TD: what the real module keeps in the TDR and TDCS pages (tdx-module 4.1). Found from the TDR's frame in constant time.
/// </summary>
/// <remarks>
/// The words that more than one processor uses at once have a cache line each: <see cref="State"/> is written only under the TDR's exclusive lock, apart
/// from the FATAL bit; the epoch word by VP.ENTER, exits and TRACK. CHLDCNT is a sum of one counter per processor, since every AUG changes it;
/// its value is exact whenever the TDR is held exclusively. Everything else is written under the TDR's exclusive lock.
/// </remarks>
internal sealed class TdControl : IDisposable
{
    public const int MinPages = 6;
    public const int MaxPages = 9;
    private const int CounterStride = 16;
    private readonly WordBlock _words;
    private readonly WordBlock _settings;
    private readonly long[] _children;

    public TdControl(Hpa tdr, ulong tdrEntry, ushort hkid, int processors, ReadOnlySpan<byte> uuid)
    {
        Tdr = tdr;
        TdrEntry = tdrEntry;
        Hkid = hkid;
        uuid.CopyTo(Uuid);
        _words = new WordBlock(tdr.Frame, separateLines: true, "td-state", "op-state", "sept-tree", "epoch-lock", "epoch", "rtmr", "vcpu-counts", "paths-cut");
        _settings = new WordBlock(tdr.Frame, separateLines: false, "td-ctls", "notify-enables", "hp-lock-timeout", "tee-info-hash", "vm-ctls", "vm-ctls", "vm-ctls", "vm-ctls");
        _children = new long[(processors + 2) * CounterStride];

        // Shared by every SEAMCALL on this TD.
        _words[1] = TryLock.Biased;
        _words[2] = TryLock.Biased;
    }

    public Hpa Tdr { get; }

    /// <summary>Address of the TDR's PAMT entry, whose lock is the TD's.</summary>
    public ulong TdrEntry { get; }

    public ushort Hkid { get; }

    public byte[] Uuid { get; } = new byte[32];

    /// <summary>Pages of the TDCS, in the order in which they were added; index 3 is the Secure EPT's root.</summary>
    public Hpa[] Pages { get; } = new Hpa[MaxPages];

    /// <summary>Packages whose key is programmed, one bit each.</summary>
    public ulong PackageBitmap { get; set; }

    /// <summary>FATAL 0, LIFECYCLE 15:8, NUM_TDCX 23:16, OP_STATE 31:24.</summary>
    public AtomicWord State => _words.Word(0);

    public ref ulong OpStateLock => ref _words[1];

    public ref ulong SeptTreeLock => ref _words[2];

    public ref ulong EpochLock => ref _words[3];

    public AtomicWord Epoch => _words.Word(4);

    public ref ulong RtmrLock => ref _words[5];

    /// <summary>NUM_VCPUS 31:0, NUM_ASSOC_VCPUS 63:32.</summary>
    public AtomicWord VcpuCounts => _words.Word(6);

    /// <summary>
    /// How often an entry above a leaf stopped pointing to a table. Free runs only: it keeps remembered walks honest (<see cref="LpContext.WalkTd"/>).
    /// </summary>
    public ulong PathsCut
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => _words.Word(7).Read();
    }

    /// <summary>TD_PARAMS as accepted by MNG.INIT.</summary>
    public TdParameters Parameters { get; set; } = TdParameters.None;

    /// <summary>Secure EPT pointer: root | EPTP_CONTROLS; 0 before MNG.INIT.</summary>
    public ulong Eptp { get; set; }

    /// <summary>TDX level of the entries in the root: 3 or 4.</summary>
    public int RootLevel { get; set; }

    /// <summary>48 or 52.</summary>
    public int GpaWidth { get; set; } = 48;

    /// <summary>Bits that no private GPA may have: the shared bit, and everything above the width.</summary>
    public ulong IllegalGpaBits { get; set; }

    public AliasBit AliasBit { get; set; }

    /// <summary>
    /// TD_CTLS, bit 0 PENDING_VE_DISABLE. This and the settings below are written by a guest's vCPU or by a host while others read them, so a write is one
    /// compare-exchange (tdx-module 1.9a, check 10).
    /// </summary>
    public AtomicWord TdCtls => _settings.Word(0);

    /// <summary>NOTIFY_ENABLES, bit 0: the guest wants to hear of suspected zero-stepping.</summary>
    public AtomicWord NotifyEnables => _settings.Word(1);

    /// <summary>HP_LOCK_TIMEOUT in TSC ticks, 32 bits.</summary>
    public AtomicWord HpLockTimeout => _settings.Word(2);

    /// <summary>Not 0 while the hash of TDINFO need not be calculated again (tdx-module 9.3).</summary>
    public AtomicWord HasTeeInfoHash => _settings.Word(3);

    /// <summary>VM_CTLS of a VM; stored only.</summary>
    public AtomicWord VmCtls(int vm) => _settings.Word(4 + vm);

    /// <summary>TD_CTLS, NOTIFY_ENABLES, HP_LOCK_TIMEOUT, VM_CTLS; without events.</summary>
    public ulong[] PeekSettings() => [_settings[0], _settings[1], _settings[2], _settings[4], _settings[5], _settings[6], _settings[7]];

    public ulong TscOffset { get; set; }

    public ulong TscMultiplier { get; set; }

    /// <summary>Virtual CPUID, fixed at MNG.INIT.</summary>
    public CpuidTable? Cpuid { get; set; }

    /// <summary>Which MSR accesses exit; the same for every vCPU.</summary>
    public MsrBitmap? MsrBitmap { get; set; }

    /// <summary>The stream behind MRTD; null before MNG.INIT and after MR.FINALIZE.</summary>
    public IncrementalHash? MrtdStream { get; set; }

    public byte[] Mrtd { get; } = new byte[48];

    /// <summary>RTMR0..3, 48 bytes each.</summary>
    public byte[] Rtmr { get; } = new byte[4 * 48];

    public static bool IsFatal(ulong state) => (state & 1) != 0;

    public static TdLifecycle LifecycleOf(ulong state) => (TdLifecycle)(byte)(state >> 8);

    public static int PagesOf(ulong state) => (byte)(state >> 16);

    public static TdOpState OpStateOf(ulong state) => (TdOpState)(byte)(state >> 24);

    /// <summary>Checks 5 to 7 and 9 of the TD gate in one look (tdx-module 4.3).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsOpen(ulong state, uint allowed) =>
        (state & 0xFF01) == ((ulong)TdLifecycle.KEYS_CONFIGURED << 8) && (byte)(state >> 16) >= MinPages && ((allowed >> (byte)(state >> 24)) & 1) != 0;

    public static bool NeedsTracking(ulong state) => ((OpStates.TrackingRequired >> (byte)(state >> 24)) & 1) != 0;

    /// <summary>Under the TDR's exclusive lock.</summary>
    public void SetLifecycle(TdLifecycle value)
    {
        ulong state = State.Read();
        while (!State.CompareExchange(ref state, (state & ~0xFF00UL) | ((ulong)value << 8)))
        {
        }
    }

    /// <summary>Under the TDR's exclusive lock.</summary>
    public void SetOpState(TdOpState value)
    {
        ulong state = State.Read();
        while (!State.CompareExchange(ref state, (state & ~0xFF00_0000UL) | ((ulong)value << 24)))
        {
        }
    }

    /// <summary>Under the TDR's exclusive lock.</summary>
    public void AddPage(Hpa page)
    {
        ulong state = State.Read();
        Pages[PagesOf(state)] = page;
        State.Add(1 << 16);
    }

    /// <summary>From any processor: the TD can never run or change again.</summary>
    public void SetFatal() => State.Or(1);

    /// <summary>After the store that took a table out of a path, before the table can serve anything else.</summary>
    public void CutPath()
    {
        if (!Explore.On)
            _words.Word(7).Add(1);
    }

    /// <summary>Adds 4 KiB units to CHLDCNT. Only the processor's own thread; the TDR is held.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AddChildren(int lp, long units) => _children[(lp + 1) * CounterStride] += units;

    /// <summary>CHLDCNT: pages of the TD in 4 KiB units. Exact at quiescence.</summary>
    public long ChildCount()
    {
        long sum = 0;
        for (int i = CounterStride; i < _children.Length; i += CounterStride)
            sum += _children[i];
        return sum;
    }

    public void Dispose() => MrtdStream?.Dispose();
}
