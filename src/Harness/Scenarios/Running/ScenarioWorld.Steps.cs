namespace Tdp.Harness.Scenarios;

/// <content>The steps.</content>
public sealed partial class ScenarioWorld
{
    private const int DefaultAttempts = 3;

    private void Perform(int index, Actor actor)
    {
        ScenarioActor declared = Scenario.Actors[index];
        try
        {
            for (int i = 0; i < declared.Steps.Count; i++)
            {
                Mark.At(actor, "step");
                Perform(index, i, actor);
                Mark.At(actor, "step-end");
            }
        }
        catch (Exception e) when (Hook.Scheduler is null)
        {
            // Kept for the verdict. Under a scheduler it goes on to the scheduler, which knows at which event it was thrown.
            _history.Failures[index] = e;
        }
        finally
        {
            SignalStep(index, int.MaxValue);
        }
    }

    // A guest that stays inside is where it should be: whoever waits for that may go on.
    private void SignalInside(int index)
    {
        int steps = _ended[index].Peek() + 1;
        SignalStep(index, steps);
    }

    private void SignalStep(int index, int steps)
    {
        if (_signalsSteps)
        {
            _ended[index].Write(steps);
            _stepEnded.Wake();
        }
    }

    // A guest that stays inside does so until every actor that does not only stay has ended.
    private bool OthersHaveEnded()
    {
        for (int i = 0; i < _ended.Length; i++)
        {
            IReadOnlyList<ScenarioStep> steps = Scenario.Actors[i].Steps;
            if (_ended[i].Peek() != int.MaxValue && !(steps.Count > 0 && steps[^1].Kind is StepKind.Stay && _ended[i].Peek() >= steps.Count - 1))
            {
                return false;
            }
        }

        return true;
    }

    // Setup and end: as the actor of the vCPU, or as the director.
    private StepResult Perform(ScenarioSingle single)
    {
        ScenarioVmState state = StateOf(single.Vm);
        if (single.Vcpu >= 0)
        {
            return Do(single.Step, state.VcpuActors[single.Vcpu], single.Vcpu);
        }

        // Mapping is done as vCPU 0 of the VM, on its own processor.
        return single.Step.Kind is StepKind.Map ? Do(single.Step, StateOf(single.Step.Vm).VcpuActors[0], 0) : Do(single.Step, _host.Actor, -1);
    }

    // What an operation removes, its own actor removes: so it can be judged however many others run.
    private StepResult Do(ScenarioStep step, Actor actor, int vcpu)
    {
        ScenarioVmState state = StateOf(step.Vm);
        long before = RemovedBy(state, actor);
        StepResult result = Do(state, step, actor, vcpu);
        long removed = RemovedBy(state, actor) - before;
        ulong most = step.Kind switch
        {
            StepKind.Convert or StepKind.MapGpa when step.To is Alias.Shared => step.Range.Pages,
            StepKind.PunchHole or StepKind.Poison => step.Range.Pages,
            StepKind.Unmap when !step.Has(StepWords.Shared) => step.Range.Pages,
            StepKind.DeleteSlot or StepKind.MoveSlot or StepKind.CloseFile => state.Slots[step.Slot].Declared.Range.Pages,
            StepKind.Read or StepKind.Write or StepKind.Fetch or StepKind.Accept when step.Has(StepWords.Convert) => step.Range.Pages,
            StepKind.Destroy or StepKind.Seamcall => ulong.MaxValue,
            _ => 0,
        };
        if ((ulong)removed > most)
        {
            string rule = step.Kind is StepKind.Convert or StepKind.MapGpa ? "I59" : step.Kind is StepKind.Notify or StepKind.Discard or StepKind.Migrate or StepKind.Protect or StepKind.FastZap or StepKind.ZapAll
                or StepKind.ZapLeafs ? "I60" : "I44";
            Machine.Findings.Add(rule, $"'{step}' removed {removed} private pages{(most == 0 ? string.Empty : $", at most {most} are in its range")}");
        }

        return result;
    }

    private static long RemovedBy(ScenarioVmState state, Actor actor) => state.Vm.Glue?.Of(actor, TdxGlue.GlueCounter.Removed) ?? 0;

    private StepResult Do(ScenarioVmState state, ScenarioStep step, Actor actor, int vcpu)
    {
        switch (step.Kind)
        {
            case StepKind.Read or StepKind.Write or StepKind.Fetch or StepKind.Accept or StepKind.MapGpa or StepKind.Tdcall or StepKind.Stay:
                return RunGuest(state, step, actor, vcpu);
            case StepKind.Fault:
                return Fault(state, step, actor, vcpu);
            case StepKind.Map:
                return Map(state, step, actor, vcpu);
            case StepKind.Kick:
                foreach (Vcpu target in state.Vm.Vcpus)
                {
                    ulong ticket = target.Kick.Send(actor, wait: true);
                    if (ticket != 0)
                    {
                        target.Kick.AwaitAck(actor, ticket);
                    }
                }

                return StepResult.Ok;
            case StepKind.Interrupt:
                Interrupt(step.Awaited);
                return StepResult.Ok;
            case StepKind.Signal:
                state.Vm.VcpuOf(step.Vcpu).Signal(actor);
                return StepResult.Ok;
            case StepKind.Smm:
                return Smm(state, step, actor, vcpu);
            case StepKind.Await:
                Await(step, actor);
                return StepResult.Ok;
            case StepKind.Destroy:
                EndVm(state);
                return StepResult.Ok;
            case StepKind.AddVcpu or StepKind.Finalize or StepKind.InitRegion or StepKind.Seamcall:
                return OfTd(state, step, actor);
            case StepKind.Unmap or StepKind.ZapLeafs or StepKind.FastZap or StepKind.ZapAll or StepKind.Age or StepKind.TestAge or StepKind.WriteProtect or StepKind.ClearDirty or StepKind.Split
                or StepKind.Recover or StepKind.RecoverNx:
                return OfMmu(state, step, actor);
            default:
                return OfMemory(state, step, actor);
        }
    }

    private void Await(ScenarioStep step, Actor actor)
    {
        for (int i = 0; i < Scenario.Actors.Count; i++)
        {
            if (Scenario.Actors[i].Name == step.Awaited)
            {
                int number = step.AwaitedStep == 0 ? Scenario.Actors[i].Steps.Count : step.AwaitedStep;
                SharedCell<int> ended = _ended[i];
                _stepEnded.Until(actor, () => ended.Peek() >= number);
            }
        }
    }

    private void Interrupt(string actor)
    {
        for (int i = 0; i < Scenario.Actors.Count; i++)
        {
            if (Scenario.Actors[i].Name == actor)
            {
                Kernel.Processors.Of(_bodies[i]).PendingInterrupt.Write(0x20);
            }
        }
    }

    private static StepResult Smm(ScenarioVmState state, ScenarioStep step, Actor actor, int vcpu)
    {
        Vcpu target = state.Vm.VcpuOf(vcpu);
        if (state.Vm.IsTd)
        {
            return StepResult.Of(Errno.EINVAL);
        }

        target.Mutex.Enter(actor);
        target.Mmu.Actor = actor;
        state.Vm.Mmu.UnloadRoots(target.Mmu);
        target.Mmu.IsSmm = step.Has(StepWords.On);
        target.Mutex.Exit(actor);
        return StepResult.Ok;
    }

    // The end of a TD needs a processor of every package, and each of its vCPUs' own.
    private void EndVm(ScenarioVmState state)
    {
        foreach (Actor actor in _actors)
        {
            Kernel.Processors.Unbind(actor);
        }

        state.Destroy(_host.Actor);
        for (int i = 0; i < _actors.Count; i++)
        {
            Place(_actors[i], i);
        }
    }

    private StepResult RunGuest(ScenarioVmState state, ScenarioStep step, Actor actor, int vcpu)
    {
        ScenarioGuest guest = state.Guests[vcpu];
        guest.Load(step, step.Kind is StepKind.Tdcall ? Operands(state, step) : []);
        Vcpu target = state.Vm.VcpuOf(vcpu);
        while (true)
        {
            Errno errno = target.Run(actor, guest);
            VcpuRunState run = target.RunState;
            switch (run.Exit)
            {
                case UserExit.ScriptEnd:
                    return guest.Result;
                case UserExit.Hypercall:
                    Errno converted = state.Vm.Memory.SetAttributes(actor, run.Gpa, run.Length << 12, (run.Flags & 0x10) != 0 ? MemoryAttributes.Private : 0);
                    run.Result = (ulong)converted;
                    continue;
                case UserExit.MemoryFault when step.Has(StepWords.Convert) && errno is Errno.EFAULT or Errno.None:
                    Errno answered = state.Vm.Memory.SetAttributes(actor, run.Gpa, run.Length, (run.Flags & MemoryAttributes.Private) != 0 ? MemoryAttributes.Private : 0);
                    if (answered == Errno.None)
                    {
                        continue;
                    }

                    guest.Abandon(StepResult.Of(answered));
                    return guest.Result;
                case UserExit.MemoryFault:
                    guest.Abandon(StepResult.MemoryFault with { Detail = $"gpa 0x{run.Gpa:x} size 0x{run.Length:x} flags {run.Flags}, {errno}" });
                    return guest.Result;
                case UserExit.InternalError when !state.Vm.IsTd && run.Code is (ulong)ExitReason.EptMisconfiguration:
                    guest.Abandon(new StepResult("mmio"));
                    return guest.Result;
                case UserExit.Shutdown:
                    guest.Abandon(new StepResult("shutdown"));
                    return guest.Result;
                default:
                    if (errno is Errno.EINTR)
                    {
                        target.ClearSignal();
                    }

                    guest.Abandon(StepResult.Of(errno is Errno.None ? Errno.EIO : errno) with { Detail = run.Exit is UserExit.None ? state.Vm.Mmu.Death.Reason : $"{run.Exit} {run.Message}" });
                    return guest.Result;
            }
        }
    }

    // The fault handler as KVM_RUN calls it: under vcpu->mutex and SRCU, with the roots loaded.
    private static StepResult Fault(ScenarioVmState state, ScenarioStep step, Actor actor, int vcpu)
    {
        Vm vm = state.Vm;
        bool isPrivate = vm.IsTd && step.Alias is Alias.Private;
        ulong error = PfErr.GuestFinal | (isPrivate ? PfErr.PrivateAccess | PfErr.Write
            : step.Has(StepWords.Read) ? PfErr.User : step.Has(StepWords.Fetch) ? PfErr.Fetch : PfErr.Write);
        error |= step.Has(StepWords.Present) ? PfErr.Present : 0;
        Vcpu target = vm.VcpuOf(vcpu);
        target.Mutex.Enter(actor);
        target.Mmu.Actor = actor;
        vm.Srcu.ReadEnter(actor);
        StepResult result = StepResult.Ok;
        for (Gfn gfn = step.Range.Start; gfn < step.Range.End; gfn += 1)
        {
            Gpa address = vm.AliasBit.Apply(gfn, isPrivate || !vm.IsTd ? Alias.Private : Alias.Shared);
            result = FaultOnce(vm, target, actor, address, error, step.Attempts == 0 ? DefaultAttempts : step.Attempts);
            if (!result.IsSuccess)
            {
                break;
            }
        }

        vm.Srcu.ReadExit(actor);
        target.Mutex.Exit(actor);
        return result;
    }

    private static StepResult FaultOnce(Vm vm, Vcpu vcpu, Actor actor, Gpa address, ulong error, int attempts)
    {
        Spin spin = default;
        while (true)
        {
            vm.Mmu.FreeObsoleteRoots(vcpu.Mmu);
            if (!vm.Mmu.ReloadRoots(vcpu.Mmu))
            {
                return StepResult.Of(Errno.ENOMEM);
            }

            vcpu.Mmu.MemoryFault = default;
            FaultResult result = vm.Mmu.HandleFault(vcpu.Mmu, address, error);
            if (result != FaultResult.Retry || --attempts == 0)
            {
                return StepResult.Of(result, vcpu.Mmu.MemoryFault.Size != 0);
            }

            spin.Once(actor, ObjectId.Lock("mmu_lock", (ulong)vm.Number));
        }
    }

    private StepResult Map(ScenarioVmState state, ScenarioStep step, Actor actor, int vcpu)
    {
        if (step.Has(StepWords.Accepted))
        {
            return RunGuest(state, step with { Kind = StepKind.Write }, actor, vcpu);
        }

        StepResult mapped = Fault(state, step with { Attempts = 100 }, actor, Math.Max(vcpu, 0));
        return mapped.IsSuccess ? StepResult.Ok : mapped;
    }

    private ulong[] Operands(ScenarioVmState own, ScenarioStep step)
    {
        ulong[] values = [0, 0, 0, 0];
        for (int i = 0; i < step.Operands.Count; i++)
        {
            ScenarioOperand operand = step.Operands[i];
            ScenarioVmState state = operand.Vm == 0 ? own : StateOf(operand.Vm);
            values[i] = operand.Kind switch
            {
                OperandKind.Tdr => state.Vm.Td!.Tdr.Value,
                OperandKind.Tdvpr => state.Vm.VcpuOf((int)operand.Number).Tdvpr.Value,
                OperandKind.Gpa => (operand.Number << 12) | (uint)operand.Level.Tdx,
                OperandKind.Page => state.SlotAt(new Gfn(operand.Number)) is { File: { } file } slot ? file.Peek(new Gfn(operand.Number) - slot.Declared.Range.Start)?.Value ?? 0 : 0,
                _ => operand.Number,
            };
        }

        return values;
    }
}
