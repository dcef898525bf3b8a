using Tdp.Harness.Invariants;

namespace Tdp.Harness.Scenarios;

/// <summary>
/// A TD under stress: performs the steps of a stress program, answers the guests' exits as a user-space VMM would, and judges each host operation when it has returned.
/// </summary>
/// <remarks>
/// A judgement is exact only while nobody undoes what it is about. So operations that zap private memory hold <c>stress-gate</c> for reading and a judged operation holds it for writing; one
/// operation in four is judged, the others run free of each other.
/// </remarks>
public sealed class StressWorld : IStressTarget
{
    private readonly TdWorld _world;
    private readonly StressLayout _layout;
    private readonly StressGuest[] _guests;
    // One operation of a host thread in so many looks at all trees: about one in a thousand of all operations.
    private const int SampleEvery = 128;
    private readonly RwLock _gate;
    private readonly Mutex _spareLock;
    private readonly BusyInjection? _busy;
    private readonly VmReferees _referees;
    private readonly OperationReferee _operations;
    private readonly Sweep[] _samples;
    private readonly int[] _hostOps;
    private readonly int _vcpus;
    private bool _hasSpare = true;
    private bool _isLogged;
    private long _tablesFreed;
    private long _accesses;

    /// <summary>Builds the world.</summary>
    /// <param name="vcpus">How many vCPUs.</param>
    /// <param name="hosts">How many host threads.</param>
    /// <param name="pages">Pages of the main slot.</param>
    /// <param name="seed">The master seed.</param>
    /// <param name="tlbMode">TLB retention.</param>
    /// <param name="busyPerMillion">So many of a million calls of the module that may answer BUSY do so without a reason.</param>
    public StressWorld(int vcpus, int hosts, int pages, ulong seed, TlbMode tlbMode = TlbMode.Precise, int busyPerMillion = 0)
    {
        _vcpus = vcpus;
        _layout = StressLayout.Of(pages);
        _world = new TdWorld(_layout, vcpus, hosts, seed, tlbMode);
        _gate = new RwLock(_world.Machine.Actors, "stress-gate");
        _spareLock = new Mutex("stress-spare");
        _guests = new StressGuest[vcpus];
        for (int i = 0; i < vcpus; i++)
        {
            _guests[i] = new StressGuest(_world.Machine, _layout, i);
        }

        _referees = VmReferees.Attach(_world.Vm);
        _operations = _referees.Operations;
        _samples = new Sweep[vcpus + hosts];
        _hostOps = new int[vcpus + hosts];
        for (int i = 0; i < _samples.Length; i++)
        {
            _samples[i] = new Sweep(Checked);
        }

        if (busyPerMillion > 0)
        {
            _busy = new BusyInjection(_world.Vm, seed, busyPerMillion);
            _world.Module.BusyInjector = _busy;
        }
    }

    /// <inheritdoc/>
    public int Vcpus => _vcpus;

    /// <inheritdoc/>
    public int Threads => _world.Threads.Count;

    /// <inheritdoc/>
    public int Pages => _layout.Pages;

    /// <inheritdoc/>
    public FindingLog Findings => _world.Machine.Findings;

    /// <summary>The machine, its host and the TD.</summary>
    public TdWorld World => _world;

    /// <summary>The TD as its checkers see it, with what they have judged.</summary>
    public CheckedVm Checked => _referees.Vm;

    /// <summary>The guest side of each vCPU, for its counts.</summary>
    public IReadOnlyList<StressGuest> Guests => _guests;

    /// <summary>BUSY answers injected so far.</summary>
    public long InjectedBusy => _busy?.Injected ?? 0;

    /// <summary>What became of the frames; after <see cref="TearDown"/>.</summary>
    public FrameAudit? Frames { get; private set; }

    /// <inheritdoc/>
    public Actor ActorOf(int thread) => _world.Threads[thread];

    /// <inheritdoc/>
    public void Perform(int thread, IReadOnlyList<StressOp> ops)
    {
        ArgumentNullException.ThrowIfNull(ops);
        Actor actor = _world.Threads[thread];
        if (thread < _vcpus)
        {
            _guests[thread].Load(ops);
            RunGuest(actor, _world.Vm.VcpuOf(thread), _guests[thread]);
            return;
        }

        foreach (StressOp op in ops)
        {
            if (_world.Vm.IsDead)
            {
                return;
            }

            PerformHost(actor, op);
            if (++_hostOps[thread] % SampleEvery == 0)
            {
                _samples[thread].Sample(actor);
            }
        }
    }

    /// <inheritdoc/>
    public void CheckAtRest()
    {
        _referees.AtRest(_world.Director);

        // The MMU looks at every table itself when it frees it: nothing present may be in it (I46, I47).
        long freed = _world.Vm.Mmu.Statistics[MmuCounter.TablesRemoved];
        Checked.Verdicts.Count(_world.Director, WalkersAndMemory.I46, freed - _tablesFreed);
        Checked.Verdicts.Count(_world.Director, WalkersAndMemory.I47, freed - _tablesFreed);
        _tablesFreed = freed;

        // Each access has compared the frame's generation with the translation's, and the content with what may be there (I57, I82).
        long accesses = 0;
        foreach (StressGuest guest in _guests)
        {
            accesses += guest.Accesses;
        }

        Checked.Verdicts.Count(_world.Director, FaultRules.I57, accesses - _accesses);
        Checked.Verdicts.Count(_world.Director, AddedRules.I82, accesses - _accesses);
        _accesses = accesses;
    }

    /// <inheritdoc/>
    public void Watch(bool isStuck)
    {
        _referees.Watch.Judge(isStuck);
        _referees.Watch.Remember();
    }

    /// <inheritdoc/>
    public void TearDown()
    {
        _referees.Detach();
        _world.Module.BusyInjector = null;
        _world.DestroyVm();
        Frames = _world.Kernel.Audit(isAfterTeardown: true);
        _referees.AfterTeardown(Frames, _world.Kernel);
    }

    /// <inheritdoc/>
    public void Dispose() => _world.Dispose();

    private void RunGuest(Actor actor, Vcpu vcpu, StressGuest guest)
    {
        while (!guest.IsDone)
        {
            bool wasDead = _world.Vm.IsDead;
            long exits = vcpu.Statistics.Exits;
            Errno errno = vcpu.Run(actor, guest);
            if (wasDead)
            {
                Checked.Verdicts.Judge(actor, LifeCycle.I73, VcpuEntryView.Of(Checked, vcpu, isEntering: vcpu.Statistics.Exits != exits, wasVmDead: true));
            }

            switch (vcpu.RunState.Exit)
            {
                case UserExit.ScriptEnd when errno == Errno.None:
                    break;
                case UserExit.Hypercall when errno == Errno.None:
                    Convert(actor, vcpu.RunState.Gpa, vcpu.RunState.Length << 12, (vcpu.RunState.Flags & 0x10) != 0);
                    vcpu.RunState.Result = 0;
                    break;
                case UserExit.None when errno == Errno.EINTR:
                    // A host thread has sent a signal: it is taken here, and the vCPU goes on where it was.
                    vcpu.ClearSignal();
                    break;
                case UserExit.MemoryFault when errno is Errno.EFAULT or Errno.None:
                    Convert(actor, vcpu.RunState.Gpa, vcpu.RunState.Length, (vcpu.RunState.Flags & MemoryAttributes.Private) != 0);
                    break;
                default:
                    if (!_world.Vm.IsDead)
                    {
                        Findings.Add("I81", $"vCPU {vcpu.Id}: KVM_RUN answered {errno}, exit {vcpu.RunState.Exit} {vcpu.RunState.Message}");
                    }

                    return;
            }
        }
    }

    // Conversions by the guest, by its faults and by host threads all come this way.
    private void Convert(Actor actor, ulong gpa, ulong bytes, bool toPrivate)
    {
        GfnRange range = GfnRange.Of(new Gfn(gpa >> 12), bytes >> 12);
        if (!IsJudged(range.Start))
        {
            _gate.EnterRead(actor);
            _world.Vm.Memory.SetAttributes(actor, gpa, bytes, toPrivate ? MemoryAttributes.Private : 0);
            _gate.ExitRead(actor);
            return;
        }

        _gate.EnterWrite(actor);
        GfnRange around = new(new Gfn(range.Start.Value - 8), range.End + 8);
        IReadOnlyList<EntryView> before = Outside(_operations.Leaves(actor, around, Alias.Private), range);
        _world.Vm.Memory.SetAttributes(actor, gpa, bytes, toPrivate ? MemoryAttributes.Private : 0);
        if (!_world.Vm.IsDead)
        {
            _operations.Converted(actor, range, toPrivate);
            _operations.Untouched(FaultRules.I59, actor, $"the conversion of {range}", before, around, Alias.Private);
        }

        _gate.ExitWrite(actor);
    }

    private void PerformHost(Actor actor, StressOp op)
    {
        GfnRange range = GfnRange.Of(_layout.First + (ulong)op.Page, (ulong)op.Count);
        long yields = _world.Vm.Mmu.Statistics.Of(actor, MmuCounter.Yields);
        switch (op.Step)
        {
            case StressStep.ConvertShared:
            case StressStep.ConvertPrivate:
                Convert(actor, range.Start.Value << 12, range.Pages << 12, op.Step is StressStep.ConvertPrivate);
                break;
            case StressStep.PunchHole:
                PunchHole(actor, op, range);
                break;
            case StressStep.Notify:
                Judged(FaultRules.I60, actor, range, "an MMU notifier", () => Notify(actor, op, range));
                break;
            case StressStep.FastZap:
                Judged(RootRules.I44, actor, range, "a fast zap", () => FastZap(actor));
                break;
            case StressStep.Age:
                Judged(RootRules.I44, actor, range, "aging", () => _world.Vm.Mmu.Age(actor, range, AliasFilter.Shared));
                break;
            case StressStep.PreFault:
                PreFault(actor, op, range);
                break;
            case StressStep.Interrupt:
                _world.Machine.Processors[op.Page % _vcpus].PendingInterrupt.Write(0x20 + (op.Count & 0x1F));
                break;
            case StressStep.TestAge:
                Judged(RootRules.I44, actor, range, "looking at ages", () => _world.Vm.Mmu.TestAge(actor, range, AliasFilter.Shared));
                break;
            case StressStep.FlipLog:
                FlipLog(actor);
                break;
            case StressStep.Harvest:
                Harvest(actor);
                break;
            case StressStep.Signal:
                _world.Vm.VcpuOf(op.Page % _vcpus).Signal(actor);
                break;
            default:
                FlipSlot(actor);
                break;
        }

        if (op.Step is StressStep.ConvertShared or StressStep.ConvertPrivate or StressStep.PunchHole or StressStep.Notify)
        {
            // A notifier step walks twice: for the notice itself, and for the host's own change that follows.
            _operations.Yielded(actor, range, 2, _world.Vm.Mmu.Statistics.Of(actor, MmuCounter.Yields) - yields);
        }
    }

    private void PunchHole(Actor actor, StressOp op, GfnRange range)
    {
        if (!IsJudged(range.Start))
        {
            _gate.EnterRead(actor);
            _world.File.PunchHole(actor, (ulong)op.Page, (ulong)op.Count);
            _gate.ExitRead(actor);
            return;
        }

        _gate.EnterWrite(actor);
        _world.File.PunchHole(actor, (ulong)op.Page, (ulong)op.Count);
        if (!_world.Vm.IsDead && Checked.SlotOf(range.Start) is { } slot)
        {
            _operations.HolePunched(actor, slot, range);
        }

        _gate.ExitWrite(actor);
    }

    private void FastZap(Actor actor)
    {
        IReadOnlyList<Root> before = _operations.RootsToEmpty();
        _world.Vm.Memory.ZapAllFast(actor);
        if (!_world.Vm.IsDead)
        {
            _operations.FastZapped(actor, before);
        }
    }

    private void PreFault(Actor actor, StressOp op, GfnRange range)
    {
        ulong gpa = range.Start.Value << 12;
        ulong size = range.Pages << 12;
        Errno errno = _world.Vm.Memory.PreFault(actor, _world.Vm.VcpuOf(op.Page % _vcpus), ref gpa, ref size);
        if (errno is not (Errno.None or Errno.EAGAIN or Errno.EFAULT or Errno.EINTR) && !_world.Vm.IsDead)
        {
            Findings.Add("I81", $"pre-faulting {range} answered {errno}");
        }
    }

    // Operations that must leave private memory alone (I44, I60).
    private void Judged(Invariant<Aftermath> rule, Actor actor, GfnRange range, string name, Action operation)
    {
        if (!IsJudged(range.Start))
        {
            operation();
            return;
        }

        _gate.EnterWrite(actor);
        IReadOnlyList<EntryView> before = _operations.Leaves(actor, range, Alias.Private);
        operation();
        if (!_world.Vm.IsDead)
        {
            _operations.Untouched(rule, actor, name, before, range, Alias.Private);
        }

        _gate.ExitWrite(actor);
    }

    private void Notify(Actor actor, StressOp op, GfnRange range)
    {
        ulong address = _world.HostAddress + ((ulong)op.Page << 12);
        ulong end = address + ((ulong)op.Count << 12);

        // Between start and end no fault may install a leaf, so the judgement is exact however many others run.
        _world.Vm.Notifier.InvalidateRangeStart(actor, address, end);
        _operations.Emptied(FaultRules.I56, actor, $"the start of an invalidation of {range}", range, Alias.Shared);
        _world.Vm.Notifier.InvalidateRangeEnd(actor, address, end);
        if ((op.Page & 1) == 0)
        {
            _world.Vm.UserMemory.Migrate(actor, address, (ulong)op.Count);
        }
        else
        {
            _world.Vm.UserMemory.Discard(actor, address, (ulong)op.Count);
        }
    }

    private void FlipSlot(Actor actor)
    {
        _spareLock.Enter(actor);
        Errno errno = _world.Vm.Memory.SetUserMemoryRegion(actor, _hasSpare ? _world.Spare with { MemorySize = 0 } : _world.Spare);
        if (errno == Errno.None)
        {
            _hasSpare = !_hasSpare;
            _isLogged = false;
        }
        else if (!_world.Vm.IsDead)
        {
            Findings.Add("I81", $"{(_hasSpare ? "deleting" : "creating")} the spare slot answered {errno}");
        }

        if (!_hasSpare)
        {
            GfnRange range = GfnRange.Of(_layout.SpareFirst, (ulong)_layout.SparePages);
            foreach (Alias alias in (ReadOnlySpan<Alias>)[Alias.Private, Alias.Shared])
            {
                _operations.Emptied(FaultRules.I61, actor, "the deletion of the spare slot", range, alias);
            }
        }

        _spareLock.Exit(actor);
    }

    // Dirty logging of the spare slot, which has no private memory: the mirror must see nothing of it (I44).
    private void FlipLog(Actor actor)
    {
        _spareLock.Enter(actor);
        if (_hasSpare)
        {
            MemslotFlags flags = _isLogged ? MemslotFlags.None : MemslotFlags.LogDirtyPages;
            Errno errno = _world.Vm.Memory.SetUserMemoryRegion(actor, _world.Spare with { Flags = flags });
            if (errno == Errno.None)
            {
                _isLogged = !_isLogged;
            }
            else if (!_world.Vm.IsDead)
            {
                Findings.Add("I81", $"switching the dirty log of the spare slot answered {errno}");
            }
        }

        _spareLock.Exit(actor);
    }

    private void Harvest(Actor actor)
    {
        _spareLock.Enter(actor);
        Span<ulong> words = stackalloc ulong[(_layout.SparePages + 63) / 64];
        Errno errno = _world.Vm.DirtyLog.Get(actor, _world.Spare.Id, words);
        if (errno != (_hasSpare && _isLogged ? Errno.None : Errno.ENOENT) && !_world.Vm.IsDead)
        {
            Findings.Add("I81", $"harvesting the dirty log of the spare slot answered {errno}; it is {(_hasSpare ? _isLogged ? "logged" : "not logged" : "absent")}");
        }

        _spareLock.Exit(actor);
    }

    private static List<EntryView> Outside(IReadOnlyList<EntryView> entries, GfnRange range)
    {
        List<EntryView> outside = [];
        foreach (EntryView entry in entries)
        {
            if (!range.Contains(entry.Gfn))
            {
                outside.Add(entry);
            }
        }

        return outside;
    }

    // A quarter of the ranges, always the same ones: the others meet each other without a gate.
    private static bool IsJudged(Gfn first) => (first.Value & 3) == 1;
}
