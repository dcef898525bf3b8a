namespace Tdp.Host;

/// <summary>Why KVM_RUN returned to user space (KVM: KVM_EXIT_*; tdp-mmu 13).</summary>
public enum UserExit
{
    /// <summary>KVM_EXIT_UNKNOWN: nothing to do; see the errno.</summary>
    None = 0,

    /// <summary>KVM_EXIT_IO: port access.</summary>
    Io = 2,

    /// <summary>KVM_EXIT_HYPERCALL: MapGPA.</summary>
    Hypercall = 3,

    /// <summary>KVM_EXIT_HLT: the vCPU waits and nothing in the kernel can wake it.</summary>
    Hlt = 5,

    /// <summary>KVM_EXIT_MMIO.</summary>
    Mmio = 6,

    /// <summary>KVM_EXIT_SHUTDOWN: triple fault.</summary>
    Shutdown = 8,

    /// <summary>KVM_EXIT_FAIL_ENTRY.</summary>
    FailEntry = 9,

    /// <summary>KVM_EXIT_INTERNAL_ERROR, with <see cref="VcpuRunState.Message"/>.</summary>
    InternalError = 17,

    /// <summary>KVM_EXIT_SYSTEM_EVENT: ReportFatalError.</summary>
    SystemEvent = 24,

    /// <summary>KVM_EXIT_DIRTY_RING_FULL: the vCPU runs again when rings have been harvested and reset.</summary>
    DirtyRingFull = 31,

    /// <summary>KVM_EXIT_MEMORY_FAULT.</summary>
    MemoryFault = 39,

    /// <summary>KVM_EXIT_TDX: a TDVMCALL that only user space can answer.</summary>
    Tdx = 40,

    /// <summary>Simulator: the script of a scripted guest has ended.</summary>
    ScriptEnd = 1000,
}

/// <summary>
/// What one KVM_RUN tells user space, and where user space puts its answer (KVM: struct kvm_run). One per vCPU, reused for every exit; only the vCPU's
/// actor touches it.
/// </summary>
public sealed class VcpuRunState
{
    /// <summary>Why.</summary>
    public UserExit Exit { get; internal set; }

    /// <summary>Io, Mmio: bytes, 1, 2, 4 or 8.</summary>
    public int Size { get; internal set; }

    /// <summary>Io, Mmio: the guest writes.</summary>
    public bool IsWrite { get; internal set; }

    /// <summary>Io: port number.</summary>
    public ushort Port { get; internal set; }

    /// <summary>Mmio, MemoryFault: natural guest address. Hypercall: first address of the chunk.</summary>
    public ulong Gpa { get; internal set; }

    /// <summary>Io, Mmio: the value written, or user space's answer to a read.</summary>
    public ulong Value { get; set; }

    /// <summary>Hypercall: number of pages. MemoryFault: bytes.</summary>
    public ulong Length { get; internal set; }

    /// <summary>Hypercall: attributes, 0x10 = private. MemoryFault: flags, 8 = the access was private. Tdx: sub-function.</summary>
    public ulong Flags { get; internal set; }

    /// <summary>Hypercall, Tdx: user space's answer, 0 or an errno (11 EAGAIN, 22 EINVAL).</summary>
    public ulong Result { get; set; }

    /// <summary>SystemEvent: the guest's code; InternalError: the exit reason.</summary>
    public ulong Code { get; internal set; }

    /// <summary>SystemEvent: 64 bytes of text from registers.</summary>
    public byte[] Text { get; } = new byte[64];

    /// <summary>InternalError, FailEntry: one line for people.</summary>
    public string? Message { get; internal set; }
}

/// <summary>What one vCPU did, counted by its own actor without any shared line; read when it has stopped.</summary>
public struct VcpuStatistics
{
    /// <summary>Times the guest was left.</summary>
    public long Exits;

    /// <summary>Returns to user space.</summary>
    public long UserExits;

    /// <summary>Private EPT violations that the MMU handled.</summary>
    public long PrivateFaults;

    /// <summary>Shared EPT violations (all of an ordinary VM's are).</summary>
    public long SharedFaults;

    /// <summary>Faults that ended in RETRY and were repeated locally (tdp-mmu 5.8).</summary>
    public long LocalRetries;

    /// <summary>Faults that installed or repaired an entry.</summary>
    public long Fixed;

    /// <summary>Faults that found the entry in place.</summary>
    public long Spurious;

    /// <summary>Faults on addresses without memory: the MMIO entry was written.</summary>
    public long MmioFaults;

    /// <summary>Memory-fault exits.</summary>
    public long MemoryFaults;

    /// <summary>Writes to tracked pages that the host made for the guest.</summary>
    public long TrackedWrites;

    /// <summary>Faults for which the host had to read a page in from swap.</summary>
    public long HostReads;

    /// <summary>TDVMCALLs.</summary>
    public long Vmcalls;

    /// <summary>Entries refused because of a request, a kick or wait_for_sept_zap.</summary>
    public long RefusedEntries;

    /// <summary>VP.ENTER calls that answered BUSY.</summary>
    public long BusyEntries;

    /// <summary>Local TLB flushes on request.</summary>
    public long TlbFlushes;

    /// <summary>Adds another vCPU's counts.</summary>
    public void Add(in VcpuStatistics other)
    {
        Exits += other.Exits;
        UserExits += other.UserExits;
        PrivateFaults += other.PrivateFaults;
        SharedFaults += other.SharedFaults;
        LocalRetries += other.LocalRetries;
        Fixed += other.Fixed;
        Spurious += other.Spurious;
        MmioFaults += other.MmioFaults;
        MemoryFaults += other.MemoryFaults;
        TrackedWrites += other.TrackedWrites;
        HostReads += other.HostReads;
        Vmcalls += other.Vmcalls;
        RefusedEntries += other.RefusedEntries;
        BusyEntries += other.BusyEntries;
        TlbFlushes += other.TlbFlushes;
    }
}
