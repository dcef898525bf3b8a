using System.Threading;
using Iced.Intel;
using Tdp.Host;
using Tdp.Kernel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.Unit.GuestKernel.Running;

/// <summary>What the guest does when the host breaks the rules. Guest and host meet through the device (guest to host) and a shared page (host to guest).</summary>
public sealed class HostileHostTests
{
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    [Trait("spec", "G72")]
    public void A_page_that_the_host_removes_and_adds_again_ends_the_guest_instead_of_reading_zero(bool lazy)
    {
        ElfImage payload = Payload.Assemble(p =>
        {
            Assembler a = p.A;
            Label wait = a.CreateLabel();
            p.Call(GuestService.Alloc, 2 * 4096);
            a.mov(rbx, rax);
            a.mov(__qword_ptr[rbx], 0x1234);
            a.lea(rdi, __[rbx + 4096]);
            a.mov(esi, 1);
            a.mov(eax, (int)GuestService.Share);
            a.@int(GuestAbi.ServiceVector);
            a.mov(__qword_ptr[rbx + 4096], 0);
            a.mov(rcx, Payload.Device);
            a.mov(__qword_ptr[rcx], rbx);
            a.Label(ref wait);
            a.pause();
            a.cmp(__qword_ptr[rbx + 4096], 0);
            a.je(wait);
            a.mov(rax, __qword_ptr[rbx]);
            p.Report("the page now reads");
        });
        GuestRun run = GuestRun.Td(payload, o => o with { LazyAccept = lazy }, (vmm, actor) =>
        {
            while (vmm.Devices.Scratch == GuestAbi.MmioScratchReset && vmm.Outcome == RunOutcome.Stopped)
                Thread.Yield();
            ulong page = vmm.Devices.Scratch;
            Errno punched = vmm.Memfd!.PunchHole(actor, page >> 12, 1);
            Errno told = vmm.Vm.UserMemory.Write(actor, vmm.MemoryHva + page + 4096, [1, 0, 0, 0, 0, 0, 0, 0]);
            if (punched != Errno.None || told != Errno.None)
                vmm.Stop(actor);
        });
        Assert.True(run.Report.Outcome == RunOutcome.FatalError, $"{run.Report.Outcome}: {run.Report.Message}\n{run.Console}");
        Assert.Contains("private page was lost", run.Report.Message, StringComparison.Ordinal);
        Assert.DoesNotContain("now reads", run.Console, StringComparison.Ordinal);
    }
}
