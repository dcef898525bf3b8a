namespace Tdp.Module;

// TDH.MNG.CREATE, KEY.CONFIG, ADDCX, VPFLUSHDONE, KEY.FREEID: a TD's keys and pages (tdx-module 4.5).
public sealed partial class TdxModule
{
    private SeedStream? _entropy;

    private TryLock KotLock => new(ref _kot.Lock);

    private TdxStatus MngCreate(LpContext ctx, ulong tdr, ulong hkid)
    {
        if (hkid > ushort.MaxValue || !Machine.IsPrivate((int)hkid))
            return TdxStatus.OPERAND_INVALID | OperandId.RDX;
        TdxStatus status = _pamt.LockFree(ctx.Slot, tdr, OperandId.RCX, 0, out PageHold hold);
        if (status.IsError)
            return status;
        if (KotLock.TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
        {
            _pamt.Release(ctx.Slot, ref hold);
            return TdxStatus.OPERAND_BUSY | OperandId.KOT;
        }

        if (_kot.StateOf((int)hkid) != HkidState.FREE)
        {
            KotLock.ReleaseExclusive();
            _pamt.Release(ctx.Slot, ref hold);
            return TdxStatus.HKID_NOT_FREE;
        }

        // The stream belongs to the KOT's lock.
        _entropy ??= new SeedStream(Machine.Seed, "entropy");
        Span<byte> uuid = stackalloc byte[32];
        _entropy.Fill(uuid);
        var td = new TdControl(new Hpa(tdr), _pamt.Entry4K(tdr), (ushort)hkid, _lps.Length, uuid);
        uint number = _tds.Add(_ => td);
        _kot.Set((int)hkid, HkidState.ASSIGNED);
        KotLock.ReleaseExclusive();

        _memory.Zero(new Hpa(tdr));
        _memory.Record(tdr >> 12).Tag = number;
        Machine.Ledger.ToModule(new Hpa(tdr), new Hkid((ushort)hkid), new Hpa(tdr));
        _pamt.Release(ctx.Slot, ref hold, PamtEntry.Content(PageType.TDR, 0, 0));
        return TdxStatus.SUCCESS;
    }

    private TdxStatus MngKeyConfig(LpContext ctx, ulong tdr)
    {
        TdxStatus status = LockTdr(ctx, tdr, OperandId.RCX, exclusive: true, out PageHold hold, out TdControl? td);
        if (td is null)
            return status;
        ulong state = td.State.Read();
        ulong package = 1UL << ctx.Lp.Package;
        if (TdControl.IsFatal(state))
        {
            status = TdxStatus.TD_FATAL;
        }
        else if (TdControl.LifecycleOf(state) != TdLifecycle.HKID_ASSIGNED)
        {
            status = TdxStatus.LIFECYCLE_STATE_INCORRECT;
        }
        else if ((td.PackageBitmap & package) != 0)
        {
            status = TdxStatus.KEY_CONFIGURED;
        }
        else
        {
            td.PackageBitmap |= package;
            if (td.PackageBitmap == AllPackages)
                td.SetLifecycle(TdLifecycle.KEYS_CONFIGURED);
        }

        _pamt.Release(ctx.Slot, ref hold);
        return status;
    }

    private TdxStatus MngAddcx(LpContext ctx, ulong page, ulong tdr)
    {
        TdxStatus status = LockTdr(ctx, tdr, OperandId.RDX, exclusive: true, out PageHold hold, out TdControl? td);
        if (td is null)
            return status;
        ulong state = td.State.Read();
        int index = TdControl.PagesOf(state);
        if (TdControl.IsFatal(state))
            status = TdxStatus.TD_FATAL;
        else if (TdControl.LifecycleOf(state) != TdLifecycle.KEYS_CONFIGURED)
            status = TdxStatus.TD_KEYS_NOT_CONFIGURED;
        else if (index >= TdControl.MaxPages)
            status = TdxStatus.TDCX_NUM_INCORRECT;
        if (!status.IsError)
            status = AddTdcsPage(ctx, td, page, index, state);
        _pamt.Release(ctx.Slot, ref hold);
        return status;
    }

    private TdxStatus AddTdcsPage(LpContext ctx, TdControl td, ulong page, int index, ulong state)
    {
        TdxStatus status = _pamt.LockFree(ctx.Slot, page, OperandId.RCX, 0, out PageHold hold);
        if (status.IsError)
            return status;
        if (index >= TdControl.MinPages && TdControl.OpStateOf(state) != TdOpState.UNINITIALIZED)
        {
            _pamt.Release(ctx.Slot, ref hold);
            return TdxStatus.OP_STATE_INCORRECT;
        }

        // Index 2 holds the MSR bitmaps, 3 the root of the Secure EPT, 6 to 8 those of L2 VMs (tdx-module 4.1).
        switch (index)
        {
            case 2:
                _memory.Fill(new Hpa(page), ulong.MaxValue);
                break;
            case 3 or >= 6:
                _memory.Fill(new Hpa(page), SeptEntry.Free);
                break;
            default:
                _memory.Zero(new Hpa(page));
                break;
        }

        Take(ctx, td, page, PageType.TDCX, ref hold);
        td.AddPage(new Hpa(page));
        return TdxStatus.SUCCESS;
    }

    // A page locked by LockFree becomes one of the TD's control pages.
    private void Take(LpContext ctx, TdControl td, ulong page, PageType type, ref PageHold hold)
    {
        td.AddChildren(ctx.Id, 1);
        Machine.Ledger.ToModule(new Hpa(page), new Hkid(td.Hkid), td.Tdr);
        _pamt.Release(ctx.Slot, ref hold, PamtEntry.Content(type, td.Tdr.Frame, 0));
    }

    private TdxStatus MngVpFlushDone(LpContext ctx, ulong tdr)
    {
        TdxStatus status = LockTdr(ctx, tdr, OperandId.RCX, exclusive: true, out PageHold hold, out TdControl? td);
        if (td is null)
            return status;
        if (KotLock.TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
        {
            _pamt.Release(ctx.Slot, ref hold);
            return TdxStatus.OPERAND_BUSY | OperandId.KOT;
        }

        ulong state = td.State.Read();
        if (TdControl.LifecycleOf(state) is not (TdLifecycle.HKID_ASSIGNED or TdLifecycle.KEYS_CONFIGURED))
        {
            status = TdxStatus.LIFECYCLE_STATE_INCORRECT;
        }
        else if (TdControl.OpStateOf(state) >= TdOpState.INITIALIZED && td.VcpuCounts.Read() >> 32 != 0)
        {
            status = TdxStatus.FLUSHVP_NOT_DONE;
        }
        else
        {
            td.SetLifecycle(TdLifecycle.BLOCKED);
            _kot.Set(td.Hkid, HkidState.FLUSHED, AllPackages);
        }

        KotLock.ReleaseExclusive();
        _pamt.Release(ctx.Slot, ref hold);
        return status;
    }

    private TdxStatus MngKeyFreeId(LpContext ctx, ulong tdr)
    {
        TdxStatus status = LockTdr(ctx, tdr, OperandId.RCX, exclusive: true, out PageHold hold, out TdControl? td);
        if (td is null)
            return status;
        if (TdControl.LifecycleOf(td.State.Read()) != TdLifecycle.BLOCKED)
        {
            status = TdxStatus.LIFECYCLE_STATE_INCORRECT;
        }
        else if (KotLock.TryExclusive(ctx.Slot, LockSide.Host) != LockAnswer.Taken)
        {
            status = TdxStatus.OPERAND_BUSY | OperandId.KOT;
        }
        else
        {
            if (_kot.PendingPackages(td.Hkid) != 0)
            {
                status = TdxStatus.WBCACHE_NOT_COMPLETE;
            }
            else
            {
                _kot.Set(td.Hkid, HkidState.FREE);
                td.SetLifecycle(TdLifecycle.TEARDOWN);
            }

            KotLock.ReleaseExclusive();
        }

        _pamt.Release(ctx.Slot, ref hold);
        return status;
    }
}
