using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// The calls to the TDX module and, through it, to the host. Source: td-guest 6.
/// A TDVMCALL exposes the registers of <see cref="ExposedRegisters"/> and nothing else: those a call does not use are zero on the way out, and what
/// the host put into them is discarded on the way back. RBP is never exposed.
/// </summary>
internal static class TdcallCode
{
    public const int VpVmcall = 0;
    public const int VpInfo = 1;
    public const int VeInfoGet = 3;
    public const int PageAccept = 6;
    public const int VmRead = 7;
    public const int VmWrite = 8;

    public const int InstructionCpuid = 10;
    public const int InstructionHlt = 12;
    public const int InstructionIo = 30;
    public const int InstructionRdmsr = 31;
    public const int InstructionWrmsr = 32;
    public const int RequestMmio = 48;
    public const int MapGpa = 0x10001;
    public const int ReportFatalError = 0x10003;

    /// <summary>R10 of a call that the host wants repeated.</summary>
    public const int Retry = 1;

    /// <summary>RDX RBX RSI RDI R8-R15.</summary>
    public const int ExposedRegisters = 0xFFCC;

    /// <summary>Upper halves of the TDCALL status values that the kernel tells apart; the lower half names operand or level.</summary>
    public const uint OperandBusyHigh = 0x8000_0200;
    public const uint PageAlreadyAcceptedHigh = 0x0000_0B0A;

    public static void Emit(KernelCode k)
    {
        EmitHypercall(k);
        EmitVmcall(k);
    }

    // rax = status, rdx = R11 of hypercall(rdi sub-function, rsi R12, rdx R13, rcx R14, r8 R15)
    private static void EmitHypercall(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("hypercall");
        a.sub(rsp, 48);
        a.mov(__qword_ptr[rsp], 0);
        a.mov(__qword_ptr[rsp + 8], rdi);
        a.mov(__qword_ptr[rsp + 16], rsi);
        a.mov(__qword_ptr[rsp + 24], rdx);
        a.mov(__qword_ptr[rsp + 32], rcx);
        a.mov(__qword_ptr[rsp + 40], r8);
        a.mov(rdi, rsp);
        a.call(k["tdvmcall"]);
        a.mov(rdx, __qword_ptr[rsp + 8]);
        a.add(rsp, 48);
        a.ret();
    }

    // rax = status of tdvmcall(rdi -> R10 to R15, in and out): RAX if the module refused, else R10.
    private static void EmitVmcall(KernelCode k)
    {
        Assembler a = k.A;
        AssemblerRegister64[] passed = [r10, r11, r12, r13, r14, r15];
        AssemblerRegister64[] kept = [rbx, rbp, r12, r13, r14, r15, rdi];
        Label accepted = k.Local();

        k.Begin("tdvmcall");
        foreach (AssemblerRegister64 register in kept)
            a.push(register);
        for (int i = 0; i < passed.Length; i++)
            a.mov(passed[i], __qword_ptr[rdi + (i * 8)]);
        a.xor(eax, eax);
        a.xor(ebx, ebx);
        a.xor(edx, edx);
        a.xor(esi, esi);
        a.xor(edi, edi);
        a.xor(r8d, r8d);
        a.xor(r9d, r9d);
        a.mov(ecx, ExposedRegisters);
        a.tdcall();
        a.pop(rdi);
        for (int i = 0; i < passed.Length; i++)
            a.mov(__qword_ptr[rdi + (i * 8)], passed[i]);
        a.test(rax, rax);
        a.jne(accepted);
        a.mov(rax, r10);
        k.Place(accepted);
        a.xor(edx, edx);
        a.xor(esi, esi);
        a.xor(r8d, r8d);
        a.xor(r9d, r9d);
        a.xor(r10d, r10d);
        a.xor(r11d, r11d);
        for (int i = kept.Length - 2; i >= 0; i--)
            a.pop(kept[i]);
        a.ret();
    }
}
