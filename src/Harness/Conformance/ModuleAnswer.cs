using System.Globalization;

namespace Tdp.Harness.Conformance;

/// <summary>What a call answered, recorded or simulated.</summary>
internal struct ModuleAnswer
{
    /// <summary>How it ended.</summary>
    public CallEnd End;

    /// <summary>RAX of the host or, after a TDCALL that went on, of the guest; missing where there is none to compare.</summary>
    public ulong? Rax;

    /// <summary>The other registers, if <see cref="HasRegisters"/>.</summary>
    public SeamRegisters Registers;

    /// <summary>True when the registers are defined.</summary>
    public bool HasRegisters;

    /// <summary>The exception that the guest got.</summary>
    public (int Vector, int Type)? Injected;

    /// <summary>The TDCALL will be executed again.</summary>
    public bool Again;

    /// <summary>Where a guest access arrived.</summary>
    public ulong? Hit;

    /// <summary>Translations were dropped.</summary>
    public bool Flushed;

    /// <summary>Why the call could not be made here at all.</summary>
    public string? Trouble;

    /// <summary>The answer that a trace holds.</summary>
    public static ModuleAnswer Recorded(ModuleCall call)
    {
        bool registers = call.End switch
        {
            CallEnd.Ret => true,
            CallEnd.Td => call.Kind == CallKind.Tdcall,
            CallEnd.Exit => true,
            _ => false,
        };
        return new ModuleAnswer
        {
            End = call.End,
            Rax = call.StopsToBeRepeated ? null : call.Rax,
            Registers = registers ? call.Outputs(call.End == CallEnd.Exit ? default : call.Before) : default,
            HasRegisters = registers,
            Injected = call.Injected,
            Again = call.StopsToBeRepeated,
            Hit = call.HitAt,
            Flushed = call.Flushes,
        };
    }

    /// <summary>True when nothing differs.</summary>
    public static bool Agree(in ModuleAnswer recorded, in ModuleAnswer simulated)
    {
        if (simulated.Trouble is not null || recorded.End != simulated.End || recorded.Injected != simulated.Injected || recorded.Again != simulated.Again
            || recorded.Hit != simulated.Hit || recorded.Flushed != simulated.Flushed || !AgreeOnRax(recorded, simulated))
            return false;
        return !recorded.HasRegisters || DifferingRegister(recorded.Registers, simulated.Registers, 1) < 0;
    }

    /// <summary>Both answers part by part: those that differ, and the registers that the call changed.</summary>
    public static List<ReplayAnswer> Compare(ModuleCall call, in ModuleAnswer recorded, in ModuleAnswer simulated)
    {
        var rows = new List<ReplayAnswer>();
        if (simulated.Trouble is { } trouble)
            rows.Add(new ReplayAnswer("call", "made", trouble));
        Add(rows, "r", EndName(recorded.End), EndName(simulated.End), always: true);
        if (recorded.Rax is not null || simulated.Rax is not null)
        {
            bool differ = !AgreeOnRax(recorded, simulated);
            string here = simulated.Rax is { } rax ? Status(rax) : "none";
            Add(rows, "rax", recorded.Rax is { } expected ? Status(expected) : differ ? "none" : here, here, always: true);
        }

        if (recorded.HasRegisters && simulated.HasRegisters)
        {
            SeamRegisters untouched = recorded.End == CallEnd.Exit ? default : call.Before;
            SeamRegisters expected = recorded.Registers;
            SeamRegisters found = simulated.Registers;
            for (int i = 1; i < 16; i++)
            {
                Gpr register = (Gpr)i;
                bool moved = expected[register] != untouched[register] || found[register] != untouched[register];
                Add(rows, ModuleCall.NameOf(register), Hex(expected[register]), Hex(found[register]), moved);
            }
        }

        Add(rows, "injected", Event(recorded.Injected), Event(simulated.Injected), always: false);
        Add(rows, "repeated", recorded.Again ? "yes" : "no", simulated.Again ? "yes" : "no", always: false);
        Add(rows, "hpa", recorded.Hit is { } at ? Hex(at) : "none", simulated.Hit is { } there ? Hex(there) : "none", always: false);
        Add(rows, "INVEPT", recorded.Flushed ? "executed" : "none", simulated.Flushed ? "executed" : "none", always: false);
        return rows;
    }

    /// <summary>A status with its value, as reports show it.</summary>
    public static string Status(ulong rax) => $"{new TdxStatus(rax)} ({Hex(rax)})";

    // A recorded line without RAX says nothing about it.
    private static bool AgreeOnRax(in ModuleAnswer recorded, in ModuleAnswer simulated) => recorded.Rax is null || simulated.Again || recorded.Rax == simulated.Rax;

    private static int DifferingRegister(SeamRegisters left, SeamRegisters right, int from)
    {
        for (int i = from; i < 16; i++)
        {
            if (left[(Gpr)i] != right[(Gpr)i])
                return i;
        }

        return -1;
    }

    private static void Add(List<ReplayAnswer> rows, string what, string recorded, string simulated, bool always)
    {
        var row = new ReplayAnswer(what, recorded, simulated);
        if (always || row.Differs)
            rows.Add(row);
    }

    private static string EndName(CallEnd end) => end switch
    {
        CallEnd.Ret => "ret (returned to the host)",
        CallEnd.Td => "td (in the TD)",
        CallEnd.Exit => "exit (TD exit)",
        CallEnd.Hit => "hit (no exit)",
        _ => "ok",
    };

    private static string Event((int Vector, int Type)? injected) => injected is not { } e ? "none" : e.Vector switch
    {
        20 => "#VE",
        14 => "#PF",
        13 => "#GP",
        8 => "#DF",
        6 => "#UD",
        _ => string.Create(CultureInfo.InvariantCulture, $"vector {e.Vector}"),
    } + string.Create(CultureInfo.InvariantCulture, $", type {e.Type}");

    private static string Hex(ulong value) => string.Create(CultureInfo.InvariantCulture, $"0x{value:x}");
}
