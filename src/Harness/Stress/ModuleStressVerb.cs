using System.Diagnostics;
using System.Globalization;
using System.Linq;
using System.Threading;
using Tdp.Harness.Cli;
using Tdp.Harness.Invariants;
using Tdp.Harness.Reports;
using Tdp.Harness.Scenarios;

namespace Tdp.Harness.Stress;

/// <summary><c>tdpmmu stress --module</c>: any value in any register of any leaf, on two processors, with the module's invariants checked.</summary>
internal static class ModuleStressVerb
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(60);
    private static readonly TimeSpan Glance = TimeSpan.FromMilliseconds(20);

    private static readonly Dictionary<string, string> Sentences = new(StringComparer.Ordinal)
    {
        ["EXCEPTION"] = "A call with any register values is answered; the module throws nothing.",
        ["HANG"] = "A call with any register values ends: the module never waits.",
        ["STATUS"] = "A leaf returns only statuses that its description lists.",
        ["REGISTERS"] = "A call changes only the registers that the leaf defines.",
    };

    /// <summary>Runs rounds until a limit is reached, something is found, or the user ends it.</summary>
    /// <returns>0 for a clean run, 1 for a finding, 130 or 143 when the user ended it.</returns>
    public static int Run(StressSettings settings, Screen screen, Interruption interruption)
    {
        CommandLine.RequireSupportedHost();
        screen.Progress(string.Create(CultureInfo.InvariantCulture, $"stress: the TDX module on {FuzzWorld.Processors} processors, seed {settings.Seed}, {Limit(settings)}"));
        ModuleStressRun run = new(settings.Seed);
        Stopwatch clock = Stopwatch.StartNew();
        TimeSpan next = TimeSpan.FromSeconds(1);
        bool Stop() => interruption.Token.IsCancellationRequested || clock.Elapsed >= (settings.Duration ?? TimeSpan.MaxValue);
        long number = settings.Round ?? 0;
        long limit = settings.Round is not null ? FuzzRound.Steps : settings.Iterations ?? long.MaxValue;
        while (run.Steps < limit && run.Found.Count == 0 && !Stop())
        {
            FuzzRound round = new(settings.Seed, number++);
            run.Begin(round, (int)Math.Min(FuzzRound.Steps, limit - run.Steps), Stop);
            while (!run.WaitForEnd(Glance, Patience))
            {
                if (clock.Elapsed >= next)
                {
                    Progress(screen, run, clock.Elapsed);
                    next = clock.Elapsed + TimeSpan.FromSeconds(1);
                }
            }
        }

        bool interrupted = interruption.Token.IsCancellationRequested;
        ModuleStressReport report = Make(settings, run, clock.Elapsed, interrupted);
        if (settings.Json)
        {
            screen.WriteJson(report);
        }
        else
        {
            report.Draw(screen);
        }

        if (run.Found.Count > 0)
        {
            screen.Progress($"tdpmmu: {run.Found[0].Rule} does not hold: {SentenceOf(run.Found[0].Rule)}");
            return ExitCode.Failed;
        }

        return interrupted ? interruption.ExitCode(ExitCode.Interrupted) : ExitCode.Ok;
    }

    /// <summary>The sentence of a rule of the catalogue, or of one that only this stress knows.</summary>
    public static string SentenceOf(string rule) => Sentences.TryGetValue(rule, out string? sentence) ? sentence : Catalogue.SentenceOf(rule);

    private static void Progress(Screen screen, ModuleStressRun run, TimeSpan elapsed) =>
        screen.Progress(string.Create(
            CultureInfo.InvariantCulture,
            $"  {elapsed.TotalSeconds:0} s, {run.StepsSoFar:N0} steps, {run.StepsSoFar / elapsed.TotalSeconds:N0}/s, round {run.Rounds}, {run.Found.Count} findings"));

    private static string Limit(StressSettings settings) =>
        settings.Round is { } round ? string.Create(CultureInfo.InvariantCulture, $"round {round} alone")
        : settings.Iterations is { } iterations ? string.Create(CultureInfo.InvariantCulture, $"{iterations:N0} steps")
        : Quantities.Duration(settings.Duration ?? TimeSpan.Zero);

    private static ModuleStressReport Make(StressSettings settings, ModuleStressRun run, TimeSpan elapsed, bool interrupted)
    {
        string seed = string.Create(CultureInfo.InvariantCulture, $"tdpmmu stress --module --seed {settings.Seed}");
        string repeat = string.Create(
            CultureInfo.InvariantCulture,
            $"{seed} {(settings.Round is { } only ? $"--round {only}" : settings.Iterations is { } n ? $"--iterations {n}" : $"--duration {Quantities.Duration(settings.Duration ?? TimeSpan.Zero)}")}");
        return new ModuleStressReport(
            settings.Seed,
            elapsed.TotalSeconds,
            run.Steps,
            run.Steps / Math.Max(elapsed.TotalSeconds, 0.001),
            run.Rounds,
            Counts.Calls(run.Counts, guest: false).Sum(c => c.Count),
            Counts.Calls(run.Counts, guest: true).Sum(c => c.Count),
            Counts.Calls(run.Counts, guest: false),
            Counts.Calls(run.Counts, guest: true),
            [.. run.Found.Select(f => new ModuleFinding(f.Rule, SentenceOf(f.Rule), f.Text, f.Round, f.Step, f.Call, string.Create(CultureInfo.InvariantCulture, $"{seed} --round {f.Round}")))],
            interrupted,
            repeat);
    }
}

/// <summary>The rounds of one stress of the module: each runs on a thread of its own, so that one that hangs can be told from one that works.</summary>
internal sealed class ModuleStressRun(ulong seed)
{
    private readonly Dictionary<(string Leaf, bool IsGuest, ulong Status), long> _counts = [];
    private readonly List<FuzzFinding> _found = [];
    private readonly Stopwatch _still = new();
    private FuzzRound _round = new(seed, 0);
    private Thread? _thread;
    private Exception? _failure;
    private long _seen;

    /// <summary>Steps of the rounds that have ended.</summary>
    public long Steps { get; private set; }

    /// <summary>Steps with those of the round that runs.</summary>
    public long StepsSoFar => Steps + (_thread is null ? 0 : _round.Performed);

    /// <summary>Rounds that have begun.</summary>
    public long Rounds { get; private set; }

    /// <summary>What was found.</summary>
    public IReadOnlyList<FuzzFinding> Found => _found;

    /// <summary>Calls by leaf and status.</summary>
    public IEnumerable<LeafCount> Counts =>
        _counts.OrderBy(c => c.Key.Leaf, StringComparer.Ordinal).ThenByDescending(c => c.Value).Select(c => new LeafCount(c.Key.Leaf, c.Key.IsGuest, new TdxStatus(c.Key.Status), c.Value));

    /// <summary>Starts a round.</summary>
    /// <param name="round">The round.</param>
    /// <param name="steps">At most this many steps.</param>
    /// <param name="stop">Asked between slices.</param>
    public void Begin(FuzzRound round, int steps, Func<bool> stop)
    {
        _round = round;
        _seen = -1;
        _still.Restart();
        Rounds++;
        _thread = new Thread(() =>
        {
            try
            {
                round.Run(steps, stop);
            }
            catch (Exception e)
            {
                // Of the stress itself: thrown on by whoever waits.
                _failure = e;
            }
        })
        {
            IsBackground = true,
            Name = "round",
        };
        _thread.Start();
    }

    /// <summary>Waits a little. True: the round has ended, or has not moved for so long that it counts as hung.</summary>
    public bool WaitForEnd(TimeSpan glance, TimeSpan patience)
    {
        if (!_thread!.Join(glance))
        {
            if (_round.Performed != _seen)
            {
                _seen = _round.Performed;
                _still.Restart();
            }

            if (_still.Elapsed < patience)
            {
                return false;
            }

            // It cannot be joined; it is a background thread and ends with the process.
            _found.Add(new FuzzFinding("HANG", string.Create(CultureInfo.InvariantCulture, $"no call ended within {patience.TotalSeconds:0} s"), _round.Number, _round.Performed, string.Join("; ", _round.UnderWay())));
            Steps += _round.Performed;
            _thread = null;
            return true;
        }

        _thread = null;
        if (_failure is { } failure)
        {
            System.Runtime.ExceptionServices.ExceptionDispatchInfo.Capture(failure).Throw();
        }

        Steps += _round.Performed;
        _found.AddRange(_round.Found);
        foreach (LeafCount count in _round.Counts)
        {
            (string, bool, ulong) key = (count.Leaf, count.IsGuest, count.Status.Value);
            _counts[key] = _counts.GetValueOrDefault(key) + count.Times;
        }

        return true;
    }
}
