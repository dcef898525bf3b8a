using Iced.Intel;
using Tdp.Host;
using Tdp.Kernel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.GuestKernel.Running;

/// <summary>Services, acceptance, conversions and the ends of a guest, from a payload's point of view.</summary>
public sealed class KernelServiceTests
{
    private const ulong Unmapped = 0xE_0000_0000;

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Wrong_arguments_get_an_error_and_the_guest_goes_on(bool isTd)
    {
        (string Name, int Service, ulong First, ulong Second, long Expected)[] calls =
        [
            ("no such service", 9, 0, 0, GuestError.NoService),
            ("a huge number", int.MaxValue, 0, 0, GuestError.NoService),
            ("unreadable buffer", 1, Unmapped, 4, GuestError.Fault),
            ("alloc nothing", 3, 0, 0, GuestError.Invalid),
            ("alloc too much", 3, 1UL << 40, 0, GuestError.NoMemory),
            ("alloc everything", 3, ulong.MaxValue, 0, GuestError.NoMemory),
            ("accept half a page", 4, 0x50_0000, 0x800, GuestError.Invalid),
            ("accept beyond memory", 4, 0x100_0000, 0x1000, GuestError.Fault),
            ("share half a page", 5, 0x50_0800, 1, GuestError.Invalid),
            ("share nothing", 5, 0x50_0000, 0, GuestError.Invalid),
            ("share the kernel", 5, 0x10_0000, 1, GuestError.Fault),
            ("share the boot area", 5, 0x1000, 1, GuestError.Fault),
            ("share beyond memory", 5, 0x100_0000, 1, GuestError.Fault),
            ("share across the end", 5, 0xFF_F000, 2, GuestError.Fault),
            ("share to the end of the world", 5, 0x50_0000, ulong.MaxValue, GuestError.Fault),
            ("barrier 16", 7, 16, 1, GuestError.Invalid),
            ("barrier of none", 7, 0, 0, GuestError.Invalid),
            ("barrier of too many", 7, 0, 2, GuestError.Invalid),
        ];
        ElfImage payload = Payload.Assemble(p =>
        {
            foreach ((string name, int service, ulong first, ulong second, _) in calls)
            {
                p.Call((GuestService)service, first, second);
                p.A.neg(rax);
                p.Report(name);
            }
        });
        GuestRun run = (isTd ? GuestRun.Td(payload) : GuestRun.OrdinaryVm(payload)).MustExit();
        Assert.All(calls, call => Assert.Equal((call.Name, (ulong)-call.Expected), (call.Name, run.Values[call.Name])));
    }

    [Fact]
    public void Services_keep_all_registers_but_RAX()
    {
        AssemblerRegister64[] registers = [rbx, rcx, rdx, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
        GuestRun run = GuestRun.Td(Payload.Assemble(p =>
        {
            for (int i = 0; i < registers.Length; i++)
                p.A.mov(registers[i], 0x1111_1111_1111_1111UL * (ulong)(i + 1));
            p.Call(GuestService.Accept, 0x50_0000, 0x3000);
            for (int i = 0; i < registers.Length; i++)
            {
                p.A.mov(rax, registers[i]);
                p.Report($"r{i}");
            }
        })).MustExit();
        for (int i = 0; i < registers.Length; i++)
            Assert.Equal(0x1111_1111_1111_1111UL * (ulong)(i + 1), run.Values[$"r{i}"]);
    }

    [Fact]
    [Trait("spec", "T2")]
    [Trait("spec", "G29")]
    public void Untouched_memory_is_accepted_page_by_page_as_it_is_touched_and_reads_zero()
    {
        const int pages = 40;
        ElfImage payload = Payload.Assemble(p =>
        {
            Assembler a = p.A;
            Label next = a.CreateLabel();
            p.Call(GuestService.Alloc, pages * 4096);
            a.mov(rbx, rax);
            a.mov(ecx, pages);
            a.xor(edx, edx);
            a.Label(ref next);
            a.or(rdx, __qword_ptr[rbx + 8]);
            a.mov(__qword_ptr[rbx], rcx);
            a.add(rdx, __qword_ptr[rbx]);
            a.sub(rdx, rcx);
            a.add(rbx, 4096);
            a.dec(ecx);
            a.jne(next);
            a.mov(rax, rdx);
            p.Report("not zero");
        });
        GuestRun lazy = GuestRun.Td(payload).MustExit();
        Assert.Equal(0UL, lazy.Values["not zero"]);

        // The first pages of the heap belong to the initial image; the others were accepted one by one and nothing else was.
        Assert.InRange(lazy.Report.PagesAccepted, pages - 16, pages);
        GuestRun eager = GuestRun.Td(payload, o => o with { LazyAccept = false }).MustExit();
        Assert.InRange(eager.Report.PagesAccepted, 3900, 4096);
    }

    [Fact]
    [Trait("spec", "G30")]
    public void Without_pending_VE_memory_is_accepted_when_it_is_allocated()
    {
        const int pages = 40;
        GuestRun run = GuestRun.Td(
            Payload.Assemble(p =>
            {
                Assembler a = p.A;
                Label next = a.CreateLabel();
                p.Call(GuestService.Alloc, pages * 4096);
                a.mov(ecx, pages);
                a.Label(ref next);
                a.inc(__qword_ptr[rax]);
                a.add(rax, 4096);
                a.dec(ecx);
                a.jne(next);
                p.Report("end");
            }),
            o => o with { PendingVeDisable = true }).MustExit();
        Assert.InRange(run.Report.PagesAccepted, pages - 16, pages);
    }

    [Fact]
    [Trait("spec", "G73")]
    public void A_page_that_was_shared_and_came_back_reads_zero()
    {
        GuestRun run = GuestRun.Td(Payload.Assemble(p =>
        {
            Assembler a = p.A;
            p.Call(GuestService.Alloc, 4096);
            a.mov(rbx, rax);
            a.mov(__qword_ptr[rbx], 0x55);
            ShareOrUnshare(p, GuestService.Share);
            p.Report("share");
            a.mov(__qword_ptr[rbx], 0x66);
            a.mov(rcx, GuestAbi.SharedWindow);
            a.mov(rax, __qword_ptr[rbx + (rcx * 1)]);
            p.Report("alias");
            ShareOrUnshare(p, GuestService.Unshare);
            p.Report("unshare");
            a.mov(rax, __qword_ptr[rbx]);
            p.Report("content");
        })).MustExit();
        Assert.Equal((0UL, 0x66UL, 0UL, 0UL), (run.Values["share"], run.Values["alias"], run.Values["unshare"], run.Values["content"]));
        Assert.Equal(1, run.Report.Conversions.ToShared);
    }

    [Fact]
    [Trait("spec", "G24")]
    public void The_host_answers_CPUID_only_in_its_own_range()
    {
        GuestRun run = GuestRun.Td(Payload.Assemble(p =>
        {
            foreach (uint leaf in new uint[] { 0xB, 0x6, 0x8000_0002 })
            {
                p.A.mov(eax, leaf);
                p.A.mov(ecx, 1);
                p.A.cpuid();
                p.A.or(rax, rbx);
                p.A.or(rax, rcx);
                p.A.or(rax, rdx);
                p.Report($"leaf {leaf:x}");
            }
            p.A.mov(eax, 0x4000_0000);
            p.A.xor(ecx, ecx);
            p.A.cpuid();
            p.Report("host range");
        })).MustExit();
        Assert.Equal((0UL, 0UL, 0UL), (run.Values["leaf b"], run.Values["leaf 6"], run.Values["leaf 80000002"]));
        Assert.True(run.Values.ContainsKey("host range"));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "G47")]
    public void An_exception_of_the_payload_is_an_oops_that_names_place_and_address(bool isTd)
    {
        ElfImage payload = Payload.Assemble(p =>
        {
            p.A.mov(rcx, Unmapped);
            p.A.mov(rax, __qword_ptr[rcx]);
        });
        GuestRun run = isTd ? GuestRun.Td(payload) : GuestRun.OrdinaryVm(payload);
        string text = "page fault             rip=000000000040000b at=0000000e00000000";
        Assert.Contains("oops: " + text, run.Console, StringComparison.Ordinal);
        if (isTd)
        {
            Assert.Equal(RunOutcome.FatalError, run.Report.Outcome);
            Assert.Contains(text, run.Report.Message, StringComparison.Ordinal);
        }
        else
        {
            run.MustExit(255);
        }
    }

    [Fact]
    public void The_shared_bit_may_be_bit_51()
    {
        GuestRun run = GuestRun.Td(
            Payload.Assemble(p =>
            {
                p.A.mov(rcx, Payload.Device);
                p.A.mov(rax, __qword_ptr[rcx]);
                p.Report("device");
            }),
            o => o with { AliasBit = 51, GpaWidth = 52 }).MustExit();
        Assert.Equal(GuestAbi.MmioScratchReset, run.Values["device"]);
    }

    // RBX = page.
    private static void ShareOrUnshare(Payload p, GuestService service)
    {
        p.A.mov(rdi, rbx);
        p.A.mov(esi, 1);
        p.A.mov(eax, (int)service);
        p.A.@int(GuestAbi.ServiceVector);
    }
}
