using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>Rows of host leaves: the call, its registers, and the state it leaves.</summary>
internal static class HostRowCheck
{
    private const ulong Pattern = 0x0123_4567_89AB_CDEF;

    public static string Call(in SeptRowRun run, SeptScene scene)
    {
        (SeptRow row, SceneSetup setup, int level, _, _) = run;
        SeamRegisters call = HostCalls.Legal(row.Leaf, scene, level, row.Has("allowed"));
        ModuleState expected = scene.Snapshot();
        ulong word = WordOf(expected, scene, level);
        if (SeptFormat.IsLeaf(row.From))
            scene.Rig.Machine.Memory.Word(scene.Page + HostCalls.Offset) = Pattern;

        SeamRegisters after;
        using (run.InOrder ? scene.TakeLocksInOrder() : null)
            after = scene.Rig.Raw(0, call);

        bool found = row.Answer != "WALK" || setup.Children == SceneChildren.Mapped;
        string answer = row.Answer != "WALK" ? row.Answer : found ? "SUCCESS" : "EPT_ENTRY_NOT_PRESENT|RCX";
        Assert.Equal(Statuses.Parse(answer), after.Status);
        SeamRegisters wanted = call;
        wanted.Rax = after.Rax;
        (wanted.Rcx, wanted.Rdx) = answer == "SUCCESS" ? (0, 0) : Information(answer, found ? word : SeptFormat.Free, found ? level : level - 1);
        if (answer == "SUCCESS" && row.To != "=")
            wanted.Rcx = SeptEffect.Apply(row.Leaf, scene, row.From, level, call.R8, expected);
        if (row.Leaf == "TDH.MEM.SEPT.RD")
            (wanted.Rcx, wanted.Rdx) = (SeptFormat.Shown(word), SeptFormat.Described(word, level));
        if (row.Leaf is "TDH.MEM.RD" or "TDH.MEM.WR")
            wanted.R8 = answer == "SUCCESS" && setup.Children == SceneChildren.None ? Pattern : 0;
        AssertRegisters(wanted, after);
        Assert.Empty(ModuleState.Differences(expected, scene.Snapshot()));
        if (answer == "SUCCESS")
            CheckContent(row, setup, scene, call);
        return Statuses.Name(after.Status);
    }

    // Which page holds what afterwards (TM09): the source of PAGE.ADD, the moved page, the written word; AUG touches nothing.
    private static void CheckContent(SeptRow row, in SceneSetup setup, SeptScene scene, in SeamRegisters call)
    {
        PhysicalMemory memory = scene.Rig.Machine.Memory;
        switch (row.Leaf)
        {
            case "TDH.MEM.PAGE.ADD":
                Assert.True(memory.Frame(new Hpa(call.R8)).SequenceEqual(memory.Frame(new Hpa(call.R9))));
                Assert.NotEqual(0UL, memory.Word(call.R8));
                break;
            case "TDH.MEM.PAGE.AUG":
                Assert.Equal(HostCalls.OldContent, memory.Word(call.R8));
                break;
            case "TDH.MEM.PAGE.RELOCATE":
                bool pending = row.From is SeptState.PENDING or SeptState.PENDING_BLOCKED;
                Assert.Equal(pending ? 0 : Pattern, memory.Word(call.R8 + HostCalls.Offset));
                break;
            case "TDH.MEM.WR" when setup.Children == SceneChildren.None:
                Assert.Equal(call.R8, memory.Word(scene.Page + HostCalls.Offset));
                break;
            default:
                break;
        }
    }

    private static (ulong Rcx, ulong Rdx) Information(string answer, ulong word, int level) =>
        answer.StartsWith("TLB_TRACKING_NOT_DONE", StringComparison.Ordinal) ? (0, 0) : (SeptFormat.Shown(word), SeptFormat.Described(word, level));

    private static ulong WordOf(ModuleState state, SeptScene scene, int level) =>
        state.Entries.TryGetValue((scene.Tdr, scene.Gpa, level), out ulong word) ? word : SeptFormat.Free;

    private static void AssertRegisters(SeamRegisters wanted, SeamRegisters after)
    {
        for (int i = 1; i < 16; i++)
            Assert.True(wanted[(Gpr)i] == after[(Gpr)i], $"{(Gpr)i} is 0x{after[(Gpr)i]:x}, not 0x{wanted[(Gpr)i]:x}");
    }
}

/// <summary>Calls whose operands are all legal: whether they succeed depends only on the entry.</summary>
internal static class HostCalls
{
    /// <summary>Where MEM.RD and MEM.WR look, within the page.</summary>
    public const ulong Offset = 0x100;

    /// <summary>What an offered page holds in its first word.</summary>
    public const ulong OldContent = 0xFEED_F00D_0000_0001;

    public static TdhLeaf LeafOf(string name) => name switch
    {
        "TDH.MEM.PAGE.ADD" => TdhLeaf.MEM_PAGE_ADD,
        "TDH.MEM.PAGE.AUG" => TdhLeaf.MEM_PAGE_AUG,
        "TDH.MEM.SEPT.ADD" => TdhLeaf.MEM_SEPT_ADD,
        "TDH.MEM.RANGE.BLOCK" => TdhLeaf.MEM_RANGE_BLOCK,
        "TDH.MEM.RANGE.UNBLOCK" => TdhLeaf.MEM_RANGE_UNBLOCK,
        "TDH.MEM.PAGE.REMOVE" => TdhLeaf.MEM_PAGE_REMOVE,
        "TDH.MEM.SEPT.REMOVE" => TdhLeaf.MEM_SEPT_REMOVE,
        "TDH.MEM.PAGE.PROMOTE" => TdhLeaf.MEM_PAGE_PROMOTE,
        "TDH.MEM.PAGE.DEMOTE" => TdhLeaf.MEM_PAGE_DEMOTE,
        "TDH.MEM.PAGE.RELOCATE" => TdhLeaf.MEM_PAGE_RELOCATE,
        "TDH.MEM.SEPT.RD" => TdhLeaf.MEM_SEPT_RD,
        "TDH.MEM.RD" => TdhLeaf.MEM_RD,
        "TDH.MEM.WR" => TdhLeaf.MEM_WR,
        "TDH.MR.EXTEND" => TdhLeaf.MR_EXTEND,
        "TDH.MEM.TRACK" => TdhLeaf.MEM_TRACK,
        _ => throw new ArgumentException($"{name} is not a memory leaf", nameof(name)),
    };

    /// <summary>The registers of a call on the scene's entry. R9 to R15 hold values that the call must leave alone.</summary>
    public static SeamRegisters Legal(string leaf, SeptScene scene, int level, bool allowExisting = false)
    {
        SeamRegisters r = SeamRegisters.Call(LeafOf(leaf));
        for (int i = 3; i < 16; i++)
            r[(Gpr)i] = 0x5A5A_0000_0000_0000UL | (uint)i;
        r.Rcx = scene.Operand;
        r.Rdx = scene.Tdr | (allowExisting ? 1UL : 0);
        switch (leaf)
        {
            case "TDH.MEM.PAGE.ADD":
                r.R8 = scene.Rig.Page().Value;
                r.R9 = scene.Rig.Page().Value;
                scene.Rig.Machine.Memory.Fill(new Hpa(r.R9), 0xC0FFEE);
                break;
            case "TDH.MEM.PAGE.AUG":
                r.R8 = level == 1 ? scene.Rig.LargePage().Value : scene.Rig.Page().Value;
                scene.Rig.Machine.Memory.Word(r.R8) = OldContent;
                break;
            case "TDH.MEM.SEPT.ADD" or "TDH.MEM.PAGE.DEMOTE" or "TDH.MEM.PAGE.RELOCATE":
                r.R8 = scene.Rig.Page().Value;
                break;
            case "TDH.MEM.RD":
                r.Rcx = scene.Gpa + Offset;
                break;
            case "TDH.MEM.WR":
                r.Rcx = scene.Gpa + Offset;
                r.R8 = 0x1111_2222_3333_4444;
                break;
            case "TDH.MR.EXTEND":
                r.Rcx = scene.Gpa + Offset;
                break;
            case "TDH.MEM.TRACK":
                (r.Rcx, r.Rdx) = (scene.Tdr, r.Rbx);
                break;
            default:
                break;
        }

        return r;
    }
}
