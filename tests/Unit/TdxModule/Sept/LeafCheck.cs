using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// One check that a memory leaf makes, as the specification orders them: what is wrong, and what must be answered. The table is data beside this file, its lines
/// in the order of the checks. Only SEPT.ADD without a page stands last although it is not: whether it comes before or after the state of a linked entry is not
/// recorded anywhere.
/// </summary>
/// <param name="Leaf">Full name of the leaf.</param>
/// <param name="Fault">What is wrong; <see cref="Faults"/> knows how to bring it about.</param>
/// <param name="Answer">Status, or EXIT and the kind.</param>
/// <param name="Section">Where the specification says so.</param>
/// <param name="Place">Number among the checks of the leaf.</param>
public sealed record LeafCheck(string Leaf, string Fault, string Answer, string Section, int Place)
{
    private static readonly Lazy<IReadOnlyList<LeafCheck>> s_all = new(Read);

    public static IReadOnlyList<LeafCheck> All => s_all.Value;

    public bool IsGuest => Leaf.StartsWith("TDG", StringComparison.Ordinal);

    public static LeafCheck Find(string name) => All.Single(c => c.ToString() == name);

    /// <summary>The checks of the same leaf that come after this one.</summary>
    public IEnumerable<LeafCheck> Later() => All.Where(c => c.Leaf == Leaf && c.Place > Place);

    public override string ToString() => $"{Leaf} {Fault}";

    private static List<LeafCheck> Read()
    {
        List<LeafCheck> checks = [];
        foreach (string line in TestData.Lines("leaf-checks.csv"))
        {
            string[] cells = line.Split(',');
            checks.Add(new LeafCheck(cells[0], cells[1], cells[2], cells[3], checks.Count(c => c.Leaf == cells[0])));
        }

        return checks;
    }
}

/// <summary>What a fault changes. Two faults that change the same thing cannot be had at once.</summary>
internal enum FaultSubject
{
    Rax,
    System,
    Td,
    Gpa,
    Tree,
    Entry,
    Offered,
    Source,
    Target,
    Mode,
    Children,
    Child,
    Attributes,
    Interrupt,
    Large,
    Epoch,
}

/// <summary>What a failing call shows in RCX and RDX (tdx-module 5.4).</summary>
internal enum FaultInformation
{
    /// <summary>Zero.</summary>
    None,

    /// <summary>The entry at the operand's address and level.</summary>
    Entry,

    /// <summary>The entry of the root at which the walk stopped.</summary>
    Root,

    /// <summary>The operands as they were.</summary>
    Operands,
}

/// <summary>How a fault is brought about, in the order of the members: before the scene exists, by calls, in the registers, by held locks, and at the very end.</summary>
internal sealed record Fault(FaultSubject Subject)
{
    public FaultInformation Information { get; init; }

    /// <summary>True when a vCPU is inside while the call is made: the TDR cannot be held alone then.</summary>
    public bool NeedsGuest { get; init; }

    public Func<SceneSetup, SceneSetup>? Setup { get; init; }

    public Action<FaultScene>? Prepare { get; init; }

    public Action<FaultScene>? Registers { get; init; }

    public Func<FaultScene, InjectedLock?>? Hold { get; init; }

    public Action<FaultScene>? Finally { get; init; }
}

/// <summary>A scene in which the leaf would succeed, and the registers of that call.</summary>
internal sealed class FaultScene(SeptScene scene, string leaf, int level)
{
    public SeamRegisters Call = HostCalls.Legal(leaf, scene, level);

    public SeptScene Scene { get; } = scene;

    public ModuleRig Rig => Scene.Rig;

    public string Leaf { get; } = leaf;

    public int Level { get; } = level;

    /// <summary>The register that names the TD.</summary>
    public ref ulong Td => ref Leaf == "TDH.MEM.TRACK" ? ref Call.Rcx : ref Call.Rdx;

    /// <summary>The entry that a competitor holds: the one that the call asks for, also when another fault has sent it to the neighbour.</summary>
    public ulong HeldGpa => (Call.Rcx & ~7UL) == NeighbourGpa ? NeighbourGpa : Scene.Gpa;

    /// <summary>The address behind the scene's entry, in the same table.</summary>
    public ulong NeighbourGpa => Scene.Gpa + (0x1000UL << (9 * Level));

    public InjectedLock? Hold(ModuleLock kind, bool exclusive, ulong where, ulong gpa = 0, int level = 0) =>
        Rig.Module.TryHold(kind, exclusive, new Hpa(where), new Gpa(gpa), Tdp.Platform.Level.FromTdx(level));
}
