using Tdp.Host;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Recorded.MasterTable;

/// <summary>
/// A VM with every kind of root at once: a valid direct one, one that was invalidated and that another vCPU still holds, and the mirror of a TD or the second address space of an ordinary VM. Each has
/// leaves for the same pages.
/// </summary>
internal sealed class TableWorld : IDisposable
{
    public const ulong Pages = 2048;
    public const ulong PlainSlot = 0x4_0000;
    public const ulong PlainPages = 256;
    private readonly HostWorld _host;

    private TableWorld(VmOptions options, bool isHuge)
    {
        _host = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(4, 64 << 20) });
        Assert.Equal(Errno.None, Vm.Create(Actor, _host.Kernel, options, out Vm? vm));
        Vm = vm!;
        bool td = options.Kind == VmKind.Td;
        if (td)
            Assert.Equal(Errno.None, Vm.Td!.Initialize(Actor, new TdConfiguration { MaxVcpus = 3 }));
        for (int i = 0; i < 3; i++)
        {
            Assert.Equal(Errno.None, Vm.CreateVcpu(Actor, out Vcpu? vcpu));
            if (td)
                Assert.Equal(Errno.None, vcpu!.Initialize(Actor));
            vcpu!.Mmu.Actor = Actor;
        }

        Hva = Vm.UserMemory.Map(Actor, Pages, isHuge);
        PlainHva = Vm.UserMemory.Map(Actor, PlainPages);
        if (td)
        {
            Assert.Equal(Errno.None, GuestMemfd.Create(Actor, Vm, Pages << 12, out GuestMemfd? file));
            File = file;
        }

        Main = new UserMemoryRegion(0, td ? MemslotFlags.GuestMemfd : MemslotFlags.None, 0, Pages << 12, Hva, File);
        Plain = new UserMemoryRegion(1, MemslotFlags.None, PlainSlot << 12, PlainPages << 12, PlainHva);
        Set(Main);
        Set(Plain);
        if (!td)
            Set(Main with { Id = 0x1_0000 });
        if (td)
        {
            Assert.Equal(Errno.None, Vm.Memory.SetAttributes(Actor, 0, 0x1000 * 1024, MemoryAttributes.Private));
            Assert.Equal(Errno.None, Vm.Memory.SetAttributes(Actor, 0x8000, 0x8000, 0));
            Assert.Equal(Errno.None, Vm.Td!.Complete(Actor));
        }
    }

    public Vm Vm { get; }

    public Actor Actor => _host.Actor;

    public ulong Hva { get; }

    public ulong PlainHva { get; }

    public UserMemoryRegion Main { get; }

    public UserMemoryRegion Plain { get; }

    public GuestMemfd? File { get; }

    /// <summary>A TD: private pages 3, 4, 5 and 600; shared pages 8..15 and the first of the plain slot, in the valid and in an invalid direct root.</summary>
    public static TableWorld Td()
    {
        var world = new TableWorld(new VmOptions { Kind = VmKind.Td }, isHuge: false);
        foreach (ulong gfn in (ReadOnlySpan<ulong>)[3, 4, 5, 600])
            Assert.Equal(FaultResult.Fixed, world.Fault(0, gfn, Alias.Private));
        ulong[] shared = [8, 9, 10, PlainSlot, PlainSlot + 1, PlainSlot + 2];
        world.MapInvalid(shared);
        world.Map(0, shared);
        return world;
    }

    /// <summary>An ordinary VM: pages 3, 4, 5, 600 and 1030 in the valid, in an invalid direct root, and in that of the second address space.</summary>
    public static TableWorld Ordinary(VmOptions? options = null, bool isHuge = false)
    {
        var world = new TableWorld(options ?? new VmOptions { Kind = VmKind.Default }, isHuge);
        ulong[] pages = [3, 4, 5, 600, 1030];
        world.MapInvalid(pages);
        world.Map(0, pages);
        Assert.Equal(Errno.None, world.Vm.VcpuOf(1).SetSmm(world.Actor, true));
        world.Map(1, pages);
        return world;
    }

    public void Set(UserMemoryRegion region) => Assert.Equal(Errno.None, Vm.Memory.SetUserMemoryRegion(Actor, region));

    public FaultResult Fault(int vcpu, ulong gfn, Alias alias = Alias.Shared, ulong access = PfErr.Write)
    {
        MmuVcpu mmu = Vm.VcpuOf(vcpu).Mmu;
        if (vcpu != 2)
            Vm.Mmu.FreeObsoleteRoots(mmu);
        Assert.True(Vm.Mmu.ReloadRoots(mmu));
        Vm.Srcu.ReadEnter(Actor);
        Gpa gpa = Vm.IsTd ? Vm.AliasBit.Apply(new Gfn(gfn), alias) : new Gfn(gfn).Gpa;
        FaultResult result = Vm.Mmu.HandleFault(mmu, gpa, access | PfErr.GuestFinal | (Vm.IsTd && alias == Alias.Private ? PfErr.PrivateAccess : 0));
        Vm.Srcu.ReadExit(Actor);
        return result;
    }

    public void Map(int vcpu, params ulong[] pages)
    {
        foreach (ulong gfn in pages)
            Assert.True(Fault(vcpu, gfn) is FaultResult.Fixed or FaultResult.Spurious);
    }

    /// <summary>The values of a tree's entries.</summary>
    public List<ulong> Content(bool mirror)
    {
        var values = new List<ulong>();
        foreach (Root root in Vm.Mmu.Roots)
        {
            if (root.IsMirror == mirror)
                Vm.Mmu.ForEachSpte(root, visit => values.Add(visit.Spte.Value));
        }

        return values;
    }

    public OperationTrace Record(Action operation)
    {
        OperationTrace trace = OperationTrace.Record(Vm, Actor, operation);
        Assert.DoesNotContain(_host.Machine.Findings.All, _ => true);
        return trace;
    }

    public void Dispose()
    {
        Hook.Install(null, null);
        _host.Dispose();
    }

    // vCPU 2 stays on the root that is invalidated; its leaves are to be found and zapped all the same.
    private void MapInvalid(ulong[] pages)
    {
        Map(2, pages);
        Vm.Mmu.MmuLock.EnterWrite(Actor);
        Vm.Mmu.InvalidateRoots(Actor, RootKinds.Direct);
        Vm.Mmu.MmuLock.ExitWrite(Actor);
    }
}
