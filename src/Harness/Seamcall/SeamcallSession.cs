using System.Globalization;
using System.Linq;
using Tdp.Harness.Cli;

namespace Tdp.Harness.Seamcall;

/// <summary>One call of a session, as reports show it.</summary>
/// <param name="Line">The line of the script.</param>
/// <param name="Lp">The processor.</param>
/// <param name="Leaf">The leaf.</param>
/// <param name="Status">The status with its name, or how the guest was left.</param>
/// <param name="Rax">RAX, in hex.</param>
/// <param name="Results">Named results.</param>
internal sealed record SeamcallRecord(int Line, int Lp, string Leaf, string Status, string Rax, IReadOnlyDictionary<string, string> Results);

/// <summary>A line of a session cannot be understood. The message names the value and what is allowed.</summary>
internal sealed class SessionException(string message) : Exception(message);

/// <summary>
/// A machine with a TDX module and nothing else, driven line by line: one leaf with named operands, or a command of the session. What a leaf takes and gives comes from <see cref="LeafCatalogue"/>.
/// </summary>
internal sealed partial class SeamcallSession : IDisposable
{
    private const uint TdcallLength = 4;
    private readonly Machine _machine;
    private readonly TdxModule _module;
    private readonly Action<string> _print;
    private readonly Dictionary<string, ulong> _variables = new(StringComparer.OrdinalIgnoreCase);
    private readonly List<SeamcallRecord> _records = [];
    private ulong _next;
    private int _lp;
    private int _line;
    private TdxStatus _last;

    /// <summary>Makes a session on a machine with two packages; the module is loaded and nothing has been called.</summary>
    public SeamcallSession(int processors, BehaviourProfile profile, Action<string> print)
    {
        _print = print;
        _machine = new Machine(MachineDescription.Default(processors - 1, 64UL << 20));
        _module = new TdxModule(_machine, profile);
        foreach (LogicalProcessor lp in _machine.Processors)
        {
            lp.VmxOn = true;
        }

        _next = _machine.Description.Tdmrs[0].Range.Base;
    }

    /// <summary>The processor that makes the next call.</summary>
    public int CurrentLp => _lp;

    /// <summary>What was called.</summary>
    public IReadOnlyList<SeamcallRecord> Records => _records;

    /// <summary>Expectations that did not hold, and what <c>check</c> found.</summary>
    public List<string> Failures { get; } = [];

    /// <summary>Performs one line.</summary>
    /// <param name="number">Its number, from 1.</param>
    /// <param name="text">The line; what follows a # is a comment.</param>
    /// <exception cref="SessionException">The line is wrong; nothing was done.</exception>
    public void Execute(int number, string text)
    {
        _line = number;
        int comment = text.IndexOf('#', StringComparison.Ordinal);
        string[] words = (comment < 0 ? text : text[..comment]).Split([' ', '\t'], StringSplitOptions.RemoveEmptyEntries);
        if (words.Length == 0)
        {
            return;
        }

        if (words is [['$', ..] name, "=", .. var value])
        {
            Assign(name, value);
            return;
        }

        if (words is ["times", var count, .. var repeated] && repeated.Length > 0)
        {
            ulong times = Value(count);
            if (times is 0 or > 100_000)
            {
                throw new SessionException($"times {count}: allowed is 1 to 100000");
            }

            for (ulong i = 0; i < times; i++)
            {
                Perform(repeated);
            }

            return;
        }

        Perform(words);
    }

    /// <inheritdoc/>
    public void Dispose() => _machine.Dispose();

    private void Perform(string[] words)
    {
        if (LeafCatalogue.Find(words[0]) is { } leaf)
        {
            Call(leaf, words[1..]);
        }
        else if (!Command(words))
        {
            bool looksLikeLeaf = words[0].StartsWith("TD", StringComparison.OrdinalIgnoreCase);
            throw new SessionException(looksLikeLeaf
                ? $"leaf '{words[0]}': no such leaf; help lists them"
                : $"'{words[0]}': allowed is a leaf, $NAME = VALUE, {string.Join(", ", CommandNames)}");
        }
    }

    private void Assign(string name, string[] value)
    {
        if (name.Length == 1 || !name[1..].All(c => char.IsAsciiLetterOrDigit(c) || c == '_'))
        {
            throw new SessionException($"'{name}': allowed is $ and letters, digits, _");
        }

        _variables[name] = value switch
        {
            ["alloc"] => Allocate(4096),
            ["alloc", var size] when Quantities.TrySize(size, out ulong bytes) && bytes is 4096 or (2UL << 20) => Allocate(bytes),
            ["alloc", var size] => throw new SessionException($"alloc {size}: allowed is 4K or 2M"),
            ["params", .. var fields] => Parameters(fields),
            [var single] => Value(single),
            _ => throw new SessionException($"{name} = {string.Join(' ', value)}: allowed is a number, a variable, alloc [2M], or params [attributes=N] [max_vcpus=N] [flags=N] [eptp=N] [xfam=N] [tsc=N]"),
        };
        _print(string.Create(CultureInfo.InvariantCulture, $"{name} = 0x{_variables[name]:x}"));
    }

    // Pages are taken one after the other, over the reserved end of a TDMR into the next one.
    private ulong Allocate(ulong bytes)
    {
        foreach (TdmrDescription tdmr in _machine.Description.Tdmrs)
        {
            ulong at = (Math.Max(_next, tdmr.Range.Base) + bytes - 1) & ~(bytes - 1);
            if (at + bytes <= tdmr.Reserved[0].Base)
            {
                _next = at + bytes;
                return at;
            }
        }

        throw new SessionException("alloc: no memory of the machine is left");
    }

    private ulong Parameters(string[] fields)
    {
        SortedDictionary<string, (int Offset, ulong Value)> known = new(StringComparer.Ordinal)
        {
            ["attributes"] = (0, 0),
            ["xfam"] = (8, 3),
            ["max_vcpus"] = (16, 8),
            ["eptp"] = (24, 0x1E),
            ["flags"] = (32, 4),
            ["tsc"] = (40, 40),
        };
        foreach (string field in fields)
        {
            string[] parts = field.Split('=', 2);
            if (parts.Length != 2 || !known.TryGetValue(parts[0], out (int Offset, ulong Value) place))
            {
                throw new SessionException($"params {field}: allowed is {string.Join(", ", known.Keys.Select(k => k + "=N"))}");
            }

            known[parts[0]] = (place.Offset, Value(parts[1]));
        }

        ulong page = Allocate(4096);
        foreach ((int offset, ulong value) in known.Values)
        {
            _machine.Memory.Word(page + (ulong)offset) = value;
        }

        return page;
    }

    // A number, a variable, a register of the last answer, alloc; with + and - between them.
    private ulong Value(string text)
    {
        int split = text.LastIndexOfAny(['+', '-']);
        if (split > 0)
        {
            ulong left = Value(text[..split]);
            ulong right = Value(text[(split + 1)..]);
            return text[split] == '+' ? left + right : left - right;
        }

        if (text == "alloc")
        {
            return Allocate(4096);
        }

        if (text == "alloc:2M")
        {
            return Allocate(2UL << 20);
        }

        if (text.StartsWith('$'))
        {
            return _variables.TryGetValue(text, out ulong value) ? value : throw new SessionException($"'{text}' has no value yet: allowed is a number, alloc, or {(_variables.Count == 0 ? "a variable that was set" : string.Join(", ", _variables.Keys.Order(StringComparer.Ordinal)))}");
        }

        return Quantities.TryWord(text, out ulong number) || Quantities.TrySize(text, out number)
            ? number
            : throw new SessionException($"'{text}': allowed is a number (decimal, 0x..., 4K, 2M), a variable, or alloc");
    }

    private static ulong LevelOf(string text, Func<string, ulong> other) => text.ToUpperInvariant() switch
    {
        "4K" => 0,
        "2M" => 1,
        "1G" => 2,
        "512G" => 3,
        "256T" => 4,
        _ => other(text),
    };

    private void Call(LeafDescription leaf, string[] words)
    {
        SeamRegisters registers = new() { Rax = (ulong)leaf.Number };
        HashSet<string> given = [];
        int version = 0;
        foreach (string word in words)
        {
            string[] parts = word.Split('=', 2);
            string name = parts[0].ToLowerInvariant();
            if (parts.Length != 2 || !given.Add(name))
            {
                throw new SessionException($"{leaf.Name} {word}: {(parts.Length == 2 ? "is given twice" : "allowed is NAME=VALUE")}");
            }

            if (name == "version")
            {
                version = (int)Math.Min(Value(parts[1]), 255);
                registers.Rax |= (ulong)(uint)version << 16;
            }
        }

        foreach (LeafOperand operand in leaf.Operands)
        {
            string? word = Array.Find(words, w => w.StartsWith(operand.Name + "=", StringComparison.OrdinalIgnoreCase));
            if (word is null && operand.Default is null)
            {
                throw new SessionException($"{leaf.Name}: {operand.Name} is missing: {Usage(leaf)}");
            }

            string text = word?[(operand.Name.Length + 1)..] ?? string.Empty;
            ulong value = word is null ? operand.Version > version ? 0 : operand.Default!.Value
                : operand.Kind is LeafOperandKind.Level ? LevelOf(text, Value)
                : Value(text);
            int shift = operand.Kind is LeafOperandKind.HkidOfAddress ? _machine.Description.HkidShift : operand.Shift;
            registers[operand.Register] |= value << shift;
            given.Remove(operand.Name);
        }

        given.Remove("version");
        foreach (string name in given)
        {
            // A register by name replaces what the operands made of it: any 64 bits can be tried.
            if (!Enum.TryParse(name, ignoreCase: true, out Gpr register) || !char.IsLetter(name[0]) || register is Gpr.Rsp)
            {
                throw new SessionException($"{leaf.Name} {name}: no such operand; allowed is {string.Join(", ", leaf.Operands.Select(o => o.Name))}, version, or a register");
            }

            string word = Array.Find(words, w => w.StartsWith(name + "=", StringComparison.OrdinalIgnoreCase))!;
            registers[register] = Value(word[(name.Length + 1)..]);
        }

        LogicalProcessor lp = _machine.Processors[_lp];
        if (leaf.IsGuest != (_module.CurrentVmcs(lp) is not null))
        {
            throw new SessionException($"{leaf.Name}: LP {_lp} is {(leaf.IsGuest ? "in the host; TDH.VP.ENTER comes first" : "inside a TD; interrupt, or a TDG.VP.VMCALL, leaves it")}");
        }

        if (leaf.IsGuest)
        {
            Tdcall(lp, leaf, registers);
        }
        else
        {
            Seamcall(lp, leaf, registers);
        }
    }

    private void Seamcall(LogicalProcessor lp, LeafDescription leaf, SeamRegisters registers)
    {
        if (leaf.Number == (int)TdhLeaf.VP_INIT && _module.Pamt(new Hpa(registers.Rcx)) is { Type: PageType.TDVPR })
        {
            // The guest starts in 64-bit mode, so that it can make TDCALLs without a boot loader.
            _module.UseEntryState(new Hpa(registers.Rcx), GuestStart.Flat64);
        }

        _module.Seamcall(lp, ref registers);
        bool inside = _module.CurrentVmcs(lp) is not null;
        Answer(leaf, registers, inside ? "inside the TD" : registers.Status.ToString());
    }

    private void Tdcall(LogicalProcessor lp, LeafDescription leaf, SeamRegisters registers)
    {
        Vmcs vmcs = _module.CurrentVmcs(lp)!;
        for (Gpr register = Gpr.Rax; register <= Gpr.R15; register++)
        {
            vmcs.State[register] = registers[register];
        }

        vmcs.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = TdcallLength };
        Leave(lp, vmcs, leaf);
    }

    // Feeds the exit that waits in the VMCS, and tells what became of it.
    private void Leave(LogicalProcessor lp, Vmcs vmcs, LeafDescription? leaf)
    {
        SeamRegisters host = default;
        string name = leaf?.Name ?? "guest";
        if (!_module.HandleExit(lp, ref host))
        {
            Answer(null, host, TdExit(host), name);
            return;
        }

        if (vmcs.EntryEvent.IsValid)
        {
            string injected = string.Create(CultureInfo.InvariantCulture, $"vector {vmcs.EntryEvent.Vector} injected");
            vmcs.EntryEvent = default;
            Answer(null, default, injected, name);
            return;
        }

        SeamRegisters guest = default;
        for (Gpr register = Gpr.Rax; register <= Gpr.R15; register++)
        {
            guest[register] = vmcs.State[register];
        }

        Answer(leaf, guest, leaf is null ? "served" : guest.Status.ToString(), name);
    }
}
