using System.Text;
using Tdp.Host;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Host;

/// <summary>The host's half of TDG.VP.VMCALL (td-guest 6.3, tdp-mmu 8.7).</summary>
public sealed class VmcallTests
{
    private const ulong Shared = 1UL << 47;
    private const ulong Invalid = 0x8000_0000_0000_0000;
    private const ulong AlignError = 0x8000_0000_0000_0002;
    private const ulong Unsupported = 0x8000_0000_0000_0003;
    private const ulong MapGpa = 0x10001;

    [Theory]
    [InlineData(30, 5, 0, 0x3F8, Invalid)]
    [InlineData(30, 3, 1, 0x3F8, Invalid)]
    [InlineData(30, 1, 2, 0x3F8, Invalid)]
    [InlineData(48, 10, 0, Shared | 0xF000_0000, Invalid)]
    [InlineData(48, 4, 2, Shared | 0xF000_0000, Invalid)]
    [InlineData(48, 4, 0, 0xF000_0000, Invalid)]
    [InlineData(48, 8, 0, Shared - 4, Invalid)]
    [InlineData(48, 8, 0, (1UL << 48) - 4, Invalid)]
    [InlineData(31, 0x1234, 0, 0, Invalid)]
    [InlineData(32, 0x3A, 1, 0, Invalid)]
    [InlineData(54, 0, 0, 0, Unsupported)]
    [InlineData(65, 0, 0, 0, Unsupported)]
    [InlineData(0x20000, 0, 0, 0, Unsupported)]
    [InlineData(0x10000, 2, 0, 0, Invalid)]
    [InlineData(0x10000, 0, 0, 0, 0)]
    [InlineData(0x10004, 31, 0, 0, Invalid)]
    [InlineData(0x10004, 256, 0, 0, Invalid)]
    [InlineData(0x10004, 0x50, 0, 0, 0)]
    [InlineData(0x10002, 0x10_0000, 0x1000, 0, Invalid)]
    [InlineData(0x10002, Shared | 0x10_0000, 0x800, 0, Invalid)]
    [Trait("spec", "td-guest 6.3")]
    public void Every_function_checks_its_operands(ulong function, ulong r12, ulong r13, ulong r14, ulong status)
    {
        using HostBed bed = HostBed.Td();
        VmcallGuest guest = new(new Vmcall(0, function, r12, r13, r14));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal(UserExit.ScriptEnd, bed.Vm.VcpuOf(0).RunState.Exit);
        Assert.Equal(status, Assert.Single(guest.Results).R10);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "td-guest 6.3")]
    public void Ports_and_registers_go_to_user_space_and_its_answer_comes_back_cut_to_size()
    {
        using HostBed bed = HostBed.Td();
        VmcallGuest guest = new(
            new Vmcall(0, 30, 2, 0, 0x3F8),
            new Vmcall(0, 30, 1, 1, 0xE9, 0xAABB41),
            new Vmcall(0, 48, 4, 0, Shared | 0xF000_0010),
            new Vmcall(0, 48, 8, 1, Shared | 0xF000_0018, 0x1122_3344_5566_7788));
        VcpuRunState run = bed.Vm.VcpuOf(0).RunState;
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((UserExit.Io, 2, false, (ushort)0x3F8), (run.Exit, run.Size, run.IsWrite, run.Port));
        run.Value = 0xDEAD_BEEF;
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((UserExit.Io, 1, true, 0x41UL), (run.Exit, run.Size, run.IsWrite, run.Value));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((UserExit.Mmio, 4, false, 0xF000_0010UL), (run.Exit, run.Size, run.IsWrite, run.Gpa));
        run.Value = ulong.MaxValue;
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((UserExit.Mmio, 8, true, 0x1122_3344_5566_7788UL), (run.Exit, run.Size, run.IsWrite, run.Value));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal(UserExit.ScriptEnd, run.Exit);
        Assert.Equal([0xBEEFUL, 30UL, 0xFFFF_FFFFUL, 48UL], guest.Results.Select(r => r.R11));
        Assert.All(guest.Results, r => Assert.Equal(0UL, r.R10));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "td-guest 6.3")]
    public void Registers_outside_the_mask_reach_the_host_as_zero_and_stay_the_guest_s()
    {
        using HostBed bed = HostBed.Td();

        // R12..R15 are hidden: the port access has size 0, which is no size.
        VmcallGuest guest = new(new Vmcall(0, 30, 4, 1, 0xE9, 0x41)) { Mask = 0x0C00 };
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal(new Vmcall(Invalid, 30, 4, 1, 0xE9, 0x41), Assert.Single(guest.Results));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "td-guest 4.3")]
    public void Cpuid_of_the_hypervisor_range_names_the_hypervisor()
    {
        using HostBed bed = HostBed.Td();
        VmcallGuest guest = new(new Vmcall(0, 10, 0x4000_0000), new Vmcall(5, 0));
        Assert.Equal(Errno.None, bed.Run(guest));
        Vmcall id = guest.Results[0];
        byte[] name = [.. BitConverter.GetBytes((uint)id.R13), .. BitConverter.GetBytes((uint)id.R14), .. BitConverter.GetBytes((uint)id.R15)];
        Assert.Equal("KVMKVMKVM", Encoding.ASCII.GetString(name).TrimEnd('\0'));

        // A hypercall of KVM's own that does not exist: -KVM_ENOSYS.
        Assert.Equal(unchecked((ulong)-1000L), guest.Results[1].R10);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "td-guest 4.2")]
    public void Msrs_that_kvm_accepts_are_kept_and_others_refused()
    {
        using HostBed bed = HostBed.Td();
        VmcallGuest guest = new(
            new Vmcall(0, 32, 0x6E0, 0x1234),
            new Vmcall(0, 31, 0x6E0),
            new Vmcall(0, 31, 0x1B),
            new Vmcall(0, 32, 0x1B, 0),
            new Vmcall(0, 31, 0x802),
            new Vmcall(0, 31, 0x8C));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal([0UL, 0UL, 0UL, Invalid, 0UL, Invalid], guest.Results.Select(r => r.R10));
        Assert.Equal(0x1234UL, guest.Results[1].R11);
        Assert.Equal(0xFEE0_0D00UL, guest.Results[2].R11);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "td-guest 6.3")]
    public void A_fatal_error_carries_code_and_text_in_the_order_of_the_registers()
    {
        using HostBed bed = HostBed.Td();
        ulong text = BitConverter.ToUInt64("no disk!"u8);
        VmcallGuest guest = new(new Vmcall(0, 0x10003, 0x77, 0, text, 0x21));
        Assert.Equal(Errno.None, bed.Run(guest));
        VcpuRunState run = bed.Vm.VcpuOf(0).RunState;
        Assert.Equal((UserExit.SystemEvent, 0x77UL), (run.Exit, run.Code));
        Assert.Equal("no disk!!", Encoding.ASCII.GetString(run.Text.AsSpan(0, 9)));

        // RBX, RDI, RSI, R8, R9, RDX follow.
        Assert.Equal(
            new[] { Gpr.Rbx, Gpr.Rdi, Gpr.Rsi, Gpr.R8, Gpr.R9, Gpr.Rdx }.Select(r => (byte)(0xE0 + r)),
            Enumerable.Range(2, 6).Select(i => run.Text[8 * i]));
        bed.TearDown();
    }

    [Theory]
    [InlineData(0x10_0000, 0, Invalid)]
    [InlineData(0x10_0000, ulong.MaxValue, Invalid)]
    [InlineData(Shared - 0x1000, 0x2000, Invalid)]
    [InlineData(1UL << 48, 0x1000, Invalid)]
    [InlineData(0x10_0800, 0x1000, AlignError)]
    [InlineData(0x10_0000, 0x1800, AlignError)]
    [Trait("spec", "tdp-mmu 8.7")]
    public void MapGpa_refuses_in_kvms_order_and_says_where(ulong gpa, ulong size, ulong status)
    {
        using HostBed bed = HostBed.Td();
        VmcallGuest guest = new(new Vmcall(0, MapGpa, gpa, size));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((status, gpa), (guest.Results[0].R10, guest.Results[0].R11));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.7")]
    public void MapGpa_does_not_exist_when_user_space_does_not_want_the_exit()
    {
        using HostBed bed = HostBed.Td();
        bed.Vm.VcpuOf(0).ExitsForMapGpa = false;
        VmcallGuest guest = new(new Vmcall(0, MapGpa, Shared, 0x1000));
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal(Unsupported, guest.Results[0].R10);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.7")]
    public void MapGpa_comes_in_chunks_of_2_MiB_and_each_answer_of_user_space_has_its_status()
    {
        using HostBed bed = HostBed.Td();
        const ulong Start = Shared | 0x10_0000;
        VmcallGuest guest = new(
            new Vmcall(0, MapGpa, Start, 0x50_0000),
            new Vmcall(0, MapGpa, Start, 0x50_0000),
            new Vmcall(0, MapGpa, 0x10_0000, 0x1000));
        VcpuRunState run = bed.Vm.VcpuOf(0).RunState;
        (ulong Gpa, ulong Pages, ulong Attributes)[] chunks = new (ulong, ulong, ulong)[3];
        for (int i = 0; i < 3; i++)
        {
            Assert.Equal(Errno.None, bed.Run(guest));
            Assert.Equal(UserExit.Hypercall, run.Exit);
            Assert.Empty(guest.Results);
            chunks[i] = (run.Gpa, run.Length, run.Flags);
        }

        Assert.Equal([(0x10_0000UL, 512UL, 0UL), (0x30_0000UL, 512UL, 0UL), (0x50_0000UL, 256UL, 0UL)], chunks);

        // The first call is complete; the second is retried after its first chunk, at the second.
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((0UL, Start + 0x50_0000), (guest.Results[0].R10, guest.Results[0].R11));
        Assert.Equal(Errno.None, bed.Run(guest));
        run.Result = 11;
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((1UL, Start + 0x20_0000), (guest.Results[1].R10, guest.Results[1].R11));

        // The third: private wish, refused.
        Assert.Equal((UserExit.Hypercall, 0x10UL), (run.Exit, run.Flags));
        run.Result = 22;
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((Invalid, 0x10_0000UL), (guest.Results[2].R10, guest.Results[2].R11));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.7")]
    public void Any_other_answer_of_user_space_fails_the_run_ioctl()
    {
        using HostBed bed = HostBed.Td();
        VmcallGuest guest = new(new Vmcall(0, MapGpa, Shared, 0x1000));
        Assert.Equal(Errno.None, bed.Run(guest));
        bed.Vm.VcpuOf(0).RunState.Result = 12;
        Assert.Equal(Errno.EINVAL, bed.Run(guest));
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "tdp-mmu 8.7")]
    public void An_event_between_two_chunks_makes_the_guest_continue_by_itself()
    {
        using HostBed bed = HostBed.Td();
        VmcallGuest guest = new(new Vmcall(0, MapGpa, Shared, 0x40_0000));
        Assert.Equal(Errno.None, bed.Run(guest));
        bed.World.Machine.Processors[0].PendingInterrupt.Write(0x40);
        Assert.Equal(Errno.None, bed.Run(guest));
        Assert.Equal((1UL, Shared + 0x20_0000), (guest.Results[0].R10, guest.Results[0].R11));
        bed.TearDown();
    }
}
