using System.Globalization;
using Tdp.Harness.Invariants;

namespace Tdp.Harness.Scenarios;

/// <summary>Something that the module's stress found, with the call and with what repeats it.</summary>
/// <param name="Rule">The rule's number or name.</param>
/// <param name="Text">What is wrong.</param>
/// <param name="Round">The round.</param>
/// <param name="Step">The step of the round after which it was found, from 1; in a parallel round the last of the slice.</param>
/// <param name="Call">The step itself; null in a parallel round, where no single one can be named.</param>
internal sealed record FuzzFinding(string Rule, string Text, long Round, long Step, string? Call);

/// <summary>
/// One round of the module's stress: a fresh machine, a module in some stage of its life, and a number of steps on two processors. Even rounds are sequential: one thread drives both processors,
/// every run is the same, and a finding is traced to its step by performing the round again with a look after each. Odd rounds use a thread per processor, so that locks meet; their steps are
/// fixed by the seed, their order is not.
/// </summary>
internal sealed class FuzzRound
{
    /// <summary>Steps of a round, both processors together.</summary>
    public const int Steps = 5_000;

    private const int Slice = 1_250;
    private const int SnapshotOneIn = 48;
    private readonly ulong _seed;
    private readonly SharedCell<long> _performed = new("fuzz-steps");
    private readonly FuzzStep[] _current = new FuzzStep[FuzzWorld.Processors];
    private readonly List<FuzzFinding> _found = [];
    private IReadOnlyList<LeafCount> _counts = [];

    /// <summary>Makes a round.</summary>
    /// <param name="seed">The master seed.</param>
    /// <param name="number">The number of the round, from 0.</param>
    public FuzzRound(ulong seed, long number)
    {
        _seed = seed;
        Number = number;
    }

    /// <summary>The number of the round.</summary>
    public long Number { get; }

    /// <summary>True when each processor has a thread of its own.</summary>
    public bool IsParallel => (Number & 1) != 0;

    /// <summary>Steps performed; any thread.</summary>
    public long Performed => _performed.Peek();

    /// <summary>What was found; empty for a sound module.</summary>
    public IReadOnlyList<FuzzFinding> Found => _found;

    /// <summary>Calls by leaf and status, after the run.</summary>
    public IReadOnlyList<LeafCount> Counts => _counts;

    /// <summary>The steps that are under way, for a report about a round that hangs; may be torn.</summary>
    public IReadOnlyList<string> UnderWay()
    {
        List<string> lines = [];
        foreach (FuzzStep step in _current)
            lines.Add(step.ToString());
        return lines;
    }

    /// <summary>Runs the round to its end, to the first finding, or until <paramref name="stop"/> answers true.</summary>
    /// <param name="steps">At most this many steps.</param>
    /// <param name="stop">Asked between slices.</param>
    public void Run(int steps, Func<bool> stop)
    {
        using FuzzWorld world = Build();
        try
        {
            if (IsParallel)
                RunParallel(world, steps, stop);
            else
                RunSequential(world, steps, stop);
        }
        finally
        {
            _counts = world.Module.Counts();
        }
    }

    private FuzzWorld Build() => new(new SeedStream(_seed, "payload", (ulong)Number), !IsParallel);

    private FuzzGenerator Generator(FuzzWorld world, int thread) =>
        new(world.Layout, world.Machine.Description, new SeedStream(_seed, "program", ((ulong)Number << 1) | (uint)thread), world.Stage);

    private void RunSequential(FuzzWorld world, int steps, Func<bool> stop)
    {
        Sequence sequence = new(this, world);
        while (sequence.Done < steps && !stop())
        {
            int from = sequence.Done;
            int to = Math.Min(steps, from + Slice);
            bool clean = sequence.Advance(to, everyStep: false);
            if (clean)
                Inspect(world);
            if (world.Findings.Count == 0)
                continue;
            if (clean)
                Trace(from, to);
            if (_found.Count == 0)
                Take(world, sequence.Done, clean ? null : sequence.Last.ToString());
            if (_found.Exists(found => found.Rule == "TM07"))
                Explain(sequence.Done);
            return;
        }
    }

    // What a failed call changed: the same steps up to it in a new world, then the state in words on both sides of it.
    private void Explain(int step)
    {
        using FuzzWorld world = Build();
        Sequence sequence = new(this, world);
        sequence.Advance(step - 1, everyStep: false);
        SortedDictionary<string, string> before = FuzzSnapshot.Describe(world);
        sequence.Advance(step, everyStep: false);
        _found.Add(new FuzzFinding("TM07", FuzzSnapshot.Difference(before, FuzzSnapshot.Describe(world)), Number, step, sequence.Last.ToString()));
    }

    // The same steps in a new world, with a look after each of them.
    private void Trace(int from, int to)
    {
        using FuzzWorld world = Build();
        Sequence sequence = new(this, world);
        if (sequence.Advance(from, everyStep: false))
            sequence.Advance(to, everyStep: true);
        if (world.Findings.Count != 0)
            Take(world, sequence.Done, sequence.Last.ToString());
    }

    private void RunParallel(FuzzWorld world, int steps, Func<bool> stop)
    {
        FuzzGenerator[] generators = [Generator(world, 0), Generator(world, 1)];
        Actor[] actors = [world.Machine.Actors.Create("lp0"), world.Machine.Actors.Create("lp1")];
        SharedCell<bool> failed = new("fuzz-failed");
        int done = 0;
        while (done < steps && !stop() && world.Findings.Count == 0)
        {
            int each = Math.Min(Slice, steps - done + 1) / 2;
            for (int i = 0; i < actors.Length; i++)
            {
                int lp = i;
                actors[i].Start(_ => Drive(world, generators[lp], lp, Math.Max(1, each), failed));
            }

            foreach (Actor actor in actors)
                actor.Join();
            done += 2 * Math.Max(1, each);
            _performed.Write(done);
            if (world.Findings.Count == 0)
                Inspect(world);
        }

        if (world.Findings.Count != 0)
            Take(world, done, null);
    }

    private void Drive(FuzzWorld world, FuzzGenerator generator, int lp, int steps, SharedCell<bool> failed)
    {
        for (int i = 0; i < steps && !failed.Read(); i++)
        {
            FuzzStep step = generator.Next(lp, world.Module.CurrentVmcs(world.Machine.Processors[lp]) is not null);
            _current[lp] = step;
            if (!TryPerform(world, step, out _))
                failed.Write(true);
        }
    }

    // An exception of the module is what the stress looks for: it becomes a finding, never a crash.
    private static bool TryPerform(FuzzWorld world, in FuzzStep step, out TdxStatus status)
    {
        status = default;
        try
        {
            status = world.Perform(step);
            return true;
        }
        catch (Exception e)
        {
            string place = (e.StackTrace ?? string.Empty).Split('\n')[0].Trim();
            world.Findings.Add("EXCEPTION", $"{e.GetType().Name}: {e.Message.ReplaceLineEndings(" ")} ({place}): {step}");
            return false;
        }
    }

    private static void Inspect(FuzzWorld world)
    {
        try
        {
            ModuleInvariants.Check(world.Module, world.Findings);
        }
        catch (Exception e)
        {
            // Books so wrong that they cannot even be read.
            world.Findings.Add("EXCEPTION", string.Create(CultureInfo.InvariantCulture, $"the books cannot be read: {e.GetType().Name}: {e.Message.ReplaceLineEndings(" ")}"));
        }
    }

    private void Take(FuzzWorld world, long step, string? call)
    {
        foreach (Finding finding in world.Findings.All)
        {
            if (_found.Count < 10)
                _found.Add(new FuzzFinding(finding.Rule, finding.Text, Number, step, call));
        }
    }

    /// <summary>The steps of a sequential round, performed in one world in their one order.</summary>
    private sealed class Sequence(FuzzRound round, FuzzWorld world)
    {
        private readonly FuzzGenerator _generator = round.Generator(world, 0);
        private readonly SeedStream _choices = new(round._seed, "schedule", (ulong)round.Number);
        private FuzzStep _last;

        public int Done { get; private set; }

        public FuzzStep Last => _last;

        /// <summary>Goes on to step <paramref name="to"/>. False: a step found something itself.</summary>
        public bool Advance(int to, bool everyStep)
        {
            while (Done < to)
            {
                int lp = (int)_choices.Below(FuzzWorld.Processors);
                bool watched = _choices.Below(SnapshotOneIn) == 0;
                _last = _generator.Next(lp, world.Module.CurrentVmcs(world.Machine.Processors[lp]) is not null);
                round._current[lp] = _last;
                Done++;
                round._performed.Write(Done);
                if (watched ? !Watch() : !TryPerform(world, _last, out _))
                    return false;
                if (everyStep)
                    Inspect(world);
                if (world.Findings.Count != 0)
                    return false;
            }

            return true;
        }

        // TM07. What a failed call may change besides 7.3 is listed in tdx-module 4.6 (TD_EPOCH of a failed MNG.INIT).
        private bool Watch()
        {
            if (_last.Kind is not FuzzStepKind.Seamcall || (TdhLeaf)(ushort)_last.Registers.Rax is TdhLeaf.MNG_INIT)
                return TryPerform(world, _last, out _);
            ulong before = FuzzSnapshot.Digest(world);
            if (!TryPerform(world, _last, out TdxStatus status))
                return false;
            bool inside = world.Module.CurrentVmcs(world.Machine.Processors[_last.Lp]) is not null;
            if (status != TdxStatus.SUCCESS && !inside && FuzzSnapshot.Digest(world) != before)
                world.Findings.Add("TM07", $"{status} changed the module's state: {_last}");
            return true;
        }
    }
}
