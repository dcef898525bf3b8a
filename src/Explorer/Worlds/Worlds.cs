namespace Tdp.Explorer;

/// <summary>One operation of an actor: a fault, a zap, a conversion.</summary>
/// <param name="Name">What it is, for schedules and reports: <c>fault gfn=0x200 write private</c>.</param>
/// <param name="Run">The operation. Returns its result, for the linearizability check; 0 when there is nothing to tell.</param>
public sealed record ActorOperation(string Name, Func<Actor, long> Run);

/// <summary>What one actor of a world does: its operations, one after the other, on a thread of the engine's.</summary>
public sealed class ActorPlan
{
    /// <summary>Makes the plan of an actor with operations.</summary>
    /// <param name="actor">The actor; its name is the one in schedules.</param>
    /// <param name="operations">At least one.</param>
    public ActorPlan(Actor actor, params ActorOperation[] operations)
    {
        Actor = actor;
        Operations = operations;
    }

    /// <summary>Makes the plan of an actor with one operation.</summary>
    public ActorPlan(Actor actor, string name, Action<Actor> body)
        : this(actor, new ActorOperation(name, a =>
        {
            body(a);
            return 0;
        }))
    {
    }

    /// <summary>The actor. It belongs to the world and stays the same over all executions.</summary>
    public Actor Actor { get; }

    /// <summary>Its operations.</summary>
    public IReadOnlyList<ActorOperation> Operations { get; }

    /// <summary>
    /// True for an actor that serves the others (grace periods, timers) and has nothing to do when they have ended. Its waits must also hold once
    /// <see cref="IExploration.IsOver"/> says so.
    /// </summary>
    public bool IsService { get; init; }
}

/// <summary>What a running world may ask its exploration.</summary>
public interface IExploration
{
    /// <summary>True when every actor that is no service has ended.</summary>
    bool IsOver { get; }
}

/// <summary>A rule was broken.</summary>
/// <param name="Oracle">The oracle that saw it, such as <c>ATTR</c> or <c>DEADLOCK</c>.</param>
/// <param name="Invariant">The invariant, such as <c>I58</c>, or an empty text.</param>
/// <param name="Message">What was seen, in one line.</param>
public sealed record Violation(string Oracle, string Invariant, string Message)
{
    /// <summary>What must stay the same while a failure is shrunk: the same oracle and invariant.</summary>
    public string Class => Invariant.Length == 0 ? Oracle : $"{Oracle} {Invariant}";
}

/// <summary>
/// A world that can be run again and again. Everything its actors share must be reached through the primitives of Sync, and nothing may depend on
/// time, addresses or hash order (race-explorer 4).
/// </summary>
public interface IExploredWorld : IDisposable
{
    /// <summary>The actors, in the order of their positions; at most <see cref="Engine.MaxActors"/>.</summary>
    IReadOnlyList<ActorPlan> Plans { get; }

    /// <summary>True when <see cref="AtEvent"/> is to be called.</summary>
    bool ChecksEvents { get; }

    /// <summary>
    /// Brings the world to its initial state, the same to the last bit each time. Called before every execution, the first included.
    /// </summary>
    /// <param name="exploration">Who runs the world now.</param>
    /// <param name="afterAbort">True when the last execution was given up in the middle: locks may still be held, structures half changed.</param>
    void Reset(IExploration exploration, bool afterAbort);

    /// <summary>Judges the world right after an event, on the thread that performed it. Reads only; looks at the event's object first.</summary>
    /// <returns>Null when nothing is wrong.</returns>
    Violation? AtEvent(in SyncEvent happened);

    /// <summary>Judges the world when every actor has ended.</summary>
    /// <param name="results">Results of the operations, by actor and operation.</param>
    /// <returns>Null when nothing is wrong.</returns>
    Violation? AtQuiescence(IReadOnlyList<OperationResult> results);

    /// <summary>What an exception that an operation threw means.</summary>
    Violation Explain(Exception thrown) => new("EXCEPTION", thrown?.GetType().Name ?? string.Empty, thrown?.Message ?? string.Empty);
}

/// <summary>How one operation of an execution went.</summary>
/// <param name="Actor">Position of the actor.</param>
/// <param name="Operation">Position of the operation within the actor.</param>
/// <param name="Begin">Index of the event before which it began.</param>
/// <param name="End">Index of the event before which it had ended.</param>
/// <param name="Value">What it returned.</param>
public readonly record struct OperationResult(int Actor, int Operation, int Begin, int End, long Value);

/// <summary>A world that can be made, with what is demanded of its executions.</summary>
public interface IExploredScenario
{
    /// <summary>Its name in schedules and reports.</summary>
    string Name { get; }

    /// <summary>The text it was made from, or another complete description: its hash goes into seeds and certificates.</summary>
    string Text { get; }

    /// <summary>Reader-writer locks are queued, as the kernel's are; otherwise every order that exclusion allows is explored.</summary>
    bool HasFairLocks { get; }

    /// <summary>
    /// Names of the cells whose plain stores go through a store buffer (race-explorer 9); empty for sequential consistency. A <c>*</c> at the end matches any rest.
    /// </summary>
    IReadOnlyList<string> BufferedCells { get; }

    /// <summary>Sites that must have been executed at least once in the whole exploration, or it proves nothing (race-explorer 4.6).</summary>
    IReadOnlyList<string> RequiredSites { get; }

    /// <summary>Fewest points an execution must have.</summary>
    int MinPoints { get; }

    /// <summary>Makes the world.</summary>
    IExploredWorld Create();
}
