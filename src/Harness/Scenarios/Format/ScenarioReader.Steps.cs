using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <content>Steps and their parameters, after <see cref="StepGrammar"/>.</content>
internal sealed partial class ScenarioReader
{
    private ScenarioStep? ReadStep(List<ScenarioWord> words, int at, int vm, int vcpu, bool isAfter, bool isActor)
    {
        if (at >= words.Count)
        {
            Missing(words[^1], "a step such as 'write gfn=0x200' or 'convert gfn=0x200 to=shared'");
            return null;
        }

        ScenarioWord name = words[at];
        if (name.IsQuoted || StepGrammar.Find(name.Text) is not { } shape)
        {
            Error(name, $"'{name.Text}' is not a step: allowed is {string.Join(", ", NamesOfSteps(vcpu))}");
            return null;
        }

        if (shape.By is StepBy.Vcpu && vcpu < 0)
        {
            Error(name, $"'{name.Text}' is a step of a vCPU: allowed for a host thread is {string.Join(", ", NamesOfSteps(vcpu))}");
            return null;
        }

        if (shape.Kind is StepKind.Destroy && !isAfter)
        {
            Error(name, "'destroy' is allowed in 'after' lines only: no vCPU may run any more");
            return null;
        }

        if (shape.Kind is StepKind.Stay && !isActor)
        {
            Error(name, "'stay' is allowed in 'actor' lines only: nobody would kick the guest out");
            return null;
        }

        ScenarioStep step = new(shape.Kind) { Vm = vm, Line = name.Line };
        int before = _errors.Count;
        HashSet<StepParameter> seen = [];
        foreach (ScenarioWord word in words.GetRange(at + 1, words.Count - at - 1))
        {
            step = Parameter(step, shape, word, vcpu, seen);
            if (_errors.Count != before)
            {
                return null;
            }
        }

        foreach (StepParameter parameter in shape.Parameters)
        {
            if (parameter.IsRequired && !seen.Contains(parameter))
            {
                Missing(words[^1], $"{parameter.Pattern}: {shape.Pattern}");
                return null;
            }
        }

        bool needsTd = shape.Kind is StepKind.Accept or StepKind.MapGpa or StepKind.Tdcall or StepKind.Convert or StepKind.PunchHole or StepKind.Poison or StepKind.CloseFile or StepKind.InitRegion
            or StepKind.Finalize;
        _vmsNamed.Add((name, step.Vm, needsTd));
        if (step.Slot >= 0)
        {
            _slotsNamed.Add((name, step.Vm, step.Slot));
        }

        if (step.Vcpu >= 0)
        {
            _vcpusNamed.Add((name, step.Vm, step.Vcpu));
        }

        return step;
    }

    private ScenarioStep Parameter(ScenarioStep step, StepShape shape, ScenarioWord word, int vcpu, HashSet<StepParameter> seen)
    {
        if (word is { IsPair: true, Key: "vm" } && vcpu < 0)
        {
            return step with { Vm = (int)Number(word.Value, 1, Scenario.MaxVms) };
        }

        foreach (StepParameter parameter in shape.Parameters)
        {
            if (!Matches(parameter, word))
            {
                continue;
            }

            if (!seen.Add(parameter) && parameter.Form is not ParameterForm.Operands)
            {
                Error(word, $"'{word.Text}' says again what the line has said already ({parameter.Pattern})");
                return step;
            }

            return Apply(step, parameter, word);
        }

        Error(word, $"'{word.Text}' is not part of this step: {shape.Pattern}{(vcpu < 0 ? " [vm=N]" : string.Empty)}");
        return step;
    }

    private static bool Matches(StepParameter parameter, ScenarioWord word)
    {
        if (parameter.Form is ParameterForm.Words)
        {
            return !word.IsQuoted && Array.Exists(parameter.Words, w => w is not StepWords.None && StepGrammar.WordText(w) == word.Text);
        }

        return word.IsPair && parameter.Form switch
        {
            ParameterForm.Range => word.Key is "gfn",
            ParameterForm.To => word.Key is "to",
            ParameterForm.Slot => word.Key is "slot",
            ParameterForm.Vcpu => word.Key is "vcpu",
            ParameterForm.Level => word.Key is "level",
            ParameterForm.Attempts => word.Key is "attempts",
            ParameterForm.HostLeaf or ParameterForm.GuestLeaf => word.Key is "leaf",
            ParameterForm.StepName => word.Key is "step",
            ParameterForm.ActorName => word.Key is "actor",
            _ => Array.IndexOf(StepOperands.Registers, word.Key) >= 0,
        };
    }

    private ScenarioStep Apply(ScenarioStep step, StepParameter parameter, ScenarioWord word)
    {
        ScenarioWord value = word.Value;
        switch (parameter.Form)
        {
            case ParameterForm.Range:
                return step with { Range = Range(value) };
            case ParameterForm.Words:
                return step with { Words = step.Words | Array.Find(parameter.Words, w => StepGrammar.WordText(w) == word.Text) };
            case ParameterForm.To:
                if (value.Text is not ("shared" or "private"))
                {
                    Error(value, $"to={value.Text}: allowed is shared or private");
                }

                return step with { To = value.Text is "shared" ? Alias.Shared : Alias.Private };
            case ParameterForm.Slot:
                return step with { Slot = (int)Number(value, 0, 63) };
            case ParameterForm.Vcpu:
                return step with { Vcpu = (int)Number(value, 0, Scenario.MaxVcpus - 1) };
            case ParameterForm.Level:
                if (!StepOperands.TryLevel(value.Text, out Level level) || level > Level.G1)
                {
                    Error(value, $"level={value.Text}: allowed is 4K, 2M or 1G");
                }

                return step with { Level = level };
            case ParameterForm.Attempts:
                return step with { Attempts = (int)Number(value, 1, 1_000_000) };
            case ParameterForm.HostLeaf:
                if (!Leaves.TryHost(value.Text, out TdhLeaf host) || host is TdhLeaf.VP_ENTER)
                {
                    Error(value, $"leaf={value.Text}: allowed is a SEAMCALL leaf other than VP.ENTER, such as MEM.TRACK: {Leaves.HostNames}");
                }

                return step with { Leaf = (int)host };
            case ParameterForm.GuestLeaf:
                if (!Leaves.TryGuest(value.Text, out TdgLeaf guest))
                {
                    Error(value, $"leaf={value.Text}: allowed is a TDCALL leaf such as MEM.PAGE.ACCEPT: {Leaves.GuestNames}");
                }

                return step with { Leaf = (int)guest };
            case ParameterForm.StepName:
                (string actor, int number) = StepName(value);
                return step with { Awaited = actor, AwaitedStep = number };
            case ParameterForm.ActorName:
                _actorsNamed.Add(value);
                return step with { Awaited = value.Text };
            default:
                return Operand(step, word);
        }
    }

    private ScenarioStep Operand(ScenarioStep step, ScenarioWord word)
    {
        if (!StepOperands.TryRead(word.Value.Text, out ScenarioOperand operand))
        {
            Error(word.Value, $"{word.Text}: allowed is {StepOperands.Allowed}");
            return step;
        }

        if (operand.Vm > 0)
        {
            _vmsNamed.Add((word, operand.Vm, operand.Kind is not OperandKind.Gpa));
        }

        List<ScenarioOperand> operands = [.. step.Operands];
        int index = Array.IndexOf(StepOperands.Registers, word.Key);
        while (operands.Count <= index)
        {
            operands.Add(default);
        }

        if (operands[index] != default)
        {
            Error(word, $"'{word.Text}' says again what the line has said already");
        }

        operands[index] = operand;
        return step with { Operands = operands };
    }

    // A.1, or A for its last.
    private (string Actor, int Number) StepName(ScenarioWord word)
    {
        int dot = word.Text.IndexOf('.', StringComparison.Ordinal);
        string actor = dot < 0 ? word.Text : word.Text[..dot];
        int number = 0;
        if (!IsName(actor) || (dot >= 0 && (!int.TryParse(word.Text.AsSpan(dot + 1), NumberStyles.None, CultureInfo.InvariantCulture, out number) || number == 0)))
        {
            Error(word, $"'{word.Text}' is not the name of a step such as A.1 (the first of actor A) or A (its last)");
            return (string.Empty, 0);
        }

        _stepsNamed.Add((word, actor, number));
        return (actor, number);
    }

    private static List<string> NamesOfSteps(int vcpu)
    {
        List<string> names = [];
        foreach (StepShape shape in StepGrammar.All)
        {
            if (vcpu >= 0 || shape.By is StepBy.Any)
            {
                names.Add(shape.Name);
            }
        }

        return names;
    }

    private GfnRange Range(ScenarioWord word)
    {
        const string Allowed = "a frame such as 0x200, a range with its last frame such as 0x200..0x2ff, or a count such as 0x200+16";
        int dots = word.Text.IndexOf("..", StringComparison.Ordinal);
        int plus = word.Text.IndexOf('+', StringComparison.Ordinal);
        int end = dots >= 0 ? dots : plus >= 0 ? plus : word.Text.Length;
        ulong last = 0;
        ulong count = 1;
        if (!ScenarioWord.TryNumber(word.Text.AsSpan(0, end), out ulong first)
            || (dots >= 0 && !ScenarioWord.TryNumber(word.Text.AsSpan(dots + 2), out last))
            || (dots < 0 && plus >= 0 && !ScenarioWord.TryNumber(word.Text.AsSpan(plus + 1), out count)))
        {
            Error(word, $"gfn={word.Text}: allowed is {Allowed}");
            return default;
        }

        if (dots >= 0)
        {
            if (last < first)
            {
                Error(word, $"gfn={word.Text}: the last frame is below the first");
                return default;
            }

            count = last - first + 1;
        }

        if (count == 0 || count > Scenario.MaxPages || first >= Scenario.GfnLimit || first + count > Scenario.GfnLimit)
        {
            Error(word, string.Create(CultureInfo.InvariantCulture, $"gfn={word.Text}: allowed are 1 to {Scenario.MaxPages} frames below 0x{Scenario.GfnLimit:x}"));
            return default;
        }

        return GfnRange.Of(new Gfn(first), count);
    }

    private ulong Number(ScenarioWord word, ulong lowest, ulong highest)
    {
        if (word.TryNumber(out ulong value) && value >= lowest && value <= highest)
        {
            return value;
        }

        Error(word, string.Create(CultureInfo.InvariantCulture, $"'{word.Text}' is not allowed here: allowed is a number from {lowest} to {highest}"));
        return lowest;
    }

    // The word at a place, if it is one of a few.
    private string? Word(List<ScenarioWord> words, int at, params string[] allowed)
    {
        if (at >= words.Count)
        {
            Missing(words[^1], string.Join(" or ", allowed));
            return null;
        }

        if (!words[at].IsQuoted && Array.IndexOf(allowed, words[at].Text) >= 0)
        {
            return words[at].Text;
        }

        Error(words[at], $"'{words[at].Text}' is not allowed here: allowed is {string.Join(" or ", allowed)}");
        return null;
    }

    private string? Text(List<ScenarioWord> words)
    {
        if (words.Count < 2)
        {
            Missing(words[0], "a value");
            return null;
        }

        if (words[0].Text is "about" && words.Count > 2)
        {
            Error(words[2], "a text of several words stands in quotes");
            return null;
        }

        return words[1].Text;
    }

    private bool NoMore(List<ScenarioWord> words, int from)
    {
        if (words.Count <= from)
        {
            return true;
        }

        Error(words[from], $"'{words[from].Text}' is too much on this line");
        return false;
    }

    private bool Once(List<ScenarioWord> words)
    {
        if (_seenAt.TryAdd(words[0].Text, words[0].Line))
        {
            return true;
        }

        Error(words[0], $"'{words[0].Text}' stands in line {_seenAt[words[0].Text]} already");
        return false;
    }

    private void Missing(ScenarioWord last, string what) => _errors.Add(new ScenarioError(_file, last.Line, last.Column + Width(last), $"missing here: {what}"));

    private void Error(ScenarioWord word, string message) => _errors.Add(new ScenarioError(_file, word.Line, word.Column, message));

    private static int Width(ScenarioWord word) => word.Text.Length + (word.IsQuoted ? 2 : 0);
}
