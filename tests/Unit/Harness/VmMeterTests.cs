using Tdp.Harness.Reports;
using Tdp.Host;
using Tdp.Platform;
using Tdp.Tests.Unit.Host;

namespace Tdp.Tests.Unit.Harness;

/// <summary>KVM's statistics as instruments.</summary>
public sealed class VmMeterTests
{
    [Fact]
    [Trait("spec", "tdp-mmu 4.11")]
    public void A_listener_sees_what_the_vm_counted()
    {
        using HostBed bed = HostBed.Td();
        using var meters = new VmMeters(bed.Vm, bed.World.Module);
        SortedDictionary<string, long> before = meters.Read();
        Assert.Equal((0L, 0L), (before["pf_taken"], before["pages_4k"]));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x4000, 0x1000, 0));
        Assert.Equal(Errno.None, bed.Run(bed.Script(GuestStep.Accept(0x3000), GuestStep.Accept(0x5000), GuestStep.Write((1UL << 47) | 0x4000, 1))));
        Assert.Equal(Errno.None, bed.Vm.Memory.SetAttributes(bed.Actor, 0x5000, 0x1000, 0));
        SortedDictionary<string, long> after = meters.Read();
        Assert.Equal((3L, 3L, 0L), (after["pf_taken"], after["pf_fixed"], after["pf_retry"]));
        Assert.Equal((2L, 0L, 0L, 1L), (after["pages_4k"], after["pages_2m"], after["pages_1g"], after["zapped"]));
        Assert.Equal((1L, 1L, 0L), (after["tdx_tracks"], after["remote_tlb_flush"], after["tdx_kick_retries"]));
        Assert.True(after["seamcalls"] > before["seamcalls"]);
        bed.TearDown();
        Assert.Equal((0L, 0L), (meters.Read()["pages_4k"], meters.Read()["tables"]));
    }
}
