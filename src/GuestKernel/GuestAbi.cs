namespace Tdp.Kernel;

/// <summary>
/// The fixed numbers of boot protocol TDG1: what the loader, the guest kernel, the payload and the user-space VMM agree on.
/// Source: td-guest 8.3. All addresses are guest-physical, and linear as well where the identity mapping applies.
/// </summary>
public static class GuestAbi
{
    /// <summary>Bytes of a small page.</summary>
    public const ulong PageBytes = 0x1000;

    /// <summary>Bytes of a large page, and of one unit of the kernel's acceptance state.</summary>
    public const ulong UnitBytes = 0x20_0000;

    /// <summary>The page that is never mapped, so that a null pointer faults; its length is one page.</summary>
    public const ulong NullGuard = 0x0;

    /// <summary>The boot-info page.</summary>
    public const ulong BootInfo = 0x1000;

    /// <summary>GDT at the start of the page, TSS of vCPU 0 at <see cref="BootTss"/>; the kernel fills both.</summary>
    public const ulong Gdt = 0x2000;

    /// <summary>TSS of vCPU 0.</summary>
    public const ulong BootTss = 0x2800;

    /// <summary>IDT, one page; the kernel fills it.</summary>
    public const ulong Idt = 0x3000;

    /// <summary>Lowest byte of the boot stack of vCPU 0.</summary>
    public const ulong BootStackBottom = 0x4000;

    /// <summary>First byte above the boot stack of vCPU 0; the two pages above it are the #DF and the NMI stack.</summary>
    public const ulong BootStackTop = 0xE000;

    /// <summary>First byte above the #DF stack (IST1) of vCPU 0.</summary>
    public const ulong BootDoubleFaultStackTop = 0xF000;

    /// <summary>First byte above the NMI stack (IST2) of vCPU 0.</summary>
    public const ulong BootNmiStackTop = 0x1_0000;

    /// <summary>First of the page-table pages that the loader builds; the first one is the PML4.</summary>
    public const ulong PageTables = 0x1_0000;

    /// <summary>Number of page-table pages that the loader builds: PML4, PDPT, 4 + 4 page directories, one page table for the first 2 MiB.</summary>
    public const int PageTablePages = 11;

    /// <summary>First byte above the reserved boot area.</summary>
    public const ulong BootAreaEnd = 0x2_0000;

    /// <summary>Load address of the guest kernel.</summary>
    public const ulong Kernel = 0x10_0000;

    /// <summary>Address that payloads are linked at unless their linker script says otherwise.</summary>
    public const ulong DefaultPayload = 0x40_0000;

    /// <summary>First GPA of the MMIO window; it is never RAM. The window ends at 4 GiB.</summary>
    public const ulong Mmio = 0xF000_0000;

    /// <summary>First GPA above the MMIO window, and the reach of both linear windows.</summary>
    public const ulong FourGiB = 0x1_0000_0000;

    /// <summary>The 8-byte scratch register of the test device: it reads back what was written.</summary>
    public const ulong MmioScratch = Mmio;

    /// <summary>Value of <see cref="MmioScratch"/> before the first write.</summary>
    public const ulong MmioScratchReset = 0x1122_3344_5566_7788;

    /// <summary>Linear address of the shared alias window: linear <c>SharedWindow + x</c> maps GPA x with the shared bit.</summary>
    public const ulong SharedWindow = 0x40_0000_0000;

    /// <summary>Port of the byte console.</summary>
    public const ushort ConsolePort = 0xE9;

    /// <summary>Port that ends the run; a 4-byte OUT carries the exit code.</summary>
    public const ushort ExitPort = 0xF4;

    /// <summary>Vector of the payload services (INT 0x80).</summary>
    public const byte ServiceVector = 0x80;

    /// <summary>'TDG1', the first four bytes of the boot-info page, little endian.</summary>
    public const uint BootInfoMagic = 0x3147_4454;

    /// <summary>Largest number of vCPUs that the kernel has descriptors for.</summary>
    public const int MaxVcpus = 64;

    /// <summary>Smallest RAM: one 2 MiB page.</summary>
    public const ulong MinRamBytes = UnitBytes;

    /// <summary>Largest RAM: everything below the MMIO window.</summary>
    public const ulong MaxRamBytes = Mmio;
}

/// <summary>Numbers of the payload services (RAX on INT 0x80); arguments in RDI, RSI, RDX, result in RAX, negative = error. Source: td-guest 8.3.</summary>
public enum GuestService
{
    /// <summary>exit(code): ends the run; does not return.</summary>
    Exit = 0,

    /// <summary>write(buffer, bytes): prints on the console; returns the number of bytes.</summary>
    Write = 1,

    /// <summary>rdtsc(): the time-stamp counter.</summary>
    Rdtsc = 2,

    /// <summary>alloc(bytes): whole pages of zeroed private memory, never given back; the address or <see cref="GuestError.NoMemory"/>.</summary>
    Alloc = 3,

    /// <summary>accept(gpa, bytes): accepts what is not accepted yet; 0 or an error.</summary>
    Accept = 4,

    /// <summary>share(va, pages): converts to shared; 0 or an error. In an ordinary VM nothing happens.</summary>
    Share = 5,

    /// <summary>unshare(va, pages): converts back to private; the pages then read zero. In an ordinary VM nothing happens.</summary>
    Unshare = 6,

    /// <summary>barrier(id, n): waits until n vCPUs are at barrier id (0 to 15).</summary>
    Barrier = 7,

    /// <summary>report(key, value): key points to a zero-terminated string; prints <c>report key = value</c> (decimal).</summary>
    Report = 8,
}

/// <summary>Negative results of the payload services.</summary>
public static class GuestError
{
    /// <summary>The range is not mapped by the kernel or outside RAM.</summary>
    public const long Fault = -14;

    /// <summary>An argument is out of range or not aligned.</summary>
    public const long Invalid = -22;

    /// <summary>No RAM left.</summary>
    public const long NoMemory = -12;

    /// <summary>The host or the TDX module refused; the pages concerned are leaked.</summary>
    public const long Io = -5;

    /// <summary>No such service.</summary>
    public const long NoService = -38;
}
