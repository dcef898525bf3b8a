using System.Text;
using Tdp.Kernel;

namespace Tdp.Tests.Unit.GuestKernel;

public sealed class GuestImageTests
{
    private static readonly GuestBootOptions s_td = new() { IsTd = true, VcpuCount = 2, RamBytes = 64 << 20 };

    [Theory]
    [InlineData(2, 1)]
    [InlineData(64, 4)]
    [InlineData(2048, 64)]
    [InlineData(3840, 1)]
    public void Segments_are_whole_disjoint_pages_inside_memory(int mebibytes, int vcpus)
    {
        ElfImage payload = ElfImage.Parse(PayloadAt(mebibytes == 2 ? 0x1C_0000UL : 0x40_0000UL));
        GuestImage image = GuestImage.Build(payload, s_td with { RamBytes = (ulong)mebibytes << 20, VcpuCount = vcpus });
        ulong end = 0;
        foreach (ImageSegment segment in image.Segments)
        {
            Assert.True(segment.Gpa >= end, segment.Name);
            Assert.Equal(0UL, (segment.Gpa | segment.MemoryBytes) % 4096);
            Assert.True((ulong)segment.Bytes.Length <= segment.MemoryBytes, segment.Name);
            end = segment.End;
        }
        Assert.True(end <= image.Options.RamBytes);
        Assert.True(image.Segments[0].Gpa >= 0x1000, "page 0 is the null guard");
        ulong inImage = (ulong)image.Segments.Sum(s => (long)s.MemoryBytes);
        ulong outside = (ulong)image.UnacceptedRam().Sum(r => (long)r.Bytes);
        Assert.Equal(image.Options.RamBytes - 0x1000, inImage + outside);
    }

    [Theory]
    [InlineData(true, 47, 48)]
    [InlineData(true, 51, 52)]
    [InlineData(false, 47, 48)]
    public void The_loader_builds_the_two_windows_of_the_boot_protocol(bool isTd, int aliasBit, int gpaWidth)
    {
        GuestImage image = Build(s_td with { IsTd = isTd, AliasBit = aliasBit, GpaWidth = gpaWidth });
        GuestMemory memory = new(image);
        ulong shared = isTd ? 1UL << aliasBit : 0;
        Assert.Null(memory.Walk(0));
        Assert.Null(memory.Walk(0xFFF));
        Assert.Equal((0x1000UL, 4096UL), memory.Walk(0x1000));
        Assert.Equal((0x1F_F123UL, 4096UL), memory.Walk(0x1F_F123));
        Assert.Equal((0x20_0000UL, 0x20_0000UL), memory.Walk(0x20_0000));
        Assert.Equal(((64UL << 20) - 1, 0x20_0000UL), memory.Walk((64 << 20) - 1));
        Assert.Null(memory.Walk(64 << 20));
        Assert.Null(memory.Walk(GuestAbi.Mmio));
        Assert.Null(memory.Walk(GuestAbi.FourGiB));
        foreach (ulong gpa in new ulong[] { 0x1000, 0x40_2345, 0x8000_0000, GuestAbi.Mmio, GuestAbi.FourGiB - 1 })
            Assert.Equal((gpa | shared, 0x20_0000UL), memory.Walk(GuestAbi.SharedWindow + gpa));
        Assert.Null(memory.Walk(GuestAbi.SharedWindow + GuestAbi.FourGiB));
    }

    [Fact]
    public void Boot_info_tells_the_guest_what_the_loader_did()
    {
        GuestImage image = Build(s_td with { LazyAccept = true, PendingVeDisable = true, Seed = 0x1234_5678_9ABC_DEF0, CommandLine = "one two" });
        GuestMemory memory = new(image);
        Assert.Equal("TDG1", Encoding.ASCII.GetString(memory.Bytes(0x1000, 4)));
        Assert.Equal(128u, memory.U32(0x1004));
        Assert.Equal(7UL, memory.U64(0x1008));
        Assert.Equal(1UL << 47, memory.U64(0x1010));
        Assert.Equal(64UL << 20, memory.U64(0x1018));
        Assert.Equal(0x2_0000UL, memory.U64(0x1020));
        Assert.Equal((2u, 1_000_000u), (memory.U32(0x1028), memory.U32(0x102C)));
        Assert.Equal((0xE9UL, 0xF4UL, 0xF000_0000UL), (memory.U64(0x1030), memory.U64(0x1038), memory.U64(0x1040)));
        Assert.Equal("one two\0", Encoding.ASCII.GetString(memory.Bytes(memory.U64(0x1048), 8)));
        Assert.Equal(image.Payload.Entry, memory.U64(0x1050));
        Assert.True(image.Symbols.TryGetAddress("ap_entry", out ulong apEntry));
        Assert.Equal(apEntry, memory.U64(0x1058));
        Assert.Equal(0UL, memory.U64(memory.U64(0x1060)));
        Assert.Equal(0x1234_5678_9ABC_DEF0UL, memory.U64(0x1070));
        Assert.Equal(0UL, memory.U64(0x1078));
    }

    [Fact]
    public void In_an_ordinary_VM_there_is_no_alias_bit()
    {
        GuestImage image = Build(s_td with { IsTd = false });
        Assert.Equal(0UL, new GuestMemory(image).U64(0x1010));
        Assert.Equal((0UL, 0x6E0UL), (image.VcpuEntry[0].Rbx, image.VcpuEntry[0].Cr4));
    }

    [Fact]
    public void Entry_state_is_the_contract_of_the_boot_protocol()
    {
        GuestImage image = Build(s_td with { VcpuCount = 3, AliasBit = 51, GpaWidth = 52 });
        Assert.True(image.Symbols.TryGetAddress("kernel_entry", out ulong kernelEntry));
        Assert.True(image.Symbols.TryGetAddress("ap_entry", out ulong apEntry));
        Assert.Equal(3, image.VcpuEntry.Count);
        for (int i = 0; i < 3; i++)
        {
            EntryState state = image.VcpuEntry[i];
            Assert.Equal(i == 0 ? kernelEntry : apEntry, state.Rip);
            Assert.Equal(0UL, state.Rsp % 16);
            Assert.Equal((0x1000UL, (ulong)i, 52UL), (state.Register(7), state.Register(6), state.Register(3)));
            Assert.Equal(state.Rsp, state.Register(4));
            Assert.All(new[] { 0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15 }, number => Assert.Equal(0UL, state.Register(number)));
            Assert.Equal((0x2UL, 0x8005_0033UL, 0x26E0UL, 0xD01UL, 0x1_0000UL), (state.Rflags, state.Cr0, state.Cr4, state.Efer, state.Cr3));
            Assert.Equal((0x08UL, 0x10UL), (state.CsSelector, state.DataSelector));

            // The stack lies in the initial image, so it can never raise #VE; and no two vCPUs share it.
            Assert.Contains(image.Segments, s => s.Gpa <= state.Rsp - 0x4000 && state.Rsp <= s.End);
        }
        Assert.Equal(3, image.VcpuEntry.Select(s => s.Rsp).Distinct().Count());
    }

    [Fact]
    public void Only_pages_with_bytes_of_the_file_are_in_the_image_and_the_rest_of_their_pages_is_zero()
    {
        GuestImage image = Build(s_td);
        ImageSegment payload = Assert.Single(image.Segments, s => s.Name == "payload");
        Assert.Equal((0x40_0000UL, 0x2000UL), (payload.Gpa, payload.MemoryBytes));
        byte[] page = new byte[4096];
        payload.CopyPage(1, page);
        Assert.All(page[..0x10], b => Assert.Equal(0xDA, b));
        Assert.All(page[0x10..], b => Assert.Equal(0, b));
        Assert.Contains(image.UnacceptedRam(), r => r.Gpa <= 0x40_2000 && r.End >= 0x40_4000);
    }

    [Fact]
    public void Two_segments_that_share_a_page_end_up_in_one_run()
    {
        byte[] file = new ElfBytes().Segment(1, type: 1, flags: 6, 0x280, 0x40_0800, 0x10, 0x10).ToArray();
        GuestImage image = GuestImage.Build(ElfImage.Parse(file), s_td);
        ImageSegment payload = Assert.Single(image.Segments, s => s.Name == "payload");
        Assert.Equal(0x1000UL, payload.MemoryBytes);
        GuestMemory memory = new(image);
        Assert.Equal(0x90, memory.Bytes(0x40_0000, 1)[0]);
        Assert.Equal(0xDA, memory.Bytes(0x40_0800, 1)[0]);
        Assert.Equal(0, memory.Bytes(0x40_0040, 1)[0]);
    }

    [Fact]
    public void The_kernel_knows_exactly_the_pages_of_the_image_as_accepted()
    {
        GuestImage image = Build(s_td with { VcpuCount = 4 });
        GuestMemory memory = new(image);
        Assert.True(image.Symbols.TryGetAddress("accepted_bitmap", out ulong bitmap));
        Assert.True(image.Symbols.TryGetAddress("unit_states", out ulong unitStates));
        byte[] bits = memory.Bytes(bitmap, (64 << 20) / 4096 / 8);
        byte[] units = memory.Bytes(unitStates, 32);
        for (ulong page = 0; page < (64 << 20) / 4096; page++)
        {
            bool inImage = page == 0 || image.Segments.Any(s => s.Gpa <= page * 4096 && page * 4096 < s.End);
            Assert.Equal(inImage, (bits[page / 8] >> (int)(page % 8) & 1) != 0);
        }
        for (ulong unit = 0; unit < 32; unit++)
        {
            bool touched = image.Segments.Any(s => s.Gpa < (unit + 1) << 21 && s.End > unit << 21);
            Assert.Equal(touched ? 2 : 0, units[unit]);
        }
    }

    [Fact]
    public void The_same_input_gives_the_same_bytes_and_the_kernel_text_does_not_depend_on_the_options()
    {
        GuestImage first = Build(s_td), second = Build(s_td), vm = Build(s_td with { IsTd = false, RamBytes = 16 << 20, VcpuCount = 1, LazyAccept = true });
        Assert.Equal(first.Segments.Select(s => (s.Name, s.Gpa, Convert.ToHexString(s.Bytes.Span))), second.Segments.Select(s => (s.Name, s.Gpa, Convert.ToHexString(s.Bytes.Span))));
        Assert.Equal(Text(first), Text(vm));

        static string Text(GuestImage image) => Convert.ToHexString(image.Segments.Single(s => s.Name == "kernel text").Bytes.Span);
    }

    [Theory]
    [InlineData(0x1000UL, 64, "overlaps the boot area [0x0, 0x20000)")]
    [InlineData(0x10_1000UL, 64, "overlaps the guest kernel [0x100000, 0x13c000)")]
    [InlineData(0x13_B000UL, 64, "overlaps the guest kernel")]
    [InlineData(0x40_0000UL, 4, "segment 0 [0x400000, 0x400040) lies beyond the guest's memory, which ends at 0x400000")]
    [InlineData(0x3F_E000UL, 4, "segment 1 [0x3ff000, 0x402000) lies beyond the guest's memory, which ends at 0x400000")]
    [InlineData(0xF000_0000UL, 64, "lies beyond the guest's memory")]
    public void A_segment_that_lies_where_it_must_not_is_named_with_its_addresses(ulong address, int mebibytes, string expected)
    {
        ElfImage payload = ElfImage.Parse(PayloadAt(address));
        var error = Assert.Throws<ElfFormatException>(() => GuestImage.Build(payload, s_td with { RamBytes = (ulong)mebibytes << 20 }));
        Assert.Contains(expected, error.Message, StringComparison.Ordinal);
        Assert.Contains("segment ", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0, 64UL << 20, "0 vCPUs: 1 to 64 are possible")]
    [InlineData(65, 64UL << 20, "65 vCPUs")]
    [InlineData(1, 1024UL, "1024 bytes of guest memory: 2 MiB to 3840 MiB are possible")]
    [InlineData(1, 3UL << 20, "a multiple of 2 MiB is needed")]
    [InlineData(1, 4UL << 30, "2 MiB to 3840 MiB are possible")]
    [InlineData(64, 2UL << 20, "2 MiB of guest memory are too small for 64 vCPUs: the kernel's area ends at 0x2b0000")]
    public void Impossible_guests_are_refused_in_one_line(int vcpus, ulong ramBytes, string expected)
    {
        ElfImage payload = ElfImage.Parse(new ElfBytes().ToArray());
        var error = Assert.Throws<GuestBootException>(() => GuestImage.Build(payload, s_td with { VcpuCount = vcpus, RamBytes = ramBytes }));
        Assert.Contains(expected, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Other_impossible_options_are_refused()
    {
        ElfImage payload = ElfImage.Parse(new ElfBytes().ToArray());
        Assert.Throws<GuestBootException>(() => GuestImage.Build(payload, s_td with { AliasBit = 47, GpaWidth = 52 }));
        Assert.Throws<GuestBootException>(() => GuestImage.Build(payload, s_td with { CommandLine = new string('x', 1024) }));
        Assert.Throws<GuestBootException>(() => GuestImage.Build(payload, s_td with { CommandLine = "tab\t" }));
    }

    [Fact]
    public void Names_are_found_for_kernel_and_payload_addresses()
    {
        GuestImage image = GuestImage.Build(ElfImage.Parse(ElfBytes.Sample("hello.elf")), s_td);
        Assert.True(image.Symbols.TryGetAddress("guest_main", out ulong main));
        Assert.Equal("guest_main", image.Symbols.Describe(main));
        Assert.Equal("guest_main+0x5", image.Symbols.Describe(main + 5));
        Assert.True(image.Symbols.TryGetAddress("ve_entry", out ulong entry));
        Assert.Equal("ve_entry+0x1", image.Symbols.Describe(entry + 1));
        Assert.Null(image.Symbols.Describe(0x10));
    }

    private static byte[] PayloadAt(ulong address) => new ElfBytes()
        .Segment(0, type: 1, flags: 5, 0x200, address, 0x40, 0x40)
        .Segment(1, type: 1, flags: 6, 0x280, address + 0x1000, 0x10, 0x3000)
        .U64(24, address).ToArray();

    private static GuestImage Build(GuestBootOptions options) => GuestImage.Build(ElfImage.Parse(new ElfBytes().ToArray()), options);
}
