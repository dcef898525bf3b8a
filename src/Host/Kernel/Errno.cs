namespace Tdp.Host;

/// <summary>Result of an ioctl: 0, or a Linux error number (tdp-mmu 13; decisions D24). Printed as user space sees it, <c>-EFAULT</c>.</summary>
public enum Errno
{
    /// <summary>Success.</summary>
    None = 0,

    /// <summary>Operation not permitted.</summary>
    EPERM = 1,

    /// <summary>No such thing: pre-fault of an address that is MMIO.</summary>
    ENOENT = 2,

    /// <summary>Interrupted by a signal.</summary>
    EINTR = 4,

    /// <summary>The VM is dead, or the module refused.</summary>
    EIO = 5,

    /// <summary>The VM does it another way: dirty bitmaps of a VM with dirty rings.</summary>
    ENXIO = 6,

    /// <summary>Too many entries.</summary>
    E2BIG = 7,

    /// <summary>Not an open file.</summary>
    EBADF = 9,

    /// <summary>Try again.</summary>
    EAGAIN = 11,

    /// <summary>No memory.</summary>
    ENOMEM = 12,

    /// <summary>Not in VMX operation.</summary>
    EACCES = 13,

    /// <summary>Bad address; with a memory-fault exit, the access disagrees with the attribute.</summary>
    EFAULT = 14,

    /// <summary>Somebody else is at it.</summary>
    EBUSY = 16,

    /// <summary>Overlap, or bound already.</summary>
    EEXIST = 17,

    /// <summary>The module is not loaded.</summary>
    ENODEV = 19,

    /// <summary>Impossible argument, or not now.</summary>
    EINVAL = 22,

    /// <summary>No such ioctl here.</summary>
    ENOTTY = 25,

    /// <summary>The file would be too large.</summary>
    EFBIG = 27,

    /// <summary>No room: KeyIDs, TDMRs, reserved areas.</summary>
    ENOSPC = 28,

    /// <summary>Not supported now: pre-fault before finalize, TDX off in BIOS.</summary>
    EOPNOTSUPP = 95,

    /// <summary>The page is poisoned.</summary>
    EHWPOISON = 133,
}
