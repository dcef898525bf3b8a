namespace Tdp.Mmu;

/// <summary>
/// The place of an entry in a table of KVM's, with the primitives of tdp-mmu 4.1. Which one may be used, by whom and under which lock, is the table of tdp-mmu
/// 4.2; the callers are the places to look.
/// </summary>
public readonly ref struct SpteRef
{
    private readonly ref ulong _word;

    /// <summary>Wraps the word.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public SpteRef(ref ulong word) => _word = ref word;

    internal ref ulong Word => ref _word;

    /// <summary>The entry behind this one in the same table.</summary>
    internal SpteRef Next => new(ref Unsafe.Add(ref _word, 1));

    /// <summary>Atomic load. Anyone inside RCU or with mmu_lock.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Spte Read([CallerMemberName] string site = "") => new(new AtomicWord(ref _word).Read(site));

    /// <summary>
    /// Locks the entry out: <paramref name="seen"/> becomes FROZEN. On failure <paramref name="seen"/> is the value found. Linearizes at the
    /// compare-exchange; from then on the entry is the caller's (I14, I15).
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool TryFreeze(ref Spte seen, [CallerMemberName] string site = "") => TryReplace(ref seen, Spte.Frozen, site);

    /// <summary>The owner of a frozen entry gives it its final value: the announced new one, or the one from before (I15).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Thaw(Spte value, [CallerMemberName] string site = "") => new AtomicWord(ref _word).Write(value.Value, site);

    /// <summary>Compare-exchange. On failure <paramref name="seen"/> is the value found.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool TryReplace(ref Spte seen, Spte value, [CallerMemberName] string site = "")
    {
        ulong expected = seen.Value;
        if (new AtomicWord(ref _word).CompareExchange(ref expected, value.Value, site))
            return true;
        seen = new Spte(expected);
        return false;
    }

    /// <summary>One untorn store. mmu_lock write, and nobody changes the entry without the lock.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(Spte value, [CallerMemberName] string site = "") => new AtomicWord(ref _word).Write(value.Value, site);

    /// <summary>Atomic exchange: nothing that the fast page fault or the hardware sets meanwhile is lost.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Spte Exchange(Spte value, [CallerMemberName] string site = "") => new(new AtomicWord(ref _word).Exchange(value.Value, site));

    /// <summary>Clears bits and returns the old value.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Spte FetchClear(ulong bits, [CallerMemberName] string site = "") => new(new AtomicWord(ref _word).And(~bits, site));
}
