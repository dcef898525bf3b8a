namespace Tdp.Harness.Invariants;

/// <summary>One entry of a KVM tree: its value and its place.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Table">The table that holds it.</param>
/// <param name="Index">Its place in the table, 0..511.</param>
/// <param name="Value">What it holds.</param>
/// <param name="RawGfn">First frame number that the place covers, with the alias bit where the place has it.</param>
/// <param name="TreeRole">Role word of the tree's root; of a detached table, that of its topmost table.</param>
/// <param name="IsReachable">True when a walk from the root comes here now.</param>
public readonly record struct EntryView(CheckedVm Vm, TablePage Table, int Index, Spte Value, ulong RawGfn, TableRole TreeRole, bool IsReachable) : ISubject
{
    /// <summary>True for an entry that was looked for and is not there.</summary>
    public bool IsNone => Table.IsNone;

    /// <summary>Its level.</summary>
    public Level Level => Table.Level;

    /// <summary>Hole, table or leaf.</summary>
    public SpteKind Kind => Value.Kind(Level);

    /// <summary>True in a mirror tree.</summary>
    public bool IsMirror => TreeRole.IsMirror;

    /// <summary>Where the word lies.</summary>
    public Hpa Address => Table.Frame + ((ulong)(uint)Index << 3);

    /// <summary>First frame number covered, natural.</summary>
    public Gfn Gfn => new(Math.Min(RawGfn & ~Vm.AliasMask, Gfn.Limit));

    /// <summary>The pages covered, natural.</summary>
    public GfnRange Range => new(Gfn, new Gfn(Math.Min(Gfn.Value + Level.Pages, Gfn.Limit)));

    /// <summary>The alias that the place maps; everything of an ordinary VM is shared.</summary>
    public Alias Alias => IsMirror ? Alias.Private : Alias.Shared;

    /// <inheritdoc/>
    public string Describe()
    {
        if (IsNone)
        {
            return "no entry";
        }

        string place = $"{(IsMirror ? "mirror" : "direct")} tree{(IsReachable ? string.Empty : " (detached)")}, gfn 0x{RawGfn:x}, {Level}, index {Index} of {Table}: {SpteText.Of(Value, Level, Vm.Mmu.Format)}";
        return Kind is SpteKind.Absent ? place : $"{place}; {DescribeTarget()}";
    }

    private string DescribeTarget()
    {
        if (Kind is SpteKind.Table)
        {
            TablePage child = Vm.TableBehind(Value);
            return child.IsNone ? SpteText.OfPage(Vm.Machine, Vm.Module, Value.Address) : $"{child}{(child.IsFreed ? ", freed" : string.Empty)}, role 0x{child.Role.Value:x}, parent entry at {child.ParentEntry}, external page {child.ExternalPage}";
        }

        string page = SpteText.OfPage(Vm.Machine, Vm.Module, Value.Address);
        return IsMirror && Vm.Module is { } module && Vm.LiveTd is { } td ? $"{SpteText.Of(module.FindSeptEntry(td.Tdr, Gfn.Gpa, Level))}; {page}" : page;
    }
}

/// <summary>One table of KVM's.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Table">The table.</param>
/// <param name="Pointers">Present entries that point to it.</param>
/// <param name="Twin">Another table with the same external page, or none.</param>
/// <param name="IsReachable">True when a walk from a root comes here.</param>
public readonly record struct TableView(CheckedVm Vm, TablePage Table, int Pointers, TablePage Twin, bool IsReachable) : ISubject
{
    /// <inheritdoc/>
    public string Describe()
    {
        string twin = Twin.IsNone ? string.Empty : $", which {Twin} has as well";
        string external = Table.ExternalPage.Value == 0 ? "no external page" : $"external page {Table.ExternalPage} ({SpteText.OfPage(Vm.Machine, Vm.Module, Table.ExternalPage)}){twin}";
        return $"{Table} in frame 0x{Table.Frame.Frame:x}{(Table.IsFreed ? ", freed" : string.Empty)}, {Pointers} entries point to it{(IsReachable ? string.Empty : ", detached")}, {external}";
    }
}

/// <summary>A frame number that something stores.</summary>
/// <param name="Vm">The VM.</param>
/// <param name="Gfn">The number as stored.</param>
/// <param name="Holder">What stores it.</param>
public readonly record struct StoredGfn(CheckedVm Vm, ulong Gfn, string Holder) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => $"{Holder} stores gfn 0x{Gfn:x}; the alias bit is 0x{Vm.AliasMask:x}";
}

/// <summary>A sum that is kept, and the same sum counted.</summary>
/// <param name="Kept">What the MMU keeps.</param>
/// <param name="Counted">What is there.</param>
/// <param name="Slack">How far the two may be apart now: changes of it that are in flight.</param>
/// <param name="What">What is counted.</param>
public readonly record struct Sum(long Kept, long Counted, long Slack, string What) : ISubject
{
    /// <inheritdoc/>
    public string Describe() => $"{What}: {Kept} are kept, {Counted} are there{(Slack == 0 ? string.Empty : $", {Slack} changes are in flight")}";
}
