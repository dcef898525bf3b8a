namespace Tdp.Harness.Workloads;

/// <summary>Write faults on 4K pages of an ordinary VM: slot lookup, host page lookup, invalidation check, walk, leaf.</summary>
public sealed class DirectFaultIn : FaultInWorkload
{
    private const ulong FirstGfn = 0x40000;
    private readonly Machine _machine;
    private readonly Actor[] _actors;
    private readonly Actor _director;
    private readonly Vm _vm;

    /// <summary>Builds the VM and its memory.</summary>
    public DirectFaultIn(int threads, long span)
    {
        _machine = new Machine(MachineDescription.Default(threads, (ulong)span << 12));
        HostKernel kernel = new(_machine, null);
        _director = _machine.Actors.Create("director");
        kernel.Processors.Bind(_director);
        Require(Vm.Create(_director, kernel, new VmOptions { Kind = VmKind.Default }, out Vm? vm), "creating the VM");
        _vm = vm!;
        ulong address = _vm.UserMemory.Map(_director, (ulong)span);
        Require(_vm.Memory.SetUserMemoryRegion(_director, new UserMemoryRegion(0, MemslotFlags.None, FirstGfn << 12, (ulong)span << 12, address)), "creating the slot");
        for (ulong page = 0; page < (ulong)span; page++)
        {
            Require(_vm.UserMemory.TryResolve(_director, address + (page << 12), write: true, out _, out _, out _), "touching host memory");
        }

        _actors = new Actor[threads];
        for (int i = 0; i < threads; i++)
        {
            _actors[i] = _machine.Actors.Create($"vcpu{i}");
            kernel.Processors.Bind(_actors[i], i);
            Require(_vm.CreateVcpu(_actors[i], out Vcpu? vcpu), "creating a vCPU");
            vcpu!.Mmu.Actor = _actors[i];
        }
    }

    /// <inheritdoc/>
    public override string Root => "direct";

    /// <inheritdoc/>
    public override IReadOnlyList<Actor> Actors => _actors;

    /// <inheritdoc/>
    public override long BookkeepingBytes => (_vm.Mmu.Statistics[MmuCounter.Tables] + 1) * (4096 + TableRecordBytes);

    /// <inheritdoc/>
    public override FindingLog Findings => _machine.Findings;

    /// <inheritdoc/>
    public override long FaultIn(Actor actor, int thread, ReadOnlySpan<uint> pages)
    {
        TdpMmu mmu = _vm.Mmu;
        MmuVcpu vcpu = _vm.VcpuOf(thread).Mmu;
        mmu.FreeObsoleteRoots(vcpu);
        mmu.ReloadRoots(vcpu);
        foreach (uint page in pages)
        {
            // As in the run loop: a vCPU is inside SRCU whenever it is outside the guest, and each fault is one visit.
            _vm.Srcu.ReadEnter(actor);
            Handle(mmu, vcpu, new Gpa((FirstGfn + page) << 12), PfErr.Write);
            _vm.Srcu.ReadExit(actor);
        }

        return pages.Length;
    }

    /// <inheritdoc/>
    public override void Reset()
    {
        _vm.Memory.ZapAllFast(_director);
        _vm.Mmu.Rcu.Barrier(_director);
    }

    /// <inheritdoc/>
    public override void Dispose() => _machine.Dispose();
}
