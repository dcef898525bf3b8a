namespace Tdp.Harness.Invariants;

/// <summary>
/// Where judgements end: counts how often each rule was judged, and writes those that do not hold into the machine's findings. Any thread; judging allocates
/// nothing while rules hold.
/// </summary>
public sealed class Verdicts
{
    private readonly ActorCounters _byActor = new(Catalogue.All.Count);
    private readonly long[] _byNobody = new long[Catalogue.All.Count];
    private readonly SyncGate _gate = new();
    private readonly FindingLog _findings;
    private readonly string _where;

    /// <summary>Makes the record of one VM.</summary>
    /// <param name="findings">Where broken rules go.</param>
    /// <param name="where">Prefix of every report, such as <c>VM 1</c>.</param>
    public Verdicts(FindingLog findings, string where)
    {
        _findings = findings;
        _where = where;
    }

    /// <summary>How often a rule has been judged so far; exact when nobody judges.</summary>
    public long Times(Invariant rule)
    {
        ArgumentNullException.ThrowIfNull(rule);
        using (_gate.Hold())
        {
            return _byNobody[rule.Slot] + _byActor.Sum(rule.Slot);
        }
    }

    /// <summary>Judges a rule.</summary>
    /// <param name="actor">Who judges; null for a checker outside the world, which then is one thread at a time.</param>
    /// <param name="rule">The rule.</param>
    /// <param name="subject">What it is about.</param>
    /// <returns>True when it holds.</returns>
    public bool Judge<T>(Actor? actor, Invariant<T> rule, in T subject)
        where T : struct, ISubject
    {
        ArgumentNullException.ThrowIfNull(rule);
        Count(actor, rule);
        if (rule.Holds(subject))
        {
            return true;
        }

        Report(rule, subject.Describe());
        return false;
    }

    /// <summary>Counts judgements that somebody else made: an assertion inside a room, which reports under the rule's number by itself.</summary>
    public void Count(Actor? actor, Invariant rule, long times = 1)
    {
        ArgumentNullException.ThrowIfNull(rule);
        if (actor is not null)
        {
            _byActor.Add(actor, rule.Slot, times);
            return;
        }

        using (_gate.Hold())
        {
            _byNobody[rule.Slot] += times;
        }
    }

    private void Report(Invariant rule, string text) => _findings.Add(rule.Id, $"{_where}: {text}");
}
