using Tdp.Host;
using Tdp.Mmu;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.EndToEnd.Golden;

/// <summary>td-guest 5.8 T1, T2 and T3 as far as a guest without instructions can play them; the same traces with the real kernel are in the guest tests.</summary>
public sealed class ExitTraceTests
{
    [Fact]
    [Trait("spec", "T1")]
    public void First_touch_of_an_mmio_register_exits_once_and_then_delivers_ve_without_an_exit()
    {
        const ulong Register = GoldenTd.SharedBit | 0xF000_0000;
        using var td = new GoldenTd();
        ScriptedGuest guest = td.Script(GuestStep.Read(Register));
        Assert.Equal(Errno.None, td.Run(0, guest));

        // The one exit of the violation, and the script's end: the #VE itself and VEINFO.GET never reach the host.
        Assert.Equal(1, td.Vcpu(0).Statistics.SharedFaults);
        Assert.Equal(1, td.Vcpu(0).Statistics.MmioFaults);
        Assert.Equal(2, td.Recorder.Count(TdhLeaf.VP_ENTER));
        VmEvent ve = Assert.Single(guest.Events);
        Assert.Equal((byte)20, ve.Vector);
        Spte entry = td.Entry(td.Direct, Register >> 12, Level.K4)!.Value;
        Assert.Equal(0UL, entry.Value & (7 | (1UL << 63)));
        Assert.Equal(0xF0000UL, entry.Pfn);
        Assert.Equal(1, td.Statistics[MmuCounter.MmioCreated]);
        td.TearDown();
    }

    [Fact]
    [Trait("spec", "T2")]
    public void A_touch_of_an_unaccepted_page_is_one_exit_then_ve_then_accept_then_the_store()
    {
        using var td = new GoldenTd();
        ScriptedGuest guest = td.Script(GuestStep.Write(GoldenTd.Gpa, 0xABCD), GuestStep.Read(GoldenTd.Gpa));
        Assert.Equal(Errno.None, td.Run(0, guest));
        Assert.Equal(1, td.Vcpu(0).Statistics.PrivateFaults);
        Assert.Equal(2, td.Recorder.Count(TdhLeaf.VP_ENTER));
        Assert.Equal((byte)20, Assert.Single(guest.Events).Vector);
        Assert.Equal([0xABCDUL], guest.Values);
        Assert.Equal(1, td.Recorder.Count(TdhLeaf.MEM_PAGE_AUG));
        td.TearDown();
    }

    [Fact]
    [Trait("spec", "T3")]
    [Trait("spec", "R33")]
    public void With_ve_disabled_a_touch_before_accepting_kills_the_vm_with_kvms_line_in_the_log()
    {
        using var td = new GoldenTd(configuration: new TdConfiguration { Attributes = TdConfiguration.SeptVeDisable });
        Assert.Equal(Errno.EIO, td.Run(0, td.Script(GuestStep.Write(GoldenTd.Gpa, 1))));
        Assert.True(td.Vm.IsDead);
        Assert.Equal("Guest access before accepting 0x123456000 on vCPU 0", td.Vm.Mmu.Death.Reason);
        Assert.Contains(td.World.Kernel.Log.Lines, l => l.EndsWith("Guest access before accepting 0x123456000 on vCPU 0", StringComparison.Ordinal));
        Assert.Equal(2, td.Recorder.Count(TdhLeaf.VP_ENTER));
        Assert.Equal(Errno.EIO, td.Run(1, td.Script(GuestStep.Halt())));
        Assert.Equal(2, td.Recorder.Count(TdhLeaf.VP_ENTER));
        td.TearDown();
    }
}
