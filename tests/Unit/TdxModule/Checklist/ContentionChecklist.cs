using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>Lines 46 to 48: who loses when two want one thing (tdx-module 7).</summary>
public sealed class ContentionChecklist
{
    private const ulong Gpa = Steps.Gpa;
    private const ulong HostPriority = 1UL << 52;
    private static readonly TdxStatus s_busy = TdxStatus.OPERAND_BUSY | OperandId.RCX;

    [Fact]
    [Trait("spec", "TC46")]
    public void TC46_A_host_that_found_an_accept_in_its_way_comes_first_next_time()
    {
        using ModuleRig rig = Steps.Running();
        rig.Aug(Gpa);
        rig.EnterTd(0);

        // The accept of another vCPU has the entry.
        InjectedLock accept = rig.Module.TryHold(ModuleLock.SeptEntry, true, rig.Tdr, new Gpa(Gpa), Level.K4)!.Value;
        Assert.Equal(s_busy, rig.Call(TdhLeaf.MEM_SEPT_RD, Gpa, rig.Tdr.Value, lp: 1));
        Assert.Equal(HostPriority, rig.Word(Gpa) & HostPriority);
        rig.Module.Release(accept);
        Assert.Equal(s_busy, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        Assert.Equal(s_busy, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
        rig.Must(TdhLeaf.MEM_SEPT_RD, Gpa, rig.Tdr.Value, lp: 1);
        Assert.Equal(0UL, rig.Word(Gpa) & HostPriority);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa));
    }

    [Fact]
    [Trait("spec", "TC47")]
    public void TC47_Neighbouring_entries_are_augmented_at_once_and_nothing_is_during_a_block()
    {
        using ModuleRig rig = Steps.Running();
        const int each = 128;
        ulong[] pages = [.. Enumerable.Range(0, 2 * each).Select(_ => rig.Page().Value)];
        TdxStatus[] answers = new TdxStatus[2 * each];
        Actor[] actors = [.. Enumerable.Range(0, 2).Select(own =>
        {
            Actor actor = rig.Machine.Actors.Create($"augmenter{own}");
            actor.Start(_ =>
            {
                for (int i = own; i < answers.Length; i += 2)
                    answers[i] = rig.Module.MemPageAug(rig.Lp(own), Gpa + ((ulong)i << 12), rig.Tdr, new Hpa(pages[i]), out ulong _, out ulong _);
            });
            return actor;
        })];
        foreach (Actor actor in actors)
            actor.Join();
        Assert.All(answers, answer => Assert.Equal(TdxStatus.SUCCESS, answer));

        InjectedLock block = rig.Module.TryHold(ModuleLock.SeptTree, true, rig.Tdr)!.Value;
        Assert.Equal(TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa + 0x10_0000, rig.Tdr.Value, rig.Page().Value));
        rig.Module.Release(block);
        rig.Aug(Gpa + 0x10_0000);
    }

    [Fact]
    [Trait("spec", "TC48")]
    public void TC48_A_running_vCPU_holds_its_TD_against_who_wants_it_alone()
    {
        using ModuleRig rig = Steps.Running();
        ulong tdr = rig.Tdr.Value;
        ulong parameters = rig.Parameters().Value;
        rig.EnterTd(0);
        TdxStatus busyRdx = TdxStatus.OPERAND_BUSY | OperandId.RDX;
        Assert.Equal(busyRdx, rig.Call(TdhLeaf.MEM_PAGE_ADD, Gpa, tdr, rig.Page().Value, rig.Page().Value, lp: 1));
        Assert.Equal(busyRdx, rig.Call(TdhLeaf.MR_EXTEND, Gpa, tdr, lp: 1));
        Assert.Equal(s_busy, rig.Call(TdhLeaf.MNG_INIT, tdr, parameters, lp: 1));
        Assert.Equal(s_busy, rig.Call(TdhLeaf.MNG_VPFLUSHDONE, tdr, lp: 1));
        rig.Must(TdhLeaf.MNG_RD, tdr, 0x9010000200000001, lp: 1);
        rig.Interrupt(0);
        Assert.Equal(TdxStatus.OP_STATE_INCORRECT, rig.Call(TdhLeaf.MR_EXTEND, Gpa, tdr, lp: 1));
    }
}
