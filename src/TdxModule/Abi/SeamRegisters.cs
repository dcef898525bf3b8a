namespace Tdp.Module;

/// <summary>
/// The general registers of one SEAMCALL, in and out (tdx-module 1.1). A plain value on the caller's stack; only the calling thread touches it.
/// XMM registers travel separately: <see cref="TdxModule.HostXmm"/>.
/// </summary>
public struct SeamRegisters
{
    /// <summary>In: leaf 15:0, version 23:16. Out: the status (<see cref="TdxStatus"/>).</summary>
    public ulong Rax;

    /// <summary>RCX.</summary>
    public ulong Rcx;

    /// <summary>RDX.</summary>
    public ulong Rdx;

    /// <summary>RBX.</summary>
    public ulong Rbx;

    /// <summary>RSP: never passed; keeps the numbering of registers and masks.</summary>
    public ulong Rsp;

    /// <summary>RBP.</summary>
    public ulong Rbp;

    /// <summary>RSI.</summary>
    public ulong Rsi;

    /// <summary>RDI.</summary>
    public ulong Rdi;

    /// <summary>R8.</summary>
    public ulong R8;

    /// <summary>R9.</summary>
    public ulong R9;

    /// <summary>R10.</summary>
    public ulong R10;

    /// <summary>R11.</summary>
    public ulong R11;

    /// <summary>R12.</summary>
    public ulong R12;

    /// <summary>R13.</summary>
    public ulong R13;

    /// <summary>R14.</summary>
    public ulong R14;

    /// <summary>R15.</summary>
    public ulong R15;

    /// <summary>RAX read as a status.</summary>
    public readonly TdxStatus Status => new(Rax);

    /// <summary>A register by its number.</summary>
    [System.Diagnostics.CodeAnalysis.UnscopedRef]
    public ref ulong this[Gpr register]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => ref Unsafe.Add(ref Rax, (int)register & 15);
    }

    /// <summary>The registers of a call to <paramref name="leaf"/>; the others are zero.</summary>
    /// <param name="leaf">Leaf number.</param>
    /// <param name="rcx">RCX.</param>
    /// <param name="rdx">RDX.</param>
    /// <param name="r8">R8.</param>
    /// <param name="r9">R9.</param>
    /// <param name="version">Leaf version, RAX bits 23:16.</param>
    public static SeamRegisters Call(TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0, int version = 0) =>
        new() { Rax = (ulong)leaf | ((ulong)(uint)version << 16), Rcx = rcx, Rdx = rdx, R8 = r8, R9 = r9 };
}
