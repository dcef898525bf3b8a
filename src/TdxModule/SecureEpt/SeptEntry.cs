namespace Tdp.Module;

/// <summary>
/// The bits of a Secure EPT entry (tdx-module 5.1). The entry is the very word the hardware walks: R/W/X decide what the guest may do, the state bits
/// say why. Shared by every actor of the TD; changed only by whoever holds bit 11, apart from bit 52, which a losing host call sets at any time.
/// </summary>
internal static class SeptEntry
{
    public const ulong Rwx = 7;
    public const ulong LeafType = (6UL << 3) | (1UL << 6) | (1UL << 7);
    public const ulong Leaf = 1UL << 7;
    public const ulong Lock = 1UL << 11;
    public const ulong HostPriority = 1UL << 52;
    public const ulong WriteBlocked = 1UL << 54;
    public const ulong Blocked = 1UL << 55;
    public const ulong Pending = 1UL << 56;
    public const ulong SuppressVe = 1UL << 63;
    public const ulong Address = 0x000F_FFFF_FFFF_F000;

    /// <summary>Bits 20:12 of a PENDING 2 MiB leaf: 4 KiB pages accepted so far.</summary>
    public const ulong AcceptCounter = 0x1F_F000;

    public const ulong Free = SuppressVe | Blocked | WriteBlocked | (1UL << 53);
    public const ulong NlMapped = SuppressVe | Rwx;
    public const ulong NlBlocked = SuppressVe | Blocked;
    public const ulong MappedLeaf = SuppressVe | LeafType | Rwx;
    public const ulong BlockedLeaf = SuppressVe | LeafType | Blocked;
    public const ulong PendingLeaf = SuppressVe | LeafType | Pending;
    public const ulong PendingBlockedLeaf = SuppressVe | LeafType | Blocked | Pending;

    // D, TDEX, TDBW, TDB, TDP, IPAT, PS.
    public const ulong StateBits = (1UL << 9) | (1UL << 53) | WriteBlocked | Blocked | Pending | (1UL << 6) | (1UL << 7);

    private const ulong LeafVisible = Rwx | (7UL << 3) | (1UL << 6) | (1UL << 7) | Address | SuppressVe;
    private const ulong NonLeafVisible = Rwx | (1UL << 7);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static SeptState StateOf(ulong entry) => (SeptState)(((entry >> 9) & 1) | ((entry >> 52) & 0x1E) | ((entry >> 1) & 0x60));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsFree(ulong entry) => (entry & StateBits) == (Free & StateBits);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsLeaf(ulong entry) => (entry & Leaf) != 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsGuestAccessibleLeaf(ulong entry) => (entry & Leaf) != 0 && (entry & Rwx) != 0;

    /// <summary>What RCX shows of an entry (tdx-module 5.4).</summary>
    public static ulong Visible(ulong entry)
    {
        if (IsFree(entry))
            return SuppressVe;
        return IsLeaf(entry) ? entry & LeafVisible : entry & NonLeafVisible;
    }

    /// <summary>What RDX shows: level 2:0, public state 15:8.</summary>
    public static ulong Description(ulong entry, int level) => (uint)level | (StateOf(entry).Public() << 8);
}
