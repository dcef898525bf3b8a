using System.IO;
using System.Text;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Tdp.Kernel;

/// <summary>
/// The kernel while it is being assembled: the instruction stream, its named places, its strings and its fixups. Emitters add to it, one per concern.
/// </summary>
/// <remarks>
/// Register use inside the kernel: arguments in RDI RSI RDX RCX R8, result in RAX; RBX RBP R12-R15 survive a call, the others do not.
/// RBP is the trap frame wherever there is one. The own vCPU is found by STR: the task register is the one per-vCPU value that neither the
/// payload nor the host can change and that needs no MSR, so no entry path depends on SWAPGS.
/// </remarks>
internal sealed class KernelCode
{
    private readonly Dictionary<string, Label> _labels = new(StringComparer.Ordinal);
    private readonly Dictionary<ulong, Label> _positions = [];
    private readonly List<string> _placed = [];
    private readonly List<(Label Label, byte[] Bytes)> _texts = [];
    private readonly List<(Label At, Label Target)> _fixups = [];
    private Label[] _trapStubs = [];

    public Assembler A { get; } = new(64);

    /// <summary>The place of that name, wherever it is emitted.</summary>
    public Label this[string name]
    {
        get
        {
            if (!_labels.TryGetValue(name, out Label label))
                _labels.Add(name, label = A.CreateLabel(name));
            return label;
        }
    }

    /// <summary>Starts a function or another named place: it gets into the symbol table.</summary>
    public void Begin(string name)
    {
        Label label = this[name];
        Place(label);
        _placed.Add(name);
    }

    /// <summary>Places a local label. Several may stand at one place: each gets an empty instruction of its own.</summary>
    public void Place(Label label)
    {
        A.Label(ref label);
        A.zero_bytes();
        // A Label is a value; this copy knows its place in the stream.
        _positions.Add(label.Id, label);
    }

    /// <summary>A label that is local to an emitter.</summary>
    public Label Local() => A.CreateLabel();

    /// <summary>A zero-terminated string among the read-only data.</summary>
    public Label Text(string text)
    {
        Label label = A.CreateLabel();
        _texts.Add((label, [.. Encoding.ASCII.GetBytes(text), 0]));
        return label;
    }

    /// <summary>The next instruction may fault; if it does, execution goes on at <paramref name="target"/>.</summary>
    public void Fixup(Label target)
    {
        Label at = A.CreateLabel();
        Place(at);
        _fixups.Add((at, target));
    }

    /// <summary>The entry stubs of vectors 0 to n - 1; their addresses become the table <c>trap_stub_table</c>.</summary>
    public void SetTrapStubs(Label[] stubs) => _trapStubs = stubs;

    /// <summary>Address of the own vCPU's block. Clobbers nothing else.</summary>
    public void ThisVcpu(AssemblerRegister64 register, AssemblerRegister32 low)
    {
        const int stridePerSelector = (int)KernelLayout.VcpuAreaBytes / 16;
        A.str(low);
        A.imul(low, low, stridePerSelector);
        A.add(register, (int)KernelLayout.VcpuAreas - (KernelLayout.FirstTssSelector * stridePerSelector));
    }

    /// <summary>A 64-bit word at a fixed address.</summary>
    public static AssemblerMemoryOperand Word(ulong address) => __qword_ptr[(long)address];

    /// <summary>Appends read-only data and encodes everything.</summary>
    public KernelProgram Finish()
    {
        Begin("kernel_text_end");
        foreach ((Label label, byte[] bytes) in _texts)
        {
            Place(label);
            A.db(bytes);
        }
        Begin("trap_stub_table");
        A.db(new byte[Math.Max(1, _trapStubs.Length) * 8]);
        Begin("fixup_table");
        A.db(new byte[Math.Max(1, _fixups.Count) * 16]);

        using var stream = new MemoryStream();
        AssemblerResult result = A.Assemble(new StreamCodeWriter(stream), GuestAbi.Kernel, BlockEncoderOptions.ReturnNewInstructionOffsets);
        byte[] text = stream.ToArray();
        if (GuestAbi.Kernel + (ulong)text.Length > KernelLayout.TextEnd)
            throw new InvalidOperationException($"the kernel text has {text.Length} bytes, more than there is room for");

        var symbols = new List<GuestSymbol>(_placed.Count);
        foreach (string name in _placed)
            symbols.Add(new GuestSymbol(name, AddressOf(_labels[name]), 0));
        for (int i = 0; i < _trapStubs.Length; i++)
            Patch("trap_stub_table", i * 8, AddressOf(_trapStubs[i]));
        for (int i = 0; i < _fixups.Count; i++)
        {
            Patch("fixup_table", i * 16, AddressOf(_fixups[i].At));
            Patch("fixup_table", (i * 16) + 8, AddressOf(_fixups[i].Target));
        }
        return new KernelProgram(text, symbols, _fixups.Count);

        ulong AddressOf(Label label)
        {
            Label placed = _positions[label.Id];
            return result.GetLabelRIP(placed);
        }

        void Patch(string table, int offset, ulong value) =>
            BitConverter.TryWriteBytes(text.AsSpan((int)(AddressOf(_labels[table]) - GuestAbi.Kernel) + offset), value);
    }
}
