namespace Tdp.Mmu;

/// <summary>KVM's RET_PF values (tdp-mmu 4.11); negative values are errnos for user space.</summary>
public enum FaultResult
{
    /// <summary>Keep going; never leaves the MMU.</summary>
    Continue = 0,

    /// <summary>Let the access fault again, or retry locally for a TD's private access.</summary>
    Retry = 1,

    /// <summary>MMIO: emulate.</summary>
    Emulate = 2,

    /// <summary>A write to a tracked page.</summary>
    WriteProtected = 3,

    /// <summary>"Not handled here"; never leaves the top level.</summary>
    Invalid = 4,

    /// <summary>An entry was installed or repaired.</summary>
    Fixed = 5,

    /// <summary>Somebody else had already fixed it.</summary>
    Spurious = 6,

    /// <summary>-EINTR: a signal is pending.</summary>
    Interrupted = -4,

    /// <summary>-EIO: the VM is dead.</summary>
    IoError = -5,

    /// <summary>-EAGAIN: prefault of a slot that is being deleted.</summary>
    Again = -11,

    /// <summary>-ENOMEM.</summary>
    NoMemory = -12,

    /// <summary>-EFAULT; with a memory-fault exit where <see cref="MmuVcpu.MemoryFault"/> is set.</summary>
    BadAddress = -14,

    /// <summary>-EINVAL.</summary>
    InvalidArgument = -22,

    /// <summary>-EHWPOISON.</summary>
    HwPoison = -133,
}

/// <summary>Error-code bits of a page fault (tdp-mmu 5.1).</summary>
public static class PfErr
{
    /// <summary>Bit 0: the entry granted something.</summary>
    public const ulong Present = 1;

    /// <summary>Bit 1: write.</summary>
    public const ulong Write = 2;

    /// <summary>Bit 2: read (EPT) or user.</summary>
    public const ulong User = 4;

    /// <summary>Bit 3: MMIO misconfiguration.</summary>
    public const ulong Rsvd = 8;

    /// <summary>Bit 4: fetch.</summary>
    public const ulong Fetch = 16;

    /// <summary>Bit 32: the translation of the final address.</summary>
    public const ulong GuestFinal = 1UL << 32;

    /// <summary>Bit 33: the translation of a guest page-table address.</summary>
    public const ulong GuestPage = 1UL << 33;

    /// <summary>Bit 49, synthetic: the access names the private alias.</summary>
    public const ulong PrivateAccess = 1UL << 49;
}

/// <summary>What KVM_EXIT_MEMORY_FAULT tells user space (tdp-mmu 5.4; I64).</summary>
/// <param name="Gpa">Natural address of the page.</param>
/// <param name="Size">Bytes; 4096.</param>
/// <param name="IsPrivate">Whether the <em>access</em> was private: flags bit 3.</param>
public readonly record struct MemoryFaultInfo(Gpa Gpa, ulong Size, bool IsPrivate);
