namespace Tdp.Harness.Invariants;

/// <summary>
/// Judges every SEAMCALL of one VM's host at the moment it is made and when it has returned: who may make it, in which order, with which page, and what it may answer. Runs on the calling thread.
/// </summary>
/// <remarks>
/// What it remembers of removals is written under mmu_lock write only, which it checks first; the gate makes a breach of that rule a finding instead of a crash.
/// "Kicked" is judged by the module's own count of vCPUs that entered before the last TRACK and have not left: it only falls, and a completed kick has made it 0.
/// </remarks>
public sealed class SeamcallReferee : IModuleObserver
{
    private readonly CheckedVm _vm;
    private readonly Vm _host;
    private readonly TdxModule _module;
    private readonly Dictionary<ulong, long> _blockedAt = [];
    private readonly Dictionary<ulong, ulong> _unwritten = [];
    private readonly HashSet<ulong> _removed = [];
    private readonly SyncGate _gate = new();
    private readonly SeptState[] _before;
    private long _tracks;

    /// <summary>Makes the referee of a TD.</summary>
    public SeamcallReferee(Vm vm)
        : this(new CheckedVm(vm))
    {
    }

    /// <summary>Makes the referee of a TD whose checkers share a record.</summary>
    public SeamcallReferee(CheckedVm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        _vm = vm;
        _host = vm.Vm ?? throw new ArgumentException("a VM without a host makes no SEAMCALLs", nameof(vm));
        _module = vm.Module ?? throw new ArgumentException("an ordinary VM makes no SEAMCALLs", nameof(vm));
        _before = new SeptState[vm.Machine.Processors.Count];
    }

    /// <inheritdoc/>
    public void Calling(LogicalProcessor lp, in SeamRegisters registers)
    {
        ArgumentNullException.ThrowIfNull(lp);
        TdhLeaf leaf = Leaf(registers);
        Actor? caller = _host.Kernel.Processors.HolderOf(lp.Id);
        if (caller is not null)
        {
            _vm.NotesOf(caller).IsInModule = true;
        }

        SeamcallView call = View(lp, leaf, caller, registers, null);
        _vm.Verdicts.Judge(caller, LifeCycle.I72, call);
        if (!IsMine(leaf, registers))
        {
            return;
        }

        switch (leaf)
        {
            case TdhLeaf.MEM_PAGE_AUG:
            case TdhLeaf.MEM_PAGE_ADD:
                Mapping(call, registers, caller);
                break;
            case TdhLeaf.MEM_SEPT_ADD:
                call = ToPresent(call, registers, caller);
                _vm.Verdicts.Judge(caller, MirrorAndModule.I24, call);
                break;
            case TdhLeaf.MEM_RANGE_BLOCK:
            case TdhLeaf.MEM_TRACK:
            case TdhLeaf.MEM_PAGE_REMOVE:
                Removing(call, registers, caller);
                break;
            case TdhLeaf.PHYMEM_PAGE_RECLAIM:
                _vm.Verdicts.Judge(caller, LifeCycle.I69, call with { IsSeptPage = true });
                break;
            case TdhLeaf.VP_ENTER:
                Entering(registers, caller);
                break;
            default:
                break;
        }
    }

    /// <inheritdoc/>
    public void Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after)
    {
        ArgumentNullException.ThrowIfNull(lp);
        TdhLeaf leaf = Leaf(before);
        Actor? caller = _host.Kernel.Processors.HolderOf(lp.Id);
        if (caller is not null)
        {
            ActorNotes notes = _vm.NotesOf(caller);
            notes.IsInModule = false;
            notes.IsInGuest = leaf is TdhLeaf.VP_ENTER && _module.CurrentVmcs(lp) is not null;
        }

        if (leaf is TdhLeaf.PHYMEM_PAGE_WBINVD)
        {
            Written(before, after.Status);
            return;
        }

        if (!IsAboutMemory(leaf) || !IsMine(leaf, before))
        {
            return;
        }

        SeamcallView call = View(lp, leaf, caller, before, after.Status);
        if (leaf is not TdhLeaf.MEM_TRACK)
        {
            call = call with { StateBefore = _before[lp.Id], StateAfter = StateOf(before) };
        }

        Answered(call, before, caller);
        if (after.Status == TdxStatus.SUCCESS)
        {
            Remember(leaf, before, after);
        }
    }

    /// <inheritdoc/>
    public void GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited)
    {
    }

    /// <summary>Judges what is left of removals when no operation is in flight: every page that was removed has been written back (I26).</summary>
    public void AtRest()
    {
        using (_gate.Hold())
        {
            foreach ((ulong page, ulong gpa) in _unwritten)
            {
                SeamRegisters registers = SeamRegisters.Call(TdhLeaf.PHYMEM_PAGE_WBINVD, gpa, _host.Td!.Tdr.Value, page);
                _vm.Verdicts.Judge(null, MirrorAndModule.I26, new SeamcallView(_vm, TdhLeaf.PHYMEM_PAGE_WBINVD, -1, null, registers, null) { IsPageUnwritten = !_vm.Mmu.Death.IsDead });
            }
        }
    }

    private static TdhLeaf Leaf(in SeamRegisters registers) => (TdhLeaf)(ushort)registers.Rax;

    private static ulong Page(in SeamRegisters registers) => registers.Rcx & ~0xFFFUL;

    private static bool IsAboutMemory(TdhLeaf leaf)
        => leaf is TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_TRACK or TdhLeaf.MEM_PAGE_REMOVE;

    // Calls about other TDs of the machine are others' to judge.
    private bool IsMine(TdhLeaf leaf, in SeamRegisters registers)
    {
        ulong tdr = _host.Td!.Tdr.Value;
        return leaf switch
        {
            TdhLeaf.MEM_TRACK => registers.Rcx == tdr,
            TdhLeaf.PHYMEM_PAGE_RECLAIM => _module.Pamt(new Hpa(registers.Rcx & Hpa.Mask)) is { Type: PageType.EPT } pamt && pamt.Owner.Value == tdr,
            TdhLeaf.VP_ENTER => true,
            _ => tdr != 0 && registers.Rdx == tdr,
        };
    }

    private SeamcallView View(LogicalProcessor lp, TdhLeaf leaf, Actor? caller, in SeamRegisters registers, TdxStatus? status)
    {
        TrustDomain td = _host.Td!;
        return new SeamcallView(_vm, leaf, lp.Id, caller, registers, status)
        {
            HoldsRead = caller is not null && _vm.Mmu.MmuLock.IsReadHeld(caller),
            HoldsWrite = caller is not null && _vm.Mmu.MmuLock.IsWriteHeld(caller),
            HasHkid = td.IsHkidAssigned,
            TdState = td.State.Peek(),
            IsWaitingForSeptZap = _host.WaitForSeptZap.Peek(),
            IsProcessorReady = _module.IsInitialized(lp.Id),
            IsShutDown = _module.IsShutDown,
            BlockedAt = -1,
        };
    }

    private SeptState StateOf(in SeamRegisters registers)
    {
        Level level = Level.FromTdx((int)(registers.Rcx & 7));
        SeptView found = _module.FindSeptEntry(_host.Td!.Tdr, new Gpa(Page(registers)), level);
        return found.Level == level ? found.State : SeptState.FREE;
    }

    // The entry that will follow, as the calling thread has left it. The tables above cannot go away: that needs mmu_lock write.
    private SeamcallView ToPresent(in SeamcallView call, in SeamRegisters registers, Actor? caller)
    {
        EntryView entry = default;
        if (_vm.ValidRoot(mirror: true) is { } root)
        {
            entry = _vm.Find(root, new Gfn(registers.Rcx >> 12), Level.FromTdx((int)(registers.Rcx & 7)));
        }

        _before[call.Processor] = StateOf(registers);
        ActorNotes? freezer = entry.IsNone ? null : _vm.FreezerOf(entry.Address);
        bool isUnwritten;
        using (_gate.Hold())
        {
            isUnwritten = _unwritten.ContainsKey(registers.R8);
        }

        SeamcallView full = call with { Entry = entry, Freezer = freezer?.Actor, IsPageUnwritten = isUnwritten };
        _vm.Verdicts.Judge(caller, MirrorAndModule.I26, full);
        if (caller is not null && entry.Value.IsFrozen)
        {
            // Seen by the thread that froze it: this very thread.
            EntryChange frozen = new(entry, Spte.NonPresent, caller, freezer?.Freeze ?? new Freeze(caller, Spte.NonPresent, default, false), full.HoldsRead, full.HoldsWrite, false);
            _vm.Verdicts.Judge(caller, TreeShape.I14, frozen);
            ActorNotes notes = _vm.NotesOf(caller);
            notes.Announced = new Hpa(registers.R8);
            notes.IsRefused = false;
        }

        return full;
    }

    private void Mapping(in SeamcallView call, in SeamRegisters registers, Actor? caller)
    {
        SeamcallView full = ToPresent(call, registers, caller);
        _vm.Verdicts.Judge(caller, LifeCycle.I70, full);
        _vm.Verdicts.Judge(caller, MirrorAndModule.I23, full);
        if (full.Entry.IsNone)
        {
            return;
        }

        // The leaf that the entry is about to become.
        EntryView leaf = full.Entry with { Value = _vm.Mmu.Format.Leaf(0, 1, registers.R8 >> 12, _vm.Mmu.Format.WriteBackType, true, false, false) };
        _vm.Verdicts.Judge(caller, MirrorAndModule.I31, new PageUse(leaf, default, _module.Pamt(new Hpa(registers.R8)) is { Type: not PageType.NDA }, _vm.Mmu.Death.IsDead));
        LeafView view = LeafView.Of(leaf, isAtRest: false);
        _vm.Verdicts.Judge(caller, MirrorAndModule.I33, view);
        _vm.Verdicts.Judge(caller, MirrorAndModule.I32, view);
        _vm.Verdicts.Judge(caller, FaultRules.I63, view);
        LeafBirth birth = LeafBirth.Of(leaf, caller);
        _vm.Verdicts.Judge(caller, FaultRules.I53, birth);
        _vm.Verdicts.Judge(caller, FaultRules.I54, birth);
    }

    private void Removing(in SeamcallView call, in SeamRegisters registers, Actor? caller)
    {
        _vm.Verdicts.Judge(caller, MirrorAndModule.I25, call);
        _vm.Verdicts.Judge(caller, LifeCycle.I69, call);
        SeamcallView full;
        using (_gate.Hold())
        {
            full = call with
            {
                Tracks = _tracks,
                BlockedAt = _blockedAt.GetValueOrDefault(Page(registers), -1),
                Lagging = _tracks == 0 ? 0 : _module.Tracking(_host.Td!.Tdr).InPrevious,
            };
        }

        if (call.Leaf is TdhLeaf.MEM_TRACK)
        {
            _vm.Verdicts.Judge(caller, MirrorAndModule.I27, full);
            return;
        }

        _before[call.Processor] = StateOf(registers);
        if (call.Leaf is TdhLeaf.MEM_PAGE_REMOVE)
        {
            _vm.Verdicts.Judge(caller, MirrorAndModule.I26, full);
        }
    }

    private void Entering(in SeamRegisters registers, Actor? caller)
    {
        foreach (Vcpu vcpu in _host.Vcpus)
        {
            if (vcpu.Tdvpr.Value == (registers.Rcx & Hpa.Mask))
            {
                _vm.Verdicts.Judge(caller, RootRules.I42, VcpuEntryView.Of(_vm, vcpu, isEntering: true, wasVmDead: false));
            }
        }
    }

    private void Answered(in SeamcallView call, in SeamRegisters before, Actor? caller)
    {
        TdxStatus status = call.Status!.Value;
        if (call.Leaf is TdhLeaf.MEM_TRACK)
        {
            _vm.Verdicts.Judge(caller, MirrorAndModule.I28, call);
        }

        if (call.IsRemovalStep && call.IsWaitingForSeptZap)
        {
            _vm.Verdicts.Judge(caller, MirrorAndModule.I29, call);
        }

        _vm.Verdicts.Judge(caller, AddedRules.I80, call);
        if (status == TdxStatus.SUCCESS && (call.StateBefore is SeptState.PENDING || call.IsMap))
        {
            _vm.Verdicts.Judge(caller, MirrorAndModule.I35, call);
        }

        if (!call.IsRemovalStep && caller is not null)
        {
            ToPresentAnswered(call, before, caller, status);
        }
    }

    private void ToPresentAnswered(in SeamcallView call, in SeamRegisters before, Actor caller, TdxStatus status)
    {
        ActorNotes notes = _vm.NotesOf(caller);
        notes.IsRefused = status != TdxStatus.SUCCESS;
        notes.Mapped += status == TdxStatus.SUCCESS && call.IsMap ? 1 : 0;
        notes.Linked += status == TdxStatus.SUCCESS && !call.IsMap ? 1 : 0;
        notes.BusyAnswers += status.IsBusy ? 1 : 0;
        if (_vm.ValidRoot(mirror: true) is not { } root)
        {
            return;
        }

        // Nobody but this thread may have touched the entry while the module was at work.
        EntryView entry = _vm.Find(root, new Gfn(before.Rcx >> 12), Level.FromTdx((int)(before.Rcx & 7)));
        EntryChange during = new(entry, Spte.Frozen, null, _vm.FreezerOf(entry.Address)?.Freeze ?? new Freeze(caller, Spte.NonPresent, default, false), call.HoldsRead, call.HoldsWrite, false);
        _vm.Verdicts.Judge(caller, TreeShape.I15, during);
        if (status != TdxStatus.SUCCESS || !call.IsMap)
        {
            return;
        }

        EntryView leaf = entry with { Value = _vm.Mmu.Format.Leaf(0, 1, before.R8 >> 12, _vm.Mmu.Format.WriteBackType, true, false, false) };
        _vm.Verdicts.Judge(caller, MirrorAndModule.I22, MirrorPair.Of(leaf, isChanging: false));
        bool isAgain;
        using (_gate.Hold())
        {
            isAgain = _removed.Contains(Page(before));
        }

        if (isAgain && call.Leaf is TdhLeaf.MEM_PAGE_AUG)
        {
            _vm.Verdicts.Judge(caller, MirrorAndModule.I36, call with { IsAgain = true, MayBeAccepted = MayBeAccepted(call.Processor) });
        }
    }

    private bool MayBeAccepted(int except)
    {
        foreach (LogicalProcessor lp in _vm.Machine.Processors)
        {
            if (lp.Id != except && lp.InGuest)
            {
                return true;
            }
        }

        return false;
    }

    private void Remember(TdhLeaf leaf, in SeamRegisters before, in SeamRegisters after)
    {
        using (_gate.Hold())
        {
            switch (leaf)
            {
                case TdhLeaf.MEM_RANGE_BLOCK:
                    _blockedAt[Page(before)] = _tracks;
                    break;
                case TdhLeaf.MEM_TRACK:
                    _tracks++;
                    break;
                case TdhLeaf.MEM_PAGE_REMOVE:
                    _blockedAt.Remove(Page(before));
                    _unwritten[after.Rcx & Hpa.Mask] = Page(before);
                    _removed.Add(Page(before));
                    break;
                default:
                    _removed.Remove(Page(before));
                    break;
            }
        }
    }

    private void Written(in SeamRegisters registers, TdxStatus status)
    {
        if (status != TdxStatus.SUCCESS)
        {
            return;
        }

        ulong page = registers.Rcx & ((1UL << _vm.Machine.Description.HkidShift) - 1) & ~0xFFFUL;
        using (_gate.Hold())
        {
            _unwritten.Remove(page);
        }
    }
}
