namespace Tdp.Harness.Invariants;

/// <summary>When a rule holds: the tags A, Q, O and "liveness" of tdp-mmu 10.</summary>
public enum InvariantTag
{
    /// <summary>A: at every instant, also between two shared accesses of an operation.</summary>
    Always,

    /// <summary>Q: when no operation is in flight.</summary>
    Quiescent,

    /// <summary>O: when the named operation has returned.</summary>
    AfterOperation,

    /// <summary>Something that is waited for happens.</summary>
    Liveness,
}

/// <summary>
/// What a rule is judged after in an explored run (decisions section 9): the kind of event whose objects it is about. The first eight are events; the others say who
/// judges a rule that belongs to no event.
/// </summary>
public enum InvariantBinding
{
    /// <summary>A change of an entry of a KVM tree.</summary>
    Entry,

    /// <summary>A table is linked, unlinked or freed.</summary>
    Table,

    /// <summary>A SEAMCALL is made or has returned.</summary>
    Seamcall,

    /// <summary>A lock, a root or a flag changes.</summary>
    Root,

    /// <summary>A vCPU enters the guest, leaves it, or returns to user space.</summary>
    Vcpu,

    /// <summary>A fault ends.</summary>
    FaultEnd,

    /// <summary>A translation is used, a frame changes hands.</summary>
    HandOver,

    /// <summary>The invalidation record changes, or a conversion ends.</summary>
    Invalidation,

    /// <summary>The MMU's iterator walks: judged on its steps.</summary>
    Walk,

    /// <summary>Everything is at rest.</summary>
    Rest,

    /// <summary>Whoever performed the operation judges when it has returned.</summary>
    Operation,

    /// <summary>The VM is gone.</summary>
    Teardown,

    /// <summary>Progress is compared between two looks.</summary>
    Progress,

    /// <summary>Asserted where it could be broken, and looked up at rest.</summary>
    Everywhere,
}

/// <summary>Who judges a rule in a free run, with real threads (decisions section 9: "stress").</summary>
[Flags]
public enum FreeRunJudge
{
    /// <summary>Nobody can: what it is about is visible only between two shared accesses.</summary>
    None = 0,

    /// <summary>The thread that acts, at the moment it acts.</summary>
    ActingThread = 1,

    /// <summary>On samples: one operation in about a thousand looks at all trees with mmu_lock held for writing.</summary>
    Sample = 2,

    /// <summary>At each rendezvous, when every thread has stopped.</summary>
    Rest = 4,

    /// <summary>Whoever performed the operation, when it has returned.</summary>
    Operation = 8,

    /// <summary>After the VM is gone.</summary>
    Teardown = 16,

    /// <summary>The director of the run, which compares progress.</summary>
    Watch = 32,
}

/// <summary>What a predicate looks at. It can say what it is about: the entries, pages and values involved, in one line.</summary>
public interface ISubject
{
    /// <summary>One line for a failure report. Not called unless a rule is broken; may allocate.</summary>
    string Describe();
}

/// <summary>One rule that holds for every correct run, as the catalogue lists it.</summary>
public abstract class Invariant
{
    private protected Invariant(string id, InvariantTag tag, InvariantBinding binding, FreeRunJudge freeRun, string title, string sentence)
    {
        Id = id;
        Tag = tag;
        Binding = binding;
        FreeRun = freeRun;
        Title = title;
        Sentence = sentence;
    }

    /// <summary>Its number, such as <c>I19</c>.</summary>
    public string Id { get; }

    /// <summary>When it holds.</summary>
    public InvariantTag Tag { get; }

    /// <summary>After which events it is judged in an explored run.</summary>
    public InvariantBinding Binding { get; }

    /// <summary>Who judges it in a free run.</summary>
    public FreeRunJudge FreeRun { get; }

    /// <summary>A few words.</summary>
    public string Title { get; }

    /// <summary>The rule.</summary>
    public string Sentence { get; }

    /// <summary>Why a free run never judges it, or what it judges instead; empty for most rules.</summary>
    public string Note { get; init; } = string.Empty;

    /// <summary>True when the thread that acts can judge it alone, so that a free run judges it at every act (decisions section 9).</summary>
    public bool IsActingThread => (FreeRun & FreeRunJudge.ActingThread) != FreeRunJudge.None;

    /// <summary>Its place in the catalogue; where its count is kept.</summary>
    public int Slot { get; internal set; } = -1;

    /// <inheritdoc/>
    public override string ToString() => Id;
}

/// <summary>Says whether a rule holds for a subject. Pure: it reads nothing but the subject, allocates nothing, and causes no event.</summary>
/// <typeparam name="T">What it looks at.</typeparam>
public delegate bool Predicate<T>(in T subject)
    where T : struct, ISubject;

/// <summary>A rule about one kind of subject.</summary>
/// <typeparam name="T">What its predicate looks at. Whoever judges gathers one: an event's, a call's, one of a sweep.</typeparam>
public sealed class Invariant<T> : Invariant
    where T : struct, ISubject
{
    private readonly Predicate<T> _predicate;

    internal Invariant(string id, InvariantTag tag, InvariantBinding binding, FreeRunJudge freeRun, string title, string sentence, Predicate<T> predicate)
        : base(id, tag, binding, freeRun, title, sentence) => _predicate = predicate;

    /// <summary>True when the rule holds for the subject, or does not concern it.</summary>
    public bool Holds(in T subject) => _predicate(subject);
}
