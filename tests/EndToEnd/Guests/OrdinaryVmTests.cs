using Iced.Intel;
using Tdp.Cpu;
using Tdp.Host;
using Tdp.Kernel;
using Tdp.Mmu;
using Tdp.Platform;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.EndToEnd.Guests;

/// <summary>The same payloads in an ordinary VM: its exits go straight to the host, which emulates what decisions D35 names and nothing else.</summary>
public sealed class OrdinaryVmTests
{
    private const ulong Ram = 16 << 20;
    private const ulong Pattern = 0x1122_3344_8566_7788;

    public static TheoryData<string, ulong> Loads() => new()
    {
        { "mov al", 0xAAAA_AAAA_AAAA_AA88 },
        { "mov ah", 0xAAAA_AAAA_AAAA_88AA },
        { "mov ax", 0xAAAA_AAAA_AAAA_7788 },
        { "mov eax", 0x8566_7788 },
        { "mov rax", Pattern },
        { "movzx eax, byte", 0x88 },
        { "movzx rax, word", 0x8566 },
        { "movsx rax, byte", 0xFFFF_FFFF_FFFF_FF88 },
        { "movsx eax, word", 0xFFFF_8566 },
        { "movsxd rax, dword", 0xFFFF_FFFF_8566_7788 },
    };

    [Theory]
    [MemberData(nameof(Loads))]
    [Trait("spec", "D35")]
    public void A_load_from_the_device_arrives_as_the_processor_would_have_loaded_it(string form, ulong expected)
    {
        RunReport report = Run(a =>
        {
            a.mov(rcx, GuestAbi.SharedWindow + GuestAbi.MmioScratch);
            a.mov(rax, Pattern);
            a.mov(__qword_ptr[rcx], rax);
            a.mov(rax, 0xAAAA_AAAA_AAAA_AAAA);
            Load(a, form);
            a.mov(rdx, expected);
            a.cmp(rax, rdx);
            a.setne(dil);
            a.movzx(edi, dil);
            Exit(a);
        });
        Assert.Equal((RunOutcome.Exited, 0u), (report.Outcome, report.ExitCode));
    }

    [Fact]
    [Trait("spec", "D35")]
    public void Stores_of_every_size_change_exactly_their_bytes()
    {
        RunReport report = Run(
            a =>
            {
                a.mov(rcx, GuestAbi.SharedWindow + GuestAbi.MmioScratch);
                a.mov(rax, ulong.MaxValue);
                a.mov(__qword_ptr[rcx], rax);
                a.mov(__byte_ptr[rcx], 0x01);
                a.mov(__word_ptr[rcx + 2], 0x0203);
                a.mov(eax, 0x0405_0607);
                a.mov(__dword_ptr[rcx + 4], eax);
                a.mov(eax, 0x8800);
                a.mov(__byte_ptr[rcx + 1], ah);
                a.xor(edi, edi);
                Exit(a);
            },
            out Vmm vmm);
        Assert.Equal(RunOutcome.Exited, report.Outcome);
        Assert.Equal(0x0405_0607_0203_8801UL, vmm.Devices.Scratch);
    }

    [Fact]
    [Trait("spec", "D35")]
    public void Anything_else_on_the_device_is_one_line_with_the_instruction_and_its_address()
    {
        RunReport report = Run(a =>
        {
            a.mov(rcx, GuestAbi.SharedWindow + GuestAbi.MmioScratch);
            a.add(__dword_ptr[rcx], eax);
        });
        Assert.Equal(RunOutcome.InternalError, report.Outcome);
        Assert.Equal("MMIO at GPA 0xf0000000: the instruction 'add [rcx],eax' at RIP 0x40000a is not emulated (MOV forms only)", report.Message);
    }

    [Fact]
    [Trait("spec", "D35")]
    public void String_io_is_one_clear_error()
    {
        RunReport report = Run(a =>
        {
            a.mov(dx, 0xE9);
            a.mov(esi, 0x40_0000);
            a.outsb();
        });
        Assert.Equal(RunOutcome.InternalError, report.Outcome);
        Assert.Contains("string I/O", report.Message, StringComparison.Ordinal);
    }

    [Fact]
    [Trait("spec", "D35")]
    public void Every_vcpu_in_HLT_ends_the_run_instead_of_hanging_it()
    {
        RunReport report = Run(a =>
        {
            a.cli();
            Label again = a.CreateLabel();
            a.Label(ref again);
            a.hlt();
            a.jmp(again);
        });
        Assert.Equal(RunOutcome.AllHalted, report.Outcome);
        Assert.True(report.IsClean);
    }

    [Fact]
    [Trait("spec", "td-guest 2.1")]
    public void An_instruction_outside_the_tier_stops_the_run_with_its_name_bytes_and_address()
    {
        UnsupportedGuestInstructionException e = Assert.Throws<UnsupportedGuestInstructionException>(
            () => Run(a => a.vpaddd(ymm0, ymm1, ymm2)));
        Assert.Equal(TestGuest.Code, e.Rip);
        Assert.Equal("Vpaddd", e.Mnemonic, ignoreCase: true);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.7")]
    public void Huge_host_pages_become_huge_leaves_and_the_guest_sees_the_same_memory()
    {
        static void Program(Assembler a)
        {
            // Writes one word to each page of 4 MiB and sums them up again.
            Label write = a.CreateLabel(), read = a.CreateLabel();
            a.mov(ecx, 0x80_0000);
            a.Label(ref write);
            a.mov(__dword_ptr[rcx], ecx);
            a.add(ecx, 0x1000);
            a.cmp(ecx, 0xC0_0000);
            a.jb(write);
            a.mov(ecx, 0x80_0000);
            a.xor(edi, edi);
            a.Label(ref read);
            a.add(edi, __dword_ptr[rcx]);
            a.add(ecx, 0x1000);
            a.cmp(ecx, 0xC0_0000);
            a.jb(read);
            Exit(a);
        }

        uint sum = 0;
        for (uint at = 0x80_0000; at < 0xC0_0000; at += 0x1000)
            sum += at;
        RunReport small = Run(Program);
        RunReport huge = Run(Program, out _, isHuge: true);
        Assert.Equal((RunOutcome.Exited, sum), (small.Outcome, small.ExitCode));
        Assert.Equal((RunOutcome.Exited, sum), (huge.Outcome, huge.ExitCode));
        Assert.Equal(0, small.Mmu[nameof(MmuCounter.Pages2M)]);
        Assert.True(huge.Mmu[nameof(MmuCounter.Pages2M)] >= 2);
        Assert.True(huge.Faults.Fixed < small.Faults.Fixed / 10);
        Assert.True(small.IsClean && huge.IsClean);
    }

    private static void Load(Assembler a, string form)
    {
        switch (form)
        {
            case "mov al":
                a.mov(al, __byte_ptr[rcx]);
                break;
            case "mov ah":
                a.mov(ah, __byte_ptr[rcx]);
                break;
            case "mov ax":
                a.mov(ax, __word_ptr[rcx]);
                break;
            case "mov eax":
                a.mov(eax, __dword_ptr[rcx]);
                break;
            case "mov rax":
                a.mov(rax, __qword_ptr[rcx]);
                break;
            case "movzx eax, byte":
                a.movzx(eax, __byte_ptr[rcx]);
                break;
            case "movzx rax, word":
                a.movzx(rax, __word_ptr[rcx + 2]);
                break;
            case "movsx rax, byte":
                a.movsx(rax, __byte_ptr[rcx]);
                break;
            case "movsx eax, word":
                a.movsx(eax, __word_ptr[rcx + 2]);
                break;
            default:
                a.movsxd(rax, __dword_ptr[rcx]);
                break;
        }
    }

    private static void Exit(Assembler a)
    {
        a.mov(eax, (int)GuestService.Exit);
        a.@int(GuestAbi.ServiceVector);
    }

    private static RunReport Run(Action<Assembler> program) => Run(program, out _);

    private static RunReport Run(Action<Assembler> program, out Vmm vmm, bool isHuge = false)
    {
        GuestImage image = GuestImage.Build(TestGuest.Assemble(program), new GuestBootOptions { IsTd = false, VcpuCount = 1, RamBytes = Ram });
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, Ram), HasModule = false });
        vmm = new Vmm(world, new VmmOptions { Image = image, HugePages = isHuge });
        vmm.Build();
        vmm.Run();
        return vmm.TearDown();
    }
}
