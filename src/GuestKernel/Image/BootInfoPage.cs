using System.Buffers.Binary;
using System.Text;

namespace Tdp.Kernel;

/// <summary>
/// The boot-info page: the fields of TDG1 from offset 0, the command line from <see cref="CommandLineOffset"/>. Source: td-guest 8.3.
/// </summary>
internal static class BootInfoPage
{
    public const int Flags = 8;
    public const int SharedMask = 16;
    public const int RamTop = 24;
    public const int AcceptedTop = 32;
    public const int VcpuCount = 40;
    public const int ConsolePort = 48;
    public const int ExitPort = 56;
    public const int PayloadEntry = 80;
    public const int ApEntry = 88;
    public const int ApMailbox = 96;

    public const int FlagTd = 1;
    public const int FlagPendingVeDisable = 2;
    public const int FlagLazyAccept = 4;

    public const int FieldBytes = 128;
    public const int CommandLineOffset = 0x800;

    // acceptedTop: everything from the boot-info page up to here needs no ACCEPT; above it the kernel's bitmap knows.
    public static byte[] Build(GuestBootOptions options, ulong acceptedTop, ulong payloadEntry, ulong apEntry, ulong sharedTestPage)
    {
        byte[] page = new byte[GuestAbi.PageBytes];
        int flags = (options.IsTd ? FlagTd : 0) | (options.PendingVeDisable ? FlagPendingVeDisable : 0) | (options.LazyAccept ? FlagLazyAccept : 0);
        Put32(page, 0, GuestAbi.BootInfoMagic);
        Put32(page, 4, FieldBytes);
        Put64(page, Flags, (ulong)flags);
        Put64(page, SharedMask, options.SharedMask);
        Put64(page, RamTop, options.RamBytes);
        Put64(page, AcceptedTop, acceptedTop);
        Put32(page, VcpuCount, (uint)options.VcpuCount);
        Put32(page, 44, options.TscKhz);
        Put64(page, ConsolePort, GuestAbi.ConsolePort);
        Put64(page, ExitPort, GuestAbi.ExitPort);
        Put64(page, 64, GuestAbi.Mmio);
        Put64(page, 72, GuestAbi.BootInfo + CommandLineOffset);
        Put64(page, PayloadEntry, payloadEntry);
        Put64(page, ApEntry, apEntry);
        Put64(page, ApMailbox, KernelLayout.ApMailbox);
        Put64(page, 104, sharedTestPage);
        Put64(page, 112, options.Seed);
        Encoding.ASCII.GetBytes(options.CommandLine, page.AsSpan(CommandLineOffset));
        return page;
    }

    private static void Put32(byte[] page, int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(page.AsSpan(at), value);

    private static void Put64(byte[] page, int at, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(page.AsSpan(at), value);
}
