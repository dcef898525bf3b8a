namespace Tdp.Host;

/// <summary>Flags of a memslot (tdp-mmu 1.6).</summary>
[Flags]
public enum MemslotFlags : uint
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary>KVM_MEM_LOG_DIRTY_PAGES.</summary>
    LogDirtyPages = 1 << 0,

    /// <summary>KVM_MEM_READONLY.</summary>
    ReadOnly = 1 << 1,

    /// <summary>KVM_MEM_GUEST_MEMFD.</summary>
    GuestMemfd = 1 << 2,

    /// <summary>KVM_MEMSLOT_INVALID, internal: the slot is being deleted or moved.</summary>
    Invalid = 1 << 16,

    /// <summary>Simulator, internal: the slot of the APIC access page (KVM tells it by its number).</summary>
    ApicAccess = 1 << 17,
}

/// <summary>The argument of KVM_SET_USER_MEMORY_REGION2.</summary>
/// <param name="Id">Slot number; bits 31:16 choose the address space.</param>
/// <param name="Flags">User flags: <see cref="MemslotFlags.LogDirtyPages"/>, <see cref="MemslotFlags.ReadOnly"/>, <see
/// cref="MemslotFlags.GuestMemfd"/>.</param>
/// <param name="GuestPhysicalAddress">First byte of guest memory, page-aligned, without the alias bit.</param>
/// <param name="MemorySize">Bytes; 0 deletes the slot.</param>
/// <param name="UserspaceAddress">Host virtual address of the memory behind the shared alias.</param>
/// <param name="Memfd">The file behind the private alias, or null.</param>
/// <param name="MemfdOffset">First byte of the slot in the file.</param>
public readonly record struct UserMemoryRegion(
    uint Id, MemslotFlags Flags, ulong GuestPhysicalAddress, ulong MemorySize, ulong UserspaceAddress, GuestMemfd? Memfd = null, ulong MemfdOffset = 0)
{
    /// <summary>Address space: 0, or 1 (SMM) in an ordinary VM.</summary>
    public int AddressSpace => (int)(Id >> 16);

    /// <summary>Slot number within the address space.</summary>
    public int Slot => (int)(Id & 0xFFFF);
}

/// <summary>
/// One memslot: guest frames [base, base + pages) and what is behind them. Immutable except the dirty bitmap: a change publishes another object, and
/// readers keep the one they found for the length of their SRCU section.
/// </summary>
public sealed class Memslot
{
    private readonly ulong _base;
    private readonly ulong _hostIndex;

    internal Memslot(Vm vm, in UserMemoryRegion region, MemslotFlags flags)
    {
        Vm = vm;
        Id = region.Slot;
        AddressSpace = region.AddressSpace;
        _base = region.GuestPhysicalAddress >> 12;
        Pages = region.MemorySize >> 12;
        UserspaceAddress = region.UserspaceAddress;
        Flags = flags;
        Memfd = region.Memfd;
        MemfdPage = region.MemfdOffset >> 12;
        Mmu = new MmuSlot(Id, AddressSpace, Range, UserspaceAddress >> 12, Memfd is not null);
        HostTable = vm.UserMemory.TableOf(UserspaceAddress, Pages, out _hostIndex);
    }

    private Memslot(Memslot from, MemslotFlags flags)
    {
        Vm = from.Vm;
        Id = from.Id;
        AddressSpace = from.AddressSpace;
        _base = from._base;
        Pages = from.Pages;
        UserspaceAddress = from.UserspaceAddress;
        Flags = flags;
        Memfd = from.Memfd;
        MemfdPage = from.MemfdPage;
        DirtyBitmap = from.DirtyBitmap;
        Mmu = from.Mmu;
        HostTable = from.HostTable;
        _hostIndex = from._hostIndex;
    }

    /// <summary>The VM.</summary>
    public Vm Vm { get; }

    /// <summary>Slot number.</summary>
    public int Id { get; }

    /// <summary>Address space.</summary>
    public int AddressSpace { get; }

    /// <summary>First guest frame, natural (I11).</summary>
    public Gfn BaseGfn => new(_base);

    /// <summary>Length in pages.</summary>
    public ulong Pages { get; }

    /// <summary>Host virtual address of the first page of the shared alias.</summary>
    public ulong UserspaceAddress { get; }

    /// <summary>Flags.</summary>
    public MemslotFlags Flags { get; }

    /// <summary>The file behind the private alias, or null.</summary>
    public GuestMemfd? Memfd { get; }

    /// <summary>Page of the file that backs <see cref="BaseGfn"/>.</summary>
    public ulong MemfdPage { get; }

    /// <summary>One bit per page that was written since the last harvest; null unless dirty logging is on.</summary>
    public WordRun? DirtyBitmap { get; internal set; }

    /// <summary>What the MMU keeps for the slot: large-page limits, write tracking. Shared by all copies of the slot.</summary>
    public MmuSlot Mmu { get; }

    /// <summary>Its guest frames.</summary>
    public GfnRange Range => GfnRange.Of(BaseGfn, Pages);

    /// <summary>True while the slot is being deleted or moved: faults answer RETRY (tdp-mmu 6.5).</summary>
    public bool IsInvalid => (Flags & MemslotFlags.Invalid) != 0;

    /// <summary>True when the frame lies in the slot.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Contains(Gfn gfn) => gfn.Value - _base < Pages;

    /// <summary>The page-table words of the host's mapping, if all of the slot lies in one; the way of a fault around the search for it.</summary>
    internal WordRun? HostTable { get; }

    /// <summary>The host's page-table word of a guest frame; only with a <see cref="HostTable"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal AtomicWord HostWord(Gfn gfn) => HostTable![gfn.Value - _base + _hostIndex];

    /// <summary>Page of the file behind a guest frame of the slot.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong MemfdPageOf(Gfn gfn) => gfn.Value - _base + MemfdPage;

    /// <summary>Host virtual address of a guest frame of the slot.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong HvaOf(Gfn gfn) => UserspaceAddress + ((gfn.Value - _base) << 12);

    /// <summary>The guest frames that a range of host virtual addresses maps; empty when there are none.</summary>
    public GfnRange GfnsOf(ulong hvaStart, ulong hvaEnd)
    {
        ulong start = Math.Max(hvaStart, UserspaceAddress);
        ulong end = Math.Min(hvaEnd, UserspaceAddress + (Pages << 12));
        if (UserspaceAddress == 0 || start >= end)
            return default;
        return new GfnRange(BaseGfn + ((start - UserspaceAddress) >> 12), BaseGfn + ((end - UserspaceAddress + 0xFFF) >> 12));
    }

    /// <inheritdoc/>
    public override string ToString() => $"slot {Id} {Range}{(IsInvalid ? " INVALID" : "")}";

    internal Memslot With(MemslotFlags flags) => new(this, flags);
}
