using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Platform;

public sealed class MachineTests
{
    [Fact]
    public void A_machine_of_64_GiB_costs_only_what_it_touches()
    {
        using var machine = new Machine(new MachineDescription
        {
            Name = "large",
            LogicalProcessors = 2,
            Memory = [new HpaRange(0, 64UL << 30)],
            Cmrs = [],
            Tdmrs = [],
        });
        machine.Memory.Word((64UL << 30) - 8) = 42;
        Assert.Equal(42UL, machine.Memory.Word((64UL << 30) - 8));
        Assert.Equal(0UL, machine.Memory.Word(32UL << 30));
    }

    [Fact]
    public void The_default_machine_follows_its_description()
    {
        var description = MachineDescription.Default(4, 512UL << 20);
        using var machine = new Machine(description);
        Assert.Equal(5, machine.Processors.Count);
        Assert.Equal([0, 0, 0, 1, 1], machine.Processors.Select(lp => lp.Package));
        Assert.True(machine.IsPrivate(16));
        Assert.True(machine.IsPrivate(63));
        Assert.False(machine.IsPrivate(15));
        Assert.False(machine.IsPrivate(64));
        foreach (TdmrDescription tdmr in description.Tdmrs)
        {
            Assert.Equal(0UL, tdmr.Range.Base % (1UL << 30));
            foreach (HpaRange pamt in new[] { tdmr.Pamt1G, tdmr.Pamt2M, tdmr.Pamt4K })
            {
                Assert.Contains(tdmr.Reserved, r => r.Contains(pamt.Base) && r.Contains(pamt.End - 1));
                Assert.Equal(FrameUse.Kernel, machine.Ledger.UseOf(new Hpa(pamt.Base)));
            }
        }
    }

    [Fact]
    public void The_allocator_gives_every_free_frame_once_and_takes_them_back()
    {
        using var machine = new Machine(MachineDescription.Golden15());
        Actor actor = machine.Actors.Create("host");
        var seen = new HashSet<ulong>();
        Assert.True(machine.Frames.TryTakeExactly(actor, FrameUse.GuestMemfd, new Hpa(0x7abcd000)));
        Assert.False(machine.Frames.TryTakeExactly(actor, FrameUse.GuestMemfd, new Hpa(0x7abcd000)));
        Assert.True(machine.Frames.TryTakeRun(actor, FrameUse.HostShared, 512, 512, out Hpa run));
        Assert.Equal(0UL, run.Frame % 512);
        for (ulong i = 0; i < 512; i++)
            seen.Add(run.Frame + i);
        for (int i = 0; i < 1000; i++)
        {
            Assert.True(machine.Frames.TryTake(actor, FrameUse.HostTable, out Hpa frame));
            Assert.True(seen.Add(frame.Frame));
            Assert.NotEqual(0x7abcdUL, frame.Frame);
            Assert.Equal(FrameUse.HostTable, machine.Ledger.UseOf(frame));
        }

        Assert.Equal(1513, machine.Frames.Live);
        foreach (ulong frame in seen)
            machine.Frames.Return(Hpa.OfFrame(frame), machine.Ledger.UseOf(Hpa.OfFrame(frame)));
        machine.Frames.Return(new Hpa(0x7abcd000), FrameUse.GuestMemfd);
        Assert.Equal(0, machine.Frames.Live);
        Assert.Equal(0, machine.Findings.Count);
    }

    [Fact]
    public void The_whole_machine_can_be_handed_out_and_the_rest_is_refused()
    {
        var description = new MachineDescription
        {
            Name = "small",
            LogicalProcessors = 1,
            Packages = 1,
            Memory = [new HpaRange(0, 4UL << 20)],
            Cmrs = [new HpaRange(0, 4UL << 20)],
            Tdmrs = [new TdmrDescription(new HpaRange(0, 4UL << 20), default, default, default, [new HpaRange(1UL << 20, 1UL << 20)])],
        };
        using var machine = new Machine(description);
        Actor actor = machine.Actors.Create("host");

        // The first aligned 2 MiB run lies behind the reserved megabyte; what it skips stays usable.
        Assert.True(machine.Frames.TryTakeRun(actor, FrameUse.Kernel, 512, 512, out Hpa run));
        Assert.Equal(2UL << 20, run.Value);
        var into = new Hpa[1000];
        Assert.Equal(256, machine.Frames.TakeMany(actor, FrameUse.Kernel, into));
        Assert.False(machine.Frames.TryTake(actor, FrameUse.Kernel, out _));
        Assert.False(machine.Frames.TryTakeRun(actor, FrameUse.Kernel, 1, 1, out _));
        Assert.Equal(256, into.Take(256).Select(h => h.Frame).Distinct().Count());
        Assert.All(into.Take(256), h => Assert.True(h.Value < 1UL << 20));
    }

    [Fact]
    [Trait("spec", "I82")]
    public void A_hand_over_by_somebody_who_does_not_have_the_frame_is_a_finding()
    {
        using var machine = new Machine(MachineDescription.Golden15());
        Actor actor = machine.Actors.Create("host");
        Assert.True(machine.Frames.TryTake(actor, FrameUse.HostTable, out Hpa frame));
        uint generation = machine.Memory.Record(frame.Frame).Generation;
        machine.Frames.Return(frame, FrameUse.GuestMemfd);
        Assert.Equal(1, machine.Findings.Count);
        Assert.Equal("I82", machine.Findings.All[0].Rule);
        Assert.NotEqual(generation, machine.Memory.Record(frame.Frame).Generation);
    }

    [Fact]
    public void Time_never_runs_backwards_between_processors()
    {
        using var machine = new Machine(MachineDescription.Golden15());
        LogicalProcessor fast = machine.Processors[0];
        LogicalProcessor slow = machine.Processors[1];
        fast.Spend(1000);
        slow.Spend(10);
        Assert.Equal(1000UL, fast.ReadTime());
        Assert.Equal(1000UL, slow.ReadTime());
        slow.Spend(5);
        Assert.Equal(1005UL, slow.ReadTime());
        Assert.Equal(1005UL, fast.ReadTime());
    }

    [Fact]
    public void Neighbouring_seeds_purposes_and_indexes_give_unrelated_streams()
    {
        ulong[] firsts =
        [
            new SeedStream(1, "program").Next(),
            new SeedStream(2, "program").Next(),
            new SeedStream(1, "schedule").Next(),
            new SeedStream(1, "program", 1).Next(),
        ];
        Assert.Equal(4, firsts.Distinct().Count());
        Assert.Equal(firsts[0], new SeedStream(1, "program").Next());
        var stream = new SeedStream(7, "tlb");
        var histogram = new int[10];
        for (int i = 0; i < 10_000; i++)
            histogram[stream.Below(10)]++;
        Assert.All(histogram, n => Assert.InRange(n, 850, 1150));
    }

    [Fact]
    public void A_single_frame_that_comes_and_goes_takes_no_memory_that_was_never_used()
    {
        using Machine machine = new(MachineDescription.Default(1, 1 << 20));
        Actor actor = machine.Actors.Create("a");
        Assert.True(machine.Frames.TryTakeRun(actor, FrameUse.Kernel, 1, 1, out Hpa first));
        for (int i = 0; i < 100; i++)
        {
            machine.Frames.Return(first, FrameUse.Kernel);
            Assert.True(machine.Frames.TryTakeRun(actor, FrameUse.Kernel, 1, 1, out Hpa again));
            Assert.Equal(first, again);
        }

        Assert.Equal(1, machine.Frames.Live);
    }
}
