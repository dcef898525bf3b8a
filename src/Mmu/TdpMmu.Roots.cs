namespace Tdp.Mmu;

/// <content>Roots: allocation, sharing, invalidation, release (tdp-mmu 1.4, 1.5).</content>
public sealed partial class TdpMmu
{
    private const ulong RootCookie = 1UL << 32;
    private const int MostRoots = 1024;
    private readonly Root?[] _rootSlots = new Root?[MostRoots];
    private readonly SyncGate _rootSlotGate = new();
    private readonly SharedCell<int> _rootHead;
    private int _rootsMade;

    /// <summary>
    /// The roots in the list, newest first, without events: for reports and checkers at quiescence.
    /// </summary>
    public IReadOnlyList<Root> Roots
    {
        get
        {
            var roots = new List<Root>();
            for (int slot = _rootHead.Peek(); slot >= 0; slot = _rootSlots[slot]!.Next.Peek())
                roots.Add(_rootSlots[slot]!);
            return roots;
        }
    }

    /// <summary>The roots in the list, newest first, without events and without allocation: for checkers.</summary>
    public RootList ListedRoots => new(this);

    internal Root? PeekFirst() => PeekSlot(_rootHead.Peek());

    internal Root? PeekNext(Root root) => PeekSlot(root.Next.Peek());

    private Root? PeekSlot(int slot) => slot < 0 ? null : _rootSlots[slot];

    /// <summary>The mask that belongs to an alias filter (tdp-mmu 1.5). A VM without mirror: always direct. An empty filter is a WARN.</summary>
    public RootKinds KindsOf(AliasFilter filter)
    {
        if (!_hasMirror)
            return RootKinds.Direct;
        if (filter == AliasFilter.None)
            Warn("an empty alias filter");
        return ((filter & AliasFilter.Private) != AliasFilter.None ? RootKinds.Mirror : RootKinds.None)
            | ((filter & AliasFilter.Shared) != AliasFilter.None ? RootKinds.Direct : RootKinds.None);
    }

    /// <summary>
    /// Loads the roots the vCPU lacks (KVM: kvm_mmu_reload): first the mirror root, then the direct one. The caller flushes the processor's TLB when the direct root was loaded.
    /// Takes mmu_lock read itself.
    /// </summary>
    /// <returns>False: out of memory (-ENOMEM).</returns>
    public bool ReloadRoots(MmuVcpu vcpu)
    {
        if (vcpu.DirectRoot is not null)
            return true;
        return (!_hasMirror || LoadRoot(vcpu, mirror: true)) && LoadRoot(vcpu, mirror: false);
    }

    /// <summary>Loads one root unless the vCPU has it (KVM: kvm_tdp_mmu_alloc_root). Takes mmu_lock read itself.</summary>
    /// <returns>False: out of memory (-ENOMEM).</returns>
    public bool LoadRoot(MmuVcpu vcpu, bool mirror)
    {
        if ((mirror ? vcpu.MirrorRoot : vcpu.DirectRoot) is not null)
            return true;
        if (!vcpu.TopUp())
            return false;
        Root root = GetOrMakeRoot(vcpu, mirror);
        if (mirror)
            vcpu.MirrorRoot = root;
        else
            vcpu.DirectRoot = root;
        return true;
    }

    /// <summary>
    /// Drops the vCPU's direct root (KVM: kvm_mmu_unload). The mirror root stays: it is put once, when the vCPU ends. No lock may be held.
    /// </summary>
    public void UnloadRoots(MmuVcpu vcpu) => UnloadRoot(vcpu, mirror: false);

    /// <summary>Puts one of the vCPU's roots. Takes mmu_lock read itself.</summary>
    public void UnloadRoot(MmuVcpu vcpu, bool mirror)
    {
        if ((mirror ? vcpu.MirrorRoot : vcpu.DirectRoot) is not { } root)
            return;
        if (mirror)
            vcpu.MirrorRoot = null;
        else
            vcpu.DirectRoot = null;
        MmuLock.EnterRead(vcpu.Actor);
        PutRoot(vcpu.Actor, root);
        MmuLock.ExitRead(vcpu.Actor);
    }

    /// <summary>Serves <see cref="VcpuRequest.FreeObsoleteRoots"/>: drops the direct root if it was invalidated.</summary>
    /// <returns>True when it was dropped and must be reloaded.</returns>
    public bool FreeObsoleteRoots(MmuVcpu vcpu)
    {
        if (vcpu.DirectRoot is not { IsInvalid: true })
            return false;
        UnloadRoots(vcpu);
        return true;
    }

    /// <summary>The vCPU ends: both roots are put and its caches emptied.</summary>
    public void DestroyVcpu(MmuVcpu vcpu)
    {
        UnloadRoot(vcpu, mirror: false);
        UnloadRoot(vcpu, mirror: true);
        vcpu.Drain();
    }

    /// <summary>
    /// Invalidates the valid roots of the kinds and schedules them for zapping; the references of the TDP MMU are put by the zap. mmu_lock write, or no
    /// user of the VM is left (I40).
    /// </summary>
    public void InvalidateRoots(Actor actor, RootKinds kinds)
    {
        if ((kinds & RootKinds.Invalid) != RootKinds.None)
        {
            Warn("invalid roots cannot be invalidated again");
            kinds &= ~RootKinds.Invalid;
        }

        for (Root? root = FirstInList(); root is not null; root = NextInList(root))
        {
            if (!Match(root, kinds))
                continue;
            root.IsScheduledForZap = true;
            root.Invalidate();
        }
    }

    // A mask that selects nothing is a caller's mistake (tdp-mmu 1.5).
    private bool Match(Root root, RootKinds kinds)
    {
        if ((kinds & RootKinds.Valid) != RootKinds.None)
            return root.Matches(kinds);
        Warn("a root mask without direct and mirror");
        return false;
    }

    private Root GetOrMakeRoot(MmuVcpu vcpu, bool mirror)
    {
        Actor actor = vcpu.Actor;
        TableRole role = TableRole.Root(Options.RootLevel, mirror, _adEnabled, vcpu.IsSmm, vcpu.IsGuestMode);
        MmuLock.EnterRead(actor);
        Root? root = FindAndGet(actor, role);
        if (root is null)
        {
            _pagesLock.Enter(actor);

            // Another vCPU may have made it between the scan and the lock. Its last put needs a prior invalidation, which needs mmu_lock write: the get cannot fail.
            root = FindAndGet(actor, role) ?? MakeRoot(vcpu, role);
            _pagesLock.Exit(actor);
        }

        MmuLock.ExitRead(actor);
        return root;
    }

    private Root? FindAndGet(Actor actor, TableRole role)
    {
        Rcu.ReadEnter(actor);
        Root? root = FirstInList();
        while (root is not null && !(root.Role == role && root.References.IncUnlessZero()))
            root = NextInList(root);
        Rcu.ReadExit(actor);
        return root;
    }

    private Root MakeRoot(MmuVcpu vcpu, TableRole role)
    {
        uint index = vcpu.TakeTable();
        ref TableRecord record = ref Tables.Record(index);
        record.Role = role.Value;
        record.Gfn = 0;
        record.Parent = 0;
        var root = new Root(_rootsMade++, new TablePage(Tables, index), role, Options, Format);
        using (_rootSlotGate.Hold())
        {
            int slot = Array.IndexOf(_rootSlots, null);
            if (slot < 0)
                HostBug($"a VM has at most {MostRoots} roots");
            _rootSlots[slot] = root;
            root.Slot = slot;
        }

        // Linearizes here: a reader of the list sees the root complete.
        root.Next.Write(_rootHead.Read());
        _rootHead.Write(root.Slot);
        return root;
    }

    private Root? FirstInList() => At(_rootHead.Read());

    private Root? NextInList(Root root) => At(root.Next.Read());

    private Root? At(int slot) => slot < 0 ? null : _rootSlots[slot];

    /// <summary>
    /// The next root of the kinds with a reference for the caller, and puts the previous one (KVM: for_each_tdp_mmu_root_yield_safe). The walk over one
    /// root may give mmu_lock up: the reference keeps the root in the list. Whoever stops early puts the root it has.
    /// </summary>
    private Root? NextRoot(Actor actor, Root? previous, RootKinds kinds, int addressSpace = -1)
    {
        MmuLock.AssertHeld(actor);
        Rcu.ReadEnter(actor);
        Root? next = previous is null ? FirstInList() : NextInList(previous);
        while (next is not null && !((addressSpace < 0 || next.AddressSpace == addressSpace) && Match(next, kinds) && next.References.IncUnlessZero()))
            next = NextInList(next);
        Rcu.ReadExit(actor);
        if (previous is not null)
            PutRoot(actor, previous);
        return next;
    }

    private void PutRoot(Actor actor, Root root)
    {
        if (!root.References.Dec())
            return;
        if (!root.IsInvalid)
            Bug(actor, $"the last reference of the valid root {root} was put");
        _pagesLock.Enter(actor);
        RemoveFromList(root);
        _pagesLock.Exit(actor);

        // Readers of the list under RCU may still stand on it; its link stays as it is until they have gone.
        Rcu.Call(actor, this, RootCookie + (uint)root.Slot);
    }

    private void RemoveFromList(Root root)
    {
        int next = root.Next.Read();
        if (_rootHead.Read() == root.Slot)
        {
            _rootHead.Write(next);
            return;
        }

        for (Root? before = FirstInList(); before is not null; before = NextInList(before))
        {
            if (before.Next.Read() != root.Slot)
                continue;
            before.Next.Write(next);
            return;
        }
    }

    private void FreeRootSlot(int slot)
    {
        Root root;
        using (_rootSlotGate.Hold())
        {
            root = _rootSlots[slot]!;
            _rootSlots[slot] = null;
        }

        FreeTableNow(root.Table.Index);
    }
}
