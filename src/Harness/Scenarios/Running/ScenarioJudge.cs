using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <summary>Judges one execution of a scenario: the invariants at rest and after teardown, and the scenario's own requirements.</summary>
internal sealed class ScenarioJudge
{
    private readonly ScenarioWorld _world;
    private readonly ScenarioBaseline _baseline;
    private readonly Scenario _scenario;
    private readonly List<ScenarioFailure> _failures = [];
    private readonly HashSet<string> _expected = new(StringComparer.Ordinal);
    private readonly List<(Requirement Requirement, bool?[][] Known, List<string> Seen)> _open = [];
    private bool _judgesLeaks;

    public ScenarioJudge(ScenarioWorld world, ScenarioBaseline baseline)
    {
        _world = world;
        _baseline = baseline;
        _scenario = world.Scenario;
    }

    /// <summary>What must hold when no operation is in flight.</summary>
    public void AtRest()
    {
        foreach (ScenarioVmState state in _world.States)
        {
            if (!state.IsDestroyed && !state.Vm.IsDead)
            {
                Invariants.AtRest.Check(state.Vm);
            }
        }
    }

    /// <summary>Looks at everything that can be seen while the VMs are there.</summary>
    public void Requirements()
    {
        foreach (Requirement requirement in _scenario.Requirements)
        {
            bool?[][] known = new bool?[requirement.Alternatives.Count][];
            List<string> seen = [];
            for (int i = 0; i < known.Length; i++)
            {
                known[i] = new bool?[requirement.Alternatives[i].Count];
                for (int j = 0; j < known[i].Length; j++)
                {
                    Clause clause = requirement.Alternatives[i][j];
                    _judgesLeaks |= clause.Kind is SubjectKind.Leaks;
                    if (clause.Kind is SubjectKind.Finding)
                    {
                        _expected.Add(clause.Name);
                    }
                    else if (clause.Kind is not SubjectKind.Leaks)
                    {
                        known[i][j] = Judge(clause, seen);
                    }
                }
            }

            _open.Add((requirement, known, seen));
        }
    }

    /// <summary>What must hold when the VMs are gone.</summary>
    public void AfterTeardown(bool audits)
    {
        Machine machine = _world.Machine;
        if (audits)
        {
            foreach (string disagreement in _world.Kernel.Audit(isAfterTeardown: true).Disagreements)
            {
                machine.Findings.Add("I71", disagreement);
            }
        }

        foreach ((Requirement requirement, bool?[][] known, List<string> seen) in _open)
        {
            Late(requirement, known, seen);
        }

        if (!_judgesLeaks)
        {
            foreach (LeakedFrame leak in machine.Ledger.Leaks)
            {
                _failures.Add(new ScenarioFailure("I71", $"frame 0x{leak.Frame:x} was leaked: {leak.Reason}", 0));
            }
        }
    }

    /// <summary>The verdict.</summary>
    public ScenarioVerdict Verdict()
    {
        ScenarioHistory history = _world.History;
        List<ScenarioFailure> failures = [];
        for (int i = 0; i < history.Failures.Length; i++)
        {
            if (history.Failures[i] is { } thrown)
            {
                failures.Add(new ScenarioFailure("crash", $"actor {_scenario.Actors[i].Name} threw {thrown.GetType().Name}: {thrown.Message.ReplaceLineEndings(" ")}", 0));
            }
        }

        for (int i = 0; i < history.Init.Length; i++)
        {
            if (!history.Init[i].IsSuccess && !IsRequired("init", i, history.Init.Length))
            {
                failures.Add(new ScenarioFailure("setup", $"'{_scenario.Init[i].Step}' answered {history.Init[i]}", _scenario.Init[i].Step.Line));
            }
        }

        foreach (Finding finding in _world.Machine.Findings.All)
        {
            if (!_expected.Contains(finding.Rule))
            {
                failures.Add(new ScenarioFailure(finding.Rule, finding.Text, 0));
            }
        }

        failures.AddRange(_failures);
        return new ScenarioVerdict(failures, Lines(history));
    }

    private void Late(Requirement requirement, bool?[][] known, List<string> seen)
    {
        bool holds = false;
        for (int i = 0; i < known.Length; i++)
        {
            bool all = true;
            for (int j = 0; j < known[i].Length; j++)
            {
                all &= known[i][j] ??= Judge(requirement.Alternatives[i][j], seen);
            }

            holds |= all;
        }

        if (!holds)
        {
            _failures.Add(new ScenarioFailure("require", $"{requirement}; found {string.Join(", ", seen)}", requirement.Line));
        }
    }

    private List<string> Lines(ScenarioHistory history)
    {
        List<string> lines = [];
        for (int i = 0; i < history.Init.Length; i++)
        {
            lines.Add(string.Create(CultureInfo.InvariantCulture, $"init.{i + 1} {_scenario.Init[i].Step}: {history.Init[i]}"));
        }

        for (int a = 0; a < history.Results.Length; a++)
        {
            for (int i = 0; i < history.Results[a].Length; i++)
            {
                lines.Add(string.Create(CultureInfo.InvariantCulture, $"{_scenario.Actors[a].Name}.{i + 1} {_scenario.Actors[a].Steps[i]}: {history.Results[a][i]}"));
            }
        }

        for (int i = 0; i < history.After.Length; i++)
        {
            lines.Add(string.Create(CultureInfo.InvariantCulture, $"after.{i + 1} {_scenario.After[i].Step}: {history.After[i]}"));
        }

        return lines;
    }

    private bool IsRequired(string name, int index, int count)
    {
        foreach (Requirement requirement in _scenario.Requirements)
        {
            foreach (IReadOnlyList<Clause> alternative in requirement.Alternatives)
            {
                foreach (Clause clause in alternative)
                {
                    if (clause.Kind is SubjectKind.Result && clause.Name == name && (clause.Step == 0 ? count : clause.Step) == index + 1)
                    {
                        return true;
                    }
                }
            }
        }

        return false;
    }

    private bool Judge(Clause clause, List<string> seen)
    {
        long? count = clause.Kind switch
        {
            SubjectKind.Calls => _baseline.Calls(_world.Module, clause.IsGuestLeaf ? ((TdgLeaf)clause.Leaf).FullName() : ((TdhLeaf)clause.Leaf).FullName(), clause.IsGuestLeaf, clause.Status),
            SubjectKind.Count => _baseline.Count(clause.Vm - 1, State(clause).Vm.Mmu, clause.Name),
            SubjectKind.Finding => Findings(clause.Name),
            SubjectKind.Log => _baseline.Log(_world.Kernel.Log, clause.Name),
            SubjectKind.Leaks => _world.Machine.Ledger.Leaks.Count,
            _ => null,
        };
        if (count is { } number)
        {
            seen.Add(string.Create(CultureInfo.InvariantCulture, $"{number}"));
            return clause.Holds(number);
        }

        StateProbe probe = new(_world, State(clause));
        switch (clause.Kind)
        {
            case SubjectKind.Result:
                StepResult result = Result(clause);
                seen.Add(result.ToString());
                return clause.Holds(result.Word);
            case SubjectKind.Vm:
                return Word(clause, State(clause).Vm.IsDead ? "no" : "yes", seen);
            case SubjectKind.Slot:
                return Word(clause, State(clause).Live(clause.Slot) is null ? "absent" : "there", seen);
            case SubjectKind.Attribute:
                return Word(clause, probe.Attribute(clause.Range), seen);
            case SubjectKind.Mixed:
                return Word(clause, probe.IsMixed(clause.Range.Start, clause.Level) ? "yes" : "no", seen);
            case SubjectKind.Dirty:
                return Word(clause, probe.Dirty(clause.Slot, clause.Range), seen);
            case SubjectKind.Direct:
                return Each(clause, probe.Direct(clause.Range), seen);
            case SubjectKind.Mirror:
                return Each(clause, probe.Mirror(clause.Range), seen);
            default:
                return Each(clause, probe.Sept(clause.Range), seen);
        }
    }

    private ScenarioVmState State(Clause clause) => _world.StateOf(clause.Vm);

    private static bool Word(Clause clause, string word, List<string> seen)
    {
        seen.Add(word);
        return clause.Holds(word);
    }

    // Every frame of the range must satisfy the clause; a leaf of any size is also a "leaf".
    private static bool Each(Clause clause, IReadOnlyList<(Gfn Gfn, string Word)> words, List<string> seen)
    {
        foreach ((Gfn gfn, string word) in words)
        {
            bool isLeaf = word is "4K" or "2M" or "1G";
            bool holds = clause.Comparison is Comparison.Equal ? clause.Holds(word) || (isLeaf && clause.Holds("leaf")) : clause.Holds(word) && !(isLeaf && !clause.Holds("leaf"));
            if (!holds)
            {
                seen.Add($"{word} at {gfn}");
                return false;
            }
        }

        return true;
    }

    private StepResult Result(Clause clause)
    {
        ScenarioHistory history = _world.History;
        StepResult[] results = clause.Name switch
        {
            "init" => history.Init,
            "after" => history.After,
            _ => [],
        };
        for (int i = 0; i < _scenario.Actors.Count && results.Length == 0; i++)
        {
            if (_scenario.Actors[i].Name == clause.Name)
            {
                results = history.Results[i];
            }
        }

        return results[clause.Step == 0 ? results.Length - 1 : clause.Step - 1];
    }

    private long Findings(string rule)
    {
        long count = 0;
        foreach (Finding finding in _world.Machine.Findings.All)
        {
            count += finding.Rule == rule ? 1 : 0;
        }

        return count;
    }
}
