using Tdp.Host;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Host;

/// <summary>A booted host and one VM with vCPUs and a slot of memory at GPA 0; everything on the test's thread.</summary>
internal sealed class HostBed : IDisposable
{
    public const ulong Pages = 2048;

    private HostBed(HostWorld world, Vm vm)
    {
        World = world;
        Vm = vm;
    }

    public HostWorld World { get; }

    public Vm Vm { get; }

    public Actor Actor => World.Actor;

    public GuestMemfd? File { get; private set; }

    public ulong Hva { get; private set; }

    public UserMemoryRegion Ram { get; private set; }

    /// <summary>A TD with a slot of private memory; finalized unless told otherwise.</summary>
    public static HostBed Td(int vcpus = 1, bool finalize = true, BehaviourProfile? profile = null, int extraProcessors = 0)
    {
        HostBed bed = Boot(new VmOptions { Kind = VmKind.Td }, vcpus + extraProcessors, profile);
        Vm vm = bed.Vm;
        Assert.Equal(Errno.None, vm.Td!.Initialize(bed.Actor, new TdConfiguration { MaxVcpus = (ushort)vcpus }));
        for (int i = 0; i < vcpus; i++)
        {
            Assert.Equal(Errno.None, vm.CreateVcpu(bed.Actor, out Vcpu? vcpu));
            Assert.Equal(Errno.None, vcpu!.Initialize(bed.Actor, 0, Direct64.ApplyScript));
        }

        Assert.Equal(Errno.None, GuestMemfd.Create(bed.Actor, vm, Pages << 12, out GuestMemfd? file));
        bed.File = file;
        bed.Hva = vm.UserMemory.Map(bed.Actor, Pages);
        bed.Ram = new UserMemoryRegion(0, MemslotFlags.GuestMemfd, 0, Pages << 12, bed.Hva, file);
        Assert.Equal(Errno.None, vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram));
        Assert.Equal(Errno.None, vm.Memory.SetAttributes(bed.Actor, 0, Pages << 12, MemoryAttributes.Private));
        if (finalize)
            Assert.Equal(Errno.None, vm.Td.Complete(bed.Actor));
        return bed;
    }

    /// <summary>An ordinary VM with one slot.</summary>
    public static HostBed OrdinaryVm(int vcpus = 1, bool isHuge = false, VmOptions? options = null, uint ringBytes = 0, int extraProcessors = 0)
    {
        HostBed bed = Boot(options ?? new VmOptions { Kind = VmKind.Default }, vcpus + extraProcessors, null);
        if (ringBytes != 0)
            Assert.Equal(Errno.None, bed.Vm.DirtyLog.EnableRing(bed.Actor, ringBytes));
        for (int i = 0; i < vcpus; i++)
            Assert.Equal(Errno.None, bed.Vm.CreateVcpu(bed.Actor, out _));
        bed.Hva = bed.Vm.UserMemory.Map(bed.Actor, Pages, isHuge);
        bed.Ram = new UserMemoryRegion(0, MemslotFlags.None, 0, Pages << 12, bed.Hva);
        Assert.Equal(Errno.None, bed.Vm.Memory.SetUserMemoryRegion(bed.Actor, bed.Ram));
        return bed;
    }

    /// <summary>Runs a script on vCPU 0 from its first step, as the actor that built the VM.</summary>
    public Errno Run(IVmxEngine guest)
    {
        // vCPU 0 belongs on processor 0; the builder stands on the last one and moves for the run.
        World.Kernel.Processors.Bind(Actor, 0);
        return Vm.VcpuOf(0).Run(Actor, guest);
    }

    /// <summary>Runs steps on vCPU 0 as a guest that starts anew, and gives the values it read.</summary>
    public IReadOnlyList<ulong> Play(params GuestStep[] steps)
    {
        if (Vm.VcpuOf(0).Vmcs is { } vmcs)
            vmcs.State.Rip = 0;
        ScriptedGuest guest = Script(steps);
        Assert.Equal(Errno.None, Run(guest));
        return guest.Values;
    }

    public ScriptedGuest Script(params GuestStep[] steps) => new(World.Machine, steps);

    /// <summary>Ends the VM; nothing may be left.</summary>
    public void TearDown()
    {
        Vm.Destroy(Actor);
        Assert.Empty(World.Kernel.Audit(isAfterTeardown: true).Disagreements);
        Assert.Empty(World.Machine.Ledger.Leaks);
        Assert.Empty(World.Machine.Findings.All);
    }

    public void Dispose() => World.Dispose();

    private static HostBed Boot(VmOptions options, int processors, BehaviourProfile? profile)
    {
        HostWorld world = HostWorld.Boot(new HostWorldOptions
        {
            Machine = MachineDescription.Default(processors, 64 << 20),
            Profile = profile ?? BehaviourProfile.Documented,
        });
        Assert.Equal(Errno.None, Vm.Create(world.Actor, world.Kernel, options, out Vm? vm));
        return new HostBed(world, vm!);
    }
}
