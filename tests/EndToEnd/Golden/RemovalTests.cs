using System.Linq;
using System.Threading;
using Tdp.Host;
using Tdp.Mmu;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.EndToEnd.Golden;

/// <summary>tdp-mmu 15.5 and 15.6: BUSY during a removal, and the deletion of the slot.</summary>
public sealed class RemovalTests : IDisposable
{
    private readonly GoldenTd _td = new();

    public void Dispose() => _td.Dispose();

    [Fact]
    [Trait("spec", "R19")]
    [Trait("spec", "I77")]
    public void Busy_block_is_repeated_once_with_every_vcpu_kept_out()
    {
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));

        // Its roots must be loaded before: loading them takes mmu_lock.
        Assert.Equal(Errno.None, _td.Run(1, _td.Script()));
        _td.Recorder.Clear();
        int blocks = 0;
        Actor? runner = null;
        int entersInWindow = -1;
        _td.Recorder.Busy = leaf => leaf == TdhLeaf.MEM_RANGE_BLOCK && blocks == 1 ? TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE : null;
        _td.Recorder.Before = (_, r) =>
        {
            if ((TdhLeaf)(ushort)r.Rax != TdhLeaf.MEM_RANGE_BLOCK)
                return;
            blocks++;
            Assert.Equal(blocks == 2, _td.Vm.WaitForSeptZap.Peek());
            if (blocks != 2)
                return;

            // A vCPU tries to enter while the flag is set: it must go round its loop without a single VP.ENTER.
            int before = _td.Recorder.Count(TdhLeaf.VP_ENTER);
            runner = _td.World.Machine.Actors.Create("runner");
            _td.World.Kernel.Processors.Unbind(_td.ActorOf(1));
            runner.Start(actor =>
            {
                _td.World.Kernel.Processors.Bind(actor, 1);
                _td.Vcpu(1).Run(actor, new GoldenTd.FromFirstStep(_td.Script(GuestStep.Read(GoldenTd.SharedBit | 0x1000_0000))));
                _td.World.Kernel.Processors.Unbind(actor);
            });
            SpinWait.SpinUntil(() => _td.Vcpu(1).Statistics.RefusedEntries > 10);
            entersInWindow = _td.Recorder.Count(TdhLeaf.VP_ENTER) - before;
        };

        Assert.Equal(Errno.None, _td.Vm.Memory.SetAttributes(_td.Host, GoldenTd.Gpa, 0x1000, 0));
        runner!.Join();
        Assert.Equal(0, entersInWindow);
        Assert.False(_td.Vm.WaitForSeptZap.Peek());
        Assert.Equal(
            [0x8000_0200_0000_0092UL, 0UL],
            _td.Recorder.Calls.Where(c => c.Leaf == TdhLeaf.MEM_RANGE_BLOCK).Select(c => c.Status.Value));
        Assert.True(_td.Recorder.Count(TdhLeaf.VP_ENTER) > 0);
        Assert.False(_td.Vm.IsDead);
        _td.TearDown();
    }

    [Fact]
    [Trait("spec", "I29")]
    [Trait("spec", "I71")]
    public void A_second_busy_is_a_dead_vm_and_the_page_is_leaked_with_a_reason()
    {
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        _td.Recorder.Busy = leaf => leaf == TdhLeaf.MEM_RANGE_BLOCK ? TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE : null;
        Assert.Equal(Errno.EIO, _td.Vm.Memory.SetAttributes(_td.Host, GoldenTd.Gpa, 0x1000, 0));
        Assert.True(_td.Vm.IsDead);
        Assert.Contains(_td.World.Machine.Findings.All, f => f.Rule == "I29");
        Assert.Equal(Errno.EIO, _td.Run(0, _td.Script(GuestStep.Halt())));

        _td.Recorder.Busy = null;
        _td.Recorder.Before = null;
        _td.World.Kernel.Processors.Unbind(_td.ActorOf(0));
        _td.World.Kernel.Processors.Unbind(_td.ActorOf(1));
        Hpa tdr = _td.Vm.Td!.Tdr;
        _td.Vm.Destroy(_td.Host);

        // The page, and the TDR, which cannot go while the module counts a page of it.
        Assert.Equal(
            [(GoldenTd.Frame.Frame, "the TDX module did not give it back"), (tdr.Frame, "TDR: TDX_TD_ASSOCIATED_PAGES_EXIST")],
            _td.World.Machine.Ledger.Leaks.Select(l => (l.Frame, l.Reason)));
        Assert.Empty(_td.World.Kernel.Audit(isAfterTeardown: true).Disagreements);
    }

    [Fact]
    [Trait("spec", "I61")]
    public void Deleting_the_slot_removes_every_private_page_by_itself_and_flushes_once()
    {
        ulong[] pages = [GoldenTd.Gpa, GoldenTd.Gpa + 0x1000, 0x1_0000_0000, 0x1_7FFF_F000];
        foreach (ulong gpa in pages)
            Assert.Equal(FaultResult.Fixed, _td.Fault(0, gpa, GoldenTd.PrivateWrite));
        const ulong SharedPage = 0x1_5000_0000;
        Assert.Equal(Errno.None, _td.Vm.Memory.SetAttributes(_td.Host, SharedPage, 0x2000, 0));
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.SharedBit | SharedPage, PfErr.Write));
        Assert.Equal(FaultResult.Fixed, _td.Fault(1, GoldenTd.SharedBit | (SharedPage + 0x1000), PfErr.Write));
        long tables = _td.Statistics[MmuCounter.Tables];
        long flushes = _td.Statistics[MmuCounter.FlushAll] + _td.Statistics[MmuCounter.FlushRange];
        long waits = _td.Vm.Glue![TdxGlue.GlueCounter.Tracks];
        _td.Recorder.Clear();

        Assert.Equal(Errno.None, _td.Vm.Memory.SetUserMemoryRegion(_td.Host, _td.Region with { MemorySize = 0, Flags = MemslotFlags.None, Memfd = null }));

        Assert.Equal(pages.Length, _td.Recorder.Count(TdhLeaf.MEM_TRACK));
        Assert.Equal(pages.Length, _td.Vm.Glue[TdxGlue.GlueCounter.Tracks] - waits);
        TdhLeaf[] each = [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_REMOVE, TdhLeaf.PHYMEM_PAGE_WBINVD];
        Assert.Equal(pages.SelectMany(_ => each), _td.Recorder.Memory.Select(c => c.Leaf));
        Assert.Equal(pages.Order(), _td.Recorder.Calls.Where(c => c.Leaf == TdhLeaf.MEM_PAGE_REMOVE).Select(c => c.Rcx));
        Assert.Equal(0, _td.Statistics.Pages(Level.K4));
        Assert.Equal(tables, _td.Statistics[MmuCounter.Tables]);
        Assert.Equal(1, _td.Statistics[MmuCounter.FlushAll] + _td.Statistics[MmuCounter.FlushRange] - flushes);
        Assert.Null(_td.Vm.SlotsOf(0).Active.ById(0));

        // The file's range is free for another slot.
        Assert.Equal(Errno.None, _td.Vm.Memory.SetUserMemoryRegion(_td.Host, _td.Region));
        _td.TearDown();
    }
}
