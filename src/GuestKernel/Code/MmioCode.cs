using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// MMIO emulation: decode the instruction at the saved RIP (<see cref="MmioDecodeCode"/>), check, one TDVMCALL, write the register back.
/// What is refused ends at a fixup or in an oops, never in a wrong device access.
/// Source: td-guest 7.5; the numbers of the checks are that section's.
/// </summary>
/// <remarks>All registers are free here: the frame holds the interrupted ones. Who holds what after decoding is said at <see cref="MmioDecodeCode"/>.</remarks>
internal static class MmioCode
{
    private const int Write = MmioDecodeCode.Write, Immediate = MmioDecodeCode.Immediate;
    private const int SignExtend = MmioDecodeCode.SignExtend, ByteRegister = MmioDecodeCode.ByteRegister;
    private const int QualificationWrite = 2, LinearAddressValid = 0x80, LinearAddressAccess = 0x100;

    public static void Emit(KernelCode k)
    {
        k.Begin("mmio_emulate");
        EmitPlausible(k);
        MmioDecodeCode.Emit(k);
        EmitChecks(k);
        EmitWrite(k);
        EmitRead(k);
        EmitFinish(k);
        EmitTruncate(k);
        EmitRegisterSlot(k);
    }

    // Checks 1 and 2 are behind us: kernel mode (the dispatcher), shared GPA.
    private static void EmitPlausible(KernelCode k)
    {
        Assembler a = k.A;
        // 3. The GLA is in the half of the kernel that maps devices and shared memory: a payload pointer must not become MMIO.
        a.mov(rax, TrapFrame.Field(TrapFrame.VeGla));
        a.mov(rcx, (long)GuestAbi.SharedWindow);
        a.sub(rax, rcx);
        a.shr(rax, 32);
        a.jne(k["mmio_fail"]);
        // 4. There is a GLA, and it is the access itself, not a page-table entry.
        a.mov(eax, __dword_ptr[rbp + TrapFrame.VeQualification]);
        a.and(eax, LinearAddressValid | LinearAddressAccess);
        a.cmp(eax, LinearAddressValid | LinearAddressAccess);
        a.jne(k["mmio_fail"]);
    }

    private static void EmitChecks(KernelCode k)
    {
        Assembler a = k.A;
        Label isWrite = k.Local(), agreed = k.Local();
        // 5. The direction that the processor saw is the one that was decoded.
        a.test(__byte_ptr[rbp + TrapFrame.VeQualification], QualificationWrite);
        a.jne(isWrite);
        a.test(r13d, Write);
        a.jne(k["mmio_fail"]);
        a.jmp(agreed);
        k.Place(isWrite);
        a.test(r13d, Write);
        a.je(k["mmio_fail"]);
        k.Place(agreed);
        // 6. One page; the decoded address is the one that faulted (else the instruction straddles RAM and MMIO, or the bytes have changed);
        //    linear and guest-physical address agree inside the page.
        a.lea(rax, __[rbx + r12 - 1]);
        a.xor(rax, rbx);
        a.and(rax, -(int)GuestAbi.PageBytes);
        a.jne(k["mmio_fail"]);
        a.cmp(rbx, TrapFrame.Field(TrapFrame.VeGla));
        a.jne(k["mmio_fail"]);
        a.xor(rbx, TrapFrame.Field(TrapFrame.VeGpa));
        a.and(ebx, (int)GuestAbi.PageBytes - 1);
        a.jne(k["mmio_fail"]);
        // 7. Sizes are 1, 2, 4 or 8 by construction. rbx = length of the instruction from here on.
        a.mov(rbx, rsi);
        a.sub(rbx, TrapFrame.Field(TrapFrame.Rip));
    }

    private static void EmitWrite(KernelCode k)
    {
        Assembler a = k.A;
        Label value = k.Local();
        a.test(r13d, Write);
        a.je(k["mmio_read"]);
        a.test(r13d, Immediate);
        a.jne(value);
        a.call(k["register_slot"]);
        a.mov(r14, __qword_ptr[rax]);
        a.test(ecx, ecx);
        a.je(value);
        a.shr(r14, 8);
        k.Place(value);
        a.mov(rax, r14);
        a.mov(edx, r12d);
        a.call(k["truncate"]);
        a.mov(r8, rax);
        a.mov(edx, 1);
        a.call(k["mmio_call"]);
        a.jmp(k["mmio_done"]);
    }

    private static void EmitRead(KernelCode k)
    {
        Assembler a = k.A;
        Label unsigned = k.Local(), word = k.Local(), wide = k.Local(), low = k.Local(), sign2 = k.Local();
        k.Begin("mmio_read");
        // The destination's size (r9) is caller-saved; r14 is free, there is no immediate. REX (r8) is needed for the slot.
        a.mov(r14d, r9d);
        a.call(k["register_slot"]);
        a.push(rax);
        a.push(rcx);
        a.xor(edx, edx);
        a.xor(r8d, r8d);
        a.call(k["mmio_call"]);
        // A host that answers more than was asked for is cut to size.
        a.mov(rax, rdx);
        a.mov(edx, r12d);
        a.call(k["truncate"]);
        a.pop(rcx);
        a.pop(rdi);
        a.test(r13d, SignExtend);
        a.je(unsigned);
        a.cmp(r12d, 2);
        a.je(sign2);
        a.movsx(rax, al);
        a.jmp(unsigned);
        k.Place(sign2);
        a.movsx(rax, ax);

        k.Place(unsigned);
        a.cmp(r14d, 2);
        a.je(word);
        a.jb(low);
        a.cmp(r14d, 8);
        a.je(wide);
        a.mov(eax, eax);
        k.Place(wide);
        a.mov(__qword_ptr[rdi], rax);
        a.jmp(k["mmio_done"]);
        k.Place(word);
        a.mov(__word_ptr[rdi], ax);
        a.jmp(k["mmio_done"]);
        // ecx = 1 for AH CH DH BH, which lie one byte up in their slot.
        k.Place(low);
        a.mov(__byte_ptr[rdi + rcx], al);
        a.jmp(k["mmio_done"]);

        // rdx = mmio_call(rdx direction, r8 value); r12 size. Fails if the host refuses.
        k.Begin("mmio_call");
        a.mov(edi, TdcallCode.RequestMmio);
        a.mov(esi, r12d);
        a.mov(rcx, TrapFrame.Field(TrapFrame.VeGpa));
        a.sub(rsp, 8);
        a.call(k["hypercall"]);
        a.add(rsp, 8);
        a.test(rax, rax);
        a.jne(k["mmio_fail"]);
        a.ret();
    }

    private static void EmitFinish(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("mmio_done");
        // RSP may have been the destination.
        a.mov(rax, TrapFrame.Register(TrapFrame.RspNumber));
        a.mov(TrapFrame.Field(TrapFrame.Rsp), rax);
        a.add(TrapFrame.Field(TrapFrame.Rip), rbx);
        a.jmp(k["trap_return"]);

        k.Begin("mmio_fail");
        a.call(k["fixup_find"]);
        a.test(eax, eax);
        a.jne(k["trap_return"]);
        a.lea(rdi, __[k.Text("MMIO access refused")]);
        a.jmp(k["oops"]);
    }

    // rax = truncate(rax value, edx bytes): keeps all other registers.
    private static void EmitTruncate(KernelCode k)
    {
        Assembler a = k.A;
        Label one = k.Local(), two = k.Local(), all = k.Local();
        k.Begin("truncate");
        a.cmp(edx, 2);
        a.jb(one);
        a.je(two);
        a.cmp(edx, 8);
        a.je(all);
        a.mov(eax, eax);
        a.ret();
        k.Place(two);
        a.movzx(eax, ax);
        a.ret();
        k.Place(one);
        a.movzx(eax, al);
        k.Place(all);
        a.ret();
    }

    // rax -> frame slot of the register field in r15 (with REX.R), ecx = 1 if it names AH CH DH BH: a byte register 4 to 7 without REX.
    private static void EmitRegisterSlot(KernelCode k)
    {
        Assembler a = k.A;
        Label low = k.Local(), plain = k.Local();
        k.Begin("register_slot");
        a.mov(eax, r15d);
        a.shr(eax, 3);
        a.and(eax, 7);
        a.test(r8d, 4);
        a.je(low);
        a.or(eax, 8);
        k.Place(low);
        a.xor(ecx, ecx);
        a.test(r13d, ByteRegister);
        a.je(plain);
        a.test(r8d, r8d);
        a.jne(plain);
        a.cmp(eax, 4);
        a.jb(plain);
        a.sub(eax, 4);
        a.inc(ecx);
        k.Place(plain);
        a.lea(rax, __[rbp + (rax * 8)]);
        a.ret();
    }
}
