namespace Tdp.Module;

// TDH.PHYMEM.*: physical pages whatever TD they belong to, and caches (tdx-module 3.4).
public sealed partial class TdxModule
{
    private const int WbBlocks = 4;
    private PackageWriteBack[] _packages = [];
    private WordBlock? _packageLocks;

    private void InitializePackages()
    {
        _packages = new PackageWriteBack[Machine.Description.Packages];
        var names = new string[_packages.Length];
        for (int i = 0; i < names.Length; i++)
        {
            _packages[i] = new PackageWriteBack();
            names[i] = "cache-wb";
        }

        _packageLocks = new WordBlock(3, separateLines: true, names);
    }

    private TdxStatus PageReadMetadata(LpContext ctx, ref SeamRegisters r)
    {
        ulong page = r.Rcx;
        r.Rcx = r.Rdx = r.R8 = r.R9 = r.R10 = r.R11 = 0;
        TdxStatus status = _pamt.LockExplicit(ctx.Slot, page, OperandId.RCX, 0, exclusive: false, out PageHold hold, out ulong word);
        if (status.IsError)
            return status;
        PageType type = PamtEntry.TypeOf(word);
        r.Rcx = (ulong)type;
        r.Rdx = PamtEntry.OwnerFrame(word) << 12;
        r.R8 = (ulong)hold.Level;
        r.R9 = type is PageType.REG or PageType.EPT ? _pamt.Bepoch(hold.Entry).Read() : 0;
        _pamt.Release(ctx.Slot, ref hold);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus PageReclaim(LpContext ctx, ref SeamRegisters r)
    {
        ulong page = r.Rcx;
        r.Rcx = r.Rdx = r.R8 = r.R9 = r.R10 = r.R11 = 0;
        TdxStatus status = _pamt.LockExplicit(ctx.Slot, page, OperandId.RCX, 0, exclusive: true, out PageHold hold, out ulong word);
        if (status.IsError)
            return status;
        PageType type = PamtEntry.TypeOf(word);
        if (type is PageType.NDA or PageType.RSVD)
        {
            status = TdxStatus.PAGE_METADATA_INCORRECT | OperandId.RCX;
        }
        else
        {
            r.Rcx = (ulong)type;
            r.Rdx = PamtEntry.OwnerFrame(word) << 12;
            r.R8 = (ulong)hold.Level;
            status = (page & ((1UL << ((9 * hold.Level) + 12)) - 1)) != 0 ? TdxStatus.OPERAND_INVALID | OperandId.RCX
                : type == PageType.TDR ? ReclaimTdr(page)
                : ReclaimChild(ctx, page, r.Rdx, hold.Level, type);
        }

        if (status.IsError)
            _pamt.Release(ctx.Slot, ref hold);
        else
            _pamt.Release(ctx.Slot, ref hold, PamtEntry.Freed(word, hold.Level));
        return status;
    }

    private TdxStatus ReclaimTdr(ulong page)
    {
        uint number = _memory.Record(page >> 12).Tag;
        TdControl td = _tds[number];
        if (TdControl.LifecycleOf(td.State.Read()) != TdLifecycle.TEARDOWN)
            return TdxStatus.LIFECYCLE_STATE_INCORRECT;
        if (td.ChildCount() != 0)
            return TdxStatus.TD_ASSOCIATED_PAGES_EXIST;
        ShowControlPage(page);
        _tds.Remove(number);
        td.Dispose();
        Machine.Ledger.FromModule(new Hpa(page));
        return TdxStatus.SUCCESS;
    }

    private TdxStatus ReclaimChild(LpContext ctx, ulong page, ulong owner, int level, PageType type)
    {
        // The owner is found through the entry: only its own entry is locked.
        TryLock ownerLock = _pamt.Lock(_pamt.Entry4K(owner));
        if (ownerLock.TryShared(ctx.Slot, LockSide.Host, out int hold) != LockAnswer.Taken)
            return TdxStatus.OPERAND_BUSY | OperandId.TDR;
        TdControl td = _tds[_memory.Record(owner >> 12).Tag];
        TdxStatus status = TdxStatus.LIFECYCLE_STATE_INCORRECT;
        if (TdControl.LifecycleOf(td.State.Read()) == TdLifecycle.TEARDOWN)
        {
            status = TdxStatus.SUCCESS;
            ShowControlPage(page);
            ulong frames = 1UL << (9 * level);
            td.AddChildren(ctx.Id, -(long)frames);
            for (ulong i = 0; i < frames; i++)
                Machine.Ledger.FromModule(new Hpa(page + (i << 12)));
            if (type == PageType.TDVPR)
                _vcpus.Remove(_memory.Record(page >> 12).Tag);
        }

        ownerLock.ReleaseShared(ctx.Slot, hold);
        return status;
    }

    private TdxStatus PageWbinvd(LpContext ctx, ulong operand)
    {
        ulong page = WithoutHkid(operand) & ~(ulong.MaxValue << Machine.Description.PhysicalAddressBits);
        if (operand >> Machine.Description.PhysicalAddressBits != 0 || (page & 0xFFF) != 0)
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        TdxStatus status = _pamt.LockExplicit(ctx.Slot, page, OperandId.RCX, 0, exclusive: false, out PageHold hold, out ulong word);
        if (status.IsError)
            return status;
        if (hold.Level != 0 || PamtEntry.TypeOf(word) != PageType.NDA)
            status = TdxStatus.PAGE_METADATA_INCORRECT | OperandId.RCX;
        else if (_memory.Record(page >> 12).Hkid == operand >> Machine.Description.HkidShift)
            _memory.Record(page >> 12).Hkid = 0; // Lines of another KeyID are not written back by this.
        _pamt.Release(ctx.Slot, ref hold);
        return status;
    }

    private TdxStatus CacheWb(LpContext ctx, ulong resume)
    {
        int package = ctx.Lp.Package;
        if (resume > 1)
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        TryMutex mutex = new(ref _packageLocks![package]);
        if (!mutex.TryTake())
            return TdxStatus.OPERAND_BUSY | OperandId.WBCACHE;
        TdxStatus status;
        if (KotLock.TryShared(ctx.Slot, LockSide.Host, out int hold) != LockAnswer.Taken)
        {
            status = TdxStatus.OPERAND_BUSY | OperandId.KOT;
        }
        else
        {
            status = WriteBack(ctx.Lp, _packages[package], package, resume == 1);
            KotLock.ReleaseShared(ctx.Slot, hold);
        }

        mutex.Release();
        return status;
    }

    // In four parts; between them a pending interrupt stops it. What is cleared at the end was FLUSHED at the start.
    private TdxStatus WriteBack(LogicalProcessor lp, PackageWriteBack run, int package, bool resume)
    {
        if (resume && run.NextBlock == 0)
            return TdxStatus.WBCACHE_RESUME_ERROR;
        if (!resume)
        {
            run.Hkids.Clear();
            run.NextBlock = 0;
            for (int hkid = 0; hkid < _kot.Count; hkid++)
            {
                if (_kot.StateOf(hkid) == HkidState.FLUSHED)
                    run.Hkids.Add(hkid);
            }

            if (run.Hkids.Count == 0)
                return TdxStatus.NO_HKID_READY_TO_WBCACHE;
        }

        while (run.NextBlock < WbBlocks)
        {
            run.NextBlock++;
            if (run.NextBlock < WbBlocks && IsInterruptPending(lp))
                return TdxStatus.INTERRUPTED_RESUMABLE;
        }

        foreach (int hkid in run.Hkids)
        {
            if (_kot.StateOf(hkid) == HkidState.FLUSHED)
                _kot.ClearPackage(hkid, package);
        }

        run.NextBlock = 0;
        return TdxStatus.SUCCESS;
    }

    /// <summary>Progress of one package's write-back; under its mutex.</summary>
    private sealed class PackageWriteBack
    {
        public List<int> Hkids { get; } = [];

        public int NextBlock { get; set; }
    }
}
