using System.Linq;
using Tdp.Host;
using Tdp.Mmu;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.EndToEnd.Golden;

/// <summary>tdp-mmu 15.3 and 15.4: the page becomes shared and private again.</summary>
public sealed class ConversionTests : IDisposable
{
    private const ulong Shared = GoldenTd.SharedBit | GoldenTd.Gpa;
    private readonly GoldenTd _td = new();

    public void Dispose() => _td.Dispose();

    [Fact]
    [Trait("spec", "I26")]
    [Trait("spec", "I58")]
    [Trait("spec", "I59")]
    [Trait("spec", "I65")]
    public void Conversion_to_shared_zaps_only_the_private_alias_in_the_order_block_track_kick_remove_wbinvd()
    {
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        const ulong Neighbour = GoldenTd.Gpa + 0x1000;
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, Neighbour, GoldenTd.PrivateWrite));
        ulong seq = _td.Vm.Mmu.Invalidation.Peek().Seq;
        _td.Recorder.Clear();
        GfnRange? range = null;
        ulong? entryAtBlock = null;
        _td.Recorder.Before = (_, r) =>
        {
            if ((TdhLeaf)(ushort)r.Rax != TdhLeaf.MEM_RANGE_BLOCK)
                return;
            range = _td.Vm.Mmu.Invalidation.PeekRange();
            entryAtBlock = _td.Entry(_td.Mirror, GoldenTd.Gfn.Value, Level.K4)!.Value.Value;
            Assert.Equal(1UL, _td.Vm.Mmu.Invalidation.Peek().InProgress);
            Assert.True(_td.Vm.Mmu.MmuLock.IsWriteHeld(_td.Host));
        };

        Assert.Equal(Errno.None, _td.Vm.Memory.SetAttributes(_td.Host, GoldenTd.Gpa, 0x1000, 0));

        ulong keyed = GoldenTd.Frame.Value | ((ulong)_td.Vm.Td!.Hkid.Value << _td.World.Machine.Description.HkidShift);
        Assert.Equal(
            [
                (TdhLeaf.MEM_RANGE_BLOCK, GoldenTd.Gpa),
                (TdhLeaf.MEM_TRACK, _td.Vm.Td.Tdr.Value),
                (TdhLeaf.MEM_PAGE_REMOVE, GoldenTd.Gpa),
                (TdhLeaf.PHYMEM_PAGE_WBINVD, keyed),
            ],
            _td.Recorder.Memory.Select(c => (c.Leaf, c.Rcx)));
        Assert.All(_td.Recorder.Memory, c => Assert.Equal(TdxStatus.SUCCESS, c.Status));
        Assert.Equal(new GfnRange(new Gfn(0x100000), new Gfn(0x140000)), range);
        Assert.Equal(0x8000_0000_0000_0000UL, entryAtBlock);
        Assert.Equal((seq + 1, 0UL), _td.Vm.Mmu.Invalidation.Peek());
        Assert.Equal(1, _td.Statistics.Pages(Level.K4));
        Assert.Equal(3, _td.Statistics[MmuCounter.Tables]);
        Assert.True(_td.Entry(_td.Mirror, GoldenTd.Gfn.Value + 1, Level.K4)!.Value.IsPresent);

        MmuSlot slot = _td.Vm.SlotsOf(0).Active.ById(0)!.Mmu;
        Assert.True(slot.IsMixed(GoldenTd.Gfn, Level.M2));
        Assert.True(slot.IsMixed(GoldenTd.Gfn, Level.G1));
        Assert.False(slot.IsMixed(new Gfn(0x123600), Level.M2));
        Assert.False(_td.Vm.Attributes!.IsPrivate(GoldenTd.Gfn));
        Assert.True(_td.Vm.Attributes.IsPrivate(new Gfn(0x123455)));
        Assert.True(_td.Vm.Attributes.IsPrivate(new Gfn(0x123457)));
        Assert.Equal(FrameUse.GuestMemfd, _td.World.Machine.Ledger.UseOf(GoldenTd.Frame));
        _td.TearDown();
    }

    [Fact]
    [Trait("spec", "I64")]
    public void After_it_the_shared_alias_is_mapped_without_a_seamcall_and_the_private_one_is_a_memory_fault()
    {
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        Assert.Equal(Errno.None, _td.Vm.Memory.SetAttributes(_td.Host, GoldenTd.Gpa, 0x1000, 0));
        _td.Recorder.Clear();
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, Shared, PfErr.Write));
        Assert.Empty(_td.Recorder.Memory);

        ulong raw = Shared >> 12;
        Assert.Equal([256, 4, 0x11A, 0x056], new[] { Level.G512, Level.G1, Level.M2, Level.K4 }.Select(l => l.IndexOf(raw)));
        Spte leaf = _td.Entry(_td.Direct, raw, Level.K4)!.Value;
        Hpa host = _td.Vm.UserMemory.Peek(_td.Hva + ((GoldenTd.Gfn - GoldenTd.SlotStart) << 12))!.Value;
        Assert.Equal(0x8600_0000_0000_0B37UL | host.Value, leaf.Value);

        ScriptedGuest guest = _td.Script(GuestStep.Write(GoldenTd.Gpa, 1));
        Assert.Equal(Errno.EFAULT, _td.Run(0, guest));
        VcpuRunState run = _td.Vcpu(0).RunState;
        Assert.Equal((UserExit.MemoryFault, 0x123456000UL, 0x1000UL, 8UL), (run.Exit, run.Gpa, run.Length, run.Flags));
        _td.TearDown();
    }

    [Fact]
    [Trait("spec", "I36")]
    [Trait("spec", "I58")]
    public void Back_to_private_needs_no_seamcall_and_the_page_must_be_accepted_again_and_is_zero()
    {
        ScriptedGuest first = _td.Script(GuestStep.Accept(GoldenTd.Gpa), GuestStep.Write(GoldenTd.Gpa, 0x1234), GuestStep.Read(GoldenTd.Gpa));
        Assert.Equal(Errno.None, _td.Run(0, first));
        Assert.Equal([0UL, 0x1234UL], first.Values);
        Assert.Equal(Errno.None, _td.Vm.Memory.SetAttributes(_td.Host, GoldenTd.Gpa, 0x1000, 0));

        ScriptedGuest second = _td.Script(GuestStep.Read(Shared), GuestStep.Write(Shared, 0x5678));
        Assert.Equal(Errno.None, _td.Run(0, second));
        Assert.Equal([0UL], second.Values);
        ulong flushes = _td.Vcpu(0).Statistics.TlbFlushes is var f ? (ulong)f : 0;

        _td.Recorder.Clear();
        Assert.Equal(Errno.None, _td.Vm.Memory.SetAttributes(_td.Host, GoldenTd.Gpa, 0x1000, MemoryAttributes.Private));
        Assert.Empty(_td.Recorder.Memory);
        Assert.Equal(0x8000_0000_0000_0000UL, _td.Entry(_td.Direct, Shared >> 12, Level.K4)!.Value.Value);
        Assert.False(_td.Vm.SlotsOf(0).Active.ById(0)!.Mmu.IsMixed(GoldenTd.Gfn, Level.M2));

        // Without an accept the guest takes #VE, accepts, and finds zeroes.
        ScriptedGuest third = _td.Script(GuestStep.Read(GoldenTd.Gpa));
        Assert.Equal(Errno.None, _td.Run(0, third));
        Assert.Equal([(TdhLeaf.MEM_PAGE_AUG, GoldenTd.Gpa)], _td.Recorder.Memory.Select(c => (c.Leaf, c.Rcx)));
        Assert.Single(third.Events);
        Assert.Equal(20, third.Events[0].Vector);
        Assert.Equal([0UL], third.Values);
        Assert.True((ulong)_td.Vcpu(0).Statistics.TlbFlushes > flushes);
        _td.TearDown();
    }
}
