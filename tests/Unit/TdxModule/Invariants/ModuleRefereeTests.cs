using Tdp.Harness.Invariants;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Tests.Unit.Host;
using Tdp.Tests.Unit.Seam.Checklist;

namespace Tdp.Tests.Unit.Seam;

/// <summary>What judges calls is seen to fire: each thing that a call must not do, or must do, is broken by hand.</summary>
public sealed class ModuleRefereeTests
{
    private const ulong Gpa = Steps.Gpa;

    [Theory]
    [InlineData("entry", "entry of GPA 0x40000000 at level 0")]
    [InlineData("page", "page 0x")]
    [InlineData("epoch", "TD 0x")]
    [InlineData("vcpu", "vCPU 0x")]
    [InlineData("setting", "contents of TD 0x")]
    [Trait("spec", "TM07")]
    public void A_failed_call_that_changes_something_breaks_TM07(string breach, string what)
    {
        using ModuleRig rig = Steps.Running();
        Hpa page = rig.Aug(Gpa);
        FindingLog findings = new();
        ModuleReferee referee = Referee(rig, findings);
        rig.Module.Observer = new Meddler(referee, _ => Break(rig, page, breach));
        Assert.True(rig.Call(TdhLeaf.MEM_PAGE_AUG, Gpa, rig.Tdr.Value, page.Value, lp: 1).IsError);
        Assert.NotEmpty(findings.All);
        Assert.All(findings.All, finding => Assert.Equal("TM07", finding.Rule));
        Assert.Contains(findings.All, finding => finding.Text.Contains(what, StringComparison.Ordinal));
    }

    [Fact]
    [Trait("spec", "TM07")]
    public void A_failed_guest_call_that_changes_an_entry_breaks_TM07()
    {
        using ModuleRig rig = Steps.Running();
        rig.Aug(Gpa);
        rig.EnterTd(0);
        FindingLog findings = new();
        rig.Module.Observer = new Meddler(Referee(rig, findings), _ => rig.Word(Gpa) ^= 1UL << 56);
        Assert.True(rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, 1UL << 50).IsError);
        Assert.Equal("TM07", Assert.Single(findings.All).Rule);
    }

    [Fact]
    [Trait("spec", "TM07")]
    public void What_a_lost_race_leaves_behind_and_what_MNG_INIT_writes_first_do_not_break_TM07()
    {
        using ModuleRig rig = Steps.Running();
        rig.Aug(Gpa);
        FindingLog findings = new();
        rig.Module.Observer = Referee(rig, findings);
        InjectedLock held = rig.Module.TryHold(ModuleLock.SeptEntry, true, rig.Tdr, new Gpa(Gpa), Level.K4)!.Value;
        Assert.True(rig.Call(TdhLeaf.MEM_SEPT_RD, Gpa, rig.Tdr.Value).IsBusy);
        rig.Module.Release(held);
        Assert.NotEqual(0UL, rig.Word(Gpa) & (1UL << 52));

        // The association with the processor stays although the entry was refused: the TD is not to be entered yet.
        using ModuleRig other = Steps.Initialized();
        other.Must(TdhLeaf.VP_FLUSH, other.Vcpus[0].Value);
        other.Module.Observer = Referee(other, findings);
        Assert.True(other.Call(TdhLeaf.VP_WR, other.Vcpus[0].Value, 0x0024_0003_0000_201A, 0, ulong.MaxValue, lp: 1).IsError);
        Assert.Equal(1, Assert.Single(other.Module.Vcpus()).AssociatedLp);

        using ModuleRig refused = new();
        refused.Module.Observer = Referee(refused, findings);
        Hpa tdr = refused.Page();
        refused.Must(TdhLeaf.MNG_CREATE, tdr.Value, 17);
        refused.OnEachPackage(lp => refused.Must(TdhLeaf.MNG_KEY_CONFIG, tdr.Value, lp: lp));
        for (int i = 0; i < 6; i++)
            refused.Must(TdhLeaf.MNG_ADDCX, refused.Page().Value, tdr.Value);
        Assert.True(refused.Call(TdhLeaf.MNG_INIT, tdr.Value, refused.Parameters(flags: 8).Value).IsError);
        Assert.Empty(findings.All);
    }

    [Fact]
    [Trait("spec", "TM08")]
    public void A_page_that_leaves_the_Secure_EPT_behind_the_mirror_breaks_TM08()
    {
        using HostBed bed = HostBed.Td();
        bed.Play(GuestStep.Write(0x3000, 1));
        TdxModule module = bed.World.Module!;
        Hpa tdr = bed.Vm.Td!.Tdr;
        ModuleInvariants.CheckMirror(bed.Vm);
        Assert.Empty(bed.World.Machine.Findings.All);
        ulong table = module.FindSeptEntry(tdr, new Gpa(0x3000), Level.M2).Hpa.Value;
        bed.World.Machine.Memory.Word(table + (3 << 3)) = 0x80E0_0000_0000_0000;
        ModuleInvariants.CheckMirror(bed.Vm);
        Assert.Contains(bed.World.Machine.Findings.All, finding => finding.Rule == "TM08");
    }

    [Fact]
    [Trait("spec", "TM09")]
    public void An_added_page_that_is_not_its_source_breaks_TM09()
    {
        using ModuleRig rig = Steps.Initialized();
        FindingLog findings = new();
        Hpa page = rig.Page();
        rig.Module.Observer = new Meddler(Referee(rig, findings), _ => rig.Machine.Memory.Frame(page)[77] ^= 1);
        rig.Must(TdhLeaf.MEM_PAGE_ADD, Gpa, rig.Tdr.Value, page.Value, rig.Page().Value);
        Finding finding = Assert.Single(findings.All);
        Assert.Equal("TM09", finding.Rule);
        Assert.Contains("byte 77", finding.Text, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [Trait("spec", "TM09")]
    public void An_accepted_page_that_keeps_its_content_breaks_TM09(int level)
    {
        using ModuleRig rig = new(options: new TdxModuleOptions { TdmrInitPages = 262144, ZeroOnAccept = false });
        rig.BuildTd();
        rig.AddTables(Gpa, level + 1);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        Hpa page = rig.Aug(Gpa, level);
        rig.Machine.Memory.Frame(new Hpa(page.Value + (level == 0 ? 0UL : 0x1F_F000)))[9] = 1;
        rig.EnterTd(0);
        FindingLog findings = new();
        rig.Module.Observer = Referee(rig, findings);
        Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa | (uint)level));
        Assert.Equal("TM09", Assert.Single(findings.All).Rule);
    }

    [Fact]
    [Trait("spec", "TM10")]
    public void A_state_or_an_answer_that_no_order_gives_breaks_TM10()
    {
        using ModuleRig rig = SerialOrderChecklist.World();
        ConcurrentCall<ModuleRig> Aug(string name, ulong page, TdxStatus answer) =>
            new(name, world => world.Call(TdhLeaf.MEM_PAGE_AUG, Gpa + 0x1000, world.Tdr.Value, world.PagesEnd + page), answer);
        TdxStatus refused = TdxStatus.EPT_ENTRY_STATE_INCORRECT | OperandId.RCX;
        rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa + 0x1000, rig.Tdr.Value, rig.PagesEnd + 0x1000);
        ModulePicture seen = SerialOrderChecklist.Picture(rig);

        // The second came first; a busy third takes no part.
        FindingLog findings = new();
        IReadOnlyList<string>? order = Orders(findings, Aug("first", 0, refused), Aug("second", 0x1000, TdxStatus.SUCCESS), Aug("third", 0, TdxStatus.OPERAND_BUSY | OperandId.RCX));
        Assert.Equal(["second", "first"], order);
        Assert.Empty(findings.All);

        // The winner's page is not the one that was linked; then: nobody won.
        Assert.Null(Orders(findings, Aug("first", 0, TdxStatus.SUCCESS), Aug("second", 0x1000, refused)));
        Assert.Null(Orders(findings, Aug("first", 0, refused), Aug("second", 0x1000, refused)));
        Assert.Equal(2, findings.Count);
        Assert.All(findings.All, finding => Assert.Equal("TM10", finding.Rule));

        IReadOnlyList<string>? Orders(FindingLog log, params ConcurrentCall<ModuleRig>[] calls) =>
            SerialOrders.Check(SerialOrderChecklist.World, calls, SerialOrderChecklist.Picture, seen, log);
    }

    private static ModuleReferee Referee(ModuleRig rig, FindingLog findings) =>
        new(rig.Module, findings, new HpaRange(rig.Machine.Description.Tdmrs[0].Range.Base, 32 << 20));

    private static void Break(ModuleRig rig, Hpa page, string breach)
    {
        rig.Module.Observer = null;
        switch (breach)
        {
            case "entry":
                rig.Word(Gpa) ^= 1UL << 56;
                break;
            case "page":
                TdmrDescription tdmr = rig.Machine.Description.Tdmrs[0];
                rig.Machine.Memory.Word(tdmr.Pamt4K.Base + (((page.Value - tdmr.Range.Base) >> 12) * 16) + 8)++;
                break;
            case "epoch":
                rig.Must(TdhLeaf.MEM_TRACK, rig.Tdr.Value);
                break;
            case "vcpu":
                rig.EnterTd(0);
                break;
            default:
                rig.Must(TdhLeaf.MNG_WR, rig.Tdr.Value, 0x9110_0003_0000_0011, 20_000, ulong.MaxValue);
                break;
        }
    }

    /// <summary>Breaks something at the end of every call, before the referee looks.</summary>
    private sealed class Meddler(ModuleReferee referee, Action<TdhLeaf?> meddle) : IModuleObserver
    {
        public void Calling(LogicalProcessor lp, in SeamRegisters registers) => referee.Calling(lp, registers);

        public void Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after)
        {
            meddle((TdhLeaf)(ushort)before.Rax);
            referee.Returned(lp, before, after);
        }

        public void GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited)
        {
            meddle(null);
            referee.GuestCalled(lp, leaf, status, exited);
        }
    }
}
