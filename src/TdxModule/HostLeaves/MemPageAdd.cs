using System.Security.Cryptography;
using System.Text;

namespace Tdp.Module;

// TDH.MEM.PAGE.ADD, TDH.MR.EXTEND, TDH.MR.FINALIZE: building and measuring a TD before it runs (tdx-module 4.8, 5.7, 9.1). The TDR is held
// exclusively, which replaces the OP_STATE, tree and entry locks.
public sealed partial class TdxModule
{
    private const int MeasuredRecord = 128;
    private const int MeasuredChunk = 256;

    private TdxStatus PageAdd(LpContext ctx, ulong pageInfo, ulong tdr, ulong page, ulong source, out ulong rcx, out ulong rdx)
    {
        rcx = rdx = 0;
        TdxStatus status = EnterTdAlone(ctx, tdr, OperandId.RDX, OpStates.Initialized, out MemGate gate);
        if (status.IsError)
            return status;
        status = CheckPageInfo(gate.Td, pageInfo, 0, 0);
        if (!status.IsError)
            status = AddAndMeasure(ctx, ref gate, PageInfo.GpaOf(pageInfo), page, source, ref rcx, ref rdx);
        Leave(ctx, ref gate);
        return status;
    }

    private TdxStatus AddAndMeasure(LpContext ctx, ref MemGate gate, ulong gpa, ulong page, ulong source, ref ulong rcx, ref ulong rdx)
    {
        bool found = WalkTo(gate.Td, gpa, 0, out SeptPlace place);
        if (!found || !SeptEntry.IsFree(place.Entry))
        {
            Describe(place, out rcx, out rdx);
            return (found ? TdxStatus.EPT_ENTRY_STATE_INCORRECT : TdxStatus.EPT_WALK_FAILED) | OperandId.RCX;
        }

        if (!IsSharedHpa(source, 4096))
            return TdxStatus.OPERAND_INVALID | OperandId.R9;
        TdxStatus status = AssignInOrder(ctx, ref gate, page, OperandId.R8, PageType.REG, 0);
        if (status.IsError)
            return status;
        if (IsPrivatePage(WithoutHkid(source)))
            _memory.Zero(new Hpa(page));
        else
            _memory.Copy(new Hpa(WithoutHkid(source)), new Hpa(page));
        Machine.Ledger.ContentChanged(new Hpa(page));
        StoreEntry(place, SeptEntry.MappedLeaf | page);
        Measure(gate.Td, "MEM.PAGE.ADD", gpa);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus MrExtend(LpContext ctx, ulong gpa, ulong tdr, out ulong rcx, out ulong rdx)
    {
        rcx = rdx = 0;
        TdxStatus status = EnterTdAlone(ctx, tdr, OperandId.RDX, OpStates.Initialized, out MemGate gate);
        if (status.IsError)
            return status;
        if ((gpa & (MeasuredChunk - 1)) != 0 || !IsLegalPrivate(gate.Td, gpa))
        {
            status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        }
        else if (!TryFindLeaf(gate.Td, gpa, out SeptPlace place))
        {
            Describe(place, out rcx, out rdx);
            status = TdxStatus.EPT_ENTRY_NOT_PRESENT | OperandId.RCX;
        }
        else
        {
            Measure(gate.Td, "MR.EXTEND", gpa);
            ulong address = WithoutAcceptCounter(place) | (gpa & ((1UL << ((9 * place.Level) + 12)) - 1));
            gate.Td.MrtdStream!.AppendData(_memory.Bytes(new Hpa(address), MeasuredChunk));
        }

        Leave(ctx, ref gate);
        return status;
    }

    // "Walk to leaf": level 0 asked for, a leaf with any permission wanted (tdx-module 5.5).
    private bool TryFindLeaf(TdControl td, ulong gpa, out SeptPlace place)
    {
        _ = WalkTo(td, gpa, 0, out place);
        return SeptEntry.IsGuestAccessibleLeaf(place.Entry);
    }

    private static bool IsLegalPrivate(TdControl td, ulong gpa) => gpa >> 52 == 0 && (gpa & td.IllegalGpaBits) == 0;

    private static void Measure(TdControl td, string what, ulong gpa)
    {
        Span<byte> record = stackalloc byte[MeasuredRecord];
        record.Clear();
        Encoding.ASCII.GetBytes(what, record);
        System.Buffers.Binary.BinaryPrimitives.WriteUInt64LittleEndian(record[16..], gpa);
        td.MrtdStream!.AppendData(record);
    }

    private TdxStatus MrFinalize(LpContext ctx, ulong tdr)
    {
        TdxStatus status = EnterTdAlone(ctx, tdr, OperandId.RCX, OpStates.Initialized, out MemGate gate);
        if (status.IsError)
            return status;
        if ((uint)gate.Td.VcpuCounts.Read() == 0)
        {
            status = TdxStatus.NO_VCPUS;
        }
        else
        {
            IncrementalHash stream = gate.Td.MrtdStream!;
            stream.GetHashAndReset(gate.Td.Mrtd);
            stream.Dispose();
            gate.Td.MrtdStream = null;
            gate.Td.SetOpState(TdOpState.RUNNABLE);
        }

        Leave(ctx, ref gate);
        return status;
    }
}
