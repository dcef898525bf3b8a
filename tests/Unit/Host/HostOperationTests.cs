using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Host;

/// <summary>Operations of the host around the page tables: aging, NX recovery, write tracking, memory types, APICv, address spaces (tdp-mmu 6.1, 6.6, 6.9, 6.13).</summary>
public sealed class HostOperationTests
{
    private const ulong Shared = 1UL << 47;

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "tdp-mmu 6.1")]
    public void Aging_by_host_address_sees_what_the_guest_touched_and_flushes_nothing(bool ad)
    {
        using HostBed bed = HostBed.OrdinaryVm(options: new VmOptions { Kind = VmKind.Default, AdEnabled = ad });
        MmuNotifier notifier = bed.Vm.Notifier;
        ulong start = bed.Hva + 0x5000, end = bed.Hva + 0x7000;
        Assert.False(notifier.TestYoung(bed.Actor, start, end));
        bed.Play(GuestStep.Write(0x5000, 1), GuestStep.Write(0x9000, 1));
        long flushes = Flushes(bed);
        Assert.True(notifier.TestYoung(bed.Actor, start, end));
        Assert.True(notifier.TestYoung(bed.Actor, start, end));
        Assert.True(notifier.ClearYoung(bed.Actor, start, end));
        Assert.False(notifier.ClearYoung(bed.Actor, start, end));
        Assert.False(notifier.TestYoung(bed.Actor, start, end));
        Assert.True(notifier.TestYoung(bed.Actor, bed.Hva + 0x9000, bed.Hva + 0xA000));
        Assert.Equal((flushes, 0), (Flushes(bed), notifier.Active));

        // The translation may still be in the TLB: only a flush makes the next access count again.
        bed.Vm.Mmu.FlushRemoteTlbs(bed.Actor);
        bed.Play(GuestStep.Read(0x5000));
        Assert.True(notifier.TestYoung(bed.Actor, start, end));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "I44")]
    [Trait("spec", "tdp-mmu 6.13")]
    public void Aging_of_a_td_s_host_memory_never_reaches_its_private_pages()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x4000, 0x1000, 0));
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000), GuestStep.Write(Shared | 0x4000, 0x11))));
        Assert.True(bed.Vm.Notifier.ClearYoung(bed.Actor, bed.Hva, bed.Hva + (HostBed.Pages << 12)));
        Assert.False(bed.Vm.Notifier.TestYoung(bed.Actor, bed.Hva, bed.Hva + (HostBed.Pages << 12)));
        foreach (Root root in bed.Vm.Mmu.Roots)
        {
            bed.Vm.Mmu.ForEachSpte(root, visit =>
            {
                if (visit.Kind == SpteKind.Leaf)
                    Assert.Equal(root.IsMirror, visit.Spte.IsAccessed);
            });
        }

        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.9")]
    public void The_recovery_worker_zaps_a_fraction_each_period_and_spares_logged_slots()
    {
        using HostBed bed = HostBed.OrdinaryVm(isHuge: true, options: new VmOptions { Kind = VmKind.Default, NxHugePages = true });
        NxRecovery worker = bed.Vm.NxRecovery;
        NxHugePageSettings settings = bed.World.Kernel.NxHugePages;
        Execute(bed, 0, 0x20_0000, 0x40_0000);
        Assert.Equal(3, bed.Vm.Mmu.Statistics[MmuCounter.NxSplits]);

        // An hour divided by 60 is a minute; nothing happens before.
        settings.SetRecovery(60, 0);
        Assert.True(settings.TryGetPeriod(true, out ulong period));
        Assert.Equal(60_000_000_000UL, period);
        Assert.False(worker.RunIfDue(bed.Actor));
        Pass(bed, period);
        Assert.True(worker.RunIfDue(bed.Actor));
        Assert.False(worker.RunIfDue(bed.Actor));
        Assert.Equal((1L, 2L), (worker.Recovered, bed.Vm.Mmu.Statistics[MmuCounter.NxSplits]));

        // With ratio 1 everything goes; in a logged slot it only leaves the list. A period of its own beats the ratio.
        settings.SetRecovery(1, 5);
        Assert.True(settings.TryGetPeriod(true, out period));
        Assert.Equal(5_000_000UL, period);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { Flags = MemslotFlags.LogDirtyPages }));
        Pass(bed, period);
        Assert.True(worker.RunIfDue(bed.Actor));
        Assert.Equal((1L, 0L), (worker.Recovered, bed.Vm.Mmu.Statistics[MmuCounter.NxSplits]));

        settings.SetRecovery(0, 0);
        Assert.False(settings.TryGetPeriod(true, out _));
        Assert.Equal(0, worker.Run(bed.Actor));
        settings.SetRecovery(100_000, 0);
        Assert.True(settings.TryGetPeriod(true, out period));
        Assert.Equal(1_000_000_000UL, period);
        Assert.False(settings.TryGetPeriod(false, out _));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.4")]
    [Trait("spec", "tdp-mmu 6.9")]
    public void Switching_the_nx_workaround_reaches_every_vm_that_exists_and_those_to_come()
    {
        using HostBed bed = HostBed.OrdinaryVm(isHuge: true);
        Execute(bed, 0);
        Assert.Equal((1L, 0L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics[MmuCounter.NxSplits]));
        bed.World.Kernel.SetNxHugePages(bed.Actor, true);
        Assert.Equal(0, bed.Vm.Mmu.Statistics.Pages(Level.M2));
        Execute(bed, 0);
        Assert.Equal((0L, 1L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics[MmuCounter.NxSplits]));
        Assert.Equal(Errno.None, Vm.Create(bed.Actor, bed.World.Kernel, new VmOptions { Kind = VmKind.Default }, out Vm? late));
        Assert.True(late!.Mmu.IsNxHugePages);
        late.Destroy(bed.Actor);
        bed.World.Kernel.SetNxHugePages(bed.Actor, false);
        Assert.False(late.Mmu.IsNxHugePages == bed.Vm.Mmu.IsNxHugePages);
        Execute(bed, 0);
        Assert.Equal((1L, 0L), (bed.Vm.Mmu.Statistics.Pages(Level.M2), bed.Vm.Mmu.Statistics[MmuCounter.NxSplits]));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.3")]
    [Trait("spec", "tdp-mmu 6.1")]
    public void A_write_to_a_tracked_page_is_made_by_the_host_recorded_and_reported()
    {
        using HostBed bed = HostBed.OrdinaryVm();

        // mov dword ptr [0x5000], 0xdeadbeef; what the scripted guest does at RIP 0 is this instruction.
        byte[] code = [0xC7, 0x05, 0x00, 0x50, 0x00, 0x00, 0xEF, 0xBE, 0xAD, 0xDE];
        Assert.Equal(Errno.None, bed.Vm.UserMemory.Write(bed.Actor, bed.Hva, code));
        bed.Play(GuestStep.Write(0x5000, 1), GuestStep.Write(0x6000, 1));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { Flags = MemslotFlags.LogDirtyPages }));
        var tracker = new Tracker();
        bed.Vm.WriteTracking.Register(bed.Actor, tracker);
        Assert.Equal(Errno.None, bed.Vm.WriteTracking.Track(bed.Actor, new Gfn(5)));
        Assert.Equal(Errno.EINVAL, bed.Vm.WriteTracking.Track(bed.Actor, new Gfn(0x9_0000)));

        bed.Play(GuestStep.Write(0x5000, 0));

        Assert.Equal([(0, 0x5000UL, 4)], tracker.Writes);
        Assert.Equal(1, bed.Vm.VcpuOf(0).Statistics.TrackedWrites);
        byte[] found = new byte[8];
        Assert.Equal(Errno.None, bed.Vm.UserMemory.Read(bed.Actor, bed.Hva + 0x5000, found));
        Assert.Equal(0xDEADBEEFUL, BitConverter.ToUInt64(found));
        ulong[] words = new ulong[HostBed.Pages / 64];
        Assert.Equal(Errno.None, bed.Vm.DirtyLog.Get(bed.Actor, 0, words));
        Assert.Equal(1UL << 5, words[0]);

        // Its neighbours are not tracked; slots with a listener do not move; the last tracker gone, the guest writes by itself again.
        Assert.Equal(Errno.EINVAL, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { GuestPhysicalAddress = 1UL << 32, Flags = MemslotFlags.LogDirtyPages }));
        Assert.Equal(Errno.None, bed.Vm.WriteTracking.Untrack(bed.Actor, new Gfn(5)));
        Assert.Equal(Errno.EINVAL, bed.Vm.WriteTracking.Untrack(bed.Actor, new Gfn(5)));
        bed.Play(GuestStep.Write(0x5000, 7), GuestStep.Write(0x6000, 7));
        Assert.Single(tracker.Writes);
        bed.Vm.WriteTracking.Unregister(bed.Actor, tracker);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram with { GuestPhysicalAddress = 1UL << 32, Flags = MemslotFlags.LogDirtyPages }));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.2")]
    [Trait("spec", "D23")]
    public void A_td_that_writes_to_a_tracked_page_makes_no_progress_and_the_run_says_so()
    {
        using HostBed bed = HostBed.Td();
        ulong hva = bed.Vm.UserMemory.Map(bed.Actor, 16);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(1, MemslotFlags.None, 0x4000_0000, 0x10000, hva)));

        // Behind the first slot private memory may stand: its pages cannot be tracked.
        Assert.Equal(Errno.EINVAL, bed.Vm.WriteTracking.Track(bed.Actor, new Gfn(3)));
        Assert.Equal(Errno.None, bed.Vm.WriteTracking.Track(bed.Actor, new Gfn(0x4_0001)));
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Read(Shared | 0x4000_1000), GuestStep.Write(Shared | 0x4000_1000, 1))));
        Assert.Equal(UserExit.InternalError, bed.Vm.VcpuOf(0).RunState.Exit);
        Assert.Contains("identical exits", bed.Vm.VcpuOf(0).RunState.Message, StringComparison.Ordinal);
        Assert.True(bed.Vm.IsDead);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.13")]
    [Trait("spec", "tdp-mmu 6.1")]
    public void The_first_and_the_last_device_with_noncoherent_dma_rebuild_every_leaf_of_an_ordinary_vm()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        bed.Play(GuestStep.Write(0x5000, 1), GuestStep.Write(0x6000, 1));
        Assert.NotEqual(0UL, Leaf(bed, 5).Value & Spte.IgnorePat);
        (ulong seq, _) = bed.Vm.Mmu.Invalidation.Peek();
        long flushes = Flushes(bed);

        Assert.Equal(Errno.EINVAL, bed.Vm.Memory.AssignNoncoherentDevice(bed.Actor, false));
        Assert.Equal(Errno.None, bed.Vm.Memory.AssignNoncoherentDevice(bed.Actor, true));
        Assert.Equal((0L, flushes + 1, seq + 1), (bed.Vm.Mmu.Statistics.Pages(Level.K4), Flushes(bed), bed.Vm.Mmu.Invalidation.Peek().Seq));
        bed.Play(GuestStep.Write(0x5000, 1));
        Assert.Equal(0UL, Leaf(bed, 5).Value & Spte.IgnorePat);

        Assert.Equal(Errno.None, bed.Vm.Memory.AssignNoncoherentDevice(bed.Actor, true));
        Assert.Equal(Errno.None, bed.Vm.Memory.AssignNoncoherentDevice(bed.Actor, false));
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        Assert.Equal(Errno.None, bed.Vm.Memory.AssignNoncoherentDevice(bed.Actor, false));
        Assert.Equal((0L, 0), (bed.Vm.Mmu.Statistics.Pages(Level.K4), bed.Vm.Memory.NoncoherentDevices));
        bed.Play(GuestStep.Write(0x5000, 1));
        Assert.NotEqual(0UL, Leaf(bed, 5).Value & Spte.IgnorePat);
        bed.TearDown();
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "tdp-mmu 6.13")]
    public void Where_the_guest_s_pat_always_counts_a_device_zaps_nothing(bool td)
    {
        using HostBed bed = td ? HostBed.Td() : HostBed.OrdinaryVm(options: new VmOptions { Kind = VmKind.Default, IgnoreGuestPat = false });
        if (td)
            Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000), GuestStep.Accept(0x4000))));
        else
            bed.Play(GuestStep.Write(0x3000, 1), GuestStep.Write(0x4000, 1));
        (long Flushes, (ulong, ulong) Seq) before = (Flushes(bed), bed.Vm.Mmu.Invalidation.Peek());
        Assert.Equal(Errno.None, bed.Vm.Memory.AssignNoncoherentDevice(bed.Actor, true));
        Assert.Equal(Errno.None, bed.Vm.Memory.AssignNoncoherentDevice(bed.Actor, false));
        Assert.Equal(2, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        Assert.Equal(before, (Flushes(bed), bed.Vm.Mmu.Invalidation.Peek()));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.13")]
    public void Mtrr_and_cr0_cd_change_no_entry_and_zap_nothing()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        bed.Play(GuestStep.Write(0x5000, 1));
        Spte leaf = Leaf(bed, 5);
        (long Flushes, (ulong, ulong) Seq) before = (Flushes(bed), bed.Vm.Mmu.Invalidation.Peek());
        Vcpu vcpu = bed.Vm.VcpuOf(0);

        // MTRRdefType: enabled, everything uncached; a variable range; then caching off in CR0.
        Assert.True(vcpu.Msrs!.TryWrite(0x2FF, 0x800));
        Assert.True(vcpu.Msrs.TryWrite(0x200, 0x5000));
        Assert.True(vcpu.Msrs.TryWrite(0x201, 0x800));
        vcpu.Vmcs!.State.Cr0 |= 1UL << 30;
        bed.Play(GuestStep.Write(0x5000, 1), GuestStep.Write(0x6000, 1));
        Assert.Equal(leaf, Leaf(bed, 5));
        Assert.Equal(leaf.Value & 0x78, Leaf(bed, 6).Value & 0x78);
        Assert.Equal(before, (Flushes(bed), bed.Vm.Mmu.Invalidation.Peek()));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.4")]
    [Trait("spec", "tdp-mmu 6.13")]
    public void The_apic_access_page_is_mapped_while_apicv_is_on_and_emulated_without_an_mmio_entry_while_it_is_off()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        Assert.Equal(Errno.None, bed.Vm.Apicv.CreateAccessPage(bed.Actor));
        Assert.Equal(Errno.EINVAL, bed.Vm.Apicv.CreateAccessPage(bed.Actor));
        bed.Play(GuestStep.Write(Apicv.AccessPage, 0x1234), GuestStep.Write(0x5000, 1));
        Assert.Equal(2, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        (ulong seq, _) = bed.Vm.Mmu.Invalidation.Peek();

        // The second reason changes nothing more.
        bed.Vm.Apicv.Inhibit(bed.Actor, ApicvInhibit.HyperV, set: true);
        bed.Vm.Apicv.Inhibit(bed.Actor, ApicvInhibit.BlockIrq, set: true);
        Assert.Equal((1L, seq + 1), (bed.Vm.Mmu.Statistics.Pages(Level.K4), bed.Vm.Mmu.Invalidation.Peek().Seq));
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        Assert.Equal(FaultResult.Emulate, Fault(bed, Apicv.AccessPage));
        Assert.Equal((1L, 0L), (bed.Vm.Mmu.Statistics.Pages(Level.K4), bed.Vm.Mmu.Statistics[MmuCounter.MmioCreated]));

        bed.Vm.Apicv.Inhibit(bed.Actor, ApicvInhibit.HyperV, set: false);
        Assert.Equal(FaultResult.Emulate, Fault(bed, Apicv.AccessPage));
        bed.Vm.Apicv.Inhibit(bed.Actor, ApicvInhibit.BlockIrq, set: false);
        Assert.Equal(seq + 1, bed.Vm.Mmu.Invalidation.Peek().Seq);
        Assert.Equal([0x1234UL], bed.Play(GuestStep.Read(Apicv.AccessPage)));

        // User space cannot touch the host's slot.
        Assert.Equal(Errno.EINVAL, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(32765, MemslotFlags.None, Apicv.AccessPage, 0, 0)));
        Assert.Equal(Errno.EEXIST, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(7, MemslotFlags.None, Apicv.AccessPage, 0x1000, bed.Hva)));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.13")]
    public void Inhibiting_apicv_of_a_td_is_a_bug_and_zaps_nothing()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.EINVAL, bed.Vm.Apicv.CreateAccessPage(bed.Actor));
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000))));
        bed.Vm.Apicv.Inhibit(bed.Actor, ApicvInhibit.Absent, set: false);
        Assert.False(bed.Vm.IsDead);
        bed.Vm.Apicv.Inhibit(bed.Actor, ApicvInhibit.Absent, set: true);
        Assert.True(bed.Vm.IsDead);
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        Assert.Contains(bed.World.Machine.Findings.All, f => f.Rule == "I81" && f.Text.Contains("APICv", StringComparison.Ordinal));
    }

    [Fact]
    [Trait("spec", "D35")]
    [Trait("spec", "tdp-mmu 1.3")]
    public void The_two_address_spaces_of_an_ordinary_vm_have_roots_slots_and_pages_of_their_own()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        ulong other = bed.Vm.UserMemory.Map(bed.Actor, 16);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(0x1_0000, MemslotFlags.None, 0x5000, 0x10000, other)));
        bed.Play(GuestStep.Write(0x6000, 0xA));
        Assert.Equal(Errno.None, bed.Vm.VcpuOf(0).SetSmm(bed.Actor, true));
        Assert.Equal([0UL], bed.Play(GuestStep.Read(0x6000)));
        bed.Play(GuestStep.Write(0x6000, 0xB));
        Assert.Equal([0, 1], bed.Vm.Mmu.Roots.Select(r => r.AddressSpace).Order());

        // A notifier zaps by host address, in whichever space that is shown; the other space keeps its page.
        bed.Vm.UserMemory.Discard(bed.Actor, bed.Hva + 0x6000, 1);
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.K4));
        Assert.Equal([0xBUL], bed.Play(GuestStep.Read(0x6000)));
        Assert.Equal(Errno.None, bed.Vm.VcpuOf(0).SetSmm(bed.Actor, false));
        Assert.Equal([0UL], bed.Play(GuestStep.Read(0x6000)));

        // Without a slot there, an address of SMM is MMIO although the other space has memory.
        Assert.Equal(Errno.None, bed.Vm.VcpuOf(0).SetSmm(bed.Actor, true));
        Assert.True(bed.Vm.Mmu.ReloadRoots(bed.Vm.VcpuOf(0).Mmu));
        Assert.Equal(FaultResult.Emulate, Fault(bed, 0x2_0000));
        bed.TearDown();

        using HostBed td = HostBed.Td();
        Assert.Equal(1, td.Vm.AddressSpaces);
        Assert.Equal(Errno.EINVAL, td.Vm.VcpuOf(0).SetSmm(td.Actor, true));
        Assert.Equal(Errno.EINVAL, td.Vm.Memory.SetUserMemoryRegion(td.Actor, new UserMemoryRegion(0x1_0000, MemslotFlags.None, 0x4000_0000, 0x1000, td.Hva)));
        td.TearDown();
    }

    private static void Execute(HostBed bed, params ulong[] gpas) =>
        bed.Play([.. gpas.Select(gpa => new GuestStep(GuestStepKind.Access, gpa, AccessKind.Fetch, 0, 0, 0))]);

    private static void Pass(HostBed bed, ulong nanoseconds)
    {
        LogicalProcessor lp = bed.World.Machine.Processors[0];
        lp.Spend(nanoseconds);
        lp.ReadTime();
    }

    private static FaultResult Fault(HostBed bed, ulong gpa)
    {
        bed.Vm.Srcu.ReadEnter(bed.Actor);
        FaultResult result = bed.Vm.Mmu.HandleFault(bed.Vm.VcpuOf(0).Mmu, new Gpa(gpa), PfErr.Write);
        bed.Vm.Srcu.ReadExit(bed.Actor);
        return result;
    }

    private static Spte Leaf(HostBed bed, ulong gfn)
    {
        Span<Spte> path = stackalloc Spte[5];
        MmuVcpu vcpu = bed.Vm.VcpuOf(0).Mmu;
        int level = bed.Vm.Mmu.GetWalk(vcpu, new Gfn(gfn), path);
        return path[vcpu.DirectRoot!.Level.Value - level];
    }

    private static long Flushes(HostBed bed) => bed.Vm.Mmu.Statistics[MmuCounter.FlushRange] + bed.Vm.Mmu.Statistics[MmuCounter.FlushAll];

    private sealed class Tracker : IWriteTracker
    {
        public List<(int Vcpu, ulong Gpa, int Bytes)> Writes { get; } = [];

        public void Wrote(Vcpu vcpu, ulong gpa, int bytes) => Writes.Add((vcpu.Id, gpa, bytes));
    }
}
