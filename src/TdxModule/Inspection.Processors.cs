namespace Tdp.Module;

/// <summary>TD_EPOCH and its two counts, read as one word.</summary>
/// <param name="Epoch">TD_EPOCH.</param>
/// <param name="InCurrent">vCPUs that entered in this epoch and have not left.</param>
/// <param name="InPrevious">vCPUs that entered in the epoch before and have not left.</param>
public readonly record struct TrackView(ulong Epoch, uint InCurrent, uint InPrevious);

// What checkers ask at every call: no locks, no events, no allocation.
public sealed partial class TdxModule
{
    /// <summary>The tracking state of a TD; default when the page is no TDR.</summary>
    public TrackView Tracking(Hpa tdr)
    {
        if (Pamt(tdr) is not { Type: PageType.TDR } || _tds.Find(_memory.Record(tdr.Frame).Tag) is not { } td)
            return default;
        ulong word = td.Epoch.Peek();
        ulong epoch = EpochWord.Epoch(word);
        return new TrackView(epoch, EpochWord.Count(word, epoch), EpochWord.Count(word, epoch - 1));
    }

    /// <summary>True once SYS.LP.INIT has succeeded on the processor.</summary>
    public bool IsInitialized(int processor) => _lps[processor].IsInitialized;

    /// <summary>True after SYS.SHUTDOWN.</summary>
    public bool IsShutDown => (SystemState)(byte)_system.Word(0).Peek() == SystemState.SYS_SHUTDOWN;

    /// <summary>The root page of the vCPU that ran last on the processor, or 0: another one's entry flushes its translations (tdx-module 6.3).</summary>
    public Hpa LastRunOn(int processor) => _lps[processor].LastRun?.Tdvpr ?? default;
}
