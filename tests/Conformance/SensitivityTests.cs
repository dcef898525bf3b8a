using System.Linq;
using System.Text.Json.Nodes;
using Tdp.Harness.Conformance;

namespace Tdp.Tests.Conformance;

/// <summary>A comparison that cannot fail proves nothing: whatever single member of a recording is changed, the replay says so, at that line.</summary>
public sealed class SensitivityTests
{
    public static TheoryData<string, string, string> ModuleChanges => new()
    {
        { "rax", "d-page-aug", """{"rax":"0x8000020000000080"}""" },
        { "r", "d-accept", """{"r":"exit"}""" },
        { "out", "d-sept-rd", """{"out":{"rcx":"0x12345000","rdx":"0x0"}}""" },
        { "out", "d-vp-enter", """{"out":{"r15":"0x1"}}""" },
        { "inv", "d-track-2vcpu", """{"inv":0}""" },
        { "hpa", "d-gpaw1", """{"hpa":"0x100"}""" },
        { "inj", "d-fault-matrix-ve", """{"inj":[6,3]}""" },
        { "again", "d-accept", """{"again":0}""" },
        { "T", "d-track", """{"T":{"0x100000000":[1,0,23,6,2,1,1,99,0,0]}}""" },
        { "V", "d-vp-create", """{"V":{"0x100010000":[8,0,6,0,1]}}""" },
        { "S", "d-demote", """{"S":{"0x100000000":[["0x7ff000",0,"MAPPED","0x101000000"]]}}""" },
        { "P", "d-page-remove", """{"P":{"0x101000000":["REG","0x100000000",2,7]}}""" },
    };

    [Theory]
    [MemberData(nameof(ModuleChanges))]
    public void A_changed_member_of_a_module_recording_is_a_mismatch_at_its_line(string member, string sequence, string change)
    {
        JsonObject[] lines = Recording.Sequence("module", "directed.jsonl.gz", sequence);
        Assert.Empty(Recording.Replay(lines).Mismatches);

        // The last line that has the member: nothing after it restores what it says.
        int at = System.Array.FindLastIndex(lines, l => l.ContainsKey(member) && !l.ContainsKey("t"));
        Assert.True(at > 0, $"{sequence} has no member {member}");
        foreach ((string name, JsonNode? value) in JsonNode.Parse(change)!.AsObject())
            lines[at][name] = value!.DeepClone();
        ReplayMismatch first = Recording.Replay(lines).Mismatches[0];
        Assert.Equal(at + 1, first.Line);
        Assert.Contains(first.Answers, a => a.Differs);
    }

    [Theory]
    [InlineData("T", "d-track")]
    [InlineData("V", "d-vp-enter")]
    [InlineData("S", "d-promote")]
    [InlineData("P", "d-page-remove")]
    public void A_state_change_that_the_recording_does_not_have_is_a_mismatch(string member, string sequence)
    {
        JsonObject[] lines = Recording.Sequence("module", "directed.jsonl.gz", sequence);
        int at = System.Array.FindLastIndex(lines, l => l.ContainsKey(member));

        // Of a new row there is nothing yet to compare with: only a row that was there before is missed.
        string key = lines[at][member]!.AsObject().Select(p => p.Key).First(k => lines.Take(at).Any(l => l[member] is JsonObject o && o.ContainsKey(k)));
        lines[at][member]!.AsObject().Remove(key);
        ReplayMismatch first = Recording.Replay(lines).Mismatches[0];
        Assert.Equal(at + 1, first.Line);
        Assert.Contains(first.Answers, a => a.Differs && a.What.StartsWith(member + " 0x", StringComparison.Ordinal));
    }

    [Fact]
    public void A_difference_that_stays_is_reported_once()
    {
        JsonObject[] lines = Recording.Sequence("module", "directed.jsonl.gz", "d-track");
        int at = System.Array.FindIndex(lines, l => l.ContainsKey("P"));
        lines[at]["P"]!.AsObject()["0x1077ff000"] = JsonNode.Parse("""["REG","0x100000000",0,0]""");
        ReplayMismatch only = Assert.Single(Recording.Replay(lines).Mismatches);
        Assert.Equal(at + 1, only.Line);
    }

    public static TheoryData<string, string, string> MmuChanges => new()
    {
        { "ret", "d-spurious", """{"ret":"RETRY"}""" },
        { "ch", "d-leaf-ad1-xo1-ipat1", """{"ch":[["d0",1,"0x5","0x8000000000000000","0x8600000500005b36"]]}""" },
        { "cb", "d-unmap-td1-l4", """{"cb":[["remove","0x99",1,"0x500099",0]]}""" },
        { "fl", "d-split-ad1-nx0-s0", """{"fl":["all",["0x1","0x2"]]}""" },
        { "st", "d-huge", """{"st":[7,7,7]}""" },
        { "tb", "d-huge", """{"tb":77}""" },
        { "dirty", "d-dirty-ad1-gm0", """{"dirty":["0x1","0x2"]}""" },
        { "roots", "d-roots", """{"roots":[["d9",1,0,0]]}""" },
        { "nxl", "d-leaf-nx1-l2", """{"nxl":[["+","d0",1,"0x123400"]]}""" },
        { "adj", "d-huge", """{"adj":[5,5,"0x0",1]}""" },
        { "goal", "d-huge", """{"goal":4}""" },
        { "role", "d-roots", """{"role":"0x1"}""" },
        { "path", "d-walk-l4", """{"path":["0x1"]}""" },
        { "warn", "d-td-alias", """{"warn":["VMBUG:x"]}""" },
    };

    [Theory]
    [MemberData(nameof(MmuChanges))]
    public void A_changed_member_of_an_MMU_recording_is_a_mismatch_at_its_line(string member, string sequence, string change)
    {
        JsonObject[] lines = Recording.Sequence("mmu", "directed.jsonl.gz", sequence);
        Assert.Empty(Recording.Replay(lines).Mismatches);
        int at = System.Array.FindLastIndex(lines, l => l.ContainsKey(member) && !l.ContainsKey("t"));
        Assert.True(at > 0, $"{sequence} has no member {member}");
        foreach ((string name, JsonNode? value) in JsonNode.Parse(change)!.AsObject())
            lines[at][name] = value!.DeepClone();
        ReplayMismatch first = Recording.Replay(lines).Mismatches[0];
        Assert.Equal(at + 1, first.Line);
        Assert.Contains(first.Answers, a => a.Differs);
    }

    [Fact]
    public void An_entry_that_changed_without_being_recorded_is_a_mismatch()
    {
        JsonObject[] lines = Recording.Sequence("mmu", "directed.jsonl.gz", "d-age-ad1-xo1");
        int at = System.Array.FindLastIndex(lines, l => l.ContainsKey("ch"));
        lines[at].Remove("ch");
        ReplayMismatch first = Recording.Replay(lines).Mismatches[0];
        Assert.Equal(at + 1, first.Line);
        Assert.Contains(first.Answers, a => a.Differs && a.Recorded == "unchanged");
    }

    [Fact]
    public void After_a_mirror_was_aged_the_recorded_entries_are_compared_with_Accessed_still_set()
    {
        // The record after which 6.16 has cleared Accessed and the newest protocol has not.
        JsonObject[] lines = Recording.Sequence("mmu", "directed.jsonl.gz", "d-td-alias");
        ReplayRun run = Recording.Replay(lines);
        Assert.Empty(run.Mismatches);
        Assert.Equal(lines.Length - 1, run.Calls);
    }
}
