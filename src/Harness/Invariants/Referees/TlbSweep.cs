namespace Tdp.Harness.Invariants;

/// <summary>
/// Judges what the processors' TLBs hold of one VM: every translation that a processor would use without a further flush must be one that the tables give now (I57), for a page that has not changed hands
/// since (I82).
/// </summary>
/// <remarks>
/// A TLB may be stale while its vCPU is outside: the vCPU flushes before it enters when a request says so, when its epoch is old, when another vCPU ran on the processor since, or when it must load a root.
/// Those translations are left alone. To be used when no vCPU runs, or between two events of a scheduler.
/// </remarks>
public static class TlbSweep
{
    /// <summary>Judges the TLBs of all vCPUs.</summary>
    /// <param name="vm">The VM.</param>
    /// <param name="judge">Who looks; null outside the world.</param>
    public static void Check(CheckedVm vm, Actor? judge)
    {
        ArgumentNullException.ThrowIfNull(vm);
        if (vm.Vm is not { } host)
        {
            return;
        }

        IReadOnlyList<VcpuView> inModule = vm.Module?.Vcpus() ?? [];
        ulong eptp = vm.LiveTd is { } td ? vm.Module!.Td(td.Tdr)?.Eptp ?? 0 : 0;
        foreach (Vcpu vcpu in host.Vcpus)
        {
            if (Used(vm, vcpu, inModule) is not { } lp)
            {
                continue;
            }

            // The module has its own numbers for vCPUs; but another one's entry has flushed, so what is there is this one's.
            ulong context = vm.HasMirror ? eptp : vcpu.Vmcs!.Eptp;
            lp.Tlb.ForEachLive(entry =>
            {
                if (entry.Context == context && (vm.HasMirror || entry.Vcpu == vcpu.Id))
                {
                    Judge(vm, judge, vcpu, lp.Id, entry);
                }
            });
        }
    }

    private static void Judge(CheckedVm vm, Actor? judge, Vcpu vcpu, int processor, TlbEntry entry)
    {
        Gpa gpa = new(entry.GpaPage);
        bool isPrivate = vm.HasMirror && vm.Mmu.Options.AliasBit.Of(gpa) is Alias.Private;
        bool isJustified = isPrivate ? IsInSecureEpt(vm, gpa, entry) : IsInTree(vm, vcpu, new Gfn((gpa.Value >> 12) & ~vm.AliasMask), entry);
        vm.Verdicts.Judge(judge, FaultRules.I57, new TlbView(vm, processor, entry, isJustified));
        if (entry.Level == 1)
        {
            FrameRecord record = vm.Machine.Memory.Record(entry.Frame >> 12);
            vm.Verdicts.Judge(judge, AddedRules.I82, new HeldFrame(vm, new Hpa(entry.Frame), entry.Generation, record.Generation, null, record.Use, default));
        }
    }

    // The processor whose translations the vCPU uses now, or would use at its next entry; null when it flushes first.
    private static LogicalProcessor? Used(CheckedVm vm, Vcpu vcpu, IReadOnlyList<VcpuView> inModule)
    {
        if (vcpu.Processor is { InGuest: true } inside && ReferenceEquals(inside.Running, vcpu.Kick))
        {
            return inside;
        }

        if (vcpu.TranslatesOn is not { } lp || !vm.HasMirror)
        {
            return vcpu.TranslatesOn;
        }

        ulong epoch = vm.LiveTd is { } td ? vm.Module!.Tracking(td.Tdr).Epoch : 0;
        foreach (VcpuView view in inModule)
        {
            if (view.Tdvpr == vcpu.Tdvpr && view.AssociatedLp == lp.Id && view.Epoch == epoch && vm.Module!.LastRunOn(lp.Id) == view.Tdvpr)
            {
                return lp;
            }
        }

        return null;
    }

    private static bool IsInSecureEpt(CheckedVm vm, Gpa gpa, in TlbEntry entry)
        => vm.LiveTd is { } td && vm.Module!.FindSeptEntry(td.Tdr, gpa, new Level(entry.Level)) is { State: SeptState.MAPPED } leaf && leaf.Hpa.Value == entry.Frame;

    private static bool IsInTree(CheckedVm vm, Vcpu vcpu, Gfn gfn, in TlbEntry entry)
    {
        EntryView leaf = vm.Find(vcpu.Mmu.DirectRoot!, gfn, Level.K4);
        if (leaf.Kind is not SpteKind.Leaf)
        {
            return false;
        }

        ulong within = (gfn.Value & (leaf.Level.Pages - 1)) << 12;
        ulong rights = (ulong)entry.Rights & Spte.Rwx;
        return leaf.Value.Address.Value + within == entry.Frame && (rights & ~leaf.Value.Value) == 0 && entry.Level <= leaf.Level.Value;
    }
}
