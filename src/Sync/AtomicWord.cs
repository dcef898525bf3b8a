using System.Threading;

namespace Tdp.Sync;

/// <summary>
/// A 64-bit word that several actors use at once: a page-table entry, a PAMT word, guest memory. It is nothing but a reference to the word
/// (decisions D29); its structural name is looked up only when the hook is on. Each method is one event and, in a free run, one instruction.
/// </summary>
public readonly ref struct AtomicWord
{
    private readonly ref ulong _word;

    /// <summary>Wraps a word of simulated memory or of a <see cref="WordBlock"/>. The memory must not move.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public AtomicWord(ref ulong word) => _word = ref word;

    /// <summary>Atomic load with acquire order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Read([CallerMemberName] string site = "") => Explore.On ? HookedRead(EventKind.Read, site) : Volatile.Read(ref _word);

    /// <summary>The value without an event: for checkers and reports, which must not be interleaving points themselves.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Peek() => Volatile.Read(ref _word);

    /// <summary>Atomic store with release order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Write(ulong value, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedWrite(EventKind.Write, value, site);
        else
            Volatile.Write(ref _word, value);
    }

    /// <summary>A load that a held lock already orders.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong PlainRead([CallerMemberName] string site = "") => Explore.On ? HookedRead(EventKind.PlainRead, site) : _word;

    /// <summary>A store that a held lock already orders; still a single untorn store.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void PlainWrite(ulong value, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            HookedWrite(EventKind.PlainWrite, value, site);
        else
            _word = value;
    }

    /// <summary>
    /// Stores <paramref name="desired"/> iff the word holds <paramref name="expected"/>. True on success; on failure <paramref name="expected"/>
    /// becomes the value found. Full fence either way.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool CompareExchange(ref ulong expected, ulong desired, [CallerMemberName] string site = "")
    {
        if (Explore.On)
            return HookedCompareExchange(ref expected, desired, site);
        ulong found = Interlocked.CompareExchange(ref _word, desired, expected);
        if (found == expected)
            return true;
        expected = found;
        return false;
    }

    /// <summary>Stores a value and returns the one that was there. Full fence.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Exchange(ulong value, [CallerMemberName] string site = "") =>
        Explore.On ? HookedExchange(value, site) : Interlocked.Exchange(ref _word, value);

    /// <summary>Keeps the bits of <paramref name="mask"/> and returns the old value. Full fence.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong And(ulong mask, [CallerMemberName] string site = "") =>
        Explore.On ? HookedAnd(mask, site) : Interlocked.And(ref _word, mask);

    /// <summary>Sets the bits of <paramref name="bits"/> and returns the old value. Full fence.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Or(ulong bits, [CallerMemberName] string site = "") =>
        Explore.On ? HookedOr(bits, site) : Interlocked.Or(ref _word, bits);

    /// <summary>Adds <paramref name="delta"/> (modulo 2^64) and returns the old value. Full fence.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Add(ulong delta, [CallerMemberName] string site = "") =>
        Explore.On ? HookedAdd(delta, site) : Interlocked.Add(ref _word, delta) - delta;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ulong HookedRead(EventKind kind, string site)
    {
        PendingEvent pending = Hook.Announce(kind, Hook.Resolve(ref _word), site);
        ulong value = Volatile.Read(ref _word);
        Hook.Happened(pending, false, value, value);
        return value;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void HookedWrite(EventKind kind, ulong value, string site)
    {
        PendingEvent pending = Hook.Announce(kind, Hook.Resolve(ref _word), site);
        ulong before = Interlocked.Exchange(ref _word, value);
        Hook.Happened(pending, before != value, before, value);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool HookedCompareExchange(ref ulong expected, ulong desired, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, Hook.Resolve(ref _word), site);
        ulong found = Interlocked.CompareExchange(ref _word, desired, expected);
        bool won = found == expected;
        Hook.Happened(pending, won && found != desired, found, won ? desired : found);
        expected = won ? expected : found;
        return won;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ulong HookedExchange(ulong value, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, Hook.Resolve(ref _word), site);
        ulong before = Interlocked.Exchange(ref _word, value);
        Hook.Happened(pending, before != value, before, value);
        return before;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ulong HookedAnd(ulong mask, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, Hook.Resolve(ref _word), site);
        ulong before = Interlocked.And(ref _word, mask);
        Hook.Happened(pending, (before & mask) != before, before, before & mask);
        return before;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ulong HookedOr(ulong bits, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, Hook.Resolve(ref _word), site);
        ulong before = Interlocked.Or(ref _word, bits);
        Hook.Happened(pending, (before | bits) != before, before, before | bits);
        return before;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ulong HookedAdd(ulong delta, string site)
    {
        PendingEvent pending = Hook.Announce(EventKind.Update, Hook.Resolve(ref _word), site);
        ulong before = Interlocked.Add(ref _word, delta) - delta;
        Hook.Happened(pending, delta != 0, before, before + delta);
        return before;
    }
}

/// <summary>
/// Shared words outside simulated memory that must not move, such as the lock words of a TD's control structure. Each word has a name and,
/// on request, a cache line of its own.
/// </summary>
public sealed unsafe class WordBlock : IWordResolver
{
    private const int WordsPerLine = 16; // 128 bytes: the adjacent-line prefetcher pairs 64-byte lines

    // Pinned, so that a word is found by one addition; the array keeps the memory alive.
    private readonly ulong[] _words;
    private readonly ulong* _first;
    private readonly string[] _names;
    private readonly ulong _owner;
    private readonly int _stride;

    /// <summary>Makes one zeroed word per name.</summary>
    /// <param name="owner">Structural number of the owner, for the words' ids.</param>
    /// <param name="separateLines">True: words that different actors write; each gets its own line.</param>
    /// <param name="names">Names of the words, in index order.</param>
    public WordBlock(ulong owner, bool separateLines, params string[] names)
    {
        _owner = owner;
        _names = names;
        _stride = separateLines ? WordsPerLine : 1;
        _words = GC.AllocateArray<ulong>(((names.Length + 1) * _stride) + WordsPerLine, pinned: true);
        _first = (ulong*)Unsafe.AsPointer(ref _words[WordsPerLine]);
        Hook.AddBlock(this);
    }

    /// <summary>Word <paramref name="index"/>, in the order of the names given; the index is not checked.</summary>
    public ref ulong this[int index]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => ref _first[index * _stride];
    }

    /// <summary>The word as a shared word.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public AtomicWord Word(int index) => new(ref this[index]);

    /// <inheritdoc/>
    bool IWordResolver.TryResolve(nuint address, out ObjectId id)
    {
        // Compared before it is made an int: the arena may lie many GiB away from the block, on either side.
        nuint index = (address - Hook.AddressOf(ref this[0])) / (nuint)(sizeof(ulong) * _stride);
        if (index >= (nuint)_names.Length)
        {
            id = default;
            return false;
        }

        id = ObjectId.Cell(_names[(int)index], _owner);
        return true;
    }
}
