using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// Conversion between private and shared. The invariant: at no time does a private mapping point to a page that is shared at the host.
/// So to shared the entry changes first and MapGPA comes last; to private MapGPA and ACCEPT come first and the entry changes last. Source: td-guest 7.6.
/// After any failure the page is in an unknown state: it keeps its shared mapping and is counted as leaked, never used again by the kernel.
/// </summary>
internal static class ConversionCode
{
    private const int CacheLine = 64;
    private const int RetriesPerPosition = 3;

    public static void Emit(KernelCode k)
    {
        EmitShare(k);
        EmitUnshare(k);
        EmitCheck(k);
        EmitCheckAll(k);
        EmitMapGpa(k);
    }

    // rax = convert_to_shared(rdi va, rsi pages)
    private static void EmitShare(KernelCode k)
    {
        Assembler a = k.A;
        Label split = k.Local(), flush = k.Local(), rewrite = k.Local(), noMemory = k.Local();
        Enter(k, "convert_to_shared");
        a.mov(rdi, rbx);
        a.mov(rsi, r12);
        a.call(k["accept_range"]);
        a.test(rax, rax);
        a.jne(k["convert_leave"]);
        a.lea(rdi, KernelCode.Word(KernelLayout.ConversionLock));
        a.call(k["spin_lock"]);
        a.xor(edi, edi);
        a.call(k["conversion_check_all"]);
        a.test(rax, rax);
        a.jne(k["convert_unlock"]);

        a.mov(r13, rbx);
        k.Place(split);
        a.mov(rdi, r13);
        a.call(k["pte_for"]);
        a.test(rax, rax);
        a.je(noMemory);
        a.add(r13, (int)GuestAbi.PageBytes);
        a.cmp(r13, r12);
        a.jb(split);

        // 1. Caches and TLB, through the private mapping.
        a.mov(r13, rbx);
        k.Place(flush);
        a.clflush(__byte_ptr[r13]);
        a.add(r13, CacheLine);
        a.cmp(r13, r12);
        a.jb(flush);
        a.mfence();
        a.call(k["tlb_shootdown"]);

        // 2. The entries. From here on the pages are not accepted private memory any more.
        a.mov(r13, rbx);
        k.Place(rewrite);
        a.mov(rdi, r13);
        a.call(k["pte_for"]);
        a.mov(rcx, KernelCode.Word(KernelLayout.SharedMask));
        a.@lock.or(__qword_ptr[rax], rcx);
        a.mov(rax, r13);
        a.shr(rax, 12);
        a.@lock.btr(KernelCode.Word(KernelLayout.AcceptedBitmap), rax);
        a.add(r13, (int)GuestAbi.PageBytes);
        a.cmp(r13, r12);
        a.jb(rewrite);

        // 3. The TLB again: now nobody reaches the pages as private. 4. Only then the host.
        a.call(k["tlb_shootdown"]);
        a.mov(rdi, rbx);
        a.or(rdi, KernelCode.Word(KernelLayout.SharedMask));
        a.mov(rsi, r12);
        a.or(rsi, KernelCode.Word(KernelLayout.SharedMask));
        a.call(k["map_gpa"]);
        a.test(rax, rax);
        a.jne(k["convert_leak"]);
        a.mov(rcx, r12);
        a.sub(rcx, rbx);
        a.shr(rcx, 12);
        a.add(KernelCode.Word(KernelLayout.SharedPages), rcx);
        a.xor(eax, eax);
        a.jmp(k["convert_unlock"]);

        k.Place(noMemory);
        a.mov(rax, GuestError.NoMemory);
        a.jmp(k["convert_unlock"]);
    }

    // rax = convert_to_private(rdi va, rsi pages)
    private static void EmitUnshare(KernelCode k)
    {
        Assembler a = k.A;
        Label accept = k.Local(), rewrite = k.Local();
        Enter(k, "convert_to_private");
        a.lea(rdi, KernelCode.Word(KernelLayout.ConversionLock));
        a.call(k["spin_lock"]);
        a.mov(edi, 1);
        a.call(k["conversion_check_all"]);
        a.test(rax, rax);
        a.jne(k["convert_unlock"]);

        // 1. The host gives up its page.
        a.mov(rdi, rbx);
        a.mov(rsi, r12);
        a.call(k["map_gpa"]);
        a.test(rax, rax);
        a.jne(k["convert_leak"]);

        // 2. ACCEPT: content is defined (zero) from here on. The units are Settled and nobody else has a private mapping, so no claim is needed.
        a.mov(r13, rbx);
        k.Place(accept);
        a.mov(rdi, r13);
        a.call(k["accept_page"]);
        a.test(rax, rax);
        a.jne(k["convert_leak"]);
        a.add(r13, (int)GuestAbi.PageBytes);
        a.cmp(r13, r12);
        a.jb(accept);

        // 3. The entries, 4. the TLB. Until then a stray access goes to the shared alias, which is recoverable.
        a.mov(r13, rbx);
        k.Place(rewrite);
        a.mov(rdi, r13);
        a.call(k["pte_for"]);
        a.mov(rcx, KernelCode.Word(KernelLayout.SharedMask));
        a.not(rcx);
        a.@lock.and(__qword_ptr[rax], rcx);
        a.add(r13, (int)GuestAbi.PageBytes);
        a.cmp(r13, r12);
        a.jb(rewrite);
        a.call(k["tlb_shootdown"]);
        a.mov(rcx, r12);
        a.sub(rcx, rbx);
        a.shr(rcx, 12);
        a.sub(KernelCode.Word(KernelLayout.SharedPages), rcx);
        a.xor(eax, eax);
        a.jmp(k["convert_unlock"]);

        k.Begin("convert_leak");
        a.mov(rcx, r12);
        a.sub(rcx, rbx);
        a.shr(rcx, 12);
        a.add(KernelCode.Word(KernelLayout.LeakedPages), rcx);
        a.mov(rax, GuestError.Io);
        k.Begin("convert_unlock");
        a.mov(r13, rax);
        a.lea(rdi, KernelCode.Word(KernelLayout.ConversionLock));
        a.call(k["spin_unlock"]);
        a.mov(rax, r13);
        k.Begin("convert_leave");
        a.pop(r13);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
    }

    // Saves registers, checks the arguments, leaves rbx = first byte, r12 = end; in an ordinary VM the conversion is done.
    private static void Enter(KernelCode k, string name)
    {
        Assembler a = k.A;
        k.Begin(name);
        a.push(rbx);
        a.push(r12);
        a.push(r13);
        a.call(k["conversion_check"]);
        a.test(rax, rax);
        a.jne(k["convert_leave"]);
        a.cmp(KernelCode.Word(KernelLayout.IsTd), 0);
        a.je(k["convert_leave"]);
    }

    // rax = conversion_check(rdi va, rsi pages), rbx = va, r12 = end. Neither the boot area nor the kernel, and nothing outside RAM.
    private static void EmitCheck(KernelCode k)
    {
        Assembler a = k.A;
        Label invalid = k.Local(), fault = k.Local();
        k.Begin("conversion_check");
        a.test(edi, (int)GuestAbi.PageBytes - 1);
        a.jne(invalid);
        a.test(rsi, rsi);
        a.je(invalid);
        a.cmp(rdi, KernelCode.Word(KernelLayout.KernelEnd));
        a.jb(fault);
        a.mov(rax, KernelCode.Word(KernelLayout.RamTop));
        a.cmp(rdi, rax);
        a.jae(fault);
        a.sub(rax, rdi);
        a.shr(rax, 12);
        a.cmp(rsi, rax);
        a.ja(fault);
        a.mov(rbx, rdi);
        a.shl(rsi, 12);
        a.lea(r12, __[rdi + rsi]);
        a.xor(eax, eax);
        a.ret();
        k.Place(invalid);
        a.mov(rax, GuestError.Invalid);
        a.ret();
        k.Place(fault);
        a.mov(rax, GuestError.Fault);
        a.ret();
    }

    // rax = conversion_check_all(edi 0 private / 1 shared): Invalid unless every page of [rbx, r12) is in that state now.
    private static void EmitCheckAll(KernelCode k)
    {
        Assembler a = k.A;
        Label page = k.Local(), mixed = k.Local(), leave = k.Local();
        k.Begin("conversion_check_all");
        a.push(r13);
        a.push(r14);
        a.mov(r14d, edi);
        a.mov(r13, rbx);
        k.Place(page);
        a.mov(rdi, r13);
        a.call(k["page_is_shared"]);
        a.cmp(eax, r14d);
        a.jne(mixed);
        a.add(r13, (int)GuestAbi.PageBytes);
        a.cmp(r13, r12);
        a.jb(page);
        a.xor(eax, eax);
        a.jmp(leave);
        k.Place(mixed);
        a.mov(rax, GuestError.Invalid);
        k.Place(leave);
        a.pop(r14);
        a.pop(r13);
        a.ret();
    }

    // rax = map_gpa(rdi start, rsi end), both with the alias bit that is wanted. 0, or GuestError.Io.
    private static void EmitMapGpa(KernelCode k)
    {
        Assembler a = k.A;
        Label call = k.Local(), progress = k.Local(), fail = k.Local(), leave = k.Local();
        k.Begin("map_gpa");
        a.push(rbx);
        a.push(r12);
        a.push(r13);
        a.mov(rbx, rdi);
        a.mov(r12, rsi);
        a.mov(r13d, RetriesPerPosition);
        k.Place(call);
        a.mov(edi, TdcallCode.MapGpa);
        a.mov(rsi, rbx);
        a.mov(rdx, r12);
        a.sub(rdx, rbx);
        a.xor(ecx, ecx);
        a.xor(r8d, r8d);
        a.call(k["hypercall"]);
        a.test(rax, rax);
        a.je(leave);
        a.cmp(rax, TdcallCode.Retry);
        a.jne(fail);
        // R11 comes from the host: it may only move forward, and only inside the range; standing still is allowed three times per position.
        a.cmp(rdx, rbx);
        a.jb(fail);
        a.cmp(rdx, r12);
        a.jae(fail);
        a.cmp(rdx, rbx);
        a.jne(progress);
        a.dec(r13d);
        a.jne(call);
        k.Place(fail);
        a.mov(rax, GuestError.Io);
        k.Place(leave);
        a.pop(r13);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
        k.Place(progress);
        a.mov(rbx, rdx);
        a.mov(r13d, RetriesPerPosition);
        a.jmp(call);
    }
}
