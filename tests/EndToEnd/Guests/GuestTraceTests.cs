using System.Linq;
using Tdp.Cpu;
using Tdp.Host;
using Tdp.Kernel;
using Tdp.Platform;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Tests.EndToEnd.Guests;

/// <summary>td-guest 5.8 T1, T2, T3 and T7 with the real processor and the real guest kernel, event by event.</summary>
public sealed class GuestTraceTests
{
    private const ulong Ram = 16 << 20;

    [Fact]
    [Trait("spec", "T1")]
    public void First_touch_of_an_mmio_register_is_exit_spte_reentry_ve_and_one_hypercall()
    {
        const ulong Linear = GuestAbi.SharedWindow + GuestAbi.MmioScratch;
        const string First = "VM exit 48 qualification 0x181 gpa 0x8000f0000000 gla 0x40f0000000";
        TraceRecorder trace = new() { Begin = l => l == First };
        RunReport report = Run(
            TestGuest.Assemble(a =>
            {
                a.mov(rcx, Linear);
                a.mov(rax, ulong.MaxValue);
                a.mov(eax, __dword_ptr[rcx]);
                a.mov(rdi, rax);
                a.mov(eax, (int)GuestService.Exit);
                a.@int(GuestAbi.ServiceVector);
            }),
            trace,
            out _);
        Assert.Equal(
            [
                First,
                "TD exit 48 gpa 0x8000f0000000",
                "VP.ENTER",

                // The #VE is the processor's own: the next thing anybody sees is the guest's VEINFO.GET.
                "VM exit 77",
                "VEINFO.GET reason 48 qualification 0x181 gla 0x40f0000000 gpa 0x8000f0000000 length 0xcc",
                "VM exit 77",
                "VMCALL",
                "TD exit 77 gpa 0x0 -> user MMIO read 4 at 0xf0000000",
                "VP.ENTER",
            ],
            trace.Lines.Take(9));

        // Zero-extended: the exit code is all of RDI.
        Assert.Equal((RunOutcome.Exited, 0x5566_7788u), (report.Outcome, report.ExitCode));
        Assert.Equal(1, report.Faults.Mmio);
        Assert.True(report.IsClean);
    }

    [Fact]
    [Trait("spec", "T2")]
    public void A_touch_of_an_unaccepted_page_with_ve_is_accepted_in_the_handler_and_repeated()
    {
        const ulong Page = 0xC0_0000;
        string first = $"VM exit 48 qualification 0x182 gpa 0x{Page + 8:x} gla 0x{Page + 8:x}";
        TraceRecorder trace = new() { Begin = l => l == first };
        RunReport report = Run(
            TestGuest.Assemble(a =>
            {
                a.mov(rcx, Page + 8);
                a.mov(eax, 0x77);
                a.mov(__qword_ptr[rcx], rax);
                a.mov(rdi, __qword_ptr[rcx]);
                a.mov(eax, (int)GuestService.Exit);
                a.@int(GuestAbi.ServiceVector);
            }),
            trace,
            out _);
        Assert.Equal(
            [
                first,
                $"TDH.MEM.SEPT.ADD 0x{0xC0_0000 | 1:x}",
                $"TDH.MEM.PAGE.AUG 0x{Page:x}",
                $"TD exit 48 gpa 0x{Page:x}",
                "VP.ENTER",
                first,
                "inject vector 20",
                "VM exit 77",
                $"VEINFO.GET reason 48 qualification 0x182 gla 0x{Page + 8:x} gpa 0x{Page + 8:x} length 0xcc",
                "VM exit 77",
                $"TDG.MEM.PAGE.ACCEPT 0x{Page | 1:x} TDX_PAGE_SIZE_MISMATCH | 0x1",
                "VM exit 77",
                $"TDG.MEM.PAGE.ACCEPT 0x{Page:x} TDX_SUCCESS",
            ],
            trace.Lines.Take(13));
        Assert.Equal((RunOutcome.Exited, 0x77u), (report.Outcome, report.ExitCode));
        Assert.True(report.IsClean);
    }

    [Fact]
    [Trait("spec", "T3")]
    public void The_same_touch_without_ve_is_an_exit_of_type_6_and_a_dead_vm()
    {
        const ulong Page = 0xC0_0000;
        TraceRecorder trace = new() { Begin = l => l.Contains($"gpa 0x{Page:x} gla", StringComparison.Ordinal) };
        RunReport report = Run(
            TestGuest.Assemble(a =>
            {
                a.mov(rcx, Page);
                a.mov(__qword_ptr[rcx], rcx);
            }),
            trace,
            out Vmm vmm,
            pendingVeDisable: true);
        Assert.Equal(RunOutcome.VmDead, report.Outcome);
        Assert.Equal($"Guest access before accepting 0x{Page:x} on vCPU 0", report.Message);
        Assert.Equal(
            [
                $"VM exit 48 qualification 0x182 gpa 0x{Page:x} gla 0x{Page:x}",
                $"TDH.MEM.SEPT.ADD 0x{0xC0_0000 | 1:x}",
                $"TDH.MEM.PAGE.AUG 0x{Page:x}",
                $"TD exit 48 gpa 0x{Page:x}",
                "VP.ENTER",
                $"VM exit 48 qualification 0x182 gpa 0x{Page:x} gla 0x{Page:x}",
                $"TD exit 48 gpa 0x{Page:x}",
            ],
            trace.Lines.Take(7));
        Assert.Contains(report.KernelLog, l => l.EndsWith($"Guest access before accepting 0x{Page:x} on vCPU 0", StringComparison.Ordinal));
        Assert.Empty(report.Leaks);
        Assert.True(vmm.Vm.IsDead);
    }

    [Fact]
    [Trait("spec", "T7")]
    [Trait("spec", "G50")]
    public void A_store_that_straddles_shared_ram_and_no_memory_writes_nothing_and_oopses_with_the_second_page()
    {
        // The last page of RAM becomes shared; behind it the shared alias has no memory.
        const ulong Linear = GuestAbi.SharedWindow + Ram - 1;
        const string Second = "gpa 0x800001000000 gla 0x4001000000";
        TraceRecorder trace = new() { Begin = l => l.Contains(Second, StringComparison.Ordinal) };
        ulong? before = null;
        RunReport report = Run(
            TestGuest.Assemble(a =>
            {
                a.mov(edi, (int)(Ram - 4096));
                a.mov(esi, 1);
                a.mov(eax, (int)GuestService.Share);
                a.@int(GuestAbi.ServiceVector);
                a.mov(rcx, Linear);
                a.mov(__byte_ptr[rcx], 0x5A);
                a.mov(eax, 0xBBCC);
                a.mov(__word_ptr[rcx], ax);
            }),
            trace,
            out Vmm vmm,
            inspect: v => before = ReadByte(v, Ram - 1));
        Assert.Equal(
            [
                $"VM exit 48 qualification 0x182 {Second}",
                "TD exit 48 gpa 0x800001000000",
                "VP.ENTER",
                "VM exit 77",
                $"VEINFO.GET reason 48 qualification 0x182 gla 0x4001000000 gpa 0x800001000000 length 0xcc",
            ],
            trace.Lines.Take(5));
        Assert.Equal(RunOutcome.FatalError, report.Outcome);
        Assert.Contains("MMIO access refused", report.Message, StringComparison.Ordinal);
        Assert.Equal(0x5AUL, before);
        Assert.Equal(0, vmm.Devices.MmioAccesses);
    }

    private static ulong ReadByte(Vmm vmm, ulong gpa)
    {
        Span<byte> value = stackalloc byte[1];
        Assert.Equal(Errno.None, vmm.Vm.UserMemory.Read(vmm.Host, vmm.MemoryHva + gpa, value));
        return value[0];
    }

    private static RunReport Run(ElfImage payload, TraceRecorder trace, out Vmm vmm, bool pendingVeDisable = false, Action<Vmm>? inspect = null)
    {
        GuestImage image = GuestImage.Build(
            payload,
            new GuestBootOptions { IsTd = true, VcpuCount = 1, RamBytes = Ram, LazyAccept = true, PendingVeDisable = pendingVeDisable });
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, Ram) });
        vmm = new Vmm(world, new VmmOptions
        {
            Image = image,
            Td = new TdConfiguration { Attributes = pendingVeDisable ? TdConfiguration.SeptVeDisable : 0 },
            Engine = (machine, _) => trace.Around(new GuestCpu(machine, new GuestCpuOptions())),
            ExitObserver = trace,
        });
        vmm.Build();
        trace.Attach(world.Module!);
        vmm.Run();
        inspect?.Invoke(vmm);
        return vmm.TearDown();
    }
}
