namespace Tdp.Platform;

/// <summary>A host physical address, without KeyID bits unless a member says so. Bytes.</summary>
/// <param name="Value">The address.</param>
public readonly record struct Hpa(ulong Value)
{
    /// <summary>Bits 51:12: the address field of page-table entries.</summary>
    public const ulong Mask = 0x000F_FFFF_FFFF_F000;

    /// <summary>The number of the 4 KiB frame (KVM: pfn).</summary>
    public ulong Frame => Value >> 12;

    /// <summary>True when the address is a multiple of 4 KiB.</summary>
    public bool IsFrameAligned => (Value & 0xFFF) == 0;

    /// <summary>The first byte of frame <paramref name="frame"/>.</summary>
    public static Hpa OfFrame(ulong frame) => new(frame << 12);

    /// <summary>The address <paramref name="bytes"/> further.</summary>
    public static Hpa operator +(Hpa left, ulong bytes) => new(left.Value + bytes);

    /// <inheritdoc/>
    public override string ToString() => $"0x{Value:x}";
}

/// <summary>A guest physical address as the guest uses it: it may carry the alias bit. Bytes.</summary>
/// <param name="Value">The address.</param>
public readonly record struct Gpa(ulong Value)
{
    /// <summary>The first byte of the 4 KiB page.</summary>
    public Gpa Page => new(Value & ~0xFFFUL);

    /// <summary>The address <paramref name="bytes"/> further.</summary>
    public static Gpa operator +(Gpa left, ulong bytes) => new(left.Value + bytes);

    /// <inheritdoc/>
    public override string ToString() => $"0x{Value:x}";
}

/// <summary>
/// A guest frame number in its natural form: it never carries the alias bit (I11). Only <see cref="AliasBit"/> turns an address into one,
/// and only the MMU's iterator puts the bit back (tdp-mmu 1.1). Unit: 4 KiB pages.
/// </summary>
public readonly record struct Gfn : IComparable<Gfn>
{
    /// <summary>One more than the largest number: 52 physical address bits.</summary>
    public const ulong Limit = 1UL << 40;

    /// <summary>Makes the number.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Above 52 physical address bits.</exception>
    public Gfn(ulong value)
    {
        // One above the largest is allowed: it is the exclusive end of a range.
        if (value > Limit)
            Throw(value);
        Value = value;
    }

    /// <summary>The number.</summary>
    public ulong Value { get; }

    /// <summary>The natural (private) address of the page.</summary>
    public Gpa Gpa => new(Value << 12);

    /// <summary>The page <paramref name="pages"/> further.</summary>
    public static Gfn operator +(Gfn left, ulong pages) => new(left.Value + pages);

    /// <summary>Pages between two numbers.</summary>
    public static ulong operator -(Gfn left, Gfn right) => left.Value - right.Value;

    /// <summary>Order of numbers.</summary>
    public static bool operator <(Gfn left, Gfn right) => left.Value < right.Value;

    /// <summary>Order of numbers.</summary>
    public static bool operator >(Gfn left, Gfn right) => left.Value > right.Value;

    /// <summary>Order of numbers.</summary>
    public static bool operator <=(Gfn left, Gfn right) => left.Value <= right.Value;

    /// <summary>Order of numbers.</summary>
    public static bool operator >=(Gfn left, Gfn right) => left.Value >= right.Value;

    /// <inheritdoc/>
    public int CompareTo(Gfn other) => Value.CompareTo(other.Value);

    /// <summary>Rounded down to the first page of its entry at <paramref name="level"/>.</summary>
    public Gfn AlignDown(Level level) => new(Value & ~(level.Pages - 1));

    /// <inheritdoc/>
    public override string ToString() => $"0x{Value:x}";

    private static void Throw(ulong value) => throw new ArgumentOutOfRangeException(nameof(value), $"gfn 0x{value:x} has more than 52 address bits");
}

/// <summary>
/// A paging level in KVM's numbering: 4K is 1, 2M 2, 1G 3, 512G 4, 256T 5 (tdp-mmu 1.1). The TDX module counts from 0: <see cref="Tdx"/>,
/// which only the module and the Host's glue use (decisions D08).
/// </summary>
/// <param name="Value">1..5; 0 is "none".</param>
public readonly record struct Level(int Value) : IComparable<Level>
{
    /// <summary>PG_LEVEL_4K: entries that map 4 KiB.</summary>
    public static readonly Level K4 = new(1);

    /// <summary>PG_LEVEL_2M.</summary>
    public static readonly Level M2 = new(2);

    /// <summary>PG_LEVEL_1G.</summary>
    public static readonly Level G1 = new(3);

    /// <summary>PG_LEVEL_512G: the root of a 4-level tree.</summary>
    public static readonly Level G512 = new(4);

    /// <summary>PG_LEVEL_256T: the root of a 5-level tree.</summary>
    public static readonly Level T256 = new(5);

    /// <summary>The module's number: PG level - 1.</summary>
    public int Tdx => Value - 1;

    /// <summary>4 KiB pages that one entry at this level covers: 512^(level - 1).</summary>
    public ulong Pages => 1UL << (9 * (Value - 1));

    /// <summary>Bytes that one entry at this level covers.</summary>
    public ulong Bytes => 1UL << ((9 * (Value - 1)) + 12);

    /// <summary>The level below.</summary>
    public Level Down => new(Value - 1);

    /// <summary>The level above.</summary>
    public Level Up => new(Value + 1);

    /// <summary>The level with the module's number <paramref name="tdx"/>, 0..4.</summary>
    public static Level FromTdx(int tdx) => new(tdx + 1);

    /// <summary>Index 0..511 of the entry that covers a frame number (which may carry the alias bit) at this level.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int IndexOf(ulong rawGfn) => (int)(rawGfn >> (9 * (Value - 1))) & 511;

    /// <summary>Order of levels.</summary>
    public static bool operator <(Level left, Level right) => left.Value < right.Value;

    /// <summary>Order of levels.</summary>
    public static bool operator >(Level left, Level right) => left.Value > right.Value;

    /// <summary>Order of levels.</summary>
    public static bool operator <=(Level left, Level right) => left.Value <= right.Value;

    /// <summary>Order of levels.</summary>
    public static bool operator >=(Level left, Level right) => left.Value >= right.Value;

    /// <inheritdoc/>
    public int CompareTo(Level other) => Value.CompareTo(other.Value);

    /// <inheritdoc/>
    public override string ToString() => Value switch { 1 => "4K", 2 => "2M", 3 => "1G", 4 => "512G", 5 => "256T", _ => $"level {Value}" };
}

/// <summary>A memory-encryption KeyID. 0 is the host's own.</summary>
/// <param name="Value">The number.</param>
public readonly record struct Hkid(ushort Value)
{
    /// <summary>The host's own KeyID.</summary>
    public static readonly Hkid Host = new(0);

    /// <inheritdoc/>
    public override string ToString() => Value.ToString(System.Globalization.CultureInfo.InvariantCulture);
}

/// <summary>Which half of a TD's guest-physical space an access names (tdp-mmu 1.1).</summary>
public enum Alias : byte
{
    /// <summary>Alias bit 0: translated by the Secure EPT.</summary>
    Private = 0,

    /// <summary>Alias bit 1: translated by the shared EPT.</summary>
    Shared = 1,
}

/// <summary>
/// The one GPA bit that selects the alias: 47 for GPAW 48, 51 for GPAW 52, none for an ordinary VM (tdp-mmu 1.1).
/// </summary>
/// <param name="Number">Bit number in a GPA; 0 for none.</param>
public readonly record struct AliasBit(int Number)
{
    /// <summary>No alias: an ordinary VM.</summary>
    public static readonly AliasBit None = new(0);

    /// <summary>GPA bit 47: 4-level EPT, GPAW 48.</summary>
    public static readonly AliasBit Bit47 = new(47);

    /// <summary>GPA bit 51: 5-level EPT, GPAW 52.</summary>
    public static readonly AliasBit Bit51 = new(51);

    /// <summary>The bit in a GPA; 0 for none.</summary>
    public ulong GpaMask => Number == 0 ? 0 : 1UL << Number;

    /// <summary>The bit in a frame number (KVM: gfn_direct_bits); 0 for none.</summary>
    public ulong GfnMask => GpaMask >> 12;

    /// <summary>Which alias a GPA names. An ordinary VM's addresses are all <see cref="Alias.Shared"/>: direct.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Alias Of(Gpa gpa) => Number == 0 || (gpa.Value & (1UL << Number)) != 0 ? Alias.Shared : Alias.Private;

    /// <summary>The natural frame number of a GPA.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Gfn Strip(Gpa gpa) => new((gpa.Value & ~GpaMask) >> 12);

    /// <summary>The GPA of a page in one alias.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Gpa Apply(Gfn gfn, Alias alias) => new((gfn.Value << 12) | (alias == Alias.Shared ? GpaMask : 0));
}

/// <summary>A half-open range of frame numbers.</summary>
/// <param name="Start">First page.</param>
/// <param name="End">One past the last page.</param>
public readonly record struct GfnRange(Gfn Start, Gfn End)
{
    /// <summary>Number of pages; 0 when empty.</summary>
    public ulong Pages => End > Start ? End - Start : 0;

    /// <summary>True when there is no page in it.</summary>
    public bool IsEmpty => End <= Start;

    /// <summary>A range by first page and length in pages.</summary>
    public static GfnRange Of(Gfn start, ulong pages) => new(start, start + pages);

    /// <summary>True when the page lies in the range.</summary>
    public bool Contains(Gfn gfn) => gfn >= Start && gfn < End;

    /// <summary>True when the ranges share a page.</summary>
    public bool Overlaps(GfnRange other) => Start < other.End && other.Start < End;

    /// <summary>The pages in both.</summary>
    public GfnRange Intersect(GfnRange other) => new(Start > other.Start ? Start : other.Start, End < other.End ? End : other.End);

    /// <inheritdoc/>
    public override string ToString() => $"[{Start}, {End})";
}

/// <summary>What an access does, in the order of the exit qualification's bits 0..2.</summary>
[Flags]
public enum AccessKind : byte
{
    /// <summary>No access.</summary>
    None = 0,

    /// <summary>Data read.</summary>
    Read = 1,

    /// <summary>Data write.</summary>
    Write = 2,

    /// <summary>Instruction fetch.</summary>
    Fetch = 4,
}
