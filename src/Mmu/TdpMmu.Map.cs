namespace Tdp.Mmu;

/// <content>What a fault does under mmu_lock read: the level, the walk, missing tables, the leaf (tdp-mmu 5.6, 5.7).</content>
public sealed partial class TdpMmu
{
    // KVM: kvm_tdp_mmu_map, tdp-mmu 5.6. mmu_lock read.
    private FaultResult Map(ref Fault fault, Root root)
    {
        Actor actor = fault.Vcpu.Actor;
        AdjustLevel(ref fault);
        ulong rawGfn = fault.Gfn.Value | root.RawBits;
        Rcu.ReadEnter(actor);
        FaultResult result;

        // Almost always the whole path exists already. Under the NX workaround each step may change the goal.
        ref ulong word = ref Unsafe.NullRef<ulong>();
        if (!Explore.On && !_nxHugePages)
            word = ref SpteCursor.Descend(_memory, root, rawGfn, fault.GoalLevel.Value);
        if (Unsafe.IsNullRef(ref word))
        {
            result = MapFromRoot(ref fault, root, rawGfn);
        }
        else
        {
            var entry = new SpteRef(ref word);
            result = MapAtGoal(ref fault, root, entry, entry.Read());
        }

        Rcu.ReadExit(actor);
        return result;
    }

    // Step by step; a path that ends above the goal is made. A step that fails met a table that was unlinked, or an entry frozen, since the visit: retry.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult MapFromRoot(ref Fault fault, Root root, ulong rawGfn)
    {
        var at = new SpteCursor(_memory, root, rawGfn);
        while (true)
        {
            if (_nxHugePages && at.Level == fault.GoalLevel.Value)
                LowerGoalAtDisallowedTable(ref fault, at.Old);
            if (at.Level == fault.GoalLevel.Value)
                return MapAtGoal(ref fault, root, at.Entry, at.Old);
            if ((!at.IsTable && !InstallTable(ref fault, root, ref at, rawGfn)) || !at.TryStepDown(_memory, rawGfn))
                return FaultResult.Retry;
        }
    }

    // What nearly every fault comes to: a hole at the level of the page, and a page with nothing special about it.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private FaultResult MapAtGoal(ref Fault fault, Root root, scoped SpteRef entry, Spte old)
    {
        if (old != Spte.NonPresent || !fault.IsOrdinary || fault.OrdinarySlot.WatchesWrites)
            return MapUnusual(ref fault, root, entry, old, fault.GoalLevel.Value);
        var leaf = new Spte(root.OrdinaryLeaf | (fault.Pfn << 12));
        return SetOrdinaryLeaf(fault.Vcpu.Actor, root, entry, leaf, fault.Gfn) ? FaultResult.Fixed : FaultResult.Retry;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult MapUnusual(ref Fault fault, Root root, scoped SpteRef entry, Spte old, int level)
    {
        if (old != Spte.NonPresent && MeetsOther(ref fault, old, level, out FaultResult met))
            return met;
        ulong gfn = fault.Gfn.Value & (ulong.MaxValue << (9 * (level - 1)));
        bool writeProtected = false;
        bool ordinary = fault.IsOrdinary && !fault.OrdinarySlot.WatchesWrites;
        Spte @new = ordinary ? new Spte(root.OrdinaryLeaf | (fault.Pfn << 12)) : BuildLeaf(ref fault, root, gfn, level, out writeProtected);
        FaultResult result = FaultResult.Fixed;
        Spte seen = old;
        if (@new == old)
            result = FaultResult.Spurious;
        else if (SetAtomic(fault.Vcpu.Actor, root, entry, ref seen, @new, gfn, level) != ExternalResult.Ok)
            return FaultResult.Retry;
        if (!ordinary || old.IsPresent)
            return AfterUnusualMap(ref fault, old, @new, writeProtected, result, gfn, new Level(level));
        return result;
    }

    // A leaf or MMIO entry with anything out of the ordinary (tdp-mmu 5.6 leaf step 3).
    [MethodImpl(MethodImplOptions.NoInlining)]
    private Spte BuildLeaf(ref Fault fault, Root root, ulong gfn, int level, out bool writeProtected)
    {
        writeProtected = false;
        if (fault.Slot is not { } slot)
            return Format.Mmio(new Gfn(gfn), fault.SlotGeneration);
        bool tracked = fault.MapWritable && slot.IsWriteTracked(fault.Gfn);
        Spte leaf = Format.Leaf(root.AdType, level, fault.Pfn, fault.IsDevice ? 0 : Format.WriteBackType, fault.MapWritable, tracked, fault.Prefetch);
        writeProtected = RecordNewLeaf(ref fault, slot, leaf, tracked, level);
        return leaf;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Allows(in Fault fault, Spte spte) =>
        fault.Exec ? spte.IsExecutable : fault.Write ? spte.IsWritable : (spte.Value & Spte.Readable) != 0;

    // The entry is not a plain hole. True: the fault ends here. Frozen is somebody else's; a leaf that allows the access was somebody else's work.
    private bool MeetsOther(ref Fault fault, Spte old, int level, out FaultResult result)
    {
        result = FaultResult.Retry;
        if (old.IsFrozen)
            return true;
        if (Checks.On && old.Value == Spte.PoisonValue)
        {
            MetFreedTable(fault.Gfn);
            return true;
        }

        if (!old.IsLeaf(new Level(level)) || !(fault.Prefetch || Allows(fault, old)))
            return false;
        if (old.Pfn != fault.Pfn)
            WarnOtherPage(fault.Gfn, fault.Pfn, old);
        result = FaultResult.Spurious;
        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void WarnOtherPage(Gfn gfn, ulong pfn, Spte old) => Warn($"gfn {gfn}: a fault for page 0x{pfn:x} found a leaf of page 0x{old.Pfn:x}");

    // The page cannot be made writable because its writes are tracked, or it can and the dirty log must know now. Dirty logging keeps leaves at 4K.
    private bool RecordNewLeaf(ref Fault fault, MmuSlot slot, Spte leaf, bool tracked, int level)
    {
        if (slot.IsDirtyLogged && leaf.IsWritable)
        {
            if (level > 1)
                Warn($"gfn {fault.Gfn}: a huge leaf in a dirty-logged slot");
            _backing.MarkDirty(fault.Vcpu.Actor, slot, fault.Gfn);
        }

        return tracked;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private FaultResult AfterUnusualMap(ref Fault fault, Spte old, Spte @new, bool writeProtected, FaultResult result, ulong gfn, Level level)
    {
        if (result == FaultResult.Fixed && old.IsPresent)
        {
            bool wasTable = !old.IsLast(level);
            bool lostMmuWritable = !wasTable && old.IsMmuWritable && !@new.IsMmuWritable;
            if (lostMmuWritable)
                Warn($"gfn 0x{gfn:x}: a fault took MMU-writable from {old}");
            if (wasTable || lostMmuWritable)
                FlushRemoteTlbs(fault.Vcpu.Actor, GfnRange.Of(new Gfn(gfn), level.Pages));
        }

        if (writeProtected && fault.Write)
            result = FaultResult.WriteProtected;
        if (fault.Slot is not null)
            return result;
        Statistics.Add(fault.Vcpu.Actor, MmuCounter.MmioCreated);
        RememberMmio(fault.Vcpu, fault.Gfn, fault.SlotGeneration);
        return FaultResult.Emulate;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void MetFreedTable(Gfn gfn) => Machine.Findings.Add("I45", $"a fault at gfn {gfn} walked into a freed table");

    // False: retry. A frozen entry on the way is somebody else's: nothing is allocated, nothing changed (I52).
    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool InstallTable(ref Fault fault, Root root, scoped ref SpteCursor at, ulong rawGfn)
    {
        if (at.Old.IsFrozen)
            return false;
        if (Checks.On && at.Old.Value == Spte.PoisonValue)
        {
            MetFreedTable(fault.Gfn);
            return false;
        }

        MmuVcpu vcpu = fault.Vcpu;
        Level level = new(at.Level);
        Gfn gfn = fault.Gfn.AlignDown(level);
        uint index = vcpu.TakeTable();
        InitChild(index, root, at.AddressFor(rawGfn), gfn, level);
        ref TableRecord record = ref Tables.Record(index);
        if (root.IsMirror)
            record.External = vcpu.TakeExternal().Value;
        if (fault.HugePageDisallowed)
            record.Flags |= TableRecord.NxDisallowed;
        ExternalResult result;
        if (at.Old.IsPresent)
        {
            if (root.IsMirror)
                Bug(vcpu.Actor, $"gfn {gfn}: a leaf above 4K in a mirror is to be split");
            FillFromHuge(index, at.Old, level);
            result = SetAtomic(vcpu.Actor, root, at.Entry, ref at.Old, TableEntry(index), gfn.Value, at.Level);
            if (result == ExternalResult.Ok)
                CountSplit(vcpu.Actor, level);
        }
        else
        {
            result = SetAtomic(vcpu.Actor, root, at.Entry, ref at.Old, TableEntry(index), gfn.Value, at.Level);
            if (result == ExternalResult.Ok)
                Statistics.Add(vcpu.Actor, MmuCounter.Tables);
        }

        if (result != ExternalResult.Ok)
        {
            FreeUnlinked(index);
            return false;
        }

        if (fault.HugePageDisallowed && fault.ReqLevel >= level)
        {
            _pagesLock.Enter(vcpu.Actor);

            // Somebody may have removed the table since it was linked, and cleared the flag.
            if ((record.Flags & TableRecord.NxDisallowed) != 0)
                AddToNxList(vcpu.Actor, index);
            _pagesLock.Exit(vcpu.Actor);
        }

        return true;
    }

    private void InitChild(uint index, Root root, ulong parentEntry, Gfn gfn, Level parentLevel)
    {
        ref TableRecord record = ref Tables.Record(index);
        record.Parent = parentEntry;
        record.Gfn = gfn.Value;
        record.Role = (root.PeekRole().Value & ~(TableRole.Invalid | 15)) | (uint)(parentLevel.Value - 1);
        record.External = 0;
        record.Flags = 0;
    }

    private Spte TableEntry(uint index) => Format.Table(new Hpa(Tables.Record(index).Frame), !_adEnabled);

    // It was never reachable: no grace period (tdp-mmu 4.7 step 7).
    private void FreeUnlinked(uint index)
    {
        ref TableRecord record = ref Tables.Record(index);
        if (record.External != 0)
            Machine.Frames.Return(new Hpa(record.External), FrameUse.Kernel);
        Tables.Give(index);
    }

    // KVM: kvm_mmu_hugepage_adjust, tdp-mmu 5.7. mmu_lock read: the host's mapping cannot change under a passed staleness check.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void AdjustLevel(ref Fault fault)
    {
        if (_nxHugePages)
            fault.HugePageDisallowed = fault.Exec;
        if (!fault.IsLimitedTo4K && fault.Slot is { IsDirtyLogged: false } slot)
            RaiseLevel(ref fault, slot);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void RaiseLevel(ref Fault fault, MmuSlot slot)
    {
        Level level = slot.LargestAllowed(fault.Gfn, fault.MaxLevel);
        if (level > Level.K4 && !fault.IsPrivate)
        {
            Level host = _backing.MaxHostLevel(slot, fault.Gfn);
            level = host < level ? host : level;
        }

        fault.ReqLevel = level;
        if (level == Level.K4 || fault.HugePageDisallowed)
            return;
        fault.GoalLevel = level;
        ulong within = level.Pages - 1;
        if (((fault.Gfn.Value ^ fault.Pfn) & within) != 0)
            HostBug($"gfn {fault.Gfn} and page 0x{fault.Pfn:x} are not aligned alike for {level}");
        fault.Pfn &= ~within;
    }

    // A table stands where a huge page is wanted, because an instruction fetch was refused one there: leave it and map below (tdp-mmu 5.7 step 5).
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void LowerGoalAtDisallowedTable(ref Fault fault, Spte entry)
    {
        Level level = fault.GoalLevel;
        if (level == Level.K4 || entry.Kind(level) != SpteKind.Table)
            return;
        if ((Tables.Record(Tables.IndexOf(entry.Address)).Flags & TableRecord.NxDisallowed) == 0)
            return;
        fault.Pfn |= fault.Gfn.Value & (level.Pages - level.Down.Pages);
        fault.GoalLevel = level.Down;
    }
}
