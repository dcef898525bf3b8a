using System.Buffers.Binary;

namespace Tdp.Kernel;

/// <summary>
/// The page tables that the loader hands to the guest: eleven pages from <see cref="GuestAbi.PageTables"/> on.
/// <code>
///   +0 PML4  +1 PDPT  +2..+5 PD of the identity mapping  +6..+9 PD of the shared window  +10 PT of the first 2 MiB
/// </code>
/// Identity: private, RAM only, 2 MiB pages, the first 2 MiB as 4 KiB pages so that page 0 stays unmapped. Shared window: all of the first
/// 4 GiB with the alias bit, MMIO included, so that either alias of a page can be touched without editing an entry. Both windows are supervisor,
/// writable and executable. Accessed and Dirty start clear: setting them is the walker's work. Source: td-guest 8.3.
/// </summary>
internal static class BootPageTables
{
    public const ulong Pml4 = GuestAbi.PageTables;
    public const ulong Pdpt = GuestAbi.PageTables + GuestAbi.PageBytes;
    public const ulong IdentityDirectories = GuestAbi.PageTables + (2 * GuestAbi.PageBytes);
    public const ulong SharedDirectories = GuestAbi.PageTables + (6 * GuestAbi.PageBytes);
    public const ulong FirstTable = GuestAbi.PageTables + (10 * GuestAbi.PageBytes);

    private const ulong Present = 1, Writable = 2, Large = 0x80;
    private const ulong Gigabyte = 0x4000_0000;
    private const int EntriesPerTable = 512;

    public static byte[] Build(ulong ramBytes, ulong sharedMask)
    {
        byte[] bytes = new byte[GuestAbi.PageTablePages * (int)GuestAbi.PageBytes];
        Set(bytes, Pml4, 0, Pdpt | Present | Writable);
        ulong sharedIndex = GuestAbi.SharedWindow / Gigabyte;
        for (ulong i = 0; i < 4; i++)
        {
            Set(bytes, Pdpt, i, (IdentityDirectories + (i * GuestAbi.PageBytes)) | Present | Writable);
            Set(bytes, Pdpt, sharedIndex + i, (SharedDirectories + (i * GuestAbi.PageBytes)) | Present | Writable);
        }
        // The four directories of a window are adjacent pages, so one index runs through all of them.
        Set(bytes, IdentityDirectories, 0, FirstTable | Present | Writable);
        for (ulong unit = 1; unit < ramBytes / GuestAbi.UnitBytes; unit++)
            Set(bytes, IdentityDirectories, unit, (unit * GuestAbi.UnitBytes) | Present | Writable | Large);
        for (ulong unit = 0; unit < GuestAbi.FourGiB / GuestAbi.UnitBytes; unit++)
            Set(bytes, SharedDirectories, unit, (unit * GuestAbi.UnitBytes) | sharedMask | Present | Writable | Large);
        for (ulong page = 1; page < EntriesPerTable; page++)
            Set(bytes, FirstTable, page, (page * GuestAbi.PageBytes) | Present | Writable);
        return bytes;
    }

    private static void Set(byte[] bytes, ulong table, ulong index, ulong entry) =>
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan((int)(table - GuestAbi.PageTables + (index * 8)), 8), entry);
}
