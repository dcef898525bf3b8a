using System.Linq;
using Tdp.Host;
using Tdp.Mmu;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.EndToEnd.Golden;

/// <summary>tdp-mmu 15.1 and 15.2: the first private touch of a page, alone and in company.</summary>
public sealed class FirstTouchTests : IDisposable
{
    private readonly GoldenTd _td = new();

    public void Dispose() => _td.Dispose();

    [Fact]
    [Trait("spec", "I23")]
    [Trait("spec", "I24")]
    public void First_touch_links_three_tables_and_maps_one_page_in_four_frozen_windows()
    {
        var frozen = new List<(TdhLeaf Leaf, ulong Value)>();
        _td.Recorder.Before = (_, r) =>
        {
            if ((TdhLeaf)(ushort)r.Rax is not (TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_PAGE_AUG))
                return;
            Level level = Level.FromTdx((int)(r.Rcx & 7));
            frozen.Add(((TdhLeaf)(ushort)r.Rax, _td.Entry(_td.Mirror, GoldenTd.Gfn.Value, level)!.Value.Value));
        };

        ScriptedGuest guest = _td.Script(GuestStep.Accept(GoldenTd.Gpa));
        Assert.Equal(Errno.None, _td.Run(0, guest));
        Assert.Equal(UserExit.ScriptEnd, _td.Vcpu(0).RunState.Exit);
        Assert.Equal([0UL], guest.Values);

        IReadOnlyList<Seamcall> calls = _td.Recorder.Memory;
        Assert.Equal(
            [
                (TdhLeaf.MEM_SEPT_ADD, 0x0000000000000003UL),
                (TdhLeaf.MEM_SEPT_ADD, 0x0000000100000002UL),
                (TdhLeaf.MEM_SEPT_ADD, 0x0000000123400001UL),
                (TdhLeaf.MEM_PAGE_AUG, 0x0000000123456000UL),
            ],
            calls.Select(c => (c.Leaf, c.Rcx)));
        Assert.All(calls, c => Assert.Equal(TdxStatus.SUCCESS, c.Status));
        Assert.All(calls, c => Assert.Equal(_td.Vm.Td!.Tdr.Value, c.Rdx));
        Assert.Equal(0x7abcd000UL, calls[3].R8);
        Assert.Equal(4, frozen.Count);
        Assert.All(frozen, f => Assert.Equal(0x8000_0000_0000_05A0UL, f.Value));

        foreach (Level level in new[] { Level.G512, Level.G1, Level.M2 })
        {
            Spte entry = _td.Entry(_td.Mirror, GoldenTd.Gfn.Value, level)!.Value;
            Assert.Equal(0x8000_0000_0000_0907UL, entry.Value & ~Spte.AddressMask);
            Assert.Equal(calls[4 - level.Value].R8, _td.Vm.Mmu.TableOf(entry).ExternalPage.Value);
        }

        Assert.Equal(0x8600_0000_7ABC_DB37UL, _td.Entry(_td.Mirror, GoldenTd.Gfn.Value, Level.K4)!.Value.Value);
        Assert.Equal(1, _td.Statistics.PfTaken);
        Assert.Equal(1, _td.Statistics[MmuCounter.PfFixed]);
        Assert.Equal(1, _td.Statistics.Pages(Level.K4));
        Assert.Equal(3, _td.Statistics[MmuCounter.Tables]);
        Assert.Equal(FrameUse.Module, _td.World.Machine.Ledger.UseOf(GoldenTd.Frame));
        _td.TearDown();
    }

    [Fact]
    [Trait("spec", "I35")]
    public void Accept_changes_the_secure_ept_and_leaves_the_mirror_alone()
    {
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        ulong before = _td.Entry(_td.Mirror, GoldenTd.Gfn.Value, Level.K4)!.Value.Value;
        Assert.Equal(SeptState.PENDING, _td.SeptState);
        Assert.Equal(Errno.None, _td.Run(0, _td.Script(GuestStep.Accept(GoldenTd.Gpa))));
        Assert.Equal(SeptState.MAPPED, _td.SeptState);
        Assert.Equal(before, _td.Entry(_td.Mirror, GoldenTd.Gfn.Value, Level.K4)!.Value.Value);
        _td.TearDown();
    }

    [Fact]
    [Trait("spec", "I30")]
    public void Busy_on_the_third_table_leaves_no_trace_and_the_retry_starts_there()
    {
        int adds = 0;
        _td.Recorder.Busy = leaf => leaf == TdhLeaf.MEM_SEPT_ADD && ++adds == 3 ? TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE : null;
        Assert.Equal(FaultResult.Retry, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        Assert.Equal(0x8000_0000_0000_0000UL, _td.Entry(_td.Mirror, GoldenTd.Gfn.Value, Level.M2)!.Value.Value);
        Assert.Equal(2, _td.Statistics[MmuCounter.Tables]);
        Assert.Equal(0, _td.Statistics.Pages(Level.K4));
        Assert.Equal(0x8000_0200_0000_0092UL, _td.Recorder.Memory[2].Status.Value);

        _td.Recorder.Clear();
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        Assert.Equal(
            [(TdhLeaf.MEM_SEPT_ADD, 0x123400001UL), (TdhLeaf.MEM_PAGE_AUG, 0x123456000UL)],
            _td.Recorder.Memory.Select(c => (c.Leaf, c.Rcx)));
        Assert.Equal(3, _td.Statistics[MmuCounter.Tables]);
        _td.TearDown();
    }

    [Fact]
    [Trait("spec", "I30")]
    public void Busy_inside_the_run_loop_is_retried_without_entering_the_guest()
    {
        int augs = 0;
        _td.Recorder.Busy = leaf => leaf == TdhLeaf.MEM_PAGE_AUG && ++augs <= 5 ? TdxStatus.OPERAND_BUSY | OperandId.RCX : null;
        Assert.Equal(Errno.None, _td.Run(0, _td.Script(GuestStep.Accept(GoldenTd.Gpa))));
        Assert.Equal(6, _td.Recorder.Count(TdhLeaf.MEM_PAGE_AUG));

        // One entry that faulted, one that repeated the accept.
        Assert.Equal(2, _td.Recorder.Count(TdhLeaf.VP_ENTER));
        Assert.Equal(5, _td.Vcpu(0).Statistics.LocalRetries);
        _td.TearDown();
    }

    [Fact]
    [Trait("spec", "R01")]
    [Trait("spec", "I52")]
    public void A_second_vcpu_that_meets_the_frozen_leaf_retries_without_any_call_and_then_finds_it()
    {
        FaultResult? met = null;
        long tables = 0;
        _td.Recorder.Before = (_, r) =>
        {
            if ((TdhLeaf)(ushort)r.Rax != TdhLeaf.MEM_PAGE_AUG || met is not null)
                return;
            int calls = _td.Recorder.Memory.Count;
            tables = _td.Statistics[MmuCounter.Tables];
            met = _td.Fault(1, GoldenTd.Gpa, GoldenTd.PrivateWrite);
            Assert.Equal(calls, _td.Recorder.Memory.Count);
            Assert.Equal(tables, _td.Statistics[MmuCounter.Tables]);
        };
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        Assert.Equal(FaultResult.Retry, met);
        Assert.Equal(FaultResult.Spurious, _td.Fault(1, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        Assert.Equal(1, _td.Recorder.Count(TdhLeaf.MEM_PAGE_AUG));
        _td.TearDown();
    }

    [Fact]
    [Trait("spec", "R03")]
    public void A_frozen_parent_stops_the_pages_below_it_and_no_others()
    {
        const ulong Sibling = 0x1_0000_0000, Elsewhere = 0x1_4000_0000;
        FaultResult? below = null, beside = null;
        _td.Recorder.Before = (_, r) =>
        {
            if ((TdhLeaf)(ushort)r.Rax != TdhLeaf.MEM_SEPT_ADD || r.Rcx != 0x100000002 || below is not null)
                return;
            below = _td.Fault(1, Sibling, GoldenTd.PrivateWrite);
            beside = _td.Fault(1, Elsewhere, GoldenTd.PrivateWrite);
        };
        Assert.Equal(FaultResult.Fixed, _td.Fault(0, GoldenTd.Gpa, GoldenTd.PrivateWrite));
        Assert.Equal(FaultResult.Retry, below);
        Assert.Equal(FaultResult.Fixed, beside);
        _td.TearDown();
    }
}
