using System.Runtime.InteropServices;

namespace Tdp.Platform;

/// <summary>This process cannot host a simulated machine: wrong operating system or processor, or no address space. Exit code 3.</summary>
public sealed class UnsupportedHostException : Exception
{
    /// <summary>Makes the exception with its one-line reason.</summary>
    public UnsupportedHostException(string message)
        : base(message)
    {
    }
}

/// <summary>
/// The machine's memory: one native arena in which a byte lies at base + physical address, and one small record per frame beside it. Both are
/// reserved without being committed, so a machine of 64 GiB costs only what it touches (performance: "What decides it").
/// </summary>
/// <remarks>
/// Nothing here checks who may touch what: the hardware walker, the module and the host do that, and <see cref="FrameLedger"/> compares.
/// Memory is zero until first written.
/// </remarks>
public sealed unsafe class PhysicalMemory : IWordResolver, IDisposable
{
    private const int ProtReadWrite = 3;
    private const int MapPrivateAnonymousNoReserve = 0x2 | 0x20 | 0x4000;
    private const int DontNeed = 4;
    private readonly HpaRange[] _ranges;
    private readonly Dictionary<ulong, ulong>? _named = Explore.On ? [] : null;
    private readonly SyncGate _nameGate = new();
    private byte* _base;
    private FrameRecord* _records;

    /// <summary>Reserves the memory.</summary>
    /// <param name="ranges">The ranges that exist; addresses between them do not.</param>
    /// <exception cref="UnsupportedHostException">Not Linux on x64, or the reservation was refused.</exception>
    public PhysicalMemory(IReadOnlyList<HpaRange> ranges)
    {
        if (!OperatingSystem.IsLinux() || RuntimeInformation.ProcessArchitecture != Architecture.X64)
        {
            throw new UnsupportedHostException(
                $"the simulated machine needs Linux on x64; this is {RuntimeInformation.OSDescription} on {RuntimeInformation.ProcessArchitecture}");
        }

        _ranges = [.. ranges];
        foreach (HpaRange range in _ranges)
            Top = Math.Max(Top, range.End);
        _base = (byte*)Reserve(Top);
        _records = (FrameRecord*)Reserve((Top >> 12) * (ulong)sizeof(FrameRecord));
        Hook.AddResolver(this);
    }

    /// <summary>One past the highest address that exists.</summary>
    public ulong Top { get; }

    /// <summary>The ranges that exist.</summary>
    public IReadOnlyList<HpaRange> Ranges => _ranges;

    /// <summary>True when the frame of this address exists.</summary>
    public bool Exists(Hpa address)
    {
        foreach (HpaRange range in _ranges)
        {
            if (range.Contains(address.Value))
                return true;
        }

        return false;
    }

    /// <summary>The 64-bit word at an 8-byte aligned address that exists. Shared words must be used through <see cref="AtomicWord"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref ulong Word(ulong address) => ref *(ulong*)(_base + address);

    /// <summary>The word at <paramref name="index"/> (0..511) of the frame, as a shared word.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public AtomicWord Entry(Hpa frame, int index) => new(ref *(ulong*)(_base + frame.Value + ((ulong)(uint)index << 3)));

    /// <summary>The byte at an address that exists; the rest of its frame follows it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref byte At(ulong address) => ref *(_base + address);

    /// <summary>The 4096 bytes of a frame.</summary>
    public Span<byte> Frame(Hpa frame) => new(_base + frame.Value, 4096);

    /// <summary>The 512 words of a frame.</summary>
    public Span<ulong> Table(Hpa frame) => new(_base + frame.Value, 512);

    /// <summary>Bytes inside existing memory, which may cross frames.</summary>
    public Span<byte> Bytes(Hpa address, int length)
    {
        if (!Exists(address) || (length > 0 && !Exists(address + (ulong)(length - 1))))
            throw new ArgumentOutOfRangeException(nameof(address), $"{address} + {length} bytes is not memory of this machine");
        return new Span<byte>(_base + address.Value, length);
    }

    /// <summary>The record of a frame that exists.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref FrameRecord Record(ulong frame) => ref _records[frame];

    /// <summary>Gives a frame its structural name (decisions D14). Whoever takes it from a cache calls this before anybody else can reach it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Name(ulong frame, ulong name)
    {
        if (Explore.On)
            Remember(frame, name);
        _records[frame].Name = name;
    }

    /// <summary>The frame that has a structural name now; for whoever sees events, which name words by their frame. Only under the hook. No event.</summary>
    /// <returns>False when no frame has the name any more.</returns>
    public bool TryFindNamed(ulong name, out Hpa frame)
    {
        // A frame without a name is called by its number; names given out start at 2^32.
        if (name < 1UL << 32)
        {
            frame = Hpa.OfFrame(name);
            return name < Top >> 12;
        }

        using (_nameGate.Hold())
        {
            bool found = _named is not null && _named.TryGetValue(name, out ulong number) && _records[number].Name == name;
            frame = found ? Hpa.OfFrame(_named![name]) : default;
            return found;
        }
    }

    /// <summary>Zeroes a frame.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Zero(Hpa frame) => NativeMemory.Clear(_base + frame.Value, 4096);

    /// <summary>Copies a frame.</summary>
    public void Copy(Hpa from, Hpa to) => Buffer.MemoryCopy(_base + from.Value, _base + to.Value, 4096, 4096);

    /// <summary>Fills the frame with copies of one word, such as an empty page-table entry.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Fill(Hpa frame, ulong word) => new Span<ulong>(_base + frame.Value, 512).Fill(word);

    /// <summary>Gives the arena's committed pages back to the operating system; the content becomes zero.</summary>
    public void Discard(Hpa start, ulong bytes)
    {
        if (madvise(_base + start.Value, (nuint)bytes, DontNeed) != 0)
            throw new InvalidOperationException($"madvise failed with errno {Marshal.GetLastPInvokeError()}");
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Hook.RemoveResolver(this);
        Release();
    }

    /// <inheritdoc/>
    bool IWordResolver.TryResolve(nuint address, out ObjectId id)
    {
        ulong offset = address - (nuint)_base;
        if (address < (nuint)_base || offset >= Top)
        {
            id = default;
            return false;
        }

        // A frame that no actor has taken from a cache keeps its address as its name: module memory and the initial image are laid out once, by the machine.
        ulong name = _records[offset >> 12].Name;
        id = ObjectId.Entry(name != 0 ? name : offset >> 12, (uint)(offset & 0xFFF) >> 3);
        return true;
    }

    private static void* Reserve(ulong bytes)
    {
        void* address = mmap(null, (nuint)bytes, ProtReadWrite, MapPrivateAnonymousNoReserve, -1, 0);
        if (address == (void*)-1)
            throw new UnsupportedHostException($"cannot reserve {bytes >> 20} MiB of address space (errno {Marshal.GetLastPInvokeError()})");
        return address;
    }

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    private static extern void* mmap(void* address, nuint length, int protection, int flags, int fd, nint offset);

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    private static extern int munmap(void* address, nuint length);

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    private static extern int madvise(void* address, nuint length, int advice);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Remember(ulong frame, ulong name)
    {
        using (_nameGate.Hold())
        {
            _named!.Remove(_records[frame].Name);
            _named[name] = frame;
        }
    }

    private void Release()
    {
        if (_base != null)
            _ = munmap(_base, (nuint)Top);
        if (_records != null)
            _ = munmap(_records, (nuint)((Top >> 12) * (ulong)sizeof(FrameRecord)));
        _base = null;
        _records = null;
    }
}
