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

    public static bool IsLegalCr0(ulong value) =>
        value >> 32 == 0 && ((value >> 31) & 1) <= (value & 1) && ((value >> 29) & 1) <= ((value >> 30) & 1);

    /// <summary>PE and NE stay set, CD and NW stay clear.</summary>
    public static bool IsAllowedCr0(ulong value) => (value & Cr0Owned) == (1 | (1UL << 5));

    public static bool IsLegalCr4(ulong value, TdParameters parameters)
    {
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

    private static bool HandleCpuid(TdVcpu vcpu)
    {
        Vmcs vmcs = vcpu.Vmcs;
        GuestState state = vmcs.State;
        uint leaf = (uint)state[Gpr.Rax];
        uint subleaf = (uint)state[Gpr.Rcx];
        bool asked = state.Cpl == 0 ? vcpu.CpuidVeSupervisor : vcpu.CpuidVeUser;
        if (!vcpu.Td.Cpuid!.TryFind(leaf, subleaf, out CpuidValues values) || asked)
            return InjectInstructionVe(vmcs, 0);
        values = WithDynamicFields(values, leaf, subleaf, vcpu, state);
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
                return MsrPolicy.IsLegalXss(value, vcpu.Td.Parameters) ? Retire(vmcs) : InjectGp(vmcs);
            case MsrKind.Emulated when msr == MsrDebugCtl:
                if ((value & ~0xFFC7UL) != 0)
                    return InjectGp(vmcs);
                vcpu.DebugCtl = value;
                return Retire(vmcs);
            case MsrKind.Gp:
                return InjectGp(vmcs);
            default:
                return InjectInstructionVe(vmcs, 0);
        }
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
            if (!ControlRegisters.IsLegalCr0(value))
                return InjectGp(vmcs);
            if (!ControlRegisters.IsAllowedCr0(value))
                return InjectInstructionVe(vmcs, qualification);
            state.Cr0 = value | 0x10;
            return Retire(vmcs);
        }

        if (!ControlRegisters.IsLegalCr4(value, vcpu.Td.Parameters))
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
        if ((uint)state[Gpr.Rcx] != 0 || (value & 1) == 0 || (value & ~allowed) != 0 || (value & 6) == 4)
            return InjectGp(vmcs);
        state.Xcr0 = value;
        return Retire(vmcs);
    }
}
