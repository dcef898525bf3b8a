using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// The kernel's view of the identity mapping that the loader built (<see cref="BootPageTables"/>). Only the holder of the conversion lock changes
/// entries; the processors set Accessed and Dirty beside it, hence locked instructions. The shared window never changes.
/// </summary>
internal static class PageTableCode
{
    private const int EntryPresent = 1, EntryWritable = 2, EntryAccessed = 0x20, EntryLarge = 0x80;
    private const int KeptFlags = 0x67; // P, R/W, U/S, A, D
    private const int EntriesPerTable = 512;
    private const ulong AddressMask = 0x000F_FFFF_FFFF_F000;

    public static void Emit(KernelCode k)
    {
        EmitEntryFor(k);
        EmitIsShared(k);
        EmitAllocateTable(k);
    }

    // rax = pte_for(rdi va inside RAM): address of its 4 KiB entry; a 2 MiB mapping is split first. 0: no memory for the table.
    private static void EmitEntryFor(KernelCode k)
    {
        Assembler a = k.A;
        Label look = k.Local(), publish = k.Local(), small = k.Local(), fill = k.Local(), leave = k.Local();
        k.Begin("pte_for");
        a.push(rbx);
        a.push(r12);
        a.push(r13);
        a.mov(r12, rdi);
        a.mov(rbx, rdi);
        a.shr(rbx, 21);
        // The four directories are adjacent, so the unit number indexes all of them.
        a.lea(rbx, __[(rbx * 8) + (int)BootPageTables.IdentityDirectories]);
        k.Place(look);
        a.mov(rax, __qword_ptr[rbx]);
        a.test(eax, EntryLarge);
        a.je(small);

        a.call(k["table_alloc"]);
        a.test(rax, rax);
        a.je(leave);
        a.mov(r13, rax);
        k.Place(publish);
        a.mov(rax, __qword_ptr[rbx]);
        a.mov(rdx, rax);
        a.and(rdx, -(int)GuestAbi.UnitBytes);
        a.mov(ecx, eax);
        a.and(ecx, KeptFlags);
        a.or(rdx, rcx);
        a.xor(ecx, ecx);
        k.Place(fill);
        a.mov(__qword_ptr[r13 + (rcx * 8)], rdx);
        a.add(rdx, (int)GuestAbi.PageBytes);
        a.inc(ecx);
        a.cmp(ecx, EntriesPerTable);
        a.jb(fill);
        a.lea(rcx, __[r13 + (EntryPresent | EntryWritable | EntryAccessed)]);
        // A processor may set Accessed or Dirty in the large entry meanwhile; then the copies are made again from the new value.
        a.@lock.cmpxchg(__qword_ptr[rbx], rcx);
        a.jne(publish);
        a.jmp(look);

        k.Place(small);
        a.mov(rcx, unchecked((long)AddressMask));
        a.and(rax, rcx);
        a.shr(r12, 12);
        a.and(r12d, EntriesPerTable - 1);
        a.lea(rax, __[rax + (r12 * 8)]);
        k.Place(leave);
        a.pop(r13);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
    }

    // eax = page_is_shared(rdi va inside RAM): not 0 if its entry carries the shared bit. Does not split.
    private static void EmitIsShared(KernelCode k)
    {
        Assembler a = k.A;
        Label isPrivate = k.Local(), isShared = k.Local();
        k.Begin("page_is_shared");
        a.mov(rax, rdi);
        a.shr(rax, 21);
        a.mov(rax, __qword_ptr[(rax * 8) + (int)BootPageTables.IdentityDirectories]);
        a.test(eax, EntryLarge);
        a.jne(isPrivate);
        a.mov(rcx, unchecked((long)AddressMask));
        a.and(rax, rcx);
        a.shr(rdi, 12);
        a.and(edi, EntriesPerTable - 1);
        a.mov(rax, __qword_ptr[rax + (rdi * 8)]);
        a.test(KernelCode.Word(KernelLayout.SharedMask), rax);
        a.jne(isShared);
        k.Place(isPrivate);
        a.xor(eax, eax);
        a.ret();
        k.Place(isShared);
        a.mov(eax, 1);
        a.ret();
    }

    // rax = table_alloc(): a page for a table, its content undefined; 0 if there is none. First the spare pages of the boot area, then the heap.
    private static void EmitAllocateTable(KernelCode k)
    {
        Assembler a = k.A;
        Label heap = k.Local(), none = k.Local(), accepted = k.Local();
        k.Begin("table_alloc");
        a.mov(rax, KernelCode.Word(KernelLayout.SpareTableNext));
        a.cmp(rax, KernelCode.Word(KernelLayout.SpareTableEnd));
        a.jae(heap);
        a.add(KernelCode.Word(KernelLayout.SpareTableNext), (int)GuestAbi.PageBytes);
        a.ret();
        k.Place(heap);
        a.push(rbx);
        a.mov(edi, (int)GuestAbi.PageBytes);
        a.call(k["heap_take"]);
        a.test(rax, rax);
        a.js(none);
        // A table in unaccepted memory would fault in the middle of a walk.
        a.mov(rbx, rax);
        a.mov(rdi, rax);
        a.lea(rsi, __[rax + (int)GuestAbi.PageBytes]);
        a.call(k["accept_range"]);
        a.test(rax, rax);
        a.mov(rax, rbx);
        a.pop(rbx);
        a.je(accepted);
        a.xor(eax, eax);
        k.Place(accepted);
        a.ret();
        k.Place(none);
        a.pop(rbx);
        a.xor(eax, eax);
        a.ret();
    }
}
