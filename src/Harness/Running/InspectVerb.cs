using System.Globalization;
using System.Threading;
using Tdp.Cpu;
using Tdp.Harness.Cli;
using Tdp.Harness.Reports;

namespace Tdp.Harness.Running;

/// <summary><c>tdpmmu inspect</c>.</summary>
internal static class InspectVerb
{
    /// <summary>Runs a guest to a point and shows its trees there.</summary>
    /// <returns>0 when the point was reached, 1 otherwise, 130 or 143 when the user ended it.</returns>
    public static int Run(InspectSettings settings, Screen screen, Interruption interruption)
    {
        Snapshot snapshot = new(settings);
        GuestRunSettings guest = new(settings.Guest, settings.Vcpus, settings.Memory, false, settings.AcceptEagerly, settings.Seed);
        using GuestRun run = GuestRun.Build(guest, null, snapshot, null);
        snapshot.Vmm = run.Vmm;
        try
        {
            run.Run(interruption.Token);
        }
        catch (UnsupportedGuestInstructionException e)
        {
            screen.Progress($"tdpmmu: {e.Message}");
            return ExitCode.Failed;
        }

        if (snapshot.Trees is not { } trees)
        {
            run.Vmm.TearDown();
            if (interruption.Token.IsCancellationRequested)
            {
                return interruption.ExitCode(ExitCode.Interrupted);
            }

            screen.Progress(string.Create(CultureInfo.InvariantCulture, $"tdpmmu: the guest ended ({run.Vmm.Outcome}) after {snapshot.Exits} exits of vCPU 0, before the point was reached"));
            return ExitCode.Failed;
        }

        screen.Line(snapshot.Where);
        foreach (string root in trees.Roots)
        {
            screen.Line(root);
        }

        screen.Table(string.Empty, TreeTable.Headings, trees.Rows());
        run.Vmm.TearDown();
        return ExitCode.Ok;
    }

    /// <summary>Reads the trees when the point is reached, on the vCPU's own thread, with mmu_lock held for writing: no fault and no zap is in flight.</summary>
    private sealed class Snapshot(InspectSettings settings) : IExitObserver
    {
        private readonly Lock _gate = new();

        public Vmm? Vmm { get; set; }

        public TreeTable? Trees { get; private set; }

        public string Where { get; private set; } = string.Empty;

        public long Exits { get; private set; }

        public void Exited(Vcpu vcpu, ExitReason reason, ulong gpa)
        {
            lock (_gate)
            {
                Exits += vcpu.Id == 0 ? 1 : 0;
                ulong alias = vcpu.Vm.AliasBit.GpaMask;
                bool here = settings.ExitNumber is { } number
                    ? vcpu.Id == 0 && Exits == number
                    : reason is ExitReason.EptViolation && ((gpa ^ settings.Gpa!.Value) & ~alias) >> 12 == 0;
                if (!here || Trees is not null)
                {
                    return;
                }

                Actor actor = vcpu.Mmu.Actor;
                vcpu.Vm.Mmu.MmuLock.EnterWrite(actor);
                Trees = new TreeTable(vcpu.Vm);
                vcpu.Vm.Mmu.MmuLock.ExitWrite(actor);
                Where = string.Create(CultureInfo.InvariantCulture, $"vCPU {vcpu.Id}, exit {(vcpu.Id == 0 ? Exits : vcpu.Statistics.Exits)} handled: {reason}{(gpa == 0 ? string.Empty : $" at GPA 0x{gpa:x}")}");
                Vmm!.Stop(actor);
            }
        }
    }
}
