using Iced.Intel;
using Tdp.Kernel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.GuestKernel.Running;

/// <summary>Several vCPUs: start, barriers, acceptance of the same pages, conversions beside running neighbours.</summary>
public sealed class VcpuTests
{
    private const int Vcpus = 4;

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "G06")]
    public void All_vCPUs_count_into_one_word_and_meet_at_a_barrier_again_and_again(bool isTd)
    {
        const int rounds = 50;
        ElfImage payload = Payload.Assemble(p =>
        {
            Assembler a = p.A;
            Label round = a.CreateLabel(), wrong = a.CreateLabel(), end = a.CreateLabel();
            a.mov(r12, rsi);
            a.xor(r13d, r13d);
            a.Label(ref round);
            a.mov(eax, 1);
            a.@lock.xadd(__qword_ptr[0x60_0000], rax);
            Barrier(p, 3);

            // Between the two barriers nobody adds: everybody sees the same multiple.
            a.inc(r13);
            a.mov(rax, __qword_ptr[0x60_0000]);
            a.lea(rcx, __[r13 * 4]);
            a.cmp(rax, rcx);
            a.jne(wrong);
            Barrier(p, 4);
            a.cmp(r13, rounds);
            a.jb(round);
            a.test(r12, r12);
            a.jne(end);
            a.mov(rax, __qword_ptr[0x60_0000]);
            p.Report("sum");
            a.jmp(end);
            a.Label(ref wrong);
            a.ud2();
            a.Label(ref end);
            a.nop();
        });
        GuestRun run = isTd ? GuestRun.Td(payload, o => o with { VcpuCount = Vcpus }) : GuestRun.OrdinaryVm(payload, o => o with { VcpuCount = Vcpus });
        Assert.Equal((ulong)(Vcpus * rounds), run.MustExit().Values["sum"]);
    }

    [Fact]
    [Trait("spec", "G29")]
    public void Pages_that_all_vCPUs_touch_at_once_are_accepted_once()
    {
        const int pages = 200;
        GuestRun run = GuestRun.Td(
            Payload.Assemble(p =>
            {
                Assembler a = p.A;
                Label next = a.CreateLabel(), end = a.CreateLabel();
                a.mov(r12, rsi);
                Barrier(p, 0);
                a.mov(ebx, 0x60_0000);
                a.mov(ecx, pages);
                a.Label(ref next);
                a.@lock.inc(__qword_ptr[rbx]);
                a.add(rbx, 4096);
                a.dec(ecx);
                a.jne(next);
                Barrier(p, 1);
                a.test(r12, r12);
                a.jne(end);
                Label sum = a.CreateLabel();
                a.xor(eax, eax);
                a.mov(ebx, 0x60_0000);
                a.mov(ecx, pages);
                a.Label(ref sum);
                a.add(rax, __qword_ptr[rbx]);
                a.add(rbx, 4096);
                a.dec(ecx);
                a.jne(sum);
                p.Report("sum");
                a.Label(ref end);
                a.nop();
            }),
            o => o with { VcpuCount = Vcpus }).MustExit();
        Assert.Equal((ulong)(Vcpus * pages), run.Values["sum"]);
        Assert.InRange(run.Report.PagesAccepted, pages, pages + 2);
    }

    [Fact]
    [Trait("spec", "G73")]
    public void Conversions_wait_for_vCPUs_that_run_and_leave_their_memory_alone()
    {
        // vCPU 0 converts one page back and forth; the others count in the page beside it and call a service now and then.
        const int rounds = 40, page = 0x60_0000;
        GuestRun run = GuestRun.Td(
            Payload.Assemble(p =>
            {
                Assembler a = p.A;
                Label other = a.CreateLabel(), convert = a.CreateLabel(), wrong = a.CreateLabel(), end = a.CreateLabel(), busy = a.CreateLabel();
                a.mov(r12, rsi);
                a.lea(r14, __[(r12 * 8) + (page + 4096)]);
                a.xor(r13d, r13d);
                Barrier(p, 0);
                a.test(r12, r12);
                a.jne(other);

                a.Label(ref convert);
                a.mov(__qword_ptr[page], r13);
                Convert(p, GuestService.Share, page);
                a.test(rax, rax);
                a.jne(wrong);
                a.mov(__qword_ptr[page], -1);
                Convert(p, GuestService.Unshare, page);
                a.or(rax, __qword_ptr[page]);
                a.jne(wrong);
                a.inc(r13);
                a.cmp(r13, rounds);
                a.jb(convert);
                a.mov(__qword_ptr[page + 0x1800], 1);
                Barrier(p, 1);
                a.mov(rax, r13);
                p.Report("rounds");
                a.jmp(end);

                a.Label(ref other);
                a.inc(r13);
                a.@lock.inc(__qword_ptr[r14]);
                a.cmp(__qword_ptr[r14], r13);
                a.jne(wrong);
                a.mov(ecx, 200);
                a.Label(ref busy);
                a.dec(ecx);
                a.jne(busy);
                p.Call(GuestService.Rdtsc);
                a.cmp(__qword_ptr[page + 0x1800], 0);
                a.je(other);
                Barrier(p, 1);
                a.jmp(end);

                a.Label(ref wrong);
                a.ud2();
                a.Label(ref end);
                a.nop();
            }),
            o => o with { VcpuCount = Vcpus }).MustExit();
        Assert.Equal((ulong)rounds, run.Values["rounds"]);
        Assert.Equal(rounds, run.Report.Conversions.ToShared);
    }

    private static void Barrier(Payload p, int id)
    {
        p.A.mov(edi, id);
        p.A.mov(esi, Vcpus);
        p.A.mov(eax, (int)GuestService.Barrier);
        p.A.@int(GuestAbi.ServiceVector);
    }

    private static void Convert(Payload p, GuestService service, int page)
    {
        p.A.mov(edi, page);
        p.A.mov(esi, 1);
        p.A.mov(eax, (int)service);
        p.A.@int(GuestAbi.ServiceVector);
    }
}
