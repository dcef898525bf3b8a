using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// TLB shoot-down without an interrupt controller. A conversion increments the shoot-down number, flushes its own TLB, and waits until every vCPU that
/// runs has written a number at least as large into its block. A vCPU does so after reloading CR3, whenever it polls: on each #VE, on each service
/// call, and while it waits for a lock, a barrier or another vCPU's ACCEPT.
/// </summary>
/// <remarks>
/// What this gives and what not: no conversion goes on before all running vCPUs have flushed, so the rule of td-guest 7.6 holds. But there is no IPI: a
/// vCPU that computes without ever entering the kernel delays a conversion until it does. After <see cref="PatienceTicks"/> the kernel gives up loudly.
/// vCPUs that have not started, or have parked, do not run: they need no flush, and one that starts reloads CR3 after it has declared itself running.
/// </remarks>
internal static class TlbCode
{
    private const long PatienceTicks = 60_000_000_000;

    public static void Emit(KernelCode k)
    {
        EmitPoll(k);
        EmitShootDown(k);
    }

    // rax = tlb_poll(): the own vCPU's block; clobbers rcx rdx.
    private static void EmitPoll(KernelCode k)
    {
        Assembler a = k.A;
        Label flush = k.Local();
        k.Begin("tlb_poll");
        k.ThisVcpu(rax, eax);
        a.mov(rcx, KernelCode.Word(KernelLayout.TlbSequence));
        a.cmp(rcx, __qword_ptr[rax + KernelLayout.BlockTlbAcknowledged]);
        a.jne(flush);
        a.ret();
        k.Place(flush);
        // The number was read before the flush, so it never promises more than was flushed.
        a.mov(rdx, cr3);
        a.mov(cr3, rdx);
        a.mov(__qword_ptr[rax + KernelLayout.BlockTlbAcknowledged], rcx);
        a.ret();
    }

    // tlb_shootdown(): the caller holds the conversion lock, so there is one at a time.
    private static void EmitShootDown(KernelCode k)
    {
        Assembler a = k.A;
        Label vcpu = k.Local(), ask = k.Local(), next = k.Local(), done = k.Local();
        k.Begin("tlb_shootdown");
        a.push(rbx);
        a.push(r12);
        a.push(r13);
        a.push(r14);
        a.mov(r12d, 1);
        a.@lock.xadd(KernelCode.Word(KernelLayout.TlbSequence), r12);
        a.inc(r12);
        a.mov(rax, cr3);
        a.mov(cr3, rax);
        k.ThisVcpu(rax, eax);
        a.mov(__qword_ptr[rax + KernelLayout.BlockTlbAcknowledged], r12);
        a.call(k["read_tsc"]);
        a.mov(r14, PatienceTicks);
        a.add(r14, rax);
        a.mov(ebx, (int)KernelLayout.VcpuAreas);
        a.mov(r13, KernelCode.Word(KernelLayout.VcpuCount));

        k.Place(vcpu);
        a.test(r13, r13);
        a.je(done);
        k.Place(ask);
        a.cmp(__qword_ptr[rbx + KernelLayout.BlockRunning], 0);
        a.je(next);
        a.cmp(__qword_ptr[rbx + KernelLayout.BlockTlbAcknowledged], r12);
        a.jae(next);
        a.pause();
        a.call(k["read_tsc"]);
        a.cmp(rax, r14);
        a.jb(ask);
        a.lea(rdi, __[k.Text("shoot-down unanswered")]);
        a.call(k["panic"]);
        k.Place(next);
        a.add(rbx, (int)KernelLayout.VcpuAreaBytes);
        a.dec(r13);
        a.jmp(vcpu);

        k.Place(done);
        a.pop(r14);
        a.pop(r13);
        a.pop(r12);
        a.pop(rbx);
        a.ret();

        // rax = read_tsc(); clobbers rdx.
        k.Begin("read_tsc");
        a.rdtsc();
        a.shl(rdx, 32);
        a.or(rax, rdx);
        a.ret();
    }
}
