using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// Entry and exit of exceptions and services. Until VEINFO.GET an entry touches registers and its own private stack only: no shared memory, no MMIO, no
/// instruction that could raise #VE, because a second #VE would be a #DF (td-guest 7.2). The frame is <see cref="TrapFrame"/>.
/// </summary>
internal static class TrapCode
{
    public const int NonMaskable = 2, Breakpoint = 3, DoubleFault = 8, PageFault = 14, VirtualizationException = 20;
    public const int Exceptions = 32;

    /// <summary>Index of the stub of all vectors that the kernel does not expect.</summary>
    public const int StubOther = 32;

    /// <summary>Index of the stub of the service vector.</summary>
    public const int StubService = 33;

    private const int OtherVector = 0xFF;

    // Bit n set: the CPU pushes an error code for vector n (#DF #TS #NP #SS #GP #PF #AC #CP).
    private const uint PushesErrorCode = (1u << 8) | (1u << 10) | (1u << 11) | (1u << 12) | (1u << 13) | (1u << 14) | (1u << 17) | (1u << 21);

    public static void Emit(KernelCode k)
    {
        EmitStubs(k);
        EmitCommon(k);
        EmitReturn(k);
        EmitUnhandled(k);
    }

    private static void EmitStubs(KernelCode k)
    {
        Assembler a = k.A;
        var stubs = new Label[StubService + 1];
        k.Begin("trap_stubs");
        for (int i = 0; i < stubs.Length; i++)
        {
            int vector = i switch { StubOther => OtherVector, StubService => GuestAbi.ServiceVector, _ => i };
            stubs[i] = k.Local();
            k.Place(stubs[i]);
            if (i >= Exceptions || (PushesErrorCode & (1u << i)) == 0)
                a.push(0);
            a.push(vector);
            a.jmp(k["trap_common"]);
        }
        k.SetTrapStubs(stubs);
    }

    private static void EmitCommon(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("trap_common");
        a.sub(rsp, TrapFrame.BodyBytes);
        for (int i = 0; i < TrapFrame.Registers.Length; i++)
        {
            if (i != TrapFrame.RspNumber)
                a.mov(__qword_ptr[rsp + (i * 8)], TrapFrame.Registers[i]);
        }
        a.cld();
        a.mov(rbp, rsp);
        a.mov(rax, TrapFrame.Field(TrapFrame.Rsp));
        a.mov(TrapFrame.Register(TrapFrame.RspNumber), rax);
        a.mov(eax, __dword_ptr[rbp + TrapFrame.Vector]);
        a.cmp(eax, VirtualizationException);
        a.je(k["ve_entry"]);
        a.cmp(eax, GuestAbi.ServiceVector);
        a.je(k["service_entry"]);
        a.cmp(eax, NonMaskable);
        a.jne(k["trap_fault"]);

        // NMI: counted, nothing else. It executes nothing that could raise #VE, so no IRETQ can end NMI blocking under it and its IST frame is safe.
        k.ThisVcpu(rax, eax);
        a.inc(__qword_ptr[rax + KernelLayout.BlockNmiCount]);
        a.jmp(k["trap_return"]);
    }

    private static void EmitReturn(KernelCode k)
    {
        Assembler a = k.A;
        k.Begin("trap_return");
        a.cli();
        a.mov(rsp, rbp);
        for (int i = 0; i < TrapFrame.Registers.Length; i++)
        {
            if (i != TrapFrame.RspNumber)
                a.mov(TrapFrame.Registers[i], __qword_ptr[rsp + (i * 8)]);
        }
        a.add(rsp, TrapFrame.Rip);
        a.iretq();
    }

    private static void EmitUnhandled(KernelCode k)
    {
        Assembler a = k.A;
        Label scan = k.Local(), none = k.Local(), hit = k.Local();

        k.Begin("trap_fault");
        a.call(k["fixup_find"]);
        a.test(eax, eax);
        a.jne(k["trap_return"]);
        a.lea(rdi, __[k.Text("unhandled exception")]);
        a.cmp(__dword_ptr[rbp + TrapFrame.Vector], PageFault);
        a.jne(k["oops_named"]);
        a.lea(rdi, __[k.Text("page fault")]);
        k.Begin("oops_named");
        a.cmp(__dword_ptr[rbp + TrapFrame.Vector], DoubleFault);
        a.jne(k["oops"]);
        a.lea(rdi, __[k.Text("double fault")]);
        a.jmp(k["oops"]);

        // eax = fixup_find(rbp frame): 1 if the faulting instruction has a fixup; then the frame's RIP is there.
        k.Begin("fixup_find");
        a.mov(rdi, KernelCode.Word(KernelLayout.FixupTable));
        a.mov(rcx, KernelCode.Word(KernelLayout.FixupCount));
        a.mov(rax, TrapFrame.Field(TrapFrame.Rip));
        k.Place(scan);
        a.test(rcx, rcx);
        a.je(none);
        a.cmp(__qword_ptr[rdi], rax);
        a.je(hit);
        a.add(rdi, 16);
        a.dec(rcx);
        a.jmp(scan);
        k.Place(hit);
        a.mov(rax, __qword_ptr[rdi + 8]);
        a.mov(TrapFrame.Field(TrapFrame.Rip), rax);
        a.mov(eax, 1);
        a.ret();
        k.Place(none);
        a.xor(eax, eax);
        a.ret();
    }
}
