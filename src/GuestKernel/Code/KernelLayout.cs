namespace Tdp.Kernel;

/// <summary>
/// Where the kernel's own data lie. Addresses are linear and guest-physical at once.
/// <code>
///   0x100000  text and read-only data          0x10A000  accepted bitmap, one bit per 4 KiB page of RAM
///   0x108000  globals (one page)               0x130000  one area per vCPU: block, TSS, IST stacks, stack
///   0x109000  one state byte per 2 MiB unit
/// </code>
/// All of it is part of the initial image, hence private and accepted before the first instruction: neither a stack nor a descriptor table
/// nor the #VE path may ever lie in memory that can raise #VE (td-guest 7.2).
/// </summary>
internal static class KernelLayout
{
    public const ulong TextEnd = Globals;

    public const ulong Globals = GuestAbi.Kernel + 0x8000;
    public const ulong UnitStates = Globals + 0x1000;
    public const ulong AcceptedBitmap = UnitStates + 0x1000;

    public const ulong VcpuAreas = GuestAbi.Kernel + 0x3_0000;
    public const ulong VcpuAreaBytes = 0x6000;

    // Globals. Words that several vCPUs write lie on cache lines of their own.
    public const ulong IsTd = Globals + 0x00;
    public const ulong SharedMask = Globals + 0x08;
    public const ulong RamTop = Globals + 0x10;
    public const ulong VcpuCount = Globals + 0x18;
    public const ulong Lazy = Globals + 0x20;
    public const ulong AcceptOnAlloc = Globals + 0x28;
    public const ulong KernelEnd = Globals + 0x30;
    public const ulong HeapEnd = Globals + 0x38;
    public const ulong SpareTableEnd = Globals + 0x40;
    public const ulong PayloadLow = Globals + 0x48;
    public const ulong PayloadHigh = Globals + 0x50;
    public const ulong FixupTable = Globals + 0x58;
    public const ulong FixupCount = Globals + 0x60;
    public const ulong TdAttributes = Globals + 0x68;

    public const ulong ApMailbox = Globals + 0x80;
    public const ulong ConsoleLock = Globals + 0xC0;
    public const ulong HeapNext = Globals + 0x100;
    public const ulong ConversionLock = Globals + 0x140;
    public const ulong SpareTableNext = Globals + 0x148;
    public const ulong SharedPages = Globals + 0x150;
    public const ulong LeakedPages = Globals + 0x158;
    public const ulong TlbSequence = Globals + 0x180;
    public const ulong AlreadyAccepted = Globals + 0x1C0;
    public const ulong OopsLock = Globals + 0x200;
    public const ulong Accepted4K = Globals + 0x240;
    public const ulong Accepted2M = Globals + 0x248;

    /// <summary>Barriers: one cache line each, {arrived, generation}.</summary>
    public const ulong Barriers = Globals + 0x400;
    public const int BarrierCount = 16;
    public const int BarrierArrived = 0;
    public const int BarrierGeneration = 8;
    public const int BarrierShift = 6;

    // States of a 2 MiB unit. Untouched: no page was ever accepted, so ACCEPT may try 2 MiB. Settled: the bitmap is exact, only 4 KiB steps.
    public const int UnitUntouched = 0;
    public const int UnitBusy = 1;
    public const int UnitSettled = 2;

    // The block of a vCPU, at the start of its area.
    public const int BlockTlbAcknowledged = 0x00;
    public const int BlockRunning = 0x08;
    public const int BlockLastSpurious = 0x10;
    public const int BlockVeCount = 0x18;
    public const int BlockNmiCount = 0x20;
    public const int BlockIndex = 0x28;
    public const int BlockTss = 0x800;
    public const ulong AreaDoubleFaultStackTop = 0x1800;
    public const ulong AreaNmiStackTop = 0x2000;

    public const int TssBytes = 104;

    // Selectors. 0x18 and 0x20, 0x28 keep the order that SYSRET wants.
    public const int KernelCode = 0x08;
    public const int KernelData = 0x10;
    public const int UserData = 0x20;
    public const int UserCode = 0x28;
    public const int FirstTssSelector = 0x30;

    public static ulong VcpuArea(int index) => VcpuAreas + ((ulong)index * VcpuAreaBytes);

    public static ulong StackTop(int index) => index == 0 ? GuestAbi.BootStackTop : VcpuArea(index) + VcpuAreaBytes;

    public static ulong End(int vcpuCount) => VcpuArea(vcpuCount);
}
