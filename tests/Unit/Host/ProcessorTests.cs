using Tdp.Host;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>Who may use which processor, and what a failing step leaves behind.</summary>
public sealed class ProcessorTests
{
    [Fact]
    [Trait("spec", "D27")]
    public void A_borrowed_processor_is_nobody_else_s_until_it_is_returned()
    {
        using var machine = new Machine(MachineDescription.Default(3, 16 << 20));
        var map = new ProcessorMap(machine);
        Actor holder = machine.Actors.Create("holder"), other = machine.Actors.Create("other"), third = machine.Actors.Create("third");
        map.Bind(holder, 0);
        Assert.False(map.TryBorrow(other, 0, out _));
        Assert.True(map.TryBorrow(other, 1, out ProcessorLoan loan));
        Assert.Equal(1, loan.Processor.Id);
        Assert.Same(other, map.HolderOf(1));
        Assert.False(map.TryBorrow(third, 1, out _));
        Assert.Throws<InvalidOperationException>(() => map.Bind(third, 1));
        loan.Dispose();
        Assert.Null(map.HolderOf(1));
        Assert.Equal(1, map.Bind(third, 1).Id);

        // The actor's own processor is lent without leaving it.
        Assert.True(map.TryBorrow(holder, 0, out ProcessorLoan own));
        own.Dispose();
        Assert.Same(holder, map.HolderOf(0));
        Assert.Equal(0, map.Of(holder).Id);
    }

    [Fact]
    [Trait("spec", "D27")]
    public void Two_actors_that_look_for_an_idle_processor_never_get_the_same_one()
    {
        using var machine = new Machine(MachineDescription.Default(2, 16 << 20));
        var map = new ProcessorMap(machine);
        int inside = 0, most = 0;
        var gate = new Tdp.Sync.SpinLock("test-gate");
        Actor[] actors = [machine.Actors.Create("a"), machine.Actors.Create("b"), machine.Actors.Create("c")];
        foreach (Actor actor in actors)
        {
            actor.Start(a =>
            {
                for (int i = 0; i < 20_000; i++)
                {
                    if (!map.TryBorrow(a, 0, out ProcessorLoan loan))
                        continue;
                    Count(a, +1);
                    Count(a, -1);
                    loan.Dispose();
                }
            });
        }

        foreach (Actor actor in actors)
            actor.Join();
        Assert.Equal(1, most);

        void Count(Actor actor, int delta)
        {
            gate.Enter(actor);
            inside += delta;
            most = Math.Max(most, inside);
            gate.Exit(actor);
        }
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.10")]
    public void An_image_page_without_memory_is_ENOMEM_and_the_vcpu_stays_whose_it_was()
    {
        using HostBed bed = HostBed.Td(finalize: false);
        Actor owner = bed.World.Machine.Actors.Create("owner");
        bed.Vm.VcpuOf(0).Mmu.Actor = owner;
        bed.World.Kernel.Frames.Drain(bed.Actor);
        var taken = new List<Hpa>();
        Span<Hpa> some = new Hpa[256];
        for (int n; (n = bed.World.Machine.Frames.TakeMany(bed.Actor, FrameUse.Kernel, some)) > 0;)
            taken.AddRange(some[..n]);

        Assert.Equal(Errno.ENOMEM, bed.Vm.Td!.InitMemoryRegion(bed.Actor, 0x4000, 1, true, static (_, into) => into.Clear(), out ulong done));
        Assert.Equal((0UL, owner), (done, bed.Vm.VcpuOf(0).Mmu.Actor));

        foreach (Hpa frame in taken)
            bed.World.Machine.Frames.Return(frame, FrameUse.Kernel);
        Assert.Equal(Errno.None, bed.Vm.Td.InitMemoryRegion(bed.Actor, 0x4000, 1, true, static (_, into) => into.Clear(), out done));
        Assert.Equal((1UL, owner), (done, bed.Vm.VcpuOf(0).Mmu.Actor));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.6")]
    public void Mappings_made_at_the_same_time_never_overlap()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        ulong[][] found = new ulong[2][];
        Actor[] actors = [bed.World.Machine.Actors.Create("a"), bed.World.Machine.Actors.Create("b")];
        for (int i = 0; i < actors.Length; i++)
        {
            int index = i;
            actors[i].Start(a =>
            {
                var mine = new ulong[200];
                for (int n = 0; n < mine.Length; n++)
                    mine[n] = bed.Vm.UserMemory.Map(a, 4);
                found[index] = mine;
            });
        }

        foreach (Actor actor in actors)
            actor.Join();
        ulong[] all = [.. found[0], .. found[1]];
        Array.Sort(all);
        Assert.DoesNotContain(0UL, all);
        for (int i = 1; i < all.Length; i++)
            Assert.True(all[i] - all[i - 1] >= 0x4000, $"0x{all[i - 1]:x} and 0x{all[i]:x} overlap");
        bed.TearDown();
    }
}
