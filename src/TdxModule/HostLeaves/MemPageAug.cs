namespace Tdp.Module;

// TDH.MEM.PAGE.AUG and TDH.MEM.SEPT.ADD: what a mirror fault ends in (tdx-module 5.7).
public sealed partial class TdxModule
{
    private const ulong NotTaken = 1UL << 63;

    private TdxStatus PageAug(LpContext ctx, ulong pageInfo, ulong tdr, ulong page, out ulong rcx, out ulong rdx)
    {
        rcx = rdx = 0;
        return TryAugAtOnce(ctx, pageInfo, tdr, page) ? TdxStatus.SUCCESS : AugInOrder(ctx, pageInfo, tdr, page, out rcx, out rdx);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus AugInOrder(LpContext ctx, ulong pageInfo, ulong tdr, ulong page, out ulong rcx, out ulong rdx)
    {
        rcx = rdx = 0;
        TdxStatus status = EnterMem(ctx, tdr, pageInfo, 0, 1, OpStates.Aug, TreeUse.Shared, out MemGate gate);
        if (status.IsError)
            return status;
        status = FindAndLock(gate, out SeptPlace place, ref rcx, ref rdx);
        if (status.IsError)
        {
            Leave(ctx, ref gate);
            return status;
        }

        if (!SeptEntry.IsFree(place.Entry) && SeptEntry.StateOf(place.Entry) != SeptState.REMOVED)
            return Reject(ctx, ref gate, place, TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, out rcx, out rdx);

        status = Assign(ctx, ref gate, page, OperandId.R8, PageType.REG, gate.Level);
        if (status.IsError)
            return Refuse(ctx, ref gate, place, status);

        // The content stays as it is: ACCEPT clears it (tdx-module 0.4, fact 9).
        StoreEntry(place, SeptEntry.PendingLeaf | page);
        Leave(ctx, ref gate);
        return TdxStatus.SUCCESS;
    }

    /// <summary>
    /// The ordinary 4 KiB AUG of a free run in two locked instructions: the page's PAMT entry is locked first, and that compare-exchange is also the fence
    /// behind the shared holds of TDR, OP_STATE and the tree; the Secure EPT entry then goes from FREE to PENDING in one step, which is where the call
    /// linearizes. Whatever is unusual undoes the page's lock and is left to the ordered way, which names it.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryAugAtOnce(LpContext ctx, ulong pageInfo, ulong tdr, ulong page)
    {
        const ulong typeBits = 0xFFUL << 16;
        if (Explore.On || ((pageInfo | page) & 0xFFF) != 0 || ((tdr != ctx.LastTdr || ctx.LastTd is null) && !FindTd(ctx, tdr)))
            return false;
        TdControl td = ctx.LastTd!;
        ref readonly Pamt.Gib gib = ref _pamt.GibOf(page);
        if (Unsafe.IsNullRef(in gib))
            return false;
        PhysicalMemory memory = _memory;
        ulong pageEntry = gib.Entry4K(page);
        AtomicWord pageWord = new(ref memory.Word(pageEntry));
        ulong free = pageWord.Read();
        ref ulong tdrLock = ref memory.Word(td.TdrEntry);
        ref ulong opStateLock = ref td.OpStateLock;
        ref ulong treeLock = ref td.SeptTreeLock;
        if ((free & (typeBits | TryLock.Mask)) != 0
            || (pageInfo & td.IllegalGpaBits) != 0
            || !SharedGroup.TryPublish(ctx.Slot, ref tdrLock, ref opStateLock, ref treeLock, out uint holds))
            return false;
        if (!pageWord.CompareExchange(ref free, free | TryLock.Exclusive))
        {
            SharedGroup.Release(ctx.Slot, holds);
            return false;
        }

        // Entries above the page: see TryAssignAtOnce. The TD's state is judged under the locks (see LpContext.LastTdr).
        ulong above = _pamt.Above(page);
        bool done = SharedGroup.IsGranted(ref tdrLock, ref opStateLock, ref treeLock)
            && (above & (typeBits | TryLock.Exclusive)) == 0
            && TdControl.IsOpen(td.State.Read(), OpStates.Aug)
            && WalkTo4K(ctx, td, pageInfo, out SeptPlace place)
            && (place.Entry & ~SeptEntry.Address) == SeptEntry.Free
            && TryMakePending(ref place, pageEntry, page);
        if (done)
        {
            pageWord.Write(PamtEntry.Content(PageType.REG, td.Tdr.Frame));
            td.AddChildren(ctx.Id, 1);
            Machine.Ledger.ToModule(new Hpa(page), new Hkid(td.Hkid), td.Tdr);
        }
        else
        {
            // Not a store: the holder of a large entry may have given this one a new content meanwhile.
            pageWord.And(~TryLock.Exclusive);
        }

        SharedGroup.Release(ctx.Slot, holds);
        return done;
    }

    // BEPOCH belongs to the page's lock and must be 0 before the entry can be blocked.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryMakePending(ref SeptPlace place, ulong pageEntry, ulong page)
    {
        AtomicWord bepoch = _pamt.Bepoch(pageEntry);
        if (bepoch.PlainRead() != 0)
            bepoch.PlainWrite(0);
        return Septe(place.At).CompareExchange(ref place.Entry, SeptEntry.PendingLeaf | page);
    }

    /// <summary>
    /// Turns a free page into one of the TD's: PAMT type and owner, BEPOCH 0, CHLDCNT, ledger. The gate holds the TDR, so nobody can reclaim the page before
    /// the caller has linked it.
    /// </summary>
    private TdxStatus Assign(LpContext ctx, ref MemGate gate, ulong page, OperandId operand, PageType type, int level)
    {
        if (level == 0 && TryAssignAtOnce(gate.Td, page, type))
        {
            gate.Td.AddChildren(ctx.Id, 1);
            Machine.Ledger.ToModule(new Hpa(page), new Hkid(gate.Td.Hkid), gate.Td.Tdr);
            return TdxStatus.SUCCESS;
        }

        return AssignInOrder(ctx, ref gate, page, operand, type, level);
    }

    // The ordinary case in free runs: the entry alone is locked, and then the entries above are found neither locked nor a larger page. Whoever wants one of those
    // alone sets its lock first and looks for locked entries below afterwards (Pamt.LockFree; TrySplitPamt): one of the two sees the other. Any doubt is left to
    // the ordered way.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryAssignAtOnce(TdControl td, ulong page, PageType type)
    {
        const ulong typeBits = 0xFFUL << 16;
        if (Explore.On || (page & 0xFFF) != 0 || !_pamt.IsLegal(page) || !_pamt.Covers(page))
            return false;
        ulong entry = _pamt.Entry4K(page);
        AtomicWord word = _pamt.Word(entry);
        ulong seen = word.Read();
        if ((seen & (typeBits | TryLock.Mask)) != 0 || !word.CompareExchange(ref seen, seen | TryLock.Exclusive))
            return false;
        ulong above = _pamt.Above(page);
        if ((above & (typeBits | TryLock.Exclusive)) != 0)
        {
            // Not a store: the holder of the large entry may have given this one a new content meanwhile.
            word.And(~TryLock.Exclusive);
            return false;
        }

        AtomicWord bepoch = _pamt.Bepoch(entry);
        if (bepoch.PlainRead() != 0)
            bepoch.PlainWrite(0);
        word.Write(PamtEntry.Content(type, td.Tdr.Frame));
        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private TdxStatus AssignInOrder(LpContext ctx, ref MemGate gate, ulong page, OperandId operand, PageType type, int level)
    {
        TdxStatus status = _pamt.LockFree(ctx.Slot, page, operand, level, out PageHold hold);
        if (status.IsError)
            return status;
        _pamt.Bepoch(hold.Entry).PlainWrite(0);
        _pamt.Release(ctx.Slot, ref hold, PamtEntry.Content(type, gate.Td.Tdr.Frame, level));
        ulong frames = 1UL << (9 * level);
        gate.Td.AddChildren(ctx.Id, (long)frames);
        for (ulong i = 0; i < frames; i++)
            Machine.Ledger.ToModule(new Hpa(page + (i << 12)), new Hkid(gate.Td.Hkid), gate.Td.Tdr);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus SeptAdd(LpContext ctx, int version, ref SeamRegisters r)
    {
        ulong pageInfo = r.Rcx;
        ulong tdr = r.Rdx;
        ulong page = IgnoringNotTaken(r.R8);
        r.Rcx = r.Rdx = 0;
        if (version > 1)
            return TdxStatus.OPERAND_INVALID | OperandId.RAX;
        if (version == 1)
        {
            // Whatever comes of the call, version 1 hands the offered pages back here, marked where they were not taken.
            r.R8 = page;
            r.R9 = IgnoringNotTaken(r.R9);
            r.R10 = IgnoringNotTaken(r.R10);
            r.R11 = IgnoringNotTaken(r.R11);
        }

        bool allowExisting = (tdr & 1) != 0;
        tdr &= ~1UL;
        if ((tdr & 0xFFE) != 0 || tdr >> Machine.Description.PhysicalAddressBits != 0)
            return TdxStatus.OPERAND_INVALID | OperandId.RDX;
        TdxStatus status = EnterMem(ctx, tdr, pageInfo, 1, ToRoot, OpStates.SeptAdd, TreeUse.Shared, out MemGate gate);
        if (status.IsError)
            return status;
        status = FindAndLock(gate, out SeptPlace place, ref r.Rcx, ref r.Rdx);
        if (status.IsError)
        {
            Leave(ctx, ref gate);
            return status;
        }

        SeptState state = SeptEntry.StateOf(place.Entry);
        bool none = page == ulong.MaxValue;
        bool linked = state == SeptState.NL_MAPPED;
        if (none && version == 0 && (linked || state == SeptState.FREE))
            return Refuse(ctx, ref gate, place, TdxStatus.OPERAND_INVALID | OperandId.R8);

        // Version 1 without a page is for an entry that has one.
        bool isExpected = none ? linked : linked ? allowExisting : state == SeptState.FREE;
        if (!isExpected)
            return Reject(ctx, ref gate, place, TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, out r.Rcx, out r.Rdx);
        if (linked && version == 1)
            r.R8 |= NotTaken;
        if (version == 1 && FirstL2Page(r) is { } l2Page)
            return Refuse(ctx, ref gate, place, RefuseL2Page(ctx, ref gate, linked, page, l2Page));
        if (linked)
        {
            UnlockEntry(place);
            Leave(ctx, ref gate);
            return TdxStatus.SUCCESS;
        }

        status = Assign(ctx, ref gate, page, OperandId.R8, PageType.EPT, 0);
        if (status.IsError)
            return Refuse(ctx, ref gate, place, status);
        _memory.Fill(new Hpa(page), SeptEntry.Free);
        StoreEntry(place, SeptEntry.NlMapped | page);
        Leave(ctx, ref gate);
        r.R8 = version == 1 ? ulong.MaxValue : r.R8;
        return TdxStatus.SUCCESS;
    }

    // Bit 63 of an offered page says on output that it was not taken; on input it is ignored.
    private static ulong IgnoringNotTaken(ulong page) => page == ulong.MaxValue ? page : page & ~NotTaken;

    // Version 1 offers pages for the Secure EPTs of L2 VMs in R9 to R11, all ones for none. A TD without L2 VMs takes none.
    private static OperandId? FirstL2Page(in SeamRegisters r) =>
        r.R9 != ulong.MaxValue ? OperandId.R9 : r.R10 != ulong.MaxValue ? OperandId.R10 : r.R11 != ulong.MaxValue ? OperandId.R11 : null;

    // The L1 page is looked at before the L2 pages.
    private TdxStatus RefuseL2Page(LpContext ctx, ref MemGate gate, bool existing, ulong page, OperandId l2Page)
    {
        if (!existing)
        {
            TdxStatus status = _pamt.LockFree(ctx.Slot, page, OperandId.R8, 0, out PageHold hold);
            if (status.IsError)
                return status;
            _pamt.Release(ctx.Slot, ref hold);
        }

        return TdxStatus.OPERAND_INVALID | l2Page;
    }
}
