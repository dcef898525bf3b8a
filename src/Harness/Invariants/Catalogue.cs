namespace Tdp.Harness.Invariants;

/// <summary>When an invariant can be judged.</summary>
public enum Moment
{
    /// <summary>At every instant, by the thread that acts.</summary>
    Always,

    /// <summary>At every instant; judged on samples of a running world, without stopping it.</summary>
    Sampled,

    /// <summary>When the named operation has returned.</summary>
    AfterOperation,

    /// <summary>When no operation is in flight.</summary>
    Quiescence,

    /// <summary>When the VM is gone.</summary>
    AfterTeardown,
}

/// <summary>One rule that holds for every correct run.</summary>
/// <param name="Id">Its number, such as <c>I19</c>.</param>
/// <param name="Moment">When it can be judged.</param>
/// <param name="Sentence">The rule.</param>
public sealed record Invariant(string Id, Moment Moment, string Sentence);

/// <summary>The rules that this room checks, by number.</summary>
public static class Catalogue
{
    private static readonly Dictionary<string, Invariant> ById = new(StringComparer.Ordinal);

    static Catalogue()
    {
        foreach (Invariant invariant in All)
        {
            ById.Add(invariant.Id, invariant);
        }
    }

    /// <summary>Every rule, in the order of the numbers.</summary>
    public static IReadOnlyList<Invariant> All { get; } =
    [
        new("I01", Moment.Quiescence, "A table that an entry points to has the level below that entry's, and lies where the entry says."),
        new("I02", Moment.Quiescence, "No table is pointed to by two present entries."),
        new("I03", Moment.Quiescence, "A child table starts at the guest frame its parent entry covers."),
        new("I05", Moment.Quiescence, "A present entry is marked as the MMU's own; an absent one has every other bit of a present one clear."),
        new("I06", Moment.Quiescence, "An absent entry of a mirror tree is the non-present value or FROZEN, nothing else."),
        new("I07", Moment.Quiescence, "A mirror leaf maps 4K."),
        new("I08", Moment.Quiescence, "A mirror leaf grants reading, writing and execution, and its page is writable for host and MMU."),
        new("I09", Moment.Quiescence, "A mirror table other than the root has an external page; a direct table has none."),
        new("I10", Moment.Quiescence, "External pages are distinct and are never a table of the host."),
        new("I12", Moment.Quiescence, "A mirror tree has no entry above the alias bit; a direct tree of a TD has entries only there."),
        new("I13", Moment.Quiescence, "No reachable entry is FROZEN when no operation is in flight."),
        new("I16", Moment.Quiescence, "A writable leaf is writable for the MMU, and one that is writable for the MMU is writable for the host."),
        new("I19", Moment.Quiescence, "Every mirror leaf has a Secure EPT leaf for the same page, mapped or pending."),
        new("I20", Moment.Quiescence, "Every Secure EPT leaf that is not free has a mirror leaf for the same page."),
        new("I21", Moment.Quiescence, "Mirror tables and Secure EPT pages stand in the same places, and each Secure EPT page is the mirror table's external page."),
        new("I23", Moment.Always, "A page is added to the Secure EPT only by the thread that has frozen the mirror entry."),
        new("I24", Moment.Always, "A Secure EPT page is added only by the thread that has frozen the mirror entry."),
        new("I25", Moment.Always, "Only a thread that holds mmu_lock for writing blocks, tracks or removes."),
        new("I26", Moment.Always, "A private page is blocked, then tracked, then every vCPU is kicked, then it is removed, written back and only then reused."),
        new("I27", Moment.Always, "Between two accepted tracks every vCPU has been kicked."),
        new("I28", Moment.Always, "A track never meets a vCPU that still runs in the epoch before last."),
        new("I29", Moment.Always, "A module call that is repeated while vCPUs are locked out is not answered BUSY."),
        new("I31", Moment.Quiescence, "At most one mirror leaf maps a page, and no direct leaf maps a private page."),
        new("I33", Moment.Quiescence, "A mirror leaf lies in a slot with guest_memfd, and its frame number is private."),
        new("I39", Moment.AfterTeardown, "A root is freed only after it was invalidated, zapped and taken off the list."),
        new("I44", Moment.AfterOperation, "A fast zap, aging and dirty logging leave the mirror tree and the Secure EPT as they were."),
        new("I45", Moment.Sampled, "A freed table cannot be reached from any root or by a reader that started before the free."),
        new("I46", Moment.Sampled, "No present entry is written into a table after its remover has passed."),
        new("I47", Moment.AfterOperation, "Every entry of a removed table is non-present."),
        new("I48", Moment.Quiescence, "The table count equals the number of linked tables."),
        new("I49", Moment.Quiescence, "The page statistics equal the number of leaves of each level over all roots."),
        new("I56", Moment.AfterOperation, "After an invalidation has started no leaf of the targeted alias maps a page of its range."),
        new("I57", Moment.AfterOperation, "After a zap has flushed no TLB holds a translation of its range and alias."),
        new("I58", Moment.AfterOperation, "After a conversion the old alias has no leaf in the range and every attribute is the new one."),
        new("I59", Moment.AfterOperation, "A conversion leaves the other alias and everything outside its range alone."),
        new("I60", Moment.AfterOperation, "A notifier, a fast zap and the end of the host process remove no mirror leaf."),
        new("I61", Moment.AfterOperation, "After a slot is deleted neither alias has a leaf in its range."),
        new("I62", Moment.AfterOperation, "After a hole is punched neither a leaf nor the Secure EPT maps it."),
        new("I63", Moment.Quiescence, "A leaf's alias is what the attribute of its frame number says."),
        new("I69", Moment.Always, "A page is removed only while the TD has its KeyID, a table is reclaimed only when it has none."),
        new("I70", Moment.Always, "No page is augmented before the TD is finalized, none is added after."),
        new("I71", Moment.AfterTeardown, "When a VM is gone the module owns none of its pages, or each is listed as leaked with a reason."),
        new("I77", Moment.Quiescence, "No vCPU is locked out when mmu_lock is not held for writing."),
        new("I80", Moment.Always, "The module answers a memory call of the host with success or BUSY, except where a failure is injected."),
        new("I81", Moment.Always, "No warning and no bug check fires, and no count goes below zero."),
        new("I82", Moment.Always, "Nothing is used by code that got it before it was handed back."),
        new("TM01", Moment.Quiescence, "The pages that the module records for a TD are as many as its child count, and the platform's ledger knows the same ones."),
        new("TM02", Moment.Quiescence, "Every leaf of a Secure EPT points to a page of the same TD and size, and every such page is pointed to exactly once."),
        new("TM03", Moment.Quiescence, "Every table entry of a Secure EPT points to a Secure EPT page of the TD, none is pointed to twice, and the root is a page of the TDCS."),
        new("TM04", Moment.Quiescence, "A processor inside a TD translates nothing to a page that the Secure EPT no longer has there."),
        new("TM05", Moment.Quiescence, "The epoch counts of a TD are the vCPUs inside it, and none of them runs in an epoch before the previous one."),
        new("TM06", Moment.Quiescence, "No lock of the module is held when no call is in progress, but for the root pages of running vCPUs."),
        new("TM07", Moment.AfterOperation, "A failed module call changes nothing but priority hints and the association of a vCPU."),
        new("TM09", Moment.AfterOperation, "A page is zero after the guest accepted it and equals its source after it was added."),
    ];

    /// <summary>The rule with this number.</summary>
    /// <exception cref="KeyNotFoundException">No such rule is checked here.</exception>
    public static Invariant Get(string id) => ById[id];

    /// <summary>The sentence of a rule, or an empty text for a number that is not checked here.</summary>
    public static string SentenceOf(string id) => ById.TryGetValue(id, out Invariant? invariant) ? invariant.Sentence : string.Empty;
}
