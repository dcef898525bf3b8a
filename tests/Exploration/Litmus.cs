namespace Tdp.Tests.Exploration;

/// <summary>A tiny world of shared cells: what its actors do, and what must be true at the end.</summary>
internal sealed class Litmus : IExploredScenario
{
    private readonly Action<World> _build;

    private Litmus(string name, Action<World> build)
    {
        Name = name;
        _build = build;
    }

    public string Name { get; }

    public string Text => Name;

    public bool HasFairLocks { get; init; }

    public IReadOnlyList<string> BufferedCells { get; init; } = [];

    public IReadOnlyList<string> RequiredSites { get; init; } = [];

    public int MinPoints { get; init; }

    public static Litmus Of(string name, Action<World> build, bool fair = false, params string[] buffered) =>
        new(name, build) { HasFairLocks = fair, BufferedCells = buffered };

    public IExploredWorld Create()
    {
        var world = new World();
        _build(world);
        return world;
    }

    internal sealed class World : IExploredWorld
    {
        private readonly List<Action> _resets = [];
        private readonly List<ActorPlan> _plans = [];
        private Func<IReadOnlyList<OperationResult>, string?> _check = _ => null;
        private Func<SyncEvent, string?>? _watch;

        public ActorTable Actors { get; } = new();

        public IReadOnlyList<ActorPlan> Plans => _plans;

        public bool ChecksEvents => _watch is not null;

        public IExploration? Exploration { get; private set; }

        public SharedCell<long> Cell(string name, long initial = 0)
        {
            var cell = new SharedCell<long>(name, 0, initial);
            _resets.Add(() => cell.Write(initial));
            return cell;
        }

        public void OnReset(Action reset) => _resets.Add(reset);

        public void Actor(string name, params Action<Actor>[] operations) =>
            _plans.Add(new ActorPlan(Actors.Create(name), [.. operations.Select((o, i) => new ActorOperation($"op{i}", a =>
            {
                o(a);
                return 0;
            }))]));

        public void ActorWithResults(string name, params (string Name, Func<Actor, long> Run)[] operations) =>
            _plans.Add(new ActorPlan(Actors.Create(name), [.. operations.Select(o => new ActorOperation(o.Name, o.Run))]));

        public void Service(string name, Action<Actor> body) =>
            _plans.Add(new ActorPlan(Actors.Create(name), new ActorOperation(name, a =>
            {
                body(a);
                return 0;
            }))
            { IsService = true });

        /// <summary>At the end: null, or what is wrong.</summary>
        public void Check(Func<string?> check) => _check = _ => check();

        public void CheckResults(Func<IReadOnlyList<OperationResult>, string?> check) => _check = check;

        public void Watch(Func<SyncEvent, string?> watch) => _watch = watch;

        public void Reset(IExploration exploration, bool afterAbort)
        {
            Exploration = exploration;
            foreach (Action reset in _resets)
                reset();
        }

        public Violation? AtEvent(in SyncEvent happened) => _watch!(happened) is { } wrong ? new Violation("LITMUS", "", wrong) : null;

        public Violation? AtQuiescence(IReadOnlyList<OperationResult> results) => _check(results) is { } wrong ? new Violation("LITMUS", "", wrong) : null;

        public void Dispose()
        {
        }
    }
}
