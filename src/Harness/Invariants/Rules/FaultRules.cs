namespace Tdp.Harness.Invariants;

/// <summary>
/// Faults, invalidation, attributes (tdp-mmu 10.5).
/// </summary>
/// <remarks>
/// I53 and I54 are judged at the write of the entry: whoever creates a leaf holds mmu_lock for reading, and the record changes only under mmu_lock write, so that it is still then. I63, I65
/// and I66 except what an invalidation in progress covers, because the attribute store runs between its begin and its end without mmu_lock (6.10). The after-operation rules are judged by the caller,
/// where nobody can undo what is judged: between start and end of an invalidation, or with the other operations held off.
/// </remarks>
public static class FaultRules
{
    /// <summary>I53.</summary>
    public static Invariant<LeafBirth> I53 { get; } = new(
        "I53", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.ActingThread,
        "no leaf during an invalidation",
        "No leaf is created for a frame number while an invalidation is in progress whose range covers it.",
        static (in LeafBirth leaf) => leaf.InProgress == 0 || !leaf.Range.Overlaps(leaf.At.Range));

    /// <summary>I54.</summary>
    public static Invariant<LeafBirth> I54 { get; } = new(
        "I54", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.ActingThread,
        "no leaf from an old look-up",
        "A leaf is created only if the invalidation sequence equals the fault's snapshot.",
        static (in LeafBirth leaf) => leaf.Snapshot is null || leaf.Snapshot == leaf.Seq);

    /// <summary>I55.</summary>
    public static Invariant<InvalidationView> I55 { get; } = new(
        "I55", InvariantTag.Always, InvariantBinding.Invalidation, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "invalidations balance",
        "The number of invalidations in progress is never negative, begin and end balance, and at least one range is added between them.",
        static (in InvalidationView record) => record.InProgress >= 0 && (!record.IsAtRest || record.InProgress == 0) && (!record.IsEnding || !record.Range.IsEmpty));

    /// <summary>I56.</summary>
    public static Invariant<Aftermath> I56 { get; } = new(
        "I56", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.Operation,
        "an invalidation has emptied its range",
        "When the start of an invalidation has returned, no present leaf of the targeted aliases maps a page of its range, in any root, valid or invalid.",
        static (in Aftermath after) => after.Left.IsNone);

    /// <summary>I57.</summary>
    public static Invariant<TlbView> I57 { get; } = new(
        "I57", InvariantTag.AfterOperation, InvariantBinding.HandOver, FreeRunJudge.ActingThread | FreeRunJudge.Rest,
        "no stale translation after a flush",
        "After a zap that has returned with its flush done no vCPU's TLB holds a translation of its range and alias: what a TLB would use, the tables justify.",
        static (in TlbView tlb) => tlb.IsJustified);

    /// <summary>I58.</summary>
    public static Invariant<Aftermath> I58 { get; } = new(
        "I58", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.Operation,
        "a conversion is complete",
        "After a conversion to shared there is no mirror leaf and no Secure EPT leaf in the range, after one to private no direct leaf; every attribute of the range is the new one.",
        static (in Aftermath after) => after.Left.IsNone && after.SeptLeft is null && after.Unconverted is null);

    /// <summary>I59.</summary>
    public static Invariant<Aftermath> I59 { get; } = new(
        "I59", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.Operation,
        "a conversion zaps only its own",
        "A conversion leaves the leaves of the other alias and outside its range alone; a large direct leaf that is partly outside goes whole.",
        static (in Aftermath after) => after.Gone.IsNone && after.Left.IsNone);

    /// <summary>I60.</summary>
    public static Invariant<Aftermath> I60 { get; } = new(
        "I60", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.Operation,
        "the host cannot zap private memory by address",
        "An MMU-notifier unmap, the end of the owner's address space and a fast zap remove no mirror leaf.",
        static (in Aftermath after) => after.Gone.IsNone);

    /// <summary>I61.</summary>
    public static Invariant<Aftermath> I61 { get; } = new(
        "I61", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.Operation,
        "a deleted slot is gone",
        "After a memslot is deleted neither alias has a leaf in its range, and no fault that saw the slot can install one later.",
        static (in Aftermath after) => after.Left.IsNone);

    /// <summary>I62.</summary>
    public static Invariant<Aftermath> I62 { get; } = new(
        "I62", InvariantTag.AfterOperation, InvariantBinding.Operation, FreeRunJudge.Operation,
        "a punched hole is empty",
        "After a hole is punched into a guest_memfd no leaf and no Secure EPT entry maps a page that was in it; the pages are freed only after each was removed.",
        static (in Aftermath after) => after.Left.IsNone && after.SeptLeft is null);

    /// <summary>I63.</summary>
    public static Invariant<LeafView> I63 { get; } = new(
        "I63", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.ActingThread | FreeRunJudge.Sample | FreeRunJudge.Rest,
        "the alias is the attribute's",
        "A leaf's alias agrees with the attribute of its frame number, unless a conversion of it is in progress.",
        static (in LeafView leaf) => leaf.Disagreeing is null || leaf.IsConverting);

    /// <summary>I64.</summary>
    public static Invariant<FaultView> I64 { get; } = new(
        "I64", InvariantTag.Always, InvariantBinding.Vcpu, FreeRunJudge.ActingThread,
        "a memory-fault exit tells the truth",
        "A memory-fault exit carries a natural address, size 4096 and the alias of the access, which differs from the attribute unless the slot cannot back it.",
        static (in FaultView fault) => fault.Result is not FaultResult.BadAddress || IsTrue(fault));

    /// <summary>I65.</summary>
    public static Invariant<MixedView> I65 { get; } = new(
        "I65", InvariantTag.Always, InvariantBinding.Invalidation, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "MIXED means mixed",
        "The MIXED flag of a huge range is set exactly if its pages have different attributes, outside of a conversion that touches it.",
        static (in MixedView range) => range.IsFlagged == range.IsMixed || range.IsConverting);

    /// <summary>I66.</summary>
    public static Invariant<LeafView> I66 { get; } = new(
        "I66", InvariantTag.Always, InvariantBinding.Entry, FreeRunJudge.Sample | FreeRunJudge.Rest,
        "no huge leaf over mixed pages",
        "No large direct leaf covers a range with the MIXED flag, outside of conversions.",
        static (in LeafView leaf) => leaf.At.IsMirror || !leaf.IsMixed || leaf.IsConverting);

    /// <summary>I67.</summary>
    public static Invariant<FaultView> I67 { get; } = new(
        "I67", InvariantTag.Always, InvariantBinding.FaultEnd, FreeRunJudge.ActingThread,
        "SPURIOUS means there was a leaf",
        "SPURIOUS is answered only if at that moment a present leaf allowed the access, or any present leaf was there for a prefetch.",
        static (in FaultView fault) => fault.Result is not FaultResult.Spurious || fault.Found.IsNone || fault.IsAllowedBy(fault.Found));

    /// <summary>I68.</summary>
    public static Invariant<FaultView> I68 { get; } = new(
        "I68", InvariantTag.Always, InvariantBinding.FaultEnd, FreeRunJudge.ActingThread,
        "private faults take the slow path",
        "A TD's private fault is never answered EMULATE or WRITE_PROTECTED and never takes the fast path.",
        static (in FaultView fault) => !fault.IsPrivate || (fault.Result is not (FaultResult.Emulate or FaultResult.WriteProtected) && !fault.WasFast));

    internal static IReadOnlyList<Invariant> All { get; } = [I53, I54, I55, I56, I57, I58, I59, I60, I61, I62, I63, I64, I65, I66, I67, I68];

    private static bool IsTrue(in FaultView fault)
        => (fault.Reported.Gpa.Value & (fault.Vm.AliasMask << 12)) == 0 && fault.Reported.Size == 4096 && fault.Reported.IsPrivate == fault.IsPrivate
            && fault.Reported.Gpa.Value >> 12 == (fault.Addr.Value >> 12 & ~fault.Vm.AliasMask)
            && (!fault.IsAttributeStill || !fault.CanBack || fault.IsAttributePrivate != fault.IsPrivate);
}
