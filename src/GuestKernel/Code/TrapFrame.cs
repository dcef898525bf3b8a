using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// What RBP points to while a trap is handled. All traps have the same frame: stubs push a zero where the CPU pushes no error code (td-guest 7.11).
/// The general registers lie in the order of their hardware numbers, so that an instruction's register field indexes them.
/// </summary>
internal static class TrapFrame
{
    public const int VeReason = 128;
    public const int VeQualification = 136;
    public const int VeGla = 144;
    public const int VeGpa = 152;
    public const int VeLength = 160;
    public const int Vector = 176;
    public const int Error = 184;
    public const int Rip = 192;
    public const int Cs = 200;
    public const int Rflags = 208;
    public const int Rsp = 216;

    /// <summary>Bytes below the vector: registers and the copy of VE_INFO.</summary>
    public const int BodyBytes = Vector;

    public const int Rax = 0, Rcx = 1, Rdx = 2, Rbx = 3, RspNumber = 4, Rsi = 6, Rdi = 7;

    /// <summary>The general registers by hardware number.</summary>
    public static readonly AssemblerRegister64[] Registers =
        [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

    public static AssemblerMemoryOperand Field(int offset) => __qword_ptr[rbp + offset];

    public static AssemblerMemoryOperand Register(int number) => __qword_ptr[rbp + (number * 8)];
}
