using Tdp.Host;
using Tdp.Mmu;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.EndToEnd.Golden;

/// <summary>
/// The setting of the worked traces (tdp-mmu 15): a running TD with 4 levels, one guest_memfd slot over [0x100000, 0x180000), all private, frame 0x7abcd behind
/// gfn 0x123456. vCPU i is driven by its own actor on processor i, all on the test's thread unless a test starts more.
/// </summary>
public sealed class GoldenTd : IDisposable
{
    public const ulong Gpa = 0x1_2345_6000;
    public const ulong SharedBit = 1UL << 47;
    public static readonly Gfn Gfn = new(0x123456);
    public static readonly Gfn SlotStart = new(0x100000);
    public static readonly Hpa Frame = new(0x7abcd000);
    public const ulong SlotPages = 0x80000;
    public const ulong PrivateWrite = PfErr.Write | PfErr.PrivateAccess;

    private readonly List<Actor> _actors = [];

    public GoldenTd(int vcpus = 2, TdConfiguration? configuration = null, BehaviourProfile? profile = null)
    {
        World = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Golden15(vcpus), Profile = profile ?? BehaviourProfile.Documented });
        Recorder = new SeamcallRecorder();
        Assert.Equal(Errno.None, Vm.Create(Host, World.Kernel, new VmOptions { Kind = VmKind.Td }, out Vm? vm));
        Vm = vm!;
        Assert.Equal(Errno.None, Vm.Td!.Initialize(Host, (configuration ?? new TdConfiguration()) with { MaxVcpus = (ushort)vcpus }));
        for (int i = 0; i < vcpus; i++)
        {
            Assert.Equal(Errno.None, Vm.CreateVcpu(Host, out Vcpu? vcpu));
            Assert.Equal(Errno.None, vcpu!.Initialize(Host, 0, Direct64.ApplyScript));
        }

        Hva = Vm.UserMemory.Map(Host, SlotPages);
        Assert.Equal(Errno.None, GuestMemfd.Create(Host, Vm, SlotPages << 12, out GuestMemfd? file));
        File = file!;
        Assert.Equal(Errno.None, Vm.Memory.SetUserMemoryRegion(Host, Region));
        Assert.Equal(Errno.None, Vm.Memory.SetAttributes(Host, SlotStart.Value << 12, SlotPages << 12, MemoryAttributes.Private));
        Assert.True(File.Place(Host, Gfn - SlotStart, Frame));
        Assert.Equal(Errno.None, Vm.Td.Complete(Host));
        for (int i = 0; i < vcpus; i++)
        {
            Actor actor = World.Machine.Actors.Create($"vcpu{i}");
            World.Kernel.Processors.Bind(actor, i);
            _actors.Add(actor);
            Vm.VcpuOf(i).Mmu.Actor = actor;
        }

        World.Module!.Observer = Recorder;
        World.Module.BusyInjector = Recorder;
    }

    public HostWorld World { get; }

    public Actor Host => World.Actor;

    public SeamcallRecorder Recorder { get; }

    public Vm Vm { get; }

    public GuestMemfd File { get; }

    public ulong Hva { get; }

    public UserMemoryRegion Region => new(0, MemslotFlags.GuestMemfd, SlotStart.Value << 12, SlotPages << 12, Hva, File);

    public MmuStatistics Statistics => Vm.Mmu.Statistics;

    public Root Mirror => Find(isMirror: true);

    public Root Direct => Find(isMirror: false);

    public SeptState SeptState => World.Module!.FindSeptEntry(Vm.Td!.Tdr, new Gpa(Gpa), Level.K4).State;

    public Vcpu Vcpu(int id) => Vm.VcpuOf(id);

    public Actor ActorOf(int id) => _actors[id];

    /// <summary>Runs a vCPU with a script until the script ends or user space is needed.</summary>
    public Errno Run(int id, ScriptedGuest guest) => Vcpu(id).Run(ActorOf(id), new FromFirstStep(guest));

    /// <summary>Starts a script at its first step, wherever the vCPU's previous script ended.</summary>
    public sealed class FromFirstStep(ScriptedGuest guest) : IVmxEngine
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

    public ScriptedGuest Script(params GuestStep[] steps) => new(World.Machine, steps);

    /// <summary>One fault of a vCPU, without a guest; roots are loaded if need be. SRCU is held as in the run loop.</summary>
    public FaultResult Fault(int id, ulong gpa, ulong error)
    {
        Vm.Srcu.ReadEnter(ActorOf(id));
        Assert.True(Vm.Mmu.ReloadRoots(Vcpu(id).Mmu));
        FaultResult result = Vm.Mmu.HandleFault(Vcpu(id).Mmu, new Gpa(gpa), error);
        Vm.Srcu.ReadExit(ActorOf(id));
        return result;
    }

    /// <summary>The entry of a tree on the way to a raw frame number, from the root down to <paramref name="level"/>; null when the path ends above.</summary>
    public Spte? Entry(Root root, ulong rawGfn, Level level)
    {
        Hpa table = root.Frame;
        for (Level at = root.Level; ; at = at.Down)
        {
            var entry = new Spte(World.Machine.Memory.Table(table)[at.IndexOf(rawGfn)]);
            if (at == level)
                return entry;
            if (!entry.IsPresent || entry.IsLast(at))
                return null;
            table = entry.Address;
        }
    }

    public void Dispose()
    {
        World.Module!.Observer = null;
        World.Module.BusyInjector = null;
        World.Dispose();
    }

    /// <summary>Destroys the VM and checks the books.</summary>
    public void TearDown()
    {
        Recorder.Before = null;
        Recorder.Busy = null;
        foreach (Actor actor in _actors)
        {
            World.Kernel.Frames.Drain(actor);
            World.Kernel.Processors.Unbind(actor);
        }

        Vm.Destroy(Host);
        FrameAudit audit = World.Kernel.Audit(isAfterTeardown: true);
        Assert.Empty(audit.Disagreements);
        Assert.Empty(World.Machine.Ledger.Leaks);
        Assert.Empty(World.Machine.Findings.All);
    }

    private Root Find(bool isMirror)
    {
        foreach (Root root in Vm.Mmu.Roots)
        {
            if (root.IsMirror == isMirror && !root.PeekRole().IsInvalid)
                return root;
        }

        throw new InvalidOperationException("no such root");
    }
}
