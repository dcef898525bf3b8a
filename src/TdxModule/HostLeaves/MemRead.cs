namespace Tdp.Module;

// TDH.MEM.SEPT.RD, TDH.MEM.RD, TDH.MEM.WR (tdx-module 5.7). All take the entry's lock, so even a read can be busy and set host priority.
public sealed partial class TdxModule
{
    private const ulong AttributeDebug = 1;

    private TdxStatus SeptRead(LpContext ctx, ref SeamRegisters r)
    {
        ulong pageInfo = r.Rcx;
        ulong tdr = r.Rdx;
        r.Rcx = r.Rdx = 0;
        bool l2Attributes = (tdr & 1) != 0;
        tdr &= ~1UL;
        TdxStatus status = EnterTd(ctx, tdr, OperandId.RDX, OpStates.Read, out MemGate gate);
        if (status.IsError)
            return status;
        if (l2Attributes && (gate.Td.Parameters.Attributes & AttributeDebug) == 0)
            status = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        if (!status.IsError)
            status = CheckPageInfo(gate.Td, pageInfo, 0, ToRoot);
        if (!status.IsError)
            status = TakeTree(ctx, TreeUse.Shared, ref gate);
        if (!status.IsError)
        {
            gate.Gpa = PageInfo.GpaOf(pageInfo);
            gate.Level = PageInfo.LevelOf(pageInfo);
            status = FindAndLock(gate, out SeptPlace place, ref r.Rcx, ref r.Rdx);
            if (!status.IsError)
            {
                Describe(place, out r.Rcx, out r.Rdx);
                UnlockEntry(place);

                // No L2 VM has attributes here.
                if (l2Attributes)
                    r.R8 = 0;
            }
        }

        Leave(ctx, ref gate);
        return status;
    }

    private TdxStatus MemRead(LpContext ctx, ref SeamRegisters r)
    {
        ulong gpa = r.Rcx;
        ulong tdr = r.Rdx;
        r.Rcx = r.Rdx = r.R8 = 0;
        return MemAccess(ctx, gpa, tdr, OpStates.Read, write: false, 0, ref r);
    }

    private TdxStatus MemWrite(LpContext ctx, ref SeamRegisters r)
    {
        ulong gpa = r.Rcx;
        ulong tdr = r.Rdx;
        ulong value = r.R8;
        r.Rcx = r.Rdx = r.R8 = 0;
        return MemAccess(ctx, gpa, tdr, OpStates.Write, write: true, value, ref r);
    }

    private TdxStatus MemAccess(LpContext ctx, ulong gpa, ulong tdr, uint allowed, bool write, ulong value, ref SeamRegisters r)
    {
        TdxStatus status = EnterTd(ctx, tdr, OperandId.RDX, allowed, out MemGate gate);
        if (status.IsError)
            return status;
        if ((gate.Td.Parameters.Attributes & AttributeDebug) == 0)
            status = TdxStatus.TD_NON_DEBUG;
        else if ((gpa & 7) != 0)
            status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if (!status.IsError)
            status = TakeTree(ctx, TreeUse.Shared, ref gate);
        if (!status.IsError && !IsLegalPrivate(gate.Td, gpa))
            status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if (!status.IsError)
            status = AccessLeaf(gate.Td, gpa, write, value, ref r);
        Leave(ctx, ref gate);
        return status;
    }

    private TdxStatus AccessLeaf(TdControl td, ulong gpa, bool write, ulong value, ref SeamRegisters r)
    {
        if (!TryFindLeaf(td, gpa, out SeptPlace place))
        {
            Describe(place, out r.Rcx, out r.Rdx);
            return TdxStatus.EPT_ENTRY_NOT_PRESENT | OperandId.RCX;
        }

        if (!TryLockEntry(ref place))
        {
            Describe(place, out r.Rcx, out r.Rdx);
            return TdxStatus.OPERAND_BUSY | OperandId.RCX;
        }

        SeptState state = SeptEntry.StateOf(place.Entry);
        TdxStatus status = TdxStatus.SUCCESS;
        if (write ? state is not (SeptState.MAPPED or SeptState.EXPORTED_DIRTY) : !state.IsGuestAccessible())
        {
            Describe(place, out r.Rcx, out r.Rdx);
            status = TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX;
        }
        else
        {
            ulong address = WithoutAcceptCounter(place) | (gpa & ((1UL << ((9 * place.Level) + 12)) - 1));
            AtomicScalar<ulong> word = _memory.Scalar<ulong>(address);
            r.R8 = word.Read();
            if (write)
            {
                word.Write(value);
                Machine.Ledger.ContentChanged(new Hpa(address & ~0xFFFUL));
            }
        }

        UnlockEntry(place);
        return status;
    }
}
