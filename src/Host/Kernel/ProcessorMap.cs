namespace Tdp.Host;

/// <summary>
/// Which actor runs on which logical processor. A processor's TLB, hazard slot and tick count belong to one thread at a time, so an actor holds a
/// processor from <see cref="Bind(Actor)"/> to <see cref="Unbind"/> and nobody else uses it meanwhile.
/// </summary>
/// <remarks>
/// A call that must run on a certain processor borrows it (<see cref="TryBorrow"/>), as smp_call_function does: the call runs on the caller's thread while the
/// processor's own actor is away. Holding and borrowing change under one lock, so a processor that was found idle stays the finder's until it is returned.
/// </remarks>
public sealed class ProcessorMap
{
    private readonly Machine _machine;
    private readonly SpinLock _lock = new("processors");
    private readonly LogicalProcessor?[] _ofActor = new LogicalProcessor?[Actor.Max];
    private readonly Actor?[] _ofProcessor;

    /// <summary>Makes the map with nobody on any processor.</summary>
    public ProcessorMap(Machine machine)
    {
        _machine = machine;
        _ofProcessor = new Actor?[machine.Processors.Count];
    }

    /// <summary>The processor that the actor holds.</summary>
    /// <exception cref="InvalidOperationException">It holds none.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public LogicalProcessor Of(Actor actor) => _ofActor[actor.Index] ?? throw NotBound(actor);

    /// <summary>The processor that the actor holds, or null.</summary>
    public LogicalProcessor? TryOf(Actor actor) => _ofActor[actor.Index];

    /// <summary>Takes the highest numbered free processor, which leaves the low numbers to the vCPUs of the same number.</summary>
    /// <exception cref="InvalidOperationException">All are held.</exception>
    public LogicalProcessor Bind(Actor actor)
    {
        _lock.Enter(actor);
        try
        {
            for (int id = _ofProcessor.Length - 1; id >= 0; id--)
            {
                if (_ofProcessor[id] is null)
                    return Take(actor, id);
            }
        }
        finally
        {
            _lock.Exit(actor);
        }

        throw new InvalidOperationException($"{actor} needs a logical processor, and all {_ofProcessor.Length} are held.");
    }

    /// <summary>Takes one particular processor.</summary>
    /// <exception cref="InvalidOperationException">Another actor holds it.</exception>
    public LogicalProcessor Bind(Actor actor, int processor)
    {
        _lock.Enter(actor);
        try
        {
            if (_ofProcessor[processor] is { } holder && !ReferenceEquals(holder, actor))
                throw new InvalidOperationException($"{actor} cannot run on LP {processor}: {holder} does.");
            return Take(actor, processor);
        }
        finally
        {
            _lock.Exit(actor);
        }
    }

    /// <summary>The actor leaves its processor. Harmless when it holds none.</summary>
    public void Unbind(Actor actor)
    {
        _lock.Enter(actor);
        if (_ofActor[actor.Index] is { } lp)
        {
            _ofProcessor[lp.Id] = null;
            _ofActor[actor.Index] = null;
        }

        _lock.Exit(actor);
    }

    /// <summary>
    /// Borrows a processor for one call: the actor's own, which it keeps, or one that nobody holds, which is nobody else's until the loan is disposed.
    /// </summary>
    /// <returns>False when another actor holds or borrows it; the loan is empty then.</returns>
    public bool TryBorrow(Actor actor, int processor, out ProcessorLoan loan)
    {
        _lock.Enter(actor);
        bool isOwn = ReferenceEquals(_ofProcessor[processor], actor);
        bool isFree = _ofProcessor[processor] is null;
        if (isFree)
            _ofProcessor[processor] = actor;
        _lock.Exit(actor);
        loan = isOwn || isFree ? new ProcessorLoan(this, actor, _machine.Processors[processor], mustReturn: isFree) : default;
        return isOwn || isFree;
    }

    /// <summary>Borrows a processor of a package: the actor's own if it is of that package, else one that nobody holds.</summary>
    /// <returns>False when every processor of the package is held by others.</returns>
    public bool TryBorrowOf(Actor actor, int package, out ProcessorLoan loan)
    {
        if (_ofActor[actor.Index] is { } own && own.Package == package)
            return TryBorrow(actor, own.Id, out loan);
        foreach (LogicalProcessor lp in _machine.Processors)
        {
            if (lp.Package == package && TryBorrow(actor, lp.Id, out loan))
                return true;
        }

        loan = default;
        return false;
    }

    /// <summary>Who holds a processor, or null; for checkers.</summary>
    public Actor? HolderOf(int processor) => _ofProcessor[processor];

    internal void Return(Actor actor, LogicalProcessor lp)
    {
        _lock.Enter(actor);
        _ofProcessor[lp.Id] = null;
        _lock.Exit(actor);
    }

    private LogicalProcessor Take(Actor actor, int id)
    {
        if (_ofActor[actor.Index] is { } before && before.Id != id)
            _ofProcessor[before.Id] = null;
        LogicalProcessor lp = _machine.Processors[id];
        _ofProcessor[id] = actor;
        _ofActor[actor.Index] = lp;
        return lp;
    }

    private static InvalidOperationException NotBound(Actor actor) => new($"{actor} makes a call that needs a logical processor, but runs on none.");
}

/// <summary>A processor that an actor uses for one call (<see cref="ProcessorMap.TryBorrow"/>); disposing gives it back.</summary>
public readonly struct ProcessorLoan : IDisposable
{
    private readonly ProcessorMap? _map;
    private readonly Actor? _actor;

    internal ProcessorLoan(ProcessorMap map, Actor actor, LogicalProcessor lp, bool mustReturn)
    {
        Processor = lp;
        if (!mustReturn)
            return;
        _map = map;
        _actor = actor;
    }

    /// <summary>The processor.</summary>
    public LogicalProcessor Processor { get; }

    /// <summary>Gives the processor back, unless it is the actor's own.</summary>
    public void Dispose() => _map?.Return(_actor!, Processor);
}
