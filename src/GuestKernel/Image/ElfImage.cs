using System.Buffers.Binary;
using System.Text;

namespace Tdp.Kernel;

/// <summary>One PT_LOAD segment.</summary>
/// <param name="Index">Number of the program header, from 0.</param>
/// <param name="Address">Linear address, equal to the physical one (TDG1 version 1).</param>
/// <param name="FileBytes">What the file holds; the rest up to <paramref name="MemoryBytes"/> is zero.</param>
/// <param name="MemoryBytes">Length in memory, in bytes; at least 1.</param>
/// <param name="IsWritable">PF_W.</param>
/// <param name="IsExecutable">PF_X.</param>
public readonly record struct ElfSegment(int Index, ulong Address, ReadOnlyMemory<byte> FileBytes, ulong MemoryBytes, bool IsWritable, bool IsExecutable)
{
    /// <summary>First address behind the segment.</summary>
    public ulong End => Address + MemoryBytes;

    /// <summary>Readable name for messages: <c>segment 1 [0x400000, 0x401000)</c>.</summary>
    /// <returns>The name.</returns>
    public override string ToString() => $"segment {Index} [0x{Address:x}, 0x{End:x})";
}

/// <summary>
/// A static 64-bit executable, checked: ELF64, little endian, x86-64, ET_EXEC, PT_LOAD segments with p_vaddr = p_paddr that neither overlap nor wrap.
/// Immutable. Where the segments may lie is the business of <see cref="GuestImage.Build"/>. Source: td-guest 8.3.
/// </summary>
/// <remarks>Every number of the file is hostile: it is range-checked in 64-bit arithmetic that cannot wrap before it is used as an index.</remarks>
public sealed class ElfImage
{
    private const int HeaderBytes = 64;
    private const int ProgramHeaderBytes = 56;
    private const int SectionHeaderBytes = 64;
    private const int SymbolBytes = 24;
    private const int MaxProgramHeaders = 256;
    private const int MaxSymbols = 1 << 20;

    private ElfImage(ulong entry, ElfSegment[] segments, GuestSymbol[] symbols)
    {
        Entry = entry;
        Segments = segments;
        Symbols = symbols;
    }

    /// <summary>Address of the first instruction; it lies inside the file bytes of an executable segment.</summary>
    public ulong Entry { get; }

    /// <summary>The PT_LOAD segments in ascending order of address; at least one.</summary>
    public IReadOnlyList<ElfSegment> Segments { get; }

    /// <summary>Functions and objects of the symbol table, empty if the file has none (a damaged table counts as none: it is for traces only).</summary>
    public IReadOnlyList<GuestSymbol> Symbols { get; }

    /// <summary>Reads and checks a file.</summary>
    /// <param name="file">The whole file; the image keeps slices of it.</param>
    /// <returns>The image.</returns>
    /// <exception cref="ElfFormatException">Anything is wrong with it.</exception>
    public static ElfImage Parse(ReadOnlyMemory<byte> file)
    {
        ReadOnlySpan<byte> header = file.Span;
        if (header.Length < 16 || BinaryPrimitives.ReadUInt32BigEndian(header) != 0x7F45_4C46)
            throw new ElfFormatException("not an ELF file: the first four bytes are not 7f 45 4c 46");
        if (header[4] != 2)
            throw new ElfFormatException(header[4] == 1 ? "a 32-bit ELF file: only ELF64 can be loaded" : $"ELF header: class {header[4]} is unknown");
        if (header[5] != 1)
            throw new ElfFormatException(header[5] == 2 ? "a big-endian ELF file: only little endian can be loaded" : $"ELF header: byte order {header[5]} is unknown");
        if (header.Length < HeaderBytes)
            throw new ElfFormatException($"ELF header: the file ends after {header.Length} of {HeaderBytes} bytes");
        if (header[6] != 1 || U32(header, 20) != 1)
            throw new ElfFormatException($"ELF header: version {U32(header, 20)} is unknown");
        ushort type = U16(header, 16), machine = U16(header, 18);
        if (machine != 62)
            throw new ElfFormatException($"ELF header: machine {machine} is not x86-64 (62)");
        if (type != 2)
        {
            throw new ElfFormatException(type == 3
                ? "a position-independent or shared ELF file (ET_DYN): link it statically at a fixed address (-static -no-pie)"
                : $"ELF header: type {type} is not an executable (ET_EXEC)");
        }
        ElfSegment[] segments = ReadSegments(file);
        ulong entry = U64(header, 24);
        RequireExecutable(entry, segments);
        return new ElfImage(entry, segments, ReadSymbols(header));
    }

    private static ElfSegment[] ReadSegments(ReadOnlyMemory<byte> file)
    {
        ReadOnlySpan<byte> bytes = file.Span;
        ulong tableOffset = U64(bytes, 32);
        int entryBytes = U16(bytes, 54), count = U16(bytes, 56);
        if (count == 0)
            throw new ElfFormatException("ELF header: there are no program headers");
        if (count > MaxProgramHeaders)
            throw new ElfFormatException($"ELF header: {count} program headers, at most {MaxProgramHeaders} can be loaded");
        if (entryBytes != ProgramHeaderBytes)
            throw new ElfFormatException($"ELF header: program headers of {entryBytes} bytes, {ProgramHeaderBytes} expected");
        if (!IsInside(tableOffset, (ulong)count * ProgramHeaderBytes, bytes.Length))
            throw new ElfFormatException($"program headers at 0x{tableOffset:x}: they reach beyond the end of the file ({bytes.Length} bytes)");

        var segments = new List<ElfSegment>(count);
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> header = bytes.Slice((int)tableOffset + (i * ProgramHeaderBytes), ProgramHeaderBytes);
            uint type = U32(header, 0);
            if (type is 2 or 3)
                throw new ElfFormatException($"program header {i}: {(type == 2 ? "PT_DYNAMIC" : "PT_INTERP")}: a dynamic executable, link it statically (-static -no-pie)");
            if (type == 1)
                ReadSegment(file, header, i, segments);
        }
        if (segments.Count == 0)
            throw new ElfFormatException("program headers: there is no PT_LOAD segment with memory");
        segments.Sort(static (a, b) => a.Address.CompareTo(b.Address));
        for (int i = 1; i < segments.Count; i++)
        {
            if (segments[i].Address < segments[i - 1].End)
                throw new ElfFormatException($"{segments[i]} overlaps {segments[i - 1]}");
        }
        return [.. segments];
    }

    private static void ReadSegment(ReadOnlyMemory<byte> file, ReadOnlySpan<byte> header, int index, List<ElfSegment> segments)
    {
        uint flags = U32(header, 4);
        ulong offset = U64(header, 8), linear = U64(header, 16), physical = U64(header, 24), fileBytes = U64(header, 32), memoryBytes = U64(header, 40);
        if (fileBytes > memoryBytes)
            throw new ElfFormatException($"segment {index} at 0x{linear:x}: 0x{fileBytes:x} bytes in the file, but only 0x{memoryBytes:x} in memory");
        if (!IsInside(offset, fileBytes, file.Length))
            throw new ElfFormatException($"segment {index} at 0x{linear:x}: its bytes (0x{fileBytes:x} at offset 0x{offset:x}) reach beyond the end of the file ({file.Length} bytes)");
        if (memoryBytes == 0)
            return;
        if (linear != physical)
            throw new ElfFormatException($"segment {index}: linear address 0x{linear:x} differs from physical address 0x{physical:x}");
        if (linear + (memoryBytes - 1) < linear || linear + memoryBytes == 0)
            throw new ElfFormatException($"segment {index} at 0x{linear:x}: 0x{memoryBytes:x} bytes wrap around the end of the address space");
        ReadOnlyMemory<byte> content = fileBytes == 0 ? default : file.Slice((int)offset, (int)fileBytes);
        segments.Add(new ElfSegment(index, linear, content, memoryBytes, (flags & 2) != 0, (flags & 1) != 0));
    }

    private static void RequireExecutable(ulong entry, ElfSegment[] segments)
    {
        foreach (ElfSegment segment in segments)
        {
            if (entry < segment.Address || entry >= segment.End)
                continue;
            if (!segment.IsExecutable)
                throw new ElfFormatException($"entry point 0x{entry:x}: {segment} is not executable");
            if (entry - segment.Address >= (ulong)segment.FileBytes.Length)
                throw new ElfFormatException($"entry point 0x{entry:x}: it lies in the part of {segment} that the file leaves zero");
            return;
        }
        throw new ElfFormatException($"entry point 0x{entry:x}: it lies in no segment");
    }

    private static GuestSymbol[] ReadSymbols(ReadOnlySpan<byte> file)
    {
        ulong tableOffset = U64(file, 40);
        int entryBytes = U16(file, 58), count = U16(file, 60);
        if (tableOffset == 0 || count == 0 || entryBytes != SectionHeaderBytes || !IsInside(tableOffset, (ulong)count * SectionHeaderBytes, file.Length))
            return [];
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> section = file.Slice((int)tableOffset + (i * SectionHeaderBytes), SectionHeaderBytes);
            uint link = U32(section, 40);
            if (U32(section, 4) != 2 || U64(section, 56) != SymbolBytes || link >= (uint)count)
                continue;
            ReadOnlySpan<byte> names = file.Slice((int)tableOffset + ((int)link * SectionHeaderBytes), SectionHeaderBytes);
            if (IsInside(U64(section, 24), U64(section, 32), file.Length) && IsInside(U64(names, 24), U64(names, 32), file.Length))
            {
                return ReadSymbols(
                    file.Slice((int)U64(section, 24), (int)U64(section, 32)),
                    file.Slice((int)U64(names, 24), (int)U64(names, 32)));
            }
        }
        return [];
    }

    private static GuestSymbol[] ReadSymbols(ReadOnlySpan<byte> table, ReadOnlySpan<byte> names)
    {
        var symbols = new List<GuestSymbol>();
        for (int at = 0; at + SymbolBytes <= table.Length && symbols.Count < MaxSymbols; at += SymbolBytes)
        {
            ReadOnlySpan<byte> symbol = table.Slice(at, SymbolBytes);
            uint name = U32(symbol, 0);
            int kind = symbol[4] & 0xF; // 0 no type (assembler labels), 1 object, 2 function
            if (kind > 2 || U16(symbol, 6) is 0 or >= 0xFF00 || name == 0 || name >= (uint)names.Length)
                continue;
            ReadOnlySpan<byte> text = names[(int)name..];
            int end = text.IndexOf((byte)0);
            if (end > 0)
                symbols.Add(new GuestSymbol(Encoding.UTF8.GetString(text[..end]), U64(symbol, 8), U64(symbol, 16)));
        }
        return [.. symbols];
    }

    private static bool IsInside(ulong offset, ulong bytes, int fileLength) => offset <= (ulong)fileLength && bytes <= (ulong)fileLength - offset;

    private static ushort U16(ReadOnlySpan<byte> bytes, int at) => BinaryPrimitives.ReadUInt16LittleEndian(bytes[at..]);

    private static uint U32(ReadOnlySpan<byte> bytes, int at) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[at..]);

    private static ulong U64(ReadOnlySpan<byte> bytes, int at) => BinaryPrimitives.ReadUInt64LittleEndian(bytes[at..]);
}
