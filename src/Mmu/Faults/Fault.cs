namespace Tdp.Mmu;

/// <summary>
/// One fault on its way through the MMU (KVM: kvm_page_fault; tdp-mmu 1.7). Each vCPU has one record that its faults use again and again: there is nothing to clear but what
/// the next one does not overwrite. Valid until the call that got it returns.
/// </summary>
public struct Fault
{
    private MmuSlot? _slot;

    /// <summary>Output of the backing: frame number of the page.</summary>
    public ulong Pfn;

    /// <summary>Output of the backing when there is no slot: memslot generation for the MMIO entry.</summary>
    public ulong SlotGeneration;

    // Flags and levels in one word, so that one store clears them and one comparison tells an ordinary fault.
    private ulong _state;

    /// <summary>The vCPU.</summary>
    public MmuVcpu Vcpu { readonly get; internal set; }

    /// <summary>Output of the backing: the slot; null until it says otherwise.</summary>
    public MmuSlot? Slot
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        readonly get => (_state & HasSlotBit) != 0 ? _slot : null;
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        set
        {
            // Faults of one vCPU mostly find the slot of the one before: a reference that stays need not be stored.
            if (!ReferenceEquals(_slot, value))
                _slot = value;
            Set(HasSlotBit, value is not null);
        }
    }

    /// <summary>Output: a huge page is refused because of the NX workaround.</summary>
    public bool HugePageDisallowed
    {
        readonly get => (_state & HugePageDisallowedBit) != 0;
        internal set => Set(HugePageDisallowedBit, value);
    }

    /// <summary>Output of the backing: the page may be mapped writable.</summary>
    public bool MapWritable
    {
        readonly get => (_state & MapWritableBit) != 0;
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        set => Set(MapWritableBit, value);
    }

    /// <summary>Output of the backing: the page is device memory (uncached).</summary>
    public bool IsDevice
    {
        readonly get => (_state & IsDeviceBit) != 0;
        set => Set(IsDeviceBit, value);
    }

    /// <summary>Faulting address, with the alias bit.</summary>
    public Gpa Addr { readonly get; internal set; }

    /// <summary>See <see cref="PfErr"/>.</summary>
    public ulong ErrorCode { readonly get; internal set; }

    /// <summary>The address without alias bit, in pages.</summary>
    public Gfn Gfn { readonly get; internal set; }

    /// <summary>Snapshot of the invalidation sequence, taken by the MMU before the backing looks anything up.</summary>
    public ulong Seq { readonly get; internal set; }

    /// <summary>Not caused by an access: KVM_PRE_FAULT_MEMORY and the initial image.</summary>
    public bool Prefetch
    {
        readonly get => (_state & PrefetchBit) != 0;
        internal set => Set(PrefetchBit, value);
    }

    /// <summary>Largest level allowed, at first 1G; the backing lowers it.</summary>
    public Level MaxLevel
    {
        readonly get => new(Level.G1.Value - (int)((_state >> BelowMaxShift) & 7));
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        set => _state = (_state & ~BelowMaxMask) | ((ulong)(uint)(Level.G1.Value - value.Value) << BelowMaxShift);
    }

    /// <summary>Level the backing would allow (tdp-mmu 5.7).</summary>
    public Level ReqLevel
    {
        readonly get => new((int)((_state >> ReqShift) & 7) + 1);
        internal set => _state = (_state & ~(7UL << ReqShift)) | ((ulong)(uint)(value.Value - 1) << ReqShift);
    }

    /// <summary>Level that is mapped.</summary>
    public Level GoalLevel
    {
        readonly get => new((int)((_state >> GoalShift) & 7) + 1);
        internal set => _state = (_state & ~(7UL << GoalShift)) | ((ulong)(uint)(value.Value - 1) << GoalShift);
    }

    /// <summary>Instruction fetch.</summary>
    public readonly bool Exec => (ErrorCode & PfErr.Fetch) != 0;

    /// <summary>Write.</summary>
    public readonly bool Write => (ErrorCode & PfErr.Write) != 0;

    /// <summary>The entry granted something.</summary>
    public readonly bool Present => (ErrorCode & PfErr.Present) != 0;

    /// <summary>MMIO misconfiguration.</summary>
    public readonly bool Rsvd => (ErrorCode & PfErr.Rsvd) != 0;

    /// <summary>The access names the private alias.</summary>
    public readonly bool IsPrivate => (ErrorCode & PfErr.PrivateAccess) != 0;

    /// <summary>
    /// True for what nearly every fault turns out to be: an access to ordinary writable memory in a slot, mapped at 4K. <see cref="MaxLevel"/> plays no part any more.
    /// </summary>
    internal readonly bool IsOrdinary
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (_state & ~BelowMaxMask) == (HasSlotBit | MapWritableBit);
    }

    /// <summary>The slot of a fault that <see cref="IsOrdinary"/>.</summary>
    internal readonly MmuSlot OrdinarySlot
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => _slot!;
    }

    /// <summary>True when no level above 4K is allowed.</summary>
    internal readonly bool IsLimitedTo4K
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (_state & BelowMaxMask) == 2UL << BelowMaxShift;
    }

    private const ulong HasSlotBit = 1;
    private const ulong HugePageDisallowedBit = 2;
    private const ulong MapWritableBit = 4;
    private const ulong IsDeviceBit = 8;
    private const ulong PrefetchBit = 16;
    private const int BelowMaxShift = 8;
    private const ulong BelowMaxMask = 7UL << BelowMaxShift;
    private const int ReqShift = 12;
    private const int GoalShift = 16;

    /// <summary>Begins a new fault.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void Begin(Gpa addr, ulong errorCode, Gfn gfn)
    {
        Addr = addr;
        ErrorCode = errorCode;
        Gfn = gfn;
        _state = 0;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Set(ulong bit, bool value) => _state = value ? _state | bit : _state & ~bit;
}
