namespace Tdp.Host;

/// <summary>
/// The user-space VMM: builds a VM through KVM's ioctls, starts one actor per vCPU, answers their exits, takes everything down again.
/// </summary>
/// <remarks>
/// Use: <see cref="Build"/>, <see cref="Run"/>, <see cref="TearDown"/>, in this order, from one driver that acts as <c>world.Actor</c>. Between Run and
/// TearDown the VM
/// stands still and can be inspected. Console and exit code are the only things that vCPUs share here.
/// </remarks>
public sealed partial class Vmm
{
    private const int RamSlot = 0;
    private readonly HostWorld _world;
    private readonly VmmOptions _options;
    private readonly VmmDevices _devices;
    private readonly List<IVmxEngine> _engines = [];
    private readonly SharedCell<ulong> _counts = new("vmm-vcpus");
    private readonly SharedCell<bool> _ended = new("vmm-ended");
    private ModuleCounts _before;
    private (long ToShared, long ToPrivate, long Pages) _conversionsBefore;
    private Vm? _vm;
    private ulong _hva;
    private ulong _startTicks;
    private RunOutcome _outcome = RunOutcome.Stopped;
    private string? _message;

    /// <summary>Makes a VMM on a booted host; nothing is built yet.</summary>
    public Vmm(HostWorld world, VmmOptions options)
    {
        _world = world;
        _options = options;
        _devices = new VmmDevices(options.Console);
        IsTd = options.Image is { } image ? image.Options.IsTd : options.Kind == VmKind.Td;
        Vcpus = options.Image?.Options.VcpuCount ?? options.Vcpus;
        MemoryBytes = options.Image?.Options.RamBytes ?? options.MemoryBytes;
    }

    /// <summary>TD or ordinary VM.</summary>
    public bool IsTd { get; }

    /// <summary>Number of vCPUs.</summary>
    public int Vcpus { get; }

    /// <summary>Bytes of guest memory.</summary>
    public ulong MemoryBytes { get; }

    /// <summary>The actor that does host-only work.</summary>
    public Actor Host => _world.Actor;

    /// <summary>The VM, after <see cref="Build"/>.</summary>
    public Vm Vm => _vm ?? throw new InvalidOperationException("The VM has not been built.");

    /// <summary>The guest_memfd behind the memory; null in an ordinary VM.</summary>
    public GuestMemfd? Memfd { get; private set; }

    /// <summary>Host virtual address of GPA 0.</summary>
    public ulong MemoryHva => _hva;

    /// <summary>The processors of the vCPUs, by number.</summary>
    public IReadOnlyList<IVmxEngine> Engines => _engines;

    /// <summary>How the guest ended, after <see cref="Run"/>.</summary>
    public RunOutcome Outcome => _outcome;

    /// <summary>Console, exit port, scratch register.</summary>
    public VmmDevices Devices => _devices;

    /// <summary>Builds machine, slots, vCPUs and image, and finalizes a TD.</summary>
    /// <exception cref="HostSetupException">An ioctl refused; the message names it.</exception>
    public void Build()
    {
        Actor actor = _world.Actor;
        HostKernel kernel = _world.Kernel;
        _before = ModuleCounts.Of(_world.Module);
        var options = new VmOptions { Kind = IsTd ? VmKind.Td : VmKind.Default, IsFiveLevel = _options.IsFiveLevel };
        Check("KVM_CREATE_VM", Vm.Create(actor, kernel, options, out _vm));
        Vm vm = Vm;
        if (vm.Td is { } td)
            Check("KVM_TDX_INIT_VM", td.Initialize(actor, _options.Td with { MaxVcpus = (ushort)Vcpus }));
        for (int i = 0; i < Vcpus; i++)
        {
            Check("KVM_CREATE_VCPU", vm.CreateVcpu(actor, out Vcpu? vcpu));
            vcpu!.ExitObserver = _options.ExitObserver;
            _engines.Add(_options.Engine?.Invoke(_world.Machine, i) ?? new GuestCpu(_world.Machine, new GuestCpuOptions { Seed = _world.Machine.Seed }));
            SetEntryState(actor, vcpu, _options.Image?.VcpuEntry[i]);
        }

        AddMemory(actor, vm);
        if (_options.Image is { } image)
            Load(actor, vm, image);
        if (vm.Td is not null)
            Check("KVM_TDX_FINALIZE_VM", vm.Td.Complete(actor));
        _conversionsBefore = vm.Memory.Conversions;
    }

    /// <summary>Runs all vCPUs, each as an actor of its own, until the guest ends or <see cref="Stop"/>. What an actor threw is thrown here.</summary>
    public void Run()
    {
        _startTicks = _world.Machine.Clock.Peek();
        _ended.Write(false);
        _counts.Write((ulong)Vcpus);
        var actors = new List<Actor>();
        for (int i = 0; i < Vcpus; i++)
        {
            Vcpu vcpu = Vm.VcpuOf(i);
            vcpu.ClearSignal();
            Actor actor = _world.Machine.Actors.Create($"vcpu{i}");
            actors.Add(actor);
            actor.Start(a => RunVcpu(a, vcpu));
        }

        Exception? failure = null;
        foreach (Actor actor in actors)
        {
            try
            {
                actor.Join(Explore.On ? _world.Actor : null);
            }
            catch (Exception e)
            {
                // All of them are joined first, whoever failed; the first failure is then thrown on.
                failure ??= e;
            }

            actor.Retire();
        }

        if (failure is not null)
            System.Runtime.ExceptionServices.ExceptionDispatchInfo.Capture(failure).Throw();
    }

    /// <summary>Stops the guest from outside: every vCPU leaves KVM_RUN. Any thread.</summary>
    public void Stop(Actor? actor = null) => End(actor, RunOutcome.Stopped, null);

    /// <summary>
    /// Converts a range as MapGPA or a memory-fault exit asks, and frees the backing of the other alias, as user space has to (tdp-mmu 6.10).
    /// </summary>
    /// <param name="actor">Who; stands on a processor.</param>
    /// <param name="gpa">First byte, natural, page-aligned.</param>
    /// <param name="bytes">Length.</param>
    /// <param name="toPrivate">To private, or to shared.</param>
    public Errno Convert(Actor actor, ulong gpa, ulong bytes, bool toPrivate)
    {
        Errno result = Vm.Memory.SetAttributes(actor, gpa, bytes, toPrivate ? MemoryAttributes.Private : 0);
        ulong end = Math.Min(gpa + bytes, MemoryBytes);
        if (result != Errno.None || gpa >= end)
            return result;
        if (toPrivate)
        {
            Vm.UserMemory.Discard(actor, _hva + gpa, (end - gpa) >> 12);
            return Errno.None;
        }

        return Memfd!.PunchHole(actor, gpa >> 12, (end - gpa) >> 12);
    }

    /// <summary>Destroys the VM and closes the books. No vCPU may be running.</summary>
    public RunReport TearDown()
    {
        Vm vm = Vm;
        TdxModule? module = _world.Module;
        ulong ticks = _world.Machine.Clock.Peek();
        foreach (LogicalProcessor lp in _world.Machine.Processors)
            ticks = Math.Max(ticks, lp.ReadTime());
        Dictionary<string, long> mmu = MmuCounters(vm);
        byte[] mrtd = vm.Td is { } td && module?.Td(td.Tdr) is { } view ? [.. view.Mrtd] : [];
        VcpuStatistics totals = default;
        foreach (Vcpu vcpu in vm.Vcpus)
            totals.Add(vcpu.Statistics);
        long accepted = module is null ? 0 : ModuleCounts.Of(module).PagesAccepted - _before.PagesAccepted;
        vm.Destroy(_world.Actor);
        FrameAudit audit = _world.Kernel.Audit(isAfterTeardown: true);
        ModuleCounts after = ModuleCounts.Of(module);
        return new RunReport
        {
            Outcome = _outcome,
            ExitCode = _devices.ExitCode,
            Message = _message ?? vm.Mmu.Death.Reason,
            Kind = vm.Options.Kind,
            Vcpus = Vcpus,
            Ticks = ticks - _startTicks,
            Faults = new FaultCounts
            {
                Private = totals.PrivateFaults,
                Shared = totals.SharedFaults,
                Fixed = totals.Fixed,
                Spurious = totals.Spurious,
                Retried = totals.LocalRetries,
                Mmio = totals.MmioFaults,
                MemoryFaultExits = totals.MemoryFaults,
            },
            VcpuTotals = totals,
            PagesAccepted = accepted,
            PagesAdded = vm.Glue?[TdxGlue.GlueCounter.Added] ?? 0,
            PagesAugmented = vm.Glue?[TdxGlue.GlueCounter.Augmented] ?? 0,
            PagesRemoved = vm.Glue?[TdxGlue.GlueCounter.Removed] ?? 0,
            Conversions = (
                vm.Memory.Conversions.ToShared - _conversionsBefore.ToShared,
                vm.Memory.Conversions.ToPrivate - _conversionsBefore.ToPrivate,
                vm.Memory.Conversions.Pages - _conversionsBefore.Pages),
            Seamcalls = after.Since(_before, guest: false),
            Tdcalls = after.Since(_before, guest: true),
            Mmu = mmu,
            Mrtd = mrtd,
            Leaks = _world.Machine.Ledger.Leaks,
            Frames = audit,
            Findings = _world.Machine.Findings.All,
            KernelLog = _world.Kernel.Log.Lines,
        };
    }

    private void AddMemory(Actor actor, Vm vm)
    {
        _hva = vm.UserMemory.Map(actor, MemoryBytes >> 12, _options.HugePages);
        if (_hva == 0)
            throw new HostSetupException($"no memory for a guest of {MemoryBytes >> 20} MiB");
        GuestMemfd? file = null;
        if (vm.HasPrivateMemory)
            Check("KVM_CREATE_GUEST_MEMFD", GuestMemfd.Create(actor, vm, MemoryBytes, out file));
        Memfd = file;
        MemslotFlags flags = file is null ? MemslotFlags.None : MemslotFlags.GuestMemfd;
        Check("KVM_SET_USER_MEMORY_REGION2", vm.Memory.SetUserMemoryRegion(actor, new UserMemoryRegion(RamSlot, flags, 0, MemoryBytes, _hva, file)));
        if (vm.HasPrivateMemory)
            Check("KVM_SET_MEMORY_ATTRIBUTES", vm.Memory.SetAttributes(actor, 0, MemoryBytes, MemoryAttributes.Private));
    }

    private void Load(Actor actor, Vm vm, GuestImage image)
    {
        byte[] page = new byte[4096];
        foreach (ImageSegment segment in image.Segments)
        {
            if (vm.Td is { } td)
            {
                Check(
                    "KVM_TDX_INIT_MEM_REGION",
                    td.InitMemoryRegion(
                        actor, segment.Gpa, (ulong)segment.Pages, _options.IsMeasured, (i, into) => segment.CopyPage((int)i, into), out _));
                continue;
            }

            for (int i = 0; i < segment.Pages; i++)
            {
                segment.CopyPage(i, page);
                Check("loading the image", vm.UserMemory.Write(actor, _hva + segment.Gpa + ((ulong)i << 12), page));
            }
        }
    }

    private static void SetEntryState(Actor actor, Vcpu vcpu, EntryState? entry)
    {
        if (vcpu.Vmcs is { } vmcs)
        {
            if (entry is not null)
                Direct64.Apply(entry, vmcs.State);
            return;
        }

        // Without an image the guest is a script, whose RIP counts its steps.
        Check("KVM_TDX_INIT_VCPU", vcpu.Initialize(actor, 0, entry is null ? Direct64.ApplyScript : state => Direct64.Apply(entry, state)));
    }

    private static Dictionary<string, long> MmuCounters(Vm vm)
    {
        var counters = new Dictionary<string, long>(StringComparer.Ordinal);
        for (MmuCounter counter = 0; counter < MmuCounter.Count; counter++)
            counters[counter.ToString()] = vm.Mmu.Statistics[counter];
        counters["PfTaken"] = vm.Mmu.Statistics.PfTaken;
        return counters;
    }

    private static void Check(string ioctl, Errno result)
    {
        if (result != Errno.None)
            throw new HostSetupException($"{ioctl} failed with -{result}");
    }
}
