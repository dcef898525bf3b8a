using Tdp.Harness.Invariants;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam;

/// <summary>Each invariant of the module is broken by hand and seen to fire, under its own number; on a module that nobody broke none does.</summary>
public sealed class ModuleInvariantTests
{
    private const ulong Gpa = 0x4000_0000;

    [Fact]
    [Trait("spec", "TM01")]
    [Trait("spec", "TM02")]
    [Trait("spec", "TM03")]
    [Trait("spec", "TM04")]
    [Trait("spec", "TM05")]
    [Trait("spec", "TM06")]
    public void A_TD_in_every_phase_of_its_life_breaks_no_invariant()
    {
        using ModuleRig rig = new();
        Clean(rig);
        rig.BuildTd(vcpus: 2);
        rig.AddTables(Gpa);
        Clean(rig);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        rig.Aug(Gpa);
        rig.AddTables(Gpa + 0x4000_0000, lowest: 2);
        rig.Aug(Gpa + 0x4000_0000, 1);
        rig.EnterTd(0);
        rig.EnterTd(1);
        rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa);
        Touch(rig, 0, Gpa);
        Clean(rig);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa | 1, rig.Tdr.Value, lp: 2);
        rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value, lp: 2);
        Clean(rig);
        rig.Interrupt(0);
        rig.Interrupt(1);
        Clean(rig);
        for (int i = 0; i < 2; i++)
            rig.Must(TdhLeaf.VP_FLUSH, rig.Vcpus[i].Value, lp: i);
        rig.Must(TdhLeaf.MNG_VPFLUSHDONE, rig.Tdr.Value);
        Clean(rig);
        rig.OnEachPackage(lp => rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: lp));
        rig.Must(TdhLeaf.MNG_KEY_FREEID, rig.Tdr.Value);
        rig.Must(TdhLeaf.PHYMEM_PAGE_RECLAIM, rig.Vcpus[1].Value);
        Clean(rig);
    }

    [Fact]
    [Trait("spec", "TM01")]
    public void A_page_that_changes_its_owner_behind_the_module_breaks_TM01()
    {
        using ModuleRig rig = Running();
        Hpa page = rig.Aug(Gpa);
        ref ulong word = ref PamtWord(rig, page);
        word = (word & 0xFF_FFFF) | ((rig.Tdr.Frame + 1) << 24);
        Assert.Contains("TM01", Rules(rig));
    }

    [Fact]
    [Trait("spec", "TM01")]
    public void A_page_that_the_ledger_gives_to_somebody_else_breaks_TM01()
    {
        using ModuleRig rig = Running();
        rig.Machine.Ledger.FromModule(rig.Aug(Gpa));
        Assert.Equal(["TM01"], Rules(rig));
    }

    [Fact]
    [Trait("spec", "TM02")]
    public void Two_leaves_on_one_page_and_a_leaf_of_the_wrong_size_break_TM02()
    {
        using ModuleRig rig = Running();
        Hpa page = rig.Aug(Gpa);
        Entry(rig, Gpa + 0x1000) = Entry(rig, Gpa);
        Assert.Equal(["TM02"], Rules(rig));

        using ModuleRig other = Running();
        other.Aug(Gpa);
        Hpa free = other.Page();
        Entry(other, Gpa) = (Entry(other, Gpa) & ~0x000F_FFFF_FFFF_F000UL) | free.Value;

        // The entry points to a page that is not the TD's, and the TD's page is forgotten.
        Assert.Equal(2, Findings(other).Count(finding => finding.Rule == "TM02"));
        Assert.NotEqual(page, free);
    }

    [Fact]
    [Trait("spec", "TM03")]
    public void A_table_entry_that_points_to_no_Secure_EPT_page_breaks_TM03()
    {
        using ModuleRig rig = Running();
        Hpa page = rig.Aug(Gpa);
        ulong table = Entry(rig, Gpa, Level.M2);
        Entry(rig, Gpa + 0x20_0000, Level.M2) = table;
        Assert.Contains("TM03", Rules(rig));
        Entry(rig, Gpa + 0x20_0000, Level.M2) = (table & ~0x000F_FFFF_FFFF_F000UL) | page.Value;
        Assert.Contains("TM03", Rules(rig));
    }

    [Fact]
    [Trait("spec", "TM04")]
    public void A_translation_that_survives_the_removal_of_its_page_breaks_TM04_while_its_processor_is_in_the_guest()
    {
        using ModuleRig rig = Running();
        rig.Aug(Gpa);
        rig.EnterTd(0);
        rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa);
        Touch(rig, 0, Gpa);
        rig.Must(TdhLeaf.MEM_RANGE_BLOCK, Gpa | 1, rig.Tdr.Value, lp: 1);
        Clean(rig);
        Hpa table = new(Entry(rig, Gpa, Level.M2) & 0x000F_FFFF_FFFF_F000);
        ulong blocked = rig.Machine.Memory.Entry(table, 0).Read();

        // Pending again: removed and augmented in between.
        rig.Machine.Memory.Entry(table, 0).Write((blocked & ~(7UL | (1UL << 55))) | (1UL << 56));
        Assert.Contains("TM04", Rules(rig));
        rig.Machine.Memory.Entry(table, 0).Write(0x80E0_0000_0000_0000);
        Assert.Contains("TM04", Rules(rig));
        rig.Interrupt(0);
        Assert.DoesNotContain("TM04", Rules(rig));
    }

    [Theory]
    [InlineData(0, 2, 1, 2, true)]
    [InlineData(1, 1, 1, 2, true)]
    [InlineData(0, 1, 1, 3, true)]
    [InlineData(0, 1, 1, 2, false)]
    [InlineData(0, 1, 1, 1, false)]
    [Trait("spec", "TM05")]
    public void Counts_that_are_not_those_of_the_vCPUs_inside_and_a_vCPU_two_epochs_behind_break_TM05(uint even, uint odd, ulong vcpuEpoch, ulong tdEpoch, bool broken)
    {
        using ModuleRig rig = Running();
        rig.EnterTd(0);
        TdView td = rig.Module.Td(rig.Tdr)! with { RefCount0 = even, RefCount1 = odd, Epoch = tdEpoch };
        VcpuView[] vcpus = [Assert.Single(rig.Module.Vcpus()) with { Epoch = vcpuEpoch }];
        FindingLog findings = new();
        ModuleInvariants.CheckEpochs(td, vcpus, findings);
        Assert.Equal(broken, findings.Count != 0);
        Assert.All(findings.All, finding => Assert.Equal("TM05", finding.Rule));
    }

    [Theory]
    [InlineData(ModuleLock.Page, true)]
    [InlineData(ModuleLock.Page, false)]
    [InlineData(ModuleLock.SeptTree, true)]
    [InlineData(ModuleLock.SeptTree, false)]
    [InlineData(ModuleLock.Epoch, false)]
    [InlineData(ModuleLock.OpState, true)]
    [InlineData(ModuleLock.Kot, false)]
    [InlineData(ModuleLock.SeptEntry, true)]
    [InlineData(ModuleLock.Rtmr, true)]
    [InlineData(ModuleLock.System, true)]
    [InlineData(ModuleLock.Tdmr, true)]
    [InlineData(ModuleLock.WriteBack, true)]
    [Trait("spec", "TM06")]
    public void A_lock_that_stays_held_breaks_TM06(ModuleLock kind, bool exclusive)
    {
        using ModuleRig rig = Running();
        Hpa page = rig.Aug(Gpa);
        Hpa where = kind switch
        {
            ModuleLock.Page or ModuleLock.Tdmr => page,
            ModuleLock.WriteBack => default,
            _ => rig.Tdr,
        };
        InjectedLock held = rig.Module.TryHold(kind, exclusive, where, new Gpa(Gpa), Level.K4)!.Value;
        Assert.Equal(["TM06"], Rules(rig));
        rig.Module.Release(held);
        Clean(rig);
    }

    internal static ModuleRig Running(BehaviourProfile? profile = null)
    {
        ModuleRig rig = new(profile);
        rig.BuildTd();
        rig.AddTables(Gpa);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        return rig;
    }

    private static void Touch(ModuleRig rig, int lp, ulong gpa) =>
        Assert.True(GuestPhysical.TryTranslate(rig.Machine, rig.Lp(lp), rig.Module.CurrentVmcs(rig.Lp(lp))!, gpa, AccessKind.Write, out _));

    private static void Clean(ModuleRig rig) => Assert.Empty(Findings(rig));

    private static string[] Rules(ModuleRig rig) => [.. Findings(rig).Select(finding => finding.Rule).Distinct()];

    private static IReadOnlyList<Finding> Findings(ModuleRig rig)
    {
        FindingLog findings = new();
        ModuleInvariants.Check(rig.Module, findings);
        return findings.All;
    }

    private static ref ulong PamtWord(ModuleRig rig, Hpa page)
    {
        TdmrDescription tdmr = rig.Machine.Description.Tdmrs[0];
        return ref rig.Machine.Memory.Word(tdmr.Pamt4K.Base + (((page.Value - tdmr.Range.Base) >> 12) * 16));
    }

    private static ref ulong Entry(ModuleRig rig, ulong gpa, Level? level = null)
    {
        Level at = level ?? Level.K4;
        ulong table = rig.Module.Td(rig.Tdr)!.Eptp & 0x000F_FFFF_FFFF_F000;
        for (Level l = rig.Module.Td(rig.Tdr)!.RootLevel; ; l = l.Down)
        {
            ref ulong entry = ref rig.Machine.Memory.Word(table + ((ulong)l.IndexOf(gpa >> 12) << 3));
            if (l == at)
                return ref entry;
            table = entry & 0x000F_FFFF_FFFF_F000;
        }
    }
}
