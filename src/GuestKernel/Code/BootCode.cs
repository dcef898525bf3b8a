using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// From the entry state of TDG1 to the payload. vCPU 0 finds out where it is, builds the tables, accepts memory, writes the mailbox; the others wait for
/// the mailbox, load their tables, and all of them call the payload with the contract of the boot protocol. Source: td-guest 7.1, 8.3.
/// </summary>
internal static class BootCode
{
    private const int MaxBaseLeaf = 0x21;
    private const uint SignatureEbx = 0x6574_6E49, SignatureEdx = 0x5844_546C, SignatureEcx = 0x2020_2020;
    private const ulong FieldNotifyEnables = 0x9110_0003_0000_0010;
    private const ulong FieldTdCtls = 0x1110_0003_0000_0017;
    private const int AttributePendingVeDisable = 28;

    public static void Emit(KernelCode k)
    {
        EmitEntry(k);
        EmitTdSetUp(k);
        EmitApplicationProcessor(k);
    }

    private static void EmitEntry(KernelCode k)
    {
        Assembler a = k.A;
        Label vm = k.Local(), known = k.Local(), disagree = k.Local(), accept = k.Local(), accepted = k.Local(), lazy = k.Local(), failed = k.Local();
        Label magic = k.Local();
        k.Begin("kernel_entry");
        a.cld();
        a.mov(r12, rdi);
        a.mov(r13, rsi);
        a.mov(r14, rbx);
        a.cmp(__dword_ptr[r12], (int)GuestAbi.BootInfoMagic);
        a.je(magic);
        a.ud2();
        k.Place(magic);
        a.mov(rax, __qword_ptr[r12 + BootInfoPage.RamTop]);
        a.mov(KernelCode.Word(KernelLayout.RamTop), rax);
        a.mov(rax, __qword_ptr[r12 + BootInfoPage.SharedMask]);
        a.mov(KernelCode.Word(KernelLayout.SharedMask), rax);
        a.mov(eax, __dword_ptr[r12 + BootInfoPage.VcpuCount]);
        a.mov(KernelCode.Word(KernelLayout.VcpuCount), rax);
        a.mov(eax, __dword_ptr[r12 + BootInfoPage.Flags]);
        a.and(eax, BootInfoPage.FlagLazyAccept);
        a.mov(KernelCode.Word(KernelLayout.Lazy), rax);

        // TD or ordinary VM: the processor says so; the loader's word must agree.
        a.xor(eax, eax);
        a.xor(ecx, ecx);
        a.cpuid();
        a.xor(r15d, r15d);
        a.cmp(eax, MaxBaseLeaf);
        a.jb(known);
        a.mov(eax, MaxBaseLeaf);
        a.xor(ecx, ecx);
        a.cpuid();
        a.cmp(ebx, SignatureEbx);
        a.jne(known);
        a.cmp(edx, SignatureEdx);
        a.jne(known);
        a.cmp(ecx, SignatureEcx);
        a.jne(known);
        a.inc(r15d);
        k.Place(known);
        a.mov(KernelCode.Word(KernelLayout.IsTd), r15);
        a.call(k["build_tables"]);
        a.mov(edi, r13d);
        a.call(k["load_tables"]);
        a.mov(eax, __dword_ptr[r12 + BootInfoPage.Flags]);
        a.and(eax, BootInfoPage.FlagTd);
        a.cmp(eax, r15d);
        a.jne(disagree);
        a.test(r15d, r15d);
        a.je(vm);
        a.call(k["td_set_up"]);

        // Lazy: #VE brings the pages in. Without #VE, allocation does, and the payload's own zero pages are accepted now.
        a.cmp(KernelCode.Word(KernelLayout.Lazy), 0);
        a.jne(lazy);
        a.mov(edi, (int)GuestAbi.BootInfo);
        a.mov(rsi, KernelCode.Word(KernelLayout.RamTop));
        a.jmp(accept);
        k.Place(lazy);
        a.cmp(KernelCode.Word(KernelLayout.AcceptOnAlloc), 0);
        a.je(accepted);
        a.mov(rdi, KernelCode.Word(KernelLayout.PayloadLow));
        a.mov(rsi, KernelCode.Word(KernelLayout.PayloadHigh));
        k.Place(accept);
        a.call(k["accept_range"]);
        a.test(rax, rax);
        a.jne(failed);
        a.cmp(KernelCode.Word(KernelLayout.Lazy), 0);
        a.jne(accepted);
        k.Place(vm);
        a.mov(rax, KernelCode.Word(KernelLayout.RamTop));
        a.mov(__qword_ptr[r12 + BootInfoPage.AcceptedTop], rax);
        k.Place(accepted);
        k.ThisVcpu(rax, eax);
        a.mov(__qword_ptr[rax + KernelLayout.BlockRunning], 1);
        a.mov(rax, __qword_ptr[r12 + BootInfoPage.ApMailbox]);
        a.mov(__qword_ptr[rax], 1);
        a.call(k["call_payload"]);
        a.mov(edi, eax);
        a.jmp(k["exit_run"]);

        k.Place(disagree);
        a.lea(rdi, __[k.Text("boot-info, CPUID differ")]);
        a.call(k["panic"]);
        k.Place(failed);
        a.lea(rdi, __[k.Text("memory not accepted")]);
        a.call(k["panic"]);

        // eax = call_payload(r12 boot-info, r13 vCPU index, r14 GPA width): the registers as at entry.
        k.Begin("call_payload");
        a.sub(rsp, 8);
        a.mov(rax, __qword_ptr[r12 + BootInfoPage.PayloadEntry]);
        a.mov(rdi, r12);
        a.mov(rsi, r13);
        a.mov(rbx, r14);
        a.xor(ecx, ecx);
        a.xor(edx, edx);
        a.xor(ebp, ebp);
        foreach (AssemblerRegister32 register in new[] { r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d })
            a.xor(register, register);
        a.call(rax);
        a.add(rsp, 8);
        a.ret();
    }

    // td_set_up(r12 boot-info, r13 vCPU index)
    private static void EmitTdSetUp(KernelCode k)
    {
        Assembler a = k.A;
        Label wrongMask = k.Local(), wrongIndex = k.Local(), agreed = k.Local(), eager = k.Local();
        k.Begin("td_set_up");
        a.push(rbx);
        a.mov(eax, TdcallCode.VpInfo);
        a.tdcall();
        a.test(rax, rax);
        a.jne(wrongMask);
        a.mov(KernelCode.Word(KernelLayout.TdAttributes), rdx);
        a.cmp(r9, r13);
        a.jne(wrongIndex);
        a.and(ecx, 0x3F);
        a.dec(ecx);
        a.xor(eax, eax);
        a.bts(rax, rcx);
        a.cmp(rax, KernelCode.Word(KernelLayout.SharedMask));
        a.jne(wrongMask);

        // No #VE from the module's stepping notifications. A module without the leaf has none to clear.
        a.mov(rdx, FieldNotifyEnables);
        a.xor(r8d, r8d);
        a.mov(r9, -1);
        a.call(k["td_write"]);

        // Unaccepted memory: #VE or TD exit? The TD's attributes decide; if boot-info wants the other one, the guest may change it
        // where the TD was built with flexible pending-#VE. Else the attributes stand.
        a.mov(rbx, KernelCode.Word(KernelLayout.TdAttributes));
        a.shr(rbx, AttributePendingVeDisable);
        a.and(ebx, 1);
        a.mov(eax, __dword_ptr[r12 + BootInfoPage.Flags]);
        a.shr(eax, 1);
        a.and(eax, 1);
        a.cmp(eax, ebx);
        a.je(agreed);
        a.mov(r8d, eax);
        a.mov(r9d, 1);
        a.mov(rdx, FieldTdCtls);
        a.push(r8);
        a.call(k["td_write"]);
        a.pop(r8);
        a.test(rax, rax);
        a.cmove(ebx, r8d);
        k.Place(agreed);
        a.cmp(KernelCode.Word(KernelLayout.Lazy), 0);
        a.je(eager);
        a.mov(KernelCode.Word(KernelLayout.AcceptOnAlloc), rbx);
        k.Place(eager);
        a.pop(rbx);
        a.ret();

        k.Place(wrongMask);
        a.lea(rdi, __[k.Text("wrong shared bit")]);
        a.call(k["panic"]);
        k.Place(wrongIndex);
        a.lea(rdi, __[k.Text("wrong vCPU index")]);
        a.call(k["panic"]);

        // rax = td_write(rdx field, r8 value, r9 mask)
        k.Begin("td_write");
        a.xor(ecx, ecx);
        a.mov(eax, TdcallCode.VmWrite);
        a.tdcall();
        a.ret();
    }

    private static void EmitApplicationProcessor(KernelCode k)
    {
        Assembler a = k.A;
        Label wait = k.Local(), go = k.Local();
        k.Begin("ap_entry");
        a.cld();
        a.mov(r12, rdi);
        a.mov(r13, rsi);
        a.mov(r14, rbx);
        a.mov(rbx, __qword_ptr[r12 + BootInfoPage.ApMailbox]);
        k.Place(wait);
        a.cmp(__qword_ptr[rbx], 0);
        a.jne(go);
        a.pause();
        a.jmp(wait);
        k.Place(go);
        a.mov(edi, r13d);
        a.call(k["load_tables"]);
        k.ThisVcpu(rax, eax);
        a.mov(rbx, rax);
        // Running first, fence, flush last: a shoot-down either sees this vCPU running and waits for it, or has changed the tables before the flush.
        a.mov(__qword_ptr[rbx + KernelLayout.BlockRunning], 1);
        a.mfence();
        a.mov(rcx, KernelCode.Word(KernelLayout.TlbSequence));
        a.mov(rax, cr3);
        a.mov(cr3, rax);
        a.mov(__qword_ptr[rbx + KernelLayout.BlockTlbAcknowledged], rcx);
        a.call(k["call_payload"]);
        a.jmp(k["park"]);
    }
}
