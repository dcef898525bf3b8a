namespace Tdp.Mmu;

/// <summary>
/// A table of KVM's (KVM: struct kvm_mmu_page) as seen from outside: a handle of two words, valid until the table is freed. The record itself lies in a compact
/// array (performance: no object per table).
/// </summary>
public readonly struct TablePage : IEquatable<TablePage>
{
    private readonly TableStore? _store;

    internal TablePage(TableStore store, uint index)
    {
        _store = store;
        Index = index;
    }

    /// <summary>No table.</summary>
    public static TablePage None => default;

    /// <summary>True for <see cref="None"/>.</summary>
    public bool IsNone => _store is null;

    /// <summary>The frame with the 512 entries.</summary>
    public Hpa Frame => new(Record.Frame);

    /// <summary>First frame number covered, natural.</summary>
    public Gfn Gfn => new(Record.Gfn);

    /// <summary>Level of the entries in the table.</summary>
    public Level Level => Role.Level;

    /// <summary>The role word; of a root, see <see cref="Root.Role"/>, which alone carries the invalid bit.</summary>
    public TableRole Role => new(Record.Role);

    /// <summary>The page given to the module for this table, or 0: mirror tables other than the root have one (I09).</summary>
    public Hpa ExternalPage => new(Record.External);

    /// <summary>Address of the parent entry; 0 for a root.</summary>
    public Hpa ParentEntry => new(Record.Parent);

    /// <summary>True for a root.</summary>
    public bool IsRoot => Record.Parent == 0;

    /// <summary>True for a table of a mirror tree.</summary>
    public bool IsMirror => Role.IsMirror;

    /// <summary>A huge page was refused here because of the NX workaround.</summary>
    public bool IsNxHugePageDisallowed => (Record.Flags & TableRecord.NxDisallowed) != 0;

    /// <summary>Given back: nobody may use it any more (I45).</summary>
    public bool IsFreed => (Record.Flags & TableRecord.Freed) != 0;

    /// <summary>Number of the table in its VM, from 1; given again to another table after this one was freed.</summary>
    public uint Index { get; }

    private ref TableRecord Record => ref _store!.Record(Index);

    /// <summary>Entry 0..511; an atomic read.</summary>
    public Spte this[int index] => new(_store!.Memory.Entry(Frame, index).Read());

    /// <summary>Entry 0..511 without an event: for checkers and reports.</summary>
    public Spte Peek(int index) => new(_store!.Memory.Entry(Frame, index).Peek());

    /// <summary>Same table.</summary>
    public static bool operator ==(TablePage left, TablePage right) => left.Equals(right);

    /// <summary>Different tables.</summary>
    public static bool operator !=(TablePage left, TablePage right) => !left.Equals(right);

    /// <inheritdoc/>
    public bool Equals(TablePage other) => ReferenceEquals(_store, other._store) && Index == other.Index;

    /// <inheritdoc/>
    public override bool Equals(object? obj) => obj is TablePage other && Equals(other);

    /// <inheritdoc/>
    public override int GetHashCode() => (int)Index;

    /// <inheritdoc/>
    public override string ToString() => IsNone ? "-" : $"table({(IsMirror ? "mirror" : "direct")}, {Level}, gfn {Gfn})";
}

/// <summary>What the MMU knows of one of its tables. Written by the thread that makes, links or removes the table; the NX links under the pages lock.</summary>
internal struct TableRecord
{
    /// <summary>A huge page was refused here because of the NX workaround.</summary>
    internal const byte NxDisallowed = 1;

    /// <summary>Member of the list of tables that NX recovery may zap.</summary>
    internal const byte OnNxList = 2;

    /// <summary>Given back: nobody may use it (I45).</summary>
    internal const byte Freed = 4;

    internal ulong Frame;
    internal ulong Parent;
    internal ulong Gfn;
    internal ulong External;
    internal uint Role;
    internal uint NxPrevious;
    internal uint NxNext;
    internal byte Flags;
}
