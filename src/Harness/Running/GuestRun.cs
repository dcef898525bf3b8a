using System.IO;
using System.Threading;
using Tdp.Harness.Cli;
using Tdp.Kernel;

namespace Tdp.Harness.Running;

/// <summary>What a guest program runs on.</summary>
/// <param name="Guest">Path of the ELF file.</param>
/// <param name="Vcpus">How many vCPUs.</param>
/// <param name="Memory">Guest memory in bytes.</param>
/// <param name="OrdinaryVm">An ordinary VM instead of a TD.</param>
/// <param name="AcceptEagerly">All memory is accepted at boot.</param>
/// <param name="Seed">The master seed.</param>
internal sealed record GuestRunSettings(string Guest, int Vcpus, ulong Memory, bool OrdinaryVm, bool AcceptEagerly, ulong Seed);

/// <summary>Loads a guest program and builds the machine and the VM it runs on. Every way in which a file or a size can be wrong becomes a <see cref="UsageException"/>.</summary>
internal sealed class GuestRun : IDisposable
{
    private readonly HostWorld _world;

    private GuestRun(HostWorld world, Vmm vmm)
    {
        _world = world;
        Vmm = vmm;
    }

    /// <summary>The user-space VMM with its built VM.</summary>
    public Vmm Vmm { get; }

    /// <summary>The machine's module, or <see langword="null"/> for an ordinary VM.</summary>
    public TdxModule? Module => _world.Module;

    /// <summary>The machine.</summary>
    public Machine Machine => _world.Machine;

    /// <summary>Loads and builds. The guest has not run yet.</summary>
    /// <param name="settings">What to load, and on what.</param>
    /// <param name="console">Receives the guest's output, byte by byte, from the vCPUs' threads, one at a time.</param>
    /// <param name="observer">Sees every exit, or <see langword="null"/>.</param>
    /// <param name="calls">Sees every SEAMCALL from the VM's creation on, or <see langword="null"/>.</param>
    /// <exception cref="UsageException">The file is not a guest program, or does not fit.</exception>
    /// <exception cref="EnvironmentException">This machine cannot host it.</exception>
    public static GuestRun Build(GuestRunSettings settings, Action<byte>? console, IExitObserver? observer, IModuleObserver? calls)
    {
        CommandLine.RequireSupportedHost();
        GuestImage image = Load(settings);
        try
        {
            HostWorld world = HostWorld.Boot(new HostWorldOptions
            {
                Machine = MachineDescription.Default(settings.Vcpus, settings.Memory),
                Seed = settings.Seed,
                HasModule = !settings.OrdinaryVm,
            });
            try
            {
                if (world.Module is { } module)
                {
                    module.Observer = calls;
                }

                Vmm vmm = new(world, new VmmOptions { Image = image, Console = console, ExitObserver = observer });
                vmm.Build();
                return new GuestRun(world, vmm);
            }
            catch
            {
                world.Dispose();
                throw;
            }
        }
        catch (UnsupportedHostException e)
        {
            throw new EnvironmentException(e.Message);
        }
        catch (HostSetupException e)
        {
            throw new EnvironmentException(e.Message);
        }
    }

    /// <summary>Runs the guest to its end, or until <paramref name="stop"/> is cancelled.</summary>
    public void Run(CancellationToken stop)
    {
        // The wish may come before the vCPUs have started, so it is repeated until they have stopped.
        using ManualResetEventSlim finished = new();
        Thread watcher = new(() =>
        {
            _ = WaitHandle.WaitAny([stop.WaitHandle, finished.WaitHandle]);
            while (!finished.Wait(TimeSpan.FromMilliseconds(20), CancellationToken.None))
            {
                Vmm.Stop();
            }
        })
        {
            IsBackground = true,
            Name = "watcher",
        };
        watcher.Start();
        try
        {
            Vmm.Run();
        }
        finally
        {
            finished.Set();
            watcher.Join();
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _world.Dispose();

    /// <summary>Loads a program and lays out its initial image; nothing is built.</summary>
    /// <exception cref="UsageException">The file is not a guest program, or does not fit.</exception>
    public static GuestImage Load(GuestRunSettings settings)
    {
        try
        {
            ElfImage payload = ElfImage.Parse(File.ReadAllBytes(settings.Guest));
            return GuestImage.Build(payload, new GuestBootOptions
            {
                IsTd = !settings.OrdinaryVm,
                VcpuCount = settings.Vcpus,
                RamBytes = settings.Memory,
                LazyAccept = !settings.AcceptEagerly,
                Seed = new SeedStream(settings.Seed, "payload").Next(),
            });
        }
        catch (ElfFormatException e)
        {
            throw new UsageException($"GUEST.elf {settings.Guest}: {e.Message}");
        }
        catch (GuestBootException e)
        {
            throw new UsageException($"--memory {Quantities.Size(settings.Memory)} --vcpus {settings.Vcpus}: {e.Message}");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"GUEST.elf {settings.Guest}: {e.Message}");
        }
    }
}
