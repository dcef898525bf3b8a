namespace Tdp.Cpu;

/// <summary>
/// How decoded code notices that its bytes changed: the frame's <see cref="FrameRecord.CodeGeneration"/>, used as a mark of three parts.
/// </summary>
/// <remarks>
/// <para>Bit 30: some CPU has decoded from the frame, so guest stores to it go the slow way and count the mark up; the ledger does the same for
/// hand-overs and host writes. Bit 31: some CPU may store to the frame without telling, because its front cache let it in before the frame became
/// code. Bits 29:0 count.</para>
/// <para>A decoder sets bit 30 and then looks at bit 31; a writer sets bit 31 and then looks at bit 30. Both are one atomic step on one word, so one
/// of them sees the other: either the writer stays on the slow path, or the decoder compares the bytes at every entry of a block (G08).
/// Linearizes at the compare-exchange.</para>
/// </remarks>
internal static class CodeWatch
{
    private const uint HasCode = 1u << 30;
    private const uint QuietWriter = 1u << 31;

    /// <summary>The mark now.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Read(PhysicalMemory memory, ulong hpa)
    {
        ref uint word = ref memory.Record(hpa >> 12).CodeGeneration;

        // Explored runs have one actor at a time; the mark belongs to no object of the model, so it must not become an event.
        return Explore.On ? word : new AtomicScalar<uint>(ref word).Read();
    }

    /// <summary>True when the bytes of a block with this mark must be compared before each use.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool NeedsCompare(uint mark) => (int)mark < 0;

    /// <summary>The frame is about to be decoded. Returns the mark that a block made from bytes read afterwards may carry.</summary>
    public static uint AnnounceDecode(PhysicalMemory memory, ulong hpa) => SetBits(memory, hpa, HasCode);

    /// <summary>A front cache wants to let stores through to the frame. False: it has code, every store must call <see cref="Stored"/>.</summary>
    public static bool AnnounceWriter(PhysicalMemory memory, ulong hpa)
    {
        uint mark = Read(memory, hpa);
        if ((mark & (HasCode | QuietWriter)) != 0)
            return (mark & HasCode) == 0;
        return (SetBits(memory, hpa, QuietWriter) & HasCode) == 0;
    }

    /// <summary>True when the frame has decoded code.</summary>
    public static bool IsCode(PhysicalMemory memory, ulong hpa) => (Read(memory, hpa) & HasCode) != 0;

    /// <summary>A guest store changed the frame.</summary>
    public static void Stored(PhysicalMemory memory, ulong hpa)
    {
        ref uint word = ref memory.Record(hpa >> 12).CodeGeneration;
        if (Explore.On)
        {
            word = Next(word);
            return;
        }

        var shared = new AtomicScalar<uint>(ref word);
        uint seen = shared.Read();
        while (!shared.CompareExchange(ref seen, Next(seen)))
        {
        }
    }

    private static uint Next(uint mark) => (mark & ~(HasCode - 1)) | ((mark + 1) & (HasCode - 1));

    private static uint SetBits(PhysicalMemory memory, ulong hpa, uint bits)
    {
        ref uint word = ref memory.Record(hpa >> 12).CodeGeneration;
        if (Explore.On)
        {
            word |= bits;
            return word;
        }

        var shared = new AtomicScalar<uint>(ref word);
        uint seen = shared.Read();
        while ((seen & bits) != bits && !shared.CompareExchange(ref seen, seen | bits))
        {
        }

        return seen | bits;
    }
}
