namespace Tdp.Module;

/// <summary>What a refused ACCEPT tells the host: extended qualification in RDX, exit qualification in RCX.</summary>
internal struct AcceptExit
{
    public ulong Extended;
    public ulong Qualification;
}

// TDG.MEM.PAGE.ACCEPT (tdx-module 5.10). It takes neither the tree nor PAMT locks: while this vCPU runs, no page that it could reach can be removed, because the
// removal needs a TRACK that waits for its exit (tdx-module 6; I26).
public sealed partial class TdxModule
{
    private GuestCallEnd AcceptCall(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r, out TdxStatus status)
    {
        ulong pageInfo = vcpu.Vmcs.State[Gpr.Rcx];
        GuestCallEnd end = PageAccept(ctx.Lp, vcpu, pageInfo, out status, out AcceptExit exit);
        if (end == GuestCallEnd.Exited)
            ExitAsync(ctx, ref r, TdxStatus.SUCCESS, (uint)ExitReason.EptViolation, exit.Qualification, exit.Extended, PageInfo.GpaOf(pageInfo));
        return end;
    }

    private GuestCallEnd PageAccept(LogicalProcessor lp, TdVcpu vcpu, ulong pageInfo, out TdxStatus status, out AcceptExit exit)
    {
        TdControl td = vcpu.Td;
        exit = default;
        if (!PageInfo.IsLegal(pageInfo, 0, 1) || (pageInfo & td.IllegalGpaBits) != 0)
        {
            status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
            return GuestCallEnd.Answered;
        }

        int level = PageInfo.LevelOf(pageInfo);
        if (!(level == 0 ? WalkTo4K(_lps[lp.Id], td, pageInfo, out SeptPlace place) : WalkTo(td, PageInfo.GpaOf(pageInfo), level, out place)))
        {
            status = TdxStatus.PAGE_ALREADY_ACCEPTED | (uint)place.Level;
            if (SeptEntry.IsGuestAccessibleLeaf(place.Entry))
                return GuestCallEnd.Answered;
            return ExitForAccept(level, place, out exit);
        }

        if (!TryLockForGuest(ref place, out status))
            return GuestCallEnd.Answered;
        if ((place.Entry & SeptEntry.StateBits) != (SeptEntry.PendingLeaf & SeptEntry.StateBits))
            return NotPending(level, place, out status, out exit);
        if (Options.ZeroOnAccept && !ZeroPending(lp, ref place))
        {
            status = default;
            return GuestCallEnd.Again;
        }

        StoreEntry(place, SeptEntry.MappedLeaf | WithoutAcceptCounter(place));
        status = TdxStatus.SUCCESS;
        return GuestCallEnd.Answered;
    }

    // Everything but the ordinary PENDING leaf; the entry is locked and gets unlocked as it was.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private GuestCallEnd NotPending(int level, in SeptPlace place, out TdxStatus status, out AcceptExit exit)
    {
        exit = default;
        UnlockEntry(place);
        SeptState state = SeptEntry.StateOf(place.Entry);
        if (state != SeptState.FREE && !SeptEntry.IsLeaf(place.Entry))
        {
            status = TdxStatus.PAGE_SIZE_MISMATCH | (uint)level;
            return GuestCallEnd.Answered;
        }

        status = TdxStatus.PAGE_ALREADY_ACCEPTED | (uint)level;
        return state.IsGuestAccessible() ? GuestCallEnd.Answered : ExitForAccept(level, place, out exit);
    }

    private static GuestCallEnd ExitForAccept(int level, in SeptPlace place, out AcceptExit exit)
    {
        ulong info = (uint)level | ((uint)place.Level << 3) | (SeptEntry.StateOf(place.Entry).Public() << 6) | (SeptEntry.IsLeaf(place.Entry) ? 1u << 14 : 0);
        exit.Extended = ExtendedAccept | (info << 32);
        exit.Qualification = 2 | ((place.Entry & SeptEntry.Rwx) << 3);
        return GuestCallEnd.Exited;
    }

    /// <summary>The guest's side of the entry lock: it steps back for a host that lost before (tdx-module 7.2).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryLockForGuest(ref SeptPlace place, out TdxStatus status)
    {
        AtomicWord word = Septe(place.At);
        ulong seen = place.Entry;
        status = default;
        while ((seen & (SeptEntry.Lock | SeptEntry.HostPriority)) == 0)
        {
            if (word.CompareExchange(ref seen, seen | SeptEntry.Lock))
            {
                place.Entry = seen;
                return true;
            }
        }

        status = ((seen & SeptEntry.Lock) != 0 ? TdxStatus.OPERAND_BUSY : TdxStatus.OPERAND_BUSY_HOST_PRIORITY) | OperandId.RCX;
        return false;
    }

    // 4 KiB at a time; after each but the last a pending interrupt ends the call, with the progress in bits 20:12 of the entry.
    private bool ZeroPending(LogicalProcessor lp, ref SeptPlace place)
    {
        ulong page = WithoutAcceptCounter(place);
        if (place.Level == 0)
        {
            ZeroPage(page);
            return true;
        }

        for (ulong done = (place.Entry & SeptEntry.AcceptCounter) >> 12; done < 512; done++)
        {
            ZeroPage(page + (done << 12));
            if (done < 511 && IsInterruptPending(lp))
            {
                // A host that lost meanwhile keeps its priority, or a guest that comes back at once would starve it.
                ulong progress = (place.Entry & ~SeptEntry.AcceptCounter) | ((done + 1) << 12);
                ulong seen = Septe(place.At).Read();
                while (!Septe(place.At).CompareExchange(ref seen, progress | (seen & SeptEntry.HostPriority)))
                {
                }

                return false;
            }
        }

        return true;
    }

    private void ZeroPage(ulong page)
    {
        _memory.Zero(new Hpa(page));
        Machine.Ledger.ContentChanged(new Hpa(page));
    }
}
