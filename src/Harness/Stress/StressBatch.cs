using Microsoft.Extensions.ObjectPool;
using Tdp.Harness.Scenarios;

namespace Tdp.Harness.Stress;

/// <summary>Steps for one thread, on their way from the director to the thread and back.</summary>
internal sealed class StressBatch
{
    /// <summary>The steps.</summary>
    public List<StressOp> Ops { get; } = new(Capacity);

    /// <summary>Most steps of a batch. Small enough that a rendezvous is soon reached, large enough that the queues do not count.</summary>
    public const int Capacity = 64;
}

/// <summary>Keeps batches from being allocated anew: a run of a minute sends some hundred thousand of them.</summary>
internal sealed class StressBatchPolicy : PooledObjectPolicy<StressBatch>
{
    /// <inheritdoc/>
    public override StressBatch Create() => new();

    /// <inheritdoc/>
    public override bool Return(StressBatch obj)
    {
        obj.Ops.Clear();
        return true;
    }
}
