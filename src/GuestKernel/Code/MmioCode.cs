using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// MMIO emulation: decode the instruction at the saved RIP, check, one TDVMCALL. Accepted are the single MOVs that device accessors consist of
/// (88 89 8A 8B C6 C7, 0F B6 B7 BE BF); everything else is refused and ends at a fixup or in an oops, never in a wrong device access.
/// Source: td-guest 7.5; the numbers of the checks are that section's.
/// </summary>
/// <remarks>
/// Bytes are read one by one as decoding needs them, so the page behind the instruction is touched only if the instruction reaches into it.
/// All registers are free here: the frame holds the interrupted ones, in hardware order, which is how register fields find them.
/// <code>
///   rsi next byte          r8 REX or 0           r12 access size        rbx effective address
///   rdi first byte + 15    r9 operand size       r13 flags (below)      r14 immediate, later the value
///   r10 segment prefix     r11 address size      r15 ModRM
/// </code>
/// </remarks>
internal static class MmioCode
{
    private const int Write = 1, Immediate = 2, SignExtend = 4, ByteRegister = 8, RipRelative = 16;
    private const int QualificationWrite = 2, LinearAddressValid = 0x80, LinearAddressAccess = 0x100;
    private const int MaxInstructionBytes = 15;
    private const uint FsBase = 0xC000_0100, GsBase = 0xC000_0101;

    public static void Emit(KernelCode k)
    {
        k.Begin("mmio_emulate");
        EmitPlausible(k);
        EmitPrefixes(k);
        EmitOpcode(k);
        EmitAddress(k);
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

    private static void EmitPrefixes(KernelCode k)
    {
        Assembler a = k.A;
        Label next = k.Local(), operandSize = k.Local(), addressSize = k.Local(), segment = k.Local(), rex = k.Local(), sized = k.Local(), wide = k.Local();
        a.mov(rsi, TrapFrame.Field(TrapFrame.Rip));
        a.lea(rdi, __[rsi + MaxInstructionBytes]);
        a.xor(r8d, r8d);
        a.mov(r9d, 4);
        a.xor(r10d, r10d);
        a.xor(r11d, r11d);
        a.xor(r13d, r13d);
        a.xor(r14d, r14d);

        k.Place(next);
        a.cmp(rsi, rdi);
        a.jae(k["mmio_fail"]);
        a.movzx(eax, __byte_ptr[rsi]);
        a.inc(rsi);
        a.cmp(eax, 0x66);
        a.je(operandSize);
        a.cmp(eax, 0x67);
        a.je(addressSize);
        a.cmp(eax, 0x64);
        a.je(segment);
        a.cmp(eax, 0x65);
        a.je(segment);
        foreach (int ignored in new[] { 0x2E, 0x36, 0x3E, 0x26 })
        {
            a.cmp(eax, ignored);
            a.je(next);
        }
        a.mov(ecx, eax);
        a.and(ecx, 0xF0);
        a.cmp(ecx, 0x40);
        a.je(rex);
        a.jmp(sized);

        k.Place(operandSize);
        a.mov(r9d, 2);
        a.jmp(next);
        k.Place(addressSize);
        a.inc(r11d);
        a.jmp(next);
        k.Place(segment);
        a.mov(r10d, eax);
        a.jmp(next);
        // REX counts only directly before the opcode; a prefix after it is no opcode of ours, hence refused.
        k.Place(rex);
        a.mov(r8d, eax);
        a.movzx(eax, __byte_ptr[rsi]);
        a.inc(rsi);
        a.test(r8d, 8);
        a.je(sized);
        a.mov(r9d, 8);
        k.Place(wide);
        k.Place(sized);
    }

    // eax = opcode. Sets size, flags; reads ModRM.
    private static void EmitOpcode(KernelCode k)
    {
        Assembler a = k.A;
        Label modRm = k.Local();
        (int Opcode, bool IsByte, int Flags)[] oneByte =
        [
            (0x88, true, Write | ByteRegister), (0x89, false, Write), (0x8A, true, ByteRegister), (0x8B, false, 0),
            (0xC6, true, Write | Immediate), (0xC7, false, Write | Immediate),
        ];
        (int Opcode, int Bytes, int Flags)[] twoByte = [(0xB6, 1, 0), (0xB7, 2, 0), (0xBE, 1, SignExtend), (0xBF, 2, SignExtend)];

        foreach ((int opcode, bool isByte, int flags) in oneByte)
        {
            Label other = k.Local();
            a.cmp(eax, opcode);
            a.jne(other);
            if (isByte)
                a.mov(r12d, 1);
            else
                a.mov(r12d, r9d);
            if (opcode == 0x8A)
                a.mov(r9d, 1);
            if (flags != 0)
                a.mov(r13d, flags);
            a.jmp(modRm);
            k.Place(other);
        }
        a.cmp(eax, 0x0F);
        a.jne(k["mmio_fail"]);
        a.movzx(eax, __byte_ptr[rsi]);
        a.inc(rsi);
        foreach ((int opcode, int bytes, int flags) in twoByte)
        {
            Label other = k.Local();
            a.cmp(eax, opcode);
            a.jne(other);
            a.mov(r12d, bytes);
            if (flags != 0)
                a.mov(r13d, flags);
            a.jmp(modRm);
            k.Place(other);
        }
        a.jmp(k["mmio_fail"]);

        k.Place(modRm);
        a.movzx(r15d, __byte_ptr[rsi]);
        a.inc(rsi);
        a.cmp(r15d, 0xC0);
        a.jae(k["mmio_fail"]);
        // C6 and C7 are MOV only with register field 0.
        Label register = k.Local();
        a.test(r13d, Immediate);
        a.je(register);
        a.test(r15d, 0x38);
        a.jne(k["mmio_fail"]);
        k.Place(register);
    }

    private static void EmitAddress(KernelCode k)
    {
        Assembler a = k.A;
        Label plain = k.Local(), noIndex = k.Local(), based = k.Local(), noBase = k.Local(), displacement8 = k.Local(), displacement32 = k.Local();
        Label immediate = k.Local(), immediate1 = k.Local(), immediate2 = k.Local(), addressed = k.Local(), notRip = k.Local(), full = k.Local();
        Label gs = k.Local(), readBase = k.Local(), flat = k.Local();

        a.xor(ebx, ebx);
        a.mov(ecx, r15d);
        a.and(ecx, 7);
        a.cmp(ecx, 4);
        a.jne(plain);

        // SIB: edx = index number, ecx = base number.
        a.movzx(eax, __byte_ptr[rsi]);
        a.inc(rsi);
        a.mov(edx, eax);
        a.shr(edx, 3);
        a.and(edx, 7);
        a.test(r8d, 2);
        Label lowIndex = k.Local();
        a.je(lowIndex);
        a.or(edx, 8);
        k.Place(lowIndex);
        a.mov(ecx, eax);
        a.shr(ecx, 6);
        a.cmp(edx, 4);
        a.je(noIndex);
        a.mov(rbx, __qword_ptr[rbp + (rdx * 8)]);
        a.shl(rbx, cl);
        k.Place(noIndex);
        a.mov(ecx, eax);
        a.and(ecx, 7);
        a.cmp(ecx, 5);
        a.jne(based);
        a.test(r15d, 0xC0);
        a.je(displacement32);
        a.jmp(based);

        k.Place(plain);
        a.cmp(ecx, 5);
        a.jne(based);
        a.test(r15d, 0xC0);
        a.jne(based);
        a.or(r13d, RipRelative);
        a.jmp(displacement32);

        k.Place(based);
        a.test(r8d, 1);
        Label lowBase = k.Local();
        a.je(lowBase);
        a.or(ecx, 8);
        k.Place(lowBase);
        a.add(rbx, __qword_ptr[rbp + (rcx * 8)]);
        k.Place(noBase);
        a.mov(ecx, r15d);
        a.shr(ecx, 6);
        a.je(immediate);
        a.cmp(ecx, 1);
        a.je(displacement8);
        k.Place(displacement32);
        a.movsxd(rax, __dword_ptr[rsi]);
        a.add(rsi, 4);
        a.add(rbx, rax);
        a.jmp(immediate);
        k.Place(displacement8);
        a.movsx(rax, __byte_ptr[rsi]);
        a.inc(rsi);
        a.add(rbx, rax);

        k.Place(immediate);
        a.test(r13d, Immediate);
        a.je(addressed);
        a.cmp(r12d, 2);
        a.jb(immediate1);
        a.je(immediate2);
        a.movsxd(r14, __dword_ptr[rsi]);
        a.add(rsi, 4);
        a.jmp(addressed);
        k.Place(immediate2);
        a.movzx(r14d, __word_ptr[rsi]);
        a.add(rsi, 2);
        a.jmp(addressed);
        k.Place(immediate1);
        a.movzx(r14d, __byte_ptr[rsi]);
        a.inc(rsi);

        // rsi is now the end of the instruction, which RIP-relative addresses count from.
        k.Place(addressed);
        a.cmp(rsi, rdi);
        a.ja(k["mmio_fail"]);
        a.test(r13d, RipRelative);
        a.je(notRip);
        a.add(rbx, rsi);
        k.Place(notRip);
        a.test(r11d, r11d);
        a.je(full);
        a.mov(ebx, ebx);
        k.Place(full);
        a.test(r10d, r10d);
        a.je(flat);
        a.mov(ecx, GsBase);
        a.cmp(r10d, 0x65);
        a.je(gs);
        a.mov(ecx, FsBase);
        k.Place(gs);
        k.Place(readBase);
        a.rdmsr(); // native in a TD: no #VE
        a.shl(rdx, 32);
        a.or(rax, rdx);
        a.add(rbx, rax);
        k.Place(flat);
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
        Label unsigned = k.Local(), word = k.Local(), wide = k.Local(), dword = k.Local(), low = k.Local(), sign2 = k.Local();
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
        k.Place(dword);
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
