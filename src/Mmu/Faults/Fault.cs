namespace Tdp.Mmu;

/// <summary>One fault on its way through the MMU (KVM: kvm_page_fault; tdp-mmu 1.7). Lives on the stack of the fault.</summary>
/// <remarks>Kept small, and its zero is a valid start: every store here is paid by every fault.</remarks>
public ref struct Fault
{
    /// <summary>Output of the backing: the slot, or null.</summary>
    public MmuSlot? Slot;

    /// <summary>Output of the backing: frame number of the page.</summary>
    public ulong Pfn;

    /// <summary>Output of the backing when there is no slot: memslot generation for the MMIO entry.</summary>
    public ulong SlotGeneration;

    /// <summary>Output: a huge page is refused because of the NX workaround.</summary>
    public bool HugePageDisallowed;

    /// <summary>Output of the backing: the page may be mapped writable.</summary>
    public bool MapWritable;

    /// <summary>Output of the backing: the page is device memory (uncached).</summary>
    public bool IsDevice;

    private byte _levelsBelowMax;
    private byte _reqAbove4K;
    private byte _goalAbove4K;
    private bool _prefetch;

    /// <summary>The vCPU.</summary>
    public MmuVcpu Vcpu { readonly get; internal set; }

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
        readonly get => _prefetch;
        internal set => _prefetch = value;
    }

    /// <summary>Largest level allowed, at first 1G; the backing lowers it.</summary>
    public Level MaxLevel
    {
        readonly get => new(Level.G1.Value - _levelsBelowMax);
        set => _levelsBelowMax = (byte)(Level.G1.Value - value.Value);
    }

    /// <summary>Level the backing would allow (tdp-mmu 5.7).</summary>
    public Level ReqLevel
    {
        readonly get => new(_reqAbove4K + 1);
        internal set => _reqAbove4K = (byte)(value.Value - 1);
    }

    /// <summary>Level that is mapped.</summary>
    public Level GoalLevel
    {
        readonly get => new(_goalAbove4K + 1);
        internal set => _goalAbove4K = (byte)(value.Value - 1);
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
}
