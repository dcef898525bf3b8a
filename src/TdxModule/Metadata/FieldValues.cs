using System.Buffers.Binary;

namespace Tdp.Module;

// Where the values of metadata fields come from (tdx-module 1.9a, 2.4). A field of the table that has no case here is one that the simulator keeps constant 0,
// as the table's notes allow; reads and write masks are the table's business.
public sealed partial class TdxModule
{
    private const ulong Features0 = 0xF_0EBF;
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
        0x19_000600 => 0x118_0010,
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

    private static ulong ReadTdField(TdControl td, FieldPlace place)
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
            0x11_000010 => td.NotifyEnables,
            0x11_000011 => td.HpLockTimeoutMicroseconds,
            0x11_000012 => td.VmCtls[index],
            0x11_000016 => parameters.ConfigFlags,
            0x11_000017 => td.TdCtls,
            0x11_000080 => index < CpuidTable.Count && !CpuidTable.KeyAt(index).Faults ? 1UL : 0,
            0x12_000000 => EpochWord.Epoch(td.Epoch.Read()),
            0x12_000001 => EpochWord.Count(td.Epoch.Read(), (ulong)index),
            0x13_000000 => Qword(td.Mrtd, index * 8),
            0x13_000010 => Qword(parameters.MrConfigId, index * 8),
            0x13_000018 => Qword(parameters.MrOwner, index * 8),
            0x13_000020 => Qword(parameters.MrOwnerConfig, index * 8),
            0x13_000040 => Qword(td.Rtmr, index * 8),
            0x14_000000 => CpuidQword(td, index),
            _ => 0,
        };
    }

    private static ulong CpuidQword(TdControl td, int index)
    {
        CpuidValues values = td.Cpuid!.ValuesAt(index / 2);
        return (index & 1) == 0 ? values.Eax | ((ulong)values.Ebx << 32) : values.Ecx | ((ulong)values.Edx << 32);
    }

    private TdxStatus WriteTdField(TdControl td, FieldPlace place, ulong value, ulong mask)
    {
        switch (place.Entry.Key)
        {
            case 0x11_000010:
                td.NotifyEnables = value;
                return TdxStatus.SUCCESS;
            case 0x11_000011 when mask != ulong.MaxValue:
                return TdxStatus.METADATA_WR_MASK_NOT_VALID;
            case 0x11_000011 when value is < 10_000 or > 100_000_000:
                return TdxStatus.METADATA_FIELD_VALUE_NOT_VALID;
            case 0x11_000011:
                // The module keeps 32 bits of ticks (tdx-module 1.9a).
                td.HpLockTimeout = (uint)(value * (Machine.Description.TscHz / 1_000_000));
                td.HpLockTimeoutMicroseconds = td.HpLockTimeout * 1_000_000 / Machine.Description.TscHz;
                return TdxStatus.SUCCESS;
            case 0x11_000012:
                td.VmCtls[place.Index] = value;
                return TdxStatus.SUCCESS;
            case 0x11_000017 when value != td.TdCtls && (td.Parameters.ConfigFlags & TdParameters.FlagFlexiblePendingVe) == 0:
                return TdxStatus.METADATA_FIELD_VALUE_NOT_VALID;
            case 0x11_000017:
                td.TdCtls = value;
                return TdxStatus.SUCCESS;
            default:
                return TdxStatus.METADATA_FIELD_NOT_WRITABLE;
        }
    }

    private static ulong ReadVpField(TdVcpu vcpu, FieldPlace place)
    {
        int index = place.Index;
        if (place.Entry.Class == 0)
            return ReadVmcsField(vcpu, place.Entry.Code + (uint)(index * place.Entry.Stride));
        GuestState state = vcpu.Vmcs.State;
        VeInfo ve = vcpu.Vmcs.VeInfo!;
        uint key = place.Entry.Key;
        if (key is >= 0x10_000000 and <= 0x10_00000F)
            return state[(Gpr)(key & 15)];
        return key switch
        {
            0x02_000000 => ve.Reason,
            0x02_000001 => ve.IsValid ? uint.MaxValue : 0,
            0x02_000002 => ve.Qualification,
            0x02_000003 => ve.Gla,
            0x02_000004 => ve.Gpa,
            0x02_000010 => ve.InstructionLength,
            0x02_000011 => ve.InstructionInfo,
            0x11_000000 => state.Dr0,
            0x11_000001 => state.Dr1,
            0x11_000002 => state.Dr2,
            0x11_000003 => state.Dr3,
            0x11_000006 => state.Dr6,
            0x11_000020 => state.Xcr0,
            0x11_000028 => state.Cr2,
            0x13_002081 => state.Star,
            0x13_002082 => state.Lstar,
            0x13_002084 => state.Fmask,
            0x13_002102 => state.KernelGsBase,
            0x13_002103 => state.TscAux,
            0x20_000000 => (ulong)vcpu.State,
            0x20_000002 => vcpu.Index,
            0x20_000003 => (ulong)vcpu.Pages,
            0x20_000004 => vcpu.AssociatedLp < 0 ? NoLp : (ulong)vcpu.AssociatedLp,
            0x20_000006 => vcpu.Epoch,
            0x20_000007 => vcpu.CpuidVeSupervisor ? 1UL : 0,
            0x20_000008 => vcpu.CpuidVeUser ? 1UL : 0,
            0x20_00000A => vcpu.LastExitTsc,
            0x20_00000B => vcpu.PendingNmi ? 1UL : 0,
            0x20_00000C => vcpu.Td.Parameters.Xfam,
            0x20_00000D => (ulong)vcpu.FaultCount,
            0x20_00000E => (ulong)vcpu.SameRipFaults,
            0x20_00000F => (ulong)vcpu.LastExit,
            0x20_000010 => vcpu.PageAt(index),
            0x20_000030 => vcpu.HostPrioritySince ?? 0,
            0x20_000031 => vcpu.HostPrioritySince is null ? 0UL : 1,
            0x20_000098 => index == 0 ? vcpu.PostedDescriptor : 0,
            0x20_00009C => index == 0 ? vcpu.PinControls : 0,
            0x20_0000AC => index == 0 ? vcpu.PostedVector : 0xFFFF,
            0x20_0000B4 => index == 0 ? vcpu.SharedEptRoot : ulong.MaxValue,
            0x22_000200 => index < vcpu.FaultCount ? vcpu.FaultList[index] : 0,
            _ => 0,
        };
    }

    private static ulong ReadVmcsField(TdVcpu vcpu, uint code)
    {
        GuestState state = vcpu.Vmcs.State;
        ref VmExit exit = ref vcpu.Vmcs.Exit;
        return code switch
        {
            0x0002 => vcpu.PostedVector,
            0x2010 => vcpu.Vmcs.TscOffset,
            0x2016 => vcpu.PostedDescriptor,
            0x201A => vcpu.Vmcs.Eptp,
            0x2032 => vcpu.Vmcs.TscMultiplier,
            0x203C => vcpu.SharedEptRoot,
            0x2400 => exit.Gpa,
            0x2804 => state.Pat,
            0x2806 => state.Efer,
            0x4000 => vcpu.PinControls,
            0x401E => vcpu.SecondaryControls,
            0x4024 => vcpu.InstructionTimeout,
            0x4026 => vcpu.Td.Hkid,
            0x4402 => (ulong)exit.Reason,
            0x440C => exit.InstructionLength,
            0x440E => exit.InstructionInfo,
            0x6400 => exit.Qualification,
            0x640A => exit.Gla,
            0x6800 => state.Cr0,
            0x6802 => state.Cr3,
            0x6804 => state.Cr4,
            0x680E => state.Fs.Base,
            0x6810 => state.Gs.Base,
            0x6816 => state.GdtrBase,
            0x6818 => state.IdtrBase,
            0x681A => state.Dr7,
            0x681C => state[Gpr.Rsp],
            0x681E => state.Rip,
            0x6820 => state.Rflags,
            _ => 0,
        };
    }

    private static bool IsAddressField(FieldEntry entry) => entry.Class == 0 && entry.Code is 0x2016 or 0x203C;

    private bool IsLegalVpValue(FieldEntry entry, ulong value) => (entry.Class, entry.Code) switch
    {
        (0, 0x203C) => IsSharedHpa(value, 4096),
        (0, 0x2016) => IsSharedHpa(value, 64),
        (0, 0x0002) => value <= 255,
        _ => true,
    };

    private static TdxStatus WriteVpField(TdVcpu vcpu, FieldPlace place, ulong value)
    {
        Vmcs vmcs = vcpu.Vmcs;
        uint key = place.Entry.Key;
        if (key is >= 0x10_000000 and <= 0x10_00000F)
        {
            vmcs.State[(Gpr)(key & 15)] = value;
            return TdxStatus.SUCCESS;
        }

        switch (key)
        {
            case 0x0002:
                vcpu.PostedVector = value;
                break;
            case 0x2016:
                vcpu.PostedDescriptor = value;
                break;
            case 0x203C:
                // The field is the root alone; memory type and walk length follow the Secure EPT's pointer, without A/D (decisions D07).
                vcpu.SharedEptRoot = value;
                vmcs.SharedEptp = value | (vmcs.Eptp & 0x3F);
                break;
            case 0x4000 when (value & 0x80) != 0 && (vcpu.PostedVector > 255 || vcpu.PostedDescriptor == ulong.MaxValue):
                return TdxStatus.TD_VMCS_FIELD_NOT_INITIALIZED | (vcpu.PostedVector > 255 ? 0x0002u : 0x2016u);
            case 0x4000:
                vcpu.PinControls = value;
                break;
            case 0x401E:
                vcpu.SecondaryControls = value;
                break;
            case 0x4024:
                vcpu.InstructionTimeout = value;
                break;
            case 0x20_000007:
                vcpu.CpuidVeSupervisor = (value & 1) != 0;
                break;
            case 0x20_000008:
                vcpu.CpuidVeUser = (value & 1) != 0;
                break;
            case 0x20_00000B:
                vcpu.PendingNmi = value != 0;
                break;
            case 0x11_000028:
                vmcs.State.Cr2 = value;
                break;
            case 0x681C:
                vmcs.State[Gpr.Rsp] = value;
                break;
            case 0x681E:
                vmcs.State.Rip = value;
                break;
            case 0x6820:
                vmcs.State.Rflags = value;
                break;
            default:
                return TdxStatus.METADATA_FIELD_NOT_WRITABLE;
        }

        return TdxStatus.SUCCESS;
    }

    private static ulong Qword(byte[] bytes, int offset) => BinaryPrimitives.ReadUInt64LittleEndian(bytes.AsSpan(offset));
}
