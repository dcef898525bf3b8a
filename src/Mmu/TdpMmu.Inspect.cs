namespace Tdp.Mmu;

/// <summary>One entry of a tree, as a walk over all of it meets it.</summary>
/// <param name="Gfn">First frame number covered, natural.</param>
/// <param name="Alias">Which alias the entry lies in; entries of an ordinary VM are shared.</param>
/// <param name="Level">Level of the entry.</param>
/// <param name="Index">Index in its table.</param>
/// <param name="Table">The table it lies in.</param>
/// <param name="Spte">Its value.</param>
public readonly record struct SpteVisit(Gfn Gfn, Alias Alias, Level Level, int Index, TablePage Table, Spte Spte)
{
    /// <summary>What it is.</summary>
    public SpteKind Kind => Spte.Kind(Level);
}

/// <summary>One step of a walk over a range.</summary>
/// <param name="Gfn">First frame number of the entry.</param>
/// <param name="Goal">The frame number that the walk is on its way to.</param>
/// <param name="Level">Level of the entry.</param>
/// <param name="Spte">Its value as the walk saw it.</param>
/// <param name="IsYield">The walk gave mmu_lock up here and goes on from the root: the entry will be visited again.</param>
public readonly record struct WalkStep(ulong Gfn, ulong Goal, Level Level, Spte Spte, bool IsYield);

/// <content>Looking, without changing anything.</content>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Visits every entry of a tree that is not a plain hole, in pre-order. For quiescent trees: it takes no lock, and its reads are no events.
    /// </summary>
    public void ForEachSpte(Root root, Action<SpteVisit> visit) => Visit(root, root.Table, visit);

    /// <summary>The table behind a present non-leaf entry.</summary>
    public TablePage TableOf(Spte entry) => new(Tables, Tables.IndexOf(entry.Address));

    /// <summary>The table of this VM that lies in a frame; none when the frame holds no table, or another VM's. No event.</summary>
    public TablePage TableIn(Hpa frame)
    {
        ref FrameRecord record = ref _memory.Record(frame.Frame);
        if (record.Use != FrameUse.HostTable || record.Tag == 0 || record.Tag > Tables.Made || Tables.Record(record.Tag).Frame != frame.Value)
            return TablePage.None;
        return new TablePage(Tables, record.Tag);
    }

    /// <summary>Table <paramref name="index"/> of this VM, 1..<see cref="TablesMade"/>, in whatever state it is.</summary>
    public TablePage TableAt(uint index) => new(Tables, index);

    /// <summary>Tables that exist: linked, in caches, in stock, waiting for a grace period; for memory accounting.</summary>
    public long TablesMade => Tables.Made;

    /// <summary>Tables that were given back and wait to be used again, filled with the canary.</summary>
    public int TablesInStock => Tables.InStock;

    /// <summary>
    /// The entries on the way to a page in the vCPU's direct root, from the root down (KVM: kvm_tdp_mmu_get_walk). RCU is taken inside.
    /// </summary>
    /// <param name="vcpu">The vCPU.</param>
    /// <param name="gfn">The page, natural; a number that carries the alias bit is a WARN and finds nothing.</param>
    /// <param name="path">Receives one value per level visited; at least 5 long.</param>
    /// <returns>The level of the last entry, or -1.</returns>
    public int GetWalk(MmuVcpu vcpu, Gfn gfn, Span<Spte> path) => GetWalk(vcpu, vcpu.DirectRoot!, gfn.Value, path);

    /// <summary>
    /// True when a private page is mapped (KVM: kvm_tdp_mmu_gpa_is_mapped); of an ordinary VM, any page. An address that carries the alias bit is a WARN and not mapped.
    /// </summary>
    public bool IsMapped(MmuVcpu vcpu, Gpa addr)
    {
        Span<Spte> path = stackalloc Spte[5];
        bool direct = (addr.Value >> 12 & _aliasGfnMask) == _aliasGfnMask;
        if ((direct ? vcpu.DirectRoot : vcpu.MirrorRoot) is not { } root)
            return false;
        int level = GetWalk(vcpu, root, addr.Value >> 12, path);
        return level > 0 && path[root.Level.Value - level].IsLeaf(new Level(level));
    }

    /// <summary>
    /// Walks a range as every operation does, with the MMU's own iterator and its yields, and shows each entry met (I50, I51). Changes nothing. mmu_lock is
    /// held for read and given up at the yields.
    /// </summary>
    /// <param name="actor">Who walks.</param>
    /// <param name="root">The root; the caller has a reference, or nobody can take the last one.</param>
    /// <param name="range">The pages, natural.</param>
    /// <param name="leastLevel">Entries below it are not visited.</param>
    /// <param name="step">Receives each visit; <see cref="WalkStep.IsYield"/> where the lock was given up instead.</param>
    public void Walk(Actor actor, Root root, GfnRange range, Level leastLevel, Action<WalkStep> step)
    {
        MmuLock.AssertRead(actor);
        Rcu.ReadEnter(actor);
        var it = new TdpIterator(_memory, root, leastLevel.Value, range.Start.Value, root.RawBits);
        for (; it.Valid && it.Gfn < range.End.Value; it.Next())
        {
            bool yields = YieldIfNeeded(actor, ref it, flush: false, shared: true);
            step(new WalkStep(it.Gfn, it.Goal, it.Level, it.Old, yields));
        }

        Rcu.ReadExit(actor);
    }

    internal int GetWalk(MmuVcpu vcpu, Root root, ulong gfn, Span<Spte> path)
    {
        if (root.RawBits != 0 && gfn >= root.RawBits)
        {
            Warn($"a walk to gfn 0x{gfn:x}, which carries the alias bit");
            return -1;
        }

        Rcu.ReadEnter(vcpu.Actor);
        ulong rawGfn = gfn | root.RawBits;
        var at = new SpteCursor(_memory, root, rawGfn);
        int i = 0;
        do
            path[i++] = at.Old;
        while (at.TryStepDown(_memory, rawGfn));
        int level = at.Level;
        Rcu.ReadExit(vcpu.Actor);
        return level;
    }

    /// <summary>
    /// The pretty name of an entry of this VM's trees, such as <c>spte(mirror, 4K, gfn 0x123456)</c>, or null when it is none. For reports: slow.
    /// </summary>
    public string? Describe(ObjectId id)
    {
        if (id.Kind != ObjectKind.Entry)
            return null;
        for (uint index = 1; index <= Tables.Made; index++)
        {
            ref TableRecord record = ref Tables.Record(index);
            if (record.Frame == 0 || _memory.Record(record.Frame >> 12).Name != id.Owner)
                continue;
            if ((record.Flags & TableRecord.Freed) != 0)
                return $"entry {id.Index} of a freed table";
            var role = new TableRole(record.Role);
            ulong gfn = (record.Gfn + (id.Index * role.Level.Pages)) & ~(record.Parent == 0 ? _aliasGfnMask : 0);
            return $"spte({(role.IsMirror ? "mirror" : "direct")}, {role.Level}, gfn 0x{gfn:x})";
        }

        return null;
    }

    private void Visit(Root root, TablePage table, Action<SpteVisit> visit)
    {
        ReadOnlySpan<ulong> entries = _memory.Table(table.Frame);
        Level level = table.Level;
        ulong first = table.Gfn.Value;
        for (int i = 0; i < 512; i++)
        {
            if (entries[i] == Spte.NonPresentValue)
                continue;
            var spte = new Spte(entries[i]);

            // At the root of a direct tree the alias bit is an index bit; everywhere below it is gone.
            ulong raw = first + ((ulong)i * level.Pages);
            bool aliased = table.IsRoot && (raw & _aliasGfnMask) != 0;
            Alias alias = !_hasMirror || (table.IsRoot ? aliased : !root.IsMirror) ? Alias.Shared : Alias.Private;
            visit(new SpteVisit(new Gfn(raw & ~(table.IsRoot ? _aliasGfnMask : 0)), alias, level, i, table, spte));
            if (spte.Kind(level) == SpteKind.Table)
                Visit(root, TableOf(spte), visit);
        }
    }
}
