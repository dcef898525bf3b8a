using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// GDT, one TSS per vCPU, IDT. #VE has an interrupt gate and no IST: a second, legitimate #VE after VEINFO.GET would overwrite an IST frame.
/// #DF and NMI have stacks of their own. All of it lies on accepted private pages. Source: td-guest 7.1 step 4, 7.11.
/// </summary>
internal static class DescriptorTableCode
{
    private const ulong CodeDescriptor = 0x00AF_9B00_0000_FFFF;
    private const ulong DataDescriptor = 0x00CF_9300_0000_FFFF;
    private const ulong UserDataDescriptor = 0x00CF_F300_0000_FFFF;
    private const ulong UserCodeDescriptor = 0x00AF_FB00_0000_FFFF;
    private const int GateInterrupt = 0x8E00;
    private const int GateForUser = 0x6000;
    private const int TssRsp0 = 4, TssIst1 = 36, TssIst2 = 44, TssIoMap = 102;
    private const int Vectors = 256;

    public static void Emit(KernelCode k)
    {
        EmitBuild(k);
        EmitTss(k);
        EmitLoad(k);
    }

    // build_tables(): by vCPU 0, once.
    private static void EmitBuild(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("build_tables");
        a.push(rbx);
        a.push(r12);
        Put(a, GuestAbi.Gdt + KernelLayout.KernelCode, CodeDescriptor);
        Put(a, GuestAbi.Gdt + KernelLayout.KernelData, DataDescriptor);
        Put(a, GuestAbi.Gdt + KernelLayout.UserData, UserDataDescriptor);
        Put(a, GuestAbi.Gdt + KernelLayout.UserCode, UserCodeDescriptor);

        Label gate = k.Local(), attributes = k.Local(), user = k.Local(), doubleFault = k.Local(), nmi = k.Local(), vcpu = k.Local();
        a.xor(ebx, ebx);
        k.Place(gate);
        a.mov(eax, TrapCode.StubOther);
        a.cmp(ebx, TrapCode.Exceptions);
        a.cmovb(eax, ebx);
        a.mov(ecx, TrapCode.StubService);
        a.cmp(ebx, GuestAbi.ServiceVector);
        a.cmove(eax, ecx);
        a.lea(rcx, __[k["trap_stub_table"]]);
        a.mov(rax, __qword_ptr[rcx + (rax * 8)]);

        // ecx = gate attributes: type, DPL, IST.
        a.mov(ecx, GateInterrupt);
        a.cmp(ebx, TrapCode.DoubleFault);
        a.je(doubleFault);
        a.cmp(ebx, TrapCode.NonMaskable);
        a.je(nmi);
        a.cmp(ebx, TrapCode.Breakpoint);
        a.je(user);
        a.cmp(ebx, GuestAbi.ServiceVector);
        a.jne(attributes);
        k.Place(user);
        a.or(ecx, GateForUser);
        a.jmp(attributes);
        k.Place(doubleFault);
        a.or(ecx, 1);
        a.jmp(attributes);
        k.Place(nmi);
        a.or(ecx, 2);
        k.Place(attributes);
        a.mov(edx, ebx);
        a.shl(edx, 4);
        a.mov(__word_ptr[rdx + (int)GuestAbi.Idt], ax);
        a.mov(__word_ptr[rdx + ((int)GuestAbi.Idt + 2)], KernelLayout.KernelCode);
        a.mov(__word_ptr[rdx + ((int)GuestAbi.Idt + 4)], cx);
        a.shr(rax, 16);
        a.mov(__word_ptr[rdx + ((int)GuestAbi.Idt + 6)], ax);
        a.shr(rax, 16);
        a.mov(__qword_ptr[rdx + ((int)GuestAbi.Idt + 8)], rax);
        a.inc(ebx);
        a.cmp(ebx, Vectors);
        a.jb(gate);

        a.xor(ebx, ebx);
        a.mov(r12, KernelCode.Word(KernelLayout.VcpuCount));
        k.Place(vcpu);
        a.mov(edi, ebx);
        a.call(k["build_tss"]);
        a.inc(ebx);
        a.cmp(ebx, r12d);
        a.jb(vcpu);
        a.pop(r12);
        a.pop(rbx);
        a.ret();
    }

    // build_tss(edi vCPU index): TSS and its descriptor.
    private static void EmitTss(KernelCode k)
    {
        Assembler a = k.A;
        Label other = k.Local(), descriptor = k.Local();
        k.Begin("build_tss");
        a.mov(eax, edi);
        a.imul(eax, eax, (int)KernelLayout.VcpuAreaBytes);
        a.add(rax, (int)KernelLayout.VcpuAreas);
        a.test(edi, edi);
        a.jne(other);
        a.mov(ecx, (int)GuestAbi.BootTss);
        a.mov(__qword_ptr[rcx + TssRsp0], (int)GuestAbi.BootStackTop);
        a.mov(__qword_ptr[rcx + TssIst1], (int)GuestAbi.BootDoubleFaultStackTop);
        a.mov(__qword_ptr[rcx + TssIst2], (int)GuestAbi.BootNmiStackTop);
        a.jmp(descriptor);
        k.Place(other);
        a.lea(rcx, __[rax + KernelLayout.BlockTss]);
        a.lea(rdx, __[rax + (int)KernelLayout.VcpuAreaBytes]);
        a.mov(__qword_ptr[rcx + TssRsp0], rdx);
        a.lea(rdx, __[rax + (int)KernelLayout.AreaDoubleFaultStackTop]);
        a.mov(__qword_ptr[rcx + TssIst1], rdx);
        a.lea(rdx, __[rax + (int)KernelLayout.AreaNmiStackTop]);
        a.mov(__qword_ptr[rcx + TssIst2], rdx);

        k.Place(descriptor);
        a.mov(__word_ptr[rcx + TssIoMap], KernelLayout.TssBytes);
        // Available 64-bit TSS; its base is below 16 MiB, so bits 63:24 of the base are 0.
        a.mov(rax, rcx);
        a.shl(rax, 16);
        a.mov(rdx, (0x89L << 40) | (KernelLayout.TssBytes - 1));
        a.or(rax, rdx);
        a.shl(edi, 4);
        a.mov(__qword_ptr[rdi + ((int)GuestAbi.Gdt + KernelLayout.FirstTssSelector)], rax);
        a.mov(__qword_ptr[rdi + ((int)GuestAbi.Gdt + KernelLayout.FirstTssSelector + 8)], 0);
        a.ret();
    }

    // load_tables(edi vCPU index): on the vCPU itself.
    private static void EmitLoad(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("load_tables");
        a.sub(rsp, 16);
        a.mov(eax, KernelLayout.FirstTssSelector - 1);
        a.mov(ecx, __dword_ptr[(long)KernelLayout.VcpuCount]);
        a.shl(ecx, 4);
        a.add(eax, ecx);
        a.mov(__word_ptr[rsp], ax);
        a.mov(__qword_ptr[rsp + 2], (int)GuestAbi.Gdt);
        a.lgdt(__[rsp]);
        a.mov(__word_ptr[rsp], (Vectors * 16) - 1);
        a.mov(__qword_ptr[rsp + 2], (int)GuestAbi.Idt);
        a.lidt(__[rsp]);
        a.shl(edi, 4);
        a.add(edi, KernelLayout.FirstTssSelector);
        a.ltr(di);
        a.add(rsp, 16);
        a.ret();
    }

    private static void Put(Assembler a, ulong address, ulong value)
    {
        a.mov(rax, value);
        a.mov(KernelCode.Word(address), rax);
    }
}
