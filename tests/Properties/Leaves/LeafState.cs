namespace Tdp.Tests.Properties.Leaves;

/// <summary>An entry of the Secure EPT in the model.</summary>
internal sealed class ModelEntry
{
    public EntryState State { get; set; }

    public ulong Page { get; set; }

    /// <summary>4 KiB pages that an interrupted ACCEPT of 2 MiB has cleared.</summary>
    public int Accepted { get; set; }

    /// <summary>A host lost the entry and none has had it since.</summary>
    public bool Priority { get; set; }
}

/// <summary>A vCPU in the model.</summary>
internal sealed class ModelVcpu
{
    /// <summary>The processor it is inside on, or -1.</summary>
    public int Inside { get; set; } = -1;

    /// <summary>The processor it is associated with, or -1.</summary>
    public int Lp { get; set; } = -1;

    public ulong Epoch { get; set; }

    /// <summary>LAST_TD_EXIT is ASYNC_TRAP.</summary>
    public bool LastTrap { get; set; }

    public bool VeValid { get; set; }

    /// <summary>TDCALLs answered so far: stands for RIP.</summary>
    public int Rip { get; set; }

    public int RipAtEntry { get; set; }

    public int SameRipFaults { get; set; }

    public List<ulong> Faults { get; } = [];

    /// <summary>Time of the first refusal in a series of host-priority refusals; null outside one.</summary>
    public int? PrioritySince { get; set; }
}

/// <summary>A processor in the model.</summary>
internal sealed class ModelLp
{
    /// <summary>The vCPU inside, or -1.</summary>
    public int Current { get; set; } = -1;

    /// <summary>The vCPU that ran here last, or -1.</summary>
    public int LastRun { get; set; } = -1;

    public bool Interrupt { get; set; }

    /// <summary>Units of two seconds that this processor has waited.</summary>
    public int Time { get; set; }

    /// <summary>(vCPU, address of the page, level) to the page.</summary>
    public Dictionary<(int Vcpu, ulong Gpa, int Level), ulong> Tlb { get; } = [];
}

/// <summary>What another processor holds, as if it were inside a leaf.</summary>
internal enum HolderKind
{
    None,

    /// <summary>TDR, OP_STATE and the tree shared.</summary>
    Reader,

    /// <summary>The same and one entry.</summary>
    ReaderWithEntry,

    /// <summary>TDR and OP_STATE shared, the tree alone.</summary>
    Blocker,

    /// <summary>TDR and OP_STATE shared, the epoch alone.</summary>
    Tracker,

    /// <summary>The TDR alone.</summary>
    TdrAlone,

    /// <summary>OP_STATE alone.</summary>
    OpStateAlone,

    /// <summary>A small page alone, the 2 MiB above it shared.</summary>
    Page,

    /// <summary>2 MiB alone.</summary>
    Large,
}

/// <summary>What came of a step. Registers that a kind of step does not define are zero on both sides.</summary>
/// <param name="Rax">RAX of the host, or of the guest when it stays.</param>
/// <param name="Rcx">RCX.</param>
/// <param name="Rdx">RDX.</param>
/// <param name="R8">R8.</param>
/// <param name="Note">How a guest step ended: stays, exit, again, vector, hit.</param>
internal readonly record struct Answer(ulong Rax, ulong Rcx = 0, ulong Rdx = 0, ulong R8 = 0, string Note = "")
{
    public override string ToString() => $"RAX 0x{Rax:x} RCX 0x{Rcx:x} RDX 0x{Rdx:x} R8 0x{R8:x} {Note}".TrimEnd();
}

/// <summary>
/// The model: what the specification says the module keeps, in the simplest form. Only one actor changes it, one step at a time.
/// </summary>
internal sealed partial class LeafModel
{
    public enum Life
    {
        KeysConfigured,
        Blocked,
        Teardown,
        Gone,
    }

    public LeafModel(bool running)
    {
        Running = running;
        for (int i = 0; i < LeafWorld.VcpuCount; i++)
            Vcpus.Add(new ModelVcpu { Lp = i });
        for (int i = 0; i < LeafWorld.Lps; i++)
            Lps.Add(new ModelLp());
        AddInitialPages();
    }

    public bool Running { get; private set; }

    public Life Cycle { get; private set; }

    public ulong Epoch { get; private set; } = 1;

    public int[] Inside { get; } = new int[2];

    public long Children { get; private set; }

    public List<ModelVcpu> Vcpus { get; } = [];

    public List<ModelLp> Lps { get; } = [];

    /// <summary>Entries that are not FREE, or FREE with priority.</summary>
    public Dictionary<(ulong Gpa, int Level), ModelEntry> Entries { get; } = [];

    /// <summary>(page, level) to its type. 4 KiB pages inside a large one are absent.</summary>
    public Dictionary<(ulong Page, int Level), int> Pages { get; } = [];

    /// <summary>BEPOCH of pages and sizes, which outlives the page (tdx-module 11, quirk 10).</summary>
    public Dictionary<(ulong Page, int Level), ulong> Bepochs { get; } = [];

    /// <summary>First word of a watched page; absent while a table's entries are in it.</summary>
    public Dictionary<ulong, ulong> Words { get; } = [];

    public HolderKind Holder { get; private set; }

    public ulong HeldPage { get; private set; }

    public (ulong Gpa, int Level) HeldEntry { get; private set; }

    private int _published;
    private readonly bool[] _packageFlushed = new bool[2];

    public ulong Bepoch(ulong page, int level) => Bepochs.GetValueOrDefault((page, level));

    public ModelEntry? Find(ulong gpa, int level) => Entries.GetValueOrDefault((gpa, level));

    private EntryState StateOf(ulong gpa, int level) => Find(gpa, level)?.State ?? EntryState.Free;

    // MNG.CREATE to VP.INIT, and tables down to the 4 KiB entries of the first region.
    private void AddInitialPages()
    {
        Pages[(LeafWorld.Tdr, 0)] = LeafFacts.TdrType;
        for (ulong i = 0; i < 6; i++)
            Pages[(LeafWorld.FirstControl + (i << 12), 0)] = LeafFacts.Tdcx;
        for (int v = 0; v < LeafWorld.VcpuCount; v++)
        {
            Pages[(LeafWorld.Vcpu(v), 0)] = LeafFacts.Tdvpr;
            for (ulong i = 1; i < 6; i++)
                Pages[(LeafWorld.Vcpu(v) + (i << 12), 0)] = LeafFacts.Tdcx;
        }

        for (int level = 3; level >= 1; level--)
        {
            ulong page = LeafWorld.Tables + ((ulong)(3 - level) << 12);
            Pages[(page, 0)] = LeafFacts.Ept;
            Entries[(LeafWorld.Align(LeafWorld.Region, level), level)] = new ModelEntry { State = EntryState.NlMapped, Page = page };
        }

        Children = 6 + (6 * LeafWorld.VcpuCount) + 3;
        foreach (ulong page in LeafWorld.Watched)
            Words[page] = page;
    }
}
