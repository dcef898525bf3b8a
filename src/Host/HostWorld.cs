namespace Tdp.Host;

/// <summary>What a simulated host is made of.</summary>
public sealed record HostWorldOptions
{
    /// <summary>The machine.</summary>
    public required MachineDescription Machine { get; init; }

    /// <summary>Master seed (decisions section 8).</summary>
    public ulong Seed { get; init; } = 1;

    /// <summary>TLB retention.</summary>
    public TlbMode TlbMode { get; init; } = TlbMode.Precise;

    /// <summary>Where documents and code differ.</summary>
    public BehaviourProfile Profile { get; init; } = BehaviourProfile.Documented;

    /// <summary>Module knobs.</summary>
    public TdxModuleOptions Module { get; init; } = new() { TdmrInitPages = 262144 };

    /// <summary>False: no module is loaded, only ordinary VMs are possible.</summary>
    public bool HasModule { get; init; } = true;
}

/// <summary>
/// A booted simulated host: machine, TDX module, kernel, and the actor that does host-only work. The usual start of a run, a test or a benchmark.
/// </summary>
public sealed class HostWorld : IDisposable
{
    private HostWorld(Machine machine, TdxModule? module, HostKernel kernel, Actor actor)
    {
        Machine = machine;
        Module = module;
        Kernel = kernel;
        Actor = actor;
    }

    /// <summary>The machine.</summary>
    public Machine Machine { get; }

    /// <summary>The module, initialized; null when none is loaded.</summary>
    public TdxModule? Module { get; }

    /// <summary>The kernel.</summary>
    public HostKernel Kernel { get; }

    /// <summary>The host-only actor; it stands on the processor with the highest number.</summary>
    public Actor Actor { get; }

    /// <summary>Builds the machine and brings the module up, in the order of tdp-mmu 9.2.</summary>
    /// <exception cref="UnsupportedHostException">This process cannot host a machine.</exception>
    /// <exception cref="HostSetupException">Bring-up failed; the kernel log's last lines are in the message.</exception>
    public static HostWorld Boot(HostWorldOptions options)
    {
        var machine = new Machine(options.Machine, options.Seed, options.TlbMode);
        try
        {
            TdxModule? module = options.HasModule ? new TdxModule(machine, options.Profile, options.Module) : null;
            var kernel = new HostKernel(machine, module);
            Actor actor = machine.Actors.Create("host");
            kernel.Processors.Bind(actor);
            if (module is not null)
            {
                Errno result = kernel.BringUp(actor);
                if (result != Errno.None)
                    throw new HostSetupException($"bring-up of the TDX module failed with -{result}: {string.Join("; ", kernel.Log.Lines)}");
            }

            return new HostWorld(machine, module, kernel, actor);
        }
        catch
        {
            machine.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public void Dispose() => Machine.Dispose();
}

/// <summary>The host or a VM could not be set up; one line says which step failed.</summary>
public sealed class HostSetupException : Exception
{
    /// <summary>Makes the exception.</summary>
    public HostSetupException(string message)
        : base(message)
    {
    }
}
