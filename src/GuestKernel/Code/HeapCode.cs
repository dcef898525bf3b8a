using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// The heap: a pointer that only moves up, so a page that was handed out, converted or leaked never comes back. Pages read zero: the initial image's
/// are zero, the others are zeroed by ACCEPT (or are the fresh RAM of an ordinary VM).
/// </summary>
internal static class HeapCode
{
    public static void Emit(KernelCode k)
    {
        EmitTake(k);
        EmitAlloc(k);
    }

    // rax = heap_take(rdi bytes > 0): address of whole pages, or GuestError.NoMemory. Linearization: the compare-exchange of the pointer.
    private static void EmitTake(KernelCode k)
    {
        Assembler a = k.A;
        Label again = k.Local(), none = k.Local();
        k.Begin("heap_take");
        a.mov(rcx, KernelCode.Word(KernelLayout.HeapEnd));
        a.cmp(rdi, rcx);
        a.ja(none);
        a.add(rdi, (int)GuestAbi.PageBytes - 1);
        a.and(rdi, -(int)GuestAbi.PageBytes);
        k.Place(again);
        a.mov(rax, KernelCode.Word(KernelLayout.HeapNext));
        a.lea(rdx, __[rax + rdi]);
        a.cmp(rdx, rcx);
        a.ja(none);
        a.@lock.cmpxchg(KernelCode.Word(KernelLayout.HeapNext), rdx);
        a.jne(again);
        a.ret();
        k.Place(none);
        a.mov(rax, GuestError.NoMemory);
        a.ret();
    }

    // rax = heap_alloc(rdi bytes): the service.
    private static void EmitAlloc(KernelCode k)
    {
        Assembler a = k.A;
        Label some = k.Local(), leave = k.Local(), accept = k.Local();
        k.Begin("heap_alloc");
        a.test(rdi, rdi);
        a.jne(some);
        a.mov(rax, GuestError.Invalid);
        a.ret();
        k.Place(some);
        a.push(rbx);
        a.call(k["heap_take"]);
        a.mov(rbx, rax);
        a.test(rax, rax);
        a.js(leave);
        a.cmp(KernelCode.Word(KernelLayout.AcceptOnAlloc), 0);
        a.je(leave);

        // A touch would not raise #VE but end the TD, so the memory is accepted here. An end on a unit border reaches one unit further: an unaligned
        // load across the end of the buffer may touch what follows (td-guest 7.3, 7.6).
        a.mov(rdi, rax);
        a.mov(rsi, rdx);
        a.test(edx, (int)GuestAbi.UnitBytes - 1);
        a.jne(accept);
        a.cmp(rdx, KernelCode.Word(KernelLayout.RamTop));
        a.jae(accept);
        a.add(rsi, (int)GuestAbi.UnitBytes);
        k.Place(accept);
        a.call(k["accept_range"]);
        a.test(rax, rax);
        a.cmove(rax, rbx);
        a.pop(rbx);
        a.ret();
        k.Place(leave);
        a.mov(rax, rbx);
        a.pop(rbx);
        a.ret();
    }
}
