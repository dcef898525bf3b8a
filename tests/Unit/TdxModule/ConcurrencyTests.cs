using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Seam;

/// <summary>Leaves on several processors at once: nothing waits, losers get the right operand, and books and locks are right afterwards.</summary>
public sealed class ConcurrencyTests
{
    private const ulong Gpa = 0x4000_0000;
    private const int PagesEach = 96;

    [Fact]
    [Trait("spec", "TC47")]
    public void A_tree_user_during_a_block_and_a_block_during_tree_use_are_busy_with_the_tree()
    {
        using ModuleRig rig = new();
        rig.BuildTd();
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        rig.Aug(Gpa);
        TdxStatus busy = TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE;
        InjectedLock alone = rig.Module.TryHold(ModuleLock.SeptTree, true, rig.Tdr)!.Value;
        Assert.Equal(busy, rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa + 0x1000, rig.Tdr.Value, rig.Page().Value));
        rig.Module.Release(alone);
        InjectedLock beside = rig.Module.TryHold(ModuleLock.SeptTree, false, rig.Tdr)!.Value;
        rig.Aug(Gpa + 0x1000);
        Assert.Equal(busy, rig.Call(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value));
        rig.Module.Release(beside);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa, rig.Tdr.Value);
    }

    [Fact]
    [Trait("spec", "TM01")]
    [Trait("spec", "TM02")]
    [Trait("spec", "TM05")]
    [Trait("spec", "TM06")]
    public void Processors_that_add_block_track_and_remove_at_once_leave_exact_books_and_no_lock()
    {
        using ModuleRig rig = new();
        rig.BuildTd(vcpus: 2);
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        long before = rig.Module.Td(rig.Tdr)!.ChildCount;
        Hpa[][] pages = new Hpa[3][];
        for (int p = 0; p < pages.Length; p++)
        {
            pages[p] = new Hpa[PagesEach];
            for (int i = 0; i < PagesEach; i++)
                pages[p][i] = rig.Page();
        }

        List<Actor> actors = [];
        for (int p = 0; p < pages.Length; p++)
        {
            int own = p;
            Actor actor = rig.Machine.Actors.Create($"zapper{p}");
            actors.Add(actor);
            actor.Start(_ => Churn(rig, rig.Lp(own), pages[own], Gpa + ((ulong)(own * PagesEach) << 12)));
        }

        foreach (Actor actor in actors)
            actor.Join();
        TdView td = rig.Module.Td(rig.Tdr)!;
        int mapped = 0;
        rig.Module.ForEachSeptEntry(rig.Tdr, (in SeptView entry) =>
        {
            Assert.Equal(0UL, entry.Raw & (1UL << 11));
            if (entry.Level == Level.K4)
            {
                mapped++;
                PamtView page = rig.Module.Pamt(entry.Hpa)!.Value;
                Assert.Equal((PageType.REG, rig.Tdr, 0), (page.Type, page.Owner, page.LockBits & 0x7FFF));
            }
        });
        Assert.Equal(before + mapped, td.ChildCount);
        Assert.Equal(3 * PagesEach / 2, mapped);
        Assert.Equal(0u, td.RefCount0 + td.RefCount1);
        foreach (LeafCount count in rig.Module.Counts())
            Assert.True(!count.Status.IsError || count.Status.IsBusy || count.Status == TdxStatus.PREVIOUS_TLB_EPOCH_BUSY || count.Status.Class == TdxStatus.TLB_TRACKING_NOT_DONE || count.Status.Class == TdxStatus.EPT_ENTRY_STATE_INCORRECT, $"{count.Leaf}: {count.Status}");
    }

    [Fact]
    [Trait("spec", "TM10")]
    public void Of_processors_that_want_one_page_exactly_one_gets_it()
    {
        using ModuleRig rig = new();
        rig.BuildTd(vcpus: 1);
        rig.AddTables(Gpa);
        const int rounds = 400;
        Hpa[] pages = new Hpa[rounds];
        for (int i = 0; i < rounds; i++)
            pages[i] = rig.Page();
        int[] won = new int[2];
        List<Actor> actors = [];
        for (int p = 0; p < 2; p++)
        {
            int own = p;
            Actor actor = rig.Machine.Actors.Create($"rival{p}");
            actors.Add(actor);
            actor.Start(_ =>
            {
                for (int i = 0; i < rounds && i < 256; i++)
                {
                    TdxStatus status;
                    do
                        status = rig.Module.MemPageAug(rig.Lp(own), Gpa + ((ulong)((own * 256) + i) << 12), rig.Tdr, pages[i], out ulong _, out ulong _);
                    while (status.IsBusy);
                    if (status.IsSuccess)
                        won[own]++;
                    else if (status != (TdxStatus.PAGE_METADATA_INCORRECT | OperandId.R8))
                        throw new InvalidOperationException(status.ToString());
                }
            });
        }

        foreach (Actor actor in actors)
            actor.Join();
        Assert.Equal(256, won[0] + won[1]);
    }

    // Every second page is taken away again by the whole protocol; busy answers are retried, as nothing ever waits inside the module.
    private static void Churn(ModuleRig rig, LogicalProcessor lp, Hpa[] pages, ulong gpa)
    {
        for (int round = 0; round < 20; round++)
        {
            for (int i = 0; i < pages.Length; i++)
            {
                ulong at = gpa + ((ulong)i << 12);
                if (i % 2 == 0 || round == 0)
                    Retry(() => rig.Module.MemPageAug(lp, at, rig.Tdr, pages[i], out _, out _));
                if (i % 2 != 0)
                    continue;
                Retry(() => rig.Module.MemRangeBlock(lp, at, rig.Tdr, out _, out _));
                TdxStatus status;
                do
                {
                    Retry(() => rig.Module.MemTrack(lp, rig.Tdr));
                    status = rig.Module.MemPageRemove(lp, at, rig.Tdr, out _, out _);
                }
                while (status.IsBusy || status.Class == TdxStatus.TLB_TRACKING_NOT_DONE);
                if (status.IsError)
                    throw new InvalidOperationException(status.ToString());
            }
        }
    }

    private static void Retry(Func<TdxStatus> call)
    {
        TdxStatus status;
        do
            status = call();
        while (status.IsBusy);
        if (status.IsError)
            throw new InvalidOperationException(status.ToString());
    }
}
