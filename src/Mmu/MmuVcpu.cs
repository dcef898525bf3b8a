namespace Tdp.Mmu;

/// <summary>
/// The MMU of one vCPU: its loaded roots and the caches that are filled before a lock is taken and consumed under it (tdp-mmu 1.4, 1.8). Used by one actor at
/// a time.
/// </summary>
public sealed class MmuVcpu
{
    /// <summary>Objects per cache (KVM: KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE).</summary>
    public const int CacheCapacity = 40;

    /// <summary>What one fault can consume: a table for each level.</summary>
    internal const int NeededPerFault = 5;

    // Fewer than there is room for: a table taken soon after it was filled is still in the processor's cache.
    private const int RefillTo = 9;
    // The record in use, with room on both sides: every fault writes it, and no other vCPU may share its cache lines.
    private const int FaultInUse = 2;
    private readonly Fault[] _faults = new Fault[(2 * FaultInUse) + 1];
    private readonly uint[] _tables = new uint[CacheCapacity];
    private readonly Hpa[] _external = new Hpa[CacheCapacity];
    private readonly int _externalNeeded;
    private int _tableCount;
    private int _externalCount;

    /// <summary>Makes the MMU of vCPU <paramref name="id"/>; roots come with <see cref="TdpMmu.ReloadRoots"/>.</summary>
    public MmuVcpu(TdpMmu mmu, Actor actor, int id)
    {
        Mmu = mmu;
        Actor = actor;
        Id = id;
        _faults[FaultInUse].Vcpu = this;
        _externalNeeded = mmu.Options.HasMirror ? NeededPerFault : 0;
    }

    /// <summary>The VM's MMU.</summary>
    public TdpMmu Mmu { get; }

    /// <summary>Who runs the vCPU now.</summary>
    public Actor Actor { get; set; }

    /// <summary>Number of the vCPU.</summary>
    public int Id { get; }

    /// <summary>SMM: the second address space. Roots must be reloaded after a change. Always false in a TD.</summary>
    public bool IsSmm { get; set; }

    /// <summary>Nested guest. Roots must be reloaded after a change. Always false in a TD.</summary>
    public bool IsGuestMode { get; set; }

    /// <summary>The direct root, or null: then the roots must be (re)loaded.</summary>
    public Root? DirectRoot { get; internal set; }

    /// <summary>The mirror root, or null. Never null while <see cref="DirectRoot"/> is not, in a TD (I42).</summary>
    public Root? MirrorRoot { get; internal set; }

    /// <summary>
    /// Whatever the backing keeps for this vCPU between faults; the MMU never looks at it. Used by the vCPU's actor alone.
    /// </summary>
    public object? LookupState { get; set; }

    /// <summary>Filled by the backing together with <see cref="FaultResult.BadAddress"/>; what the memory-fault exit reports. Size 0: there is no such exit.</summary>
    public MemoryFaultInfo MemoryFault { get; set; }

    /// <summary>The record of the fault that runs now, or of the last one: for checkers on the vCPU's own thread, or while it cannot run.</summary>
    public ref readonly Fault CurrentFault => ref _faults[FaultInUse];

    /// <summary>The record of the fault that runs now.</summary>
    internal ref Fault Fault
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => ref _faults[FaultInUse];
    }

    /// <summary>Tables in the cache, taken from the stock and not used yet.</summary>
    public int TableCount => _tableCount;

    /// <summary>Frame number + 1 of the last MMIO access and the generation it was valid in.</summary>
    internal ulong MmioGfnPlusOne { get; set; }

    /// <summary>See <see cref="MmioGfnPlusOne"/>.</summary>
    internal ulong MmioGeneration { get; set; }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool TopUp() =>
        (_tableCount >= NeededPerFault && _externalCount >= _externalNeeded) || Refill();

    internal uint TakeTable()
    {
        if (_tableCount == 0)
            throw new HostBugException("a table was taken that the cache was not topped up for");
        return _tables[--_tableCount];
    }

    internal Hpa TakeExternal()
    {
        if (_externalCount == 0)
            throw new HostBugException("an external page was taken that the cache was not topped up for");
        return _external[--_externalCount];
    }

    /// <summary>Empties the caches; when the vCPU ends.</summary>
    internal void Drain()
    {
        while (_tableCount > 0)
            Mmu.Tables.Give(_tables[--_tableCount]);
        while (_externalCount > 0)
            Mmu.Machine.Frames.Return(_external[--_externalCount], FrameUse.Kernel);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool Refill()
    {
        if (_tableCount < NeededPerFault)
            _tableCount += Mmu.Tables.TakeMany(Actor, _tables.AsSpan(_tableCount, RefillTo - _tableCount));
        if (_externalCount < _externalNeeded)
            _externalCount += Mmu.Machine.Frames.TakeMany(Actor, FrameUse.Kernel, _external.AsSpan(_externalCount));
        return _tableCount >= NeededPerFault && _externalCount >= _externalNeeded;
    }
}
