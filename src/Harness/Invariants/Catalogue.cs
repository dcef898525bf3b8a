using System.Text;

namespace Tdp.Harness.Invariants;

/// <summary>Every rule that is checked here, by number: I01 to I82, and the module's rules that the sweep of a VM judges. One list; who judges takes its rules from it.</summary>
public static class Catalogue
{
    private static readonly Dictionary<string, Invariant> ById = new(StringComparer.Ordinal);

    static Catalogue()
    {
        List<Invariant> all = [.. TreeShape.All, .. MirrorAndModule.All, .. RootRules.All, .. WalkersAndMemory.All, .. FaultRules.All, .. LifeCycle.All, .. AddedRules.All, AddedRules.TM01];
        for (int slot = 0; slot < all.Count; slot++)
        {
            all[slot].Slot = slot;
            ById.Add(all[slot].Id, all[slot]);
        }

        All = all;
    }

    /// <summary>Every rule, in the order of the numbers.</summary>
    public static IReadOnlyList<Invariant> All { get; }

    /// <summary>The rule with this number.</summary>
    /// <exception cref="KeyNotFoundException">There is no such rule.</exception>
    public static Invariant Get(string id) => ById[id];

    /// <summary>The sentence of a rule, or an empty text for a number that is not in the list.</summary>
    public static string SentenceOf(string id) => ById.TryGetValue(id, out Invariant? invariant) ? invariant.Sentence : string.Empty;

    /// <summary>The list as a table in Markdown, as the documentation shows it.</summary>
    public static string ToMarkdown()
    {
        StringBuilder text = new("| Rule | Tag | Explored run: judged at | Free run: judged by | What must hold |\n| --- | --- | --- | --- | --- |\n");
        foreach (Invariant rule in All)
        {
            text.Append("| ").Append(rule.Id).Append(" | ").Append(Of(rule.Tag)).Append(" | ").Append(Of(rule.Binding)).Append(" | ").Append(Of(rule.FreeRun)).Append(" | ").Append(rule.Sentence).Append(" |\n");
        }

        return text.ToString();
    }

    /// <summary>A tag in words.</summary>
    public static string Of(InvariantTag tag) => tag switch
    {
        InvariantTag.Always => "always",
        InvariantTag.Quiescent => "quiescent",
        InvariantTag.AfterOperation => "after operation",
        _ => "liveness",
    };

    /// <summary>A binding in words.</summary>
    public static string Of(InvariantBinding binding) => binding switch
    {
        InvariantBinding.Entry => "change of an entry",
        InvariantBinding.Table => "link, unlink or free of a table",
        InvariantBinding.Seamcall => "SEAMCALL",
        InvariantBinding.Root => "lock, root or flag",
        InvariantBinding.Vcpu => "vCPU entry or exit",
        InvariantBinding.FaultEnd => "end of a fault",
        InvariantBinding.HandOver => "TLB hit, frame hand-over",
        InvariantBinding.Invalidation => "invalidation record, end of a conversion",
        InvariantBinding.Walk => "step of the iterator",
        InvariantBinding.Rest => "rest",
        InvariantBinding.Operation => "return of the operation",
        InvariantBinding.Teardown => "end of the VM",
        InvariantBinding.Progress => "deadlock and livelock detection",
        _ => "everywhere, by assertion",
    };

    /// <summary>Who judges in a free run, in words.</summary>
    public static string Of(FreeRunJudge judge)
    {
        List<string> names = [];
        Add(FreeRunJudge.ActingThread, "acting thread");
        Add(FreeRunJudge.Sample, "samples");
        Add(FreeRunJudge.Rest, "rest");
        Add(FreeRunJudge.Operation, "caller");
        Add(FreeRunJudge.Teardown, "teardown");
        Add(FreeRunJudge.Watch, "watchdog");
        return names.Count == 0 ? "-" : string.Join(", ", names);

        void Add(FreeRunJudge flag, string name)
        {
            if ((judge & flag) != FreeRunJudge.None)
            {
                names.Add(name);
            }
        }
    }
}
