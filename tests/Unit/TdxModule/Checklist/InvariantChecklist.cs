using Tdp.Harness.Invariants;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Tests.Unit.Host;
using Tdp.Tests.Unit.Seam.Sept;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>
/// The invariants of tdx-module 10.1 over lives without a plan. TM01 to TM05 are counted from what the host sees (PAGE.RDMD, MNG.RD) and from memory, which are
/// other sources than those of the harness's checkers; these must find nothing either.
/// </summary>
public sealed class InvariantChecklist
{
    private const int Moves = 3000;
    private const int Between = 40;
    private const ulong ChildCountField = 0x8010_0003_0000_0004;
    private const ulong EpochField = 0x9210_0003_0000_0000;
    private const ulong RefCountField = 0x9210_0001_0000_0001;
    private const ulong Address = 0x000F_FFFF_FFFF_F000;

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [Trait("spec", "TM01")]
    public void TM01_The_pages_of_a_TD_are_as_many_as_its_child_count(ulong seed) => Live(seed, life =>
    {
        ulong owned = 0;
        for (ulong page = life.Range.Base; page < life.Range.End; page += 4096)
        {
            // A free page still shows its last owner (quirk 11).
            SeamRegisters answer = life.Rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, page, lp: 3);
            owned += answer.Rcx != (ulong)PageType.NDA && answer.Rdx == life.Rig.Tdr.Value ? 1UL : 0;
        }

        Assert.Equal(life.Rig.Must(TdhLeaf.MNG_RD, life.Rig.Tdr.Value, ChildCountField, lp: 3).R8, owned);
    });

    [Theory]
    [InlineData(3)]
    [InlineData(4)]
    [Trait("spec", "TM02")]
    public void TM02_Every_leaf_points_to_a_page_of_its_own_and_no_page_is_left_over(ulong seed) => Live(seed, life =>
    {
        Dictionary<ulong, int> leaves = Linked(life, leaf: true);
        Assert.All(leaves, leaf => AssertPage(life, leaf.Key, PageType.REG, leaf.Value));
        Assert.Equal(leaves.Keys.Order(), Pages(life, PageType.REG).Order());
    });

    [Theory]
    [InlineData(5)]
    [InlineData(6)]
    [Trait("spec", "TM03")]
    public void TM03_Every_table_entry_points_to_a_table_of_its_own_and_no_table_is_left_over(ulong seed) => Live(seed, life =>
    {
        Dictionary<ulong, int> tables = Linked(life, leaf: false);
        Assert.All(tables.Keys, table => AssertPage(life, table, PageType.EPT, 0));
        Assert.Equal(tables.Keys.Order(), Pages(life, PageType.EPT).Order());
        AssertPage(life, life.Rig.Td().Eptp & Address, PageType.TDCX, 0);
    });

    [Theory]
    [InlineData(7)]
    [InlineData(8)]
    [Trait("spec", "TM04")]
    public void TM04_Who_is_inside_translates_to_nothing_that_was_removed(ulong seed)
    {
        int seen = 0;
        Live(seed, life =>
        {
            for (int vcpu = 0; vcpu < 2; vcpu++)
            {
                if (life.EnteredAt[vcpu] is null)
                    continue;
                life.Rig.Lp(vcpu).Tlb.ForEachLive(entry =>
                {
                    seen++;
                    SeamRegisters answer = life.Rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, entry.Frame, lp: 3);
                    Assert.Equal(((ulong)PageType.REG, life.Rig.Tdr.Value), (answer.Rcx, answer.Rdx));
                });
            }
        }, between: 1);
        Assert.True(seen > 100, $"only {seen} translations were looked at");
    }

    [Theory]
    [InlineData(9)]
    [InlineData(10)]
    [Trait("spec", "TM05")]
    public void TM05_The_epoch_counts_are_those_of_the_vCPUs_inside(ulong seed)
    {
        HashSet<uint> counts = [];
        Live(seed, life =>
        {
            ulong epoch = life.Rig.Must(TdhLeaf.MNG_RD, life.Rig.Tdr.Value, EpochField, lp: 3).R8;
            uint inside = (uint)life.EnteredAt.Count(entered => entered is not null);
            ulong counted = 0;
            for (ulong parity = 0; parity < 2; parity++)
            {
                ulong count = life.Rig.Must(TdhLeaf.MNG_RD, life.Rig.Tdr.Value, RefCountField + parity, lp: 3).R8;
                Assert.Equal((uint)life.EnteredAt.Count(entered => entered is { } at && (at & 1) == parity), count);
                counted += count;
            }

            Assert.Equal(inside, counted);
            Assert.DoesNotContain(life.EnteredAt, entered => entered + 1 < epoch);
            counts.Add(inside);
        }, between: 1);
        Assert.Equal(3, counts.Count);
    }

    [Theory]
    [InlineData(11)]
    [InlineData(12)]
    [Trait("spec", "TM06")]
    public void TM06_No_lock_stays_behind_a_call(ulong seed) => Live(seed, life => Assert.Empty(life.Rig.Module.StrayLocks(life.Range)), between: 1);

    [Theory]
    [InlineData(13)]
    [InlineData(14)]
    [Trait("spec", "TM07")]
    public void TM07_A_failed_call_changes_nothing(ulong seed)
    {
        ModuleLife life = ModuleLife.Begin(seed);
        using ModuleRig rig = life.Rig;
        FindingLog findings = new();
        rig.Module.Observer = new ModuleReferee(rig.Module, findings, life.Range);
        for (int i = 0; i < Moves / 2; i++)
            life.Step();
        Assert.Empty(findings.All);
        Assert.True(life.Failures > 100, $"only {life.Failures} calls failed");
    }

    [Fact]
    [Trait("spec", "TM08")]
    public void TM08_At_rest_the_mirror_and_the_Secure_EPT_agree()
    {
        using HostBed bed = HostBed.Td();
        GuestStep[] steps = [.. Enumerable.Range(0, 24).SelectMany(i => (GuestStep[])[GuestStep.Write((ulong)i << 12, (ulong)i), GuestStep.Read((ulong)i << 12)])];
        Assert.Equal(Enumerable.Range(0, 24).Select(i => (ulong)i), bed.Play(steps));
        ModuleInvariants.CheckMirror(bed.Vm);
        Assert.Empty(bed.World.Machine.Findings.All);
        bed.TearDown();
    }

    [Fact]
    [Trait("spec", "TM09")]
    public void TM09_An_added_page_is_its_source_and_an_accepted_one_is_zero()
    {
        using ModuleRig rig = Steps.Initialized();
        FindingLog findings = new();
        HpaRange range = new(rig.Machine.Description.Tdmrs[0].Range.Base, 32 << 20);
        rig.Module.Observer = new ModuleReferee(rig.Module, findings, range);
        Hpa source = rig.Page();
        Hpa added = rig.Page();
        new Random(9).NextBytes(rig.Machine.Memory.Frame(source));
        rig.Must(TdhLeaf.MEM_PAGE_ADD, Steps.Gpa, rig.Tdr.Value, added.Value, source.Value);
        Assert.True(rig.Machine.Memory.Frame(added).SequenceEqual(rig.Machine.Memory.Frame(source)));

        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        ulong large = Steps.Gpa + Steps.LargeBytes;
        foreach ((ulong gpa, int level) in ((ulong, int)[])[(Steps.Gpa + 0x1000, 0), (large, 1)])
        {
            Hpa page = level == 0 ? rig.Page() : rig.LargePage();
            for (ulong i = 0; i < (level == 0 ? 1UL : 512); i++)
                rig.Machine.Memory.Fill(new Hpa(page.Value + (i << 12)), ~i);
            rig.Must(TdhLeaf.MEM_PAGE_AUG, gpa | (uint)level, rig.Tdr.Value, page.Value);
            rig.EnterTd(0);
            Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, gpa | (uint)level));
            rig.Interrupt(0);
            for (ulong i = 0; i < (level == 0 ? 1UL : 512); i++)
                Assert.Equal(-1, rig.Machine.Memory.Frame(new Hpa(page.Value + (i << 12))).IndexOfAnyExcept((byte)0));
        }

        Assert.Empty(findings.All);
    }

    private static void Live(ulong seed, Action<ModuleLife> check, int between = Between)
    {
        ModuleLife life = ModuleLife.Begin(seed);
        using ModuleRig rig = life.Rig;
        FindingLog findings = new();
        for (int i = 1; i <= Moves; i++)
        {
            life.Step();
            if (i % between != 0)
                continue;
            check(life);
            ModuleInvariants.Check(rig.Module, findings, life.Range);
            Assert.Empty(findings.All);
        }

        // A life in which nothing happens would prove nothing.
        foreach (string leaf in (string[])["MEM_PAGE_AUG", "MEM_RANGE_BLOCK", "TRACK", "MEM_PAGE_REMOVE", "VP_ENTER", "ACCEPT", "touch"])
            Assert.True(life.Successes.GetValueOrDefault(leaf) >= 3, $"{leaf} succeeded {life.Successes.GetValueOrDefault(leaf)} times");
    }

    // Pages of all leaves, or of all table entries, with their level: read from memory by a walk that is not the module's.
    private static Dictionary<ulong, int> Linked(ModuleLife life, bool leaf)
    {
        Dictionary<ulong, int> found = [];
        foreach (((_, ulong gpa, int level), ulong word) in ModuleState.Of(life.Rig).Entries)
        {
            if (SeptFormat.IsLeaf(SeptFormat.StateOf(word)) == leaf)
                Assert.True(found.TryAdd(word & Address & ~((1UL << (12 + (leaf ? 9 * level : 0))) - 1), level), $"the page of 0x{gpa:x} is linked twice");
        }

        return found;
    }

    private static List<ulong> Pages(ModuleLife life, PageType type)
    {
        List<ulong> pages = [];
        for (ulong page = life.Range.Base; page < life.Range.End; page += 4096)
        {
            SeamRegisters answer = life.Rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, page, lp: 3);
            if (answer.Rcx != (ulong)type || answer.Rdx != life.Rig.Tdr.Value)
                continue;
            ulong bytes = 4096UL << (int)(9 * answer.R8);
            if ((page & (bytes - 1)) == 0)
                pages.Add(page);
        }

        return pages;
    }

    private static void AssertPage(ModuleLife life, ulong page, PageType type, int size)
    {
        SeamRegisters answer = life.Rig.Must(TdhLeaf.PHYMEM_PAGE_RDMD, page, lp: 3);
        Assert.Equal(((ulong)type, life.Rig.Tdr.Value, (ulong)size), (answer.Rcx, answer.Rdx, answer.R8));
    }
}
