using System.Globalization;
using System.Linq;
using Tdp.Harness.Cli;
using Tdp.Harness.Reports;
using Tdp.Harness.Workloads;

namespace Tdp.Harness.Bench;

/// <summary><c>tdpmmu bench fault-in</c>.</summary>
internal static class BenchVerb
{
    /// <summary>Measures.</summary>
    /// <returns>0, or 130 or 143 when the user ended it; the rows measured until then are printed.</returns>
    public static int Run(BenchSettings settings, Screen screen, Interruption interruption)
    {
        CommandLine.RequireSupportedHost();
        FaultInBench.SwitchCheckersOff();
        PageOrder order = settings.Order switch { "random" => PageOrder.Random, "overlap" => PageOrder.Overlap, _ => PageOrder.Sequential };
        int[] threads = settings.Threads is { } count ? [count] : [1, 2];
        string[] roots = settings.Root is { } root ? [root] : ["direct", "mirror"];
        screen.Progress($"bench: floor, {settings.Order}");
        double floor = FaultInBench.FloorNs(order, settings.Pages);
        List<BenchRow> rows = [];
        foreach ((string name, bool zeroing, int n) in
            from r in roots
            from zeroing in r is "mirror" ? new[] { false, true } : [true]
            from n in threads
            select (r, zeroing, n))
        {
            if (interruption.Token.IsCancellationRequested)
            {
                break;
            }

            screen.Progress(string.Create(CultureInfo.InvariantCulture, $"bench: {Label(name, zeroing)}, {settings.Order}, {n} {(n == 1 ? "thread" : "threads")}"));
            rows.Add(FaultInBench.Measure(name, order, n, settings.Pages, zeroing, floor));
        }

        BenchReport report = new(rows);
        if (settings.Json)
        {
            screen.WriteJson(report);
        }
        else
        {
            Draw(report, screen);
        }

        return interruption.ExitCode(rows.Count > 0 ? ExitCode.Ok : ExitCode.Failed);
    }

    private static string Label(string root, bool zeroing) => root is "direct" ? root : zeroing ? "mirror, pages zeroed" : "mirror";

    private static void Draw(BenchReport report, Screen screen)
    {
        static string F(double value, string format) => value.ToString(format, CultureInfo.InvariantCulture);
        screen.Table(
            "fault-in, 4K pages",
            ["root", "order", "#threads", "#floor ns", "#ns per fault", "#x floor", "#faults/s", "#bytes/page", "#allocated bytes/fault"],
            report.Rows.Select(r => (string[])
            [
                Label(r.Root, r.Zeroing ?? true), r.Order, F(r.Threads, "0"), F(r.FloorNs, "0.0"), F(r.NsPerFault, "0.0"), F(r.RatioToFloor, "0.00"), F(r.FaultsPerS, "N0"), F(r.BytesPerPage, "0.0"), F(r.AllocatedBytesPerFault, "0.00"),
            ]));
        screen.Line("ns per fault are per thread. The floor is the tightest walk and compare-exchange over the same memory in the same order, on one thread.");
        screen.Line("mirror: fault, PAGE.AUG and the guest's ACCEPT of each page. Without zeroing the figure shows the page-table work alone.");
    }
}
