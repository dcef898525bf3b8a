namespace Tdp.Host;

/// <summary>
/// Which actor runs on which logical processor. A processor's TLB, hazard slot and tick count belong to one thread at a time, so an actor holds a
/// processor from <see cref="Bind(Actor)"/> to <see cref="Unbind"/> and nobody else uses it meanwhile.
/// </summary>
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
    /// A processor of the package on which <paramref name="actor"/> may make one call: its own if it is of that package, else one that nobody
    /// holds. This stands for smp_call_function: the call runs on the caller's thread while the target is idle.
    /// </summary>
    /// <returns>Null when every processor of the package is held by others.</returns>
    public LogicalProcessor? IdleOf(Actor actor, int package)
    {
        if (_ofActor[actor.Index] is { } own && own.Package == package)
            return own;
        foreach (LogicalProcessor lp in _machine.Processors)
        {
            if (lp.Package == package && _ofProcessor[lp.Id] is null)
                return lp;
        }

        return null;
    }

    /// <summary>Who holds a processor, or null; for checkers.</summary>
    public Actor? HolderOf(int processor) => _ofProcessor[processor];

    /// <summary>True when the actor may make a call on the processor: it holds it, or nobody does.</summary>
    public bool MayUse(Actor actor, int processor) => _ofProcessor[processor] is not { } holder || ReferenceEquals(holder, actor);

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
