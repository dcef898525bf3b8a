namespace Tdp.Harness.Scenarios;

/// <summary>What one step of a scenario does. <see cref="StepGrammar"/> has the name, the parameters and a sentence for each.</summary>
public enum StepKind : byte
{
    /// <summary>The guest reads.</summary>
    Read,

    /// <summary>The guest writes.</summary>
    Write,

    /// <summary>The guest fetches an instruction.</summary>
    Fetch,

    /// <summary>The guest accepts (TDG.MEM.PAGE.ACCEPT).</summary>
    Accept,

    /// <summary>The guest asks for a conversion (MapGPA).</summary>
    MapGpa,

    /// <summary>The guest makes any TDCALL.</summary>
    Tdcall,

    /// <summary>The guest stays inside until it is kicked.</summary>
    Stay,

    /// <summary>The fault handler alone, without a guest.</summary>
    Fault,

    /// <summary>Maps pages, for the start of a scenario.</summary>
    Map,

    /// <summary>KVM_PRE_FAULT_MEMORY.</summary>
    PreFault,

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES.</summary>
    Convert,

    /// <summary>fallocate(PUNCH_HOLE).</summary>
    PunchHole,

    /// <summary>A memory error in a private page.</summary>
    Poison,

    /// <summary>The last close of a guest_memfd.</summary>
    CloseFile,

    /// <summary>An MMU notifier, or one half of it.</summary>
    Notify,

    /// <summary>Host memory is taken away.</summary>
    Discard,

    /// <summary>Host memory moves to other frames.</summary>
    Migrate,

    /// <summary>Host memory becomes read-only.</summary>
    Protect,

    /// <summary>Creates a memslot that is declared absent, or deleted.</summary>
    CreateSlot,

    /// <summary>Deletes a memslot.</summary>
    DeleteSlot,

    /// <summary>Moves a memslot.</summary>
    MoveSlot,

    /// <summary>Switches dirty logging of a memslot.</summary>
    LogSlot,

    /// <summary>KVM_GET_DIRTY_LOG.</summary>
    GetLog,

    /// <summary>KVM_CLEAR_DIRTY_LOG.</summary>
    ClearLog,

    /// <summary>kvm_tdp_mmu_unmap_gfn_range, as an operation of its own.</summary>
    Unmap,

    /// <summary>kvm_zap_gfn_range.</summary>
    ZapLeafs,

    /// <summary>kvm_mmu_zap_all_fast.</summary>
    FastZap,

    /// <summary>kvm_tdp_mmu_zap_all: the owner's address space is gone.</summary>
    ZapAll,

    /// <summary>Clears Accessed.</summary>
    Age,

    /// <summary>Tests Accessed.</summary>
    TestAge,

    /// <summary>Write-protects a memslot.</summary>
    WriteProtect,

    /// <summary>Clears Dirty in a memslot.</summary>
    ClearDirty,

    /// <summary>Eager split.</summary>
    Split,

    /// <summary>Huge-page recovery.</summary>
    Recover,

    /// <summary>NX recovery of one table.</summary>
    RecoverNx,

    /// <summary>KVM_TDX_INIT_MEM_REGION.</summary>
    InitRegion,

    /// <summary>KVM_CREATE_VCPU and KVM_TDX_INIT_VCPU.</summary>
    AddVcpu,

    /// <summary>KVM_TDX_FINALIZE_VM.</summary>
    Finalize,

    /// <summary>Any SEAMCALL.</summary>
    Seamcall,

    /// <summary>An external interrupt for the processor of an actor.</summary>
    Interrupt,

    /// <summary>A signal to the thread of a vCPU.</summary>
    Signal,

    /// <summary>A vCPU of an ordinary VM enters or leaves SMM.</summary>
    Smm,

    /// <summary>A kick of every vCPU, waiting for all of them.</summary>
    Kick,

    /// <summary>Waits until a step of another actor has ended.</summary>
    Await,

    /// <summary>The VM is destroyed.</summary>
    Destroy,
}

/// <summary>The bare words of a step.</summary>
[Flags]
public enum StepWords : uint
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary><c>private</c>.</summary>
    Private = 1 << 0,

    /// <summary><c>shared</c>.</summary>
    Shared = 1 << 1,

    /// <summary><c>both</c>.</summary>
    Both = 1 << 2,

    /// <summary><c>read</c>.</summary>
    Read = 1 << 3,

    /// <summary><c>write</c>.</summary>
    Write = 1 << 4,

    /// <summary><c>fetch</c>.</summary>
    Fetch = 1 << 5,

    /// <summary><c>present</c>: the violation says that the entry grants something.</summary>
    Present = 1 << 6,

    /// <summary><c>convert</c>: user space answers a memory-fault exit by a conversion.</summary>
    Convert = 1 << 7,

    /// <summary><c>strict</c>: the guest does not accept what is pending; a #VE is the step's result.</summary>
    Strict = 1 << 8,

    /// <summary><c>start</c>.</summary>
    Start = 1 << 9,

    /// <summary><c>end</c>.</summary>
    End = 1 << 10,

    /// <summary><c>accepted</c>.</summary>
    Accepted = 1 << 11,

    /// <summary><c>measured</c>.</summary>
    Measured = 1 << 12,

    /// <summary><c>on</c>.</summary>
    On = 1 << 13,

    /// <summary><c>off</c>.</summary>
    Off = 1 << 14,
}

/// <summary>What an operand of a raw module call names.</summary>
public enum OperandKind : byte
{
    /// <summary>A number.</summary>
    Number,

    /// <summary>The TD root page of a VM.</summary>
    Tdr,

    /// <summary>The root page of a vCPU.</summary>
    Tdvpr,

    /// <summary>A guest address with its level, as the memory leaves take it.</summary>
    Gpa,

    /// <summary>The host frame behind the private alias of a guest frame.</summary>
    Page,
}

/// <summary>An operand of a raw module call.</summary>
/// <param name="Kind">What it names.</param>
/// <param name="Number">The number, the vCPU, or the guest frame.</param>
/// <param name="Level">Level of a <see cref="OperandKind.Gpa"/>.</param>
/// <param name="Vm">Which VM, from 1; 0: the step's own.</param>
public readonly record struct ScenarioOperand(OperandKind Kind, ulong Number, Level Level, int Vm);

/// <summary>One step of an actor, of the setup or of the end of a scenario. Immutable.</summary>
/// <param name="Kind">What is done.</param>
public sealed record ScenarioStep(StepKind Kind)
{
    /// <summary>Guest frames; empty where the step has none.</summary>
    public GfnRange Range { get; init; }

    /// <summary>The bare words.</summary>
    public StepWords Words { get; init; }

    /// <summary>Which VM, from 1.</summary>
    public int Vm { get; init; } = 1;

    /// <summary>Slot number, or -1.</summary>
    public int Slot { get; init; } = -1;

    /// <summary>vCPU number, or -1.</summary>
    public int Vcpu { get; init; } = -1;

    /// <summary>Level; <see langword="default"/> where the step has none.</summary>
    public Level Level { get; init; }

    /// <summary>The target of a conversion; only where the grammar has <c>to=</c>.</summary>
    public Alias To { get; init; }

    /// <summary>How often a fault may be tried; 0: the default.</summary>
    public int Attempts { get; init; }

    /// <summary>Number of a module leaf, host or guest.</summary>
    public int Leaf { get; init; }

    /// <summary>RCX, RDX, R8, R9 of a raw call.</summary>
    public IReadOnlyList<ScenarioOperand> Operands { get; init; } = [];

    /// <summary>The actor whose step is waited for, or whose processor is interrupted.</summary>
    public string Awaited { get; init; } = string.Empty;

    /// <summary>Number of the awaited step, from 1; 0: the actor's last.</summary>
    public int AwaitedStep { get; init; }

    /// <summary>Line of the text, or 0.</summary>
    public int Line { get; init; }

    /// <summary>True when the word is there.</summary>
    public bool Has(StepWords word) => (Words & word) != 0;

    /// <summary>The alias that the words name.</summary>
    public Alias Alias => Has(StepWords.Shared) ? Alias.Shared : Alias.Private;

    /// <summary>The step as it would stand in a file.</summary>
    public override string ToString() => StepGrammar.Write(this);
}
