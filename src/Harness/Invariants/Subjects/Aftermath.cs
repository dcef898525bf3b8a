namespace Tdp.Harness.Invariants;

/// <summary>What an operation left behind, as its caller finds it when it has returned. One subject per thing found; an operation that left nothing gives one with nothing in it.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Operation">What was done, such as <c>the conversion of [0x100, 0x200) to shared</c>.</param>
public readonly record struct Aftermath(CheckedVm Vm, string Operation) : ISubject
{
    /// <summary>An entry that should be gone, or none.</summary>
    public EntryView Left { get; init; }

    /// <summary>An entry that should still be there, or none.</summary>
    public EntryView Gone { get; init; }

    /// <summary>A Secure EPT entry that should be FREE, or null.</summary>
    public SeptView? SeptLeft { get; init; }

    /// <summary>A page whose attribute is not the one that was stored, or null.</summary>
    public Gfn? Unconverted { get; init; }

    /// <summary>A vCPU that runs on an invalid root, or -1.</summary>
    public int InsideOnOldRoot { get; init; } = -1;

    /// <inheritdoc/>
    public string Describe()
    {
        string left = Left.IsNone ? string.Empty : $" leaves {Left.Describe()}";
        string gone = Gone.IsNone ? string.Empty : $" took away {Gone.Describe()}";
        string sept = SeptLeft is { } view ? $" leaves GPA {view.Gpa}: {SpteText.Of(view)}, {SpteText.OfPage(Vm.Machine, Vm.Module, view.Hpa)}" : string.Empty;
        string attribute = Unconverted is { } gfn ? $" leaves the attribute of gfn {gfn} as it was" : string.Empty;
        return $"{Operation}{left}{gone}{sept}{attribute}{(InsideOnOldRoot < 0 ? string.Empty : $": vCPU {InsideOnOldRoot} is in the guest on a root that it invalidated")}";
    }
}

/// <summary>A translation in a processor's TLB that the processor would use.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Processor">The processor.</param>
/// <param name="Entry">The translation.</param>
/// <param name="IsJustified">The tables have the same translation now, with at least the same rights.</param>
public readonly record struct TlbView(CheckedVm Vm, int Processor, TlbEntry Entry, bool IsJustified) : ISubject
{
    /// <inheritdoc/>
    public string Describe()
        => $"LP {Processor} vCPU {Entry.Vcpu}: GPA 0x{Entry.GpaPage:x} ({new Level(Entry.Level)}) -> frame 0x{Entry.Frame >> 12:x}, rights {Entry.Rights & 7}, generation {Entry.Generation}; {(IsJustified ? "the tables agree" : "the tables have no such translation")}; {SpteText.OfPage(Vm.Machine, Vm.Module, new Hpa(Entry.Frame))}";
}

/// <summary>A page of a dirty-logged slot after a harvest.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Gfn">The page.</param>
/// <param name="Leaf">The leaf that maps it, or none.</param>
/// <param name="WasWritten">The guest had written it before the harvest.</param>
/// <param name="IsRecorded">The harvest, or the log since, has its bit.</param>
/// <param name="HasWriteTranslation">A TLB still lets the guest write it without a walk.</param>
public readonly record struct DirtyView(CheckedVm Vm, Gfn Gfn, EntryView Leaf, bool WasWritten, bool IsRecorded, bool HasWriteTranslation) : ISubject
{
    /// <summary>The guest can write the page and nobody would know: the leaf is writable (and the CPU's own log does not see D being set), or a translation is.</summary>
    public bool IsWritableUnseen => HasWriteTranslation
        || (!Leaf.IsNone && Leaf.Kind is SpteKind.Leaf && Leaf.Value.IsWritable && (Vm.Mmu.Options.DirtyLogSize == 0 || Leaf.Value.IsDirty));

    /// <inheritdoc/>
    public string Describe() => $"gfn {Gfn}: {(WasWritten ? "written" : "not written")} before the harvest, {(IsRecorded ? "recorded" : "not recorded")}{(HasWriteTranslation ? ", a TLB holds a writable translation" : string.Empty)}; {Leaf.Describe()}";
}

/// <summary>A table that its remover has finished with.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Table">The table.</param>
/// <param name="Left">A present entry that is left in it, or none.</param>
public readonly record struct RemovedTable(CheckedVm Vm, TablePage Table, EntryView Left) : ISubject
{
    /// <summary>Looks at all 512 entries.</summary>
    public static RemovedTable Of(CheckedVm vm, TablePage table)
    {
        ArgumentNullException.ThrowIfNull(vm);
        for (int index = 0; index < 512; index++)
        {
            if (table.Peek(index) is { IsPresent: true } left)
            {
                return new RemovedTable(vm, table, vm.At(table, index, left));
            }
        }

        return new RemovedTable(vm, table, default);
    }

    /// <inheritdoc/>
    public string Describe() => $"{Table} was removed; {(Left.IsNone ? "nothing is left in it" : Left.Describe())}";
}

/// <summary>What the books say of a frame when the VM is gone.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Problem">What is wrong with a frame, or null.</param>
/// <param name="Leaked">Frames listed as leaked.</param>
/// <param name="LeaksLogged">All of them have a reason, and the kernel log has an error.</param>
public readonly record struct FrameBooks(CheckedVm Vm, string? Problem, int Leaked, bool LeaksLogged) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => Problem ?? $"{Leaked} frames are leaked{(LeaksLogged ? string.Empty : " without a logged error")}";
}
