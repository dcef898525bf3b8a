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
    private readonly RwLock _gate;
    private readonly Mutex _spareLock;
    private readonly BusyInjection? _busy;
    private readonly int _vcpus;
    private bool _hasSpare = true;

    /// <summary>Builds the world.</summary>
    /// <param name="vcpus">How many vCPUs.</param>
    /// <param name="hosts">How many host threads.</param>
    /// <param name="pages">Pages of the main slot.</param>
    /// <param name="seed">The master seed.</param>
    /// <param name="tlbMode">TLB retention.</param>
    /// <param name="busyOneIn">One in so many calls of the module that may answer BUSY does so without a reason; 0 for none.</param>
    public StressWorld(int vcpus, int hosts, int pages, ulong seed, TlbMode tlbMode = TlbMode.Precise, int busyOneIn = 0)
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

        _world.Module.Observer = new SeamcallReferee(_world.Vm);
        if (busyOneIn > 0)
        {
            _busy = new BusyInjection(_world.Vm, seed, busyOneIn);
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
        }
    }

    /// <inheritdoc/>
    public void CheckAtRest()
    {
        AtRest.Check(_world.Vm);
        if (_world.Vm.IsDead && Findings.Count == 0)
        {
            Findings.Add("I81", $"the VM died: {_world.Vm.Mmu.Death.Reason}");
        }
    }

    /// <inheritdoc/>
    public void TearDown()
    {
        _world.Module.Observer = null;
        _world.Module.BusyInjector = null;
        _world.DestroyVm();
        Frames = _world.Kernel.Audit(isAfterTeardown: true);
        foreach (string disagreement in Frames.Disagreements)
        {
            Findings.Add("I71", disagreement);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _world.Dispose();

    private void RunGuest(Actor actor, Vcpu vcpu, StressGuest guest)
    {
        while (!guest.IsDone)
        {
            Errno errno = vcpu.Run(actor, guest);
            switch (vcpu.RunState.Exit)
            {
                case UserExit.ScriptEnd when errno == Errno.None:
                    break;
                case UserExit.Hypercall when errno == Errno.None:
                    Convert(actor, vcpu.RunState.Gpa, vcpu.RunState.Length << 12, (vcpu.RunState.Flags & 0x10) != 0);
                    vcpu.RunState.Result = 0;
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
        List<TreeEntry> before = Outside(RangeProbe.Leaves(_world.Vm, actor, around, Alias.Private), range);
        _world.Vm.Memory.SetAttributes(actor, gpa, bytes, toPrivate ? MemoryAttributes.Private : 0);
        if (!_world.Vm.IsDead)
        {
            foreach (TreeEntry left in RangeProbe.Leaves(_world.Vm, actor, range, toPrivate ? Alias.Shared : Alias.Private))
            {
                Findings.Add("I58", $"{left} after {range} was converted to {(toPrivate ? "private" : "shared")}");
            }

            if (_world.Vm.Attributes is { } attributes && !attributes.IsAll(range, toPrivate))
            {
                Findings.Add("I58", $"the attributes of {range} are not all {(toPrivate ? "private" : "shared")}");
            }

            ExpectStill("I59", before, RangeProbe.Leaves(_world.Vm, actor, around, Alias.Private), $"the conversion of {range}");
        }

        _gate.ExitWrite(actor);
    }

    private void PerformHost(Actor actor, StressOp op)
    {
        GfnRange range = GfnRange.Of(_layout.First + (ulong)op.Page, (ulong)op.Count);
        switch (op.Step)
        {
            case StressStep.ConvertShared:
            case StressStep.ConvertPrivate:
                Convert(actor, range.Start.Value << 12, range.Pages << 12, op.Step is StressStep.ConvertPrivate);
                break;
            case StressStep.PunchHole:
                _gate.EnterRead(actor);
                _world.File.PunchHole(actor, (ulong)op.Page, (ulong)op.Count);
                _gate.ExitRead(actor);
                break;
            case StressStep.Notify:
                Judged(actor, range, "an MMU notifier", () => Notify(actor, op, range));
                break;
            case StressStep.FastZap:
                Judged(actor, range, "a fast zap", () => _world.Vm.Memory.ZapAllFast(actor));
                break;
            case StressStep.Age:
                Judged(actor, range, "aging", () => _world.Vm.Mmu.Age(actor, range, AliasFilter.Shared));
                break;
            case StressStep.PreFault:
                PreFault(actor, op, range);
                break;
            case StressStep.Interrupt:
                _world.Machine.Processors[op.Page % _vcpus].PendingInterrupt.Write(0x20 + (op.Count & 0x1F));
                break;
            default:
                FlipSlot(actor);
                break;
        }
    }

    private void PreFault(Actor actor, StressOp op, GfnRange range)
    {
        ulong gpa = range.Start.Value << 12;
        ulong size = range.Pages << 12;
        Errno errno = _world.Vm.Memory.PreFault(actor, _world.Vm.VcpuOf(op.Page % _vcpus), ref gpa, ref size);
        if (errno is not (Errno.None or Errno.EAGAIN or Errno.EFAULT) && !_world.Vm.IsDead)
        {
            Findings.Add("I81", $"pre-faulting {range} answered {errno}");
        }
    }

    // Operations that must leave private memory alone (I44, I60).
    private void Judged(Actor actor, GfnRange range, string name, Action operation)
    {
        if (!IsJudged(range.Start))
        {
            operation();
            return;
        }

        _gate.EnterWrite(actor);
        List<TreeEntry> before = RangeProbe.Leaves(_world.Vm, actor, range, Alias.Private);
        operation();
        if (!_world.Vm.IsDead)
        {
            ExpectStill(name is "an MMU notifier" ? "I60" : "I44", before, RangeProbe.Leaves(_world.Vm, actor, range, Alias.Private), name);
        }

        _gate.ExitWrite(actor);
    }

    private void Notify(Actor actor, StressOp op, GfnRange range)
    {
        ulong address = _world.HostAddress + ((ulong)op.Page << 12);
        ulong end = address + ((ulong)op.Count << 12);

        // Between start and end no fault may install a leaf, so the judgement is exact however many others run.
        _world.Vm.Notifier.InvalidateRangeStart(actor, address, end);
        foreach (TreeEntry left in RangeProbe.Leaves(_world.Vm, actor, range, Alias.Shared))
        {
            Findings.Add("I56", $"{left} after the invalidation of {range} had started");
        }

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
                foreach (TreeEntry left in RangeProbe.Leaves(_world.Vm, actor, range, alias))
                {
                    Findings.Add("I61", $"{left} after the slot was deleted");
                }
            }
        }

        _spareLock.Exit(actor);
    }

    private void ExpectStill(string rule, List<TreeEntry> before, List<TreeEntry> after, string operation)
    {
        foreach (TreeEntry entry in before)
        {
            if (!after.Exists(e => e.RawGfn == entry.RawGfn && e.Spte.Pfn == entry.Spte.Pfn))
            {
                Findings.Add(rule, $"{entry} is gone after {operation}");
            }
        }
    }

    private static List<TreeEntry> Outside(List<TreeEntry> entries, GfnRange range) => entries.FindAll(e => !range.Contains(new Gfn(e.RawGfn)));

    // A quarter of the ranges, always the same ones: the others meet each other without a gate.
    private static bool IsJudged(Gfn first) => (first.Value & 3) == 1;
}
