using System.Globalization;
using System.Text;

namespace Tdp.Harness.Scenarios;

/// <summary>A memslot of a scenario, with the memory behind it.</summary>
/// <param name="Id">Slot number.</param>
/// <param name="Range">Its guest frames.</param>
public sealed record ScenarioSlot(int Id, GfnRange Range)
{
    /// <summary>Which VM, from 1.</summary>
    public int Vm { get; init; } = 1;

    /// <summary>Address space: 1 is SMM in an ordinary VM.</summary>
    public int AddressSpace { get; init; }

    /// <summary>A guest_memfd stands behind the private alias.</summary>
    public bool HasFile { get; init; }

    /// <summary>The host memory consists of 2M pages.</summary>
    public bool IsHuge { get; init; }

    /// <summary>KVM_MEM_LOG_DIRTY_PAGES from the start.</summary>
    public bool IsLogged { get; init; }

    /// <summary>KVM_MEM_READONLY.</summary>
    public bool IsReadOnly { get; init; }

    /// <summary>The memory is there, the slot is not: a step creates it.</summary>
    public bool IsAbsent { get; init; }

    /// <summary>The attribute of its frames at the start.</summary>
    public Alias Attribute { get; init; }

    /// <summary>The slot as it would stand in a file.</summary>
    public override string ToString()
    {
        StringBuilder text = new(string.Create(CultureInfo.InvariantCulture, $"slot {Id} gfn={StepGrammar.RangeText(Range)}"));
        text.Append(HasFile ? " memfd" : string.Empty).Append(IsHuge ? " huge" : string.Empty).Append(IsLogged ? " log" : string.Empty);
        text.Append(IsReadOnly ? " readonly" : string.Empty).Append(IsAbsent ? " absent" : string.Empty);
        text.Append(HasFile && Attribute is Alias.Shared ? " shared" : string.Empty).Append(AddressSpace != 0 ? " smm" : string.Empty);
        text.Append(Vm == 1 ? string.Empty : string.Create(CultureInfo.InvariantCulture, $" vm={Vm}"));
        return text.ToString();
    }
}

/// <summary>A VM of a scenario.</summary>
/// <param name="Kind">Ordinary VM or TD.</param>
public sealed record ScenarioVm(VmKind Kind)
{
    /// <summary>vCPUs that exist when the actors start.</summary>
    public int Vcpus { get; init; }

    /// <summary>5-level EPT.</summary>
    public bool IsFiveLevel { get; init; }

    /// <summary>A TD that is not finalized when the actors start.</summary>
    public bool IsUnfinalized { get; init; }

    /// <summary>The NX huge page workaround.</summary>
    public bool HasNx { get; init; }

    /// <summary>The host's EPT has no A/D bits (ordinary VM).</summary>
    public bool HasNoAd { get; init; }

    /// <summary>No page-modification log: dirty logging write-protects (ordinary VM).</summary>
    public bool HasNoPml { get; init; }

    /// <summary>Dirty logging does not split huge leaves when it begins (ordinary VM).</summary>
    public bool HasNoEagerSplit { get; init; }

    /// <summary>KVM_X86_QUIRK_SLOT_ZAP_ALL is off (ordinary VM).</summary>
    public bool HasNoQuirk { get; init; }

    /// <summary>ATTRIBUTES.SEPT_VE_DISABLE of a TD; <see langword="null"/>: as the profile says (B05).</summary>
    public bool? SeptVeDisable { get; init; }
}

/// <summary>A BUSY that the module is made to answer.</summary>
/// <param name="Leaves">Which leaves (decisions D34: those that may meet BUSY).</param>
/// <param name="Times">How many calls of each leaf, from the first after the setup; 0: by <paramref name="PerMille"/>.</param>
/// <param name="PerMille">Probability in thousandths.</param>
public sealed record ScenarioBusy(IReadOnlyList<TdhLeaf> Leaves, int Times, int PerMille);

/// <summary>One actor of a scenario: a vCPU or a thread of the host, with the steps it does in order.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Vm">The VM of its vCPU, from 1; for a host thread 1.</param>
/// <param name="Vcpu">The vCPU it runs, or -1 for a thread of the host.</param>
/// <param name="Steps">What it does.</param>
public sealed record ScenarioActor(string Name, int Vm, int Vcpu, IReadOnlyList<ScenarioStep> Steps)
{
    /// <summary>The actor's role as it is written: <c>vcpu0</c>, <c>vm2.vcpu0</c>, <c>host</c>.</summary>
    public string Role => Vcpu < 0 ? "host" : string.Create(CultureInfo.InvariantCulture, $"{(Vm == 1 ? string.Empty : $"vm{Vm}.")}vcpu{Vcpu}");
}

/// <summary>A step outside of the actors: of the setup, or after the actors have ended.</summary>
/// <param name="Actor">Who does it: <see cref="ScenarioActor.Role"/>s, as in actor lines.</param>
/// <param name="Vm">The VM of the vCPU.</param>
/// <param name="Vcpu">The vCPU, or -1.</param>
/// <param name="Step">What.</param>
public sealed record ScenarioSingle(string Actor, int Vm, int Vcpu, ScenarioStep Step);

/// <summary>
/// A small concurrent program on a small host, with what must come out: the machine, the VMs and their memory, a setup, two or more actors, and requirements (decisions D18, D36). Immutable; one
/// scenario can be executed any number of times, also at the same time.
/// </summary>
public sealed record Scenario
{
    /// <summary>The version of the format that this reader knows.</summary>
    public const string Version = "1.0";

    /// <summary>Most VMs.</summary>
    public const int MaxVms = 4;

    /// <summary>Most vCPUs of one VM.</summary>
    public const int MaxVcpus = 8;

    /// <summary>Most actors (race-explorer 1).</summary>
    public const int MaxActors = 8;

    /// <summary>One past the largest guest frame that a scenario may name.</summary>
    public const ulong GfnLimit = 1UL << 35;

    /// <summary>Most pages of one slot, and of one step.</summary>
    public const ulong MaxPages = 1UL << 18;

    /// <summary>The name: letters, digits and dashes.</summary>
    public required string Name { get; init; }

    /// <summary>The name under which the text was read.</summary>
    public string File { get; init; } = string.Empty;

    /// <summary>One sentence for people.</summary>
    public string About { get; init; } = string.Empty;

    /// <summary>Ids of the specification that it shows, such as R05 and I58.</summary>
    public IReadOnlyList<string> Spec { get; init; } = [];

    /// <summary>True when a free run shows the required outcome only by chance: it takes a forced interleaving.</summary>
    public bool NeedsInterleaving { get; init; }

    /// <summary><c>sc</c> or <c>tso</c>, for the explorer (race-explorer 9).</summary>
    public string Memory { get; init; } = "sc";

    /// <summary>Objects with store buffers under <c>tso</c>.</summary>
    public IReadOnlyList<string> BufferedObjects { get; init; } = [];

    /// <summary>True: the queued model of mmu_lock, for the explorer (decisions D17).</summary>
    public bool IsFairRwLock { get; init; }

    /// <summary>True: timers may fire at any point (decisions section 8).</summary>
    public bool HasFreeTimers { get; init; }

    /// <summary>TLB retention.</summary>
    public TlbMode TlbMode { get; init; } = TlbMode.Precise;

    /// <summary>Where documents and code differ.</summary>
    public BehaviourProfile Profile { get; init; } = BehaviourProfile.Documented;

    /// <summary>A generation patch that is applied first (decisions D03), or empty.</summary>
    public string Generation { get; init; } = string.Empty;

    /// <summary>A patch that is applied, or empty: without it the requirements do not hold.</summary>
    public string Patch { get; init; } = string.Empty;

    /// <summary>Another exhibit whose patch is needed, or empty.</summary>
    public string Requires { get; init; } = string.Empty;

    /// <summary>Sites that an exploration must reach (race-explorer 4.6).</summary>
    public IReadOnlyList<string> Sites { get; init; } = [];

    /// <summary>BUSY answers of the module.</summary>
    public IReadOnlyList<ScenarioBusy> Busy { get; init; } = [];

    /// <summary>The VMs; at least one.</summary>
    public IReadOnlyList<ScenarioVm> Vms { get; init; } = [];

    /// <summary>The memslots.</summary>
    public IReadOnlyList<ScenarioSlot> Slots { get; init; } = [];

    /// <summary>The setup, in order.</summary>
    public IReadOnlyList<ScenarioSingle> Init { get; init; } = [];

    /// <summary>The actors; at least one.</summary>
    public IReadOnlyList<ScenarioActor> Actors { get; init; } = [];

    /// <summary>What is done when every actor has ended, in order.</summary>
    public IReadOnlyList<ScenarioSingle> After { get; init; } = [];

    /// <summary>What must come out besides the invariants.</summary>
    public IReadOnlyList<Requirement> Requirements { get; init; } = [];

    /// <summary>Line of the first line that belongs to a schedule, or 0: what follows it is not read here.</summary>
    public int ScheduleLine { get; init; }

    /// <summary>The number of vCPUs of all VMs.</summary>
    public int VcpuCount
    {
        get
        {
            int count = 0;
            foreach (ScenarioVm vm in Vms)
            {
                count += vm.Vcpus;
            }

            return count;
        }
    }

    /// <summary>Reads a scenario.</summary>
    /// <param name="text">The text.</param>
    /// <param name="file">Its name, for messages.</param>
    /// <exception cref="ScenarioException">It is none.</exception>
    public static Scenario Parse(string text, string file = "scenario")
    {
        Scenario? scenario = ScenarioReader.Read(text, file, out IReadOnlyList<ScenarioError> errors);
        return scenario ?? throw new ScenarioException(errors);
    }

    /// <summary>The scenario as text that reads back equal: one line per fact.</summary>
    public string Write() => ScenarioWriter.Write(this);

    /// <inheritdoc/>
    public override string ToString() => Name;
}
