namespace Tdp.Module;

// Values of a vCPU's fields: VMCS and TDVPS (tdx-module 1.9a). What the simulated processor has is the guest's state itself. What a debugger may write
// and nothing here acts on is kept as written; what nobody can write and nothing here has is 0.
public sealed partial class TdxModule
{
    private const uint XsaveHeaderFirst = 64;
    private const uint XsaveHeaderLast = 71;
    private const uint XmmFirst = 20;
    private const uint XmmLast = 51;
    private const ulong PmlEnable = 1UL << 17;
    private const ulong PostedInterrupts = 0x80;

    private static uint KeyAt(FieldPlace place) => place.Entry.Key + (uint)(place.Index * place.Entry.Stride);

    private static ulong ReadVpField(TdVcpu vcpu, FieldPlace place)
    {
        uint key = KeyAt(place);
        GuestState state = vcpu.Vmcs.State;
        if (place.Entry.Class == 0)
            return ReadVmcsField(vcpu, key);
        if (key is >= 0x10_000000 and <= 0x10_00000F)
            return state[(Gpr)(key & 15)];
        if (key is >= 0x12_000000 + XmmFirst and <= 0x12_000000 + XmmLast)
            return state.Xmm[(int)((key & 0xFFFFFF) - XmmFirst) / 2][(int)(key & 1)];
        return place.Entry.Key switch
        {
            0x20_000010 => vcpu.PageAt(place.Index),
            0x20_000044 => place.Index == 0 && vcpu.LastExitTsc != 0 ? 1UL : 0,
            0x20_000098 => place.Index == 0 ? vcpu.PostedDescriptor : 0,
            0x20_00009C => place.Index == 0 ? vcpu.PinControls : 0,
            0x20_0000AC => place.Index == 0 ? vcpu.PostedVector : 0xFFFF,
            0x20_0000B0 => place.Index == 0 ? vcpu.SecondaryControls : 0,
            0x20_0000B4 => place.Index == 0 ? vcpu.SharedEptRoot : ulong.MaxValue,
            0x21_000000 => vcpu.CpuidControl[place.Index],
            0x22_000200 => place.Index < vcpu.FaultCount ? vcpu.FaultList[place.Index] : 0,
            _ => ReadScalar(vcpu, state, key),
        };
    }

    private static ulong ReadScalar(TdVcpu vcpu, GuestState state, uint key)
    {
        VeInfo ve = vcpu.Vmcs.VeInfo!;
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
            0x13_000DA0 => state.Xss,
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
            0x20_000007 => vcpu.CpuidVeSupervisor,
            0x20_000008 => vcpu.CpuidVeUser,
            0x20_00000A => vcpu.LastExitTsc,
            0x20_00000B => vcpu.PendNmi,
            0x20_00000C => vcpu.Td.Parameters.Xfam,
            0x20_00000D => (ulong)vcpu.FaultCount,
            0x20_00000E => (ulong)vcpu.SameRipFaults,
            0x20_00000F => (ulong)vcpu.LastExit,
            0x20_000030 => vcpu.HostPrioritySince ?? 0,
            0x20_000031 => vcpu.HostPrioritySince is null ? 0UL : 1,
            _ => vcpu.StoredFields.GetValueOrDefault(key),
        };
    }

    private static ulong ReadVmcsField(TdVcpu vcpu, uint code)
    {
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        if (IsSegmentField(code, out int segment))
            return ReadSegment(SegmentAt(state, segment), code);
        ref VmExit exit = ref vmcs.Exit;
        return code switch
        {
            0x0002 => vcpu.PostedVector,
            0x200E => vcpu.PmlAddress,
            0x2010 => vmcs.TscOffset,
            0x2016 => vcpu.PostedDescriptor,
            0x201A => vmcs.Eptp,
            0x2032 => vmcs.TscMultiplier,
            0x203C => vcpu.SharedEptRoot,
            0x2400 => exit.Gpa,
            0x2802 => vcpu.DebugCtl,
            0x2804 => state.Pat,
            0x2806 => state.Efer,
            0x4000 => vcpu.PinControls,
            0x401E => vcpu.SecondaryControls,
            0x4024 => vcpu.InstructionTimeout,
            0x4026 => vcpu.Td.Hkid,
            0x4402 => (ulong)exit.Reason,
            0x4404 => exit.InterruptInfo,
            0x440C => exit.InstructionLength,
            0x440E => exit.InstructionInfo,
            0x4810 => state.GdtrLimit,
            0x4812 => state.IdtrLimit,
            0x4824 => (state.StiShadow ? 1UL : 0) | (state.MovSsShadow ? 2UL : 0) | (state.NmiBlocked ? 8UL : 0),
            0x4826 => (ulong)state.Activity,
            0x482A => state.SysenterCs,
            0x6000 => vmcs.Cr0Owned,
            0x6002 => vmcs.Cr4Owned,
            0x6400 => exit.Qualification,
            0x640A => exit.Gla,
            0x6800 => state.Cr0,
            0x6802 => state.Cr3,
            0x6804 => state.Cr4,
            0x6816 => state.GdtrBase,
            0x6818 => state.IdtrBase,
            0x681A => state.Dr7,
            0x681C => state[Gpr.Rsp],
            0x681E => state.Rip,
            0x6820 => state.Rflags,
            0x6824 => state.SysenterEsp,
            0x6826 => state.SysenterEip,
            _ => vcpu.StoredFields.GetValueOrDefault(code),
        };
    }

    // Selectors 0x0800, limits 0x4800, access rights 0x4814, bases 0x6806; each ES CS SS DS FS GS LDTR TR.
    private static bool IsSegmentField(uint code, out int segment)
    {
        uint first = code switch
        {
            >= 0x0800 and <= 0x080E => 0x0800,
            >= 0x4800 and <= 0x480E => 0x4800,
            >= 0x4814 and <= 0x4822 => 0x4814,
            >= 0x6806 and <= 0x6814 => 0x6806u,
            _ => 0,
        };
        segment = (int)(code - first) / 2;
        return first != 0;
    }

    private static ref Segment SegmentAt(GuestState state, int number)
    {
        switch (number)
        {
            case 0:
                return ref state.Es;
            case 1:
                return ref state.Cs;
            case 2:
                return ref state.Ss;
            case 3:
                return ref state.Ds;
            case 4:
                return ref state.Fs;
            case 5:
                return ref state.Gs;
            case 6:
                return ref state.Ldtr;
            default:
                return ref state.Tr;
        }
    }

    private static ulong ReadSegment(in Segment segment, uint code) => code switch
    {
        < 0x4000 => segment.Selector,
        >= 0x6000 => segment.Base,
        < 0x4810 => segment.Limit,
        _ => segment.Access,
    };

    private static bool IsAddressField(FieldEntry entry) => entry.Class == 0 && entry.Code is 0x200E or 0x2016 or 0x203C;

    // Checks 8 and 9: what the value must be, whoever writes.
    private TdxStatus CheckVpValue(TdVcpu vcpu, FieldPlace place, ulong value)
    {
        Vmcs vmcs = vcpu.Vmcs;
        uint key = KeyAt(place);
        bool isLegal = key switch
        {
            0x0002 => value <= 255,
            0x200E or 0x203C => IsSharedHpa(value, 4096),
            0x2016 => IsSharedHpa(value, 64),

            // Page-modification logging needs a place to log to, which only a debugger can name.
            0x401E => (value & PmlEnable) == 0 || vcpu.PmlAddress >> 63 == 0,

            // As if the guest wrote: bits that it does not own stay what it sees.
            0x6800 => ((value ^ vmcs.State.Cr0) & vmcs.Cr0Owned) == 0,
            0x6804 => ((value ^ vmcs.State.Cr4) & vmcs.Cr4Owned) == 0,
            _ => true,
        };
        if (!isLegal)
            return TdxStatus.METADATA_FIELD_VALUE_NOT_VALID;
        if (key == 0x4000 && (value & PostedInterrupts) != 0 && vcpu.PostedVector > 255)
            return TdxStatus.TD_VMCS_FIELD_NOT_INITIALIZED | 0x0002u;
        if (key == 0x4000 && (value & PostedInterrupts) != 0 && vcpu.PostedDescriptor == ulong.MaxValue)
            return TdxStatus.TD_VMCS_FIELD_NOT_INITIALIZED | 0x2016u;

        // The header of the XSAVE image, and XFAM, have write masks and are never written.
        return key is 0x20_00000C or (>= 0x12_000000 + XsaveHeaderFirst and <= 0x12_000000 + XsaveHeaderLast)
            ? TdxStatus.METADATA_FIELD_NOT_WRITABLE
            : TdxStatus.SUCCESS;
    }

    private static void WriteVpField(TdVcpu vcpu, FieldPlace place, ulong value)
    {
        uint key = KeyAt(place);
        GuestState state = vcpu.Vmcs.State;
        if (place.Entry.Class == 0)
            WriteVmcsField(vcpu, key, value);
        else if (key is >= 0x10_000000 and <= 0x10_00000F)
            state[(Gpr)(key & 15)] = value;
        else if (key is >= 0x12_000000 + XmmFirst and <= 0x12_000000 + XmmLast)
            WriteXmm(state, (int)((key & 0xFFFFFF) - XmmFirst), value);
        else if (place.Entry.Key == 0x21_000000)
            vcpu.CpuidControl[place.Index] = (byte)value;
        else
            WriteScalar(vcpu, state, key, value);
    }

    private static void WriteXmm(GuestState state, int half, ulong value)
    {
        ref System.Runtime.Intrinsics.Vector128<ulong> register = ref state.Xmm[half / 2];
        register = System.Runtime.Intrinsics.Vector128.WithElement(register, half & 1, value);
    }

    private static void WriteScalar(TdVcpu vcpu, GuestState state, uint key, ulong value)
    {
        switch (key)
        {
            case 0x11_000000:
                state.Dr0 = value;
                break;
            case 0x11_000001:
                state.Dr1 = value;
                break;
            case 0x11_000002:
                state.Dr2 = value;
                break;
            case 0x11_000003:
                state.Dr3 = value;
                break;
            case 0x11_000006:
                state.Dr6 = value;
                break;
            case 0x11_000028:
                state.Cr2 = value;
                break;
            case 0x13_002103:
                state.TscAux = value;
                break;
            case 0x20_000007:
                vcpu.CpuidVeSupervisor = (byte)value;
                break;
            case 0x20_000008:
                vcpu.CpuidVeUser = (byte)value;
                break;
            case 0x20_00000B:
                vcpu.PendNmi = value;
                break;
            default:
                vcpu.StoredFields[key] = value;
                break;
        }
    }

    private static void WriteVmcsField(TdVcpu vcpu, uint code, ulong value)
    {
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        if (IsSegmentField(code, out int number))
        {
            WriteSegment(ref SegmentAt(state, number), code, value);
            return;
        }

        switch (code)
        {
            case 0x0002:
                vcpu.PostedVector = value;
                break;
            case 0x200E:
                vcpu.PmlAddress = value;
                break;
            case 0x2010:
                vmcs.TscOffset = value;
                break;
            case 0x2016:
                vcpu.PostedDescriptor = value;
                break;
            case 0x2032:
                vmcs.TscMultiplier = value;
                break;
            case 0x203C:
                // The field is the root alone; memory type and walk length follow the Secure EPT's pointer, without A/D (decisions D07).
                vcpu.SharedEptRoot = value;
                vmcs.SharedEptp = value | (vmcs.Eptp & 0x3F);
                break;
            case 0x2802:
                // Bit 13 is the host's.
                vcpu.DebugCtl = (value & ~DebugCtlUncorePmi) | (vcpu.DebugCtl & DebugCtlUncorePmi);
                break;
            case 0x4000:
                vcpu.PinControls = value;
                break;
            case 0x401E:
                vcpu.SecondaryControls = value;
                break;
            case 0x4024:
                vcpu.InstructionTimeout = value;
                break;
            case 0x4824:
                state.StiShadow = (value & 1) != 0;
                state.MovSsShadow = (value & 2) != 0;
                state.NmiBlocked = (value & 8) != 0;
                break;
            case 0x6000:
                vmcs.Cr0Owned = value;
                break;
            case 0x6002:
                vmcs.Cr4Owned = value;
                break;
            default:
                WriteGuestRegister(vcpu, state, code, value);
                break;
        }
    }

    private static void WriteGuestRegister(TdVcpu vcpu, GuestState state, uint code, ulong value)
    {
        switch (code)
        {
            case 0x2804:
                state.Pat = value;
                break;
            case 0x2806:
                state.Efer = value;
                break;
            case 0x4810:
                state.GdtrLimit = (ushort)value;
                break;
            case 0x4812:
                state.IdtrLimit = (ushort)value;
                break;
            case 0x482A:
                state.SysenterCs = value;
                break;
            case 0x6800:
                state.Cr0 = value;
                break;
            case 0x6802:
                state.Cr3 = value;
                break;
            case 0x6804:
                state.Cr4 = value;
                break;
            case 0x6816:
                state.GdtrBase = value;
                break;
            case 0x6818:
                state.IdtrBase = value;
                break;
            case 0x681A:
                state.Dr7 = value;
                break;
            case 0x681C:
                state[Gpr.Rsp] = value;
                break;
            case 0x681E:
                state.Rip = value;
                break;
            case 0x6820:
                state.Rflags = value;
                break;
            case 0x6824:
                state.SysenterEsp = value;
                break;
            case 0x6826:
                state.SysenterEip = value;
                break;
            default:
                vcpu.StoredFields[code] = value;
                break;
        }
    }

    private static void WriteSegment(ref Segment segment, uint code, ulong value)
    {
        if (code < 0x4000)
            segment.Selector = (ushort)value;
        else if (code >= 0x6000)
            segment.Base = value;
        else if (code < 0x4810)
            segment.Limit = (uint)value;
        else
            segment.Access = (uint)value;
    }
}
