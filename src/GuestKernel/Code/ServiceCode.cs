using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>The payload services of <see cref="GuestService"/>: number in RAX, arguments in RDI RSI RDX, result in RAX; all other registers survive.</summary>
internal static class ServiceCode
{
    public static void Emit(KernelCode k)
    {
        Assembler a = k.A;
        string[] services =
        [
            "service_exit", "console_write", "read_tsc", "heap_alloc", "service_accept",
            "convert_to_shared", "convert_to_private", "service_barrier", "console_report",
        ];
        k.Begin("service_entry");
        a.call(k["tlb_poll"]);
        a.mov(rax, TrapFrame.Register(TrapFrame.Rax));
        a.mov(rdi, TrapFrame.Register(TrapFrame.Rdi));
        a.mov(rsi, TrapFrame.Register(TrapFrame.Rsi));
        Label done = k.Local();
        for (int number = 0; number < services.Length; number++)
        {
            Label next = k.Local();
            a.cmp(rax, number);
            a.jne(next);
            a.call(k[services[number]]);
            a.jmp(done);
            k.Place(next);
        }
        a.mov(rax, GuestError.NoService);
        k.Place(done);
        a.mov(TrapFrame.Register(TrapFrame.Rax), rax);
        a.jmp(k["trap_return"]);

        k.Begin("service_exit");
        a.jmp(k["exit_run"]);

        EmitAccept(k);
        EmitBarrier(k);
    }

    // rax = service_accept(rdi gpa, rsi bytes). Under the conversion lock: a shared page must not be asked for.
    private static void EmitAccept(KernelCode k)
    {
        Assembler a = k.A;
        Label leave = k.Local(), invalid = k.Local(), unlock = k.Local();
        k.Begin("service_accept");
        a.push(rbx);
        a.push(r12);
        a.push(r13);
        a.test(esi, (int)GuestAbi.PageBytes - 1);
        a.jne(invalid);
        a.shr(rsi, 12);
        a.call(k["conversion_check"]);
        a.test(rax, rax);
        a.jne(leave);
        a.cmp(KernelCode.Word(KernelLayout.IsTd), 0);
        a.je(leave);
        a.lea(rdi, KernelCode.Word(KernelLayout.ConversionLock));
        a.call(k["spin_lock"]);
        a.xor(edi, edi);
        a.call(k["conversion_check_all"]);
        a.test(rax, rax);
        a.jne(unlock);
        a.mov(rdi, rbx);
        a.mov(rsi, r12);
        a.call(k["accept_range"]);
        k.Place(unlock);
        a.mov(r13, rax);
        a.lea(rdi, KernelCode.Word(KernelLayout.ConversionLock));
        a.call(k["spin_unlock"]);
        a.mov(rax, r13);
        k.Place(leave);
        a.pop(r13);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
        k.Place(invalid);
        a.mov(rax, GuestError.Invalid);
        a.jmp(leave);
    }

    // rax = service_barrier(rdi id, rsi n). The last one opens the next generation; the count is back to 0 before that, so a barrier can be used again at once.
    private static void EmitBarrier(KernelCode k)
    {
        Assembler a = k.A;
        Label invalid = k.Local(), wait = k.Local(), last = k.Local(), leave = k.Local();
        k.Begin("service_barrier");
        a.cmp(rdi, KernelLayout.BarrierCount);
        a.jae(invalid);
        a.test(rsi, rsi);
        a.je(invalid);
        a.cmp(rsi, KernelCode.Word(KernelLayout.VcpuCount));
        a.ja(invalid);
        a.push(rbx);
        a.push(r12);
        a.mov(rbx, rdi);
        a.shl(rbx, KernelLayout.BarrierShift);
        a.add(rbx, (int)KernelLayout.Barriers);
        a.mov(r12, __qword_ptr[rbx + KernelLayout.BarrierGeneration]);
        a.mov(eax, 1);
        a.@lock.xadd(__qword_ptr[rbx + KernelLayout.BarrierArrived], rax);
        a.inc(rax);
        a.cmp(rax, rsi);
        a.jae(last);
        k.Place(wait);
        a.cmp(__qword_ptr[rbx + KernelLayout.BarrierGeneration], r12);
        a.jne(leave);
        a.pause();
        a.call(k["tlb_poll"]);
        a.jmp(wait);
        k.Place(last);
        a.mov(__qword_ptr[rbx + KernelLayout.BarrierArrived], 0);
        a.@lock.inc(__qword_ptr[rbx + KernelLayout.BarrierGeneration]);
        k.Place(leave);
        a.xor(eax, eax);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
        k.Place(invalid);
        a.mov(rax, GuestError.Invalid);
        a.ret();
    }
}
