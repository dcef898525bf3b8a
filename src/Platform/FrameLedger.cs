using System.Runtime.InteropServices;

namespace Tdp.Platform;

/// <summary>Who has a frame (decisions D11).</summary>
public enum FrameUse : byte
{
    /// <summary>In the allocator, or never used.</summary>
    Free,

    /// <summary>The host kernel's own: parameter pages, PAMT, buffers.</summary>
    Kernel,

    /// <summary>A page table of KVM's: a mirror or direct table.</summary>
    HostTable,

    /// <summary>Private guest memory that the host still has: allocated in a guest_memfd.</summary>
    GuestMemfd,

    /// <summary>Ordinary host memory behind a memslot: the shared alias, or an ordinary VM's memory.</summary>
    HostShared,

    /// <summary>The TDX module has it on behalf of a TD (or for itself).</summary>
    Module,

    /// <summary>Never to be used again; the reason is in the ledger.</summary>
    Leaked,
}

/// <summary>What the platform knows of one 4 KiB frame. 32 bytes; two frames share a cache line, which is why nothing hot lives here.</summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
public struct FrameRecord
{
    /// <summary>Structural name: (creating actor + 1, ordinal); 0 while the frame was never taken from a cache (decisions D14).</summary>
    public ulong Name;

    /// <summary>Counts changes of hands: a TLB entry with an older number is stale (decisions 7).</summary>
    public uint Generation;

    /// <summary>KeyID of the last writer.</summary>
    public ushort Hkid;

    /// <summary>Who has it.</summary>
    public FrameUse Use;

    /// <summary>Non-zero when a line of it is poisoned (tdp-mmu 9.4).</summary>
    public byte Poison;

    /// <summary>Non-zero when the guest CPU has decoded instructions from it; the number is bumped whenever its content changes behind the CPU's back.</summary>
    public uint CodeGeneration;

    /// <summary>Owner-defined: the MMU keeps the index of its table record here while <see cref="Use"/> is <see cref="FrameUse.HostTable"/>.</summary>
    public uint Tag;

    /// <summary>The TD (number of its TDR frame) while <see cref="Use"/> is <see cref="FrameUse.Module"/>.</summary>
    public ulong Owner;
}

/// <summary>A frame that will never be used again.</summary>
/// <param name="Frame">Frame number.</param>
/// <param name="Reason">Why, for the report.</param>
public readonly record struct LeakedFrame(ulong Frame, string Reason);

/// <summary>Something the ledger or a checker found wrong. A finding is counted and kept, never thrown from simulated code (decisions D32).</summary>
/// <param name="Rule">The invariant or oracle, such as <c>I34</c> or <c>UAF</c>.</param>
/// <param name="Text">One line with the values involved.</param>
public readonly record struct Finding(string Rule, string Text);

/// <summary>The findings of one machine, in the order in which they were made.</summary>
public sealed class FindingLog
{
    /// <summary>Most findings whose text is kept; later ones are only counted.</summary>
    public const int Kept = 1000;

    private readonly List<Finding> _findings = [];
    private readonly SyncGate _gate = new();
    private long _count;

    /// <summary>How many there were.</summary>
    public long Count
    {
        get
        {
            using (_gate.Hold())
                return _count;
        }
    }

    /// <summary>The first <see cref="Kept"/> findings.</summary>
    public IReadOnlyList<Finding> All
    {
        get
        {
            using (_gate.Hold())
                return [.. _findings];
        }
    }

    /// <summary>Records a finding. Any thread, also in the middle of another primitive: no event.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void Add(string rule, string text)
    {
        using (_gate.Hold())
        {
            _count++;
            if (_findings.Count < Kept)
                _findings.Add(new Finding(rule, text));
        }
    }
}

/// <summary>
/// The referee of page ownership: every hand-over names who gives and who takes (decisions D11, D32). The module records; the host asserts.
/// </summary>
/// <remarks>A frame is handed over by whoever has it, so its record has one writer at a time; readers (TLB hits, checkers) take single fields.</remarks>
public sealed class FrameLedger
{
    private readonly PhysicalMemory _memory;
    private readonly FindingLog _findings;
    private readonly List<LeakedFrame> _leaks = [];
    private readonly SyncGate _gate = new();

    internal FrameLedger(PhysicalMemory memory, FindingLog findings)
    {
        _memory = memory;
        _findings = findings;
    }

    /// <summary>Frames that were leaked, with their reasons.</summary>
    public IReadOnlyList<LeakedFrame> Leaks
    {
        get
        {
            using (_gate.Hold())
                return [.. _leaks];
        }
    }

    /// <summary>Who has the frame.</summary>
    public FrameUse UseOf(Hpa frame) => _memory.Record(frame.Frame).Use;

    /// <summary>Host code: the frame passes from <paramref name="from"/> to <paramref name="to"/>. A wrong giver is a finding under I82.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void HandOver(Hpa frame, FrameUse from, FrameUse to)
    {
        ref FrameRecord record = ref _memory.Record(frame.Frame);
        if (record.Use != from)
            ReportWrongGiver(frame, from, to, record.Use);
        record.Use = to;
        record.Generation++;
        if (record.CodeGeneration != 0)
            record.CodeGeneration++;
    }

    /// <summary>Module code: the frame now belongs to the module for the TD whose TDR is <paramref name="tdr"/>, whoever had it before.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ToModule(Hpa frame, Hkid hkid, Hpa tdr)
    {
        ref FrameRecord record = ref _memory.Record(frame.Frame);
        record.Use = FrameUse.Module;
        record.Hkid = hkid.Value;
        record.Owner = tdr.Frame;
        record.Generation++;
        if (record.CodeGeneration != 0)
            record.CodeGeneration++;
    }

    /// <summary>Module code: the module gave the frame back. The host must still say what it becomes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void FromModule(Hpa frame)
    {
        ref FrameRecord record = ref _memory.Record(frame.Frame);
        record.Use = FrameUse.Kernel;
        record.Owner = 0;
        record.Generation++;
        if (record.CodeGeneration != 0)
            record.CodeGeneration++;
    }

    /// <summary>The frame's content changed behind the guest CPU's back (ACCEPT zeroing, host writes): decoded instructions of it are dead.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ContentChanged(Hpa frame)
    {
        ref FrameRecord record = ref _memory.Record(frame.Frame);
        if (record.CodeGeneration != 0)
            record.CodeGeneration++;
    }

    /// <summary>Host code: the frame will never be used again.</summary>
    public void Leak(Hpa frame, string reason)
    {
        ref FrameRecord record = ref _memory.Record(frame.Frame);
        record.Use = FrameUse.Leaked;
        record.Generation++;
        using (_gate.Hold())
            _leaks.Add(new LeakedFrame(frame.Frame, reason));
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ReportWrongGiver(Hpa frame, FrameUse from, FrameUse to, FrameUse actual) =>
        _findings.Add("I82", $"frame {frame}: handed from {from} to {to}, but {actual} has it");
}
