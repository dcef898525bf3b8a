namespace Tdp.Harness.Scenarios;

/// <summary>A world that stress steps can be performed in: threads 0..<see cref="Vcpus"/> - 1 are vCPUs, the rest are threads of the host.</summary>
public interface IStressTarget : IDisposable
{
    /// <summary>How many vCPUs.</summary>
    int Vcpus { get; }

    /// <summary>How many threads in all.</summary>
    int Threads { get; }

    /// <summary>Pages that steps may name.</summary>
    int Pages { get; }

    /// <summary>What was found wrong so far.</summary>
    FindingLog Findings { get; }

    /// <summary>The actor of a thread. Nothing else runs as it.</summary>
    Actor ActorOf(int thread);

    /// <summary>Performs steps on the calling thread, which runs as that thread's actor. Returns early when the VM has died.</summary>
    void Perform(int thread, IReadOnlyList<StressOp> ops);

    /// <summary>Checks what must hold when no operation is in flight. No thread may be performing.</summary>
    void CheckAtRest();

    /// <summary>Looks at the progress of the threads, which may be running or hanging, and remembers it for the next look. Any thread; one at a time.</summary>
    /// <param name="isStuck">No thread has finished anything since the last look, for longer than anything may take: say why.</param>
    void Watch(bool isStuck)
    {
    }

    /// <summary>Ends the VM and checks what must hold afterwards. No thread may be performing.</summary>
    void TearDown();
}
