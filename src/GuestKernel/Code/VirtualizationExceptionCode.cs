using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// The #VE dispatcher: VEINFO.GET first, then by reason. Success moves RIP on (by VE_INFO's length for instructions; memory access: see below),
/// failure looks for a fixup, then oopses. Source: td-guest 7.4, 7.8, 7.9.
/// </summary>
/// <remarks>
/// Memory: private and lazily accepted - RIP stays, the instruction is executed again. Shared - MMIO emulation, which decodes the instruction itself,
/// because VE_INFO's length means nothing for EPT violations.
/// </remarks>
internal static class VirtualizationExceptionCode
{
    private const int Cpuid = 10, Hlt = 12, Io = 30, Rdmsr = 31, Wrmsr = 32, EptViolation = 48;
    private const int InterruptFlag = 0x200;
    private const int IoString = 0x10, IoIn = 8;

    /// <summary>Exit codes of a user program that is killed: 128 + SIGBUS, 128 + SIGSEGV.</summary>
    private const int BusError = 135, SegmentationFault = 139;

    public static void Emit(KernelCode k)
    {
        EmitEntry(k);
        EmitCpuid(k);
        EmitMsr(k);
        EmitIo(k);
        EmitHlt(k);
        EmitMemory(k);
    }

    private static void EmitEntry(KernelCode k)
    {
        Assembler a = k.A;
        Label invalid = k.Local(), masked = k.Local(), user = k.Local();
        k.Begin("ve_entry");
        a.mov(eax, TdcallCode.VeInfoGet);
        a.tdcall();
        // From here on another #VE is legal.
        k.Begin("ve_info_taken");
        a.mov(TrapFrame.Field(TrapFrame.VeReason), rcx);
        a.mov(TrapFrame.Field(TrapFrame.VeQualification), rdx);
        a.mov(TrapFrame.Field(TrapFrame.VeGla), r8);
        a.mov(TrapFrame.Field(TrapFrame.VeGpa), r9);
        a.mov(TrapFrame.Field(TrapFrame.VeLength), r10);
        a.test(rax, rax);
        a.jne(invalid);
        a.test(__dword_ptr[rbp + TrapFrame.Rflags], InterruptFlag);
        a.je(masked);
        a.sti();
        k.Place(masked);
        a.call(k["tlb_poll"]);
        a.inc(__qword_ptr[rax + KernelLayout.BlockVeCount]);
        a.mov(eax, __dword_ptr[rbp + TrapFrame.VeReason]);
        a.test(__byte_ptr[rbp + TrapFrame.Cs], 3);
        a.jne(user);
        a.cmp(eax, EptViolation);
        a.je(k["ve_memory"]);
        a.cmp(eax, Io);
        a.je(k["ve_io"]);
        a.cmp(eax, Hlt);
        a.je(k["ve_hlt"]);
        a.cmp(eax, Rdmsr);
        a.je(k["ve_rdmsr"]);
        a.cmp(eax, Wrmsr);
        a.je(k["ve_wrmsr"]);
        a.cmp(eax, Cpuid);
        a.je(k["ve_cpuid"]);

        k.Begin("ve_fail");
        a.call(k["fixup_find"]);
        a.test(eax, eax);
        a.jne(k["trap_return"]);
        a.lea(rdi, __[k.Text("unhandled #VE")]);
        a.jmp(k["oops"]);
        k.Place(invalid);
        a.lea(rdi, __[k.Text("#VE without VE_INFO")]);
        a.jmp(k["oops"]);

        k.Begin("ve_advance");
        a.mov(eax, __dword_ptr[rbp + TrapFrame.VeLength]);
        a.add(TrapFrame.Field(TrapFrame.Rip), rax);
        a.jmp(k["trap_return"]);

        // A user program: CPUID is the one instruction that it may execute; MMIO is a bus error, all else a segmentation fault (td-guest 7.4).
        k.Place(user);
        a.cmp(eax, Cpuid);
        a.je(k["ve_cpuid"]);
        a.mov(edi, BusError);
        a.cmp(eax, EptViolation);
        a.je(k["exit_run"]);
        a.mov(edi, SegmentationFault);
        a.jmp(k["exit_run"]);
    }

    // The host may answer in its own range only; elsewhere a faulting leaf reads zero, so the host cannot fake a feature (td-guest 4.3).
    private static void EmitCpuid(KernelCode k)
    {
        Assembler a = k.A;
        Label store = k.Local();
        k.Begin("ve_cpuid");
        // R10 to R15 in and out. A leaf outside the host's range is never asked for, so it keeps these zeros.
        a.sub(rsp, 48);
        for (int at = 0; at < 48; at += 8)
            a.mov(__qword_ptr[rsp + at], 0);
        a.mov(eax, __dword_ptr[rbp + (TrapFrame.Rax * 8)]);
        a.mov(ecx, eax);
        a.and(ecx, 0xF000_0000);
        a.cmp(ecx, 0x4000_0000);
        a.jne(store);
        a.mov(__qword_ptr[rsp + 8], TdcallCode.InstructionCpuid);
        a.mov(__qword_ptr[rsp + 16], rax);
        a.mov(ecx, __dword_ptr[rbp + (TrapFrame.Rcx * 8)]);
        a.mov(__qword_ptr[rsp + 24], rcx);
        a.mov(rdi, rsp);
        a.call(k["tdvmcall"]);
        a.test(rax, rax);
        a.jne(k["ve_fail"]);
        k.Place(store);
        int[] outputs = [TrapFrame.Rax, TrapFrame.Rbx, TrapFrame.Rcx, TrapFrame.Rdx];
        for (int i = 0; i < outputs.Length; i++)
        {
            a.mov(eax, __dword_ptr[rsp + (16 + (i * 8))]);
            a.mov(TrapFrame.Register(outputs[i]), rax);
        }
        a.jmp(k["ve_advance"]);
    }

    private static void EmitMsr(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("ve_rdmsr");
        a.mov(edi, TdcallCode.InstructionRdmsr);
        a.mov(esi, __dword_ptr[rbp + (TrapFrame.Rcx * 8)]);
        a.xor(edx, edx);
        a.xor(ecx, ecx);
        a.xor(r8d, r8d);
        a.call(k["hypercall"]);
        a.test(rax, rax);
        a.jne(k["ve_fail"]);
        a.mov(eax, edx);
        a.mov(TrapFrame.Register(TrapFrame.Rax), rax);
        a.shr(rdx, 32);
        a.mov(TrapFrame.Register(TrapFrame.Rdx), rdx);
        a.jmp(k["ve_advance"]);

        k.Begin("ve_wrmsr");
        a.mov(edi, TdcallCode.InstructionWrmsr);
        a.mov(esi, __dword_ptr[rbp + (TrapFrame.Rcx * 8)]);
        a.mov(edx, __dword_ptr[rbp + (TrapFrame.Rdx * 8)]);
        a.shl(rdx, 32);
        a.mov(eax, __dword_ptr[rbp + (TrapFrame.Rax * 8)]);
        a.or(rdx, rax);
        a.xor(ecx, ecx);
        a.xor(r8d, r8d);
        a.call(k["hypercall"]);
        a.test(rax, rax);
        a.jne(k["ve_fail"]);
        a.jmp(k["ve_advance"]);
    }

    // Qualification: 2:0 size - 1, 3 IN, 4 string, 31:16 port.
    private static void EmitIo(KernelCode k)
    {
        Assembler a = k.A;
        Label read = k.Local(), merge16 = k.Local(), merge8 = k.Local();
        k.Begin("ve_io");
        a.mov(ecx, __dword_ptr[rbp + TrapFrame.VeQualification]);
        a.test(ecx, IoString);
        a.jne(k["ve_fail"]);
        a.mov(ebx, ecx);
        a.and(ebx, 7);
        a.inc(ebx);
        a.mov(edi, TdcallCode.InstructionIo);
        a.mov(esi, ebx);
        a.mov(eax, ecx);
        a.shr(ecx, 16);
        a.test(eax, IoIn);
        a.jne(read);
        a.mov(eax, __dword_ptr[rbp + (TrapFrame.Rax * 8)]);
        a.mov(edx, ebx);
        a.call(k["truncate"]);
        a.mov(r8, rax);
        a.mov(edx, 1);
        a.call(k["hypercall"]);
        a.test(rax, rax);
        a.jne(k["ve_fail"]);
        a.jmp(k["ve_advance"]);

        k.Place(read);
        a.xor(edx, edx);
        a.xor(r8d, r8d);
        a.call(k["hypercall"]);
        a.test(rax, rax);
        a.jne(k["ve_fail"]);
        a.cmp(ebx, 2);
        a.jb(merge8);
        a.je(merge16);
        a.mov(edx, edx);
        a.mov(TrapFrame.Register(TrapFrame.Rax), rdx);
        a.jmp(k["ve_advance"]);
        k.Place(merge16);
        a.mov(__word_ptr[rbp + (TrapFrame.Rax * 8)], dx);
        a.jmp(k["ve_advance"]);
        k.Place(merge8);
        a.mov(__byte_ptr[rbp + (TrapFrame.Rax * 8)], dl);
        a.jmp(k["ve_advance"]);
    }

    // R12 = 1 keeps the vCPU halted although an interrupt is pending: only if the interrupted code had interrupts off.
    private static void EmitHlt(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("ve_hlt");
        a.mov(edi, TdcallCode.InstructionHlt);
        a.xor(esi, esi);
        a.test(__dword_ptr[rbp + TrapFrame.Rflags], InterruptFlag);
        a.sete(sil);
        a.xor(edx, edx);
        a.xor(ecx, ecx);
        a.xor(r8d, r8d);
        a.call(k["hypercall"]);
        a.test(rax, rax);
        a.jne(k["ve_fail"]);
        a.jmp(k["ve_advance"]);
    }

    private static void EmitMemory(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("ve_memory");
        a.mov(rdi, TrapFrame.Field(TrapFrame.VeGpa));
        a.test(KernelCode.Word(KernelLayout.SharedMask), rdi);
        a.jne(k["mmio_emulate"]);
        // Everything was accepted at boot unless acceptance is lazy: then a private #VE is the host's attempt to swap a page.
        Label attack = k.Local();
        a.cmp(KernelCode.Word(KernelLayout.Lazy), 0);
        a.je(attack);
        a.call(k["accept_fault"]);
        a.test(rax, rax);
        a.je(k["trap_return"]);
        k.Place(attack);
        a.lea(rdi, __[k.Text("private page was lost")]);
        a.jmp(k["oops"]);
    }
}
