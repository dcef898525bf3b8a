using Tdp.Module;
using Tdp.Platform;
using Tdp.Tests.Unit.Seam.Checklist;

namespace Tdp.Tests.Unit.Seam;

/// <summary>Metadata fields: whose they are, what they hold, how they are written (tdx-module 1.9a).</summary>
public sealed class MetadataTests
{
    private const ulong All = ulong.MaxValue;
    private const ulong Features0 = 0x0A00_0003_0000_0008;
    private const ulong MsrBitmaps = 0x2010_0003_0000_0000;
    private const ulong SeptRoot = 0x2110_0003_0000_0000;
    private const ulong ArchCapabilities = 0x9610_0003_0000_010A;
    private const ulong GuestRip = 0x0024_0003_0000_681E;
    private const ulong GuestCr0 = 0x0024_0003_0000_6800;
    private const ulong GuestFsSelector = 0x0024_0001_0000_0808;
    private const ulong PinControls = 0x0024_0002_0000_4000;
    private const ulong PendNmi = 0x2020_0000_0000_000B;
    private const ulong Xfam = 0x2020_0003_0000_000C;
    private const ulong CpuidControl = 0xA120_0000_0000_0000;
    private const ulong DebugCtl = 0x0024_0003_0000_2802;

    [Fact]
    public void Report_verification_is_a_feature()
    {
        using ModuleRig rig = new();
        Assert.Equal(0xF_0FBFUL, rig.Must(TdhLeaf.SYS_RD, 0, Features0).R8 & 0xF_FFFF);
    }

    [Fact]
    public void A_debugger_reads_the_root_of_the_Secure_EPT_and_the_MSR_bitmap_and_nobody_else_does()
    {
        using ModuleRig debug = Steps.Running(attributes: 1);
        Assert.Equal(debug.Word(Steps.Gpa, 3), debug.Must(TdhLeaf.MNG_RD, debug.Tdr.Value, SeptRoot).R8);
        Assert.Equal(All, debug.Must(TdhLeaf.MNG_RD, debug.Tdr.Value, MsrBitmaps + 511).R8);
        using ModuleRig production = Steps.Running();
        Assert.Equal(TdxStatus.METADATA_FIELD_NOT_READABLE, production.Call(TdhLeaf.MNG_RD, production.Tdr.Value, SeptRoot));
    }

    [Theory]
    [InlineData(GuestRip, 0x1234_5678UL)]
    [InlineData(GuestFsSelector, 0x33UL)]
    [InlineData(0x1020_0003_0000_000FUL, 0xF00DUL)] // R15
    [InlineData(0x1120_0003_0000_0000UL, 0xD0UL)] // DR0
    [InlineData(0x1220_0003_0000_0014UL, 0x5151UL)] // XBUFF, low half of XMM0
    [InlineData(0x1320_0003_0000_0048UL, 4UL)] // IA32_SPEC_CTRL, which nothing here acts on
    [InlineData(0x0024_0003_0000_6806UL, 0xE5UL)] // Guest ES base
    public void What_a_debugger_writes_it_reads_and_a_production_host_can_do_neither(ulong field, ulong value)
    {
        using ModuleRig debug = Steps.Running(attributes: 1);
        ulong vcpu = debug.Vcpus[0].Value;
        ulong old = debug.Must(TdhLeaf.VP_RD, vcpu, field).R8;
        Assert.Equal(old, debug.Must(TdhLeaf.VP_WR, vcpu, field, value, All & (field == GuestFsSelector ? 0xFFFF : All)).R8);
        Assert.Equal(value, debug.Must(TdhLeaf.VP_RD, vcpu, field).R8);
        using ModuleRig production = Steps.Running();
        Assert.Equal(TdxStatus.METADATA_FIELD_NOT_READABLE, production.Call(TdhLeaf.VP_RD, production.Vcpus[0].Value, field));
        Assert.Equal(TdxStatus.METADATA_FIELD_NOT_WRITABLE, production.Call(TdhLeaf.VP_WR, production.Vcpus[0].Value, field, value, 0xFF));
    }

    [Fact]
    public void What_a_debugger_writes_is_what_the_guest_has()
    {
        using ModuleRig rig = Steps.Running(attributes: 1);
        rig.Must(TdhLeaf.VP_WR, rig.Vcpus[0].Value, GuestRip, 0xABC0, All);
        Vmcs vmcs = rig.EnterTd(0);
        Assert.Equal(0xABC0UL, vmcs.State.Rip);
        vmcs.State.Xss = 0x100;
        rig.Interrupt(0);
        Assert.Equal(0x100UL, rig.Must(TdhLeaf.VP_RD, rig.Vcpus[0].Value, 0x1320_0003_0000_0DA0).R8);
    }

    [Fact]
    public void A_bit_that_the_guest_does_not_own_stays_as_it_sees_it()
    {
        using ModuleRig rig = Steps.Running(attributes: 1);
        ulong vcpu = rig.Vcpus[0].Value;
        ulong cr0 = rig.Must(TdhLeaf.VP_RD, vcpu, GuestCr0).R8;
        Assert.Equal(TdxStatus.METADATA_FIELD_VALUE_NOT_VALID, rig.Call(TdhLeaf.VP_WR, vcpu, GuestCr0, cr0 ^ (1UL << 30), All));
        rig.Must(TdhLeaf.VP_WR, vcpu, GuestCr0, cr0 ^ (1UL << 16), All);
    }

    [Fact]
    public void XFAM_and_the_XSAVE_header_have_masks_and_are_never_written()
    {
        using ModuleRig rig = Steps.Running(attributes: 1);
        Assert.Equal(TdxStatus.METADATA_FIELD_NOT_WRITABLE, rig.Call(TdhLeaf.VP_WR, rig.Vcpus[0].Value, Xfam, 3, All));
        Assert.Equal(TdxStatus.METADATA_FIELD_NOT_WRITABLE, rig.Call(TdhLeaf.VP_WR, rig.Vcpus[0].Value, 0x1220_0003_0000_0040, 3, All));
    }

    [Fact]
    public void Posted_interrupts_need_a_vector_and_a_descriptor_first()
    {
        using ModuleRig rig = Steps.Running();
        ulong vcpu = rig.Vcpus[0].Value;
        Assert.Equal(TdxStatus.TD_VMCS_FIELD_NOT_INITIALIZED | 2u, rig.Call(TdhLeaf.VP_WR, vcpu, PinControls, 0x80, 0x80));
        Assert.Equal(TdxStatus.METADATA_FIELD_VALUE_NOT_VALID, rig.Call(TdhLeaf.VP_WR, vcpu, 0x0024_0001_0000_0002, 256, 0xFFFF));
        rig.Must(TdhLeaf.VP_WR, vcpu, 0x0024_0001_0000_0002, 0xF2, 0xFFFF);
        Assert.Equal(TdxStatus.TD_VMCS_FIELD_NOT_INITIALIZED | 0x2016u, rig.Call(TdhLeaf.VP_WR, vcpu, PinControls, 0x80, 0x80));
        rig.Must(TdhLeaf.VP_WR, vcpu, 0x0024_0003_0000_2016, rig.Page().Value, All);
        rig.Must(TdhLeaf.VP_WR, vcpu, PinControls, 0x80, 0x80);
        Assert.Equal(0x80UL, rig.Must(TdhLeaf.VP_RD, vcpu, PinControls).R8);
    }

    [Fact]
    public void The_pending_NMI_is_the_byte_that_the_host_wrote_until_it_is_delivered()
    {
        using ModuleRig rig = Steps.Running();
        rig.Must(TdhLeaf.VP_WR, rig.Vcpus[0].Value, PendNmi, 0x7F, 0xFF);
        Assert.Equal(0x7FUL, rig.Must(TdhLeaf.VP_RD, rig.Vcpus[0].Value, PendNmi).R8);
        Vmcs vmcs = rig.EnterTd(0);
        Assert.True(vmcs.NmiWindowExiting);
        Assert.Equal(VmEvent.Nmi, rig.Serve(0, new VmExit { Reason = ExitReason.NmiWindow }).Type);
        rig.Interrupt(0);
        Assert.Equal(0UL, rig.Must(TdhLeaf.VP_RD, rig.Vcpus[0].Value, PendNmi).R8);
    }

    [Fact]
    public void A_guest_makes_one_CPUID_leaf_a_VE_for_its_kernel_and_for_its_users()
    {
        using ModuleRig rig = Steps.Running();
        Vmcs vmcs = rig.EnterTd(0);
        VmExit cpuid = new() { Reason = ExitReason.Cpuid, InstructionLength = 2 };

        // Lookup index 10 is leaf 0 (tdx-module 14). Bit 0 is for CPL 0, bit 1 for the others.
        foreach ((ulong control, bool kernel, bool user) in ((ulong, bool, bool)[])[(0, false, false), (1, true, false), (2, false, true), (3, true, true)])
        {
            Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.VP_WR, 0, CpuidControl + 10, control, 3));
            foreach (bool isUser in (bool[])[false, true])
            {
                vmcs.State.Ss.Access = (vmcs.State.Ss.Access & ~0x60u) | (isUser ? 0x60u : 0);
                vmcs.State[Gpr.Rax] = vmcs.State[Gpr.Rcx] = 0;
                Assert.Equal(isUser ? user : kernel, rig.Serve(0, cpuid).IsValid);
                vmcs.VeInfo!.IsValid = false;
            }

            vmcs.State.Ss.Access &= ~0x60u;
            vmcs.State[Gpr.Rax] = 1;
            Assert.False(rig.Serve(0, cpuid).IsValid);
        }
    }

    [Fact]
    public void The_host_priority_timeout_is_written_whole_and_within_its_limits()
    {
        using ModuleRig rig = Steps.Running();
        Assert.Equal(TdxStatus.METADATA_WR_MASK_NOT_VALID, rig.Call(TdhLeaf.MNG_WR, rig.Tdr.Value, 0x9110_0003_0000_0011, 20_000, 0xFFFF));
        Assert.Equal(TdxStatus.METADATA_FIELD_VALUE_NOT_VALID, rig.Call(TdhLeaf.MNG_WR, rig.Tdr.Value, 0x9110_0003_0000_0011, 9_999, All));
        Assert.Equal(1_000_000UL, rig.Must(TdhLeaf.MNG_WR, rig.Tdr.Value, 0x9110_0003_0000_0011, 20_000, All).R8);
        Assert.Equal(20_000UL, rig.Must(TdhLeaf.MNG_RD, rig.Tdr.Value, 0x9110_0003_0000_0011).R8);
    }

    [Theory]
    [InlineData(0UL, 0UL, true)]
    [InlineData(0UL, 1UL << 24, false)]
    [InlineData(1UL, 1UL << 24, true)]
    [InlineData(1UL, 0x118_0010UL, true)]
    [InlineData(1UL, 1UL << 7, false)]
    public void IA32_ARCH_CAPABILITIES_is_configured_within_its_mask_and_only_when_asked_for(ulong control, ulong config, bool legal)
    {
        using ModuleRig rig = new();
        Hpa tdr = rig.Page();
        rig.Must(TdhLeaf.MNG_CREATE, tdr.Value, 17);
        rig.OnEachPackage(lp => rig.Must(TdhLeaf.MNG_KEY_CONFIG, tdr.Value, lp: lp));
        for (int i = 0; i < 6; i++)
            rig.Must(TdhLeaf.MNG_ADDCX, rig.Page().Value, tdr.Value);
        Hpa parameters = rig.Parameters(attributes: 1);
        rig.Machine.Memory.Word(parameters.Value + 16) |= control << 24;
        rig.Machine.Memory.Word(parameters.Value + 224) = config;
        Assert.Equal(legal ? 0UL : 0xC000_0100_0000_0048, rig.Ask(TdhLeaf.MNG_INIT, tdr.Value, parameters.Value).Rax);
        if (!legal)
            return;

        // The processor has PBRSB_NO (24), neither SSB_NO (4) nor BHI_NO (20); RRSBA (19) appears when it is asked for.
        ulong value = rig.Must(TdhLeaf.MNG_RD, tdr.Value, ArchCapabilities).R8;
        Assert.Equal((config & (1UL << 24)) | (config & (1UL << 19)), value & 0x118_0010);
        Assert.NotEqual(0UL, value & (1UL << 21));
    }

    [Theory]
    [InlineData(0UL, 0x40UL, 20)]
    [InlineData(0UL, 0xC0UL, 0)]
    [InlineData(0UL, 1UL << 14, 13)]
    [InlineData(1UL << 63, 1UL << 14, 0)]
    [InlineData(0UL, 1UL << 15, 13)]
    [InlineData(0UL, 1UL << 3, 13)]
    [InlineData(0UL, 1UL << 13, 0)]
    public void DEBUGCTL_takes_what_the_TD_may_have(ulong attributes, ulong value, int vector)
    {
        using ModuleRig rig = Steps.Running(attributes: attributes);
        Vmcs vmcs = rig.EnterTd(0);
        Write(vmcs, 0x1D9, value);
        VmEvent injected = rig.Serve(0, new VmExit { Reason = ExitReason.Wrmsr, InstructionLength = 2 });
        Assert.Equal(vector, injected.IsValid ? injected.Vector : 0);
        if (vector != 0)
            return;
        rig.Serve(0, new VmExit { Reason = ExitReason.Rdmsr, InstructionLength = 2 });
        Assert.Equal(value & ~(1UL << 13), vmcs.State[Gpr.Rax]);
    }

    [Fact]
    public void XSS_is_kept_within_XFAM()
    {
        using ModuleRig rig = Steps.Running();
        Vmcs vmcs = rig.EnterTd(0);
        Write(vmcs, 0xDA0, 0x800);
        Assert.Equal(13, rig.Serve(0, new VmExit { Reason = ExitReason.Wrmsr, InstructionLength = 2 }).Vector);
        Write(vmcs, 0xDA0, 0);
        Assert.False(rig.Serve(0, new VmExit { Reason = ExitReason.Wrmsr, InstructionLength = 2 }).IsValid);
    }

    [Theory]
    [InlineData(0x7UL, true)]
    [InlineData(0x5UL, false)]
    [InlineData(0xE7UL, true)]
    [InlineData(0x27UL, false)]
    [InlineData(0xE3UL, false)]
    [InlineData(0x6_0003UL, true)]
    [InlineData(0x2_0003UL, false)]
    [InlineData(0x6UL, false)]
    public void XCR0_takes_whole_features(ulong value, bool legal)
    {
        using ModuleRig wide = WithXfam(0x6_00E7);
        Vmcs vmcs = wide.EnterTd(0);
        vmcs.State[Gpr.Rcx] = 0;
        vmcs.State[Gpr.Rax] = (uint)value;
        vmcs.State[Gpr.Rdx] = value >> 32;
        VmEvent injected = wide.Serve(0, new VmExit { Reason = ExitReason.Xsetbv, InstructionLength = 3 });
        Assert.Equal(legal ? 0 : 13, injected.IsValid ? injected.Vector : 0);
        Assert.Equal(legal ? value : 3, vmcs.State.Xcr0);
    }

    [Fact]
    public void CR0_forgets_bits_that_do_not_exist()
    {
        using ModuleRig rig = Steps.Running();
        Vmcs vmcs = rig.EnterTd(0);
        vmcs.State[Gpr.Rbx] = vmcs.State.Cr0 | 0x1FFA_FFC0;
        Assert.False(rig.Serve(0, new VmExit { Reason = ExitReason.CrAccess, Qualification = (ulong)Gpr.Rbx << 8, InstructionLength = 3 }).IsValid);
        Assert.Equal(0UL, vmcs.State.Cr0 & 0x1FFA_FFC0);
    }

    private static ModuleRig WithXfam(ulong xfam)
    {
        ModuleRig rig = new();
        Hpa parameters = rig.Parameters();
        rig.Machine.Memory.Word(parameters.Value + 8) = xfam;
        rig.BuildTd(parameters);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        return rig;
    }

    private static void Write(Vmcs vmcs, uint msr, ulong value)
    {
        vmcs.State[Gpr.Rcx] = msr;
        vmcs.State[Gpr.Rax] = (uint)value;
        vmcs.State[Gpr.Rdx] = value >> 32;
    }
}
