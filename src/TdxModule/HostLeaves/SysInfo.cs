using System.Buffers.Binary;

namespace Tdp.Module;

// TDH.SYS.INFO: the fixed structure of the first TDX modules, kept for old hosts (tdx-module 2.2).
public sealed partial class TdxModule
{
    private const int SysInfoBytes = 1024;
    private const int MaxCmrs = 32;

    private TdxStatus SysInfo(LpContext ctx, ref SeamRegisters r)
    {
        if (!ctx.IsInitialized)
            return TdxStatus.SYS_LP_INIT_NOT_DONE;
        if (!IsSharedHpa(r.Rcx, SysInfoBytes))
            return TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if (r.Rdx < SysInfoBytes)
            return TdxStatus.OPERAND_INVALID | OperandId.RDX;
        if (!IsSharedHpa(r.R8, MaxCmrs * 16))
            return TdxStatus.OPERAND_INVALID | OperandId.R8;
        if (r.R9 < MaxCmrs)
            return TdxStatus.OPERAND_INVALID | OperandId.R9;
        ulong info = WithoutHkid(r.Rcx);
        ulong list = WithoutHkid(r.R8);
        if (IsPrivatePage(info))
            Poison(info, "TDH.SYS.INFO");
        else
            WriteSysInfo(_memory.Bytes(new Hpa(info), SysInfoBytes));
        if (IsPrivatePage(list))
            Poison(list, "TDH.SYS.INFO");
        else
            WriteCmrs(_memory.Bytes(new Hpa(list), MaxCmrs * 16));
        r.Rdx = SysInfoBytes;
        r.R9 = MaxCmrs;
        return TdxStatus.SUCCESS;
    }

    private void WriteCmrs(Span<byte> cmrs)
    {
        cmrs.Clear();
        for (int i = 0; i < Machine.Description.Cmrs.Count; i++)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(cmrs[(i * 16)..], Machine.Description.Cmrs[i].Base);
            BinaryPrimitives.WriteUInt64LittleEndian(cmrs[((i * 16) + 8)..], Machine.Description.Cmrs[i].Size);
        }
    }

    // TDSYSINFO_STRUCT as Linux knows it: identification, then limits at 32, sizes at 48, attribute masks at 96, CPUID configuration from 128.
    private static void WriteSysInfo(Span<byte> info)
    {
        info.Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(info[4..], 0x8086);
        BinaryPrimitives.WriteUInt32LittleEndian(info[8..], 20_240_222);
        BinaryPrimitives.WriteUInt16LittleEndian(info[14..], 5);
        BinaryPrimitives.WriteUInt16LittleEndian(info[16..], 1);
        BinaryPrimitives.WriteUInt16LittleEndian(info[32..], MaxTdmrs);
        BinaryPrimitives.WriteUInt16LittleEndian(info[34..], MaxReservedAreas);
        BinaryPrimitives.WriteUInt16LittleEndian(info[36..], (ushort)PamtEntry.Bytes);
        BinaryPrimitives.WriteUInt16LittleEndian(info[48..], 4096 * TdControl.MinPages);
        BinaryPrimitives.WriteUInt16LittleEndian(info[52..], 4096 * TdVcpu.MinPages);
        BinaryPrimitives.WriteUInt64LittleEndian(info[96..], TdParameters.AttributesFixed0);
        BinaryPrimitives.WriteUInt64LittleEndian(info[112..], TdParameters.XfamFixed0 & XfamOfProcessor);
        BinaryPrimitives.WriteUInt64LittleEndian(info[120..], TdParameters.XfamFixed1);
        BinaryPrimitives.WriteUInt32LittleEndian(info[160..], (uint)CpuidTable.ConfigurableCount);
        for (int i = 0; i < CpuidTable.ConfigurableCount; i++)
        {
            Span<byte> entry = info.Slice(164 + (i * 24), 24);
            BinaryPrimitives.WriteUInt64LittleEndian(entry, CpuidTable.ConfigurableKey(i));
            BinaryPrimitives.WriteUInt64LittleEndian(entry[8..], CpuidTable.ConfigurableBits(i * 2));
            BinaryPrimitives.WriteUInt64LittleEndian(entry[16..], CpuidTable.ConfigurableBits((i * 2) + 1));
        }
    }
}
