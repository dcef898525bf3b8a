using System.Globalization;

namespace Tdp.Host;

/// <summary>
/// The host kernel's log: lines of the form <c>[ticks] virt/tdx: text</c> in simulated time (decisions section 8). The text is behaviour
/// (profile point B10); nothing of the wall clock is in it. Any actor may write.
/// </summary>
public sealed class KernelLog
{
    private readonly List<string> _lines = [];
    private readonly SyncGate _gate = new();
    private readonly Machine _machine;
    private long _warnings;

    /// <summary>Makes the empty log of one machine.</summary>
    public KernelLog(Machine machine) => _machine = machine;

    /// <summary>Called with each finished line, under the log's own lock: it must not log. Null for nobody.</summary>
    public Action<string>? Sink { get; set; }

    /// <summary>How many lines were warnings (WARN): each is a finding of I81 unless the scenario declares it.</summary>
    public long Warnings
    {
        get
        {
            using (_gate.Hold())
                return _warnings;
        }
    }

    /// <summary>A copy of all lines, oldest first.</summary>
    public IReadOnlyList<string> Lines
    {
        get
        {
            using (_gate.Hold())
                return [.. _lines];
        }
    }

    /// <summary>Adds a line.</summary>
    /// <param name="subsystem">Prefix, such as <c>virt/tdx</c> or <c>kvm</c>.</param>
    /// <param name="text">One line without a newline.</param>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void Add(string subsystem, string text)
    {
        string line = string.Create(CultureInfo.InvariantCulture, $"[{_machine.Clock.Peek()}] {subsystem}: {text}");
        using (_gate.Hold())
        {
            _lines.Add(line);
            Sink?.Invoke(line);
        }
    }

    /// <summary>Adds a WARN: a counted line, and a finding under I81.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void Warn(string subsystem, string text)
    {
        using (_gate.Hold())
            _warnings++;
        _machine.Findings.Add("I81", text);
        Add(subsystem, "WARN " + text);
    }
}
