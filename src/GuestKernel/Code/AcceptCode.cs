using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// Acceptance of private memory. The kernel keeps its own record, one bit per page, and never accepts a page twice: if it answered every private #VE with
/// ACCEPT, the host could swap live data for zeros by removing and re-adding the page. Source: td-guest 7.3.
/// </summary>
/// <remarks>
/// A 2 MiB unit is Untouched, Busy or Settled. Busy belongs to one vCPU; the others wait for it, so no page is ever asked for by two. Only an Untouched
/// unit is tried at 2 MiB; any refusal makes it Settled, and from then on 4 KiB steps follow the bitmap. 1 GiB is not tried: the module has no such level.
/// </remarks>
internal static class AcceptCode
{
    private const int BusyRetries = 1000;
    private const int PageShift = 12;
    private const int UnitShift = 21;
    private const int UnitMask = (int)GuestAbi.UnitBytes - 1;
    private const int BitmapBytesPerUnit = 64;

    public static void Emit(KernelCode k)
    {
        EmitRange(k);
        EmitFault(k);
        EmitLargePage(k);
        EmitPage(k);
        EmitClaim(k);
    }

    // rax = accept_range(rdi start, rsi end): page-aligned, inside RAM. 0, or GuestError.Io.
    private static void EmitRange(KernelCode k)
    {
        Assembler a = k.A;
        Label unit = k.Local(), inside = k.Local(), page = k.Local(), accepted = k.Local(), release = k.Local();
        Label fail = k.Local(), done = k.Local(), leave = k.Local();
        k.Begin("accept_range");
        a.xor(eax, eax);
        a.cmp(KernelCode.Word(KernelLayout.IsTd), 0);
        a.jne(inside);
        a.ret();
        k.Place(inside);
        a.push(rbx);
        a.push(r12);
        a.push(r13);
        a.push(r14);
        a.mov(r12, rdi);
        a.mov(r13, rsi);

        k.Place(unit);
        a.cmp(r12, r13);
        a.jae(done);
        a.mov(r14, r12);
        a.or(r14, UnitMask);
        a.inc(r14);
        a.cmp(r14, r13);
        a.cmova(r14, r13);
        a.mov(rdi, r12);
        a.call(k["unit_claim"]);
        a.test(eax, eax);
        a.jne(page);
        a.mov(rdi, r12);
        a.call(k["accept_large"]);
        a.test(rax, rax);
        a.jne(page);
        a.mov(r12, r14);
        a.jmp(release);

        k.Place(page);
        a.mov(rdi, r12);
        a.shr(rdi, PageShift);
        a.bt(KernelCode.Word(KernelLayout.AcceptedBitmap), rdi);
        a.jc(accepted);
        a.mov(rdi, r12);
        a.call(k["accept_page"]);
        a.test(rax, rax);
        a.jne(fail);
        k.Place(accepted);
        a.add(r12, (int)GuestAbi.PageBytes);
        a.cmp(r12, r14);
        a.jb(page);

        k.Place(release);
        a.lea(rdi, __[r12 - 1]);
        a.shr(rdi, UnitShift);
        a.mov(__byte_ptr[rdi + (int)KernelLayout.UnitStates], KernelLayout.UnitSettled);
        a.call(k["tlb_poll"]);
        a.jmp(unit);

        k.Place(fail);
        a.mov(rdi, r12);
        a.shr(rdi, UnitShift);
        a.mov(__byte_ptr[rdi + (int)KernelLayout.UnitStates], KernelLayout.UnitSettled);
        a.mov(rax, GuestError.Io);
        a.jmp(leave);
        k.Place(done);
        a.xor(eax, eax);
        k.Place(leave);
        a.pop(r14);
        a.pop(r13);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
    }

    // rax = accept_fault(rdi gpa): a #VE on private memory. 0: execute the instruction again. Not 0: the page must not be accepted, the host lies.
    private static void EmitFault(KernelCode k)
    {
        Assembler a = k.A;
        Label record = k.Local(), settled = k.Local(), release = k.Local(), refuse = k.Local(), leave = k.Local();
        k.Begin("accept_fault");
        a.push(rbx);
        a.push(r12);
        a.cmp(rdi, KernelCode.Word(KernelLayout.RamTop));
        a.jae(refuse);
        a.mov(rbx, rdi);
        a.and(rbx, -(int)GuestAbi.PageBytes);
        a.mov(r12, rbx);
        a.shr(r12, PageShift);
        a.bt(KernelCode.Word(KernelLayout.AcceptedBitmap), r12);
        a.jc(record);

        a.mov(rdi, rbx);
        a.call(k["unit_claim"]);
        // While this vCPU waited, another one may have accepted the very page.
        a.bt(KernelCode.Word(KernelLayout.AcceptedBitmap), r12);
        a.jc(release);
        a.test(eax, eax);
        a.jne(settled);
        a.mov(rdi, rbx);
        a.call(k["accept_large"]);
        a.test(rax, rax);
        a.je(release);
        k.Place(settled);
        a.mov(rdi, rbx);
        a.call(k["accept_page"]);
        a.mov(rdi, rbx);
        a.shr(rdi, UnitShift);
        a.mov(__byte_ptr[rdi + (int)KernelLayout.UnitStates], KernelLayout.UnitSettled);
        a.jmp(leave);

        k.Place(release);
        a.mov(rdi, rbx);
        a.shr(rdi, UnitShift);
        a.mov(__byte_ptr[rdi + (int)KernelLayout.UnitStates], KernelLayout.UnitSettled);
        a.xor(eax, eax);
        a.jmp(leave);

        // The record says accepted. Honest once: another vCPU accepted it between this vCPU's #VE and now. After that the access must succeed,
        // so a second #VE on the page means that the host removed it and added it again.
        k.Place(record);
        k.ThisVcpu(rax, eax);
        a.inc(rbx);
        a.cmp(__qword_ptr[rax + KernelLayout.BlockLastSpurious], rbx);
        a.je(refuse);
        a.mov(__qword_ptr[rax + KernelLayout.BlockLastSpurious], rbx);
        a.xor(eax, eax);
        a.jmp(leave);

        k.Place(refuse);
        a.mov(rax, GuestError.Io);
        k.Place(leave);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
    }

    // rax = accept_large(rdi any gpa of a unit that this vCPU holds Busy): ACCEPT at 2 MiB; not 0 = this size failed, for whatever reason.
    private static void EmitLargePage(KernelCode k)
    {
        Assembler a = k.A;
        Label leave = k.Local();
        k.Begin("accept_large");
        a.shr(rdi, UnitShift);
        a.mov(rcx, rdi);
        a.shl(rcx, UnitShift);
        a.or(rcx, 1);
        a.mov(eax, TdcallCode.PageAccept);
        a.tdcall();
        a.test(rax, rax);
        a.jne(leave);
        a.shl(rdi, 6);
        a.mov(rcx, -1);
        for (int at = 0; at < BitmapBytesPerUnit; at += 8)
            a.mov(__qword_ptr[rdi + ((int)KernelLayout.AcceptedBitmap + at)], rcx);
        a.@lock.inc(KernelCode.Word(KernelLayout.Accepted2M));
        k.Place(leave);
        a.ret();
    }

    // rax = accept_page(rdi gpa): ACCEPT at 4 KiB and record it. 0, or GuestError.Io.
    private static void EmitPage(KernelCode k)
    {
        Assembler a = k.A;
        Label again = k.Local(), accepted = k.Local(), other = k.Local(), fail = k.Local();
        k.Begin("accept_page");
        a.push(rbx);
        a.mov(ebx, BusyRetries);
        k.Place(again);
        a.mov(rcx, rdi);
        a.mov(eax, TdcallCode.PageAccept);
        a.tdcall();
        a.test(rax, rax);
        a.je(accepted);
        a.shr(rax, 32);
        a.cmp(eax, TdcallCode.OperandBusyHigh);
        a.jne(other);
        // The host holds the entry's lock for a moment.
        a.pause();
        a.dec(ebx);
        a.jne(again);
        a.jmp(fail);
        k.Place(other);
        // Success class, but it means that host and guest disagree about the page's history: counted, and treated as a failure.
        a.cmp(eax, TdcallCode.PageAlreadyAcceptedHigh);
        a.jne(fail);
        a.@lock.inc(KernelCode.Word(KernelLayout.AlreadyAccepted));
        k.Place(fail);
        a.mov(rax, GuestError.Io);
        a.pop(rbx);
        a.ret();
        k.Place(accepted);
        a.shr(rdi, PageShift);
        a.@lock.bts(KernelCode.Word(KernelLayout.AcceptedBitmap), rdi);
        a.@lock.inc(KernelCode.Word(KernelLayout.Accepted4K));
        a.pop(rbx);
        a.ret();
    }

    // eax = unit_claim(rdi gpa): the state that the unit had; now it is Busy and ours.
    private static void EmitClaim(KernelCode k)
    {
        Assembler a = k.A;
        Label look = k.Local(), wait = k.Local();
        k.Begin("unit_claim");
        a.push(rbx);
        a.mov(rbx, rdi);
        a.shr(rbx, UnitShift);
        k.Place(look);
        a.movzx(eax, __byte_ptr[rbx + (int)KernelLayout.UnitStates]);
        a.cmp(eax, KernelLayout.UnitBusy);
        a.je(wait);
        a.mov(cl, KernelLayout.UnitBusy);
        a.@lock.cmpxchg(__byte_ptr[rbx + (int)KernelLayout.UnitStates], cl);
        a.jne(look);
        a.movzx(eax, al);
        a.pop(rbx);
        a.ret();
        k.Place(wait);
        a.pause();
        a.call(k["tlb_poll"]);
        a.jmp(look);
    }
}
