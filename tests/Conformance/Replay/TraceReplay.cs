using System.Globalization;
using System.Linq;

namespace Tdp.Tests.Conformance;

/// <summary>A call whose simulated answer is not the recorded one.</summary>
internal sealed record Mismatch(string Sequence, int Index, string Operation, string What, string Line);

/// <summary>
/// Replays recorded traces of the real module, sequence by sequence, on machine "conformance" with profile Tdx15 (decisions D33), and compares every
/// answer, every register and every recorded state.
/// </summary>
internal sealed class TraceReplay
{
    private const int WholeSeptEvery = 8;
    private static readonly string[] s_registers = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    private readonly List<Mismatch> _mismatches = [];
    private readonly SortedDictionary<string, (int Calls, int Wrong)> _operations = new(StringComparer.Ordinal);

    public IReadOnlyList<Mismatch> Mismatches => _mismatches;

    /// <summary>Calls and mismatching calls per operation.</summary>
    public IReadOnlyDictionary<string, (int Calls, int Wrong)> Operations => _operations;

    public int Calls => _operations.Values.Sum(o => o.Calls);

    public void Run(string path)
    {
        ReplayMachine? machine = null;
        RecordedState state = new();
        int sinceWhole = 0;
        foreach (TraceLine line in TraceLine.Read(path))
        {
            if (line.IsHeader)
            {
                machine?.Dispose();
                machine = new ReplayMachine(isReady: line.Base == "ready");
                state = new RecordedState();
                sinceWhole = 0;
                continue;
            }

            List<string> wrong = machine!.Execute(line);
            state.Apply(line);
            bool whole = ++sinceWhole % WholeSeptEvery == 0;
            wrong.AddRange(state.Differences(machine.Module, line, whole));
            (int calls, int bad) = _operations.GetValueOrDefault(line.Operation);
            _operations[line.Operation] = (calls + 1, bad + (wrong.Count > 0 ? 1 : 0));
            if (wrong.Count > 0)
                _mismatches.Add(new Mismatch(line.Sequence, line.Index, line.Operation, string.Join("; ", wrong.Take(6)), line.Text));
        }

        machine?.Dispose();
    }

    public string Summary()
    {
        IEnumerable<string> lines = _operations.Select(o => string.Create(CultureInfo.InvariantCulture, $"{o.Key,-28} {o.Value.Calls,7} calls {o.Value.Wrong,5} mismatches"));
        return string.Join(Environment.NewLine, lines.Append($"{Calls} calls, {_mismatches.Count} mismatches"));
    }

    public static string NameOf(int register) => s_registers[register];

    public static int NumberOf(string register) => Array.IndexOf(s_registers, register);
}
