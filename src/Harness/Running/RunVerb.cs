using System.Diagnostics;
using System.Globalization;
using System.IO;
using Tdp.Cpu;
using Tdp.Harness.Cli;
using Tdp.Harness.Reports;

namespace Tdp.Harness.Running;

/// <summary><c>tdpmmu run</c>.</summary>
internal static class RunVerb
{
    /// <summary>Boots the guest, shows its console, and reports.</summary>
    /// <returns>0 when the guest ended with 0 and nothing is wrong afterwards, 1 otherwise, 130 or 143 when the user ended it.</returns>
    public static int Run(RunSettings settings, Screen screen, Interruption interruption)
    {
        using TraceFile? trace = OpenTrace(settings.Trace);
        using Stream console = settings.Json ? Console.OpenStandardError() : Console.OpenStandardOutput();
        using BufferedStream buffered = new(console, 4096);
        void Show(byte b)
        {
            buffered.WriteByte(b);
            if (b == (byte)'\n')
            {
                buffered.Flush();
            }
        }

        GuestRunSettings guest = new(settings.Guest, settings.Vcpus, settings.Memory, settings.OrdinaryVm, settings.AcceptEagerly, settings.Seed);
        using GuestRun run = GuestRun.Build(guest, Show, trace, trace);
        screen.Progress(string.Create(CultureInfo.InvariantCulture, $"run: {settings.Guest} in {(settings.OrdinaryVm ? "an ordinary VM" : "a TD")}, {settings.Vcpus} {(settings.Vcpus == 1 ? "vCPU" : "vCPUs")}, {Quantities.Size(settings.Memory)}, seed {settings.Seed}"));
        long start = Stopwatch.GetTimestamp();
        try
        {
            run.Run(interruption.Token);
        }
        catch (UnsupportedGuestInstructionException e)
        {
            return Unsupported(settings, run, e, screen, buffered);
        }

        TimeSpan elapsed = Stopwatch.GetElapsedTime(start);
        buffered.Flush();
        GuestReport report = Make(settings, run, run.Vmm.TearDown(), elapsed);
        if (settings.Json)
        {
            screen.WriteJson(report);
        }
        else
        {
            report.Draw(screen);
        }

        if (interruption.Token.IsCancellationRequested)
        {
            return interruption.ExitCode(ExitCode.Interrupted);
        }

        if (report.GuestExitCode is 0 && report.Findings.Count == 0 && report.Frames.Leaked.Count == 0 && report.Frames.Unreturned == 0)
        {
            return ExitCode.Ok;
        }

        screen.Progress($"tdpmmu: {Reason(report)}");
        return ExitCode.Failed;
    }

    // The processor stopped in the middle of the guest, so nothing can be torn down and there is no report.
    private static int Unsupported(RunSettings settings, GuestRun run, UnsupportedGuestInstructionException instruction, Screen screen, Stream console)
    {
        console.Flush();
        if (settings.Json)
        {
            screen.WriteJson(new { settings.Guest, Outcome = "UnsupportedInstruction", instruction.Message, Console = run.Vmm.Devices.OutputText });
        }

        screen.Progress($"tdpmmu: {instruction.Message}");
        return ExitCode.Failed;
    }

    private static TraceFile? OpenTrace(string? path)
    {
        try
        {
            return path is null ? null : new TraceFile(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new UsageException($"--trace {path}: {e.Message}");
        }
    }

    private static string Reason(GuestReport report)
    {
        if (report.GuestExitCode is null)
        {
            return report.Message ?? report.Outcome;
        }

        if (report.GuestExitCode is not 0)
        {
            return $"the guest ended with exit code {report.GuestExitCode}";
        }

        return report.Findings.Count > 0 ? $"{report.Findings[0].Rule} does not hold: {report.Findings[0].Sentence}" : "frames were leaked or lost";
    }

    private static GuestReport Make(RunSettings settings, GuestRun run, RunReport report, TimeSpan elapsed)
    {
        bool td = report.Kind is VmKind.Td;
        bool exited = report.Outcome is RunOutcome.Exited;
        string repeat = string.Create(
            CultureInfo.InvariantCulture,
            $"tdpmmu run {settings.Guest} --vcpus {settings.Vcpus} --memory {Quantities.Size(settings.Memory)}{(settings.OrdinaryVm ? " --vm" : settings.AcceptEagerly ? " --accept eager" : string.Empty)} --seed {settings.Seed}");
        return new GuestReport(
            settings.Guest,
            td ? "TD" : "VM",
            report.Vcpus,
            settings.Memory,
            td ? settings.AcceptEagerly ? "eager" : "lazy" : null,
            settings.Seed,
            report.Outcome.ToString(),
            exited ? report.ExitCode : null,
            report.Message,
            run.Vmm.Devices.OutputText,
            elapsed.TotalSeconds,
            report.Ticks / 1000.0,
            report.VcpuTotals.Exits,
            Counts.Faults(report.VcpuTotals, report.Mmu),
            report.PagesAdded,
            report.PagesAugmented,
            report.PagesAccepted,
            report.PagesRemoved,
            new ConversionReport(report.Conversions.ToShared, report.Conversions.ToPrivate, report.Conversions.Pages),
            Counts.Calls(report.Seamcalls, guest: false),
            Counts.Calls(report.Tdcalls, guest: true),
            report.Mrtd.IsEmpty ? null : Convert.ToHexStringLower(report.Mrtd.Span),
            FrameReport.From(report.Frames, report.Leaks),
            BrokenRule.From(report.Findings),
            repeat);
    }
}
