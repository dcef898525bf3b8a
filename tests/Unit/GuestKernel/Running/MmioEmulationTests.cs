using Iced.Intel;
using Tdp.Host;
using Tdp.Kernel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.GuestKernel.Running;

/// <summary>The kernel's MMIO emulation, driven by instructions that really fault. The device starts as 0x1122334485667788 in each test.</summary>
public sealed class MmioEmulationTests
{
    private const ulong Pattern = 0x1122_3344_8566_7788;
    private const ulong Old = 0xAAAA_AAAA_AAAA_AAAA;

    [Fact]
    [Trait("spec", "G49")]
    public void Every_load_form_delivers_the_device_value_and_extends_it_as_the_processor_would()
    {
        (string Name, Action<Assembler> Load, ulong Expected)[] forms =
        [
            ("mov al", a => a.mov(al, __byte_ptr[rcx]), 0xAAAA_AAAA_AAAA_AA88),
            ("mov ah", a => a.mov(ah, __byte_ptr[rcx]), 0xAAAA_AAAA_AAAA_88AA),
            ("mov ax", a => a.mov(ax, __word_ptr[rcx]), 0xAAAA_AAAA_AAAA_7788),
            ("mov eax", a => a.mov(eax, __dword_ptr[rcx]), 0x8566_7788),
            ("mov rax", a => a.mov(rax, __qword_ptr[rcx]), Pattern),
            ("movzx ax", a => a.movzx(ax, __byte_ptr[rcx]), 0xAAAA_AAAA_AAAA_0088),
            ("movzx eax, byte", a => a.movzx(eax, __byte_ptr[rcx]), 0x88),
            ("movzx rax, byte", a => a.movzx(rax, __byte_ptr[rcx]), 0x88),
            ("movzx eax, word", a => a.movzx(eax, __word_ptr[rcx + 2]), 0x8566),
            ("movzx rax, word", a => a.movzx(rax, __word_ptr[rcx + 2]), 0x8566),
            ("movsx ax", a => a.movsx(ax, __byte_ptr[rcx]), 0xAAAA_AAAA_AAAA_FF88),
            ("movsx eax, byte", a => a.movsx(eax, __byte_ptr[rcx]), 0xFFFF_FF88),
            ("movsx rax, byte", a => a.movsx(rax, __byte_ptr[rcx]), 0xFFFF_FFFF_FFFF_FF88),
            ("movsx eax, word", a => a.movsx(eax, __word_ptr[rcx + 2]), 0xFFFF_8566),
            ("movsx rax, word", a => a.movsx(rax, __word_ptr[rcx + 2]), 0xFFFF_FFFF_FFFF_8566),
            ("movsx rax, positive", a => a.movsx(rax, __byte_ptr[rcx + 4]), 0x44),
        ];
        AssertForms(forms, (p, form) =>
        {
            p.A.mov(rcx, Payload.Device);
            p.A.mov(rax, Old);
            form(p.A);
        });
    }

    [Fact]
    [Trait("spec", "G49")]
    public void Every_addressing_mode_finds_the_register()
    {
        (string Name, Action<Assembler> Load, ulong Expected)[] forms =
        [
            ("r13", a => { a.mov(r13, rcx); a.mov(eax, __dword_ptr[r13]); }, 0x8566_7788),
            ("r12 with SIB", a => { a.mov(r12, rcx); a.mov(eax, __dword_ptr[r12 + 4]); }, 0x1122_3344),
            ("index times 4", a => { a.mov(edx, 1); a.mov(eax, __dword_ptr[rcx + (rdx * 4)]); }, 0x1122_3344),
            ("r8 times 2", a => { a.mov(r8d, 2); a.movzx(eax, __word_ptr[rcx + (r8 * 2)]); }, 0x3344),
            ("no base", a => { a.mov(rdx, rcx); a.mov(eax, __dword_ptr[(rdx * 1) + 4]); }, 0x1122_3344),
            ("rbp and index", a => { a.push(rbp); a.mov(rbp, rcx); a.mov(edx, 4); a.mov(eax, __dword_ptr[rbp + (rdx * 1)]); a.pop(rbp); }, 0x1122_3344),
            ("displacement 32", a => { a.sub(rcx, 0x1000); a.mov(eax, __dword_ptr[rcx + 0x1004]); }, 0x1122_3344),
            ("negative displacement 8", a => { a.add(rcx, 16); a.mov(eax, __dword_ptr[rcx - 12]); }, 0x1122_3344),
            ("rsp", a => { a.mov(rdx, rcx); a.sub(rdx, rsp); a.mov(eax, __dword_ptr[rsp + (rdx * 1) + 4]); }, 0x1122_3344),
            ("fs", a => a.mov(eax, __dword_ptr.fs[rcx + 4]), 0x1122_3344),
            ("ignored prefix", a => a.mov(eax, __dword_ptr.ds[rcx + 4]), 0x1122_3344),
            ("into r15", a => { a.mov(r15, __qword_ptr[rcx]); a.mov(rax, r15); }, Pattern),
            ("into sil", a => { a.push(rsi); a.mov(sil, __byte_ptr[rcx + 5]); a.movzx(eax, sil); a.pop(rsi); }, 0x33),
        ];
        AssertForms(forms, (p, form) =>
        {
            p.A.mov(rcx, Payload.Device);
            p.A.xor(eax, eax);
            form(p.A);
        });
    }

    [Fact]
    [Trait("spec", "G49")]
    public void Every_store_form_changes_exactly_its_bytes()
    {
        const ulong value = 0x1234_5678_90AB_CDEF;
        (string Name, Action<Assembler> Store, ulong Expected)[] forms =
        [
            ("al", a => a.mov(__byte_ptr[rcx], al), 0xFFFF_FFFF_FFFF_FFEF),
            ("ah", a => a.mov(__byte_ptr[rcx], ah), 0xFFFF_FFFF_FFFF_FFCD),
            ("bh", a => { a.mov(rbx, rax); a.mov(__byte_ptr[rcx + 1], bh); }, 0xFFFF_FFFF_FFFF_CDFF),
            ("r9b", a => { a.mov(r9, rax); a.mov(__byte_ptr[rcx], r9b); }, 0xFFFF_FFFF_FFFF_FFEF),
            ("ax", a => a.mov(__word_ptr[rcx + 2], ax), 0xFFFF_FFFF_CDEF_FFFF),
            ("eax", a => a.mov(__dword_ptr[rcx], eax), 0xFFFF_FFFF_90AB_CDEF),
            ("rax", a => a.mov(__qword_ptr[rcx], rax), value),
            ("immediate 8", a => a.mov(__byte_ptr[rcx], 0x80), 0xFFFF_FFFF_FFFF_FF80),
            ("immediate 16", a => a.mov(__word_ptr[rcx], 0x8001), 0xFFFF_FFFF_FFFF_8001),
            ("immediate 32", a => a.mov(__dword_ptr[rcx + 4], 0x8000_0001), 0x8000_0001_FFFF_FFFF),
            ("negative immediate to 64", a => a.mov(__qword_ptr[rcx], -2), unchecked((ulong)-2)),
            ("positive immediate to 64", a => a.mov(__qword_ptr[rcx], 0x7EAD_BEEF), 0x7EAD_BEEF),
        ];
        AssertForms(forms, (p, form) =>
        {
            p.A.mov(rcx, Payload.Device);
            p.A.mov(rax, ulong.MaxValue);
            p.A.mov(__qword_ptr[rcx], rax);
            p.A.mov(rax, value);
            form(p.A);
            p.A.mov(rax, __qword_ptr[rcx]);
        });
    }

    public static TheoryData<string, byte[]> Refused() => new()
    {
        { "ADD [rcx], eax", [0x01, 0x01] },
        { "CMP eax, [rcx]", [0x3B, 0x01] },
        { "PUSH [rcx]", [0xFF, 0x31] },
        { "XCHG eax, [rcx]", [0x87, 0x01] },
        { "LOCK INC dword [rcx]", [0xF0, 0xFF, 0x01] },
        { "CMPXCHG [rcx], edx", [0x0F, 0xB1, 0x11] },
        { "LODSB", [0x48, 0x89, 0xCE, 0xAC] },
        { "MOVSB from the device", [0x48, 0x89, 0xCE, 0x48, 0x89, 0xE7, 0xA4] },
        { "STOSD", [0x48, 0x89, 0xCF, 0xAB] },
        { "MOV al, moffs", [0xA0, 0x00, 0x00, 0x00, 0xF0, 0x40, 0x00, 0x00, 0x00] },
        { "MOV with two pages", [0x8B, 0x81, 0xFD, 0x0F, 0x00, 0x00] },
    };

    [Theory]
    [MemberData(nameof(Refused))]
    [Trait("spec", "G52")]
    public void Any_other_instruction_on_the_device_ends_in_an_oops_and_never_in_a_device_access(string name, byte[] instruction)
    {
        GuestRun run = GuestRun.Td(Payload.Assemble(p =>
        {
            p.A.mov(rcx, Payload.Device);
            p.Bytes(instruction);
        }));
        Assert.True(run.Report.Outcome == RunOutcome.FatalError, $"{name}: {run.Report.Outcome} {run.Report.Message}\n{run.Console}");
        Assert.Contains("MMIO access refused", run.Report.Message, StringComparison.Ordinal);
        Assert.Equal(GuestAbi.MmioScratchReset, run.Scratch);
    }

    [Theory]
    [InlineData(2, 1)]
    [InlineData(4, 1)]
    [InlineData(4, 3)]
    [InlineData(8, 1)]
    [InlineData(8, 4)]
    [InlineData(8, 7)]
    [Trait("spec", "G50")]
    [Trait("spec", "T7")]
    public void A_store_across_RAM_and_device_is_refused_and_never_reaches_the_device(int size, int bytesInRam)
    {
        // A table of the payload's own maps, inside the shared window, a private RAM page directly below the device.
        const ulong linear = GuestAbi.SharedWindow + 0x1000_0000;
        GuestRun run = GuestRun.Td(Payload.Assemble(p =>
        {
            Assembler a = p.A;
            p.Call(GuestService.Alloc, 2 * 4096);
            a.mov(rbx, rax);
            a.mov(__qword_ptr[rbx + 4096], 0);
            a.mov(rdx, rbx);
            a.add(rdx, 4096 + 3);
            a.mov(__qword_ptr[rbx], rdx);
            a.mov(rdx, (1UL << 47) | GuestAbi.Mmio | 3);
            a.mov(__qword_ptr[rbx + 8], rdx);
            a.mov(rdx, rbx);
            a.or(rdx, 3);
            a.mov(__qword_ptr[(long)(GuestAbi.PageTables + (6 * 4096) + ((linear - GuestAbi.SharedWindow) >> 21 << 3))], rdx);
            a.mov(rax, cr3);
            a.mov(cr3, rax);
            a.mov(rcx, linear + 4096 - (ulong)bytesInRam);
            a.mov(rax, ulong.MaxValue);
            if (size == 2)
                a.mov(__word_ptr[rcx], ax);
            else if (size == 4)
                a.mov(__dword_ptr[rcx], eax);
            else
                a.mov(__qword_ptr[rcx], rax);
            p.Report("must not be reached");
        }));
        Assert.Equal(RunOutcome.FatalError, run.Report.Outcome);
        Assert.Contains("MMIO access refused", run.Report.Message, StringComparison.Ordinal);
        Assert.Equal(GuestAbi.MmioScratchReset, run.Scratch);
        Assert.DoesNotContain("reached", run.Console, StringComparison.Ordinal);
    }

    private static void AssertForms((string Name, Action<Assembler> Form, ulong Expected)[] forms, Action<Payload, Action<Assembler>> frame)
    {
        GuestRun run = GuestRun.Td(Payload.Assemble(p =>
        {
            foreach ((string name, Action<Assembler> form, _) in forms)
            {
                p.A.mov(rcx, Payload.Device);
                p.A.mov(rax, Pattern);
                p.A.mov(__qword_ptr[rcx], rax);
                frame(p, form);
                p.Report(name);
            }
        })).MustExit();
        Assert.All(forms, form => Assert.Equal((form.Name, form.Expected), (form.Name, run.Values[form.Name])));
    }
}
