using Tdp.Harness.Scenarios;
using Tdp.Host;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Harness;

/// <summary>The reader of scenario files: what is written is what is meant, and every error names its place and what is allowed.</summary>
public sealed class ScenarioReaderTests
{
    private const string Head = "tdpmmu-scenario 1\nscenario s\n";

    [Fact]
    public void Every_key_is_read()
    {
        Scenario scenario = Scenario.Parse("""
            # a comment
            tdpmmu-scenario 1.0   # another
            scenario  every-key
            about     "a # inside quotes is text"
            spec      R05 I58
            needs     interleaving
            memory    tso vcpu*.mode vcpu*.requests
            rwlock    fair
            timers    free
            tlb       adversarial
            profile   Tdx15 B05=Documented
            generation zap-6.12
            patch     kick-without-ack
            requires  sp-visible-before-linked
            site      Map:cas-frozen
            inject    busy leaf=MEM.PAGE.AUG,MEM.RANGE.BLOCK times=2
            inject    busy leaf=MEM.TRACK p=2.5%
            vm        td five-level unfinalized ve=off vcpus=2
            vm        default nx no-ad no-quirk
            slot      0 gfn=0x100..0x4ff memfd huge shared
            slot      1 gfn=0x800+0x200 vm=2 log smm absent
            init      vcpu1 fault gfn=0x200
            actor A   vcpu0 write gfn=0x201 shared convert
            actor A   await step=B.1
            actor B   host  notify gfn=0x200..0x20f start
            actor C   vm2.vcpu0 read gfn=0x10
            actor D   host unmap gfn=0 private vm=2
            after     seamcall leaf=MEM.RANGE.BLOCK rcx=gpa:0x200@2M rdx=tdr
            require   A.1 = ok|memory-fault and calls MEM.TRACK TDX_SUCCESS >= 1 or finding I80 > 0
            require   alive vm=2 = yes
            """);
        Assert.Equal("every-key", scenario.Name);
        Assert.Equal("a # inside quotes is text", scenario.About);
        Assert.Equal(["R05", "I58"], scenario.Spec);
        Assert.True(scenario.NeedsInterleaving);
        Assert.Equal("tso", scenario.Memory);
        Assert.Equal(2, scenario.BufferedObjects.Count);
        Assert.True(scenario.IsFairRwLock);
        Assert.True(scenario.HasFreeTimers);
        Assert.Equal(TlbMode.Adversarial, scenario.TlbMode);
        Assert.Equal(BehaviourProfile.Tdx15 with { SeptVeDisableByDefault = false }, scenario.Profile);
        Assert.Equal("zap-6.12", scenario.Generation);
        Assert.Equal("kick-without-ack", scenario.Patch);
        Assert.Equal("sp-visible-before-linked", scenario.Requires);
        Assert.Equal(["Map:cas-frozen"], scenario.Sites);
        Assert.Equal((2, 0, 2), (scenario.Busy[0].Leaves.Count, scenario.Busy[0].PerMille, scenario.Busy[0].Times));
        Assert.Equal(25, scenario.Busy[1].PerMille);
        Assert.Equal(new ScenarioVm(VmKind.Td) { IsFiveLevel = true, IsUnfinalized = true, SeptVeDisable = true, Vcpus = 2 }, scenario.Vms[0]);
        Assert.Equal(new ScenarioVm(VmKind.Default) { HasNx = true, HasNoAd = true, HasNoQuirk = true, Vcpus = 1 }, scenario.Vms[1]);
        Assert.Equal(GfnRange.Of(new Gfn(0x800), 0x200), scenario.Slots[1].Range);
        Assert.Equal((2, 1, true, true), (scenario.Slots[1].Vm, scenario.Slots[1].AddressSpace, scenario.Slots[1].IsLogged, scenario.Slots[1].IsAbsent));
        Assert.Equal(1, scenario.Init[0].Vcpu);
        Assert.Equal(["A", "B", "C", "D"], scenario.Actors.Select(a => a.Name));
        Assert.Equal(2, scenario.Actors[0].Steps.Count);
        Assert.Equal(2, scenario.Actors[3].Steps[0].Vm);
        Assert.Equal(new ScenarioOperand(OperandKind.Gpa, 0x200, Level.M2, 0), scenario.After[0].Step.Operands[0]);
        Assert.Equal(2, scenario.Requirements[0].Alternatives.Count);
        Assert.Equal(2, scenario.Requirements[0].Alternatives[0].Count);
    }

    [Fact]
    public void What_is_written_reads_back_equal()
    {
        foreach (string text in Samples())
        {
            string written = Scenario.Parse(text).Write();
            Assert.Equal(written, Scenario.Parse(written).Write());
        }
    }

    [Fact]
    public void A_td_without_further_lines_has_two_private_regions_and_one_vcpu()
    {
        Scenario scenario = Scenario.Parse(Head + "actor A vcpu0 write gfn=0x200");
        ScenarioVm vm = Assert.Single(scenario.Vms);
        Assert.Equal((VmKind.Td, 1), (vm.Kind, vm.Vcpus));
        ScenarioSlot slot = Assert.Single(scenario.Slots);
        Assert.Equal((1024UL, true, Alias.Private), (slot.Range.Pages, slot.HasFile, slot.Attribute));
    }

    [Fact]
    public void The_schedule_part_of_a_file_is_left_to_its_own_reader()
    {
        Scenario scenario = Scenario.Parse("tdpmmu-schedule 1\nscenario s\nstrange key\nactor A host fast-zap\nschedule\n  A until end\n");
        Assert.Equal(5, scenario.ScheduleLine);
    }

    [Theory]
    [InlineData("", "1:1: the text is empty; the first line is 'tdpmmu-scenario 1'")]
    [InlineData("scenario s", "1:1: the first line must be 'tdpmmu-scenario 1', found 'scenario s'")]
    [InlineData("tdpmmu-scenario 2", "1:17: version 2 is not known; this reader knows 1.0")]
    [InlineData("tdpmmu-scenario one", "1:17: 'one' is not a version; this reader knows 1.0")]
    [InlineData("tdpmmu-scenario 1 x", "1:19: 'x' is too much on this line")]
    [InlineData(Head, "1:1: there is neither an 'actor' line nor an 'init' line: nothing would happen")]
    [InlineData("tdpmmu-scenario 1\nactor A host fast-zap", "1:1: there is no 'scenario NAME' line")]
    [InlineData(Head + "actr A host fast-zap", "3:1: unknown key 'actr': allowed is scenario, about, spec,")]
    [InlineData(Head + "scenario t", "3:1: 'scenario' stands in line 2 already")]
    [InlineData(Head + "about two words", "3:11: a text of several words stands in quotes")]
    [InlineData(Head + "about \"open", "3:7: a text that starts with \" has no \" at its end on the same line")]
    [InlineData(Head + "spec r5", "3:6: 'r5' is not an id such as R05, I58, TM03 or B05")]
    [InlineData(Head + "needs luck", "3:7: 'luck' is not allowed here: allowed is interleaving")]
    [InlineData(Head + "tlb", "3:4: missing here: off or precise or adversarial")]
    [InlineData(Head + "tlb none", "3:5: 'none' is not allowed here: allowed is off or precise or adversarial")]
    [InlineData(Head + "profile Tdx15 B04=Tdx15", "3:15: 'B04=Tdx15' is not a point of the profile: allowed is B01=Documented|Tdx15")]
    [InlineData(Head + "profile Tdx15 B05=1", "3:19: B05=1: allowed is Documented or Tdx15")]
    [InlineData(Head + "inject busy leaf=VP.ENTER times=1", "3:18: 'VP.ENTER' cannot be made to answer BUSY: allowed is MEM.SEPT.ADD")]
    [InlineData(Head + "inject busy leaf=MEM.TRACK", "3:1: 'inject busy' needs leaf=NAME,NAME and exactly one of times=N and p=N%")]
    [InlineData(Head + "inject busy leaf=MEM.TRACK p=100%", "3:30: p=100%: allowed is a percentage from 0.1% to 99%")]
    [InlineData(Head + "vm tdx", "3:4: 'tdx' is not allowed here: allowed is td or default")]
    [InlineData(Head + "vm default unfinalized", "3:12: 'unfinalized' is not allowed here (a td only): allowed is five-level")]
    [InlineData(Head + "vm td vcpus=9", "3:13: '9' is not allowed here: allowed is a number from 1 to 8")]
    [InlineData(Head + "slot 0 memfd", "3:13: missing here: the guest frames of the slot, such as gfn=0..0x3ff")]
    [InlineData(Head + "slot 0 gfn=0x300..0x200", "3:12: gfn=0x300..0x200: the last frame is below the first")]
    [InlineData(Head + "slot 0 gfn=0..1 hugh", "3:17: 'hugh' is not part of a slot: allowed is gfn=RANGE, memfd")]
    [InlineData(Head + "slot 0 gfn=0+8\nslot 1 gfn=4+8", "4:6: slot 1 [0x4, 0xc) overlaps slot 0 [0x0, 0x8)")]
    [InlineData(Head + "slot 0 gfn=0+8 vm=3\nactor A host fast-zap", "3:1: VM 3 is not declared: there is one VM")]
    [InlineData(Head + "vm default\nslot 0 gfn=0+8 memfd\nactor A host fast-zap", "4:1: VM 1 is a default VM: this is for a td only")]
    [InlineData(Head + "actor A fault gfn=1", "3:9: actor A needs a role in its first line: vcpuN, vmN.vcpuN or host")]
    [InlineData(Head + "actor vcpu0 fault gfn=1", "3:7: an actor has a name of letters, digits, '-' and '_'")]
    [InlineData(Head + "actor A vcpu9 fault gfn=1", "3:9: vcpu9: allowed are vCPUs 0 to 7 of VMs 1 to 4")]
    [InlineData(Head + "actor A vcpu0", "3:14: missing here: a step such as 'write gfn=0x200'")]
    [InlineData(Head + "actor A vcpu0 wirte gfn=1", "3:15: 'wirte' is not a step: allowed is read, write, fetch")]
    [InlineData(Head + "actor A host write gfn=1", "3:14: 'write' is a step of a vCPU: allowed for a host thread is map, pre-fault, convert")]
    [InlineData(Head + "actor A host convert gfn=1", "3:27: missing here: to=shared|private: convert gfn=RANGE to=shared|private")]
    [InlineData(Head + "actor A host convert gfn=1 to=both", "3:31: to=both: allowed is shared or private")]
    [InlineData(Head + "actor A host convert gfn=0x to=shared", "3:26: gfn=0x: allowed is a frame such as 0x200, a range")]
    [InlineData(Head + "actor A host convert gfn=1+0 to=shared", "3:26: gfn=1+0: allowed are 1 to 262144 frames below 0x800000000")]
    [InlineData(Head + "actor A host convert gfn=1 gfn=2 to=shared", "3:28: 'gfn=2' says again what the line has said already (gfn=RANGE)")]
    [InlineData(Head + "actor A host convert gfn=1 to=shared now", "3:38: 'now' is not part of this step: convert gfn=RANGE to=shared|private [vm=N]")]
    [InlineData(Head + "actor A host destroy", "3:14: 'destroy' is allowed in 'after' lines only: no vCPU may run any more")]
    [InlineData(Head + "actor A host delete-slot slot=3", "3:14: slot 3 of VM 1 is not declared")]
    [InlineData(Head + "actor A host await step=B.1", "3:25: there is no actor 'B': allowed is A, init, after")]
    [InlineData(Head + "actor A host fast-zap\nactor B host await step=A.2", "4:25: 'A' has 1 steps: there is no step 2")]
    [InlineData(Head + "actor A host await step=A.", "3:25: 'A.' is not the name of a step such as A.1")]
    [InlineData(Head + "actor A host seamcall leaf=VP.ENTER", "3:28: leaf=VP.ENTER: allowed is a SEAMCALL leaf other than VP.ENTER")]
    [InlineData(Head + "actor A host seamcall leaf=MEM.TRACK rcx=tdx", "3:42: rcx=tdx: allowed is a number, tdr, tdvprN")]
    [InlineData(Head + "actor A vcpu0 fault gfn=1\nactor B vcpu0 fault gfn=1", "4:9: vcpu0 is run by actor A: a vCPU has one thread")]
    [InlineData(Head + "actor A vcpu0 fault gfn=1\nactor A vcpu1 fault gfn=1", "4:9: actor A has another role in line 3")]
    [InlineData(Head + "actor A host fast-zap\nrequire", "4:8: missing here: a clause such as 'A = fixed'")]
    [InlineData(Head + "actor A host fast-zap\nrequire A", "4:9: 'A' has no comparison behind it: allowed is = != < <= > >= with a blank on both sides")]
    [InlineData(Head + "actor A host fast-zap\nrequire A =", "4:12: missing here: what it is compared with")]
    [InlineData(Head + "actor A host fast-zap\nrequire A = ok and", "4:19: missing here: a clause such as")]
    [InlineData(Head + "actor A host fast-zap\nrequire A = fine", "4:13: 'fine' is not allowed here: allowed is ok, fixed")]
    [InlineData(Head + "actor A host fast-zap\nrequire A < ok", "4:11: '<' compares numbers; allowed here is = or !=")]
    [InlineData(Head + "actor A host fast-zap\nrequire calls MEM.TRAC = 1", "4:15: 'MEM.TRAC' is not a leaf: allowed is")]
    [InlineData(Head + "actor A host fast-zap\nrequire calls MEM.TRACK = one", "4:27: 'one' is not a number: calls is counted")]
    [InlineData(Head + "actor A host fast-zap\nrequire mirror = none", "4:15: missing here: mirror gfn=RANGE")]
    [InlineData(Head + "actor A host fast-zap\nrequire mirrors gfn=1 = none", "4:9: 'mirrors' is neither a step nor a subject: allowed is ACTOR.N, calls, mirror")]
    [InlineData(Head + "actor A host fast-zap\nrequire count pages = 1", "4:15: 'pages' is not a counter: allowed is pages4k")]
    public void Every_error_names_its_place_and_what_is_allowed(string text, string expected)
    {
        ScenarioException wrong = Assert.Throws<ScenarioException>(() => Scenario.Parse(text, "f.scenario"));
        Assert.StartsWith("f.scenario:" + expected, wrong.Message, StringComparison.Ordinal);
        Assert.All(wrong.Errors, e => Assert.True(e.Line > 0 && e.Column > 0));
    }

    [Fact]
    public void One_pass_finds_every_line_that_is_wrong()
    {
        ScenarioException wrong = Assert.Throws<ScenarioException>(() => Scenario.Parse(Head + "tlb none\nvm tdx\nactor A host convert gfn=x to=shared\n"));
        Assert.Equal([3, 4, 5], wrong.Errors.Select(e => e.Line));
    }

    [Fact]
    public void Keys_of_a_later_minor_version_are_skipped_those_of_this_version_are_errors()
    {
        Assert.Equal("s", Scenario.Parse("tdpmmu-scenario 1.7\nscenario s\nnew-key 5\nactor A host fast-zap").Name);
        Assert.Throws<ScenarioException>(() => Scenario.Parse("tdpmmu-scenario 1.0\nscenario s\nnew-key 5\nactor A host fast-zap"));
    }

    [Fact]
    public void Garbage_is_refused_and_never_thrown_at_the_user()
    {
        string[] samples = Samples();
        SeedStream stream = new(1, "program");
        for (int i = 0; i < 5000; i++)
        {
            char[] text = samples[(int)stream.Below((ulong)samples.Length)].ToCharArray();
            for (int n = (int)stream.Below(6); n >= 0; n--)
            {
                text[(int)stream.Below((ulong)text.Length)] = (char)(" =.#\"0x9azA|\n@:%+"[(int)stream.Below(17)]);
            }

            try
            {
                Scenario.Parse(new string(text));
            }
            catch (ScenarioException e)
            {
                Assert.NotEmpty(e.Errors);
            }
        }
    }

    private static string[] Samples() =>
    [
        Head + "init map gfn=0x200..0x20f shared\nactor A vcpu0 write gfn=0x200 shared\nactor A accept gfn=0x200 level=2M\nactor B host convert gfn=0x200+16 to=private\nrequire A.1 = ok|memory-fault and mirror gfn=0x200 != leaf or finding I57 >= 1",
        Head + "profile Tdx15 B13=Documented B05=Documented\ninject busy leaf=MEM.TRACK p=2.5%\nvm td vcpus=2 ve=on\nvm default nx\nslot 3 gfn=0x1000+8 huge vm=2\nactor Z host seamcall leaf=MEM.RANGE.BLOCK rcx=gpa:0x200@2M r8=vm1.tdr\nactor G vm2.vcpu1 stay\nafter destroy vm=2\nrequire log \"two words\" = 0\nrequire leaks = 0",
        Head + "memory tso vcpu*.mode\nrwlock fair\ntimers free\nsite Map:cas\nactor F vcpu0 fault gfn=1 shared read present attempts=7\nactor F tdcall leaf=MEM.PAGE.ACCEPT rcx=0x1000\nactor W host split slot=0 level=2M\nactor W log-slot slot=0 off\nrequire dirty slot=0 gfn=1..3 = some and mixed gfn=5 level=1G = no and count flushes <= 3",
    ];
}
