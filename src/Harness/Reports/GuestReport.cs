using System.Globalization;
using System.Linq;

namespace Tdp.Harness.Reports;

/// <summary>Conversions of a run.</summary>
/// <param name="ToShared">Ranges converted to shared.</param>
/// <param name="ToPrivate">Ranges converted to private.</param>
/// <param name="Pages">Pages they covered.</param>
internal sealed record ConversionReport(long ToShared, long ToPrivate, long Pages);

/// <summary>What happened while a guest program ran.</summary>
/// <param name="Guest">The program.</param>
/// <param name="Kind">TD or VM.</param>
/// <param name="Vcpus">How many vCPUs.</param>
/// <param name="Memory">Guest memory in bytes.</param>
/// <param name="Accept">eager or lazy; missing in an ordinary VM.</param>
/// <param name="Seed">The master seed.</param>
/// <param name="Outcome">How the run ended.</param>
/// <param name="GuestExitCode">The guest's own exit code; missing when it did not give one.</param>
/// <param name="Message">One line about an abnormal end.</param>
/// <param name="Console">The guest's console.</param>
/// <param name="Seconds">Wall time of the run.</param>
/// <param name="SimulatedMicroseconds">Simulated time of the run.</param>
/// <param name="Exits">VM exits.</param>
/// <param name="Faults">Faults by kind.</param>
/// <param name="PagesAdded">Pages of the initial image.</param>
/// <param name="PagesAugmented">Private pages mapped by faults.</param>
/// <param name="PagesAccepted">Pages accepted by the guest.</param>
/// <param name="PagesRemoved">Private pages taken back.</param>
/// <param name="Conversions">Conversions between private and shared.</param>
/// <param name="Seamcalls">SEAMCALLs by leaf and status.</param>
/// <param name="Tdcalls">TDCALLs by leaf and status.</param>
/// <param name="Mrtd">The measurement of the initial image, in hex; missing in an ordinary VM.</param>
/// <param name="Frames">What became of the frames.</param>
/// <param name="Findings">What the checkers found wrong.</param>
/// <param name="Repeat">The command that repeats the run.</param>
internal sealed record GuestReport(
    string Guest, string Kind, int Vcpus, ulong Memory, string? Accept, ulong Seed, string Outcome, uint? GuestExitCode, string? Message, string Console, double Seconds, double SimulatedMicroseconds,
    long Exits, IReadOnlyDictionary<string, long> Faults, long PagesAdded, long PagesAugmented, long PagesAccepted, long PagesRemoved, ConversionReport Conversions,
    IReadOnlyList<SeamcallCount> Seamcalls, IReadOnlyList<SeamcallCount> Tdcalls, string? Mrtd, FrameReport Frames, IReadOnlyList<BrokenRule> Findings, string Repeat)
{
    /// <summary>Draws everything but the console, which was shown while the guest ran.</summary>
    public void Draw(Screen screen)
    {
        static string N(long value) => value.ToString("N0", CultureInfo.InvariantCulture);
        string end = GuestExitCode is { } code ? $"exit code {code}" : $"{Outcome}: {Message}";
        screen.Line();
        screen.Line(string.Create(CultureInfo.InvariantCulture, $"{Guest} in {(Kind is "TD" ? "a TD" : "an ordinary VM")}, {Vcpus} {(Vcpus == 1 ? "vCPU" : "vCPUs")}: {end}; {Seconds:0.00} s, {SimulatedMicroseconds:N0} us simulated, {N(Exits)} exits"));
        screen.Table("faults", ["kind", "#count"], Faults.Where(f => f.Value > 0).Select(f => (string[])[f.Key, N(f.Value)]));
        if (Kind is "TD")
        {
            screen.Table(
                "private memory",
                ["pages", "#count"],
                [["added before the start", N(PagesAdded)], ["augmented by faults", N(PagesAugmented)], ["accepted by the guest", N(PagesAccepted)], ["removed", N(PagesRemoved)]]);
            screen.Line($"conversions: {N(Conversions.ToShared)} to shared, {N(Conversions.ToPrivate)} to private, {N(Conversions.Pages)} pages");
            screen.Table("SEAMCALLs", ["leaf", "status", "#count"], Seamcalls.Select(c => (string[])[c.Leaf, c.Status, N(c.Count)]));
            screen.Table("TDCALLs", ["leaf", "status", "#count"], Tdcalls.Select(c => (string[])[c.Leaf, c.Status, N(c.Count)]));
        }

        screen.Line(Frames.ToString());
        foreach (LeakedFrameReport leaked in Frames.Leaked)
        {
            screen.Line($"    leaked {leaked.Frame}: {leaked.Reason}");
        }

        foreach (BrokenRule rule in Findings)
        {
            screen.Line($"broken {rule.Rule} ({N(rule.Count)} times): {rule.Sentence}");
            foreach (string detail in rule.Details)
            {
                screen.Line($"    {detail}");
            }
        }
    }
}
