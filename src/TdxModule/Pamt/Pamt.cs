using System.Runtime.InteropServices;

namespace Tdp.Module;

/// <summary>
/// The physical address metadata table: who has each 4 KiB, 2 MiB and 1 GiB piece of the TDMRs (tdx-module 3). The entries lie in the memory that the
/// host gave for them; this class knows where, and walks and locks them.
/// </summary>
/// <remarks>
/// Protocol: an explicit operand locks the 1 GiB and 2 MiB entries above its page shared and the page's own entry as the leaf needs; a page found
/// through the Secure EPT or an owner field locks only its own entry. Nothing waits. Entries above 4 KiB and that of a TDR are biased locks, because
/// every SEAMCALL shares them (decisions D28); a 4 KiB entry is otherwise a counted lock. A GiB becomes visible when SYS.TDMR.INIT has finished
/// it: its 4 KiB base is written last, and who does not see it yet answers as the call before would have.
/// </remarks>
internal sealed class Pamt
{
    private readonly PhysicalMemory _memory;
    private readonly ulong _illegalHpa;
    private readonly Gib[] _gibs;

    public Pamt(Machine machine)
    {
        _memory = machine.Memory;
        _illegalHpa = ~((1UL << machine.Description.HkidShift) - 1);
        _gibs = new Gib[(machine.Memory.Top >> 30) + 1];
    }

    /// <summary>True when no KeyID bit and no bit beyond the physical width is set.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsLegal(ulong hpa) => (hpa & _illegalHpa) == 0;

    /// <summary>True when the page's GiB is initialised; then no KeyID bit is set either.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Covers(ulong hpa) => !Unsafe.IsNullRef(in GibOf(hpa));

    /// <summary>Address of the 4 KiB entry of a page that is covered.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Entry4K(ulong hpa) => _gibs[(int)(hpa >> 30)].Entry4K(hpa);

    /// <summary>Address of the 2 MiB entry above a page that is covered.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Entry2M(ulong hpa) => _gibs[(int)(hpa >> 30)].Entry2M(hpa);

    /// <summary>Address of the 1 GiB entry above a page that is covered.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Entry1G(ulong hpa) => _gibs[(int)(hpa >> 30)].Entry1G;

    /// <summary>The areas of the page's GiB, or null when it is not initialised: for who needs more than one entry of a page.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref readonly Gib GibOf(ulong hpa)
    {
        ulong gib = hpa >> 30;
        Gib[] gibs = _gibs;
        if (gib >= (ulong)gibs.Length)
            return ref Unsafe.NullRef<Gib>();
        ref Gib found = ref Unsafe.Add(ref MemoryMarshal.GetArrayDataReference(gibs), (nint)gib);
        return ref found.Base4K != 0 ? ref found : ref Unsafe.NullRef<Gib>();
    }

    /// <summary>
    /// The entries above a page, one over the other, for a caller that has locked the page's own entry. The larger one is read first: a 1 GiB page that is
    /// split meanwhile has its parts before it lets go of its own entry, and one that is put together is found whole.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Above(ulong hpa) => Word(Entry1G(hpa)).Read() | Word(Entry2M(hpa)).Read();

    /// <summary>
    /// True when no 4 KiB entry of a GiB is locked; for the holder of the 1 GiB entry, since calls that go the short way lock a small entry before they look at
    /// those above.
    /// </summary>
    public bool IsUnlockedBelow1G(ulong hpa)
    {
        ulong entry = _gibs[hpa >> 30].Base4K;
        for (int i = 0; i < 1 << 18; i++, entry += PamtEntry.Bytes)
        {
            if ((Word(entry).PlainRead() & TryLock.Exclusive) != 0)
                return false;
        }

        return true;
    }

    /// <summary>Address of the entry of a page that is covered, by TDX level 0..2.</summary>
    public ulong EntryAt(ulong hpa, int level) => level switch { 0 => Entry4K(hpa), 1 => Entry2M(hpa), _ => Entry1G(hpa) };

    /// <summary>The lock of an entry.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public TryLock Lock(ulong entry) => new(ref _memory.Word(entry));

    /// <summary>Word 0 of an entry.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public AtomicWord Word(ulong entry) => new(ref _memory.Word(entry));

    /// <summary>BEPOCH of an entry.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public AtomicWord Bepoch(ulong entry) => new(ref _memory.Word(entry + 8));

    /// <summary>A GiB's three areas; called when its last 4 KiB entry has been initialised, under the TDMR's mutex.</summary>
    public void Publish(ulong gib, ulong base4K, ulong base2M, ulong entry1G)
    {
        _gibs[gib].Base2M = base2M;
        _gibs[gib].Entry1G = entry1G;
        Fence.StoreStore();
        _gibs[gib].Base4K = base4K;
    }

    /// <summary>
    /// Walks to the leaf entry over an explicit operand and locks it (tdx-module 3.2). On success <paramref name="hold"/> must be released; its size and
    /// type are not yet judged.
    /// </summary>
    /// <param name="slot">The caller's hazard slot.</param>
    /// <param name="hpa">The operand.</param>
    /// <param name="operand">Blamed by a failure.</param>
    /// <param name="level">Expected size, 0 or 1.</param>
    /// <param name="exclusive">How the leaf is locked.</param>
    /// <param name="hold">What was locked.</param>
    /// <param name="word">Word 0 of the leaf, under the lock.</param>
    public TdxStatus LockExplicit(HazardSlot slot, ulong hpa, OperandId operand, int level, bool exclusive, out PageHold hold, out ulong word)
    {
        hold = default;
        word = 0;
        if (!IsLegal(hpa) || (hpa & ((1UL << ((9 * level) + 12)) - 1)) != 0)
            return TdxStatus.OPERAND_INVALID | operand;
        if (!Covers(hpa))
            return TdxStatus.OPERAND_ADDR_RANGE_ERROR | operand;
        return Walk(slot, hpa, operand, level, exclusive, ref hold, out word);
    }

    private TdxStatus Walk(HazardSlot slot, ulong hpa, OperandId operand, int level, bool exclusive, ref PageHold hold, out ulong word)
    {
        word = 0;
        ulong entry1G = Entry1G(hpa);
        if (Lock(entry1G).TryShared(slot, LockSide.Host, out int first) != LockAnswer.Taken)
            return TdxStatus.OPERAND_BUSY | operand;
        word = Word(entry1G).Read();
        if (PamtEntry.TypeOf(word) == PageType.REG || level == 2)
            return Settle(slot, entry1G, 2, first, exclusive, operand, ref hold);
        hold.Entry1G = entry1G;
        hold.First = first;
        ulong entry2M = Entry2M(hpa);
        if (Lock(entry2M).TryShared(slot, LockSide.Host, out int second) != LockAnswer.Taken)
            return Abandon(slot, operand, ref hold);
        word = Word(entry2M).Read();
        if (PamtEntry.TypeOf(word) == PageType.REG || level == 1)
            return Settle(slot, entry2M, 1, second, exclusive, operand, ref hold);
        hold.Entry2M = entry2M;
        hold.Second = second;
        ulong entry4K = Entry4K(hpa);
        int last = -1;
        LockAnswer answer = exclusive
            ? Lock(entry4K).TryExclusive(slot, LockSide.Host)
            : Lock(entry4K).TryShared(slot, LockSide.Host, out last);
        if (answer != LockAnswer.Taken)
            return Abandon(slot, operand, ref hold);
        hold.Entry = entry4K;
        hold.Level = 0;
        hold.Exclusive = exclusive;
        hold.Last = last;
        word = Word(entry4K).Read();
        return TdxStatus.SUCCESS;
    }

    // A leaf above 4 KiB is already shared; an exclusive one is promoted (tdx-module 3.2 step 6).
    private TdxStatus Settle(HazardSlot slot, ulong entry, int level, int shared, bool exclusive, OperandId operand, ref PageHold hold)
    {
        if (exclusive && Lock(entry).TryPromote(slot, shared) != LockAnswer.Taken)
        {
            Lock(entry).ReleaseShared(slot, shared);
            return Abandon(slot, operand, ref hold);
        }

        hold.Entry = entry;
        hold.Level = level;
        hold.Exclusive = exclusive;
        hold.Last = shared;
        return TdxStatus.SUCCESS;
    }

    private TdxStatus Abandon(HazardSlot slot, OperandId operand, ref PageHold hold)
    {
        ReleaseParents(slot, ref hold);
        return TdxStatus.OPERAND_BUSY | operand;
    }

    private void ReleaseParents(HazardSlot slot, ref PageHold hold)
    {
        if (hold.Entry2M != 0)
            Lock(hold.Entry2M).ReleaseShared(slot, hold.Second);
        if (hold.Entry1G != 0)
            Lock(hold.Entry1G).ReleaseShared(slot, hold.First);
        hold = default;
    }

    /// <summary>Releases everything of a walk, the leaf unchanged.</summary>
    public void Release(HazardSlot slot, ref PageHold hold)
    {
        if (hold.Entry == 0)
            return;
        if (hold.Exclusive)
            Lock(hold.Entry).ReleaseExclusive();
        else
            Lock(hold.Entry).ReleaseShared(slot, hold.Last);
        ReleaseParents(slot, ref hold);
    }

    /// <summary>Releases everything of a walk whose leaf is held exclusively, giving word 0 of the leaf a new content.</summary>
    public void Release(HazardSlot slot, ref PageHold hold, ulong content)
    {
        Lock(hold.Entry).ReleaseExclusive(content);
        ReleaseParents(slot, ref hold);
    }

    /// <summary>
    /// Takes a page that must be free at <paramref name="level"/> (0 or 1) for a new purpose: exclusive walk, size and type checked. For 2 MiB
    /// all 512 entries below must be free too (tdx-module 3.3, 5.7 AUG).
    /// </summary>
    public TdxStatus LockFree(HazardSlot slot, ulong hpa, OperandId operand, int level, out PageHold hold)
    {
        TdxStatus status = LockExplicit(slot, hpa, operand, level, exclusive: true, out hold, out ulong word);
        if (status.IsError)
            return status;
        if (hold.Level == level && PamtEntry.TypeOf(word) == PageType.NDA)
            status = level == 0 ? TdxStatus.SUCCESS : CheckChildren(slot, hpa, operand);
        else
            status = TdxStatus.PAGE_METADATA_INCORRECT | operand;
        if (status.IsError)
            Release(slot, ref hold);
        return status;
    }

    // The large entry is held alone. Who named a page below it as an operand shares it, unless his call went the short way (SharedGroup; TryAssignAtOnce); the
    // locks of those count here as if they did: pages being taken, vCPUs that run, and this call's own TDR. A TDR that is held because its vCPU runs was
    // found through the vCPU's entry and shares nothing above it.
    private TdxStatus CheckChildren(HazardSlot slot, ulong hpa, OperandId operand)
    {
        TdxStatus status = TdxStatus.SUCCESS;
        ulong entry = Entry4K(hpa);
        for (int i = 0; i < 512; i++, entry += PamtEntry.Bytes)
        {
            ulong word = Word(entry).PlainRead();
            PageType type = PamtEntry.TypeOf(word);
            bool isNamed = type switch
            {
                PageType.TDVPR => Lock(entry).IsShared(slot),
                PageType.TDR => Lock(entry).IsPublishedBy(slot),
                _ => false,
            };
            if (isNamed || (word & TryLock.Exclusive) != 0)
                return TdxStatus.OPERAND_BUSY | operand;
            if (type != PageType.NDA)
                status = TdxStatus.PAGE_METADATA_INCORRECT | operand;
        }

        return status;
    }

    /// <summary>The leaf entry that covers a page, without locks and without events; for inspection.</summary>
    public ulong FindLeaf(ulong hpa, out int level)
    {
        for (level = 2; level > 0; level--)
        {
            ulong entry = EntryAt(hpa, level);
            if (PamtEntry.TypeOf(Word(entry).Peek()) == PageType.REG)
                return entry;
        }

        return Entry4K(hpa);
    }

    /// <summary>Where the entries of one GiB lie.</summary>
    internal struct Gib
    {
        public ulong Base4K;
        public ulong Base2M;
        public ulong Entry1G;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public readonly ulong Entry4K(ulong hpa) => Base4K + (((hpa >> 12) & 0x3FFFF) * PamtEntry.Bytes);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public readonly ulong Entry2M(ulong hpa) => Base2M + (((hpa >> 21) & 0x1FF) * PamtEntry.Bytes);
    }
}

/// <summary>What an explicit PAMT walk has locked. Lives on the caller's stack; released by the same hazard slot.</summary>
internal struct PageHold
{
    /// <summary>Address of the leaf entry; 0 when nothing is held.</summary>
    public ulong Entry;

    public ulong Entry1G;
    public ulong Entry2M;
    public int First;
    public int Second;
    public int Last;

    /// <summary>Size of the leaf as a TDX level.</summary>
    public int Level;

    public bool Exclusive;
}
