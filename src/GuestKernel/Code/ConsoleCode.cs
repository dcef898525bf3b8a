using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// Console output. In a TD the kernel asks the host directly (TDVMCALL I/O) instead of letting OUT raise #VE; a payload that executes OUT itself takes
/// the long way. One lock keeps the text of one call together; oops texts do not take it.
/// </summary>
internal static class ConsoleCode
{
    public static void Emit(KernelCode k)
    {
        EmitByte(k);
        EmitWrite(k);
        EmitReport(k);
        EmitText(k);
        EmitDecimal(k);
        EmitHex(k);
        EmitLoadByte(k);
    }

    // console_byte(edi)
    private static void EmitByte(KernelCode k)
    {
        Assembler a = k.A;
        Label td = k.Local();
        k.Begin("console_byte");
        a.movzx(eax, dil);
        a.mov(edx, __dword_ptr[(long)GuestAbi.BootInfo + BootInfoPage.ConsolePort]);
        a.cmp(KernelCode.Word(KernelLayout.IsTd), 0);
        a.jne(td);
        a.@out(dx, al);
        a.ret();
        k.Place(td);
        a.mov(ecx, edx);
        a.mov(r8d, eax);
        a.mov(edi, TdcallCode.InstructionIo);
        a.mov(esi, 1);
        a.mov(edx, 1);
        a.jmp(k["hypercall"]);
    }

    // rax = console_write(rdi buffer, rsi bytes): bytes written, or GuestError.Fault if the buffer cannot be read.
    private static void EmitWrite(KernelCode k)
    {
        Assembler a = k.A;
        Label next = k.Local(), leave = k.Local(), fault = k.Local();
        k.Begin("console_write");
        a.push(rbx);
        a.push(r12);
        a.push(r13);
        a.mov(rbx, rdi);
        a.mov(r12, rsi);
        a.mov(r13, rsi);
        a.lea(rdi, KernelCode.Word(KernelLayout.ConsoleLock));
        a.call(k["spin_lock"]);
        k.Place(next);
        a.test(r12, r12);
        a.je(leave);
        a.mov(rdi, rbx);
        a.call(k["load_byte"]);
        a.test(eax, eax);
        a.js(fault);
        a.mov(edi, eax);
        a.call(k["console_byte"]);
        a.inc(rbx);
        a.dec(r12);
        a.jmp(next);
        k.Place(fault);
        a.mov(r13, GuestError.Fault);
        k.Place(leave);
        a.lea(rdi, KernelCode.Word(KernelLayout.ConsoleLock));
        a.call(k["spin_unlock"]);
        a.mov(rax, r13);
        a.pop(r13);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
    }

    // rax = console_report(rdi key, rsi value)
    private static void EmitReport(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("console_report");
        a.push(rbx);
        a.push(r12);
        a.push(r13);
        a.mov(rbx, rdi);
        a.mov(r12, rsi);
        a.lea(rdi, KernelCode.Word(KernelLayout.ConsoleLock));
        a.call(k["spin_lock"]);
        a.lea(rdi, __[k.Text("report ")]);
        a.call(k["console_text"]);
        a.mov(rdi, rbx);
        a.call(k["console_text"]);
        a.mov(r13, rax);
        a.lea(rdi, __[k.Text(" = ")]);
        a.call(k["console_text"]);
        a.mov(rdi, r12);
        a.call(k["console_decimal"]);
        a.mov(edi, '\n');
        a.call(k["console_byte"]);
        a.lea(rdi, KernelCode.Word(KernelLayout.ConsoleLock));
        a.call(k["spin_unlock"]);
        a.mov(rax, r13);
        a.pop(r13);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
    }

    // rax = console_text(rdi zero-terminated): 0, or GuestError.Fault.
    private static void EmitText(KernelCode k)
    {
        Assembler a = k.A;
        Label next = k.Local(), end = k.Local(), fault = k.Local();
        k.Begin("console_text");
        a.push(rbx);
        a.mov(rbx, rdi);
        k.Place(next);
        a.mov(rdi, rbx);
        a.call(k["load_byte"]);
        a.test(eax, eax);
        a.je(end);
        a.js(fault);
        a.mov(edi, eax);
        a.call(k["console_byte"]);
        a.inc(rbx);
        a.jmp(next);
        k.Place(fault);
        a.mov(rax, GuestError.Fault);
        k.Place(end);
        a.pop(rbx);
        a.ret();
    }

    // console_decimal(rdi)
    private static void EmitDecimal(KernelCode k)
    {
        Assembler a = k.A;
        Label digit = k.Local();
        k.Begin("console_decimal");
        a.sub(rsp, 32);
        a.mov(rax, rdi);
        a.lea(rdi, __[rsp + 31]);
        a.mov(__byte_ptr[rdi], 0);
        a.mov(ecx, 10);
        k.Place(digit);
        a.xor(edx, edx);
        a.div(rcx);
        a.add(edx, '0');
        a.dec(rdi);
        a.mov(__byte_ptr[rdi], dl);
        a.test(rax, rax);
        a.jne(digit);
        a.call(k["console_text"]);
        a.add(rsp, 32);
        a.ret();
    }

    // hex_16(rdi value, rsi -> 16 bytes): upper digits first.
    private static void EmitHex(KernelCode k)
    {
        Assembler a = k.A;
        Label digit = k.Local(), letter = k.Local();
        k.Begin("hex_16");
        a.mov(ecx, 16);
        k.Place(digit);
        a.rol(rdi, 4);
        a.mov(eax, edi);
        a.and(eax, 0xF);
        a.cmp(eax, 10);
        a.jb(letter);
        a.add(eax, 'a' - '0' - 10);
        k.Place(letter);
        a.add(eax, '0');
        a.mov(__byte_ptr[rsi], al);
        a.inc(rsi);
        a.dec(ecx);
        a.jne(digit);
        a.ret();
    }

    // eax = load_byte(rdi): the byte, or -1 if the address cannot be read.
    private static void EmitLoadByte(KernelCode k)
    {
        Assembler a = k.A;
        Label fault = k.Local();
        k.Begin("load_byte");
        k.Fixup(fault);
        a.movzx(eax, __byte_ptr[rdi]);
        a.ret();
        k.Place(fault);
        a.mov(eax, -1);
        a.ret();
    }
}
