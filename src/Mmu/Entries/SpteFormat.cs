namespace Tdp.Mmu;

/// <summary>
/// How one VM builds its entries (KVM: make_spte and friends; tdp-mmu 2.4, 2.6): the constants that follow from the host's EPT features and the
/// VM's kind.
/// </summary>
public sealed class SpteFormat
{
    private const ulong GenerationLow = 0xFF;
    private const ulong GenerationHigh = 0x7FF;
    private const ulong GenerationMask = (1UL << MmioGenerationBits) - 1;
    private const ulong UpdateInProgress = 1UL << 63;
    private const ulong MmioMask = Spte.SuppressVe | Spte.Rwx;
    private readonly ulong _presentMask;
    private readonly ulong _leafBase;
    private readonly ulong _mmioValue;
    private readonly bool _cachesMmio;

    /// <summary>Bits of the memslot generation that an MMIO entry holds; when they wrap, every direct root is zapped (tdp-mmu 2.6).</summary>
    public const int MmioGenerationBits = 19;

    /// <summary>Makes the format of a VM.</summary>
    public SpteFormat(MmuOptions options)
    {
        _presentMask = Spte.SuppressVe | (options.ExecOnly ? 0 : Spte.Readable);
        _leafBase = Spte.PresentBit | _presentMask | Spte.Readable;
        _mmioValue = options.HasMirror ? 0UL : Spte.WritableBit | Spte.ExecutableBit;
        _cachesMmio = options.MmioCaching;
        IsNxHugePages = options.NxHugePages;
        SetIgnoreGuestPat(options.IgnoreGuestPat);
    }

    /// <summary>Memory type of ordinary memory: write-back, with IPAT iff the guest's PAT is ignored. Device memory is uncached: 0.</summary>
    public ulong WriteBackType { get; private set; }

    /// <summary>Leaves above 4K are made without execute. Changed under mmu_lock write, read under mmu_lock.</summary>
    internal bool IsNxHugePages { get; set; }

    /// <summary>The bits of an entry that only an MMIO entry leaves at this value: 110b and bit 63 clear; in a TD 000b and bit 63 clear.</summary>
    public ulong MmioValue => _mmioValue;

    /// <summary>An entry that points to a table.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Spte Table(Hpa table, bool adDisabled) =>
        new(Spte.PresentBit | table.Value | _presentMask | Spte.Rwx | (adDisabled ? Spte.AdDisabled : Spte.AccessedBit));

    /// <summary>
    /// A leaf, in the order of tdp-mmu 2.4: it asks for R, W and X whatever the fault was.
    /// </summary>
    /// <param name="adType">Bits 53:52 for the tree (<see cref="Root.AdType"/>).</param>
    /// <param name="level">Level of the entry, 1..3.</param>
    /// <param name="pfn">Frame number, aligned to the level.</param>
    /// <param name="memoryType">Bits 6:3: <see cref="WriteBackType"/>, or 0 for device memory.</param>
    /// <param name="hostWritable">The host maps the page writable.</param>
    /// <param name="trackWrites">The page is write-tracked: W is refused.</param>
    /// <param name="prefetch">No access caused this: Accessed stays clear.</param>
    public Spte Leaf(ulong adType, int level, ulong pfn, ulong memoryType, bool hostWritable, bool trackWrites, bool prefetch)
    {
        ulong spte = _leafBase | adType | memoryType | (pfn << 12);
        if (level == 1)
            spte |= Spte.ExecutableBit;
        else
            spte |= IsNxHugePages ? Spte.LargeBit : Spte.LargeBit | Spte.ExecutableBit;
        if (hostWritable)
            spte |= trackWrites ? Spte.HostWritable : Spte.HostWritable | Spte.MmuWritable | Spte.WritableBit | Spte.DirtyBit;
        if (!prefetch)
            return new Spte(spte | Spte.AccessedBit);
        return new Spte(spte).MarkForAccessTracking();
    }

    /// <summary>Ordinary memory is mapped with or without IPAT from now on. mmu_lock write.</summary>
    internal void SetIgnoreGuestPat(bool on) => WriteBackType = Spte.WriteBack | (on ? Spte.IgnorePat : 0);

    /// <summary>A 4K leaf of ordinary writable memory without its frame number; what <see cref="Leaf"/> gives for it.</summary>
    internal ulong OrdinaryLeaf(ulong adType) => Leaf(adType, 1, 0, WriteBackType, hostWritable: true, trackWrites: false, prefetch: false).Value;

    /// <summary>An MMIO entry: not present, but with the frame number and 19 bits of the memslot generation (tdp-mmu 2.6).</summary>
    public Spte Mmio(Gfn gfn, ulong generation)
    {
        ulong bits = generation & GenerationMask;
        return new Spte(_mmioValue | (gfn.Value << 12) | ((bits & GenerationLow) << 3) | (((bits >> 8) & GenerationHigh) << 52));
    }

    /// <summary>True for an MMIO entry of this VM. Neither FROZEN nor a hole is one: both have bit 63.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsMmio(Spte spte) => (spte.Value & MmioMask) == _mmioValue && !spte.IsPresent && _cachesMmio;

    /// <summary>True when the entry's generation is the current one and no update is in progress.</summary>
    public static bool IsMmioCurrent(Spte spte, ulong generation)
    {
        if (!IsSettled(generation))
            return false;
        ulong bits = ((spte.Value >> 3) & GenerationLow) | (((spte.Value >> 52) & GenerationHigh) << 8);
        return bits == (generation & GenerationMask);
    }

    /// <summary>False while slots are being changed: what is learned meanwhile may be old as soon as it is used.</summary>
    internal static bool IsSettled(ulong generation) => (generation & UpdateInProgress) == 0;

    /// <summary>True when a violation here could be delivered to the guest as #VE: bit 63 clear and not a misconfiguration. Stores of such a value warn.</summary>
    public static bool IsVePossible(Spte spte) => (spte.Value & (Spte.SuppressVe | Spte.Rwx)) != 6 && (spte.Value & Spte.SuppressVe) == 0;
}
