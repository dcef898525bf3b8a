using System.Text.Json;

namespace Tdp.Harness.Conformance;

/// <summary>Who performs the operation of a module trace.</summary>
internal enum CallKind
{
    /// <summary>The host executes SEAMCALL.</summary>
    Seamcall,

    /// <summary>The vCPU that runs on the processor executes TDCALL.</summary>
    Tdcall,

    /// <summary>Something happens to the vCPU that runs on the processor.</summary>
    Guest,

    /// <summary>Something happens to the machine.</summary>
    Environment,
}

/// <summary>How an operation of a module trace ended (member <c>r</c>).</summary>
internal enum CallEnd
{
    /// <summary>SEAMCALL returned to the host.</summary>
    Ret,

    /// <summary>The processor is in the TD.</summary>
    Td,

    /// <summary>The pending VP.ENTER returned to the host.</summary>
    Exit,

    /// <summary>A guest access needed no exit.</summary>
    Hit,

    /// <summary>Something of the environment was done.</summary>
    Ok,
}

/// <summary>One line of a recording of the real TDX module, read and found whole.</summary>
internal sealed class ModuleCall
{
    private static readonly string[] s_registers = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    private static readonly string[] s_ends = ["ret", "td", "exit", "hit", "ok"];
    private static readonly Dictionary<string, (CallKind Kind, ushort Leaf)> s_operations = Operations();
    private readonly TraceRecord _inputs;

    /// <summary>Reads a line.</summary>
    /// <exception cref="Cli.UsageException">It cannot be understood.</exception>
    public ModuleCall(in TraceRecord record, int processors)
    {
        Record = record;
        _inputs = record.Inputs;
        Index = record.Integer("i", 0, int.MaxValue);
        Lp = record.Integer("lp", 0, processors - 1);
        Operation = record.Text("op");
        if (!s_operations.TryGetValue(Operation, out (CallKind Kind, ushort Leaf) operation))
            throw record.Wrong($"unknown operation {Operation}; allowed is a TDH or TDG leaf, RAW, GUEST.ACCESS, .INTR, .TRIPLEFAULT, .EXIT, ENV.WRITE, .INTR, .LOCK or .UNLOCK");
        Kind = operation.Kind;
        string end = record.Text("r");
        int ended = System.Array.IndexOf(s_ends, end);
        End = ended < 0 ? throw record.Wrong($"'r' is {end}; allowed is {string.Join(", ", s_ends)}") : (CallEnd)ended;
        Rax = record.OptionalNumber("rax");
        HitAt = record.OptionalNumber("hpa");
        Flushes = record.Number("inv", 0) != 0;
        StopsToBeRepeated = record.Number("again", 0) != 0;
        if (record.Has("inj"))
            Injected = Pair(record, record.Array("inj"));
        if (Kind is CallKind.Seamcall or CallKind.Tdcall)
            ReadRegisters(operation.Leaf);
    }

    /// <summary>The line.</summary>
    public TraceRecord Record { get; }

    /// <summary>Number of the call in its sequence.</summary>
    public int Index { get; }

    /// <summary>The processor.</summary>
    public int Lp { get; }

    /// <summary>The operation's name.</summary>
    public string Operation { get; }

    /// <summary>Who performs it.</summary>
    public CallKind Kind { get; }

    /// <summary>Registers before the call; RAX holds leaf and version.</summary>
    public SeamRegisters Before { get; private set; }

    /// <summary>How it ended.</summary>
    public CallEnd End { get; }

    /// <summary>The recorded RAX; absent where the call had none.</summary>
    public ulong? Rax { get; }

    /// <summary>Where a guest access arrived.</summary>
    public ulong? HitAt { get; }

    /// <summary>The recorded call executed INVEPT.</summary>
    public bool Flushes { get; }

    /// <summary>The TDCALL stopped for a pending interrupt and will be executed again.</summary>
    public bool StopsToBeRepeated { get; }

    /// <summary>The exception that the guest got: vector and type.</summary>
    public (int Vector, int Type)? Injected { get; }

    /// <summary>An operand by name; 0 when it is absent.</summary>
    public ulong In(string name) => _inputs.Number(name, 0);

    /// <summary>An operand in a range; 0 when it is absent.</summary>
    public int In(string name, int highest) => _inputs.Integer(name, 0, highest, 0);

    /// <summary>True when the operand is given.</summary>
    public bool Has(string name) => _inputs.Has(name);

    /// <summary>A text operand.</summary>
    public string InText(string name) => _inputs.Text(name);

    /// <summary>What the registers were afterwards: <paramref name="unchanged"/> with the recorded ones in it.</summary>
    public SeamRegisters Outputs(SeamRegisters unchanged)
    {
        if (Record.Find("out") is { } outputs)
        {
            if (outputs.ValueKind != JsonValueKind.Object)
                throw Record.Wrong("out", outputs, "an object");
            foreach (JsonProperty output in outputs.EnumerateObject())
                unchanged[RegisterOf(output.Name)] = Record.Number(output.Name, output.Value);
        }

        return unchanged;
    }

    /// <summary>The name of a register as traces write it.</summary>
    public static string NameOf(Gpr register) => s_registers[(int)register];

    private void ReadRegisters(ushort leaf)
    {
        SeamRegisters before = default;
        foreach (JsonProperty input in _inputs.Json.EnumerateObject())
            before[RegisterOf(input.Name)] = Record.Number(input.Name, input.Value);
        before.Rax = Operation == "RAW" ? Record.Number("raxin") : leaf | ((ulong)Record.Integer("v", 0, byte.MaxValue, 0) << 16);
        Before = before;
    }

    private Gpr RegisterOf(string name)
    {
        int number = System.Array.IndexOf(s_registers, name);
        return number < 0 ? throw Record.Wrong($"unknown register {name}") : (Gpr)number;
    }

    private static (int Vector, int Type) Pair(in TraceRecord record, JsonElement pair) => pair.GetArrayLength() == 2
        ? ((int)record.Number("inj", pair[0]), (int)record.Number("inj", pair[1]))
        : throw record.Wrong("inj", pair, "[vector, type]");

    private static Dictionary<string, (CallKind Kind, ushort Leaf)> Operations()
    {
        var all = new Dictionary<string, (CallKind Kind, ushort Leaf)>(StringComparer.Ordinal) { ["RAW"] = (CallKind.Seamcall, 0) };
        foreach (TdhLeaf leaf in Enum.GetValues<TdhLeaf>())
            all.Add(leaf.FullName(), (CallKind.Seamcall, (ushort)leaf));
        foreach (TdgLeaf leaf in Enum.GetValues<TdgLeaf>())
            all.Add(leaf.FullName(), (CallKind.Tdcall, (ushort)leaf));
        foreach (string name in (string[])["GUEST.ACCESS", "GUEST.INTR", "GUEST.TRIPLEFAULT", "GUEST.EXIT"])
            all.Add(name, (CallKind.Guest, 0));
        foreach (string name in (string[])["ENV.WRITE", "ENV.INTR", "ENV.LOCK", "ENV.UNLOCK"])
            all.Add(name, (CallKind.Environment, 0));
        return all;
    }
}
