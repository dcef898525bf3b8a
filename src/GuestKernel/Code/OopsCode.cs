using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// The end of a guest that cannot go on: one console line, then TDVMCALL ReportFatalError (in an ordinary VM: exit code <see cref="ExitCode"/>).
/// The 64 bytes of text travel in R14 R15 RBX RDI RSI R8 R9 RDX, the code in R12. Source: td-guest 6.3, 7.4.
/// </summary>
internal static class OopsCode
{
    /// <summary>Exit code of an ordinary VM that oopsed.</summary>
    public const int ExitCode = 255;

    private const int ReasonBytes = 22;
    private const int MessageBytes = 64;

    public static void Emit(KernelCode k)
    {
        EmitOops(k);
        EmitPanic(k);
        EmitReport(k);
        EmitExit(k);
    }

    // oops(rbp frame, rdi reason): an exception that nobody handles.
    private static void EmitOops(KernelCode k)
    {
        Assembler a = k.A;
        Label address = k.Local();
        k.Begin("oops");
        a.mov(rsi, TrapFrame.Field(TrapFrame.Rip));
        a.mov(rcx, TrapFrame.Field(TrapFrame.Vector));
        a.mov(rdx, TrapFrame.Field(TrapFrame.VeGpa));
        a.cmp(ecx, TrapCode.VirtualizationException);
        a.je(address);
        a.mov(rdx, cr2);
        a.cmp(ecx, TrapCode.PageFault);
        a.je(address);
        a.mov(rdx, TrapFrame.Field(TrapFrame.Error));
        k.Place(address);
        a.jmp(k["die"]);
    }

    // panic(rdi reason): the kernel itself cannot go on.
    private static void EmitPanic(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("panic");
        a.mov(rsi, __qword_ptr[rsp]);
        a.xor(edx, edx);
        a.mov(ecx, 0x100);
        a.jmp(k["die"]);
    }

    // die(rdi reason, rsi place, rdx detail, rcx code): message = reason, padded, " rip=" place " at=" detail.
    private static void EmitReport(KernelCode k)
    {
        Assembler a = k.A;
        Label copy = k.Local(), pad = k.Local(), padded = k.Local(), silent = k.Local(), td = k.Local(), again = k.Local();
        k.Begin("die");
        a.cli();
        a.mov(r12, rcx);
        a.mov(r13, rdx);
        a.mov(r14, rsi);
        a.sub(rsp, MessageBytes + 16);
        a.mov(rbx, rsp);
        a.mov(rsi, rbx);
        a.mov(ecx, ReasonBytes);
        k.Place(copy);
        a.movzx(eax, __byte_ptr[rdi]);
        a.test(eax, eax);
        a.je(pad);
        a.mov(__byte_ptr[rsi], al);
        a.inc(rdi);
        a.inc(rsi);
        a.dec(ecx);
        a.jne(copy);
        k.Place(pad);
        a.test(ecx, ecx);
        a.je(padded);
        a.mov(__byte_ptr[rsi], ' ');
        a.inc(rsi);
        a.dec(ecx);
        a.jmp(pad);
        k.Place(padded);
        a.mov(__dword_ptr[rsi], 0x7069_7220); // " rip"
        a.mov(__byte_ptr[rsi + 4], '=');
        a.add(rsi, 5);
        a.mov(rdi, r14);
        a.call(k["hex_16"]);
        a.mov(__dword_ptr[rsi], 0x3D74_6120); // " at="
        a.add(rsi, 4);
        a.mov(rdi, r13);
        a.call(k["hex_16"]);
        a.mov(__byte_ptr[rsi], 0);

        // An oops inside an oops, or on a second vCPU, goes straight to the host.
        a.@lock.bts(KernelCode.Word(KernelLayout.OopsLock), 0);
        a.jc(silent);
        a.lea(rdi, __[k.Text("oops: ")]);
        a.call(k["console_text"]);
        a.mov(rdi, rbx);
        a.call(k["console_text"]);
        a.mov(edi, '\n');
        a.call(k["console_byte"]);
        k.Place(silent);
        a.cmp(KernelCode.Word(KernelLayout.IsTd), 0);
        a.jne(td);
        a.mov(edi, ExitCode);
        a.jmp(k["exit_run"]);

        k.Place(td);
        a.mov(rbp, rbx);
        a.mov(r14, __qword_ptr[rbp]);
        a.mov(r15, __qword_ptr[rbp + 8]);
        a.mov(rbx, __qword_ptr[rbp + 16]);
        a.mov(rdi, __qword_ptr[rbp + 24]);
        a.mov(rsi, __qword_ptr[rbp + 32]);
        a.mov(r8, __qword_ptr[rbp + 40]);
        a.mov(r9, __qword_ptr[rbp + 48]);
        a.mov(rdx, __qword_ptr[rbp + 56]);
        a.xor(r13d, r13d);
        k.Place(again);
        a.xor(r10d, r10d);
        a.mov(r11d, TdcallCode.ReportFatalError);
        a.xor(eax, eax);
        a.mov(ecx, TdcallCode.ExposedRegisters);
        a.tdcall();
        // It must not come back. If a hostile host lets it, nothing else is executed here.
        a.pause();
        a.jmp(again);
    }

    // exit_run(edi code): ends the run through the exit port (in a TD: by way of #VE); then the vCPU parks.
    private static void EmitExit(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("exit_run");
        a.mov(eax, edi);
        a.mov(edx, __dword_ptr[(long)GuestAbi.BootInfo + BootInfoPage.ExitPort]);
        a.@out(dx, eax);

        // park(): this vCPU never runs a payload again; it holds no translation that matters, so shoot-downs leave it out.
        k.Begin("park");
        a.cli();
        k.ThisVcpu(rax, eax);
        a.mov(__qword_ptr[rax + KernelLayout.BlockRunning], 0);
        k.Begin("park_loop");
        a.hlt();
        a.jmp(k["park_loop"]);
    }
}
