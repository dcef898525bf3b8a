using System.Buffers.Binary;
using System.IO;
using System.Text;

namespace Tdp.Tests.Unit.GuestKernel;

/// <summary>A small static executable that a test may spoil before it takes the bytes. Two segments: code at 0x400000, data with BSS at 0x401000.</summary>
internal sealed class ElfBytes
{
    public const ulong CodeAddress = 0x40_0000;
    public const ulong DataAddress = 0x40_1000;
    public const int Header0 = 64;
    public const int Header1 = 64 + 56;
    private const int CodeOffset = 0x200;
    private const int DataOffset = 0x280;
    private const int NamesOffset = 0x300;
    private const int SymbolsOffset = 0x340;
    private const int SectionsOffset = 0x400;
    private readonly byte[] _bytes = new byte[SectionsOffset + (3 * 64)];

    public ElfBytes()
    {
        ReadOnlySpan<byte> ident = [0x7F, (byte)'E', (byte)'L', (byte)'F', 2, 1, 1];
        ident.CopyTo(_bytes);
        U16(16, 2).U16(18, 62).U32(20, 1).U64(24, CodeAddress).U64(32, Header0).U64(40, SectionsOffset);
        U16(52, 64).U16(54, 56).U16(56, 2).U16(58, 64).U16(60, 3);
        Segment(0, type: 1, flags: 5, CodeOffset, CodeAddress, 0x40, 0x40);
        Segment(1, type: 1, flags: 6, DataOffset, DataAddress, 0x10, 0x3000);
        _bytes.AsSpan(CodeOffset, 0x40).Fill(0x90);
        _bytes.AsSpan(DataOffset, 0x10).Fill(0xDA);

        Encoding.ASCII.GetBytes("\0first\0second\0").CopyTo(_bytes, NamesOffset);
        Symbol(1, name: 1, CodeAddress, bytes: 0x10);
        Symbol(2, name: 7, CodeAddress + 0x20, bytes: 0x20);
        Section(1, type: 3, NamesOffset, 14, link: 0, entry: 0);
        Section(2, type: 2, SymbolsOffset, 3 * 24, link: 1, entry: 24);
    }

    /// <summary>A static executable with one segment of code at 0x400000 and no symbols.</summary>
    public static byte[] WithCode(ReadOnlySpan<byte> code)
    {
        const int offset = 0x1000;
        byte[] head = new ElfBytes().U64(40, 0).U16(60, 0).U16(56, 1)
            .Segment(0, type: 1, flags: 5, offset, CodeAddress, (ulong)code.Length, (ulong)code.Length).ToArray();
        byte[] file = new byte[offset + code.Length];
        head.AsSpan(0, CodeOffset).CopyTo(file);
        code.CopyTo(file.AsSpan(offset));
        return file;
    }

    public int Length => _bytes.Length;

    public byte[] ToArray() => [.. _bytes];

    public ElfBytes Segment(int index, uint type, uint flags, ulong offset, ulong address, ulong fileBytes, ulong memoryBytes)
    {
        int at = Header0 + (index * 56);
        return U32(at, type).U32(at + 4, flags).U64(at + 8, offset).U64(at + 16, address).U64(at + 24, address)
            .U64(at + 32, fileBytes).U64(at + 40, memoryBytes).U64(at + 48, 0x1000);
    }

    public ElfBytes U8(int at, byte value)
    {
        _bytes[at] = value;
        return this;
    }

    public ElfBytes U16(int at, ushort value)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(_bytes.AsSpan(at), value);
        return this;
    }

    public ElfBytes U32(int at, uint value)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(_bytes.AsSpan(at), value);
        return this;
    }

    public ElfBytes U64(int at, ulong value)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(_bytes.AsSpan(at), value);
        return this;
    }

    /// <summary>A committed sample.</summary>
    public static byte[] Sample(string name)
    {
        for (DirectoryInfo? folder = new(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            string path = Path.Combine(folder.FullName, "samples", name);
            if (File.Exists(path))
                return File.ReadAllBytes(path);
        }
        throw new FileNotFoundException(name);
    }

    private void Symbol(int index, uint name, ulong address, ulong bytes)
    {
        int at = SymbolsOffset + (index * 24);
        U32(at, name).U8(at + 4, 0x12).U16(at + 6, 1).U64(at + 8, address).U64(at + 16, bytes);
    }

    private void Section(int index, uint type, ulong offset, ulong bytes, uint link, ulong entry)
    {
        int at = SectionsOffset + (index * 64);
        U32(at + 4, type).U64(at + 24, offset).U64(at + 32, bytes).U32(at + 40, link).U64(at + 56, entry);
    }
}
