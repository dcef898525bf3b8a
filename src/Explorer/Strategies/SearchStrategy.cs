namespace Tdp.Explorer;

/// <summary>How an execution ended.</summary>
public enum ExecutionEnd
{
    /// <summary>Every actor ended and nothing was found.</summary>
    Clean,

    /// <summary>An oracle or an invariant was violated.</summary>
    Violated,

    /// <summary>The strategy gave it up: everything it could still show has been seen.</summary>
    Abandoned,

    /// <summary>A bound was hit: points of an operation, attempts of a retry loop. Not a pass.</summary>
    Bounded,
}

/// <summary>Decides, at each point, which actor runs (race-explorer 7).</summary>
internal abstract class SearchStrategy
{
    /// <summary>Answer of <see cref="Choose"/>: give this execution up.</summary>
    public const int Abandon = -1;

    /// <summary>Name with its parameters, as <c>--strategy</c> takes it.</summary>
    public abstract string Name { get; }

    /// <summary>True when it needs the happens-before order of the events.</summary>
    public virtual bool NeedsOrder => false;

    /// <summary>True when retry loops become waits for a change (race-explorer 5.6).</summary>
    public virtual bool IsExhaustive => false;

    /// <summary>Starts the next execution.</summary>
    /// <param name="engine">Who runs it.</param>
    /// <param name="seed">The execution's seed.</param>
    /// <returns>False when there is nothing left to try.</returns>
    public abstract bool Begin(Engine engine, ulong seed);

    /// <summary>Picks one of the enabled lanes, or <see cref="Abandon"/>.</summary>
    /// <param name="engine">Who asks.</param>
    /// <param name="enabled">The lanes that can run; never 0.</param>
    /// <param name="current">The lane that ran last, enabled or not; -1 at the beginning.</param>
    public abstract int Choose(Engine engine, uint enabled, int current);

    /// <summary>An event is complete, with its uses.</summary>
    public virtual void Executed(Engine engine, int index)
    {
    }

    /// <summary>The running lane goes round a retry loop.</summary>
    public virtual void Yielded(Engine engine, int lane)
    {
    }

    /// <summary>The execution has ended.</summary>
    public virtual void End(Engine engine, ExecutionEnd end)
    {
    }

    /// <summary>Objects turned out to be shared that were thought local: what was counted so far does not count (race-explorer 7.4).</summary>
    public virtual void Restart()
    {
    }
}
