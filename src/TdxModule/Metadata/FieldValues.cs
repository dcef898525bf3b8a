using System.Buffers.Binary;

namespace Tdp.Module;

// Where the values of metadata fields come from (tdx-module 1.9a, 2.4). A field of the table that has no case here is one that the simulator keeps constant 0,
// as the table's notes allow; reads and write masks are the table's business.
public sealed partial class TdxModule
{
    private const ulong Features0 = 0xF_0FBF;
    private const ulong FeatureTopology = 1UL << 20;
    private const uint NoLp = uint.MaxValue;

    /// <summary>TDX_FEATURES0 as SYS.RD reports it.</summary>
    public ulong TdxFeatures0 => Features0 | (Profile.OffersVpInitVersion1 ? FeatureTopology : 0);

    private ulong ReadSysField(FieldPlace place) => place.Entry.Key switch
    {
        0x00_000000 => (ulong)Machine.Description.Packages,
        0x00_000001 => place.Index < Machine.Description.Packages ? NativeCpuid.Find(1, 0).Eax : 0,
        0x08_000000 when place.Entry.Id == 0x0800000200000000 => 0x8086,
        0x08_000001 => 20_240_222,
        0x08_000003 => 5,
        0x08_000004 => 1,
        0x08_000005 => 1,
        0x09_000003 => 1,
        0x0A_000001 => 1,
        0x0A_000008 => TdxFeatures0,
        0x10_000000 => 32,
        0x10_000080 => place.Index < Machine.Description.Cmrs.Count ? Machine.Description.Cmrs[place.Index].Base : 0,
        0x10_000100 => place.Index < Machine.Description.Cmrs.Count ? Machine.Description.Cmrs[place.Index].Size : 0,
        0x11_000008 => MaxTdmrs,
        0x11_000009 => MaxReservedAreas,
        0x11_000010 or 0x11_000011 or 0x11_000012 => PamtEntry.Bytes,
        0x18_000000 => 4096,
        0x18_000100 => 4096 * TdControl.MinPages,
        0x18_000101 => 4096,
        0x18_000200 => 4096 * TdVcpu.MinPages,
        0x18_000201 => 4096 * 3,
        0x19_000000 => TdParameters.AttributesFixed0,
        0x19_000002 => TdParameters.XfamFixed0 & XfamOfProcessor,
        0x19_000003 => TdParameters.XfamFixed1,
        0x19_000004 => 12,
        0x19_000006 => 7,
        0x19_000400 => CpuidTable.ConfigurableKey(place.Index),
        0x19_000500 => CpuidTable.ConfigurableBits(place.Index),
        0x19_000600 => TdParameters.ArchCapabilitiesConfigurable,
        0x19_000800 => 1,
        0x19_000810 => place.Index == 0 ? NativeCpuid.Find(1, 0).Eax : 0,
        0x20_000010 => 512,
        0x20_000020 => 3,
        0x20_000021 => 2,
        0x20_000022 => 5,
        0x21_000000 => 1,
        0x21_000001 => 0x7FF_0000_0001,
        0x22_000000 => 0x807F,
        0x22_000001 => 1,
        0x22_000003 => 3,
        0x22_000005 => 7,
        _ => 0,
    };

    private ulong ReadTdField(TdControl td, FieldPlace place)
    {
        ulong state = td.State.Read();
        TdParameters parameters = td.Parameters;
        int index = place.Index;
        return place.Entry.Key switch
        {
            0x00_000001 => state & 1,
            0x00_000002 => (ulong)TdControl.PagesOf(state),
            0x00_000004 => (ulong)td.ChildCount(),
            0x00_000005 => (ulong)TdControl.LifecycleOf(state),
            0x00_000010 => td.Pages[index].Value,
            0x00_000020 => Qword(td.Uuid, index * 8),
            0x01_000001 => td.Hkid,
            0x01_000002 => td.PackageBitmap,
            0x10_000001 => (uint)td.VcpuCounts.Read(),
            0x10_000002 => td.VcpuCounts.Read() >> 32,
            0x10_000004 => (ulong)TdControl.OpStateOf(state),
            0x11_000000 => parameters.Attributes,
            0x11_000001 => parameters.Xfam,
            0x11_000002 => parameters.MaxVcpus,
            0x11_000003 => parameters.ConfigFlags & 1,
            0x11_000004 => td.Eptp,
            0x11_00000A => td.TscOffset,
            0x11_00000B => td.TscMultiplier,
            0x11_00000C => (ulong)parameters.TscFrequency,
            0x11_00000E => (ulong)CpuidTable.Count,
            0x11_000010 => td.NotifyEnables.Read(),
            0x11_000011 => Microseconds(td.HpLockTimeout.Read()),
            0x11_000012 => td.VmCtls(index).Read(),
            0x11_000016 => parameters.ConfigFlags,
            0x11_000017 => td.TdCtls.Read(),
            0x11_000080 => index < CpuidTable.Count && !CpuidTable.KeyAt(index).Faults ? 1UL : 0,
            0x12_000000 => EpochWord.Epoch(td.Epoch.Read()),
            0x12_000001 => EpochWord.Count(td.Epoch.Read(), (ulong)index),
            0x13_000000 => Qword(td.Mrtd, index * 8),
            0x13_000010 => Qword(parameters.MrConfigId, index * 8),
            0x13_000018 => Qword(parameters.MrOwner, index * 8),
            0x13_000020 => Qword(parameters.MrOwnerConfig, index * 8),
            0x13_000040 => Qword(td.Rtmr, index * 8),
            0x14_000000 => CpuidQword(td, index),
            0x16_00010A => parameters.ArchCapabilities,
            0x20_000000 => _memory.Word(td.Pages[2].Value + ((ulong)index << 3)),
            0x21_000000 => _memory.Word(td.Pages[3].Value + ((ulong)index << 3)),
            _ => 0,
        };
    }

    private static ulong CpuidQword(TdControl td, int index)
    {
        CpuidValues values = td.Cpuid!.ValuesAt(index / 2);
        return (index & 1) == 0 ? values.Eax | ((ulong)values.Ebx << 32) : values.Ecx | ((ulong)values.Edx << 32);
    }

    private ulong Microseconds(ulong ticks) => ticks * 1_000_000 / Machine.Description.TscHz;

    /// <summary>The word behind a TD field that can be written. False: there is none.</summary>
    private static bool TryCell(TdControl td, FieldPlace place, out AtomicWord cell)
    {
        cell = place.Entry.Key switch
        {
            0x11_000010 => td.NotifyEnables,
            0x11_000011 => td.HpLockTimeout,
            0x11_000012 => td.VmCtls(place.Index),
            _ => td.TdCtls,
        };
        return place.Entry.Key is 0x11_000010 or 0x11_000011 or 0x11_000012 or 0x11_000017;
    }

    // The field's own rule (check 9): what the word becomes.
    private TdxStatus CheckTdValue(TdControl td, FieldPlace place, ulong value, ulong mask, ulong current, out ulong raw)
    {
        raw = value;
        switch (place.Entry.Key)
        {
            case 0x11_000011 when mask != ulong.MaxValue:
                return TdxStatus.METADATA_WR_MASK_NOT_VALID;
            case 0x11_000011 when value is < 10_000 or > 100_000_000:
                return TdxStatus.METADATA_FIELD_VALUE_NOT_VALID;
            case 0x11_000011:
                // The module keeps 32 bits of ticks (tdx-module 1.9a).
                raw = (uint)(value * (Machine.Description.TscHz / 1_000_000));
                return TdxStatus.SUCCESS;
            case 0x11_000017 when value != current && (td.Parameters.ConfigFlags & TdParameters.FlagFlexiblePendingVe) == 0:
                return TdxStatus.METADATA_FIELD_VALUE_NOT_VALID;
            default:
                return TdxStatus.SUCCESS;
        }
    }

    private static ulong Qword(byte[] bytes, int offset) => BinaryPrimitives.ReadUInt64LittleEndian(bytes.AsSpan(offset));
}
