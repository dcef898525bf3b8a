namespace Tdp.Module;

/// <summary>What a physical page is used for (tdx-module 3.1).</summary>
public enum PageType : byte
{
    /// <summary>Not directly assigned: free, or covered by an entry of another size.</summary>
    NDA = 0,

    /// <summary>In a reserved area; never usable.</summary>
    RSVD = 1,

    /// <summary>TD private page.</summary>
    REG = 3,

    /// <summary>TD root.</summary>
    TDR = 4,

    /// <summary>Child page of a TDCS or TDVPS.</summary>
    TDCX = 5,

    /// <summary>vCPU root.</summary>
    TDVPR = 6,

    /// <summary>Secure EPT page.</summary>
    EPT = 8,
}

/// <summary>
/// Layout of a PAMT entry: 16 bytes in simulated memory. Word 0: lock 15:0 (<see cref="TryLock"/>), page type 23:16, frame of the owning TDR 63:24.
/// Word 1: BEPOCH. Word 0 is changed only under its exclusive lock, or by one compare-exchange of a free, unlocked NDA entry (<see cref="Pamt"/>).
/// </summary>
internal static class PamtEntry
{
    public const ulong Bytes = 16;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static PageType TypeOf(ulong word) => (PageType)(byte)(word >> 16);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong OwnerFrame(ulong word) => word >> 24;

    /// <summary>Word 0 of an assigned 4 KiB page with a counted lock, unlocked.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Content(PageType type, ulong ownerFrame) => ((ulong)type << 16) | (ownerFrame << 24);

    /// <summary>Word 0 of an entry at a level; above 4 KiB, and for the root pages of TDs and vCPUs, the lock is biased.</summary>
    public static ulong Content(PageType type, ulong ownerFrame, int level) =>
        Content(type, ownerFrame) | (level > 0 || IsRoot(type) ? TryLock.Biased : 0);

    /// <summary>TDR and TDVPR pages: shared by calls without the entries above them.</summary>
    public static bool IsRoot(PageType type) => type is PageType.TDR or PageType.TDVPR;

    /// <summary>The word of a page given back: type NDA, owner left as it was (tdx-module 11, quirk 11), lock of its size.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Freed(ulong word, int level) => (word & ~((0xFFUL << 16) | TryLock.Mask)) | (level > 0 ? TryLock.Biased : 0);
}
