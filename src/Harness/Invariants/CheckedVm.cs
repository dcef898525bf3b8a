namespace Tdp.Harness.Invariants;

/// <summary>
/// A VM as its checkers see it: everything is read without an event and without a lock, so that a look between two shared accesses of anybody changes nothing and
/// can be repeated. One per VM, shared by all who judge it.
/// </summary>
/// <remarks>
/// What is read is exact when nobody else runs: under a scheduler between two events, at rest, or for what the reader's own locks keep still. The members say so
/// where less is enough.
/// </remarks>
public sealed class CheckedVm
{
    private readonly PhysicalMemory _memory;
    private readonly ActorNotes?[] _notes = new ActorNotes?[Actor.Max];

    /// <summary>Makes the view of a VM of the Host.</summary>
    public CheckedVm(Vm vm)
        : this((vm ?? throw new ArgumentNullException(nameof(vm))).Mmu)
    {
        Vm = vm;
        Module = vm.Td is null ? null : vm.Kernel.Port?.Module;
    }

    /// <summary>Makes the view of an MMU without a host around it: rules about slots, attributes and the module find nothing to judge.</summary>
    public CheckedVm(TdpMmu mmu)
    {
        ArgumentNullException.ThrowIfNull(mmu);
        Mmu = mmu;
        Machine = mmu.Machine;
        AliasMask = mmu.Options.AliasBit.GfnMask;
        Verdicts = new Verdicts(Machine.Findings, $"VM {mmu.Options.VmNumber}");
        _memory = mmu.Machine.Memory;
    }

    /// <summary>The MMU.</summary>
    public TdpMmu Mmu { get; }

    /// <summary>The machine.</summary>
    public Machine Machine { get; }

    /// <summary>The VM; null for an MMU by itself.</summary>
    public Vm? Vm { get; }

    /// <summary>The TDX module of a TD; null otherwise.</summary>
    public TdxModule? Module { get; }

    /// <summary>The TD while the module can be asked about its Secure EPT; null before INIT_VM, after the KeyID is gone, and for an ordinary VM.</summary>
    public TrustDomain? LiveTd => Vm?.Td is { IsHkidAssigned: true, Tdr.Value: not 0 } td && td.State.Peek() is not TdState.Uninitialized ? td : null;

    /// <summary>Counts and findings.</summary>
    public Verdicts Verdicts { get; }

    /// <summary>The alias bit as a frame number; 0 for an ordinary VM.</summary>
    public ulong AliasMask { get; }

    /// <summary>What the referees remember of an actor.</summary>
    internal ActorNotes NotesOf(Actor actor) => _notes[actor.Index] ??= new ActorNotes(actor);

    /// <summary>Who has the entry at an address frozen, as far as somebody watches its changes; else null.</summary>
    internal ActorNotes? FreezerOf(Hpa word)
    {
        foreach (ActorNotes? notes in _notes)
        {
            if (notes is { HasFrozen: true } && notes.FrozenWord == word)
            {
                return notes;
            }
        }

        return null;
    }

    /// <summary>How many actors that are watched hold mmu_lock, in either mode.</summary>
    internal int ActorsInside()
    {
        int inside = 0;
        foreach (ActorNotes? notes in _notes)
        {
            inside += notes is not null && (Mmu.MmuLock.IsReadHeld(notes.Actor) || Mmu.MmuLock.IsWriteHeld(notes.Actor)) ? 1 : 0;
        }

        return inside;
    }

    /// <summary>The run means the VM to die: its death is no finding by itself (I81).</summary>
    public bool IsDeathDeclared { get; set; }

    /// <summary>True when the VM has a mirror.</summary>
    public bool HasMirror => Mmu.Options.HasMirror;

    /// <summary>The table that a present non-leaf entry points to; none when there is no table of this VM.</summary>
    public TablePage TableBehind(Spte entry) => _memory.Exists(entry.Address) ? Mmu.TableIn(entry.Address) : TablePage.None;

    /// <summary>The table that holds the word at an address; none when it lies in no table of this VM.</summary>
    public TablePage TableAround(Hpa word) => _memory.Exists(word) ? Mmu.TableIn(new Hpa(word.Value & ~0xFFFUL)) : TablePage.None;

    /// <summary>
    /// An entry with its place in the tree, found by climbing the parent pointers. Exact while nobody links or removes tables on the way; at most five steps.
    /// </summary>
    /// <param name="table">The table that holds it.</param>
    /// <param name="index">0..511.</param>
    /// <param name="value">Its value, as the caller saw it.</param>
    public EntryView At(TablePage table, int index, Spte value)
    {
        ulong raw = (ulong)index * table.Level.Pages;
        bool isReachable = !table.IsFreed;
        TablePage at = table;
        for (int steps = 0; !at.IsRoot && steps < 5; steps++)
        {
            Hpa parent = at.ParentEntry;
            TablePage above = TableAround(parent);
            if (above.IsNone)
            {
                return new EntryView(this, table, index, value, raw, table.Role, false);
            }

            int place = (int)(parent.Value & 0xFFF) >> 3;
            Spte entry = above.Peek(place);
            isReachable &= entry.Kind(above.Level) is SpteKind.Table && entry.Address == at.Frame && !above.IsFreed;
            raw += (ulong)place * above.Level.Pages;
            at = above;
        }

        return new EntryView(this, table, index, value, raw, at.Role, isReachable && at.IsRoot);
    }

    /// <summary>
    /// The entry of a page at a level in a tree, or the one at which the way there ends above. Exact for a mirror under mmu_lock in either mode, as far as the
    /// caller's own entries go: nobody removes a table then.
    /// </summary>
    public EntryView Find(Root root, Gfn gfn, Level level)
    {
        ArgumentNullException.ThrowIfNull(root);
        ulong rawGfn = gfn.Value | (root.IsMirror ? 0 : AliasMask);
        TablePage table = root.Table;
        ulong first = 0;
        while (true)
        {
            int index = table.Level.IndexOf(rawGfn);
            Spte entry = table.Peek(index);
            ulong raw = first + ((ulong)index * table.Level.Pages);
            if (table.Level <= level || entry.Kind(table.Level) is not SpteKind.Table || TableBehind(entry) is not { IsNone: false } child || child.Level >= table.Level)
            {
                return new EntryView(this, table, index, entry, raw, root.PeekRole(), true);
            }

            first = raw;
            table = child;
        }
    }

    /// <summary>An entry that a walk over a tree has met.</summary>
    public EntryView At(in TreeEntry entry) => new(this, entry.Table, entry.Index, entry.Spte, entry.RawGfn, entry.Root.PeekRole(), true);

    /// <summary>The listed root of a kind that is valid, or null. No allocation.</summary>
    public Root? ValidRoot(bool mirror)
    {
        foreach (Root root in Mmu.ListedRoots)
        {
            if (root.IsMirror == mirror && !root.PeekRole().IsInvalid)
            {
                return root;
            }
        }

        return null;
    }

    /// <summary>True when the attribute of a frame number is PRIVATE. While a conversion stores, either answer is possible for its range.</summary>
    public bool IsPrivate(Gfn gfn) => Vm?.Attributes is { } attributes && attributes.PeekPrivate(gfn);

    /// <summary>True when an invalidation in progress covers any page of the range. Exact with mmu_lock held in either mode.</summary>
    public bool IsInvalidating(GfnRange range) => Mmu.Invalidation.Peek().InProgress != 0 && Mmu.Invalidation.PeekRange().Overlaps(range);

    /// <summary>The published slot of a frame number, or null.</summary>
    public Memslot? SlotOf(Gfn gfn, int addressSpace = 0) => Vm is { } vm && addressSpace < vm.AddressSpaces ? vm.SlotsOf(addressSpace).PeekActive.Find(gfn) : null;

    /// <summary>The MMU of the vCPU whose fault at a page the actor is taking now, or null.</summary>
    public MmuVcpu? FaultingAt(Actor actor, GfnRange range)
    {
        if (Vm is { } vm)
        {
            foreach (Vcpu vcpu in vm.Vcpus)
            {
                if (ReferenceEquals(vcpu.Mmu.Actor, actor) && range.Contains(vcpu.Mmu.CurrentFault.Gfn))
                {
                    return vcpu.Mmu;
                }
            }
        }

        return null;
    }

    /// <summary>How many vCPUs have a root loaded. Exact while no vCPU loads or unloads.</summary>
    public int Loaded(Root root)
    {
        int loaded = 0;
        if (Vm is { } vm)
        {
            foreach (Vcpu vcpu in vm.Vcpus)
            {
                loaded += ReferenceEquals(vcpu.Mmu.DirectRoot, root) || ReferenceEquals(vcpu.Mmu.MirrorRoot, root) ? 1 : 0;
            }
        }

        return loaded;
    }
}
