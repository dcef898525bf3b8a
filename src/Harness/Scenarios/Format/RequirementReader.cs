using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <content>Requirements, after <see cref="RequirementGrammar"/>.</content>
internal sealed partial class ScenarioReader
{
    /// <summary>Results of steps that are neither an errno nor a status of the module.</summary>
    private static readonly string[] ResultWords =
        ["ok", "fixed", "spurious", "retry", "emulate", "write-protected", "memory-fault", "mmio", "ve", "event", "yes", "no", "invalid", "align", "unsupported", "shutdown", "not-done"];

    private void RequireLine(List<ScenarioWord> words)
    {
        List<IReadOnlyList<Clause>> alternatives = [];
        List<Clause> clauses = [];
        int from = 1;
        int before = _errors.Count;
        for (int i = 1; i <= words.Count; i++)
        {
            bool isJoin = i < words.Count && !words[i].IsQuoted && words[i].Text is "and" or "or";
            if (i < words.Count && !isJoin)
            {
                continue;
            }

            if (i == from)
            {
                Missing(words[i - 1], "a clause such as 'A = fixed' or 'mirror gfn=0x200 = none'");
                return;
            }

            if (ReadClause(words.GetRange(from, i - from)) is not { } clause)
            {
                return;
            }

            clauses.Add(clause);
            if (i == words.Count || words[i].Text is "or")
            {
                alternatives.Add(clauses);
                clauses = [];
            }

            from = i + 1;
        }

        if (from == words.Count + 1 && alternatives.Count > 0 && _errors.Count == before)
        {
            _requirements.Add(new Requirement(alternatives, words[0].Line));
        }
        else if (_errors.Count == before)
        {
            Missing(words[^1], "a clause");
        }
    }

    private Clause? ReadClause(List<ScenarioWord> words)
    {
        int at = words.FindIndex(w => !w.IsQuoted && Array.IndexOf(RequirementGrammar.Comparisons, w.Text) >= 0);
        if (at < 1)
        {
            Error(words[0], $"'{words[0].Text}' has no comparison behind it: allowed is {string.Join(" ", RequirementGrammar.Comparisons)} with a blank on both sides");
            return null;
        }

        if (at != words.Count - 2)
        {
            if (at == words.Count - 1)
            {
                Missing(words[^1], "what it is compared with");
            }
            else
            {
                Error(words[at + 2], $"'{words[at + 2].Text}' is too much here: one value, several with | between them");
            }

            return null;
        }

        int before = _errors.Count;
        Comparison comparison = (Comparison)Array.IndexOf(RequirementGrammar.Comparisons, words[at].Text);
        SubjectShape? shape = words[0].IsQuoted ? null : RequirementGrammar.Find(words[0].Text);

        // "slot" is also how a slot is named inside other subjects; as a subject it stands first.
        Clause? clause = shape is null ? ResultClause(words, at) : SubjectClause(shape, words, at);
        if (clause is null || _errors.Count != before)
        {
            return null;
        }

        return Compared(clause with { Comparison = comparison }, shape, words[at], words[^1]);
    }

    private Clause? ResultClause(List<ScenarioWord> words, int at)
    {
        if (at != 1)
        {
            Error(words[0], $"'{words[0].Text}' is neither a step nor a subject: allowed is ACTOR.N, {string.Join(", ", Array.ConvertAll(RequirementGrammar.All, s => s.Name))}");
            return null;
        }

        (string actor, int number) = StepName(words[0]);
        return new Clause(SubjectKind.Result) { Name = actor, Step = number };
    }

    private Clause? SubjectClause(SubjectShape shape, List<ScenarioWord> words, int end)
    {
        Clause clause = new(shape.Kind);
        bool hasSlot = false;
        bool hasName = false;
        foreach (ScenarioWord word in words.GetRange(1, end - 1))
        {
            switch (word.IsPair ? word.Key : string.Empty)
            {
                case "gfn" when shape.Pattern.Contains("gfn=", StringComparison.Ordinal):
                    clause = clause with { Range = Range(word.Value) };
                    break;
                case "vm":
                    clause = clause with { Vm = (int)Number(word.Value, 1, Scenario.MaxVms) };
                    break;
                case "slot" when shape.Pattern.Contains("slot=", StringComparison.Ordinal):
                    clause = clause with { Slot = (int)Number(word.Value, 0, 63) };
                    hasSlot = true;
                    break;
                case "level" when shape.Pattern.Contains("level=", StringComparison.Ordinal):
                    if (!StepOperands.TryLevel(word.Value.Text, out Level level) || (level != Level.M2 && level != Level.G1))
                    {
                        Error(word.Value, $"level={word.Value.Text}: allowed is 2M or 1G");
                    }

                    clause = clause with { Level = level };
                    break;
                case "" when shape.Kind is SubjectKind.Calls && !hasName:
                    hasName = true;
                    clause = LeafOf(clause, word);
                    break;
                case "" when shape.Kind is SubjectKind.Calls && clause.Status.Length == 0:
                    clause = clause with { Status = StatusWord(word) };
                    break;
                case "" when shape.Kind is SubjectKind.Count or SubjectKind.Finding or SubjectKind.Log && !hasName:
                    hasName = true;
                    clause = NameOf(clause, word);
                    break;
                default:
                    Error(word, $"'{word.Text}' is not part of this subject: {shape.Name} {shape.Pattern} [vm=N]");
                    return null;
            }
        }

        bool lacks = (clause.Range.IsEmpty && shape.Pattern.Contains("gfn=", StringComparison.Ordinal))
            || (!hasSlot && shape.Pattern.Contains("slot=", StringComparison.Ordinal))
            || (clause.Level == default && shape.Pattern.Contains("level=", StringComparison.Ordinal))
            || (!hasName && shape.Kind is SubjectKind.Calls or SubjectKind.Count or SubjectKind.Finding or SubjectKind.Log);
        if (lacks)
        {
            Missing(words[end - 1], $"{shape.Name} {shape.Pattern}");
        }

        _vmsNamed.Add((words[0], clause.Vm, shape.Kind is SubjectKind.Mirror or SubjectKind.Sept or SubjectKind.Attribute));
        if (hasSlot)
        {
            _slotsNamed.Add((words[0], clause.Vm, clause.Slot));
        }

        return clause;
    }

    private Clause LeafOf(Clause clause, ScenarioWord word)
    {
        if (!word.Text.StartsWith("TDG.", StringComparison.Ordinal) && Leaves.TryHost(word.Text, out TdhLeaf host))
        {
            return clause with { Leaf = (int)host };
        }

        if (word.Text.StartsWith("TDG.", StringComparison.Ordinal) && Leaves.TryGuest(word.Text, out TdgLeaf guest))
        {
            return clause with { Leaf = (int)guest, IsGuestLeaf = true };
        }

        Error(word, $"'{word.Text}' is not a leaf: allowed is {Leaves.HostNames}, or a TDCALL leaf with TDG. in front");
        return clause;
    }

    private Clause NameOf(Clause clause, ScenarioWord word)
    {
        if (clause.Kind is SubjectKind.Count && Array.IndexOf(RequirementGrammar.Counters, word.Text) < 0)
        {
            Error(word, $"'{word.Text}' is not a counter: allowed is {string.Join(", ", RequirementGrammar.Counters)}");
        }
        else if (clause.Kind is SubjectKind.Log && !word.IsQuoted)
        {
            Error(word, "the text that the log must contain stands in quotes");
        }
        else if (clause.Kind is SubjectKind.Finding && (word.Text.Length < 3 || !char.IsAsciiDigit(word.Text[^1])))
        {
            Error(word, $"'{word.Text}' is not a rule such as I57 or TM01");
        }

        return clause with { Name = word.Text };
    }

    // A status is a name of the module's, with or without TDX_.
    private string StatusWord(ScenarioWord word)
    {
        string name = word.Text.StartsWith("TDX_", StringComparison.Ordinal) ? word.Text[4..] : word.Text;
        if (!StatusWords.Contains(name))
        {
            Error(word, $"'{word.Text}' is not a status of the module such as SUCCESS or OPERAND_BUSY");
        }

        return name;
    }

    private Clause? Compared(Clause clause, SubjectShape? shape, ScenarioWord comparison, ScenarioWord value)
    {
        if (shape is { IsCount: true })
        {
            if (!long.TryParse(value.Text, NumberStyles.None, CultureInfo.InvariantCulture, out long number))
            {
                Error(value, $"'{value.Text}' is not a number: {shape.Name} is counted");
                return null;
            }

            return clause with { Number = number };
        }

        if (clause.Comparison is not (Comparison.Equal or Comparison.NotEqual))
        {
            Error(comparison, $"'{comparison.Text}' compares numbers; allowed here is = or !=");
            return null;
        }

        List<string> values = [];
        foreach (string text in value.Text.Split('|'))
        {
            string word = text.StartsWith("TDX_", StringComparison.Ordinal) ? text[4..] : text;
            bool isKnown = shape is not null
                ? Array.IndexOf(shape.Values, word) >= 0
                : Array.IndexOf(ResultWords, word) >= 0 || (Enum.TryParse(word, out Errno errno) && Enum.IsDefined(errno)) || StatusWords.Contains(word);
            if (!isKnown)
            {
                Error(value, $"'{text}' is not allowed here: allowed is {(shape is not null ? string.Join(", ", shape.Values) : string.Join(", ", ResultWords) + ", an errno such as EFAULT, or a status of the module such as SUCCESS")}");
                return null;
            }

            values.Add(word);
        }

        return clause with { Values = values };
    }
}
