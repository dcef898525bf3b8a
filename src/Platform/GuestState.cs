using System.Runtime.Intrinsics;

namespace Tdp.Platform;

/// <summary>Numbers of the general registers, as instruction encodings and VMCALL masks use them.</summary>
public enum Gpr
{
    /// <summary>RAX.</summary>
    Rax = 0,

    /// <summary>RCX.</summary>
    Rcx = 1,

    /// <summary>RDX.</summary>
    Rdx = 2,

    /// <summary>RBX.</summary>
    Rbx = 3,

    /// <summary>RSP.</summary>
    Rsp = 4,

    /// <summary>RBP.</summary>
    Rbp = 5,

    /// <summary>RSI.</summary>
    Rsi = 6,

    /// <summary>RDI.</summary>
    Rdi = 7,

    /// <summary>R8.</summary>
    R8 = 8,

    /// <summary>R9.</summary>
    R9 = 9,

    /// <summary>R10.</summary>
    R10 = 10,

    /// <summary>R11.</summary>
    R11 = 11,

    /// <summary>R12.</summary>
    R12 = 12,

    /// <summary>R13.</summary>
    R13 = 13,

    /// <summary>R14.</summary>
    R14 = 14,

    /// <summary>R15.</summary>
    R15 = 15,
}

/// <summary>Sixteen general registers.</summary>
[InlineArray(16)]
public struct GprFile
{
    private ulong _first;
}

/// <summary>Sixteen XMM registers.</summary>
[InlineArray(16)]
public struct XmmFile
{
    private Vector128<ulong> _first;
}

/// <summary>A segment register with its hidden part.</summary>
public struct Segment
{
    /// <summary>Selector.</summary>
    public ushort Selector;

    /// <summary>Access rights in VMCS format: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.</summary>
    public uint Access;

    /// <summary>Limit in bytes.</summary>
    public uint Limit;

    /// <summary>Base.</summary>
    public ulong Base;

    /// <summary>Descriptor privilege level.</summary>
    public readonly int Dpl => (int)(Access >> 5) & 3;

    /// <summary>True for a 64-bit code segment.</summary>
    public readonly bool IsLong => (Access & (1 << 13)) != 0;
}

/// <summary>What a virtual CPU is doing.</summary>
public enum ActivityState : byte
{
    /// <summary>Executing.</summary>
    Active,

    /// <summary>HLT without an exit.</summary>
    Halted,

    /// <summary>Triple fault.</summary>
    Shutdown,

    /// <summary>Waits to be started.</summary>
    WaitForSipi,
}

/// <summary>
/// The architectural state of one vCPU (td-guest 1.1). It belongs to whoever runs the vCPU: the engine while it is inside, the module (TD) or the
/// Host (ordinary VM) between exits. The Host must never read it for a TD; what it may see is in the exit registers.
/// </summary>
public sealed class GuestState
{
    /// <summary>General registers, by <see cref="Platform.Gpr"/>.</summary>
    public GprFile Gpr;

    /// <summary>XMM0..15.</summary>
    public XmmFile Xmm;

    /// <summary>Instruction pointer.</summary>
    public ulong Rip;

    /// <summary>Flags; bit 1 is always 1.</summary>
    public ulong Rflags = 2;

    /// <summary>CR0.</summary>
    public ulong Cr0;

    /// <summary>CR2.</summary>
    public ulong Cr2;

    /// <summary>CR3.</summary>
    public ulong Cr3;

    /// <summary>CR4.</summary>
    public ulong Cr4;

    /// <summary>CR8 (TPR).</summary>
    public ulong Cr8;

    /// <summary>XCR0.</summary>
    public ulong Xcr0 = 3;

    /// <summary>IA32_EFER.</summary>
    public ulong Efer;

    /// <summary>IA32_STAR.</summary>
    public ulong Star;

    /// <summary>IA32_LSTAR.</summary>
    public ulong Lstar;

    /// <summary>IA32_FMASK.</summary>
    public ulong Fmask;

    /// <summary>IA32_KERNEL_GS_BASE.</summary>
    public ulong KernelGsBase;

    /// <summary>IA32_TSC_AUX.</summary>
    public ulong TscAux;

    /// <summary>IA32_XSS.</summary>
    public ulong Xss;

    /// <summary>IA32_PAT.</summary>
    public ulong Pat = 0x0007_0406_0007_0406;

    /// <summary>IA32_SYSENTER_CS.</summary>
    public ulong SysenterCs;

    /// <summary>IA32_SYSENTER_ESP.</summary>
    public ulong SysenterEsp;

    /// <summary>IA32_SYSENTER_EIP.</summary>
    public ulong SysenterEip;

    /// <summary>Code segment.</summary>
    public Segment Cs;

    /// <summary>Stack segment; its DPL is the CPL.</summary>
    public Segment Ss;

    /// <summary>Data segment.</summary>
    public Segment Ds;

    /// <summary>Data segment.</summary>
    public Segment Es;

    /// <summary>Data segment with a base.</summary>
    public Segment Fs;

    /// <summary>Data segment with a base.</summary>
    public Segment Gs;

    /// <summary>Local descriptor table.</summary>
    public Segment Ldtr;

    /// <summary>Task register.</summary>
    public Segment Tr;

    /// <summary>GDT base.</summary>
    public ulong GdtrBase;

    /// <summary>GDT limit.</summary>
    public ushort GdtrLimit;

    /// <summary>IDT base.</summary>
    public ulong IdtrBase;

    /// <summary>IDT limit.</summary>
    public ushort IdtrLimit;

    /// <summary>DR0..3.</summary>
    public ulong Dr0, Dr1, Dr2, Dr3;

    /// <summary>DR6.</summary>
    public ulong Dr6 = 0xFFFF_0FF0;

    /// <summary>DR7.</summary>
    public ulong Dr7 = 0x400;

    /// <summary>MXCSR.</summary>
    public uint Mxcsr = 0x1F80;

    /// <summary>Activity.</summary>
    public ActivityState Activity;

    /// <summary>True for the one instruction after STI.</summary>
    public bool StiShadow;

    /// <summary>True for the one instruction after MOV SS or POP SS.</summary>
    public bool MovSsShadow;

    /// <summary>True from NMI delivery to IRET.</summary>
    public bool NmiBlocked;

    /// <summary>Instructions retired so far; the source of simulated time.</summary>
    public ulong Retired;

    /// <summary>Current privilege level.</summary>
    public int Cpl => Ss.Dpl;

    /// <summary>A general register.</summary>
    public ref ulong this[Gpr register]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => ref Gpr[(int)register];
    }
}
