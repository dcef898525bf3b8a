using System.Globalization;

namespace Tdp.Host;

/// <summary>
/// The shortest whole path of a TD, as text: boots a host, builds a TD whose guest is a script, faults and accepts one page, tears everything down. The
/// entry point through which a
/// copy of the sources that was compiled in memory proves that it works (decisions D19, D31).
/// </summary>
public static class ScriptedFault
{
    private const ulong Page = 0x20_0000;
    private const ulong Pattern = 0x5EED_0000_0000_0001;

    /// <summary>Runs it.</summary>
    /// <returns>One line; it starts with <c>ok</c> exactly if everything was as specified.</returns>
    public static string Run()
    {
        using HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(1, 16 << 20) });
        ScriptedGuest? guest = null;
        var vmm = new Vmm(world, new VmmOptions
        {
            Kind = VmKind.Td,
            Vcpus = 1,
            MemoryBytes = 16 << 20,
            Engine = (machine, _) => guest = new ScriptedGuest(machine, GuestStep.Write(Page, Pattern), GuestStep.Read(Page)),
        });
        vmm.Build();
        vmm.Run();
        RunReport report = vmm.TearDown();
        ulong read = guest!.Values.Count == 1 ? guest.Values[0] : 0;
        bool isRight = report.Outcome == RunOutcome.ScriptEnd && read == Pattern && report.PagesAugmented == 1 && report.PagesAccepted == 1
            && report.PagesRemoved == 1 && report.IsClean;
        string counts = string.Create(
            CultureInfo.InvariantCulture,
            $"private faults {report.Faults.Private}, augmented {report.PagesAugmented}, accepted {report.PagesAccepted}, removed {report.PagesRemoved}");
        string books = string.Create(
            CultureInfo.InvariantCulture,
            $"leaks {report.Leaks.Count}, findings {report.Findings.Count}, disagreements {report.Frames.DisagreementCount}");
        string message = report.Message is null ? "" : ", " + report.Message;
        return $"{(isRight ? "ok" : "wrong")}: outcome {report.Outcome}, read 0x{read:x}, {counts}, {books}{message}";
    }
}
