using System.Runtime.InteropServices;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.Cpu;

/// <summary>
/// The CPU under this test process, as the oracle (td-guest 9): a page that is writable and executable, a stub that loads fifteen registers and the flags, runs the bytes under
/// test, and stores what came out.
/// </summary>
internal sealed unsafe class HostProcessor : IDisposable
{
    /// <summary>Where everything lies, in both worlds: low enough for 32-bit addresses.</summary>
    public const ulong Base = 0x2F00_0000;

    /// <summary>The bytes under test.</summary>
    public const ulong Test = Base + 0x800;

    /// <summary>Three pages of data behind the code.</summary>
    public const ulong Arena = Base + 0x1000;
    public const int ArenaBytes = 0x3000;
    private const ulong StateBlock = Base + 0x4000;
    private const int Length = 0x5000;
    private const int FixedNoReplace = 0x10_0000;
    private readonly int _epilogue;

    public HostProcessor()
    {
        void* page = mmap((void*)Base, Length, 7, 0x22 | FixedNoReplace, -1, 0);
        if (page != (void*)Base)
            throw new InvalidOperationException($"no page for the oracle (errno {Marshal.GetLastPInvokeError()})");
        byte[] prologue = CpuRig.Encode(Base, Prologue);
        prologue.CopyTo(new Span<byte>(page, Length));
        _epilogue = prologue.Length + 16;
        CpuRig.Encode(Base + (ulong)_epilogue, Epilogue).CopyTo(new Span<byte>((byte*)page + _epilogue, Length - _epilogue));
    }

    public static bool IsAvailable => RuntimeInformation.ProcessArchitecture == Architecture.X64 && OperatingSystem.IsLinux();

    /// <summary>The data pages.</summary>
    public static Span<byte> ArenaMemory => new((void*)Arena, ArenaBytes);

    /// <summary>Puts the bytes under test behind the prologue.</summary>
    public void Load(ReadOnlySpan<byte> code)
    {
        Span<byte> place = new((void*)Test, 0x800);
        code.CopyTo(place);
        int back = _epilogue - (0x800 + code.Length + 5);
        place[code.Length] = 0xE9;
        MemoryMarshal.Write(place[(code.Length + 1)..], back);
    }

    /// <summary>Runs them. Registers by hardware number, RSP unused; index 16 is RFLAGS.</summary>
    public static void Run(Span<ulong> registers)
    {
        registers.CopyTo(new Span<ulong>((void*)StateBlock, 17));
        ((delegate* unmanaged<ulong*, void>)Base)((ulong*)StateBlock);
        new Span<ulong>((void*)StateBlock, 17).CopyTo(registers);
    }

    public void Dispose() => _ = munmap((void*)Base, Length);

    private static void Prologue(Assembler a)
    {
        a.push(rbx);
        a.push(rbp);
        a.push(r12);
        a.push(r13);
        a.push(r14);
        a.push(r15);
        a.push(rdi);
        a.push(__qword_ptr[rdi + 128]);
        a.popfq();
        a.mov(rax, __qword_ptr[rdi]);
        a.mov(rcx, __qword_ptr[rdi + 8]);
        a.mov(rdx, __qword_ptr[rdi + 16]);
        a.mov(rbx, __qword_ptr[rdi + 24]);
        a.mov(rbp, __qword_ptr[rdi + 40]);
        a.mov(rsi, __qword_ptr[rdi + 48]);
        a.mov(r8, __qword_ptr[rdi + 64]);
        a.mov(r9, __qword_ptr[rdi + 72]);
        a.mov(r10, __qword_ptr[rdi + 80]);
        a.mov(r11, __qword_ptr[rdi + 88]);
        a.mov(r12, __qword_ptr[rdi + 96]);
        a.mov(r13, __qword_ptr[rdi + 104]);
        a.mov(r14, __qword_ptr[rdi + 112]);
        a.mov(r15, __qword_ptr[rdi + 120]);
        a.mov(rdi, __qword_ptr[rdi + 56]);
        a.jmp(Test);
    }

    private static void Epilogue(Assembler a)
    {
        a.pushfq();
        a.xchg(__qword_ptr[rsp + 8], rdi);
        a.mov(__qword_ptr[rdi], rax);
        a.mov(__qword_ptr[rdi + 8], rcx);
        a.mov(__qword_ptr[rdi + 16], rdx);
        a.mov(__qword_ptr[rdi + 24], rbx);
        a.mov(__qword_ptr[rdi + 40], rbp);
        a.mov(__qword_ptr[rdi + 48], rsi);
        a.mov(__qword_ptr[rdi + 64], r8);
        a.mov(__qword_ptr[rdi + 72], r9);
        a.mov(__qword_ptr[rdi + 80], r10);
        a.mov(__qword_ptr[rdi + 88], r11);
        a.mov(__qword_ptr[rdi + 96], r12);
        a.mov(__qword_ptr[rdi + 104], r13);
        a.mov(__qword_ptr[rdi + 112], r14);
        a.mov(__qword_ptr[rdi + 120], r15);
        a.pop(rax);
        a.mov(__qword_ptr[rdi + 128], rax);
        a.pop(rax);
        a.mov(__qword_ptr[rdi + 56], rax);
        a.cld();
        a.pop(r15);
        a.pop(r14);
        a.pop(r13);
        a.pop(r12);
        a.pop(rbp);
        a.pop(rbx);
        a.ret();
    }

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    private static extern void* mmap(void* address, nuint length, int protection, int flags, int fd, nint offset);

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    private static extern int munmap(void* address, nuint length);
}
