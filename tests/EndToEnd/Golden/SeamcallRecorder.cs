using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.EndToEnd.Golden;

/// <summary>One recorded SEAMCALL.</summary>
public readonly record struct Seamcall(TdhLeaf Leaf, ulong Rcx, ulong Rdx, ulong R8, TdxStatus Status)
{
    public override string ToString() => $"{Leaf}(0x{Rcx:x}, 0x{R8:x}) = {Status}";
}

/// <summary>Records SEAMCALLs in order; a test may act while one is about to be executed.</summary>
public sealed class SeamcallRecorder : IModuleObserver, IBusyInjector
{
    private readonly List<Seamcall> _calls = [];
    private readonly object _gate = new();

    /// <summary>Called before each SEAMCALL, on the calling thread.</summary>
    public Action<LogicalProcessor, SeamRegisters>? Before { get; set; }

    /// <summary>Says which calls answer BUSY; null for none.</summary>
    public Func<TdhLeaf, TdxStatus?>? Busy { get; set; }

    public IReadOnlyList<Seamcall> Calls
    {
        get
        {
            lock (_gate)
                return [.. _calls];
        }
    }

    /// <summary>Calls of the memory leaves and WBINVD, which is what a mirror change makes.</summary>
    public IReadOnlyList<Seamcall> Memory
    {
        get
        {
            lock (_gate)
                return _calls.FindAll(c => IsMemory(c.Leaf));
        }
    }

    public int Count(TdhLeaf leaf)
    {
        lock (_gate)
            return _calls.FindAll(c => c.Leaf == leaf).Count;
    }

    public void Clear()
    {
        lock (_gate)
            _calls.Clear();
    }

    void IModuleObserver.Calling(LogicalProcessor lp, in SeamRegisters registers) => Before?.Invoke(lp, registers);

    void IModuleObserver.Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after)
    {
        lock (_gate)
            _calls.Add(new Seamcall((TdhLeaf)(ushort)before.Rax, before.Rcx, before.Rdx, before.R8, after.Status));
    }

    void IModuleObserver.GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited)
    {
    }

    bool IBusyInjector.TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
    {
        TdxStatus? injected = Busy?.Invoke(leaf);
        status = injected ?? default;
        return injected is not null;
    }

    private static bool IsMemory(TdhLeaf leaf) => leaf
        is TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_TRACK
        or TdhLeaf.MEM_PAGE_REMOVE or TdhLeaf.PHYMEM_PAGE_WBINVD or TdhLeaf.MEM_SEPT_REMOVE;
}
