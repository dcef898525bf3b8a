using Tdp.Kernel;

namespace Tdp.Tests.Unit.GuestKernel;

public sealed class ElfImageTests
{
    [Fact]
    public void A_static_executable_is_read_with_segments_entry_and_symbols()
    {
        ElfImage image = ElfImage.Parse(new ElfBytes().ToArray());
        Assert.Equal(ElfBytes.CodeAddress, image.Entry);
        Assert.Equal([ElfBytes.CodeAddress, ElfBytes.DataAddress], image.Segments.Select(s => s.Address));
        Assert.Equal((0x10, 0x3000UL), (image.Segments[1].FileBytes.Length, image.Segments[1].MemoryBytes));
        Assert.Equal((true, false), (image.Segments[0].IsExecutable, image.Segments[0].IsWritable));
        Assert.Equal((false, true), (image.Segments[1].IsExecutable, image.Segments[1].IsWritable));
        Assert.Equal(["first", "second"], image.Symbols.Select(s => s.Name));
    }

    [Fact]
    public void Segments_are_sorted_by_address_whatever_their_order_in_the_file()
    {
        ElfBytes file = new ElfBytes()
            .Segment(0, type: 1, flags: 6, 0x280, ElfBytes.DataAddress, 0x10, 0x20)
            .Segment(1, type: 1, flags: 5, 0x200, ElfBytes.CodeAddress, 0x40, 0x40);
        Assert.Equal([1, 0], ElfImage.Parse(file.ToArray()).Segments.Select(s => s.Index));
    }

    public static TheoryData<string, string> Spoilt() => new()
    {
        { "empty", "not an ELF file" },
        { "text", "not an ELF file" },
        { "ident only", "the file ends after 16 of 64 bytes" },
        { "half a header", "the file ends after 40 of 64 bytes" },
        { "32-bit", "32-bit ELF file" },
        { "class 7", "class 7 is unknown" },
        { "big endian", "big-endian ELF file" },
        { "byte order 9", "byte order 9 is unknown" },
        { "version", "version 2 is unknown" },
        { "aarch64", "machine 183 is not x86-64" },
        { "ET_DYN", "position-independent or shared ELF file (ET_DYN)" },
        { "ET_REL", "type 1 is not an executable" },
        { "PT_INTERP", "program header 1: PT_INTERP: a dynamic executable" },
        { "PT_DYNAMIC", "program header 1: PT_DYNAMIC: a dynamic executable" },
        { "no headers", "there are no program headers" },
        { "many headers", "65535 program headers" },
        { "small headers", "program headers of 32 bytes, 56 expected" },
        { "headers beyond", "program headers at 0xffffffffffffff00: they reach beyond the end of the file" },
        { "headers truncated", "they reach beyond the end of the file" },
        { "no load", "there is no PT_LOAD segment" },
        { "filesz > memsz", "segment 0 at 0x400000: 0x40 bytes in the file, but only 0x3f in memory" },
        { "bytes beyond", "reach beyond the end of the file" },
        { "offset wraps", "reach beyond the end of the file" },
        { "paddr", "segment 1: linear address 0x401000 differs from physical address 0x500000" },
        { "memory wraps", "wrap around the end of the address space" },
        { "memory ends at 2^64", "wrap around the end of the address space" },
        { "overlap", "segment 1 [0x40003f, 0x401000) overlaps segment 0 [0x400000, 0x400040)" },
        { "entry nowhere", "entry point 0x1000: it lies in no segment" },
        { "entry in data", "is not executable" },
        { "entry in zeros", "the part of segment 0 [0x400000, 0x401000) that the file leaves zero" },
    };

    [Theory]
    [MemberData(nameof(Spoilt))]
    public void A_file_that_is_not_such_an_executable_is_refused_in_one_line(string kind, string expected)
    {
        var error = Assert.Throws<ElfFormatException>(() => ElfImage.Parse(Spoil(kind)));
        Assert.Contains(expected, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    public void A_damaged_symbol_table_counts_as_none()
    {
        // Offset of the section header table beyond the file; then the symbol table's own offset.
        Assert.Empty(ElfImage.Parse(new ElfBytes().U64(40, ulong.MaxValue - 3).ToArray()).Symbols);
        Assert.Empty(ElfImage.Parse(new ElfBytes().U64(0x400 + (2 * 64) + 24, ulong.MaxValue).ToArray()).Symbols);
    }

    [Fact]
    public void Every_truncation_of_a_sample_is_refused_or_loads_with_the_same_segments()
    {
        byte[] file = ElfBytes.Sample("hello.elf");
        ElfImage whole = ElfImage.Parse(file);
        for (int length = 0; length < file.Length; length++)
        {
            try
            {
                ElfImage cut = ElfImage.Parse(file.AsMemory(0, length));
                Assert.Equal(whole.Segments.Count, cut.Segments.Count);
            }
            catch (ElfFormatException error)
            {
                Assert.DoesNotContain('\n', error.Message);
            }
        }
    }

    private static byte[] Spoil(string kind)
    {
        const int header0 = ElfBytes.Header0, header1 = ElfBytes.Header1;
        ElfBytes file = new();
        return kind switch
        {
            "empty" => [],
            "text" => "#!/bin/sh\necho no\n"u8.ToArray(),
            "ident only" => file.ToArray()[..16],
            "half a header" => file.ToArray()[..40],
            "32-bit" => file.U8(4, 1).ToArray(),
            "class 7" => file.U8(4, 7).ToArray(),
            "big endian" => file.U8(5, 2).ToArray(),
            "byte order 9" => file.U8(5, 9).ToArray(),
            "version" => file.U32(20, 2).ToArray(),
            "aarch64" => file.U16(18, 183).ToArray(),
            "ET_DYN" => file.U16(16, 3).ToArray(),
            "ET_REL" => file.U16(16, 1).ToArray(),
            "PT_INTERP" => file.U32(header1, 3).ToArray(),
            "PT_DYNAMIC" => file.U32(header1, 2).ToArray(),
            "no headers" => file.U16(56, 0).ToArray(),
            "many headers" => file.U16(56, 0xFFFF).ToArray(),
            "small headers" => file.U16(54, 32).ToArray(),
            "headers beyond" => file.U64(32, unchecked((ulong)-256)).ToArray(),
            "headers truncated" => file.ToArray()[..100],
            "no load" => file.U32(header0, 4).U32(header1, 6).ToArray(),
            "filesz > memsz" => file.U64(header0 + 40, 0x3F).ToArray(),
            "bytes beyond" => file.U64(header0 + 8, (ulong)file.Length - 0x3F).ToArray(),
            "offset wraps" => file.U64(header0 + 8, ulong.MaxValue - 0x10).ToArray(),
            "paddr" => file.U64(header1 + 24, 0x50_0000).ToArray(),
            "memory wraps" => file.Segment(1, type: 1, flags: 6, 0x280, 0xFFFF_FFFF_FFFF_F000, 0x10, 0x2000).ToArray(),
            "memory ends at 2^64" => file.Segment(1, type: 1, flags: 6, 0x280, 0xFFFF_FFFF_FFFF_F000, 0x10, 0x1000).ToArray(),
            "overlap" => file.Segment(1, type: 1, flags: 6, 0x280, 0x40_003F, 0x10, 0xFC1).ToArray(),
            "entry nowhere" => file.U64(24, 0x1000).ToArray(),
            "entry in data" => file.U64(24, ElfBytes.DataAddress).ToArray(),
            "entry in zeros" => file.U64(header0 + 40, 0x1000).U64(24, ElfBytes.CodeAddress + 0x40).ToArray(),
            _ => throw new ArgumentOutOfRangeException(nameof(kind)),
        };
    }
}
