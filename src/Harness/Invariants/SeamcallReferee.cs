namespace Tdp.Harness.Invariants;

/// <summary>
/// Judges every SEAMCALL of one TD's host at the moment it is made: who may make it, in which order, and what it may answer (I23..I29, I69, I70, I80). Runs on the calling thread.
/// </summary>
/// <remarks>
/// What it remembers of removals is written under mmu_lock write only, which it checks first; the gate makes a breach of that rule a finding instead of a crash.
/// "Kicked" is judged by the module's own count of vCPUs that entered before the last TRACK and have not left: it only falls, and a completed kick has made it 0.
/// </remarks>
public sealed class SeamcallReferee : IModuleObserver
{
    private readonly Vm _vm;
    private readonly FindingLog _findings;
    private readonly Dictionary<ulong, long> _blockedAt = [];
    private readonly SyncGate _gate = new();
    private long _tracks;

    /// <summary>Makes the referee of a TD.</summary>
    public SeamcallReferee(Vm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        _vm = vm;
        _findings = vm.Kernel.Machine.Findings;
    }

    /// <inheritdoc/>
    public void Calling(LogicalProcessor lp, in SeamRegisters registers)
    {
        switch (Leaf(registers))
        {
            case TdhLeaf.MEM_PAGE_AUG:
                Frozen("I23", registers, "PAGE.AUG", _vm.Td!.State.Peek() is TdState.Runnable);
                break;
            case TdhLeaf.MEM_PAGE_ADD:
                Frozen("I23", registers, "PAGE.ADD", _vm.Td!.State.Peek() is not TdState.Runnable);
                break;
            case TdhLeaf.MEM_SEPT_ADD:
                Frozen("I24", registers, "SEPT.ADD", isInTime: true);
                break;
            case TdhLeaf.MEM_RANGE_BLOCK:
                Alone(lp, "RANGE.BLOCK");
                break;
            case TdhLeaf.MEM_TRACK:
                Alone(lp, "TRACK");
                KickedSinceTrack("I27", "the next TRACK");
                break;
            case TdhLeaf.MEM_PAGE_REMOVE:
                Alone(lp, "PAGE.REMOVE");
                MayRemove(registers);
                break;
            default:
                break;
        }
    }

    /// <inheritdoc/>
    public void Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after)
    {
        TdhLeaf leaf = Leaf(before);
        if (leaf is not (TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_TRACK or TdhLeaf.MEM_PAGE_REMOVE))
        {
            return;
        }

        if (after.Status != TdxStatus.SUCCESS)
        {
            Refused(leaf, before, after.Status);
            return;
        }

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
                    break;
                default:
                    break;
            }
        }
    }

    /// <inheritdoc/>
    public void GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited)
    {
    }

    private static TdhLeaf Leaf(in SeamRegisters registers) => (TdhLeaf)(ushort)registers.Rax;

    private static ulong Page(in SeamRegisters registers) => registers.Rcx & ~0xFFFUL;

    // I23, I24, I70: the entry that will follow is frozen, and the leaf fits the TD's state.
    private void Frozen(string rule, in SeamRegisters registers, string leaf, bool isInTime)
    {
        Gfn gfn = new(registers.Rcx >> 12);
        Level level = Level.FromTdx((int)(registers.Rcx & 7));
        if (!isInTime)
        {
            _findings.Add("I70", $"{leaf} of gfn {gfn} while the TD is {_vm.Td!.State.Peek()}");
        }

        // The walk goes down the mirror as the fault did; the tables above a frozen entry cannot go away, because that needs mmu_lock write.
        foreach (Root root in _vm.Mmu.Roots)
        {
            if (!root.IsMirror)
            {
                continue;
            }

            Spte entry = Entry(root, gfn, level);
            if (!entry.IsFrozen)
            {
                _findings.Add(rule, $"{leaf} of gfn {gfn}, {level}, but the mirror entry there is {entry}");
            }
        }
    }

    private Spte Entry(Root root, Gfn gfn, Level level)
    {
        TablePage table = root.Table;
        for (Level at = root.Level; ; at = at.Down)
        {
            Spte spte = table[at.IndexOf(gfn.Value)];
            if (at == level || spte.Kind(at) is not SpteKind.Table)
            {
                return spte;
            }

            table = TreeWalk.TableBehind(_vm.Mmu, spte);
        }
    }

    private void Alone(LogicalProcessor lp, string leaf)
    {
        if (_vm.Kernel.Processors.HolderOf(lp.Id) is not { } actor || !_vm.Mmu.MmuLock.IsWriteHeld(actor))
        {
            _findings.Add("I25", $"{leaf} on LP {lp.Id} without mmu_lock held for writing");
        }

        if (!_vm.Td!.IsHkidAssigned)
        {
            _findings.Add("I69", $"{leaf} after the KeyID was released");
        }
    }

    private void MayRemove(in SeamRegisters registers)
    {
        if (_vm.Td!.State.Peek() is not TdState.Runnable)
        {
            return;
        }

        using (_gate.Hold())
        {
            if (!_blockedAt.TryGetValue(Page(registers), out long at))
            {
                _findings.Add("I26", $"PAGE.REMOVE of gfn 0x{registers.Rcx >> 12:x}, which is not blocked");
            }
            else if (_tracks == at)
            {
                _findings.Add("I26", $"PAGE.REMOVE of gfn 0x{registers.Rcx >> 12:x} without a TRACK since it was blocked");
            }
        }

        KickedSinceTrack("I26", $"PAGE.REMOVE of gfn 0x{registers.Rcx >> 12:x}");
    }

    private void KickedSinceTrack(string rule, string before)
    {
        if (_tracks == 0 || _vm.Kernel.Port!.Module.Td(_vm.Td!.Tdr) is not { } td)
        {
            return;
        }

        uint inside = ((td.Epoch - 1) & 1) == 0 ? td.RefCount0 : td.RefCount1;
        if (inside != 0)
        {
            _findings.Add(rule, $"{inside} vCPUs have not left the guest between TRACK and {before}");
        }
    }

    private void Refused(TdhLeaf leaf, in SeamRegisters before, TdxStatus status)
    {
        bool removes = leaf is TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_TRACK or TdhLeaf.MEM_PAGE_REMOVE;
        if (status.Class == TdxStatus.PREVIOUS_TLB_EPOCH_BUSY)
        {
            _findings.Add("I28", $"TRACK answered {status}");
        }
        else if (!status.IsBusy)
        {
            _findings.Add("I80", $"{leaf} of 0x{before.Rcx:x} answered {status}");
        }
        else if (removes && _vm.WaitForSeptZap.Peek())
        {
            _findings.Add("I29", $"{leaf} of 0x{before.Rcx:x} answered {status} although every vCPU is locked out");
        }
    }
}
