using System.Globalization;

namespace Tdp.Harness.Scenarios;

/// <summary>
/// Reads scenarios (decisions D18): UTF-8 text, one fact per line, <c>#</c> starts a comment, order counts only among the steps of one actor, of the setup and of the end. Every error
/// is kept with its place; reading goes on at the next line, so one pass shows them all.
/// </summary>
internal sealed partial class ScenarioReader
{
    private const int MostErrors = 50;
    private const string Magic = "tdpmmu-scenario";
    private const string ScheduleMagic = "tdpmmu-schedule";

    private readonly string _file;
    private readonly List<ScenarioError> _errors = [];
    private readonly List<ScenarioVm> _vms = [];
    private readonly List<ScenarioSlot> _slots = [];
    private readonly List<ScenarioSingle> _init = [];
    private readonly List<ScenarioSingle> _after = [];
    private readonly List<ActorDraft> _actors = [];
    private readonly List<Requirement> _requirements = [];
    private readonly List<ScenarioBusy> _busy = [];
    private readonly List<string> _sites = [];
    private readonly List<string> _spec = [];
    private readonly List<string> _buffered = [];
    private readonly Dictionary<string, int> _seenAt = new(StringComparer.Ordinal);
    private readonly List<(ScenarioWord Word, int Vm, int Vcpu)> _vcpusNamed = [];
    private readonly List<(ScenarioWord Word, string Actor, int Step)> _stepsNamed = [];
    private readonly List<(ScenarioWord Word, int Vm, int Slot)> _slotsNamed = [];
    private readonly List<ScenarioWord> _actorsNamed = [];
    private readonly List<(ScenarioWord Word, int Vm, bool NeedsTd)> _vmsNamed = [];
    private string _name = string.Empty;
    private string _about = string.Empty;
    private string _memory = "sc";
    private string _generation = string.Empty;
    private string _patch = string.Empty;
    private string _requires = string.Empty;
    private TlbMode _tlb = TlbMode.Precise;
    private BehaviourProfile _profile = BehaviourProfile.Documented;
    private bool _fair;
    private bool _freeTimers;
    private bool _needsInterleaving;
    private bool _skipsUnknownKeys;
    private int _scheduleLine;

    private ScenarioReader(string file) => _file = file;

    private sealed class ActorDraft(string name, int vm, int vcpu, ScenarioWord place)
    {
        public string Name { get; } = name;

        public int Vm { get; } = vm;

        public int Vcpu { get; } = vcpu;

        public ScenarioWord Place { get; } = place;

        public List<ScenarioStep> Steps { get; } = [];
    }

    /// <summary>Reads a scenario, or the scenario part of a schedule file.</summary>
    /// <param name="text">The text.</param>
    /// <param name="file">Its name, for messages.</param>
    /// <param name="errors">What is wrong; empty exactly if there is a scenario.</param>
    public static Scenario? Read(string text, string file, out IReadOnlyList<ScenarioError> errors)
    {
        ArgumentNullException.ThrowIfNull(text);
        ScenarioReader reader = new(file);
        reader.Lines(text);
        Scenario? scenario = reader._errors.Count == 0 ? reader.Finish() : null;
        errors = reader._errors;
        return reader._errors.Count == 0 ? scenario : null;
    }

    private void Lines(string text)
    {
        string[] lines = text.Split('\n');
        List<ScenarioWord> words = [];
        bool first = true;
        for (int i = 0; i < lines.Length && _errors.Count < MostErrors && _scheduleLine == 0; i++)
        {
            words.Clear();
            ScenarioWord.Split(lines[i].TrimEnd('\r'), i + 1, words, out int openQuote);
            if (openQuote > 0)
            {
                _errors.Add(new ScenarioError(_file, i + 1, openQuote, "a text that starts with \" has no \" at its end on the same line"));
                continue;
            }

            if (words.Count == 0)
            {
                continue;
            }

            if (first)
            {
                first = false;
                if (!Header(words))
                {
                    return;
                }

                continue;
            }

            Line(words);
        }

        if (first)
        {
            _errors.Add(new ScenarioError(_file, 1, 1, $"the text is empty; the first line is '{Magic} 1'"));
        }
    }

    // A higher major version is another format; of a higher minor version the known keys are read and the others skipped.
    private bool Header(List<ScenarioWord> words)
    {
        ScenarioWord magic = words[0];
        if (magic.Text is not (Magic or ScheduleMagic) || words.Count < 2)
        {
            Error(magic, $"the first line must be '{Magic} 1', found '{magic.Text}{(words.Count > 1 ? " " + words[1].Text : string.Empty)}'");
            return false;
        }

        string[] parts = words[1].Text.Split('.');
        if (parts.Length > 2 || !Array.TrueForAll(parts, p => int.TryParse(p, NumberStyles.None, CultureInfo.InvariantCulture, out _)))
        {
            Error(words[1], $"'{words[1].Text}' is not a version; this reader knows {Scenario.Version}");
            return false;
        }

        if (parts[0] is not "1")
        {
            Error(words[1], $"version {words[1].Text} is not known; this reader knows {Scenario.Version}");
            return false;
        }

        _skipsUnknownKeys = magic.Text is ScheduleMagic || (parts.Length == 2 && parts[1] is not "0");
        return NoMore(words, 2);
    }

    private void Line(List<ScenarioWord> words)
    {
        ScenarioWord key = words[0];
        if (key.IsQuoted)
        {
            Error(key, $"a line starts with a key: {Keys}");
            return;
        }

        switch (key.Text)
        {
            case "scenario":
                NameLine(words);
                break;
            case "about":
                if (Once(words) && Text(words) is { } about)
                {
                    _about = about;
                }

                break;
            case "spec":
                SpecLine(words);
                break;
            case "needs":
                if (Once(words) && Word(words, 1, "interleaving") is not null)
                {
                    _needsInterleaving = NoMore(words, 2);
                }

                break;
            case "memory":
                MemoryLine(words);
                break;
            case "rwlock":
                _fair = Once(words) && Word(words, 1, "unfair", "fair") is "fair" && NoMore(words, 2);
                break;
            case "timers":
                _freeTimers = Once(words) && Word(words, 1, "idle", "free") is "free" && NoMore(words, 2);
                break;
            case "tlb":
                TlbLine(words);
                break;
            case "profile":
                ProfileLine(words);
                break;
            case "generation":
                _generation = IdLine(words);
                break;
            case "patch":
                _patch = IdLine(words);
                break;
            case "requires":
                _requires = IdLine(words);
                break;
            case "site":
                if (Text(words) is { } site)
                {
                    _sites.Add(site);
                }

                break;
            case "inject":
                InjectLine(words);
                break;
            case "vm":
                VmLine(words);
                break;
            case "vcpus":
                VcpusLine(words);
                break;
            case "slot":
                SlotLine(words);
                break;
            case "init":
                SingleLine(words, _init);
                break;
            case "after":
                SingleLine(words, _after);
                break;
            case "actor":
                ActorLine(words);
                break;
            case "require":
                RequireLine(words);
                break;
            case "schedule" or "expect" or "origin" or "fingerprint":
                _scheduleLine = key.Line;
                break;
            default:
                if (!_skipsUnknownKeys)
                {
                    Error(key, $"unknown key '{key.Text}': allowed is {Keys}");
                }

                break;
        }
    }

    private const string Keys = "scenario, about, spec, needs, memory, rwlock, timers, tlb, profile, generation, patch, requires, site, inject, vm, vcpus, slot, init, actor, after, require";

    private void NameLine(List<ScenarioWord> words)
    {
        if (!Once(words) || Text(words) is not { } name)
        {
            return;
        }

        if (!IsName(name))
        {
            Error(words[1], $"'{name}' is not a name: allowed are letters, digits, '-' and '_'");
            return;
        }

        _name = name;
        NoMore(words, 2);
    }

    private void SpecLine(List<ScenarioWord> words)
    {
        if (words.Count < 2)
        {
            Missing(words[^1], "an id such as R05 or I58");
        }

        foreach (ScenarioWord word in words.GetRange(1, words.Count - 1))
        {
            if (word.Text.Length < 3 || !char.IsAsciiLetterUpper(word.Text[0]) || !char.IsAsciiDigit(word.Text[^1]))
            {
                Error(word, $"'{word.Text}' is not an id such as R05, I58, TM03 or B05");
                return;
            }

            _spec.Add(word.Text);
        }
    }

    private void MemoryLine(List<ScenarioWord> words)
    {
        if (!Once(words) || Word(words, 1, "sc", "tso") is not { } model)
        {
            return;
        }

        _memory = model;
        if (model is "sc")
        {
            NoMore(words, 2);
            return;
        }

        if (words.Count < 3)
        {
            Missing(words[^1], "the objects that are buffered, such as vcpu*.mode");
        }

        foreach (ScenarioWord word in words.GetRange(2, words.Count - 2))
        {
            _buffered.Add(word.Text);
        }
    }

    private void TlbLine(List<ScenarioWord> words)
    {
        if (Once(words) && Word(words, 1, "off", "precise", "adversarial") is { } mode && NoMore(words, 2))
        {
            _tlb = mode switch { "off" => TlbMode.Off, "precise" => TlbMode.Precise, _ => TlbMode.Adversarial };
        }
    }

    private void ProfileLine(List<ScenarioWord> words)
    {
        if (!Once(words) || Word(words, 1, "Documented", "Tdx15") is not { } name)
        {
            return;
        }

        _profile = name is "Tdx15" ? BehaviourProfile.Tdx15 : BehaviourProfile.Documented;
        foreach (ScenarioWord word in words.GetRange(2, words.Count - 2))
        {
            if (!word.IsPair || !ProfilePoints.IsPoint(word.Key))
            {
                Error(word, $"'{word.Text}' is not a point of the profile: allowed is {ProfilePoints.Allowed}");
            }
            else if (!ProfilePoints.TrySet(ref _profile, word.Key, word.Value.Text))
            {
                Error(word.Value, $"{word.Key}={word.Value.Text}: allowed is Documented or Tdx15");
            }
        }
    }

    private string IdLine(List<ScenarioWord> words)
    {
        if (!Once(words) || Text(words) is not { } id || !NoMore(words, 2))
        {
            return string.Empty;
        }

        if (!IsName(id.Replace('.', '-')))
        {
            Error(words[1], $"'{id}' is not an id: allowed are letters, digits, '.', '-' and '_'");
        }

        return id;
    }

    private void InjectLine(List<ScenarioWord> words)
    {
        if (Word(words, 1, "busy") is null)
        {
            return;
        }

        List<TdhLeaf> leaves = [];
        int times = 0;
        int perMille = 0;
        foreach (ScenarioWord word in words.GetRange(2, words.Count - 2))
        {
            switch (word.Key)
            {
                case "leaf" when word.IsPair:
                    foreach (string name in word.Value.Text.Split(','))
                    {
                        if (!Leaves.TryHost(name, out TdhLeaf leaf) || !BusyLeaves.Contains(leaf))
                        {
                            Error(word.Value, $"'{name}' cannot be made to answer BUSY: allowed is {string.Join(", ", BusyLeaves.ConvertAll(l => l.ToString().Replace('_', '.')))}");
                            return;
                        }

                        leaves.Add(leaf);
                    }

                    break;
                case "times" when word.IsPair:
                    times = (int)Number(word.Value, 1, 1_000_000);
                    break;
                case "p" when word.IsPair:
                    if (!Percent(word.Value.Text, out perMille))
                    {
                        Error(word.Value, $"p={word.Value.Text}: allowed is a percentage from 0.1% to 99%");
                    }

                    break;
                default:
                    Error(word, $"'{word.Text}' is not part of 'inject busy': allowed is leaf=NAME,NAME with times=N or p=N%");
                    return;
            }
        }

        if (leaves.Count == 0 || (times == 0) == (perMille == 0))
        {
            Error(words[0], "'inject busy' needs leaf=NAME,NAME and exactly one of times=N and p=N%");
            return;
        }

        _busy.Add(new ScenarioBusy(leaves, times, perMille));
    }

    private static readonly List<TdhLeaf> BusyLeaves =
        [TdhLeaf.MEM_SEPT_ADD, TdhLeaf.MEM_PAGE_ADD, TdhLeaf.MEM_PAGE_AUG, TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_REMOVE];

    private static bool Percent(string text, out int perMille)
    {
        perMille = 0;
        if (!text.EndsWith('%') || !decimal.TryParse(text.AsSpan(0, text.Length - 1), NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out decimal percent))
        {
            return false;
        }

        perMille = (int)(percent * 10);
        return perMille is >= 1 and <= 990;
    }

    private static bool IsName(string text)
    {
        foreach (char c in text)
        {
            if (!char.IsAsciiLetterOrDigit(c) && c is not ('-' or '_'))
            {
                return false;
            }
        }

        return text.Length is > 0 and <= 80;
    }
}
