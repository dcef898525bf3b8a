using Tdp.Harness.Scenarios;

namespace Tdp.Harness.Workloads;

/// <summary>
/// Private faults of a TD: attribute and slot lookup, guest_memfd lookup, invalidation check, mirror entry frozen, TDH.MEM.PAGE.AUG with all checks and locks, entry thawed; then the guest's
/// TDG.MEM.PAGE.ACCEPT of each page, made from inside the TD in runs of 512 pages.
/// </summary>
public sealed class MirrorFaultIn : FaultInWorkload
{
    private const int AcceptRun = 512;
    private readonly TdWorld _world;
    private readonly Accepter[] _accepters;
    private readonly StressLayout _layout;

    /// <summary>Builds the TD and its memory.</summary>
    public MirrorFaultIn(int threads, long span, bool zeroing)
    {
        _layout = new StressLayout(new Gfn(0x40000), checked((int)span), new Gfn(0x40000 + (((ulong)span + 1023) & ~511UL)), 64);
        _world = new TdWorld(_layout, threads, 0, 1, zeroing: zeroing);
        for (ulong page = 0; page < (ulong)span; page++)
        {
            Require(_world.File.Lookup(_world.Director, page, out _), "populating the guest_memfd");
        }

        _accepters = new Accepter[threads];
        for (int i = 0; i < threads; i++)
        {
            _accepters[i] = new Accepter(_world.Module);
            _world.Vm.VcpuOf(i).Mmu.Actor = _world.Threads[i];
        }
    }

    /// <inheritdoc/>
    public override string Root => "mirror";

    /// <inheritdoc/>
    public override IReadOnlyList<Actor> Actors => _world.Threads;

    /// <inheritdoc/>
    public override long BookkeepingBytes
    {
        get
        {
            // A mirror table has a Secure EPT page behind it, and that page and every guest page have a PAMT entry of 16 bytes.
            MmuStatistics statistics = _world.Vm.Mmu.Statistics;
            long tables = statistics[MmuCounter.Tables] + 1;
            return (tables * (4096 + TableRecordBytes + 4096 + 16)) + (statistics.Pages(Level.K4) * 16);
        }
    }

    /// <inheritdoc/>
    public override FindingLog Findings => _world.Machine.Findings;

    /// <inheritdoc/>
    public override long FaultIn(Actor actor, int thread, ReadOnlySpan<uint> pages)
    {
        Vm vm = _world.Vm;
        TdpMmu mmu = vm.Mmu;
        Vcpu vcpu = vm.VcpuOf(thread);
        mmu.FreeObsoleteRoots(vcpu.Mmu);
        mmu.ReloadRoots(vcpu.Mmu);
        ulong first = _layout.First.Value;
        for (int start = 0; start < pages.Length; start += AcceptRun)
        {
            ReadOnlySpan<uint> run = pages.Slice(start, Math.Min(AcceptRun, pages.Length - start));
            TakeFaults(actor, vm, vcpu.Mmu, first, run);
            _accepters[thread].Load(run, first);
            Errno errno = vcpu.Run(actor, _accepters[thread]);
            if (errno != Errno.None || vcpu.RunState.Exit is not UserExit.ScriptEnd)
            {
                throw new InvalidOperationException($"the accepting guest ended with {errno}, {vcpu.RunState.Exit}");
            }
        }

        return pages.Length;
    }

    /// <inheritdoc/>
    public override void Reset()
    {
        // To shared and back: the leaves go, the pages stay in the file.
        ulong gpa = _layout.First.Value << 12;
        ulong bytes = (ulong)_layout.Pages << 12;
        Require(_world.Vm.Memory.SetAttributes(_world.Director, gpa, bytes, 0), "taking the pages out");
        Require(_world.Vm.Memory.SetAttributes(_world.Director, gpa, bytes, MemoryAttributes.Private), "making the memory private again");
    }

    /// <inheritdoc/>
    public override void Dispose() => _world.Dispose();

    // Called often, so that the JIT compiles it with what it learned, not in the middle of the first round.
    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static void TakeFaults(Actor actor, Vm vm, MmuVcpu vcpu, ulong first, ReadOnlySpan<uint> run)
    {
        TdpMmu mmu = vm.Mmu;
        foreach (uint page in run)
        {
            vm.Srcu.ReadEnter(actor);
            Handle(mmu, vcpu, new Gpa((first + page) << 12), PfErr.Write | PfErr.PrivateAccess);
            vm.Srcu.ReadExit(actor);
        }
    }

    /// <summary>A guest that accepts a run of pages and stops.</summary>
    private sealed class Accepter(TdxModule module) : IVmxEngine
    {
        private const ulong StatusClass = 0xFFFF_FFFF_0000_0000;
        private const ulong AlreadyAccepted = 0x0000_0B0A_0000_0000;
        private const ulong OperandBusy = 0x8000_0200_0000_0000;
        private readonly ulong[] _operands = new ulong[AcceptRun];
        private int _count;
        private int _next;

        public void Load(ReadOnlySpan<uint> pages, ulong first)
        {
            for (int i = 0; i < pages.Length; i++)
            {
                _operands[i] = (first + pages[i]) << 12;
            }

            _count = pages.Length;
            _next = 0;
        }

        public ref VmExit Enter(LogicalProcessor lp, Vmcs vmcs)
        {
            while (_next < _count)
            {
                ulong status = module.GuestPageAccept(lp, _operands[_next]).Value;
                if ((status & StatusClass) == OperandBusy)
                {
                    // Another vCPU accepts the same page: as a guest does, try again.
                    continue;
                }

                if (status != 0 && (status & StatusClass) != AlreadyAccepted)
                {
                    throw new InvalidOperationException($"ACCEPT of 0x{_operands[_next]:x} answered 0x{status:x}");
                }

                _next++;
            }

            vmcs.Exit = new VmExit { Reason = ExitReason.SimulatorScriptEnd, InstructionLength = 1 };
            return ref vmcs.Exit;
        }
    }
}
