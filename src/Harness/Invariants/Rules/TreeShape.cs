namespace Tdp.Harness.Invariants;

/// <summary>
/// Shape of the trees (tdp-mmu 10.1).
/// </summary>
/// <remarks>
/// Why the "always" rules here hold between any two shared accesses, without a lock: I01 to I12 and I16 speak of one word and of what a table's record says, and a record is complete
/// before the word that links the table is written and is not changed before the word is gone (4.6, 4.7). I14, I15, I17, I18 speak of one word's old and new value, which one access
/// replaces. Detached tables stay FROZEN for good; the rules about FROZEN say "reachable".
/// </remarks>
public static class TreeShape
{
    private const ulong MmuOwn = Spte.PresentBit | Spte.SuppressVe;

    /// <summary>I01.</summary>
    public static Invariant<EntryView> I01 { get; } = new(
        "I01", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "a table fits the entry that points to it",
        "Every present non-leaf entry points to a table of the level below, whose parent pointer is that very entry and whose role is the root's; only roots carry the invalid bit.",
        static (in EntryView at) => at.Kind is not SpteKind.Table || IsFitting(at));

    /// <summary>I02.</summary>
    public static Invariant<TableView> I02 { get; } = new(
        "I02", InvariantTag.Always, InvariantBinding.Table, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "one entry points to a table",
        "No table is pointed to by two present entries.",
        static (in TableView table) => table.Pointers <= 1);

    /// <summary>I03.</summary>
    public static Invariant<EntryView> I03 { get; } = new(
        "I03", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "a table starts where its entry does",
        "A child table starts at the natural frame number that its parent entry covers, aligned to the parent entry's size.",
        static (in EntryView at) => at.Kind is not SpteKind.Table || at.Vm.TableBehind(at.Value) is not { IsNone: false } child || child.Gfn.Value == (at.RawGfn & ~at.Vm.AliasMask));

    /// <summary>I04.</summary>
    public static Invariant<EntryView> I04 { get; } = new(
        "I04", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "levels are 1 to 5, leaves up to 1G",
        "Levels are within 1..5; a present entry with bit 7 lies at 2M or 1G, so that nothing above 1G is a leaf.",
        static (in EntryView at) => at.Level.Value is >= 1 and <= 5 && (at.Kind is not SpteKind.Leaf || at.Level == Level.K4 || at.Level <= Level.G1));

    /// <summary>I05.</summary>
    public static Invariant<EntryView> I05 { get; } = new(
        "I05", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "bits 11 and 63",
        "Every present entry has bits 11 and 63 set; the non-present value and FROZEN have bit 63 set and bit 11 clear, and a direct tree has no other absent value but MMIO entries.",
        static (in EntryView at) => at.Value.IsPresent ? (at.Value.Value & MmuOwn) == MmuOwn : at.IsMirror || !at.IsReachable || at.Value == Spte.NonPresent || at.Value.IsFrozen || at.Vm.Mmu.Format.IsMmio(at.Value));

    /// <summary>I06.</summary>
    public static Invariant<EntryView> I06 { get; } = new(
        "I06", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "no MMIO entry in a mirror",
        "An entry of a mirror tree that is not present is the non-present value or FROZEN: no MMIO entry is ever in a mirror.",
        static (in EntryView at) => !at.IsMirror || at.Value.IsPresent || at.Value == Spte.NonPresent || at.Value.IsFrozen);

    /// <summary>I07.</summary>
    public static Invariant<EntryView> I07 { get; } = new(
        "I07", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "mirror leaves are 4K",
        "No mirror leaf lies above 4K.",
        static (in EntryView at) => !at.IsMirror || at.Kind is not SpteKind.Leaf || at.Level == Level.K4);

    /// <summary>I08.</summary>
    public static Invariant<EntryView> I08 { get; } = new(
        "I08", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "mirror leaves grant everything",
        "Every mirror leaf has R, W and X, host-writable and MMU-writable set, and A/D type \"enabled\".",
        static (in EntryView at) => !at.IsMirror || at.Kind is not SpteKind.Leaf
            || ((at.Value.Value & Spte.Rwx) == Spte.Rwx && at.Value.IsHostWritable && at.Value.IsMmuWritable && (at.Value.Value & Spte.AdTypeMask) == 0));

    /// <summary>I09.</summary>
    public static Invariant<TableView> I09 { get; } = new(
        "I09", InvariantTag.Always, InvariantBinding.Table, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "mirror tables have an external page",
        "Every linked mirror table other than the root has an external page; direct tables and mirror roots have none.",
        static (in TableView table) => table.Table.ExternalPage.Value != 0 == (table.Table.IsMirror && !table.Table.IsRoot));

    /// <summary>I10.</summary>
    public static Invariant<TableView> I10 { get; } = new(
        "I10", InvariantTag.Always, InvariantBinding.Table, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "external pages are distinct",
        "External pages are pages of the machine, pairwise distinct, and none of them is a page table of the host.",
        static (in TableView table) => table.Table.ExternalPage.Value == 0 || (table.Twin.IsNone && table.Vm.Machine.Memory.Exists(table.Table.ExternalPage) && table.Vm.Machine.Ledger.UseOf(table.Table.ExternalPage) is not FrameUse.HostTable));

    /// <summary>I11.</summary>
    public static Invariant<StoredGfn> I11 { get; } = new(
        "I11", InvariantTag.Always, InvariantBinding.Everywhere, FreeRunJudge.ActingThread | FreeRunJudge.Sample | FreeRunJudge.Rest,
        "stored frame numbers are natural",
        "No frame number stored in a table's record, a slot, a fault or the invalidation range carries the alias bit.",
        static (in StoredGfn stored) => (stored.Gfn & stored.Vm.AliasMask) == 0);

    /// <summary>I12.</summary>
    public static Invariant<EntryView> I12 { get; } = new(
        "I12", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "each alias in its own tree",
        "A mirror tree has no entry at an index that needs the alias bit; a TD's direct tree, reached by faults, has entries only at such indexes.",
        static (in EntryView at) => at.Vm.AliasMask == 0 || at.Level.Pages > at.Vm.AliasMask || (at.RawGfn & at.Vm.AliasMask) != 0 != at.IsMirror);

    /// <summary>I13.</summary>
    public static Invariant<EntryView> I13 { get; } = new(
        "I13", InvariantTag.Quiescent, InvariantBinding.Rest, FreeRunJudge.Rest,
        "nothing is FROZEN at rest",
        "In a reachable table no entry is FROZEN when no operation is in flight.",
        static (in EntryView at) => !at.IsReachable || !at.Value.IsFrozen);

    /// <summary>I14.</summary>
    public static Invariant<EntryChange> I14 { get; } = new(
        "I14", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.ActingThread,
        "FROZEN has one owner",
        "A FROZEN entry in a reachable table has exactly one owner, a thread that holds mmu_lock for reading and is inside the update that froze it.",
        static (in EntryChange change) => !change.At.IsReachable || !change.After.IsFrozen || (change.Owner.Actor is not null && change.HoldsRead && !change.Before.IsFrozen));

    /// <summary>I15.</summary>
    public static Invariant<EntryChange> I15 { get; } = new(
        "I15", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.ActingThread,
        "only the owner thaws",
        "No thread but the owner changes a FROZEN entry, and the owner's final value is the one from before or the one it announced to the module.",
        static (in EntryChange change) => !change.Before.IsFrozen || change.After.IsFrozen || change.Owner.Actor is null || (ReferenceEquals(change.Actor, change.Owner.Actor) && IsFinal(change)));

    /// <summary>I16.</summary>
    public static Invariant<EntryView> I16 { get; } = new(
        "I16", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "W, MMU-writable, host-writable",
        "For every present leaf, W implies MMU-writable, and MMU-writable implies host-writable.",
        static (in EntryView at) => at.Kind is not SpteKind.Leaf || ((!at.Value.IsWritable || at.Value.IsMmuWritable) && (!at.Value.IsMmuWritable || at.Value.IsHostWritable)));

    /// <summary>I17.</summary>
    public static Invariant<EntryChange> I17 { get; } = new(
        "I17", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.None,
        "host-writable only grows",
        "host-writable of a leaf never goes from 1 to 0 while the entry stays present; from 0 to 1 only by a slow write fault, under mmu_lock, with the same page.",
        static (in EntryChange change) => !change.IsLeafToLeaf || change.Before.IsHostWritable == change.After.IsHostWritable
            || (change.After.IsHostWritable && change.Before.Pfn == change.After.Pfn && change.After.IsWritable && (change.HoldsRead || change.HoldsWrite)))
    {
        Note = "visible only at the change itself: explored runs",
    };

    /// <summary>I18.</summary>
    public static Invariant<EntryChange> I18 { get; } = new(
        "I18", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.ActingThread,
        "no leaf becomes another page's",
        "A present leaf is never replaced by a present leaf of another page without a non-present value in between.",
        static (in EntryChange change) => !change.IsLeafToLeaf || change.Before.Pfn == change.After.Pfn)
    {
        Note = "the MMU's bookkeeping stops the host on it (BUG); counted in explored runs only",
    };

    internal static IReadOnlyList<Invariant> All { get; } = [I01, I02, I03, I04, I05, I06, I07, I08, I09, I10, I11, I12, I13, I14, I15, I16, I17, I18];

    private static bool IsFitting(in EntryView at)
    {
        TablePage child = at.Vm.TableBehind(at.Value);
        const uint LevelBits = 15;
        return !child.IsNone && child.Level == at.Level.Down && child.ParentEntry == at.Address && (child.Role.Value & ~LevelBits) == (at.TreeRole.Value & ~(LevelBits | TableRole.Invalid));
    }

    private static bool IsFinal(in EntryChange change)
        => change.After == change.Owner.Before || (!change.Owner.IsRefused && change.After.IsPresent && IsAnnounced(change));

    // A leaf maps the page that was augmented; a table is the one whose external page was added.
    private static bool IsAnnounced(in EntryChange change)
    {
        Hpa said = change.Owner.Announced;
        return said.Value == 0 || (change.At.Kind is SpteKind.Leaf ? change.After.Address == said : change.At.Vm.TableBehind(change.After).ExternalPage == said);
    }
}
