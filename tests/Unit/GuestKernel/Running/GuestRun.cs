using System.Globalization;
using Tdp.Host;
using Tdp.Kernel;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.GuestKernel.Running;

/// <summary>One run of a guest on the whole stack, and what it left.</summary>
internal sealed record GuestRun(string Console, RunReport Report, ulong Scratch, IReadOnlyDictionary<string, ulong> Values)
{
    /// <summary>Runs a TD; <paramref name="besides"/> runs on a thread and a processor of its own meanwhile, as the hostile part of the host.</summary>
    public static GuestRun Td(ElfImage payload, Func<GuestBootOptions, GuestBootOptions>? change = null, Action<Vmm, Actor>? besides = null) =>
        Run(payload, isTd: true, change, besides);

    public static GuestRun OrdinaryVm(ElfImage payload, Func<GuestBootOptions, GuestBootOptions>? change = null) => Run(payload, isTd: false, change, null);

    public GuestRun MustExit(uint code = 0)
    {
        Assert.True(Report.Outcome == RunOutcome.Exited, $"{Report.Outcome}: {Report.Message}\n{Console}");
        Assert.True(Report.ExitCode == code, $"exit code {Report.ExitCode}\n{Console}");
        return this;
    }

    private static GuestRun Run(ElfImage payload, bool isTd, Func<GuestBootOptions, GuestBootOptions>? change, Action<Vmm, Actor>? besides)
    {
        GuestBootOptions boot = new() { IsTd = isTd, VcpuCount = 1, RamBytes = 16 << 20, LazyAccept = true };
        boot = change?.Invoke(boot) ?? boot;
        GuestImage image = GuestImage.Build(payload, boot);
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(boot.VcpuCount + 1, boot.RamBytes) });
        TdConfiguration td = new() { Attributes = boot.PendingVeDisable ? TdConfiguration.SeptVeDisable : 0 };
        var vmm = new Vmm(world, new VmmOptions { Image = image, IsFiveLevel = isTd && boot.AliasBit == 51, Td = td });
        vmm.Build();
        Actor? other = null;
        if (besides is not null)
        {
            other = world.Machine.Actors.Create("hostile");
            other.Start(actor =>
            {
                world.Kernel.Processors.Bind(actor);
                besides(vmm, actor);
                world.Kernel.Frames.Drain(actor);
                world.Kernel.Processors.Unbind(actor);
            });
        }
        vmm.Run();
        other?.Join(null);
        other?.Retire();
        RunReport report = vmm.TearDown();
        string console = vmm.Devices.OutputText;
        return new GuestRun(console, report, vmm.Devices.Scratch, Reported(console));
    }

    private static Dictionary<string, ulong> Reported(string console)
    {
        Dictionary<string, ulong> values = new(StringComparer.Ordinal);
        foreach (string line in console.Split('\n'))
        {
            int equals = line.LastIndexOf(" = ", StringComparison.Ordinal);
            if (line.StartsWith("report ", StringComparison.Ordinal) && equals > 0)
                values[line[7..equals]] = ulong.Parse(line[(equals + 3)..], CultureInfo.InvariantCulture);
        }
        return values;
    }
}
