namespace Tdp.Harness.Scenarios;

/// <content>Steps on memory, page tables and the TD's life.</content>
public sealed partial class ScenarioWorld
{
    private static StepResult OfMemory(ScenarioVmState state, ScenarioStep step, Actor actor)
    {
        Vm vm = state.Vm;
        ulong gpa = step.Range.Start.Value << 12;
        ulong bytes = step.Range.Pages << 12;
        switch (step.Kind)
        {
            case StepKind.Convert:
                return StepResult.Of(vm.Memory.SetAttributes(actor, gpa, bytes, step.To is Alias.Private ? MemoryAttributes.Private : 0));
            case StepKind.PreFault:
                return StepResult.Of(vm.Memory.PreFault(actor, vm.VcpuOf(Math.Max(step.Vcpu, 0)), ref gpa, ref bytes)) with { Detail = bytes == 0 ? null : $"{bytes >> 12} pages left" };
            case StepKind.CreateSlot:
                return StepResult.Of(vm.Memory.SetUserMemoryRegion(actor, state.Slots[step.Slot].Region));
            case StepKind.DeleteSlot:
                return StepResult.Of(vm.Memory.SetUserMemoryRegion(actor, state.Slots[step.Slot].Region with { MemorySize = 0 }));
            case StepKind.MoveSlot:
                return StepResult.Of(vm.Memory.SetUserMemoryRegion(actor, state.Slots[step.Slot].Region with { GuestPhysicalAddress = gpa, MemorySize = bytes }));
            case StepKind.LogSlot:
                UserMemoryRegion region = state.Slots[step.Slot].Region;
                MemslotFlags flags = step.Has(StepWords.On) ? region.Flags | MemslotFlags.LogDirtyPages : region.Flags & ~MemslotFlags.LogDirtyPages;
                return StepResult.Of(vm.Memory.SetUserMemoryRegion(actor, region with { Flags = flags }));
            case StepKind.GetLog:
                return GetLog(state, step, actor);
            case StepKind.ClearLog:
                ulong first = (step.Range.Start - state.Slots[step.Slot].Declared.Range.Start) & ~63UL;
                ulong pages = Math.Min((step.Range.Pages + 63 + 63) & ~63UL, state.Slots[step.Slot].Declared.Range.Pages - Math.Min(first, state.Slots[step.Slot].Declared.Range.Pages));
                ulong[] all = new ulong[(pages + 63) >> 6];
                Array.Fill(all, ulong.MaxValue);
                return StepResult.Of(vm.DirtyLog.Clear(actor, state.Slots[step.Slot].Region.Id, first, (uint)pages, all));
            case StepKind.CloseFile:
                if (state.Slots[step.Slot].File is not { } closed)
                {
                    return StepResult.Of(Errno.EINVAL);
                }

                closed.Close(actor);
                return StepResult.Ok;
            default:
                return state.SlotAt(step.Range.Start) is { } slot ? OfSlot(state, slot, step, actor) : StepResult.Of(Errno.EINVAL);
        }
    }

    // A harvest is one answer of the ioctl; the scenario keeps the union of them.
    private static StepResult GetLog(ScenarioVmState state, ScenarioStep step, Actor actor)
    {
        ulong[] harvest = state.HarvestOf(step.Slot);
        ulong[] words = new ulong[harvest.Length];
        Errno errno = state.Vm.DirtyLog.Get(actor, state.Slots[step.Slot].Region.Id, words);
        long pages = 0;
        for (int i = 0; i < words.Length && errno == Errno.None; i++)
        {
            harvest[i] |= words[i];
            pages += System.Numerics.BitOperations.PopCount(words[i]);
        }

        return StepResult.Of(errno) with { Detail = errno == Errno.None ? $"{pages} pages" : null };
    }

    private static StepResult OfSlot(ScenarioVmState state, ScenarioVmState.SlotState slot, ScenarioStep step, Actor actor)
    {
        Vm vm = state.Vm;
        ulong page = step.Range.Start - slot.Declared.Range.Start;
        ulong address = ScenarioVmState.AddressOf(slot, step.Range.Start);
        ulong end = address + (step.Range.Pages << 12);
        switch (step.Kind)
        {
            case StepKind.PunchHole:
                return StepResult.Of(slot.File?.PunchHole(actor, page, step.Range.Pages) ?? Errno.EINVAL);
            case StepKind.Poison when slot.File is { } file:
                for (ulong i = 0; i < step.Range.Pages; i++)
                {
                    file.Poison(actor, page + i);
                }

                return StepResult.Ok;
            case StepKind.Notify:
                if (!step.Has(StepWords.End))
                {
                    vm.Notifier.InvalidateRangeStart(actor, address, end);
                }

                if (!step.Has(StepWords.Start))
                {
                    vm.Notifier.InvalidateRangeEnd(actor, address, end);
                }

                return StepResult.Ok;
            case StepKind.Discard:
                vm.UserMemory.Discard(actor, address, step.Range.Pages);
                return StepResult.Ok;
            case StepKind.Migrate:
                vm.UserMemory.Migrate(actor, address, step.Range.Pages);
                return StepResult.Ok;
            case StepKind.Protect:
                vm.UserMemory.Protect(actor, address, step.Range.Pages);
                return StepResult.Ok;
            default:
                return StepResult.Of(Errno.EINVAL);
        }
    }

    private static StepResult OfMmu(ScenarioVmState state, ScenarioStep step, Actor actor)
    {
        TdpMmu mmu = state.Vm.Mmu;
        switch (step.Kind)
        {
            case StepKind.Unmap:
                AliasFilter filter = step.Has(StepWords.Both) ? AliasFilter.Both : step.Has(StepWords.Shared) ? AliasFilter.Shared : AliasFilter.Private;
                mmu.MmuLock.EnterWrite(actor);
                if (mmu.UnmapRange(actor, step.Range, filter))
                {
                    mmu.FlushRemoteTlbs(actor);
                }

                mmu.MmuLock.ExitWrite(actor);
                return StepResult.Ok;
            case StepKind.ZapLeafs:
                mmu.MmuLock.EnterWrite(actor);
                if (mmu.ZapLeafs(actor, step.Range))
                {
                    mmu.FlushRemoteTlbs(actor);
                }

                mmu.MmuLock.ExitWrite(actor);
                return StepResult.Ok;
            case StepKind.FastZap:
                state.Vm.Memory.ZapAllFast(actor);
                return StepResult.Ok;
            case StepKind.ZapAll:
                mmu.ZapAll(actor);
                return StepResult.Ok;
            case StepKind.Age:
                return StepResult.Of(mmu.Age(actor, step.Range, AliasFilter.Shared));
            case StepKind.TestAge:
                return StepResult.Of(mmu.TestAge(actor, step.Range, AliasFilter.Shared));
            case StepKind.RecoverNx:
                return RecoverNx(state, actor);
            default:
                return state.Live(step.Slot) is { } slot ? OfLiveSlot(state, slot.Mmu, step, actor) : StepResult.Of(Errno.EINVAL);
        }
    }

    // slots_lock keeps the slot while the walk runs, as the ioctls of KVM do.
    private static StepResult OfLiveSlot(ScenarioVmState state, MmuSlot slot, ScenarioStep step, Actor actor)
    {
        TdpMmu mmu = state.Vm.Mmu;
        state.Vm.SlotsLock.Enter(actor);
        StepResult result = StepResult.Ok;
        bool flush = false;
        switch (step.Kind)
        {
            case StepKind.WriteProtect:
                mmu.MmuLock.EnterRead(actor);
                flush = mmu.WriteProtectSlot(actor, slot, Level.K4);
                mmu.MmuLock.ExitRead(actor);
                result = StepResult.Of(flush);
                break;
            case StepKind.ClearDirty:
                mmu.MmuLock.EnterRead(actor);
                mmu.ClearDirtySlot(actor, slot);
                mmu.MmuLock.ExitRead(actor);
                flush = true;
                break;
            case StepKind.Split:
                MmuVcpu caches = new(mmu, actor, 0);
                mmu.MmuLock.EnterRead(actor);
                bool enough = mmu.TrySplitHuge(actor, caches, slot, slot.Range, step.Level == default ? Level.K4 : step.Level, shared: true);
                mmu.MmuLock.ExitRead(actor);
                mmu.DestroyVcpu(caches);
                result = enough ? StepResult.Ok : StepResult.Of(Errno.ENOMEM);
                break;
            default:
                mmu.MmuLock.EnterRead(actor);
                mmu.RecoverHuge(actor, slot);
                mmu.MmuLock.ExitRead(actor);
                break;
        }

        if (flush)
        {
            mmu.FlushRemoteTlbs(actor);
        }

        state.Vm.SlotsLock.Exit(actor);
        return result;
    }

    // One round of the recovery worker, for one table.
    private static StepResult RecoverNx(ScenarioVmState state, Actor actor)
    {
        TdpMmu mmu = state.Vm.Mmu;
        state.Vm.Srcu.ReadEnter(actor);
        long found = mmu.RecoverNxPages(actor, 1, table => state.Vm.SlotsOf(0).Active.Find(table.Gfn) is { } slot && slot.Mmu.IsDirtyLogged);
        state.Vm.Srcu.ReadExit(actor);
        return StepResult.Of(found > 0);
    }

    private StepResult OfTd(ScenarioVmState state, ScenarioStep step, Actor actor)
    {
        Vm vm = state.Vm;
        switch (step.Kind)
        {
            case StepKind.AddVcpu:
                Errno created = vm.CreateVcpu(actor, out Vcpu? vcpu);
                return StepResult.Of(created == Errno.None && vm.IsTd ? vcpu!.Initialize(actor, 0, Direct64.ApplyScript) : created);
            case StepKind.Finalize:
                return StepResult.Of(vm.Td!.Complete(actor));
            case StepKind.InitRegion:
                Gfn first = step.Range.Start;
                Errno added = vm.Td!.InitMemoryRegion(actor, first.Value << 12, step.Range.Pages, step.Has(StepWords.Measured), (page, bytes) =>
                {
                    bytes.Clear();
                    System.Buffers.Binary.BinaryPrimitives.WriteUInt64LittleEndian(bytes, ScenarioGuest.Mark(first + page, Alias.Private));
                }, out ulong done);
                return StepResult.Of(added) with { Detail = done == step.Range.Pages ? null : $"{done} of {step.Range.Pages} pages" };
            default:
                ulong[] values = Operands(state, step);
                SeamRegisters registers = SeamRegisters.Call((TdhLeaf)step.Leaf, values[0], values[1], values[2], values[3]);
                return StepResult.Of(Kernel.Port!.Call(Kernel.Processors.Of(actor), ref registers));
        }
    }
}
