namespace Tdp.Harness.Scenarios;

/// <summary>A bring-up step failed. The message is one line: the step and its errno.</summary>
public sealed class WorldException(string message) : Exception(message);

/// <summary>
/// A machine with its module, its host, and one finalized TD whose vCPUs have not run yet: where stress, benches and small scenarios begin. The TD has one slot with guest_memfd and one
/// spare slot without.
/// </summary>
public sealed class TdWorld : IDisposable
{
    private readonly StressLayout _layout;
    private readonly HostWorld _host;
    private readonly Actor[] _threads;
    private bool _destroyed;

    /// <summary>Builds the world.</summary>
    /// <param name="layout">Where the slots lie.</param>
    /// <param name="vcpus">How many vCPUs; each gets an actor of its own on the processor of its number.</param>
    /// <param name="hosts">How many host threads; each gets an actor and a processor.</param>
    /// <param name="seed">The master seed.</param>
    /// <param name="tlbMode">TLB retention.</param>
    /// <param name="zeroing">ACCEPT zeroes the page, as the architecture says; off only to measure the page-table work alone.</param>
    /// <exception cref="WorldException">A step was refused.</exception>
    public TdWorld(StressLayout layout, int vcpus, int hosts, ulong seed, TlbMode tlbMode = TlbMode.Precise, bool zeroing = true)
    {
        ArgumentNullException.ThrowIfNull(layout);
        _layout = layout;
        _host = HostWorld.Boot(new HostWorldOptions
        {
            Machine = MachineDescription.Default(vcpus + hosts, (ulong)layout.Pages * 2 * 4096),
            Seed = seed,
            TlbMode = tlbMode,
            Module = new TdxModuleOptions { ZeroOnAccept = zeroing, TdmrInitPages = 262144 },
        });
        try
        {
            Require(Vm.Create(Director, Kernel, new VmOptions { Kind = VmKind.Td }, out Vm? vm), "creating the VM");
            Vm = vm!;
            Require(Vm.Td!.Initialize(Director, new TdConfiguration { MaxVcpus = (ushort)vcpus }), "initializing the TD");
            MapMemory();
            for (int i = 0; i < vcpus; i++)
            {
                Require(Vm.CreateVcpu(Director, out Vcpu? vcpu), "creating a vCPU");
                Require(vcpu!.Initialize(Director, 0, Direct64.ApplyScript), "initializing a vCPU");
            }

            Require(Vm.Td.Complete(Director), "finalizing the TD");
            _threads = new Actor[vcpus + hosts];
            for (int i = 0; i < _threads.Length; i++)
            {
                _threads[i] = Machine.Actors.Create(i < vcpus ? $"vcpu{i}" : $"host{i - vcpus}");
                Kernel.Processors.Bind(_threads[i], i);
            }
        }
        catch
        {
            _host.Dispose();
            throw;
        }
    }

    /// <summary>The machine.</summary>
    public Machine Machine => _host.Machine;

    /// <summary>Its host.</summary>
    public HostKernel Kernel => _host.Kernel;

    /// <summary>Its TDX module.</summary>
    public TdxModule Module => _host.Module!;

    /// <summary>The TD.</summary>
    public Vm Vm { get; }

    /// <summary>The actor that builds and ends the world; it holds the last processor.</summary>
    public Actor Director => _host.Actor;

    /// <summary>The file behind the main slot's private alias.</summary>
    public GuestMemfd File { get; private set; } = null!;

    /// <summary>Host address of the main slot's first shared page.</summary>
    public ulong HostAddress { get; private set; }

    /// <summary>The spare slot as user space would set it.</summary>
    public UserMemoryRegion Spare { get; private set; }

    /// <summary>The actors of the vCPUs, then those of the host threads.</summary>
    public IReadOnlyList<Actor> Threads => _threads;

    /// <summary>Stops the run when a step was refused.</summary>
    public static void Require(Errno errno, string step)
    {
        if (errno != Errno.None)
        {
            throw new WorldException($"{step} failed: {errno}");
        }
    }

    /// <summary>Ends the VM. No vCPU may run. Idempotent.</summary>
    public void DestroyVm()
    {
        if (_destroyed)
        {
            return;
        }

        _destroyed = true;
        foreach (Actor actor in _threads)
        {
            Kernel.Processors.Unbind(actor);
        }

        Vm.Destroy(Director);
    }

    /// <summary>Gives the machine's memory back.</summary>
    public void Dispose() => _host.Dispose();

    private void MapMemory()
    {
        ulong bytes = (ulong)_layout.Pages << 12;
        HostAddress = Vm.UserMemory.Map(Director, (ulong)_layout.Pages);
        ulong spare = Vm.UserMemory.Map(Director, (ulong)_layout.SparePages);
        Require(HostAddress == 0 || spare == 0 ? Errno.ENOMEM : Errno.None, "mapping host memory");
        Require(GuestMemfd.Create(Director, Vm, bytes, out GuestMemfd? file), "creating the guest_memfd");
        File = file!;
        Require(Vm.Memory.SetUserMemoryRegion(Director, new UserMemoryRegion(0, MemslotFlags.GuestMemfd, _layout.First.Value << 12, bytes, HostAddress, File)), "creating the main slot");
        Spare = new UserMemoryRegion(1, MemslotFlags.None, _layout.SpareFirst.Value << 12, (ulong)_layout.SparePages << 12, spare);
        Require(Vm.Memory.SetUserMemoryRegion(Director, Spare), "creating the spare slot");
        Require(Vm.Memory.SetAttributes(Director, _layout.First.Value << 12, bytes, MemoryAttributes.Private), "making the memory private");
    }
}
