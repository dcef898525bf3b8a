using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// The instruction decoder of the MMIO emulation. It knows the single MOVs that device accessors consist of (88 89 8A 8B C6 C7, 0F B6 B7 BE BF) with all
/// addressing modes, and refuses everything else: read-modify-write, PUSH, string instructions, moffs, LOCK, REP, SSE. Source: td-guest 7.5.
/// </summary>
/// <remarks>
/// Bytes are read one by one as decoding needs them, so the page behind the instruction is touched only if the instruction reaches into it.
/// The frame holds the interrupted registers in hardware order, which is how register fields find them. After decoding:
/// <code>
///   rsi end of the instruction    r8 REX or 0                       r12 access size     rbx effective address
///   rdi first byte + 15           r9 operand (destination) size     r13 flags (below)   r14 immediate
///   r10 segment prefix            r11 address-size prefixes         r15 ModRM
/// </code>
/// </remarks>
internal static class MmioDecodeCode
{
    public const int Write = 1;
    public const int Immediate = 2;
    public const int SignExtend = 4;

    /// <summary>The register operand has 8 bits, so numbers 4 to 7 without REX are AH CH DH BH.</summary>
    public const int ByteRegister = 8;

    private const int RipRelative = 16;
    private const int MaxInstructionBytes = 15;
    private const uint FsBase = 0xC000_0100, GsBase = 0xC000_0101;

    public static void Emit(KernelCode k)
    {
        EmitPrefixes(k);
        EmitOpcode(k);
        EmitAddress(k);
    }

    private static void EmitPrefixes(KernelCode k)
    {
        Assembler a = k.A;
        Label next = k.Local(), operandSize = k.Local(), addressSize = k.Local(), segment = k.Local(), rex = k.Local(), opcode = k.Local();
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
        a.jmp(opcode);

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
        a.je(opcode);
        a.mov(r9d, 8);
        k.Place(opcode);
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
        Label plain = k.Local(), lowIndex = k.Local(), noIndex = k.Local(), based = k.Local(), lowBase = k.Local();
        Label displacement8 = k.Local(), displacement32 = k.Local();
        Label immediate = k.Local(), immediate1 = k.Local(), immediate2 = k.Local(), addressed = k.Local(), notRip = k.Local(), full = k.Local();
        Label readBase = k.Local(), flat = k.Local();

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
        a.je(lowBase);
        a.or(ecx, 8);
        k.Place(lowBase);
        a.add(rbx, __qword_ptr[rbp + (rcx * 8)]);
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
        a.je(readBase);
        a.mov(ecx, FsBase);
        k.Place(readBase);
        a.rdmsr(); // native in a TD: no #VE
        a.shl(rdx, 32);
        a.or(rax, rdx);
        a.add(rbx, rax);
        k.Place(flat);
    }
}
