using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>Host pages that are in swap or destroyed, and read-only ones, as a fault meets them (tdp-mmu 5.4 steps 8 and 9).</summary>
public sealed class PagingTests
{
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    [Trait("spec", "tdp-mmu 5.4")]
    public void A_page_in_swap_is_read_in_by_the_next_access_with_its_content(bool huge)
    {
        using HostBed bed = HostBed.OrdinaryVm(isHuge: huge);
        bed.Play(GuestStep.Write(0x20_3000, 0xAB), GuestStep.Write(0x20_4000, 0xCD));
        Hpa before = bed.Vm.UserMemory.Peek(bed.Hva + 0x20_3000)!.Value;
        bed.Vm.UserMemory.SwapOut(bed.Actor, bed.Hva + 0x20_3000, 1);
        Assert.Null(bed.Vm.UserMemory.Peek(bed.Hva + 0x20_3000));
        Assert.Equal(FrameUse.Kernel, bed.World.Machine.Ledger.UseOf(before));
        Assert.Equal([0xABUL, 0xCD], bed.Play(GuestStep.Read(0x20_3000), GuestStep.Read(0x20_4000)));
        Assert.Equal(1, bed.Vm.VcpuOf(0).Statistics.HostReads);

        // The VMM's own access reads in as well; a discard drops what is in swap; both leave no frame behind.
        bed.Vm.UserMemory.SwapOut(bed.Actor, bed.Hva + 0x20_3000, 2);
        byte[] read = new byte[8];
        Assert.Equal(Errno.None, bed.Vm.UserMemory.Read(bed.Actor, bed.Hva + 0x20_3000, read));
        Assert.Equal(0xAB, read[0]);
        bed.Vm.UserMemory.Migrate(bed.Actor, bed.Hva + 0x20_4000, 1);
        bed.Vm.UserMemory.Discard(bed.Actor, bed.Hva + 0x20_4000, 1);
        Assert.Equal([0UL], bed.Play(GuestStep.Read(0x20_4000)));
        bed.Vm.UserMemory.SwapOut(bed.Actor, bed.Hva + 0x20_3000, 1);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.4")]
    public void A_signal_comes_before_the_page_is_read_in()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        bed.Play(GuestStep.Write(0x3000, 1));
        bed.Vm.UserMemory.SwapOut(bed.Actor, bed.Hva + 0x3000, 1);
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        vcpu.Mmu.Actor = bed.Actor;
        vcpu.Signal(null);
        bed.Vm.Srcu.ReadEnter(bed.Actor);
        Assert.Equal(FaultResult.Interrupted, bed.Vm.Mmu.HandleFault(vcpu.Mmu, new Gpa(0x3000), PfErr.User));
        bed.Vm.Srcu.ReadExit(bed.Actor);
        Assert.Null(bed.Vm.UserMemory.Peek(bed.Hva + 0x3000));
        vcpu.ClearSignal();
        Assert.Equal([1UL], bed.Play(GuestStep.Read(0x3000)));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.4")]
    public void A_destroyed_page_is_a_bus_error_for_the_vmm_and_the_frame_is_never_used_again()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        bed.Play(GuestStep.Write(0x3000, 1), GuestStep.Write(0x4000, 2));
        Hpa frame = bed.Vm.UserMemory.Peek(bed.Hva + 0x3000)!.Value;
        bed.Vm.UserMemory.Poison(bed.Actor, bed.Hva + 0x3000);
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        vcpu.Vmcs!.State.Rip = 0;
        Assert.Equal(Errno.EINTR, bed.Run(bed.Script(GuestStep.Read(0x3000))));
        Assert.True(vcpu.TakeBusError(out ulong address));
        Assert.Equal(bed.Hva + 0x3000, address);
        Assert.False(vcpu.TakeBusError(out _));
        vcpu.ClearSignal();
        Assert.Equal(Errno.EHWPOISON, bed.Vm.UserMemory.Read(bed.Actor, bed.Hva + 0x3000, new byte[1]));
        Assert.Equal([2UL], bed.Play(GuestStep.Read(0x4000)));
        Assert.Equal(frame.Frame, Assert.Single(bed.World.Machine.Ledger.Leaks).Frame);
        bed.Vm.Destroy(bed.Actor);
        Assert.Empty(bed.World.Kernel.Audit(isAfterTeardown: true).Disagreements);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.4")]
    public void A_write_to_a_read_only_slot_is_mmio_and_one_to_a_read_only_host_page_is_EFAULT()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        ulong hva = bed.Vm.UserMemory.Map(bed.Actor, 16);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(1, MemslotFlags.ReadOnly, 0x4000_0000, 0x10000, hva)));
        Assert.Equal([0UL], bed.Play(GuestStep.Read(0x4000_1000)));
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        bed.Vm.Srcu.ReadEnter(bed.Actor);
        Assert.Equal(FaultResult.Emulate, bed.Vm.Mmu.HandleFault(vcpu.Mmu, new Gpa(0x4000_1000), PfErr.Write | PfErr.Present));
        bed.Vm.Srcu.ReadExit(bed.Actor);

        bed.Play(GuestStep.Write(0x3000, 1));
        bed.Vm.UserMemory.Protect(bed.Actor, bed.Hva + 0x3000, 1);
        Assert.Equal([1UL], bed.Play(GuestStep.Read(0x3000)));
        vcpu.Vmcs!.State.Rip = 0;
        Assert.Equal(Errno.EFAULT, bed.Run(bed.Script(GuestStep.Write(0x3000, 2))));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I82")]
    [Trait("spec", "I57")]
    public void Two_vcpus_that_touch_pages_while_they_are_swapped_lose_nothing()
    {
        using HostBed bed = HostBed.OrdinaryVm(vcpus: 2, extraProcessors: 1);
        bed.World.Kernel.Processors.Bind(bed.Actor, 2);
        const ulong Pages = 16;
        Actor[] actors = [bed.World.Machine.Actors.Create("vcpu0"), bed.World.Machine.Actors.Create("vcpu1")];
        SharedCell<bool>[] done = [new("test-done0"), new("test-done1")];
        for (int i = 0; i < 2; i++)
        {
            int id = i;
            actors[i].Start(actor =>
            {
                bed.World.Kernel.Processors.Bind(actor, id);
                var guest = new Counter(bed.World.Machine, (ulong)id * 8, Pages, 4000);
                while (!guest.IsDone)
                    Assert.Equal(Errno.None, bed.Vm.VcpuOf(id).Run(actor, guest));
                bed.World.Kernel.Processors.Unbind(actor);
                done[id].Write(true);
            });
        }

        // Each vCPU counts in a word of its own on every page: a lost page is a lost count.
        for (int round = 0; round < 400 && !(done[0].Peek() && done[1].Peek()); round++)
            bed.Vm.UserMemory.SwapOut(bed.Actor, bed.Hva, Pages);
        foreach (Actor actor in actors)
            actor.Join();
        ulong[] sums = new ulong[2];
        byte[] page = new byte[4096];
        for (ulong i = 0; i < Pages; i++)
        {
            Assert.Equal(Errno.None, bed.Vm.UserMemory.Read(bed.Actor, bed.Hva + (i << 12), page));
            sums[0] += BitConverter.ToUInt64(page, 0);
            sums[1] += BitConverter.ToUInt64(page, 8);
        }

        Assert.Equal([4000UL, 4000UL], sums);
        bed.TearDown();
    }

    private sealed class Counter(Machine machine, ulong offset, ulong pages, int times) : IVmxEngine
    {
        private int _left = times;

        public bool IsDone => _left == 0;

        public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
        {
            vmcs.EntryEvent = default;
            while (_left > 0)
            {
                if (lp.ShouldExit)
                    return ref Leave(vmcs, ExitReason.ExternalInterrupt);
                ulong gpa = (((ulong)_left * 7) % pages << 12) + offset;
                if (!GuestPhysical.TryTranslate(machine, lp, vmcs, gpa, AccessKind.Write, out ulong hpa))
                {
                    GuestPhysical.DescribeLinear(vmcs, gpa, isPageTable: false);
                    return ref vmcs.Exit;
                }

                AtomicScalar<ulong> word = machine.Memory.Scalar<ulong>(hpa);
                word.Write(word.Read() + 1);
                _left--;
            }

            return ref Leave(vmcs, ExitReason.SimulatorScriptEnd);
        }

        private static ref VmExit Leave(Vmcs vmcs, ExitReason reason)
        {
            vmcs.Exit = new VmExit { Reason = reason, InstructionLength = 1 };
            return ref vmcs.Exit;
        }
    }
}
