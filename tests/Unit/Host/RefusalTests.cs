using System.Globalization;
using System.Text;
using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Host;

/// <summary>Impossible arguments of the memory ioctls: the errno of the real one, and afterwards everything is as it was (tdp-mmu 5.9, 5.10, 6.5, 6.10, 6.12).</summary>
public sealed class RefusalTests
{
    private const ulong Mib = 1 << 20;
    private const ulong Shared = 1UL << 47;

    [Fact]
    [Trait("spec", "tdp-mmu 6.5")]
    public void Impossible_slots_of_an_ordinary_vm_change_nothing()
    {
        using HostBed bed = HostBed.OrdinaryVm();
        bed.Play(GuestStep.Write(0x1000, 1), GuestStep.Write(0x5000, 1));
        ulong hva = bed.Hva;
        Refused(bed,
            ("size beyond 2^31 - 1 pages", Errno.EINVAL, () => Set(bed, new(1, MemslotFlags.None, 1UL << 44, 1UL << 43, hva))),
            ("user address beyond user space", Errno.EINVAL, () => Set(bed, new(1, MemslotFlags.None, 64 * Mib, Mib, 1UL << 47))),
            ("user range that ends beyond user space", Errno.EINVAL, () => Set(bed, new(1, MemslotFlags.None, 64 * Mib, Mib, (1UL << 47) - 0x2000))),
            ("user range that wraps", Errno.EINVAL, () => Set(bed, new(1, MemslotFlags.None, 64 * Mib, Mib, ulong.MaxValue - 0xFFF))),
            ("guest_memfd without private memory", Errno.EINVAL, () => Set(bed, new(1, MemslotFlags.GuestMemfd, 64 * Mib, Mib, hva))),
            ("overlap is told before the end of the host's frames", Errno.EEXIST, () => Set(bed, new(1, MemslotFlags.None, (HostBed.Pages << 12) - 0x1000, 1UL << 42, 0x1000))),
            ("overlap by a region that ends beyond every frame", Errno.EEXIST, () => Set(bed, new(1, MemslotFlags.None, 0, (1UL << 43) - 0x1000, 0x1000))),
            ("where no frame number reaches", Errno.EINVAL, () => Set(bed, new(1, MemslotFlags.None, 1UL << 60, Mib, hva))),
            ("beyond the host's frames", Errno.EINVAL, () => Set(bed, new(1, MemslotFlags.None, (1UL << 52) - Mib, 2 * Mib, hva))),
            ("a move onto another slot", Errno.EEXIST, () => MoveOnto(bed)),
            ("a move beyond the host's frames", Errno.EINVAL, () => Set(bed, bed.Ram with { GuestPhysicalAddress = (1UL << 52) - Mib })),
            ("nothing to delete", Errno.EINVAL, () => Set(bed, new(3, MemslotFlags.None, 0, 0, 0))),
            ("nothing to change", Errno.None, () => Set(bed, bed.Ram)));

        // A region may be deleted with any address in the other fields.
        Assert.Equal(Errno.None, Set(bed, bed.Ram with { MemorySize = 0, GuestPhysicalAddress = 0x7000, UserspaceAddress = 0 }));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.5")]
    [Trait("spec", "tdp-mmu 6.13")]
    public void Impossible_slots_of_a_td_change_nothing()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000))));
        Assert.Equal(Errno.None, GuestMemfd.Create(bed.Actor, bed.Vm, Mib, out GuestMemfd? closed));
        closed!.Close(bed.Actor);
        using HostWorld other = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) });
        Assert.Equal(Errno.None, Vm.Create(other.Actor, other.Kernel, new VmOptions { Kind = VmKind.Td }, out Vm? stranger));
        Assert.Equal(Errno.None, GuestMemfd.Create(other.Actor, stranger!, Mib, out GuestMemfd? foreign));
        UserMemoryRegion at = new(1, MemslotFlags.GuestMemfd, 64 * Mib, Mib, bed.Hva, bed.File);
        Refused(bed,
            ("no file", Errno.EBADF, () => Set(bed, at with { Memfd = null })),
            ("a closed file", Errno.EBADF, () => Set(bed, at with { Memfd = closed })),
            ("another VM's file", Errno.EINVAL, () => Set(bed, at with { Memfd = foreign })),
            ("an offset inside a page", Errno.EINVAL, () => Set(bed, at with { MemfdOffset = 0x800 })),
            ("an offset that wraps", Errno.EINVAL, () => Set(bed, at with { MemfdOffset = ulong.MaxValue - 0xFFF })),
            ("a range beyond the file", Errno.EINVAL, () => Set(bed, at with { MemfdOffset = (HostBed.Pages << 12) - 0x1000 })),
            ("a range that is bound", Errno.EEXIST, () => Set(bed, at)),
            ("overlap is told before the file is bound", Errno.EEXIST, () => Set(bed, at with { GuestPhysicalAddress = 0, MemfdOffset = HostBed.Pages << 13 })),
            ("the last frame carries the alias bit", Errno.EINVAL, () => Set(bed, at with { Flags = MemslotFlags.None, GuestPhysicalAddress = Shared - 0x1000, MemorySize = 0x2000 })),
            ("read-only", Errno.EINVAL, () => Set(bed, at with { Flags = MemslotFlags.ReadOnly })),
            ("flags of a private slot", Errno.EINVAL, () => Set(bed, bed.Ram with { Flags = MemslotFlags.LogDirtyPages })),
            ("a private slot moves", Errno.EINVAL, () => Set(bed, bed.Ram with { GuestPhysicalAddress = 64 * Mib })));

        // A file that the flags do not speak of is not looked at; and a private slot is deleted with the flag in place.
        Assert.Equal(Errno.None, Set(bed, at with { Flags = MemslotFlags.None, Memfd = closed }));
        Assert.Null(bed.Vm.SlotsOf(0).Active.ById(1)!.Memfd);
        Assert.Equal(Errno.None, Set(bed, bed.Ram with { MemorySize = 0, Memfd = null }));
        bed.TearDown();
        stranger!.Destroy(other.Actor);
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.10")]
    public void Impossible_conversions_change_nothing_and_those_outside_slots_touch_no_table()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000))));
        VmMemory memory = bed.Vm.Memory;
        Refused(bed,
            ("unaligned address", Errno.EINVAL, () => memory.SetAttributes(bed.Actor, 0x3001, 0x1000, 0)),
            ("unaligned size", Errno.EINVAL, () => memory.SetAttributes(bed.Actor, 0x3000, 0x1001, 0)),
            ("empty", Errno.EINVAL, () => memory.SetAttributes(bed.Actor, 0x3000, 0, 0)),
            ("wrap", Errno.EINVAL, () => memory.SetAttributes(bed.Actor, ulong.MaxValue - 0xFFF, 0x1000, 0)),
            ("where no frame number reaches", Errno.None, () => memory.SetAttributes(bed.Actor, 1UL << 60, 0x1000, MemoryAttributes.Private)),
            ("unknown attribute", Errno.EINVAL, () => memory.SetAttributes(bed.Actor, 0x3000, 0x1000, 1)),
            ("outside every slot", Errno.None, () => memory.SetAttributes(bed.Actor, 1UL << 40, 0x20_0000, MemoryAttributes.Private)),
            ("beyond what the guest can name", Errno.None, () => memory.SetAttributes(bed.Actor, Shared | 0x3000, 0x1000, 0)),
            ("what it has already", Errno.None, () => memory.SetAttributes(bed.Actor, 0, HostBed.Pages << 12, MemoryAttributes.Private)));
        Assert.True(bed.Vm.Attributes!.IsPrivate(new Gfn(1UL << 28)));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.9")]
    public void Impossible_pre_faults_change_nothing_and_say_how_far_they_came()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x8000, 0x1000, 0));
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000), GuestStep.Write(Shared | 0x8000, 1))));
        Vcpu vcpu = bed.Vm.VcpuOf(0);
        Refused(bed,
            ("unaligned address", Errno.EINVAL, () => PreFault(bed, 0x800, 0x1000)),
            ("unaligned size", Errno.EINVAL, () => PreFault(bed, 0x3000, 0x800)),
            ("empty", Errno.EINVAL, () => PreFault(bed, 0x3000, 0)),
            ("wrap", Errno.EINVAL, () => PreFault(bed, ulong.MaxValue - 0xFFF, 0x1000)),
            ("the alias bit", Errno.EINVAL, () => PreFault(bed, Shared | 0x8000, 0x1000)),
            ("beyond the tree", Errno.ENOENT, () => PreFault(bed, 1UL << 50, 0x1000)),
            ("where no frame number reaches", Errno.ENOENT, () => PreFault(bed, 1UL << 60, 0x1000)));

        // Shared and no slot: MMIO. The fault leaves its MMIO entry behind, as any other; no page is mapped.
        Assert.Equal(Errno.ENOENT, PreFault(bed, 1UL << 40, 0x1000));
        Assert.Equal(2, bed.Vm.Mmu.Statistics.Pages(Level.K4));

        // Private and no slot: a memory fault.
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 1UL << 40, 0x1000, MemoryAttributes.Private));
        Refused(bed, ("private and no slot", Errno.EFAULT, () => PreFault(bed, 1UL << 40, 0x1000)));

        // A signal ends it before the first page; after one page what was done counts.
        vcpu.Signal(null);
        Refused(bed, ("a signal", Errno.EINTR, () => PreFault(bed, 0x10000, 0x1000)));
        vcpu.ClearSignal();
        ulong gpa = (HostBed.Pages - 2) << 12, size = 0x4000;
        Assert.Equal(Errno.None, bed.Vm.Memory.PreFault(bed.Actor, vcpu, ref gpa, ref size));
        Assert.Equal((HostBed.Pages << 12, 0x2000UL), (gpa, size));
        Assert.Equal(Errno.ENOENT, bed.Vm.Memory.PreFault(bed.Actor, vcpu, ref gpa, ref size));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 5.10")]
    public void Impossible_image_regions_change_nothing()
    {
        using HostBed bed = HostBed.Td(finalize: false);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x8000, 0x1000, 0));
        Assert.Equal(Errno.None, Set(bed, new(1, MemslotFlags.None, 64 * Mib, Mib, bed.Hva)));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 64 * Mib, Mib, MemoryAttributes.Private));
        TrustDomain td = bed.Vm.Td!;
        Errno Add(ulong gpa, ulong pages) => td.InitMemoryRegion(bed.Actor, gpa, pages, true, static (_, into) => into.Clear(), out _);
        Assert.Equal(Errno.None, Add(0x5000, 1));
        Refused(bed,
            ("unaligned", Errno.EINVAL, () => Add(0x3800, 1)),
            ("empty", Errno.EINVAL, () => Add(0x3000, 0)),
            ("wrap", Errno.EINVAL, () => Add(0x3000, ulong.MaxValue >> 12)),
            ("the alias bit", Errno.EINVAL, () => Add(Shared | 0x3000, 1)),
            ("the last page has the alias bit", Errno.EINVAL, () => Add(Shared - 0x1000, 2)),
            ("no slot", Errno.EINVAL, () => Add(1UL << 40, 1)),
            ("a slot without file", Errno.EINVAL, () => Add(64 * Mib, 1)),
            ("a shared page", Errno.EINVAL, () => Add(0x8000, 1)),
            ("a page that was added", Errno.EIO, () => Add(0x5000, 1)));
        bed.Vm.VcpuOf(0).Signal(null);
        Refused(bed, ("a signal", Errno.EINTR, () => Add(0x3000, 1)));
        bed.Vm.VcpuOf(0).ClearSignal();
        bed.File!.Close(bed.Actor);
        Refused(bed, ("a closed file", Errno.EFAULT, () => Add(0x3000, 1)));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 6.12")]
    [Trait("spec", "tdp-mmu 6.11")]
    public void Impossible_file_operations_change_nothing()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000), GuestStep.Accept(0x4000))));
        GuestMemfd file = bed.File!;
        const FallocateMode Keep = FallocateMode.KeepSize, Punch = FallocateMode.KeepSize | FallocateMode.PunchHole;
        Refused(bed,
            ("size would change", Errno.EOPNOTSUPP, () => file.Fallocate(bed.Actor, FallocateMode.PunchHole, 0x3000, 0x1000)),
            ("an unknown mode", Errno.EOPNOTSUPP, () => file.Fallocate(bed.Actor, Keep | (FallocateMode)0x10, 0x3000, 0x1000)),
            ("unaligned", Errno.EINVAL, () => file.Fallocate(bed.Actor, Punch, 0x3800, 0x1000)),
            ("empty", Errno.EINVAL, () => file.Fallocate(bed.Actor, Punch, 0x3000, 0)),
            ("negative", Errno.EINVAL, () => file.Fallocate(bed.Actor, Punch, 1UL << 63, 0x1000)),
            ("too large", Errno.EFBIG, () => file.Fallocate(bed.Actor, Punch, (1UL << 63) - 0x1000, 0x1000)),
            ("pages beyond the end", Errno.EINVAL, () => file.Fallocate(bed.Actor, Keep, (HostBed.Pages << 12) - 0x1000, 0x2000)),
            ("a hole beyond the end", Errno.None, () => file.Fallocate(bed.Actor, Punch, HostBed.Pages << 12, 0x2000)),
            ("conversion in place", Errno.ENOTTY, () => file.SetAttributesInPlace(0, 0x1000, 0)));

        // Allocation fills the index and touches no tree; a hole that reaches over the end takes what is inside.
        string before = Snapshot(bed);
        Assert.Equal(Errno.None, file.Fallocate(bed.Actor, Keep, 0x10000, 0x4000));
        Assert.All(new ulong[] { 16, 17, 18, 19 }, page => Assert.NotNull(file.Peek(page)));
        Assert.Null(file.Peek(20));
        Assert.Equal(before, Snapshot(bed));
        Assert.Equal(Errno.None, file.Fallocate(bed.Actor, Punch, 0x4000, 1UL << 40));
        Assert.Null(file.Peek(16));
        Assert.Equal(1, bed.Vm.Mmu.Statistics.Pages(Level.K4));

        // A page cannot be migrated: a WARN and nothing else.
        before = Snapshot(bed);
        Assert.Equal(Errno.EINVAL, file.MigratePage(3));
        Assert.Equal((before, 1L), (Snapshot(bed), bed.Vm.Mmu.Warnings));
        file.Close(bed.Actor);
        Assert.Equal(Errno.EBADF, file.Fallocate(bed.Actor, Punch, 0, 0x1000));
    }

    [Fact]
    [Trait("spec", "I73")]
    public void Every_ioctl_of_a_dead_vm_answers_EIO_and_changes_nothing()
    {
        using HostBed bed = HostBed.Td();
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000))));
        bed.Vm.Kill(bed.Actor, "a test");
        DirtyLog log = bed.Vm.DirtyLog;
        Refused(bed,
            ("slot", Errno.EIO, () => Set(bed, new(1, MemslotFlags.None, 64 * Mib, Mib, bed.Hva))),
            ("attributes", Errno.EIO, () => bed.Vm.Memory.SetAttributes(bed.Actor, 0x3000, 0x1000, 0)),
            ("pre-fault, even with bad arguments", Errno.EIO, () => PreFault(bed, 1, 1)),
            ("dirty log", Errno.EIO, () => log.Get(bed.Actor, 0, [])),
            ("clear", Errno.EIO, () => log.Clear(bed.Actor, 0, 0, 0, [])),
            ("reset rings", Errno.EIO, () => log.ResetRings(bed.Actor, out _)),
            ("image", Errno.EIO, () => bed.Vm.Td!.InitMemoryRegion(bed.Actor, 0, 1, true, static (_, _) => { }, out _)),
            ("finalize", Errno.EIO, () => bed.Vm.Td!.Complete(bed.Actor)),
            ("vCPU", Errno.EIO, () => bed.Vm.CreateVcpu(bed.Actor, out _)),
            ("run", Errno.EIO, () => bed.Run(bed.Script())));
    }

    private static Errno Set(HostBed bed, UserMemoryRegion region) => bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, region);

    private static Errno PreFault(HostBed bed, ulong gpa, ulong size)
    {
        ulong at = gpa, left = size;
        Errno result = bed.Vm.Memory.PreFault(bed.Actor, bed.Vm.VcpuOf(0), ref at, ref left);
        Assert.Equal((gpa, size), (at, left));
        return result;
    }

    private static Errno MoveOnto(HostBed bed)
    {
        ulong place = HostBed.Pages << 12;
        Assert.Equal(Errno.None, Set(bed, new(1, MemslotFlags.None, place, Mib, bed.Hva)));
        Errno result = Set(bed, bed.Ram with { GuestPhysicalAddress = place - 0x1000 });
        Assert.Equal(Errno.None, Set(bed, new(1, MemslotFlags.None, place, 0, 0)));
        return result;
    }

    private static void Refused(HostBed bed, params (string What, Errno Expected, Func<Errno> Call)[] cases)
    {
        foreach ((string what, Errno expected, Func<Errno> call) in cases)
        {
            string before = Snapshot(bed);
            Assert.Equal((what, expected), (what, call()));
            if (what != "a move onto another slot")
                Assert.Equal(what + before, what + Snapshot(bed));
        }
    }

    // Everything that such a call could have changed: slots and their generation, the invalidation record, flushes, and every entry of every tree.
    private static string Snapshot(HostBed bed)
    {
        var text = new StringBuilder();
        for (int space = 0; space < bed.Vm.AddressSpaces; space++)
        {
            text.Append(CultureInfo.InvariantCulture, $"generation {bed.Vm.SlotsOf(space).Generation}: {string.Join("; ", bed.Vm.SlotsOf(space).Active.Slots)}\n");
        }

        MmuStatistics statistics = bed.Vm.Mmu.Statistics;
        text.Append(CultureInfo.InvariantCulture, $"{bed.Vm.Mmu.Invalidation.Peek()} {statistics[MmuCounter.FlushAll]} {statistics[MmuCounter.FlushRange]} {statistics[MmuCounter.Tables]}\n");
        foreach (Root root in bed.Vm.Mmu.Roots)
            bed.Vm.Mmu.ForEachSpte(root, visit => text.Append(CultureInfo.InvariantCulture, $"{root} {visit.Gfn} {visit.Level} {visit.Spte}\n"));
        return text.ToString();
    }
}
