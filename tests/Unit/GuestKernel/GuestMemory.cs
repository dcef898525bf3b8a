using System.Buffers.Binary;
using Tdp.Kernel;

namespace Tdp.Tests.Unit.GuestKernel;

/// <summary>The image as a reader of guest-physical memory sees it, and a page walk over its bytes that knows the architecture only.</summary>
internal sealed class GuestMemory
{
    private readonly GuestImage _image;

    public GuestMemory(GuestImage image) => _image = image;

    public ulong U64(ulong gpa) => BinaryPrimitives.ReadUInt64LittleEndian(Bytes(gpa, 8));

    public uint U32(ulong gpa) => BinaryPrimitives.ReadUInt32LittleEndian(Bytes(gpa, 4));

    public byte[] Bytes(ulong gpa, int count)
    {
        byte[] bytes = new byte[count];
        byte[] page = new byte[4096];
        for (int i = 0; i < count; i++)
        {
            ulong at = gpa + (ulong)i;
            ImageSegment segment = _image.Segments.Single(s => at >= s.Gpa && at < s.End);
            segment.CopyPage((int)((at - segment.Gpa) / 4096), page);
            bytes[i] = page[at % 4096];
        }
        return bytes;
    }

    /// <summary>Four levels from CR3. Null: not present. Asserts that tables lie in the image and that every level is supervisor, writable, executable.</summary>
    public (ulong Gpa, ulong PageBytes)? Walk(ulong linear)
    {
        ulong table = _image.VcpuEntry[0].Cr3;
        for (int level = 4; ; level--)
        {
            ulong entry = U64(table + (((linear >> (12 + (9 * (level - 1)))) & 511) * 8));
            if ((entry & 1) == 0)
                return null;
            Assert.Equal(2UL, entry & 6);
            Assert.Equal(0UL, entry >> 63);
            Assert.Equal(0UL, entry & 0x60);
            bool leaf = level == 1 || (entry & 0x80) != 0;
            ulong bytes = 1UL << (12 + (9 * (level - 1)));
            ulong address = entry & 0x000F_FFFF_FFFF_F000;
            if (leaf)
                return (address + (linear % bytes), bytes);
            table = address;
        }
    }
}
