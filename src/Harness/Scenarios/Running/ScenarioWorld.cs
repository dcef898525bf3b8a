using Tdp.Harness.Invariants;

namespace Tdp.Harness.Scenarios;

/// <summary>
/// Executes one scenario any number of times: <see cref="Setup"/> makes the VMs and does the setup, the caller runs <see cref="BodyOf"/> of every actor (on real threads, or under a scheduler),
/// <see cref="Finish"/> judges, ends the VMs and leaves the host as it was. The host is booted once; what an execution costs besides its steps is the life of its VMs.
/// </summary>
/// <remarks>
/// Setup and Finish are called by one thread, with no actor running and no scheduler installed. Nothing is ambient: two worlds share nothing. Each execution makes its VMs anew under the
/// same numbers, and its actors name their frames anew, so names, seeds and structural identities are the same every time.
/// </remarks>
public sealed partial class ScenarioWorld : IDisposable
{
    private const int SpareProcessors = 2;
    private readonly ulong _seed;
    private readonly List<ScenarioVmState> _vms = [];
    private readonly List<Actor> _actors = [];
    private readonly Actor[] _bodies;
    private readonly bool _signalsSteps;
    private HostWorld _host;
    private ScenarioHistory _history;
    private ScenarioBaseline _baseline = ScenarioBaseline.None;
    private SharedCell<int>[] _ended = [];
    private WaitFor _stepEnded = new("scenario-step");
    private bool _isSetUp;

    /// <summary>Boots the host of a scenario.</summary>
    /// <param name="scenario">The scenario.</param>
    /// <param name="seed">The master seed.</param>
    /// <exception cref="HostSetupException">The host cannot be booted.</exception>
    public ScenarioWorld(Scenario scenario, ulong seed = 1)
    {
        ArgumentNullException.ThrowIfNull(scenario);
        Scenario = scenario;
        _seed = seed;
        _bodies = new Actor[scenario.Actors.Count];
        _history = new ScenarioHistory(scenario);
        foreach (ScenarioActor actor in scenario.Actors)
        {
            foreach (ScenarioStep step in actor.Steps)
            {
                _signalsSteps |= step.Kind is StepKind.Await or StepKind.Stay;
            }
        }

        _host = Boot();
    }

    /// <summary>The scenario.</summary>
    public Scenario Scenario { get; }

    /// <summary>The machine of the current execution.</summary>
    public Machine Machine => _host.Machine;

    /// <summary>Its host.</summary>
    public HostKernel Kernel => _host.Kernel;

    /// <summary>Its module.</summary>
    public TdxModule Module => _host.Module!;

    /// <summary>Actors of the scenario, in its order.</summary>
    public int ActorCount => _bodies.Length;

    /// <summary>What the steps ended with, and in which order they began and ended.</summary>
    public ScenarioHistory History => _history;

    /// <summary>The VMs of the current execution, by number from 0.</summary>
    public Vm VmOf(int index) => _vms[index].Vm;

    /// <summary>The actor of a scenario's actor. It stays the same over all executions on one host; after a broken or abandoned one there is another.</summary>
    public Actor ActorOf(int index) => _bodies[index];

    /// <summary>What an actor does. Runs as that actor, once per execution.</summary>
    public Action<Actor> BodyOf(int index) => actor => Perform(index, actor);

    /// <summary>One step of an actor, as that actor: for a caller that runs the steps of <see cref="BodyOf"/> one by one.</summary>
    /// <param name="actor">Which actor.</param>
    /// <param name="step">Which of its steps, from 0.</param>
    /// <param name="runner">The actor itself.</param>
    public StepResult Perform(int actor, int step, Actor runner)
    {
        ScenarioActor declared = Scenario.Actors[actor];
        _history.Begun[actor][step] = _history.Now();
        StepResult result = Do(declared.Steps[step], runner, declared.Vcpu);
        _history.Results[actor][step] = result;
        _history.Ended[actor][step] = _history.Now();
        SignalStep(actor, step + 1 == declared.Steps.Count ? int.MaxValue : step + 1);
        return result;
    }

    /// <summary>Makes the VMs and does the setup.</summary>
    /// <exception cref="WorldException">The scenario's memory or VMs cannot be made.</exception>
    public void Setup()
    {
        if (_isSetUp)
        {
            throw new InvalidOperationException("the last execution was not finished");
        }

        _isSetUp = true;
        _history = new ScenarioHistory(Scenario);
        _stepEnded = new WaitFor("scenario-step");
        _ended = new SharedCell<int>[_bodies.Length];
        for (int i = 0; i < _ended.Length; i++)
        {
            _ended[i] = new SharedCell<int>("scenario-steps", (ulong)i);
        }

        MakeActors();
        for (int i = 0; i < Scenario.Vms.Count; i++)
        {
            MakeVm(i);
        }

        // A TD needs its vCPUs' processors for itself once: its key is configured on every package.
        for (int i = 0; i < _actors.Count; i++)
        {
            Place(_actors[i], i);
        }

        for (int i = 0; i < Scenario.Vms.Count; i++)
        {
            MakeVcpus(i);
        }

        Watch();
        for (int i = 0; i < Scenario.Init.Count; i++)
        {
            _history.Init[i] = Perform(Scenario.Init[i]);
        }

        _baseline = ScenarioBaseline.Take(this);
        if (Scenario.Busy.Count > 0)
        {
            Module.BusyInjector = new ScenarioBusyInjector(Scenario.Busy, Machine.Processors.Count, _seed, IsLockedOut);
        }
    }

    /// <summary>Judges the execution, ends its VMs and judges what is left. Every actor has ended.</summary>
    /// <param name="audits">Also look at every frame of the machine afterwards (a millisecond or more).</param>
    public ScenarioVerdict Finish(bool audits = true)
    {
        if (!_isSetUp)
        {
            throw new InvalidOperationException("there is no execution to finish");
        }

        Module.BusyInjector = null;
        ScenarioJudge judge = new(this, _baseline);
        for (int i = 0; i < Scenario.After.Count; i++)
        {
            _history.After[i] = Perform(Scenario.After[i]);
        }

        Module.Observer = null;
        judge.AtRest();
        judge.Requirements();
        EndVms();
        judge.AfterTeardown(audits);
        _isSetUp = false;
        ScenarioVerdict verdict = judge.Verdict();

        // What was found or leaked would be found again: the next execution starts on a new host.
        if (Machine.Findings.Count > 0 || Machine.Ledger.Leaks.Count > 0)
        {
            Reboot();
        }

        return verdict;
    }

    /// <summary>Gives up an execution that cannot be finished, because its actors were stopped in the middle: the next one starts on a new host, with new actors.</summary>
    public void Abandon()
    {
        _isSetUp = false;
        Reboot();
    }

    /// <summary>Runs one execution on real threads and judges it.</summary>
    /// <param name="audits">As for <see cref="Finish"/>.</param>
    public ScenarioVerdict Execute(bool audits = true)
    {
        Setup();
        for (int i = 0; i < _bodies.Length; i++)
        {
            _bodies[i].Start(BodyOf(i));
        }

        for (int i = 0; i < _bodies.Length; i++)
        {
            _bodies[i].Join();
        }

        return Finish(audits);
    }

    /// <summary>Gives the machine's memory back.</summary>
    public void Dispose() => _host.Dispose();

    internal ScenarioVmState StateOf(int vm) => _vms[vm - 1];

    internal IReadOnlyList<ScenarioVmState> States => _vms;

    private bool IsLockedOut()
    {
        foreach (ScenarioVmState state in _vms)
        {
            if (state.Vm.WaitForSeptZap.Peek())
            {
                return true;
            }
        }

        return false;
    }

    private void Reboot()
    {
        _host.Dispose();
        _actors.Clear();
        _vms.Clear();
        _host = Boot();
    }

    private HostWorld Boot()
    {
        int hosts = 0;
        foreach (ScenarioActor actor in Scenario.Actors)
        {
            hosts += actor.Vcpu < 0 ? 1 : 0;
        }

        ulong pages = 0;
        foreach (ScenarioSlot slot in Scenario.Slots)
        {
            pages += slot.Range.Pages * (slot.HasFile ? 3UL : 2);
        }

        return HostWorld.Boot(new HostWorldOptions
        {
            Machine = MachineDescription.Default(Scenario.VcpuCount + hosts + SpareProcessors, pages << 12),
            Seed = _seed,
            TlbMode = Scenario.TlbMode,
            Profile = Scenario.Profile,
        });
    }

    // vCPUs first, so that each stands on the processor of its number; then the threads of the host. They stay the same as long as the host does.
    private void MakeActors()
    {
        _vms.Clear();
        _host.Actor.RestartNames();
        if (_actors.Count > 0)
        {
            for (int i = 0; i < _actors.Count; i++)
            {
                _actors[i].RestartNames();
            }

            return;
        }

        for (int vm = 1; vm <= Scenario.Vms.Count; vm++)
        {
            for (int vcpu = 0; vcpu < Scenario.Vms[vm - 1].Vcpus; vcpu++)
            {
                int index = IndexOf(vm, vcpu);
                Actor actor = Make(index < 0 ? $"vm{vm}.vcpu{vcpu}" : Scenario.Actors[index].Name);
                if (index >= 0)
                {
                    _bodies[index] = actor;
                }
            }
        }

        for (int i = 0; i < _bodies.Length; i++)
        {
            if (Scenario.Actors[i].Vcpu < 0)
            {
                _bodies[i] = Make(Scenario.Actors[i].Name);
            }
        }
    }

    private int IndexOf(int vm, int vcpu)
    {
        for (int i = 0; i < Scenario.Actors.Count; i++)
        {
            if (Scenario.Actors[i].Vcpu == vcpu && Scenario.Actors[i].Vm == vm)
            {
                return i;
            }
        }

        return -1;
    }

    private Actor Make(string name)
    {
        Actor actor = Machine.Actors.Create(name);
        _actors.Add(actor);
        return actor;
    }

    private void Place(Actor actor, int processor)
    {
        Kernel.Processors.Bind(actor, processor);
        Machine.Processors[processor].Tlb.FlushAll();
        Machine.Processors[processor].PendingInterrupt.Write(-1);
    }

    private void MakeVm(int index)
    {
        ScenarioVm declared = Scenario.Vms[index];
        Actor director = _host.Actor;
        TdWorld.Require(
            Vm.Create(director, Kernel, new VmOptions
            {
                Kind = declared.Kind,
                IsFiveLevel = declared.IsFiveLevel,
                NxHugePages = declared.HasNx,
                AdEnabled = !declared.HasNoAd,
                SlotZapAllQuirk = !declared.HasNoQuirk,
                PageModificationLog = !declared.HasNoPml,
                EagerPageSplit = !declared.HasNoEagerSplit,
            }, out Vm? vm),
            "creating the VM");
        int firstProcessor = 0;
        for (int i = 0; i < index; i++)
        {
            firstProcessor += Scenario.Vms[i].Vcpus;
        }

        ScenarioVmState state = new(vm!, firstProcessor);
        _vms.Add(state);
        if (vm!.Td is { } td)
        {
            ulong? attributes = declared.SeptVeDisable is { } disable ? disable ? TdConfiguration.SeptVeDisable : 0UL : null;
            TdWorld.Require(td.Initialize(director, new TdConfiguration { MaxVcpus = Scenario.MaxVcpus, Attributes = attributes }), "initializing the TD");
        }

        MapMemory(state, index + 1);
    }

    private void MakeVcpus(int index)
    {
        ScenarioVm declared = Scenario.Vms[index];
        ScenarioVmState state = _vms[index];
        Vm vm = state.Vm;
        int firstProcessor = state.FirstProcessor;
        for (int i = 0; i < declared.Vcpus; i++)
        {
            Actor actor = _actors[firstProcessor + i];
            TdWorld.Require(vm.CreateVcpu(actor, out Vcpu? vcpu), "creating a vCPU");
            TdWorld.Require(vm.IsTd ? vcpu!.Initialize(actor, 0, Direct64.ApplyScript) : Errno.None, "initializing a vCPU");
            if (vcpu!.Vmcs is { } vmcs)
            {
                Direct64.ApplyScript(vmcs.State);
            }

            state.VcpuActors.Add(actor);
            int body = IndexOf(index + 1, i);
            state.Guests.Add(new ScenarioGuest(Machine, actor, i, OthersHaveEnded, () => SignalInside(body)));
        }

        if (vm.Td is { } finalized && !declared.IsUnfinalized)
        {
            TdWorld.Require(finalized.Complete(_host.Actor), "finalizing the TD");
        }
    }

    private void MapMemory(ScenarioVmState state, int number)
    {
        Actor director = _host.Actor;
        foreach (ScenarioSlot slot in Scenario.Slots)
        {
            if (slot.Vm != number)
            {
                continue;
            }

            ulong address = state.Vm.UserMemory.Map(director, slot.Range.Pages, slot.IsHuge);
            TdWorld.Require(address == 0 ? Errno.ENOMEM : Errno.None, $"mapping the host memory of slot {slot.Id}");
            GuestMemfd? file = null;
            if (slot.HasFile)
            {
                TdWorld.Require(GuestMemfd.Create(director, state.Vm, slot.Range.Pages << 12, out file), $"creating the guest_memfd of slot {slot.Id}");
            }

            ScenarioVmState.SlotState memory = new(slot, address, file);
            state.Add(memory);
            if (!slot.IsAbsent)
            {
                TdWorld.Require(state.Vm.Memory.SetUserMemoryRegion(director, memory.Region), $"creating slot {slot.Id}");
            }

            if (slot.Attribute is Alias.Private && state.Vm.IsTd)
            {
                TdWorld.Require(state.Vm.Memory.SetAttributes(director, slot.Range.Start.Value << 12, slot.Range.Pages << 12, MemoryAttributes.Private), $"making slot {slot.Id} private");
            }
        }
    }

    // The referee judges the calls of one TD; raw calls go past the host's own rules on purpose.
    private void Watch()
    {
        ScenarioVmState? only = null;
        int tds = 0;
        foreach (ScenarioVmState state in _vms)
        {
            if (state.Vm.IsTd)
            {
                only = state;
                tds++;
            }
        }

        if (tds == 1 && !HasRawCalls())
        {
            Module.Observer = new SeamcallReferee(only!.Vm);
        }
    }

    private bool HasRawCalls()
    {
        bool has = false;
        foreach (ScenarioActor actor in Scenario.Actors)
        {
            foreach (ScenarioStep step in actor.Steps)
            {
                has |= step.Kind is StepKind.Seamcall;
            }
        }

        foreach (ScenarioSingle single in (IEnumerable<ScenarioSingle>)[.. Scenario.Init, .. Scenario.After])
        {
            has |= single.Step.Kind is StepKind.Seamcall;
        }

        return has;
    }

    private void EndVms()
    {
        foreach (Actor actor in _actors)
        {
            Kernel.Processors.Unbind(actor);
        }

        foreach (ScenarioVmState state in _vms)
        {
            state.Destroy(_host.Actor);
        }

        Kernel.Frames.DrainAll();
    }
}
