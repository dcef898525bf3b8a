using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>The host-priority bit of an entry and the time-out that a guest meets when it keeps losing to it (tdx-module 7.2, 7.5).</summary>
public sealed class HostPriorityTests
{
    private const ulong Timeout = 0x9110_0003_0000_0011;
    private static readonly TdxStatus s_busy = Statuses.Parse("OPERAND_BUSY|RCX");

    [Fact]
    [Trait("spec", "TC46")]
    public void The_bit_is_set_by_a_host_that_loses_obeyed_by_the_guest_and_cleared_by_a_host_that_wins()
    {
        using SeptScene scene = Lost();
        Assert.True(IsSet(scene));
        scene.EnterGuest();
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ATTR_RD, scene.Gpa));
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ATTR_WR, scene.Gpa));
        Assert.True(IsSet(scene));
        scene.Rig.Must(TdhLeaf.MEM_SEPT_RD, scene.Operand, scene.Tdr, lp: 1);
        Assert.False(IsSet(scene));
        Assert.Equal(TdxStatus.SUCCESS, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
    }

    // Whichever host leaf gets the entry next, the bit is gone: also when the call then fails, and when it goes the short way.
    [Theory]
    [InlineData(TdhLeaf.MEM_PAGE_AUG, "EPT_ENTRY_STATE_INCORRECT|RCX")]
    [InlineData(TdhLeaf.MEM_RANGE_BLOCK, "SUCCESS")]
    [InlineData(TdhLeaf.MEM_RANGE_UNBLOCK, "EPT_ENTRY_STATE_INCORRECT|RCX")]
    [InlineData(TdhLeaf.MEM_PAGE_REMOVE, "GPA_RANGE_NOT_BLOCKED|RCX")]
    [InlineData(TdhLeaf.MEM_PAGE_RELOCATE, "GPA_RANGE_NOT_BLOCKED|RCX")]
    [InlineData(TdhLeaf.MEM_SEPT_RD, "SUCCESS")]
    public void Every_host_leaf_that_has_the_entry_clears_the_bit(TdhLeaf leaf, string answer)
    {
        using SeptScene scene = Lost();
        Assert.Equal(Statuses.Parse(answer), scene.Rig.Call(leaf, scene.Operand, scene.Tdr, scene.Rig.Page().Value));
        Assert.False(IsSet(scene));
        Assert.Empty(scene.Broken());
    }

    [Fact]
    public void A_walk_that_only_passes_an_entry_leaves_its_bit_alone()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.NL_MAPPED, 1, SceneMode.Untracked, SceneChildren.One));
        Lose(scene, scene.Gpa, Level.M2);
        scene.Rig.Must(TdhLeaf.MEM_SEPT_RD, scene.Gpa, scene.Tdr);
        scene.EnterGuest();
        Assert.Equal(TdxStatus.SUCCESS, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
        Assert.True(IsSet(scene));
    }

    [Fact]
    public void The_time_out_counts_from_the_first_refusal_of_a_series_and_any_other_answer_ends_the_series()
    {
        using SeptScene scene = Lost();
        Vmcs vmcs = scene.EnterGuest();
        LogicalProcessor lp = scene.Rig.Lp(0);
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
        lp.Spend(999_000_000);
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
        Assert.Equal(TdxStatus.SUCCESS, scene.Rig.Tdcall(0, TdgLeaf.VP_INFO));
        lp.Spend(999_000_000);
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
        lp.Spend(1_000_000_000);
        SeamRegisters exit = TimedOut(scene, vmcs, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa);
        Assert.Equal((0x9000_0205_0000_0000UL, 0UL, 0UL, 0UL), (exit.Rax, exit.Rcx, exit.Rdx, exit.R8));
        Assert.Equal(TdExitKind.ASYNC_TRAP, scene.Snapshot().Vcpus[scene.Rig.Vcpus[0].Value].LastExit);
        Assert.True(IsSet(scene));
    }

    // A plain competitor is no series: the guest may be refused for ever.
    [Fact]
    public void An_entry_that_is_merely_locked_never_times_out()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.PENDING, 0, SceneMode.Untracked));
        scene.EnterGuest();
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.SeptEntry, true, scene.Rig.Tdr, new Gpa(scene.Gpa), Level.K4)!.Value;
        for (int i = 0; i < 5; i++)
        {
            Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
            scene.Rig.Lp(0).Spend(2_000_000_000);
        }

        Assert.False(IsSet(scene));
        scene.Rig.Module.Release(held);
        Assert.Equal(TdxStatus.SUCCESS, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
    }

    [Fact]
    public void The_host_sets_the_time_within_its_limits()
    {
        using SeptScene scene = Lost();
        foreach (ulong refused in (ulong[])[0, 9_999, 100_000_001, ulong.MaxValue])
            Assert.Equal(TdxStatus.METADATA_FIELD_VALUE_NOT_VALID, scene.Rig.Raw(0, SeamRegisters.Call(TdhLeaf.MNG_WR, scene.Tdr, Timeout, refused, ulong.MaxValue)).Status);
        Assert.Equal(1_000_000UL, scene.Rig.Must(TdhLeaf.MNG_RD, scene.Tdr, Timeout).R8);
        Assert.Equal(1_000_000UL, scene.Rig.Must(TdhLeaf.MNG_WR, scene.Tdr, Timeout, 10_000, ulong.MaxValue).R8);
        Vmcs vmcs = scene.EnterGuest();
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
        scene.Rig.Lp(0).Spend(9_000_000);
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
        scene.Rig.Lp(0).Spend(1_000_000);
        TimedOut(scene, vmcs, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa);
    }

    // Also a lock that is not of an entry: RTMR.EXTEND against a host that lost the measurement registers.
    [Fact]
    public void Another_lock_with_host_priority_belongs_to_the_same_series()
    {
        using SeptScene scene = new(new SceneSetup(SeptState.MAPPED, 0, SceneMode.Untracked));
        Vmcs vmcs = scene.EnterGuest();
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.Rtmr, true, scene.Rig.Tdr)!.Value;
        Assert.Null(scene.Rig.Module.TryHold(ModuleLock.Rtmr, true, scene.Rig.Tdr));
        scene.Rig.Module.Release(held);
        TdxStatus busy = Statuses.Parse("OPERAND_BUSY|RTMR");
        Assert.Equal(busy, scene.Rig.Tdcall(0, TdgLeaf.MR_RTMR_EXTEND, scene.Gpa));
        Lose(scene, scene.Gpa, Level.K4);
        scene.Rig.Lp(0).Spend(500_000_000);
        Assert.Equal(s_busy, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
        scene.Rig.Lp(0).Spend(500_000_000);
        TimedOut(scene, vmcs, TdgLeaf.MR_RTMR_EXTEND, scene.Gpa);
    }

    private static SeamRegisters TimedOut(SeptScene scene, Vmcs vmcs, TdgLeaf leaf, ulong gpa)
    {
        ulong rip = vmcs.State.Rip;
        vmcs.State[Gpr.Rax] = (ulong)leaf;
        vmcs.State[Gpr.Rcx] = gpa;
        SeamRegisters exit = scene.Rig.Exit(0, new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 });
        Assert.Equal(0x9000_0205UL, exit.Rax >> 32);
        Assert.Equal(rip + 4, vmcs.State.Rip);
        Assert.Equal(0x8000_0200UL, vmcs.State[Gpr.Rax] >> 32);
        return exit;
    }

    private static SeptScene Lost()
    {
        SeptScene scene = new(new SceneSetup(SeptState.PENDING, 0, SceneMode.Untracked));
        Lose(scene, scene.Gpa, Level.K4);
        return scene;
    }

    private static void Lose(SeptScene scene, ulong gpa, Level level)
    {
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.SeptEntry, true, scene.Rig.Tdr, new Gpa(gpa), level)!.Value;
        Assert.Equal(s_busy, scene.Rig.Call(TdhLeaf.MEM_SEPT_RD, gpa | (uint)(level.Value - 1), scene.Tdr, lp: 1));
        scene.Rig.Module.Release(held);
    }

    private static bool IsSet(SeptScene scene) =>
        (scene.Rig.Module.FindSeptEntry(scene.Rig.Tdr, new Gpa(scene.Gpa), scene.EntryLevel).Raw & SeptFormat.HostPriority) != 0;
}
