namespace Tdp.Module;

/// <summary>Control-register bits that the module owns: a guest's change of one exits (td-guest 4.4).</summary>
internal static class ControlRegisters
{
    /// <summary>PE, NE, NW, CD.</summary>
    public const ulong Cr0Owned = 1 | (1UL << 5) | (1UL << 29) | (1UL << 30);

    /// <summary>MCE, VMXE, SMXE, KL, PKE, CET, PKS, UINTR.</summary>
    public const ulong Cr4Owned = (1UL << 6) | (1UL << 13) | (1UL << 14) | (1UL << 19) | (1UL << 22) | (1UL << 23) | (1UL << 24) | (1UL << 25);

    private const ulong Cr4Fixed1 = (1UL << 6) | (1UL << 13);
    private const ulong Cr4Reserved = ~0x3FF_FFFFUL | (1UL << 15) | (1UL << 14);

    /// <summary>What CR0 keeps of a written value: bits 28:19, 17 and 15:6 are ignored.</summary>
    public const ulong Cr0Known = 0xE005_003F;

    private const ulong WriteProtect = 1UL << 16;
    private const ulong Cet = 1UL << 23;

    public static bool IsLegalCr0(ulong value, ulong cr4) =>
        value >> 32 == 0
        && ((value >> 31) & 1) <= (value & 1)
        && ((value >> 29) & 1) <= ((value >> 30) & 1)
        && ((value & WriteProtect) != 0 || (cr4 & Cet) == 0);

    /// <summary>PE and NE stay set, CD and NW stay clear.</summary>
    public static bool IsAllowedCr0(ulong value) => (value & Cr0Owned) == (1 | (1UL << 5));

    public static bool IsLegalCr4(ulong value, ulong cr0, TdParameters parameters)
    {
        if ((value & Cet) != 0 && (cr0 & WriteProtect) == 0)
            return false;
        ulong forbidden = Cr4Reserved | (1UL << 19);
        if ((parameters.Xfam & (1UL << 9)) == 0)
            forbidden |= 1UL << 22;
        if ((parameters.Xfam & (1UL << 11)) == 0)
            forbidden |= 1UL << 23;
        if ((parameters.Attributes & TdParameters.Pks) == 0)
            forbidden |= 1UL << 24;
        if ((parameters.Xfam & (1UL << 14)) == 0)
            forbidden |= 1UL << 25;
        return (value & forbidden) == 0;
    }

    public static bool IsAllowedCr4(ulong value) => (value & Cr4Fixed1) == Cr4Fixed1;
}

// CPUID, MSRs, control registers and XSETBV as the guest sees them (tdx-module 8.4, 8.5, 8.8; td-guest 4.2 to 4.4).
public sealed partial class TdxModule
{
    private const uint MsrEfer = 0xC000_0080;
    private const uint MsrXss = 0xDA0;
    private const uint MsrDebugCtl = 0x1D9;

    // IA32_DEBUGCTL: branch trace messages without the buffer to store them in would go to the bus; the uncore's interrupt is the host's.
    private const ulong DebugCtlTraceMessages = 1UL << 6;
    private const ulong DebugCtlBranchTraces = 3UL << 6;
    private const ulong DebugCtlUncorePmi = 1UL << 13;
    private const ulong DebugCtlFreezeInSmm = 1UL << 14;
    private const ulong DebugCtlRtm = 1UL << 15;

    private static bool HandleCpuid(TdVcpu vcpu)
    {
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        uint leaf = (uint)state[Gpr.Rax];
        uint subleaf = (uint)state[Gpr.Rcx];

        // The guest may ask for #VE: for every leaf, or leaf by leaf; for its kernel and for what runs above.
        byte asked = state.Cpl == 0 ? vcpu.CpuidVeSupervisor : vcpu.CpuidVeUser;
        int index = CpuidTable.Find(leaf, subleaf);
        if (index < 0 || asked != 0 || (vcpu.CpuidControl[index] & (state.Cpl == 0 ? 1 : 2)) != 0)
            return InjectInstructionVe(vmcs, 0);
        CpuidValues values = WithDynamicFields(vcpu.Td.Cpuid!.ValuesAt(index), CpuidTable.KeyAt(index).Leaf, subleaf, vcpu, state);
        state[Gpr.Rax] = values.Eax;
        state[Gpr.Rbx] = values.Ebx;
        state[Gpr.Rcx] = values.Ecx;
        state[Gpr.Rdx] = values.Edx;
        return Retire(vmcs);
    }

    private static CpuidValues WithDynamicFields(CpuidValues values, uint leaf, uint subleaf, TdVcpu vcpu, GuestState state) => (leaf, subleaf) switch
    {
        (0x1, _) => values with
        {
            Ebx = (values.Ebx & 0x00FF_FFFF) | (vcpu.Index << 24),
            Ecx = (values.Ecx & ~(1u << 27)) | ((state.Cr4 & (1UL << 18)) != 0 ? 1u << 27 : 0),
        },
        (0x7, 0) => values with { Ecx = (values.Ecx & ~(1u << 4)) | ((state.Cr4 & (1UL << 22)) != 0 ? 1u << 4 : 0) },
        (0x80000001, _) => values with { Edx = (values.Edx & ~(1u << 11)) | (state.Cs.IsLong ? 1u << 11 : 0) },
        _ => values,
    };

    private static bool HandleRdmsr(TdVcpu vcpu)
    {
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        uint msr = (uint)state[Gpr.Rcx];
        TdParameters parameters = vcpu.Td.Parameters;
        switch (MsrPolicy.Classify(msr, write: false, parameters))
        {
            case MsrKind.Emulated:
                ulong value = msr == MsrDebugCtl ? vcpu.DebugCtl : MsrPolicy.Read(msr, parameters);
                state[Gpr.Rax] = (uint)value;
                state[Gpr.Rdx] = value >> 32;
                return Retire(vmcs);
            case MsrKind.Gp:
                return InjectGp(vmcs);
            default:
                return InjectInstructionVe(vmcs, 0);
        }
    }

    private static bool HandleWrmsr(TdVcpu vcpu)
    {
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        uint msr = (uint)state[Gpr.Rcx];
        ulong value = (uint)state[Gpr.Rax] | (state[Gpr.Rdx] << 32);
        switch (MsrPolicy.Classify(msr, write: true, vcpu.Td.Parameters))
        {
            case MsrKind.Emulated when msr == MsrEfer:
                // Only SCE may change; LMA is not the guest's to write.
                const ulong lma = 1UL << 10;
                if (((value ^ state.Efer) & ~(lma | 1)) != 0)
                    return InjectInstructionVe(vmcs, 0);
                state.Efer = (state.Efer & ~1UL) | (value & 1);
                return Retire(vmcs);
            case MsrKind.Emulated when msr == MsrXss:
                if (!MsrPolicy.IsLegalXss(value, vcpu.Td.Parameters))
                    return InjectGp(vmcs);
                state.Xss = value;
                return Retire(vmcs);
            case MsrKind.Emulated when msr == MsrDebugCtl:
                return WriteDebugCtl(vcpu, value);
            case MsrKind.Gp:
                return InjectGp(vmcs);
            default:
                return InjectInstructionVe(vmcs, 0);
        }
    }

    private static bool WriteDebugCtl(TdVcpu vcpu, ulong value)
    {
        // Freezing counters in SMM is for a TD that counts; RTM debugging for one that has transactions, which none here has.
        bool perfmon = (vcpu.Td.Parameters.Attributes & TdParameters.Perfmon) != 0;
        ulong reserved = ~0xFFC7UL | DebugCtlRtm | (perfmon ? 0 : DebugCtlFreezeInSmm);
        if ((value & reserved) != 0)
            return InjectGp(vcpu.Vmcs);
        if ((value & DebugCtlBranchTraces) == DebugCtlTraceMessages)
            return InjectInstructionVe(vcpu.Vmcs, 0);
        vcpu.DebugCtl = (value & ~DebugCtlUncorePmi) | (vcpu.DebugCtl & DebugCtlUncorePmi);
        return Retire(vcpu.Vmcs);
    }

    private static bool HandleControlRegister(TdVcpu vcpu)
    {
        // Qualification: register 3:0, access 5:4 (0 MOV to, 3 LMSW), general register 11:8, LMSW source 31:16.
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        ulong qualification = vmcs.Exit.Qualification;
        int register = (int)(qualification & 15);
        if (((qualification >> 4) & 3) == 3)
        {
            // LMSW: MP, EM, TS; PE can only be set, and is.
            state.Cr0 = (state.Cr0 & ~0xEUL) | ((qualification >> 16) & 0xE);
            return Retire(vmcs);
        }

        ulong value = state[(Gpr)((qualification >> 8) & 15)];
        if (register == 0)
        {
            if (!ControlRegisters.IsLegalCr0(value, state.Cr4))
                return InjectGp(vmcs);
            if (!ControlRegisters.IsAllowedCr0(value))
                return InjectInstructionVe(vmcs, qualification);
            state.Cr0 = (value & ControlRegisters.Cr0Known) | 0x10;
            return Retire(vmcs);
        }

        if (!ControlRegisters.IsLegalCr4(value, state.Cr0, vcpu.Td.Parameters))
            return InjectGp(vmcs);
        if (!ControlRegisters.IsAllowedCr4(value))
            return InjectInstructionVe(vmcs, qualification);
        state.Cr4 = value;
        return Retire(vmcs);
    }

    private static bool HandleXsetbv(TdVcpu vcpu)
    {
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        ulong value = (uint)state[Gpr.Rax] | (state[Gpr.Rdx] << 32);
        ulong allowed = vcpu.Td.Parameters.Xfam & 0x602E7;

        // AVX needs SSE; the three parts of AVX-512 come together, over AVX; so do the two of AMX.
        ulong avx512 = value & 0xE0;
        ulong amx = value & (3UL << 17);
        bool isConsistent = (value & 6) != 4 && avx512 is 0 or 0xE0 && (avx512 == 0 || (value & 4) != 0) && amx is 0 or (3UL << 17);
        if ((uint)state[Gpr.Rcx] != 0 || (value & 1) == 0 || (value & ~allowed) != 0 || !isConsistent)
            return InjectGp(vmcs);
        state.Xcr0 = value;
        return Retire(vmcs);
    }
}
