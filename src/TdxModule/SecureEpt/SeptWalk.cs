namespace Tdp.Module;

/// <summary>A place in a Secure EPT and what was found there.</summary>
internal struct SeptPlace
{
    /// <summary>Address of the entry.</summary>
    public ulong At;

    /// <summary>The entry as last read.</summary>
    public ulong Entry;

    /// <summary>TDX level of the entry.</summary>
    public int Level;
}

// Walking and locking Secure EPT entries (tdx-module 5.5, 7.2). A walk reads each entry once; who locks an entry reads it again under the lock.
public sealed partial class TdxModule
{
    /// <summary>Walks to the entry at <paramref name="level"/>. False: stopped above it, at <paramref name="place"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool WalkTo(TdControl td, ulong gpa, int level, out SeptPlace place)
    {
        ulong table = td.Eptp & SeptEntry.Address;
        int at = td.RootLevel;
        int shift = 12 + (9 * at);
        while (true)
        {
            place.At = table + (((gpa >> shift) & 0x1FF) << 3);
            place.Entry = Septe(place.At).Read();
            place.Level = at;
            if (at == level)
                return true;
            if ((place.Entry & SeptEntry.Rwx) == 0 || (place.Entry & SeptEntry.Leaf) != 0)
                return false;
            table = place.Entry & SeptEntry.Address;
            at--;
            shift -= 9;
        }
    }

    /// <summary>
    /// Walks to the 4 KiB entry; in a free run by one look when the last walk on this processor ended in the same Secure EPT page and no path of the TD was
    /// cut since. A path that is cut at this moment was there when this walk began: what <see cref="WalkTo"/> could have found, too.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool WalkTo4K(LpContext ctx, TdControl td, ulong gpa, out SeptPlace place)
    {
        if (Explore.On || ctx.WalkRegion != gpa >> 21 || !ReferenceEquals(ctx.WalkTd, td) || td.PathsCut != ctx.WalkPathsCut)
            return WalkAndRemember(ctx, td, gpa, out place);
        place.At = ctx.WalkTable + (((gpa >> 12) & 0x1FF) << 3);
        place.Entry = Septe(place.At).Read();
        place.Level = 0;
        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool WalkAndRemember(LpContext ctx, TdControl td, ulong gpa, out SeptPlace place)
    {
        if (Explore.On)
            return WalkTo(td, gpa, 0, out place);
        ulong pathsCut = td.PathsCut;
        if (!WalkTo(td, gpa, 0, out place))
            return false;
        ctx.WalkTd = td;
        ctx.WalkRegion = gpa >> 21;
        ctx.WalkTable = place.At & ~0xFFFUL;
        ctx.WalkPathsCut = pathsCut;
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private AtomicWord Septe(ulong at) => new(ref _memory.Word(at));

    /// <summary>Locks an entry for the host: success clears host priority, failure sets it. Linearizes at the compare-exchange.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryLockEntry(ref SeptPlace place)
    {
        AtomicWord word = Septe(place.At);
        ulong seen = place.Entry;
        while ((seen & SeptEntry.Lock) == 0)
        {
            ulong locked = (seen & ~SeptEntry.HostPriority) | SeptEntry.Lock;
            if (word.CompareExchange(ref seen, locked))
            {
                place.Entry = locked & ~SeptEntry.Lock;
                return true;
            }
        }

        return LoseEntry(ref place, seen);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool LoseEntry(ref SeptPlace place, ulong seen)
    {
        // A guest's ACCEPT, or another host leaf, has it: the sticky bit makes the next guest attempts step back.
        if ((seen & SeptEntry.HostPriority) == 0)
            seen = Septe(place.At).Or(SeptEntry.HostPriority);
        place.Entry = seen;
        return false;
    }

    /// <summary>Unlocks an entry that did not change; a host-priority bit set meanwhile stays.</summary>
    private void UnlockEntry(in SeptPlace place) => Septe(place.At).And(~SeptEntry.Lock);

    /// <summary>Unlocks an entry by storing its new value: the moment at which the hardware walker sees it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void StoreEntry(in SeptPlace place, ulong entry) => Septe(place.At).Write(entry);

    /// <summary>Fills RCX and RDX (tdx-module 5.4).</summary>
    private static void Describe(in SeptPlace place, out ulong rcx, out ulong rdx)
    {
        rcx = SeptEntry.Visible(place.Entry);
        rdx = SeptEntry.Description(place.Entry, place.Level);
    }

    /// <summary>Walks to the entry of the gate's operand and locks it: steps 6 and 7 of tdx-module 5.6. A failure leaves the gate open.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private TdxStatus FindAndLock(in MemGate gate, out SeptPlace place, ref ulong rcx, ref ulong rdx)
    {
        if (WalkTo(gate.Td, gate.Gpa, gate.Level, out place) && TryLockEntry(ref place))
            return TdxStatus.SUCCESS;
        return FailedToLock(gate, place, out rcx, out rdx);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static TdxStatus FailedToLock(in MemGate gate, in SeptPlace place, out ulong rcx, out ulong rdx)
    {
        Describe(place, out rcx, out rdx);
        return place.Level == gate.Level
            ? TdxStatus.OPERAND_BUSY | OperandId.RCX
            : TdxStatus.EPT_WALK_FAILED | OperandId.RCX;
    }

    /// <summary>A leaf found its entry in a state it cannot use: unlocks, describes, closes the gate.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus Reject(LpContext ctx, ref MemGate gate, in SeptPlace place, TdxStatus status, out ulong rcx, out ulong rdx)
    {
        Describe(place, out rcx, out rdx);
        UnlockEntry(place);
        Leave(ctx, ref gate);
        return status;
    }

    /// <summary>A leaf fails without extended information: unlocks, closes the gate.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus Refuse(LpContext ctx, ref MemGate gate, in SeptPlace place, TdxStatus status)
    {
        UnlockEntry(place);
        Leave(ctx, ref gate);
        return status;
    }

    /// <summary>The PAMT entry of the page an entry points to, which is the leaf's at its size or the Secure EPT page's (tdx-module 6.4).</summary>
    private ulong TargetPamt(in SeptPlace place)
    {
        ulong page = place.Entry & SeptEntry.Address;
        return SeptEntry.IsLeaf(place.Entry) ? _pamt.EntryAt(WithoutAcceptCounter(place), place.Level) : _pamt.Entry4K(page);
    }

    /// <summary>The page of a leaf, without the progress of an interrupted ACCEPT.</summary>
    private static ulong WithoutAcceptCounter(in SeptPlace place) =>
        place.Entry & SeptEntry.Address & ~((1UL << ((9 * (SeptEntry.IsLeaf(place.Entry) ? place.Level : 0)) + 12)) - 1);
}
