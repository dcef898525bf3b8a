using System.Buffers.Binary;

namespace Tdp.Kernel;

/// <summary>
/// A guest ready to be loaded: the pages of its initial image, the entry state of each vCPU, and names for its addresses.
/// Immutable; any thread may read it. The image is small on purpose: what it does not contain is RAM that the guest must accept. Source: td-guest 8.3.
/// </summary>
public sealed class GuestImage
{
    private const ulong PreAcceptedHeapBytes = 16 * GuestAbi.PageBytes;

    private GuestImage(GuestBootOptions options, ElfImage payload, List<ImageSegment> segments, EntryState[] entry, GuestSymbols symbols)
    {
        Options = options;
        Payload = payload;
        Segments = segments;
        VcpuEntry = entry;
        Symbols = symbols;
    }

    /// <summary>What the image was built for.</summary>
    public GuestBootOptions Options { get; }

    /// <summary>The program that the kernel runs.</summary>
    public ElfImage Payload { get; }

    /// <summary>The initial image in ascending order of GPA: disjoint runs of whole pages. All of it is accepted from the start.</summary>
    public IReadOnlyList<ImageSegment> Segments { get; }

    /// <summary>Entry state of each vCPU, by index.</summary>
    public IReadOnlyList<EntryState> VcpuEntry { get; }

    /// <summary>Names of the kernel's and the payload's addresses.</summary>
    public GuestSymbols Symbols { get; }

    /// <summary>RAM that is not part of the image, in ascending order, without the null guard. In a TD it is unaccepted at entry.</summary>
    /// <returns>The runs.</returns>
    public IEnumerable<GpaRun> UnacceptedRam()
    {
        ulong at = GuestAbi.BootInfo;
        foreach (ImageSegment segment in Segments)
        {
            if (segment.Gpa > at)
                yield return new GpaRun(at, segment.Gpa - at);
            at = segment.End;
        }
        if (Options.RamBytes > at)
            yield return new GpaRun(at, Options.RamBytes - at);
    }

    /// <summary>Lays kernel, boot pages and payload out in guest memory.</summary>
    /// <param name="payload">The program.</param>
    /// <param name="options">Kind of guest, memory, vCPUs, ...</param>
    /// <returns>The image.</returns>
    /// <exception cref="GuestBootException">The options are impossible.</exception>
    /// <exception cref="ElfFormatException">A segment of the program does not fit where it wants to lie.</exception>
    public static GuestImage Build(ElfImage payload, GuestBootOptions options)
    {
        ArgumentNullException.ThrowIfNull(payload);
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        ulong kernelEnd = KernelLayout.End(options.VcpuCount);
        if (kernelEnd > options.RamBytes)
        {
            throw new GuestBootException(
                $"{options.RamBytes >> 20} MiB of guest memory are too small for {options.VcpuCount} vCPUs: the kernel's area ends at 0x{kernelEnd:x}");
        }
        CheckPlacement(payload, options, kernelEnd);

        KernelProgram kernel = KernelProgram.Assemble();
        ulong payloadEnd = payload.Segments[^1].End;
        ulong heap = PageUp(Math.Max(kernelEnd, payloadEnd));
        ulong heapAccepted = Math.Min(PreAcceptedHeapBytes, options.RamBytes - heap);
        ulong sharedTestPage = heapAccepted == 0 ? 0 : heap;

        var segments = new List<ImageSegment>
        {
            Zero("boot tables", GuestAbi.Gdt, GuestAbi.BootStackBottom),
            Zero("boot stacks", GuestAbi.BootStackBottom, GuestAbi.PageTables),
            Filled("page tables", GuestAbi.PageTables, BootPageTables.Build(options.RamBytes, options.SharedMask)),
            Zero("spare page tables", GuestAbi.PageTables + (GuestAbi.PageTablePages * GuestAbi.PageBytes), GuestAbi.BootAreaEnd),
            Filled("kernel text", GuestAbi.Kernel, kernel.Text),
        };
        for (int i = 0; i < options.VcpuCount; i++)
            segments.Add(VcpuArea(i));
        PayloadPages.Add(payload, segments);
        if (heapAccepted != 0)
            segments.Add(Zero("heap", heap, heap + heapAccepted));
        segments.Add(Filled(
            "boot-info",
            GuestAbi.BootInfo,
            BootInfoPage.Build(options, GuestAbi.BootAreaEnd, payload.Entry, kernel.ApEntry, sharedTestPage)));

        // The acceptance state is written last: it describes every other segment, and itself.
        segments.Add(KernelData(options, kernel, segments, payload, kernelEnd, heap + (sharedTestPage == 0 ? 0 : GuestAbi.PageBytes)));
        segments.Sort(static (a, b) => a.Gpa.CompareTo(b.Gpa));
        var symbols = new GuestSymbols([.. kernel.Symbols, .. DataSymbols(options, heap), .. payload.Symbols]);
        return new GuestImage(options, payload, segments, EntryStates(options, kernel), symbols);
    }

    private static List<GuestSymbol> DataSymbols(GuestBootOptions options, ulong heap)
    {
        List<GuestSymbol> symbols =
        [
            new("boot_info", GuestAbi.BootInfo, GuestAbi.PageBytes),
            new("gdt", GuestAbi.Gdt, GuestAbi.BootTss - GuestAbi.Gdt),
            new("tss_0", GuestAbi.BootTss, KernelLayout.TssBytes),
            new("idt", GuestAbi.Idt, GuestAbi.PageBytes),
            new("boot_stack", GuestAbi.BootStackBottom, GuestAbi.BootStackTop - GuestAbi.BootStackBottom),
            new("pml4", BootPageTables.Pml4, GuestAbi.PageBytes),
            new("pdpt", BootPageTables.Pdpt, GuestAbi.PageBytes),
            new("identity_directories", BootPageTables.IdentityDirectories, 4 * GuestAbi.PageBytes),
            new("shared_directories", BootPageTables.SharedDirectories, 4 * GuestAbi.PageBytes),
            new("first_page_table", BootPageTables.FirstTable, GuestAbi.PageBytes),
            new("kernel_globals", KernelLayout.Globals, GuestAbi.PageBytes),
            new("unit_states", KernelLayout.UnitStates, GuestAbi.PageBytes),
            new("accepted_bitmap", KernelLayout.AcceptedBitmap, options.RamBytes / GuestAbi.PageBytes / 8),
            new("heap", heap, options.RamBytes - heap),
        ];
        for (int i = 0; i < options.VcpuCount; i++)
            symbols.Add(new GuestSymbol($"vcpu_area_{i}", KernelLayout.VcpuArea(i), KernelLayout.VcpuAreaBytes));
        return symbols;
    }

    private static void CheckPlacement(ElfImage payload, GuestBootOptions options, ulong kernelEnd)
    {
        foreach (ElfSegment segment in payload.Segments)
        {
            if (segment.End > options.RamBytes)
                throw new ElfFormatException($"{segment} lies beyond the guest's memory, which ends at 0x{options.RamBytes:x}");
            if (segment.Address < GuestAbi.BootAreaEnd)
                throw new ElfFormatException($"{segment} overlaps the boot area [0x0, 0x{GuestAbi.BootAreaEnd:x})");
            // A page of the kernel must not hold a byte of the payload, so the comparison is by whole pages.
            if ((segment.Address & ~(GuestAbi.PageBytes - 1)) < kernelEnd && segment.End > GuestAbi.Kernel)
                throw new ElfFormatException($"{segment} overlaps the guest kernel [0x{GuestAbi.Kernel:x}, 0x{kernelEnd:x})");
        }
    }

    private static ImageSegment KernelData(
        GuestBootOptions options, KernelProgram kernel, List<ImageSegment> others, ElfImage payload, ulong kernelEnd, ulong heapNext)
    {
        ulong pages = options.RamBytes / GuestAbi.PageBytes;
        byte[] bytes = new byte[PageUp(KernelLayout.AcceptedBitmap - KernelLayout.Globals + ((pages + 7) / 8))];
        var self = new ImageSegment("kernel data", KernelLayout.Globals, bytes, (ulong)bytes.Length);

        Put(KernelLayout.KernelEnd, kernelEnd);
        Put(KernelLayout.HeapNext, heapNext);
        Put(KernelLayout.HeapEnd, options.RamBytes);
        Put(KernelLayout.SpareTableNext, GuestAbi.PageTables + (GuestAbi.PageTablePages * GuestAbi.PageBytes));
        Put(KernelLayout.SpareTableEnd, GuestAbi.BootAreaEnd);
        Put(KernelLayout.PayloadLow, payload.Segments[0].Address & ~(GuestAbi.PageBytes - 1));
        Put(KernelLayout.PayloadHigh, PageUp(payload.Segments[^1].End));
        Put(KernelLayout.FixupTable, kernel.FixupTable);
        Put(KernelLayout.FixupCount, (ulong)kernel.FixupCount);

        // Page 0 is unmapped for ever: counted as accepted, so that nobody asks for it.
        MarkAccepted(GuestAbi.NullGuard, GuestAbi.BootInfo);
        MarkAccepted(self.Gpa, self.End);
        foreach (ImageSegment segment in others)
            MarkAccepted(segment.Gpa, segment.End);
        return self;

        void Put(ulong address, ulong value) =>
            BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan((int)(address - KernelLayout.Globals)), value);

        void MarkAccepted(ulong from, ulong end)
        {
            for (ulong gpa = from; gpa < end; gpa += GuestAbi.PageBytes)
            {
                ulong page = gpa / GuestAbi.PageBytes;
                bytes[(KernelLayout.AcceptedBitmap - KernelLayout.Globals) + (page / 8)] |= (byte)(1 << (int)(page % 8));
                bytes[(KernelLayout.UnitStates - KernelLayout.Globals) + (gpa / GuestAbi.UnitBytes)] = KernelLayout.UnitSettled;
            }
        }
    }

    private static ImageSegment VcpuArea(int index)
    {
        ulong area = KernelLayout.VcpuArea(index);
        byte[] block = new byte[GuestAbi.PageBytes];
        BinaryPrimitives.WriteUInt64LittleEndian(block.AsSpan(KernelLayout.BlockIndex), (ulong)index);

        // vCPU 0 has its stacks in the boot area and its TSS in the descriptor page.
        return new ImageSegment($"vCPU {index}", area, block, index == 0 ? GuestAbi.PageBytes : KernelLayout.VcpuAreaBytes);
    }

    private static EntryState[] EntryStates(GuestBootOptions options, KernelProgram kernel)
    {
        var states = new EntryState[options.VcpuCount];
        for (int i = 0; i < states.Length; i++)
        {
            states[i] = new EntryState
            {
                VcpuIndex = i,
                Rip = i == 0 ? kernel.Entry : kernel.ApEntry,
                Rsp = KernelLayout.StackTop(i),
                Cr3 = GuestAbi.PageTables,
                Rbx = options.IsTd ? (ulong)options.GpaWidth : 0,
                Cr4 = options.IsTd ? 0x26E0u : 0x6E0u,
            };
        }
        return states;
    }

    private static ImageSegment Zero(string name, ulong from, ulong end) => new(name, from, default, end - from);

    private static ImageSegment Filled(string name, ulong gpa, byte[] bytes) => new(name, gpa, bytes, PageUp((ulong)bytes.Length));

    private static ulong PageUp(ulong value) => (value + GuestAbi.PageBytes - 1) & ~(GuestAbi.PageBytes - 1);
}
