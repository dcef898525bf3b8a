namespace Tdp.Module;

// The leaves that read and write metadata fields: one mechanism, different tables and callers (tdx-module 1.9a). Every failure past the dispatcher leaves
// R8 = 0; reads that know next ids also set RDX.
public sealed partial class TdxModule
{
    private const ulong DebugBit = TdParameters.Debug;
    private const uint HpLockTimeoutKey = 0x11_000011;

    private static FieldCaller HostCaller(TdControl td) =>
        (td.Parameters.Attributes & DebugBit) != 0 ? FieldCaller.HostDebug : FieldCaller.HostProduction;

    private TdxStatus SysRead(LpContext ctx, ref SeamRegisters r)
    {
        ulong id = r.Rdx;
        r.Rdx = FieldId.Null;
        r.R8 = 0;
        return ctx.IsInitialized ? ReadSystem(id, FieldCaller.HostProduction, ref r.Rdx, ref r.R8) : TdxStatus.SYS_LP_INIT_NOT_DONE;
    }

    private TdxStatus ReadSystem(ulong id, FieldCaller caller, ref ulong next, ref ulong value)
    {
        TdxStatus status = BeginRead(SysFields.Table, id, caller, withNext: true, ref next, out FieldPlace? place);
        if (place is not { } found)
            return status;
        value = ReadSysField(found) & found.Entry.ReadMask(caller);
        next = FieldTable.Next(SysFields.Table, id, found, caller);
        return TdxStatus.SUCCESS;
    }

    // Checks 1 to 5 of a single read.
    private static TdxStatus BeginRead(FieldEntry[] table, ulong id, FieldCaller caller, bool withNext, ref ulong next, out FieldPlace? place)
    {
        place = null;
        if (withNext && FieldId.IsNull(id))
        {
            next = FieldTable.First(table, caller);
            return TdxStatus.METADATA_FIRST_FIELD_ID_IN_CONTEXT;
        }

        TdxStatus status = FieldTable.Find(table, id, out place);
        if (place is { } found && found.Entry.ReadMask(caller) == 0)
        {
            place = null;
            return TdxStatus.METADATA_FIELD_NOT_READABLE;
        }

        return status;
    }

    private TdxStatus MngRead(LpContext ctx, int version, ref SeamRegisters r)
    {
        ulong tdr = r.Rcx;
        ulong id = r.Rdx;
        r.R8 = 0;
        if (version >= 1)
            r.Rdx = FieldId.Null;
        if (version > 1)
            return TdxStatus.OPERAND_INVALID | OperandId.RAX;
        TdxStatus status = EnterTd(ctx, tdr, OperandId.RCX, OpStates.Read, out MemGate gate);
        if (status.IsError)
            return status;
        status = ReadTd(gate.Td, id, HostCaller(gate.Td), version == 1, ref r.Rdx, ref r.R8);
        Leave(ctx, ref gate);
        return status;
    }

    private TdxStatus ReadTd(TdControl td, ulong id, FieldCaller caller, bool withNext, ref ulong next, ref ulong value)
    {
        TdxStatus status = BeginRead(TdFields.Table, id, caller, withNext, ref next, out FieldPlace? place);
        if (place is not { } found)
            return status;
        value = ReadTdField(td, found) & found.Entry.ReadMask(caller);
        if (withNext)
            next = FieldTable.Next(TdFields.Table, id, found, caller);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus MngWrite(LpContext ctx, ref SeamRegisters r)
    {
        ulong value = r.R8;
        r.R8 = 0;
        TdxStatus status = EnterTd(ctx, r.Rcx, OperandId.RCX, OpStates.Write, out MemGate gate);
        if (status.IsError)
            return status;
        status = WriteTd(gate.Td, r.Rdx, value, r.R9, HostCaller(gate.Td), ref r.R8);
        Leave(ctx, ref gate);
        return status;
    }

    private TdxStatus WriteTd(TdControl td, ulong id, ulong value, ulong mask, FieldCaller caller, ref ulong old)
    {
        TdxStatus status = FieldTable.Find(TdFields.Table, id, out FieldPlace? place);
        if (place is not { } found)
            return status;
        ulong writable = found.Entry.WriteMask(caller);
        if ((mask & writable) == 0)
            return TdxStatus.METADATA_FIELD_NOT_WRITABLE;
        if (!TryCell(td, found, out AtomicWord cell))
            return TdxStatus.METADATA_FIELD_NOT_WRITABLE;
        ulong raw = cell.Read();
        ulong current = found.Entry.Key == HpLockTimeoutKey ? Microseconds(raw) : raw;
        if (((value ^ current) & mask & ~writable & found.Entry.ElementMask) != 0)
            return TdxStatus.METADATA_FIELD_VALUE_NOT_VALID;
        ulong wanted = (current & ~(mask & writable)) | (value & mask & writable);
        status = CheckTdValue(td, found, wanted, mask, current, out ulong rawWanted);
        if (status.IsError)
            return status;

        // Linearizes here; who changed the word since it was read has won.
        if (!cell.CompareExchange(ref raw, rawWanted))
            return TdxStatus.OPERAND_BUSY | OperandId.METADATA_FIELD;
        old = current & found.Entry.ReadMask(caller);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus VpRead(LpContext ctx, int version, ref SeamRegisters r)
    {
        ulong id = r.Rdx;
        r.R8 = 0;
        if (version >= 1)
            r.Rdx = FieldId.Null;
        if (version > 1)
            return TdxStatus.OPERAND_INVALID | OperandId.RAX;
        TdxStatus status = EnterVcpuForFields(ctx, r.Rcx, OpStates.Read, alsoDisabled: true, out VcpuGate gate);
        if (!status.IsError)
            status = ReadVp(gate.Vcpu, id, HostCaller(gate.Td), version == 1, ref r.Rdx, ref r.R8);
        LeaveVcpu(ctx, ref gate);
        return status;
    }

    private static TdxStatus ReadVp(TdVcpu vcpu, ulong id, FieldCaller caller, bool withNext, ref ulong next, ref ulong value)
    {
        TdxStatus status = BeginRead(VpFields.Table, id, caller, withNext, ref next, out FieldPlace? place);
        if (place is not { } found)
            return status;
        value = ReadVpField(vcpu, found) & found.Entry.ReadMask(caller);
        if (withNext)
            next = FieldTable.Next(VpFields.Table, id, found, caller);
        return TdxStatus.SUCCESS;
    }

    private TdxStatus VpWrite(LpContext ctx, ref SeamRegisters r)
    {
        ulong value = r.R8;
        r.R8 = 0;
        TdxStatus status = EnterVcpuForFields(ctx, r.Rcx, OpStates.Write, alsoDisabled: false, out VcpuGate gate);
        if (!status.IsError)
            status = WriteVp(gate.Vcpu, r.Rdx, value, r.R9, HostCaller(gate.Td), ref r.R8);
        LeaveVcpu(ctx, ref gate);
        return status;
    }

    // "Current" counts as 0 when the whole element is written, and an address that was never set as its writable bits (tdx-module 1.9a).
    private TdxStatus WriteVp(TdVcpu vcpu, ulong id, ulong value, ulong mask, FieldCaller caller, ref ulong old)
    {
        TdxStatus status = FieldTable.Find(VpFields.Table, id, out FieldPlace? place);
        if (place is not { } found)
            return status;
        FieldEntry entry = found.Entry;
        ulong writable = entry.WriteMask(caller);
        if ((mask & writable) == 0)
            return TdxStatus.METADATA_FIELD_NOT_WRITABLE;
        ulong current = ReadVpField(vcpu, found);
        ulong basis = (mask & writable) == entry.ElementMask ? 0 : IsAddressField(entry) && current >> 63 != 0 ? current & writable : current;
        if (((value ^ basis) & mask & ~writable & entry.ElementMask) != 0)
            return TdxStatus.METADATA_FIELD_VALUE_NOT_VALID;
        ulong wanted = (basis & ~(mask & writable)) | (value & mask & writable);
        status = CheckVpValue(vcpu, found, wanted);
        if (status.IsError)
            return status;
        WriteVpField(vcpu, found, wanted);
        old = current & entry.ReadMask(caller);
        return TdxStatus.SUCCESS;
    }

    // VP.RD and VP.WR associate the vCPU with this processor (tdx-module 4.7).
    private TdxStatus EnterVcpuForFields(LpContext ctx, ulong tdvpr, uint allowed, bool alsoDisabled, out VcpuGate gate)
    {
        TdxStatus status = EnterVcpu(ctx, tdvpr, OperandId.RCX, exclusive: false, tdrExclusive: false, out gate);
        if (status.IsError)
            return status;
        status = OpenVcpu(ctx, ref gate, allowed);
        if (status.IsError)
            return status;
        if (gate.Vcpu.Pages < TdVcpu.MinPages)
            return TdxStatus.TDCX_NUM_INCORRECT;
        TdVcpuState state = gate.Vcpu.State;
        if (state != TdVcpuState.READY && !(alsoDisabled && state == TdVcpuState.DISABLED))
            return TdxStatus.VCPU_STATE_INCORRECT;
        return gate.Vcpu.TryAssociate(ctx.Id, out _) ? TdxStatus.SUCCESS : TdxStatus.VCPU_ASSOCIATED;
    }
}
