using System.Globalization;
using System.Text;

namespace Tdp.Harness.Scenarios;

/// <summary>What a clause of a requirement looks at.</summary>
public enum SubjectKind : byte
{
    /// <summary>The result of a step.</summary>
    Result,

    /// <summary>How often a module leaf was called since the setup, or returned a status.</summary>
    Calls,

    /// <summary>The mirror entries of a range.</summary>
    Mirror,

    /// <summary>The Secure EPT entries of a range.</summary>
    Sept,

    /// <summary>The direct entries of a range, over all valid roots.</summary>
    Direct,

    /// <summary>The attributes of a range.</summary>
    Attribute,

    /// <summary>The MIXED flag around a frame.</summary>
    Mixed,

    /// <summary>The dirty bitmap of a range.</summary>
    Dirty,

    /// <summary>A counter of the MMU.</summary>
    Count,

    /// <summary>Whether the VM is alive.</summary>
    Vm,

    /// <summary>Whether a memslot is there.</summary>
    Slot,

    /// <summary>How often a rule was found broken.</summary>
    Finding,

    /// <summary>Lines of the kernel log that contain a text.</summary>
    Log,

    /// <summary>Frames that were leaked, after the VMs are gone.</summary>
    Leaks,
}

/// <summary>How a value is compared.</summary>
public enum Comparison : byte
{
    /// <summary><c>=</c>.</summary>
    Equal,

    /// <summary><c>!=</c>.</summary>
    NotEqual,

    /// <summary><c>&lt;</c>.</summary>
    Less,

    /// <summary><c>&lt;=</c>.</summary>
    AtMost,

    /// <summary><c>&gt;</c>.</summary>
    Greater,

    /// <summary><c>&gt;=</c>.</summary>
    AtLeast,
}

/// <summary>One comparison.</summary>
/// <param name="Kind">What is looked at.</param>
public sealed record Clause(SubjectKind Kind)
{
    /// <summary>The actor whose step is meant, the counter, the rule, or the text.</summary>
    public string Name { get; init; } = string.Empty;

    /// <summary>Number of the step, from 1; 0: the actor's last.</summary>
    public int Step { get; init; }

    /// <summary>The guest frames.</summary>
    public GfnRange Range { get; init; }

    /// <summary>Which VM, from 1.</summary>
    public int Vm { get; init; } = 1;

    /// <summary>Level of the huge range, for MIXED.</summary>
    public Level Level { get; init; }

    /// <summary>Slot number.</summary>
    public int Slot { get; init; }

    /// <summary>The leaf.</summary>
    public int Leaf { get; init; }

    /// <summary>True: <see cref="Leaf"/> is a TDCALL leaf.</summary>
    public bool IsGuestLeaf { get; init; }

    /// <summary>A status of the module that is counted; empty: every call.</summary>
    public string Status { get; init; } = string.Empty;

    /// <summary>How it is compared.</summary>
    public Comparison Comparison { get; init; }

    /// <summary>The words it is compared with: for <c>=</c> any of them, for <c>!=</c> none of them.</summary>
    public IReadOnlyList<string> Values { get; init; } = [];

    /// <summary>The number it is compared with, for counts.</summary>
    public long Number { get; init; }

    /// <summary>The clause as it would stand in a file.</summary>
    public override string ToString() => RequirementGrammar.Write(this);

    /// <summary>Whether a count satisfies the clause.</summary>
    public bool Holds(long count) => Comparison switch
    {
        Comparison.Equal => count == Number,
        Comparison.NotEqual => count != Number,
        Comparison.Less => count < Number,
        Comparison.AtMost => count <= Number,
        Comparison.Greater => count > Number,
        _ => count >= Number,
    };

    /// <summary>Whether a word satisfies the clause.</summary>
    public bool Holds(string word)
    {
        bool found = false;
        foreach (string value in Values)
        {
            found |= string.Equals(value, word, StringComparison.Ordinal);
        }

        return found == (Comparison is Comparison.Equal);
    }
}

/// <summary>What must come out: one of several alternatives, each a list of clauses that all hold.</summary>
/// <param name="Alternatives">At least one, each with at least one clause.</param>
/// <param name="Line">Line of the text, or 0.</param>
public sealed record Requirement(IReadOnlyList<IReadOnlyList<Clause>> Alternatives, int Line)
{
    /// <summary>The requirement as it would stand in a file, without its key.</summary>
    public override string ToString()
    {
        StringBuilder text = new();
        foreach (IReadOnlyList<Clause> alternative in Alternatives)
        {
            text.Append(text.Length == 0 ? string.Empty : " or ").AppendJoin(" and ", alternative);
        }

        return text.ToString();
    }
}

/// <summary>How a subject is written.</summary>
/// <param name="Kind">Which.</param>
/// <param name="Name">Its first word; empty for a result.</param>
/// <param name="Pattern">What follows the name.</param>
/// <param name="Values">The words that it can be compared with; empty: a number.</param>
/// <param name="Sentence">What it is, for documents.</param>
internal sealed record SubjectShape(SubjectKind Kind, string Name, string Pattern, string[] Values, string Sentence)
{
    /// <summary>True when it is compared with a number.</summary>
    public bool IsCount => Values.Length == 0 && Kind is not SubjectKind.Result;
}

/// <summary>The one table of the subjects of requirements.</summary>
internal static class RequirementGrammar
{
    /// <summary>The comparisons as they are written, in the order of <see cref="Comparison"/>.</summary>
    public static readonly string[] Comparisons = ["=", "!=", "<", "<=", ">", ">="];

    /// <summary>Every subject with a name of its own.</summary>
    public static readonly SubjectShape[] All =
    [
        new(SubjectKind.Calls, "calls", "LEAF [STATUS]", [], "Calls of a SEAMCALL or TDCALL leaf since the setup; with a status, those that returned it."),
        new(SubjectKind.Mirror, "mirror", "gfn=RANGE", ["none", "leaf", "frozen"], "The 4K mirror entries of the range."),
        new(SubjectKind.Sept, "sept", "gfn=RANGE", ["FREE", "MAPPED", "PENDING", "BLOCKED", "PENDING_BLOCKED"], "The Secure EPT states of the range."),
        new(SubjectKind.Direct, "direct", "gfn=RANGE", ["none", "leaf", "4K", "2M", "1G", "mmio"], "The direct entries of the range over all roots that are valid."),
        new(SubjectKind.Attribute, "attribute", "gfn=RANGE", ["private", "shared", "mixed"], "The attributes of the range."),
        new(SubjectKind.Mixed, "mixed", "gfn=GFN level=2M|1G", ["yes", "no"], "The MIXED flag of the huge range around the frame."),
        new(SubjectKind.Dirty, "dirty", "slot=N gfn=RANGE", ["yes", "no", "some"], "What is recorded of the range: in the slot's dirty bitmap, or in an answer of get-log."),
        new(SubjectKind.Count, "count", "NAME", [], "A counter of the MMU: pages4k, pages2m, pages1g, tables, fixed, spurious, retries, emulated, zapped, flushes, warnings."),
        new(SubjectKind.Vm, "alive", "[vm=N]", ["yes", "no"], "Whether the VM is alive."),
        new(SubjectKind.Slot, "slot", "slot=N", ["there", "absent"], "Whether the memslot is there."),
        new(SubjectKind.Finding, "finding", "RULE", [], "How often the rule was found broken. A rule that a requirement names may be broken; any other fails the run."),
        new(SubjectKind.Log, "log", "\"TEXT\"", [], "Lines of the kernel log that contain the text."),
        new(SubjectKind.Leaks, "leaks", "", [], "Frames that were leaked, once the VMs are gone. Without a requirement it must be 0."),
    ];

    /// <summary>Counters of the MMU that a requirement can name.</summary>
    public static readonly string[] Counters = ["pages4k", "pages2m", "pages1g", "tables", "fixed", "spurious", "retries", "emulated", "zapped", "flushes", "warnings"];

    /// <summary>The subject with this name, or <see langword="null"/>.</summary>
    public static SubjectShape? Find(string name) => Array.Find(All, s => string.Equals(s.Name, name, StringComparison.Ordinal));

    /// <summary>Writes a clause so that it reads back equal.</summary>
    public static string Write(Clause clause)
    {
        CultureInfo plain = CultureInfo.InvariantCulture;
        string range = clause.Range.IsEmpty ? string.Empty : " gfn=" + StepGrammar.RangeText(clause.Range);
        string subject = clause.Kind switch
        {
            SubjectKind.Result => clause.Step == 0 ? clause.Name : string.Create(plain, $"{clause.Name}.{clause.Step}"),
            SubjectKind.Calls => $"calls {LeafText(clause)}{(clause.Status.Length == 0 ? string.Empty : " " + clause.Status)}",
            SubjectKind.Mixed => $"mixed{range} level={clause.Level}",
            SubjectKind.Dirty => string.Create(plain, $"dirty slot={clause.Slot}{range}"),
            SubjectKind.Slot => string.Create(plain, $"slot slot={clause.Slot}"),
            SubjectKind.Count => "count " + clause.Name,
            SubjectKind.Finding => "finding " + clause.Name,
            SubjectKind.Log => $"log \"{clause.Name}\"",
            _ => Array.Find(All, s => s.Kind == clause.Kind)!.Name + range,
        };
        string vm = clause.Vm == 1 ? string.Empty : string.Create(plain, $" vm={clause.Vm}");
        string value = clause.Values.Count > 0 ? string.Join('|', clause.Values) : clause.Number.ToString(plain);
        return $"{subject}{vm} {Comparisons[(int)clause.Comparison]} {value}";
    }

    private static string LeafText(Clause clause)
        => clause.IsGuestLeaf ? "TDG." + ((TdgLeaf)clause.Leaf).ToString().Replace('_', '.') : ((TdhLeaf)clause.Leaf).ToString().Replace('_', '.');
}
