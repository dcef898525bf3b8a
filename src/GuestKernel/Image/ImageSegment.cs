namespace Tdp.Kernel;

/// <summary>A run of whole pages of the initial image. In a TD every page of it goes through PAGE.ADD, so it is accepted from the start.</summary>
public sealed class ImageSegment
{
    private readonly ReadOnlyMemory<byte> _bytes;

    internal ImageSegment(string name, ulong gpa, ReadOnlyMemory<byte> bytes, ulong memoryBytes)
    {
        Name = name;
        Gpa = gpa;
        _bytes = bytes;
        MemoryBytes = memoryBytes;
    }

    /// <summary>What it is, for messages and reports: <c>boot-info</c>, <c>page tables</c>, <c>kernel text</c>, <c>payload</c>, ...</summary>
    public string Name { get; }

    /// <summary>First GPA, page-aligned, without the alias bit.</summary>
    public ulong Gpa { get; }

    /// <summary>Length in bytes, a multiple of 4096.</summary>
    public ulong MemoryBytes { get; }

    /// <summary>First GPA behind the segment.</summary>
    public ulong End => Gpa + MemoryBytes;

    /// <summary>Number of 4 KiB pages.</summary>
    public int Pages => (int)(MemoryBytes / GuestAbi.PageBytes);

    /// <summary>The leading bytes; what follows up to <see cref="MemoryBytes"/> is zero.</summary>
    public ReadOnlyMemory<byte> Bytes => _bytes;

    /// <summary>Writes the content of one page.</summary>
    /// <param name="page">0 to <see cref="Pages"/> - 1.</param>
    /// <param name="destination">At least 4096 bytes; exactly 4096 are written.</param>
    public void CopyPage(int page, Span<byte> destination)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(page);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(page, Pages);
        Span<byte> target = destination[..(int)GuestAbi.PageBytes];
        int offset = page * (int)GuestAbi.PageBytes;
        int available = Math.Clamp(_bytes.Length - offset, 0, (int)GuestAbi.PageBytes);
        if (available > 0)
            _bytes.Span.Slice(offset, available).CopyTo(target);
        target[available..].Clear();
    }
}

/// <summary>A run of guest-physical pages.</summary>
/// <param name="Gpa">First GPA, page-aligned.</param>
/// <param name="Bytes">Length, a multiple of 4096.</param>
public readonly record struct GpaRun(ulong Gpa, ulong Bytes)
{
    /// <summary>First GPA behind the run.</summary>
    public ulong End => Gpa + Bytes;
}
