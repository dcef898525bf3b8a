using System.Globalization;

namespace Tdp.Harness.Conformance;

/// <summary>
/// Replays one recorded sequence of calls of the real TDX module on machine "conformance" with profile Tdx15 (decisions D33) and compares every answer, every register, and the whole recorded
/// state of TDs, vCPUs, Secure EPT and watched pages after every call.
/// </summary>
internal sealed class ModuleSequence : SequenceReplay
{
    private readonly ModuleReplayMachine _machine;
    private readonly RecordedModuleState _state;
    private string? _failure;

    /// <summary>Begins a sequence.</summary>
    /// <exception cref="Cli.UsageException">The header makes no sense.</exception>
    public ModuleSequence(in TraceRecord header)
    {
        Name = header.Sequence;
        string start = header.Text("base");
        if (start is not ("ready" or "cold"))
            throw header.Wrong($"'base' is {start}; allowed is ready, cold");
        _machine = new ModuleReplayMachine(isReady: start == "ready");
        _state = new RecordedModuleState(_machine.Machine, _machine.Module);
    }

    /// <summary>The machine that the module runs on, for who wants to prepare it.</summary>
    public Machine Machine => _machine.Machine;

    /// <inheritdoc/>
    public override string Name { get; }

    /// <inheritdoc/>
    public override string Kind => "TDX module";

    /// <inheritdoc/>
    public override ReplayStep Play(in TraceRecord record)
    {
        ModuleCall call = new(record, _machine.Machine.Processors.Count);
        ModuleAnswer recorded = ModuleAnswer.Recorded(call);
        ModuleAnswer simulated;
        List<ReplayAnswer> differences;
        if (_failure is { } earlier)
        {
            simulated = new ModuleAnswer { Trouble = earlier };
            differences = [];
        }
        else
        {
            try
            {
                simulated = _machine.Perform(call);
                _state.Apply(record);
                differences = _state.Differences();
            }
            catch (Exception e) when (e is not Cli.UsageException)
            {
                // A bug of the simulator. Its state is lost, so no later call of the sequence can answer as recorded either.
                simulated = new ModuleAnswer { Trouble = $"{e.GetType().Name}: {e.Message.ReplaceLineEndings(" ")}" };
                differences = [];
                _failure = string.Create(CultureInfo.InvariantCulture, $"not made: the simulator failed at #{call.Index}");
            }
        }

        string outcome = OutcomeOf(call);
        if (differences.Count == 0 && ModuleAnswer.Agree(recorded, simulated))
            return new ReplayStep(ReplayVerdict.Match, call.Operation, outcome);
        var mismatch = new ReplayMismatch(
            record.File,
            record.Line,
            Name,
            call.Index,
            call.Operation,
            string.Create(CultureInfo.InvariantCulture, $"LP {call.Lp}"),
            record.Note,
            ModuleOperands.Decode(call),
            Sorted(ModuleAnswer.Compare(call, recorded, simulated), differences),
            _failure is null ? ModuleEntries.Involved(call, _machine.Module, _state) : []);
        return new ReplayStep(ReplayVerdict.Mismatch, call.Operation, outcome, mismatch);
    }

    /// <inheritdoc/>
    public override void Dispose() => _machine.Dispose();

    // What a table of results calls the recorded answer.
    private static string OutcomeOf(ModuleCall call)
    {
        if (call.Injected is { } injected)
            return string.Create(CultureInfo.InvariantCulture, $"exception {injected.Vector} injected");
        if (call.StopsToBeRepeated)
            return "interrupted, to be executed again";
        switch (call.End)
        {
            case CallEnd.Ok:
                return "ok";
            case CallEnd.Hit:
                return "hit";
            case CallEnd.Td when call.Kind != CallKind.Tdcall:
                return "in the TD";
            case CallEnd.Exit when call.Rax is { } exit && exit >> 32 == 0:
                return string.Create(CultureInfo.InvariantCulture, $"TD exit, reason {(ushort)exit}");
            default:
                TdxStatus status = new(call.Rax ?? 0);
                string name = status.Class.Name ?? status.ToString();
                return call.End == CallEnd.Exit ? "TD exit, " + name : name;
        }
    }

    private static List<ReplayAnswer> Sorted(List<ReplayAnswer> answers, List<ReplayAnswer> states)
    {
        var rows = answers.FindAll(a => a.Differs);
        rows.AddRange(states);
        rows.AddRange(answers.FindAll(a => !a.Differs));
        return rows;
    }
}
