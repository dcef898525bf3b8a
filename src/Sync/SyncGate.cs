using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// Guards bookkeeping that no simulated behaviour depends on: lists of findings, leaks, log lines. No event, never held across one.
/// </summary>
public sealed class SyncGate
{
    private readonly object _gate = new();

    /// <summary>Enters; dispose to leave.</summary>
    public Held Hold()
    {
        Monitor.Enter(_gate);
        return new Held(_gate);
    }

    /// <summary>The section, left by disposing of it.</summary>
    public readonly ref struct Held
    {
        private readonly object _gate;

        internal Held(object gate) => _gate = gate;

        /// <summary>Leaves.</summary>
        public void Dispose() => Monitor.Exit(_gate);
    }
}
