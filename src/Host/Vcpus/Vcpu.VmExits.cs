using System.Buffers.Binary;

namespace Tdp.Host;

/// <content>Exits of an ordinary VM's vCPU (decisions D35: ports, CPUID, HLT, MOV-form MMIO, basic MSRs; anything else is one clear error).</content>
public sealed partial class Vcpu
{
    private MmioInstruction _mmio;

    private Errno HandleVmExit(Actor actor, LogicalProcessor lp)
    {
        Vmcs vmcs = Vmcs!;
        ref VmExit exit = ref vmcs.Exit;
        if (vmcs.PmlIndex != EmptyLog)
            EmptyPageModificationLog(actor, vmcs);
        switch (exit.Reason)
        {
            case ExitReason.EptViolation:
                _statistics.SharedFaults++;
                FaultResult violated = Vm.Mmu.HandleFault(Mmu, new Gpa(exit.Gpa), ErrorCodeOf(exit.Qualification));
                return violated switch
                {
                    FaultResult.Emulate => EmulateMmio(exit.Gpa),
                    FaultResult.WriteProtected => EmulateTrackedWrite(actor, exit.Gpa),
                    _ => AfterFault(actor, violated, exit.Reason, exit.Gpa),
                };
            case ExitReason.EptMisconfiguration:
                _statistics.SharedFaults++;
                FaultResult found = Vm.Mmu.HandleFault(Mmu, new Gpa(exit.Gpa), PfErr.Rsvd | PfErr.GuestFinal);
                return found == FaultResult.Emulate ? EmulateMmio(exit.Gpa) : AfterFault(actor, found, exit.Reason, exit.Gpa);
            case ExitReason.PageModificationLogFull:
                // Emptied above, as at every exit.
                ResetProgress();
                return Errno.None;
            case ExitReason.ExternalInterrupt:
                if (lp.PendingInterrupt.Read() >= 0)
                    lp.PendingInterrupt.Write(-1);
                return Errno.None;
            case ExitReason.ExceptionOrNmi:
                lp.PendingNmi.Write(false);
                return Errno.None;
            case ExitReason.IoInstruction:
                ResetProgress();
                return HandleIo(vmcs);
            case ExitReason.Cpuid:
                GuestState state = vmcs.State;
                HostCpuid.Values values = HostCpuid.Query((uint)state[Gpr.Rax], (uint)state[Gpr.Rcx], Id, Vm.Vcpus.Length);
                (state[Gpr.Rax], state[Gpr.Rbx], state[Gpr.Rcx], state[Gpr.Rdx]) = (values.Eax, values.Ebx, values.Ecx, values.Edx);
                return Advance(vmcs);
            case ExitReason.Hlt:
                RunState.Exit = UserExit.Hlt;
                RunState.Flags = (vmcs.State.Rflags & (1 << 9)) == 0 ? 1UL : 0;
                return Advance(vmcs);
            case ExitReason.Rdmsr:
                return HandleRdmsr(vmcs);
            case ExitReason.Wrmsr:
                return HandleWrmsr(vmcs);
            case ExitReason.Vmcall:
                vmcs.State[Gpr.Rax] = unchecked((ulong)-1000L);
                return Advance(vmcs);
            case ExitReason.Invd or ExitReason.Wbinvd or ExitReason.Monitor or ExitReason.Mwait:
                return Advance(vmcs);
            case ExitReason.TripleFault:
                RunState.Exit = UserExit.Shutdown;
                return Errno.None;
            case ExitReason.SimulatorScriptEnd:
                RunState.Exit = UserExit.ScriptEnd;
                return Errno.None;
            default:
                return InternalError(
                    $"exit {(uint)exit.Reason} ({exit.Reason}) at RIP 0x{vmcs.State.Rip:x} is not emulated in an ordinary VM", (ulong)exit.Reason);
        }
    }

    private static Errno Advance(Vmcs vmcs)
    {
        vmcs.State.Rip += vmcs.Exit.InstructionLength;
        vmcs.State.StiShadow = false;
        vmcs.State.MovSsShadow = false;
        return Errno.None;
    }

    // Qualification: size - 1 in 2:0, IN 3, string 4, REP 5, port 31:16.
    private Errno HandleIo(Vmcs vmcs)
    {
        ulong qualification = vmcs.Exit.Qualification;
        if ((qualification & (1 << 4)) != 0)
            return InternalError($"string I/O at RIP 0x{vmcs.State.Rip:x} is not emulated in an ordinary VM", (ulong)ExitReason.IoInstruction);
        RunState.Exit = UserExit.Io;
        RunState.Size = (int)(qualification & 7) + 1;
        RunState.IsWrite = (qualification & (1 << 3)) == 0;
        RunState.Port = (ushort)(qualification >> 16);
        RunState.Value = RunState.IsWrite ? Truncate(vmcs.State[Gpr.Rax], RunState.Size) : 0;
        _completion = RunState.IsWrite ? Completion.None : Completion.IoRead;
        return Advance(vmcs);
    }

    private Errno HandleRdmsr(Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        if (!Msrs!.TryRead((uint)state[Gpr.Rcx], out ulong value))
            return InjectGeneralProtection(vmcs);
        state[Gpr.Rax] = (uint)value;
        state[Gpr.Rdx] = value >> 32;
        return Advance(vmcs);
    }

    private Errno HandleWrmsr(Vmcs vmcs)
    {
        GuestState state = vmcs.State;
        ulong value = (uint)state[Gpr.Rax] | (state[Gpr.Rdx] << 32);
        return Msrs!.TryWrite((uint)state[Gpr.Rcx], value) ? Advance(vmcs) : InjectGeneralProtection(vmcs);
    }

    private static Errno InjectGeneralProtection(Vmcs vmcs)
    {
        vmcs.EntryEvent = VmEvent.Exception(13, 0);
        return Errno.None;
    }

    // The instruction is fetched through the guest's own page tables and decoded; MOV forms only.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno EmulateMmio(ulong gpa)
    {
        _statistics.MmioFaults++;
        ResetProgress();
        Vmcs vmcs = Vmcs!;
        if (!MmioInstruction.TryDecode(Vm, vmcs, out _mmio, out string? problem))
            return InternalError($"MMIO at GPA 0x{gpa:x}: {problem}", (ulong)ExitReason.EptMisconfiguration);
        if ((gpa & 0xFFF) + (ulong)_mmio.Size > 0x1000)
            return InternalError($"MMIO at GPA 0x{gpa:x} crosses a page, at RIP 0x{vmcs.State.Rip:x}", (ulong)ExitReason.EptMisconfiguration);
        RunState.Exit = UserExit.Mmio;
        RunState.Gpa = gpa;
        RunState.Size = _mmio.Size;
        RunState.IsWrite = _mmio.IsWrite;
        RunState.Value = _mmio.IsWrite ? Truncate(_mmio.ValueToWrite(vmcs.State), _mmio.Size) : 0;
        vmcs.State.Rip += (ulong)_mmio.Length;
        vmcs.State.StiShadow = false;
        vmcs.State.MovSsShadow = false;
        _completion = _mmio.IsWrite ? Completion.None : Completion.MmioRead;
        return Errno.None;
    }

    // The page is write-tracked and stays read-only: the host makes the write itself and tells who wanted to know (tdp-mmu 5.2 step 4).
    [MethodImpl(MethodImplOptions.NoInlining)]
    private Errno EmulateTrackedWrite(Actor actor, ulong gpa)
    {
        Vmcs vmcs = Vmcs!;
        if (!MmioInstruction.TryDecode(Vm, vmcs, out MmioInstruction write, out string? problem))
            return InternalError($"a write to the tracked page at GPA 0x{gpa:x}: {problem}", (ulong)ExitReason.EptViolation);
        if (!write.IsWrite || (gpa & 0xFFF) + (ulong)write.Size > 0x1000)
            return InternalError($"the write to the tracked page at GPA 0x{gpa:x} by RIP 0x{vmcs.State.Rip:x} is not emulated: one page only", (ulong)ExitReason.EptViolation);
        var gfn = new Gfn(gpa >> 12);
        Memslot? slot = Vm.SlotsOf(Mmu.IsSmm ? 1 : 0).Active.Find(gfn);
        Span<byte> bytes = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, write.ValueToWrite(vmcs.State));
        if (slot is null || Vm.UserMemory.Write(actor, slot.HvaOf(gfn) + (gpa & 0xFFF), bytes[..write.Size]) != Errno.None)
            return Errno.EFAULT;
        if (slot.Mmu.IsDirtyLogged)
            Vm.DirtyLog.Mark(actor, slot.Mmu, gfn);
        Vm.WriteTracking.Wrote(this, gpa, write.Size);
        _statistics.TrackedWrites++;
        ResetProgress();
        vmcs.State.Rip += (ulong)write.Length;
        vmcs.State.StiShadow = false;
        vmcs.State.MovSsShadow = false;
        return Errno.None;
    }

    private Errno CompleteEmulation(Completion completion)
    {
        GuestState state = Vmcs!.State;
        ulong value = Truncate(RunState.Value, RunState.Size);
        if (completion == Completion.MmioRead)
        {
            _mmio.StoreRead(state, value);
            return Errno.None;
        }

        // IN merges AL and AX, and zero-extends EAX.
        state[Gpr.Rax] = RunState.Size == 4 ? value : (state[Gpr.Rax] & ~((1UL << (8 * RunState.Size)) - 1)) | value;
        return Errno.None;
    }
}
