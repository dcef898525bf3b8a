using Tdp.Module;
using Tdp.Platform;
using Tdp.Tests.Unit.Seam.Checklist;

namespace Tdp.Tests.Unit.Seam;

/// <summary>The offered pages of SEPT.ADD: what version 1 gives back, and when none is offered (tdx-module 5.7).</summary>
public sealed class SeptAddTests
{
    private const ulong NotTaken = 1UL << 63;
    private const ulong None = ulong.MaxValue;
    private const ulong Table = Steps.Gpa | 1;

    [Fact]
    public void A_mark_from_an_earlier_call_on_the_offered_page_is_ignored()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        Hpa page = rig.Page();
        rig.Must(TdhLeaf.MEM_SEPT_ADD, Table, rig.Tdr.Value, page.Value | NotTaken);
        Assert.Equal(page, rig.Entry(Steps.Gpa, Level.M2).Hpa);
    }

    [Fact]
    public void Version_1_marks_the_page_it_did_not_take_and_clears_the_one_it_took()
    {
        using ModuleRig rig = Steps.Running(lowestTable: 2);
        SeamRegisters taken = Offer(rig, rig.Page().Value | NotTaken, allowExisting: false);
        Assert.Equal((TdxStatus.SUCCESS, None, None, None, None), (taken.Status, taken.R8, taken.R9, taken.R10, taken.R11));
        Hpa spare = rig.Page();
        SeamRegisters left = Offer(rig, spare.Value, allowExisting: true);
        Assert.Equal((TdxStatus.SUCCESS, spare.Value | NotTaken), (left.Status, left.R8));
    }

    [Fact]
    public void Version_1_gives_the_offered_page_back_on_every_failure()
    {
        using ModuleRig rig = Steps.Running();
        Hpa spare = rig.Page();
        SeamRegisters refused = Offer(rig, spare.Value | NotTaken, allowExisting: false);
        Assert.Equal((TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, spare.Value), (refused.Status, refused.R8));
        SeamRegisters badFlags = rig.Raw(0, SeamRegisters.Call(TdhLeaf.MEM_SEPT_ADD, Table, rig.Tdr.Value | 2, spare.Value | NotTaken, 0, 1));
        Assert.Equal((TdxStatus.OPERAND_INVALID | OperandId.RDX, spare.Value), (badFlags.Status, badFlags.R8));
    }

    [Fact]
    public void No_page_is_an_invalid_operand_of_version_0_whether_or_not_there_is_a_table()
    {
        foreach (int lowest in (int[])[1, 2])
        {
            using ModuleRig rig = Steps.Running(lowestTable: lowest);
            Assert.Equal(TdxStatus.OPERAND_INVALID | OperandId.R8, rig.Call(TdhLeaf.MEM_SEPT_ADD, Table, rig.Tdr.Value, None));
            Assert.Equal(lowest == 1 ? TdxStatus.SUCCESS : TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX, Offer(rig, None, allowExisting: false).Status);
        }
    }

    private static SeamRegisters Offer(ModuleRig rig, ulong page, bool allowExisting)
    {
        SeamRegisters call = SeamRegisters.Call(TdhLeaf.MEM_SEPT_ADD, Table, rig.Tdr.Value | (allowExisting ? 1UL : 0), page, None, 1);
        call.R10 = call.R11 = None;
        return rig.Raw(0, call);
    }
}
