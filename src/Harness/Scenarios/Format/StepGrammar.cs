using System.Globalization;
using System.Text;

namespace Tdp.Harness.Scenarios;

/// <summary>What a parameter of a step looks like.</summary>
internal enum ParameterForm : byte
{
    /// <summary><c>gfn=0x200</c>, <c>gfn=0x200..0x2ff</c>, <c>gfn=0x200+16</c>.</summary>
    Range,

    /// <summary>One of a few bare words.</summary>
    Words,

    /// <summary><c>to=shared</c> or <c>to=private</c>.</summary>
    To,

    /// <summary><c>slot=N</c>.</summary>
    Slot,

    /// <summary><c>vcpu=N</c>.</summary>
    Vcpu,

    /// <summary><c>level=4K</c>.</summary>
    Level,

    /// <summary><c>attempts=N</c>.</summary>
    Attempts,

    /// <summary><c>leaf=MEM.TRACK</c>, a host leaf.</summary>
    HostLeaf,

    /// <summary><c>leaf=MEM.PAGE.ACCEPT</c>, a guest leaf.</summary>
    GuestLeaf,

    /// <summary><c>rcx=...</c> and its like, each at most once.</summary>
    Operands,

    /// <summary><c>step=A.1</c>.</summary>
    StepName,

    /// <summary><c>actor=A</c>.</summary>
    ActorName,
}

/// <summary>One parameter of a step.</summary>
/// <param name="Form">What it looks like.</param>
/// <param name="IsRequired">It must be there.</param>
/// <param name="Words">The words, for <see cref="ParameterForm.Words"/>; a missing optional word means the first.</param>
internal sealed record StepParameter(ParameterForm Form, bool IsRequired, params StepWords[] Words)
{
    /// <summary>How the parameter is written.</summary>
    public string Pattern => Form switch
    {
        ParameterForm.Range => "gfn=RANGE",
        ParameterForm.Words => string.Join('|', Array.ConvertAll(Array.FindAll(Words, w => w is not StepWords.None), StepGrammar.WordText)),
        ParameterForm.To => "to=shared|private",
        ParameterForm.Slot => "slot=N",
        ParameterForm.Vcpu => "vcpu=N",
        ParameterForm.Level => "level=4K|2M|1G",
        ParameterForm.Attempts => "attempts=N",
        ParameterForm.HostLeaf or ParameterForm.GuestLeaf => "leaf=NAME",
        ParameterForm.Operands => "rcx=V rdx=V r8=V r9=V",
        ParameterForm.ActorName => "actor=NAME",
        _ => "step=ACTOR.N",
    };
}

/// <summary>Who may do a step.</summary>
internal enum StepBy : byte
{
    /// <summary>A vCPU only.</summary>
    Vcpu,

    /// <summary>Any actor.</summary>
    Any,
}

/// <summary>How a step is written.</summary>
/// <param name="Kind">Which step.</param>
/// <param name="Name">Its first word.</param>
/// <param name="By">Who may do it.</param>
/// <param name="Sentence">What it does, for documents and help.</param>
/// <param name="Results">What it can end with, for documents.</param>
/// <param name="Parameters">What follows the name, in any order.</param>
internal sealed record StepShape(StepKind Kind, string Name, StepBy By, string Sentence, string Results, params StepParameter[] Parameters)
{
    /// <summary>How the step is written.</summary>
    public string Pattern
    {
        get
        {
            StringBuilder text = new(Name);
            foreach (StepParameter parameter in Parameters)
            {
                text.Append(' ').Append(parameter.IsRequired ? parameter.Pattern : "[" + parameter.Pattern + "]");
            }

            return text.ToString();
        }
    }
}

/// <summary>The one table of the steps of a scenario: the reader, the writer, the error messages and the document all follow it.</summary>
internal static class StepGrammar
{
    private const string Errnos = "ok or an errno";
    private const string GuestResults = "ok, memory-fault, mmio, ve, event, or an errno";

    private static readonly StepParameter Gfn = new(ParameterForm.Range, true);
    private static readonly StepParameter MaybeAlias = new(ParameterForm.Words, false, StepWords.Private, StepWords.Shared);
    private static readonly StepParameter MaybeConvert = new(ParameterForm.Words, false, StepWords.None, StepWords.Convert);
    private static readonly StepParameter MaybeStrict = new(ParameterForm.Words, false, StepWords.None, StepWords.Strict);
    private static readonly StepParameter To = new(ParameterForm.To, true);
    private static readonly StepParameter Slot = new(ParameterForm.Slot, true);
    private static readonly StepParameter Operands = new(ParameterForm.Operands, false);

    private static readonly Dictionary<string, StepShape> ByName = new(StringComparer.Ordinal);
    private static readonly Dictionary<StepKind, StepShape> ByKind = [];

    static StepGrammar()
    {
        foreach (StepShape shape in All)
        {
            ByName.Add(shape.Name, shape);
            ByKind.Add(shape.Kind, shape);
        }
    }

    /// <summary>Every step, in the order of the document.</summary>
    public static IReadOnlyList<StepShape> All { get; } =
    [
        new(StepKind.Read, "read", StepBy.Vcpu, "The guest reads each page of the range, accepting what is pending.", GuestResults, Gfn, MaybeAlias, MaybeConvert, MaybeStrict),
        new(StepKind.Write, "write", StepBy.Vcpu, "The guest writes each page of the range, accepting what is pending.", GuestResults, Gfn, MaybeAlias, MaybeConvert, MaybeStrict),
        new(StepKind.Fetch, "fetch", StepBy.Vcpu, "The guest fetches from each page of the range.", GuestResults, Gfn, MaybeAlias, MaybeConvert, MaybeStrict),
        new(StepKind.Accept, "accept", StepBy.Vcpu, "The guest accepts each 4K (or 2M) page of the range.", "a status of the module, memory-fault, or an errno", Gfn, new StepParameter(ParameterForm.Level, false), MaybeConvert),
        new(StepKind.MapGpa, "map-gpa", StepBy.Vcpu, "The guest asks for a conversion; user space converts.", "ok, retry, invalid, align, unsupported, or an errno", Gfn, To),
        new(StepKind.Tdcall, "tdcall", StepBy.Vcpu, "The guest makes a TDCALL.", "a status of the module, or an errno", new StepParameter(ParameterForm.GuestLeaf, true), Operands),
        new(StepKind.Stay, "stay", StepBy.Vcpu, "The guest runs on without touching memory until it is kicked, or until every other actor has ended.", "ok or an errno"),
        new(StepKind.Fault, "fault", StepBy.Vcpu, "The fault handler alone, as for an EPT violation, tried up to N times (3).", "fixed, spurious, retry, emulate, write-protected, memory-fault, or an errno", Gfn, MaybeAlias, new StepParameter(ParameterForm.Words, false, StepWords.Write, StepWords.Read, StepWords.Fetch), new StepParameter(ParameterForm.Words, false, StepWords.None, StepWords.Present), new StepParameter(ParameterForm.Attempts, false)),
        new(StepKind.Map, "map", StepBy.Any, "Maps each page of the range as vCPU 0; accepted pages are accepted and written by its guest.", Errnos, Gfn, MaybeAlias, new StepParameter(ParameterForm.Words, false, StepWords.None, StepWords.Accepted)),
        new(StepKind.PreFault, "pre-fault", StepBy.Any, "KVM_PRE_FAULT_MEMORY on a vCPU.", Errnos, Gfn, new StepParameter(ParameterForm.Vcpu, false)),
        new(StepKind.Convert, "convert", StepBy.Any, "KVM_SET_MEMORY_ATTRIBUTES.", Errnos, Gfn, To),
        new(StepKind.PunchHole, "punch-hole", StepBy.Any, "Punches the range out of the guest_memfd behind it.", Errnos, Gfn),
        new(StepKind.Poison, "poison", StepBy.Any, "A memory error hits the private page of each frame.", Errnos, Gfn),
        new(StepKind.CloseFile, "close-file", StepBy.Any, "The last close of a slot's guest_memfd.", Errnos, Slot),
        new(StepKind.Notify, "notify", StepBy.Any, "An MMU notifier for the host memory behind the range; start and end are its halves.", Errnos, Gfn, new StepParameter(ParameterForm.Words, false, StepWords.Both, StepWords.Start, StepWords.End)),
        new(StepKind.Discard, "discard", StepBy.Any, "The host memory behind the range is given up.", Errnos, Gfn),
        new(StepKind.Migrate, "migrate", StepBy.Any, "The host memory behind the range moves to other frames.", Errnos, Gfn),
        new(StepKind.Protect, "protect", StepBy.Any, "The host memory behind the range becomes read-only.", Errnos, Gfn),
        new(StepKind.CreateSlot, "create-slot", StepBy.Any, "Creates a declared memslot that is not there.", Errnos, Slot),
        new(StepKind.DeleteSlot, "delete-slot", StepBy.Any, "Deletes a memslot.", Errnos, Slot),
        new(StepKind.MoveSlot, "move-slot", StepBy.Any, "Moves a memslot; the range must have its length.", Errnos, Slot, Gfn),
        new(StepKind.LogSlot, "log-slot", StepBy.Any, "Switches dirty logging of a memslot.", Errnos, Slot, new StepParameter(ParameterForm.Words, true, StepWords.On, StepWords.Off)),
        new(StepKind.GetLog, "get-log", StepBy.Any, "KVM_GET_DIRTY_LOG; what it answers counts as recorded for the subject 'dirty'.", Errnos, Slot),
        new(StepKind.ClearLog, "clear-log", StepBy.Any, "KVM_CLEAR_DIRTY_LOG of the words of 64 pages that hold the range.", Errnos, Slot, Gfn),
        new(StepKind.Unmap, "unmap", StepBy.Any, "Unmaps and flushes a range in every root of an alias, under mmu_lock write, without an invalidation.", "ok", Gfn, new StepParameter(ParameterForm.Words, true, StepWords.Private, StepWords.Shared, StepWords.Both)),
        new(StepKind.ZapLeafs, "zap-leafs", StepBy.Any, "kvm_zap_gfn_range: every valid root. Not for a TD, where it destroys private memory.", "ok", Gfn),
        new(StepKind.FastZap, "fast-zap", StepBy.Any, "Invalidates the direct roots and zaps them.", "ok"),
        new(StepKind.ZapAll, "zap-all", StepBy.Any, "Zaps every direct root, as when the VMM's address space goes.", "ok"),
        new(StepKind.Age, "age", StepBy.Any, "Clears Accessed of shared pages.", "yes, no", Gfn),
        new(StepKind.TestAge, "test-age", StepBy.Any, "Tests Accessed of shared pages.", "yes, no", Gfn),
        new(StepKind.WriteProtect, "write-protect", StepBy.Any, "Write-protects the leaves of a memslot and flushes.", "yes, no", Slot),
        new(StepKind.ClearDirty, "clear-dirty", StepBy.Any, "Clears Dirty of the leaves of a memslot and flushes.", "ok", Slot),
        new(StepKind.Split, "split", StepBy.Any, "Splits the huge leaves of a memslot down to a level (4K).", "ok, ENOMEM", Slot, new StepParameter(ParameterForm.Level, false)),
        new(StepKind.Recover, "recover", StepBy.Any, "Maps a memslot huge again where nothing forbids it.", "ok", Slot),
        new(StepKind.RecoverNx, "recover-nx", StepBy.Any, "NX recovery of the oldest table that an executable 4K page forced.", "yes, no"),
        new(StepKind.InitRegion, "init-region", StepBy.Any, "KVM_TDX_INIT_MEM_REGION with pages that carry their frame number.", Errnos, Gfn, new StepParameter(ParameterForm.Words, false, StepWords.None, StepWords.Measured)),
        new(StepKind.AddVcpu, "add-vcpu", StepBy.Any, "KVM_CREATE_VCPU and, in a TD, KVM_TDX_INIT_VCPU.", Errnos),
        new(StepKind.Finalize, "finalize", StepBy.Any, "KVM_TDX_FINALIZE_VM.", Errnos),
        new(StepKind.Seamcall, "seamcall", StepBy.Any, "A SEAMCALL past the host's own code, except VP.ENTER.", "a status of the module", new StepParameter(ParameterForm.HostLeaf, true), Operands),
        new(StepKind.Interrupt, "interrupt", StepBy.Any, "An external interrupt for the processor of an actor.", "ok", new StepParameter(ParameterForm.ActorName, true)),
        new(StepKind.Signal, "signal", StepBy.Any, "A signal to the thread of a vCPU: its KVM_RUN, or its next, returns EINTR.", "ok", new StepParameter(ParameterForm.Vcpu, true)),
        new(StepKind.Smm, "smm", StepBy.Vcpu, "The vCPU of an ordinary VM enters or leaves SMM: the other address space.", "ok, EINVAL", new StepParameter(ParameterForm.Words, true, StepWords.On, StepWords.Off)),
        new(StepKind.Kick, "kick", StepBy.Any, "Makes every vCPU leave the guest once, and waits.", "ok"),
        new(StepKind.Await, "await", StepBy.Any, "Waits until a step of another actor has ended; without a number, its last. A 'stay' counts as ended when its guest is inside.", "ok", new StepParameter(ParameterForm.StepName, true)),
        new(StepKind.Destroy, "destroy", StepBy.Any, "Destroys the VM. No vCPU may run; only in 'after' lines.", "ok"),
    ];

    /// <summary>The shape with this name, or <see langword="null"/>.</summary>
    public static StepShape? Find(string name) => ByName.GetValueOrDefault(name);

    /// <summary>The shape of a step.</summary>
    public static StepShape Of(StepKind kind) => ByKind[kind];

    /// <summary>A bare word as it is written.</summary>
    public static string WordText(StepWords word) => word is StepWords.None ? string.Empty : word.ToString().ToLowerInvariant();

    /// <summary>A range as it is written.</summary>
    public static string RangeText(GfnRange range)
        => range.Pages == 1 ? string.Create(CultureInfo.InvariantCulture, $"0x{range.Start.Value:x}") : string.Create(CultureInfo.InvariantCulture, $"0x{range.Start.Value:x}..0x{range.End.Value - 1:x}");

    /// <summary>Writes a step so that it reads back equal.</summary>
    public static string Write(ScenarioStep step)
    {
        StepShape shape = Of(step.Kind);
        StringBuilder text = new(shape.Name);
        foreach (StepParameter parameter in shape.Parameters)
        {
            if (Write(step, parameter) is { Length: > 0 } word)
            {
                text.Append(' ').Append(word);
            }
        }

        if (step.Vm != 1)
        {
            text.Append(CultureInfo.InvariantCulture, $" vm={step.Vm}");
        }

        return text.ToString();
    }

    private static string Write(ScenarioStep step, StepParameter parameter)
    {
        CultureInfo plain = CultureInfo.InvariantCulture;
        switch (parameter.Form)
        {
            case ParameterForm.Range:
                return "gfn=" + RangeText(step.Range);
            case ParameterForm.Words:
                StepWords word = Array.Find(parameter.Words, w => w is not StepWords.None && step.Has(w));
                return word == parameter.Words[0] && !parameter.IsRequired ? string.Empty : WordText(word);
            case ParameterForm.To:
                return step.To is Alias.Shared ? "to=shared" : "to=private";
            case ParameterForm.Slot:
                return string.Create(plain, $"slot={step.Slot}");
            case ParameterForm.Vcpu:
                return step.Vcpu < 0 ? string.Empty : string.Create(plain, $"vcpu={step.Vcpu}");
            case ParameterForm.Level:
                return step.Level == default ? string.Empty : $"level={step.Level}";
            case ParameterForm.Attempts:
                return step.Attempts == 0 ? string.Empty : string.Create(plain, $"attempts={step.Attempts}");
            case ParameterForm.HostLeaf:
                return "leaf=" + ((TdhLeaf)step.Leaf).ToString().Replace('_', '.');
            case ParameterForm.GuestLeaf:
                return "leaf=" + ((TdgLeaf)step.Leaf).ToString().Replace('_', '.');
            case ParameterForm.Operands:
                return StepOperands.Write(step.Operands);
            case ParameterForm.ActorName:
                return $"actor={step.Awaited}";
            default:
                return step.AwaitedStep == 0 ? $"step={step.Awaited}" : string.Create(plain, $"step={step.Awaited}.{step.AwaitedStep}");
        }
    }
}
