using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>Dirty logging by write protection, by the CPU's log, and by rings (tdp-mmu 6.7).</summary>
public sealed class DirtyLogTests
{
    private const ulong Words = HostBed.Pages / 64;

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "tdp-mmu 6.7")]
    [Trait("spec", "I79")]
    public void A_harvest_names_every_page_written_since_the_last_and_arms_it_again(bool pml)
    {
        using HostBed bed = Bed(pml);
        bed.Play(GuestStep.Write(0x1000, 1), GuestStep.Write(0x2000, 1));
        StartLogging(bed);
        bed.Play(GuestStep.Read(0x1000), GuestStep.Write(0x2000, 2), GuestStep.Write(0x7000, 2), GuestStep.Write(0x40000, 2), GuestStep.Write(0x40000, 3));
        Assert.Equal([2UL, 7, 64], Harvest(bed));

        // What records is armed again: Dirty where the CPU lists pages, W where it does not.
        Spte leaf = LeafOf(bed, 7);
        Assert.Equal((pml, false), (leaf.IsWritable, pml && leaf.IsDirty));
        Assert.Empty(Harvest(bed));
        bed.Play(GuestStep.Write(0x7000, 3));
        Assert.Equal([7UL], Harvest(bed));
        StopLogging(bed);
        Assert.Equal(Errno.ENOENT, bed.Vm.DirtyLog.Get(bed.Actor, 0, new ulong[Words]));
        bed.TearDown();
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "tdp-mmu 6.7")]
    public void With_manual_protection_reading_changes_nothing_and_clearing_takes_what_it_names(bool pml)
    {
        using HostBed bed = Bed(pml);
        Assert.Equal(Errno.EINVAL, bed.Vm.DirtyLog.EnableManualProtect(DirtyLog.InitiallySet));
        Assert.Equal(Errno.EINVAL, bed.Vm.DirtyLog.EnableManualProtect(4));
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.EnableManualProtect(DirtyLog.ManualProtect));
        StartLogging(bed);
        bed.Play(GuestStep.Write(0x1000, 2), GuestStep.Write(0x3000, 2), GuestStep.Write(0x41000, 2));
        Assert.Equal([1UL, 3, 65], Harvest(bed));
        Assert.Equal([1UL, 3, 65], Harvest(bed));
        long flushes = Flushes(bed);

        // Page 5 is not dirty: clearing it does nothing, not even a flush.
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Clear(bed.Actor, 0, 0, 64, [1UL << 5]));
        Assert.Equal(flushes, Flushes(bed));
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Clear(bed.Actor, 0, 0, 64, [1UL << 1]));
        Assert.Equal(flushes + 1, Flushes(bed));
        Assert.Equal([3UL, 65], Harvest(bed));
        bed.Play(GuestStep.Write(0x1000, 3), GuestStep.Write(0x3000, 3));
        Assert.Equal([1UL, 3, 65], Harvest(bed));
        StopLogging(bed);
        bed.TearDown();
    }

    [Theory]
    [InlineData(true, true)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(false, false)]
    [Trait("spec", "tdp-mmu 6.7")]
    public void A_slot_that_starts_all_dirty_is_neither_split_nor_protected_until_its_first_clear(bool pml, bool eager)
    {
        using HostBed bed = HostBed.OrdinaryVm(isHuge: true, options: new VmOptions { Kind = VmKind.Default, PageModificationLog = pml, EagerPageSplit = eager });
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.EnableManualProtect(DirtyLog.ManualProtect | DirtyLog.InitiallySet));
        bed.Play(GuestStep.Write(0x1000, 1), GuestStep.Write(0x20_1000, 1));
        (long Flushes, Spte Leaf) before = (Flushes(bed), LeafOf(bed, 1));
        StartLogging(bed);
        Assert.Equal(before, (Flushes(bed), LeafOf(bed, 1)));
        Assert.Equal((int)HostBed.Pages, Harvest(bed).Count);

        // The first 64 pages: only the 2M leaf around them is touched.
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Clear(bed.Actor, 0, 0, 64, [ulong.MaxValue]));
        Assert.Equal((int)HostBed.Pages - 64, Harvest(bed).Count);
        Spte first = LeafOf(bed, 1), second = LeafOf(bed, 513);
        Assert.True(second.IsWritable && second.IsLeaf(Level.M2));
        if (eager)
        {
            Assert.Equal((1L, 512L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics.Pages(Level.K4)));
            Assert.Equal((pml, false), (first.IsWritable, pml && first.IsDirty));
        }
        else
        {
            Assert.Equal(2, bed.Vm.Mmu.Statistics.Pages(Level.M2));
            Assert.False(first.IsWritable || first.IsMmuWritable);
        }

        bed.Play(GuestStep.Write(0x5000, 9));
        Assert.Contains(5UL, Harvest(bed));
        Assert.Equal((int)HostBed.Pages - 63, Harvest(bed).Count);
        StopLogging(bed);
        Assert.Equal(2, bed.Vm.Mmu.Statistics.Pages(Level.M2));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.7")]
    public void A_clear_that_reaches_into_the_next_huge_page_protects_that_one_too()
    {
        // 64 pages from 480 on: the last of them lie in the 2M leaf that begins at 512.
        using HostBed bed = HostBed.OrdinaryVm(isHuge: true, options: new VmOptions { Kind = VmKind.Default, EagerPageSplit = false });
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.EnableManualProtect(DirtyLog.ManualProtect | DirtyLog.InitiallySet));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { MemorySize = 0 }));
        var region = new UserMemoryRegion(0, MemslotFlags.None, 480 << 12, 1024 << 12, bed.Hva + (480 << 12));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, region));
        bed.Play(GuestStep.Write(490 << 12, 1), GuestStep.Write(520 << 12, 1));
        Assert.True(LeafOf(bed, 520).IsLeaf(Level.M2));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, region with { Flags = MemslotFlags.LogDirtyPages }));
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Clear(bed.Actor, 0, 0, 64, [ulong.MaxValue]));
        bed.Play(GuestStep.Write(490 << 12, 2), GuestStep.Write(520 << 12, 2));
        ulong[] words = new ulong[16];
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Get(bed.Actor, 0, words));
        Assert.Equal((1UL << 10) | (1UL << 40), words[0]);
        bed.TearDown();
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "tdp-mmu 6.8")]
    public void Huge_leaves_are_split_when_logging_begins_if_splitting_is_eager_and_at_the_first_write_if_not(bool eager)
    {
        using HostBed bed = HostBed.OrdinaryVm(isHuge: true, options: new VmOptions { Kind = VmKind.Default, EagerPageSplit = eager });
        bed.Play(GuestStep.Write(0x1000, 1), GuestStep.Write(0x20_1000, 1));
        StartLogging(bed);
        Assert.Equal(eager ? (0L, 1024L) : (2L, 0L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics.Pages(Level.K4)));
        Spte leaf = LeafOf(bed, 1);
        Assert.Equal((eager, false), (leaf.IsWritable, eager && leaf.IsDirty));
        bed.Play(GuestStep.Write(0x1000, 2), GuestStep.Read(0x20_1000));
        Assert.Equal([1UL], Harvest(bed));
        Assert.Equal(eager ? (0L, 1024L) : (1L, 512L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics.Pages(Level.K4)));
        StopLogging(bed);
        Assert.Equal((2L, 0L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics.Pages(Level.K4)));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.7")]
    public void A_full_page_modification_log_is_an_exit_and_loses_nothing()
    {
        using HostBed bed = Bed(pml: true);
        GuestStep[] writes = [.. Enumerable.Range(0, 600).Select(i => GuestStep.Write((ulong)i << 12, 1))];
        bed.Play(writes);
        StartLogging(bed);
        var reasons = new List<ExitReason>();
        bed.Vm.VcpuOf(0).ExitObserver = new Observer(reasons);
        bed.Play(writes);
        Assert.Equal([ExitReason.PageModificationLogFull, ExitReason.SimulatorScriptEnd], reasons);
        Assert.Equal(Enumerable.Range(0, 600).Select(i => (ulong)i), Harvest(bed));
        StopLogging(bed);
        Assert.False(bed.Vm.VcpuOf(0).Vmcs!.LogsDirtyPages && bed.Vm.DirtyLog.IsCpuLogging);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.7")]
    public void Vcpus_switch_their_log_on_with_the_first_logged_slot_and_off_with_the_last()
    {
        using HostBed bed = HostBed.OrdinaryVm(vcpus: 1, extraProcessors: 1);
        Vmcs vmcs = bed.Vm.VcpuOf(0).Vmcs!;
        bed.Play(GuestStep.Write(0, 1));
        Assert.False(vmcs.LogsDirtyPages);
        var other = new UserMemoryRegion(1, MemslotFlags.LogDirtyPages, 0x4000_0000, 0x10000, bed.Hva);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, other));
        bed.Play(GuestStep.Write(0, 1));
        Assert.True(vmcs.LogsDirtyPages);

        // A vCPU that is born while logging is on has its log on from its first entry.
        Assert.Equal(Errno.None, bed.Vm.CreateVcpu(bed.Actor, out Vcpu? late));
        bed.World.Kernel.Processors.Bind(bed.Actor, 1);
        Assert.Equal(Errno.None, late!.Run(bed.Actor, bed.Script(GuestStep.Write(0x4000_3000, 1))));
        Assert.True(late.Vmcs!.LogsDirtyPages);
        StartLogging(bed);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, other with { MemorySize = 0 }));
        bed.Play(GuestStep.Write(0, 1));
        Assert.True(vmcs.LogsDirtyPages);
        StopLogging(bed);
        bed.Play(GuestStep.Write(0, 1));
        Assert.False(vmcs.LogsDirtyPages);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.7")]
    public void The_ioctls_refuse_with_the_real_errno()
    {
        using HostBed bed = Bed(pml: true);
        DirtyLog log = bed.Vm.DirtyLog;
        ulong[] words = new ulong[Words];
        Assert.Equal(Errno.ENOENT, log.Get(bed.Actor, 0, words));
        Assert.Equal(Errno.ENOENT, log.Get(bed.Actor, 9, words));
        Assert.Equal(Errno.EINVAL, log.Get(bed.Actor, 0x2_0000, words));
        Assert.Equal(Errno.EINVAL, log.Get(bed.Actor, 0xFFFF, words));
        StartLogging(bed);
        bed.Play(GuestStep.Write(0x1000, 1));
        Assert.Equal(Errno.EFAULT, log.Get(bed.Actor, 0, words.AsSpan(1)));
        Assert.Equal(Errno.EINVAL, log.Clear(bed.Actor, 0, 1, 64, words));
        Assert.Equal(Errno.EINVAL, log.Clear(bed.Actor, 0, 0, 63, words));
        Assert.Equal(Errno.EINVAL, log.Clear(bed.Actor, 0, HostBed.Pages + 64, 0, words));
        Assert.Equal(Errno.EINVAL, log.Clear(bed.Actor, 0, 64, (uint)HostBed.Pages, words));
        Assert.Equal(Errno.EFAULT, log.Clear(bed.Actor, 0, 0, 128, words.AsSpan(0, 1)));
        Assert.Equal(Errno.EINVAL, log.Clear(bed.Actor, 9, 3, 64, words));
        Assert.Equal(Errno.ENOENT, log.Clear(bed.Actor, 9, 0, 64, words));
        Assert.Equal(Errno.EINVAL, log.ResetRings(bed.Actor, out _));
        Assert.Equal([1UL], Harvest(bed));

        // A ring must be chosen before the first vCPU, once, and in a size that is a power of two with room beyond the reserve.
        Assert.Equal(Errno.EINVAL, log.EnableRing(bed.Actor, 65536));
        bed.TearDown();

        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) });
        Assert.Equal(Errno.None, Vm.Create(world.Actor, world.Kernel, new VmOptions { Kind = VmKind.Default }, out Vm? vm));
        Assert.Equal(Errno.EINVAL, vm!.DirtyLog.EnableRing(world.Actor, 0));
        Assert.Equal(Errno.EINVAL, vm.DirtyLog.EnableRing(world.Actor, 12288));
        Assert.Equal(Errno.EINVAL, vm.DirtyLog.EnableRing(world.Actor, 8192));
        Assert.Equal(Errno.E2BIG, vm.DirtyLog.EnableRing(world.Actor, 65536 * 32));
        Assert.Equal(Errno.None, vm.DirtyLog.EnableRing(world.Actor, 16384));
        Assert.Equal(Errno.EINVAL, vm.DirtyLog.EnableRing(world.Actor, 16384));
        Assert.Equal(Errno.ENXIO, vm.DirtyLog.Get(world.Actor, 0, words));
        Assert.Equal(Errno.ENXIO, vm.DirtyLog.Clear(world.Actor, 0, 0, 64, words));
        vm.Destroy(world.Actor);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "tdp-mmu 6.7")]
    public void A_ring_lists_pages_in_order_stops_the_vcpu_when_softly_full_and_lets_it_go_on_after_a_reset(bool pml)
    {
        // 1024 entries; 64 of them, and 512 for the CPU's own log, stay free.
        using HostBed bed = HostBed.OrdinaryVm(options: new VmOptions { Kind = VmKind.Default, PageModificationLog = pml }, ringBytes: 16384);
        DirtyRing ring = bed.Vm.VcpuOf(0).DirtyRing!;
        Assert.Equal(pml ? 448u : 960u, ring.SoftLimit);
        GuestStep[] steps = [.. Enumerable.Range(0, 1500).Select(i => GuestStep.Write((ulong)i << 12, 1))];
        StartLogging(bed);
        bed.Vm.VcpuOf(0).Vmcs!.State.Rip = 0;
        ScriptedGuest guest = bed.Script(steps);
        var harvested = new List<DirtyGfn>();
        int stops = 0;
        while (true)
        {
            Assert.Equal(Errno.None, bed.Run(guest));
            if (bed.Vm.VcpuOf(0).RunState.Exit == UserExit.ScriptEnd)
                break;
            Assert.Equal(UserExit.DirtyRingFull, bed.Vm.VcpuOf(0).RunState.Exit);
            stops++;

            // It does not run until there is room, however often it is asked to, and harvesting alone makes none.
            ulong rip = bed.Vm.VcpuOf(0).Vmcs!.State.Rip;
            Assert.Equal(Errno.None, bed.Run(guest));
            int taken = ring.Harvest(harvested);
            Assert.Equal(Errno.None, bed.Run(guest));
            Assert.Equal((UserExit.DirtyRingFull, rip), (bed.Vm.VcpuOf(0).RunState.Exit, bed.Vm.VcpuOf(0).Vmcs!.State.Rip));
            Assert.Equal(Errno.None, bed.Vm.DirtyLog.ResetRings(bed.Actor, out int freed));
            Assert.Equal((taken, 0u), (freed, ring.Used));
        }

        Assert.Equal(pml ? 3 : 1, stops);
        ring.Harvest(harvested);

        // The fault that filled the ring recorded its page before the guest could write it; the write itself, after the reset, records it again.
        Assert.Equal(1500 + stops, harvested.Count);
        Assert.Equal(Enumerable.Range(0, 1500).Select(i => new DirtyGfn(0, (ulong)i)), harvested.Distinct());
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.ResetRings(bed.Actor, out _));
        harvested.Clear();
        bed.Play(GuestStep.Write(0x9000, 2), GuestStep.Write(0x3000, 2), GuestStep.Read(0x4000));
        ring.Harvest(harvested);
        Assert.Equal([new DirtyGfn(0, 9), new DirtyGfn(0, 3)], harvested);
        StopLogging(bed);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.7")]
    public void A_reset_ring_survives_what_user_space_may_do_to_slots_meanwhile()
    {
        using HostBed bed = HostBed.OrdinaryVm(ringBytes: 16384);
        var other = new UserMemoryRegion(1, MemslotFlags.LogDirtyPages, 0x4000_0000, 0x10000, bed.Hva);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, other));
        bed.Play(GuestStep.Write(0x4000_F000, 1), GuestStep.Write(0x4000_2000, 1));
        var pages = new List<DirtyGfn>();
        Assert.Equal(2, bed.Vm.VcpuOf(0).DirtyRing!.Harvest(pages));
        Assert.Equal([new DirtyGfn(1, 15), new DirtyGfn(1, 2)], pages);

        // The slot is gone, then there is a shorter one under its number.
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, other with { MemorySize = 0 }));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, other with { MemorySize = 0x4000 }));
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.ResetRings(bed.Actor, out int freed));
        Assert.Equal(2, freed);
        Assert.Equal(0u, bed.Vm.VcpuOf(0).DirtyRing!.Used);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "D35")]
    [Trait("spec", "tdp-mmu 6.7")]
    public void A_slot_of_the_second_address_space_has_a_log_of_its_own()
    {
        using HostBed bed = Bed(pml: false);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { Id = 0x1_0000, Flags = MemslotFlags.LogDirtyPages }));
        bed.Play(GuestStep.Write(0x1000, 1));
        ulong[] words = new ulong[Words];
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Get(bed.Actor, 0x1_0000, words));
        Assert.All(words, w => Assert.Equal(0UL, w));
        Assert.Equal(Errno.ENOENT, bed.Vm.DirtyLog.Get(bed.Actor, 0, words));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.7")]
    [Trait("spec", "tdp-mmu 6.13")]
    [Trait("spec", "I44")]
    public void A_td_logs_its_shared_slots_by_write_protection_and_the_mirror_does_not_change()
    {
        const ulong Shared = 1UL << 47;
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.EINVAL, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { Id = 2, GuestPhysicalAddress = 1UL << 32, Flags = MemslotFlags.GuestMemfd | MemslotFlags.LogDirtyPages }));
        ulong hva = bed.Vm.UserMemory.Map(bed.Actor, 16);
        var plain = new UserMemoryRegion(1, MemslotFlags.None, 0x4000_0000, 0x10000, hva);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, plain));
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000), GuestStep.Write(Shared | 0x4000_1000, 1), GuestStep.Write(Shared | 0x4000_2000, 1))));
        List<ulong> mirror = Mirror(bed);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, plain with { Flags = MemslotFlags.LogDirtyPages }));
        Assert.Equal(mirror, Mirror(bed));
        bed.Vm.VcpuOf(0).ClearSignal();
        ScriptedGuest guest = bed.Script(GuestStep.Write(Shared | 0x4000_2000, 2), GuestStep.Write(0x3000, 7));
        Assert.Equal(Errno.None, bed.Run(new Restarted(guest)));
        ulong[] words = new ulong[1];
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Get(bed.Actor, 1, words));
        Assert.Equal(1UL << 2, words[0]);
        Assert.Equal(mirror, Mirror(bed));
        Assert.Equal(1, bed.Vm.Mmu.Statistics[MmuCounter.PfFast]);
        bed.TearDown();
    }

    [Theory]
    [InlineData(true, false, false)]
    [InlineData(false, false, false)]
    [InlineData(true, true, false)]
    [InlineData(false, true, true)]
    [InlineData(true, false, true)]
    [Trait("spec", "I79")]
    public void Memory_that_is_copied_page_by_page_while_the_guest_writes_is_complete_in_the_end(bool pml, bool ring, bool huge)
    {
        // Live migration: copy everything, then what was dirtied, until the guest stops. Each copy must equal the guest's memory afterwards.
        var options = new VmOptions { Kind = VmKind.Default, PageModificationLog = pml };
        using HostBed bed = HostBed.OrdinaryVm(vcpus: 2, isHuge: huge, options: options, ringBytes: ring ? 16384u : 0, extraProcessors: 1);
        Vm vm = bed.Vm;
        bed.World.Kernel.Processors.Bind(bed.Actor, 2);
        byte[] copy = new byte[HostBed.Pages << 12];
        StartLogging(bed);
        Actor[] actors = [bed.World.Machine.Actors.Create("vcpu0"), bed.World.Machine.Actors.Create("vcpu1")];
        var guests = new Scribbler[2];
        for (int i = 0; i < 2; i++)
        {
            int id = i;
            guests[i] = new Scribbler(bed.World.Machine, 11 + (ulong)i, (ulong)(i * 600) << 12, 1400, 60_000);
            actors[i].Start(actor =>
            {
                vm.Kernel.Processors.Bind(actor, id);
                while (guests[id].Left > 0)
                    Assert.Equal(Errno.None, vm.VcpuOf(id).Run(actor, guests[id]));
                vm.Kernel.Processors.Unbind(actor);
            });
        }

        for (ulong page = 0; page < HostBed.Pages; page++)
            Copy(page);
        while (guests[0].Left > 0 || guests[1].Left > 0)
            CopyDirty();
        foreach (Actor actor in actors)
            actor.Join();
        CopyDirty();
        CopyDirty();

        byte[] now = new byte[4096];
        for (ulong page = 0; page < HostBed.Pages; page++)
        {
            Assert.Equal(Errno.None, vm.UserMemory.Read(bed.Actor, bed.Hva + (page << 12), now));
            Assert.True(now.AsSpan().SequenceEqual(copy.AsSpan((int)page << 12, 4096)), $"page {page} was written after it had been copied for the last time");
        }

        StopLogging(bed);
        bed.TearDown();

        void Copy(ulong page) => Assert.Equal(Errno.None, vm.UserMemory.Read(bed.Actor, bed.Hva + (page << 12), copy.AsSpan((int)page << 12, 4096)));

        void CopyDirty()
        {
            if (!ring)
            {
                foreach (ulong page in Harvest(bed))
                    Copy(page);
                return;
            }

            var pages = new List<DirtyGfn>();
            foreach (Vcpu vcpu in vm.Vcpus)
                vcpu.DirtyRing!.Harvest(pages);

            // Copied only after the reset has armed them again: a write in between is listed anew.
            Assert.Equal(Errno.None, vm.DirtyLog.ResetRings(bed.Actor, out _));
            foreach (DirtyGfn page in pages)
                Copy(page.Offset);
        }
    }

    private static HostBed Bed(bool pml) => HostBed.OrdinaryVm(options: new VmOptions { Kind = VmKind.Default, PageModificationLog = pml });

    private static void StartLogging(HostBed bed) =>
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { Flags = MemslotFlags.LogDirtyPages }));

    private static void StopLogging(HostBed bed) => Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram));

    private static long Flushes(HostBed bed) => bed.Vm.Mmu.Statistics[MmuCounter.FlushRange] + bed.Vm.Mmu.Statistics[MmuCounter.FlushAll];

    private static List<ulong> Harvest(HostBed bed)
    {
        ulong[] words = new ulong[Words];
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Get(bed.Actor, 0, words));
        var pages = new List<ulong>();
        for (ulong page = 0; page < HostBed.Pages; page++)
        {
            if ((words[page >> 6] & (1UL << (int)(page & 63))) != 0)
                pages.Add(page);
        }

        return pages;
    }

    private static Spte LeafOf(HostBed bed, ulong gfn)
    {
        Span<Spte> path = stackalloc Spte[5];
        MmuVcpu vcpu = bed.Vm.VcpuOf(0).Mmu;
        int level = bed.Vm.Mmu.GetWalk(vcpu, new Gfn(gfn), path);
        return path[vcpu.DirectRoot!.Level.Value - level];
    }

    private static List<ulong> Mirror(HostBed bed)
    {
        var values = new List<ulong>();
        foreach (Root root in bed.Vm.Mmu.Roots)
        {
            if (root.IsMirror)
                bed.Vm.Mmu.ForEachSpte(root, visit => values.Add(visit.Spte.Value));
        }

        return values;
    }

    private sealed class Observer(List<ExitReason> reasons) : IExitObserver
    {
        public void Exited(Vcpu vcpu, ExitReason reason, ulong gpa) => reasons.Add(reason);
    }

    private sealed class Restarted(ScriptedGuest guest) : IVmxEngine
    {
        private bool _started;

        public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
        {
            if (!_started)
                vmcs.State.Rip = 0;
            _started = true;
            return ref guest.Enter(lp, vmcs);
        }
    }
}
