using Tdp.Harness.Invariants;
using Tdp.Host;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Recorded.Invariants;

/// <summary>A booted host with one VM under the hook, with all its referees: every event of whatever a test does is judged.</summary>
internal sealed class WatchedVm : IDisposable, IObserver
{
    private readonly EventReferee _events;
    private readonly List<GuestStep> _script = [];
    private bool _isJudging;

    private WatchedVm(HostWorld world, Vm vm)
    {
        World = world;
        Vm = vm;
        Referees = VmReferees.Attach(vm);
        _events = Referees.Observe(() => Running ?? world.Actor);
        Hook.Install(null, this);
    }

    public HostWorld World { get; }

    public Vm Vm { get; }

    public VmReferees Referees { get; }

    public Verdicts Verdicts => Referees.Vm.Verdicts;

    public Actor Actor => World.Actor;

    /// <summary>Who runs, if not the one who built the VM.</summary>
    public Actor? Running { get; set; }

    /// <summary>All events so far.</summary>
    public List<SyncEvent> Events { get; } = [];

    public GuestMemfd? File { get; private set; }

    public ulong Hva { get; private set; }

    public static WatchedVm Td(ulong pages = 1100)
    {
        HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(2, 32 << 20) });
        Ok(Vm.Create(world.Actor, world.Kernel, new VmOptions { Kind = VmKind.Td }, out Vm? vm));
        Ok(vm!.Td!.Initialize(world.Actor, new TdConfiguration { MaxVcpus = 1 }));
        Ok(vm.CreateVcpu(world.Actor, out Vcpu? vcpu));
        Ok(vcpu!.Initialize(world.Actor, 0, Direct64.ApplyScript));
        WatchedVm watched = new(world, vm);
        Ok(GuestMemfd.Create(world.Actor, vm, pages << 12, out GuestMemfd? file));
        watched.File = file;
        watched.Hva = vm.UserMemory.Map(world.Actor, pages, isHuge: true);
        Ok(vm.Memory.SetUserMemoryRegion(world.Actor, new UserMemoryRegion(0, MemslotFlags.GuestMemfd, 0, pages << 12, watched.Hva, file)));
        Ok(vm.Memory.SetAttributes(world.Actor, 0, pages << 12, MemoryAttributes.Private));
        Ok(vm.Td.InitMemoryRegion(world.Actor, 0, 2, true, static (page, bytes) => bytes.Fill((byte)page), out _));
        Ok(vm.Td.Complete(world.Actor));
        world.Kernel.Processors.Bind(world.Actor, 0);
        return watched;
    }

    public static WatchedVm Ordinary(ulong pages = 2048, bool isHuge = false, VmOptions? options = null)
    {
        HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(2, 32 << 20) });
        Ok(Vm.Create(world.Actor, world.Kernel, options ?? new VmOptions { Kind = VmKind.Default }, out Vm? vm));
        Ok(vm!.CreateVcpu(world.Actor, out _));
        WatchedVm watched = new(world, vm) { Hva = vm.UserMemory.Map(world.Actor, pages, isHuge) };
        Ok(vm.Memory.SetUserMemoryRegion(world.Actor, new UserMemoryRegion(0, MemslotFlags.None, 0, pages << 12, watched.Hva)));
        world.Kernel.Processors.Bind(world.Actor, 0);
        return watched;
    }

    public static void Ok(Errno errno) => Assert.Equal(Errno.None, errno);

    public void Occurred(in SyncEvent happened)
    {
        if (_isJudging)
        {
            Assert.Fail($"judging caused an event: {happened.Kind} {happened.Object} in {happened.Site}");
        }

        Events.Add(happened);
        _isJudging = true;
        _events.Occurred(happened);
        _isJudging = false;
    }

    /// <summary>Judges the events again, as they were; the VM has gone on since. For what judging costs.</summary>
    /// <returns>The first event that made it allocate, or null.</returns>
    public SyncEvent? JudgeAgain()
    {
        SyncEvent? allocating = null;
        _isJudging = true;
        for (int i = 0; i < Events.Count; i++)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            _events.Occurred(Events[i]);
            if (GC.GetAllocatedBytesForCurrentThread() != before)
            {
                allocating ??= Events[i];
            }
        }

        _isJudging = false;
        return allocating;
    }

    /// <summary>The guest goes on with more steps: its RIP is the number of the step.</summary>
    public void Run(params GuestStep[] steps)
    {
        _script.AddRange(steps);
        Ok(Vm.VcpuOf(0).Run(Actor, new ScriptedGuest(World.Machine, [.. _script])));
    }

    public ulong Shared(ulong gfn) => Vm.AliasBit.Apply(new Gfn(gfn), Alias.Shared).Value;

    public void Silent() => Assert.Empty(World.Machine.Findings.All);

    public long Times(string rule) => Verdicts.Times(Catalogue.Get(rule));

    /// <summary>The rules of a list that were never judged.</summary>
    public string[] Unjudged(string rules) => [.. rules.Split(' ').Where(r => Times(r) == 0)];

    public void Dispose()
    {
        Hook.Install(null, null);
        World.Dispose();
    }
}
