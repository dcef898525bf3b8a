using System.Buffers.Binary;

namespace Tdp.Host;

/// <content>TDG.VP.VMCALL, the host's half (td-guest 6.3; tdp-mmu 8.7). Only registers that the guest exposed arrive, and only those return to it.</content>
public sealed partial class Vcpu
{
    private const ulong VmcallSuccess = 0;
    private const ulong VmcallRetry = 1;
    private const ulong VmcallInvalidOperand = 0x8000_0000_0000_0000;
    private const ulong VmcallAlignError = 0x8000_0000_0000_0002;
    private const ulong VmcallUnsupported = 0x8000_0000_0000_0003;
    private const ulong MapChunk = 0x20_0000;
    private const ulong HypercallPrivate = 0x10;
    private ulong _mapNext;
    private ulong _mapEnd;
    private byte _eventNotifyVector;

    /// <summary>Vector that the guest wants for event notifications; 0 for none (TDVMCALL SetupEventNotifyInterrupt).</summary>
    public byte EventNotifyVector => _eventNotifyVector;

    /// <summary>KVM_CAP_EXIT_HYPERCALL for MapGPA: off, the guest is told that the function does not exist.</summary>
    public bool ExitsForMapGpa { get; set; } = true;

    private Errno HandleVmcall(Actor actor)
    {
        ref SeamRegisters r = ref _registers;
        if (r.R10 != 0)
            return VendorCall();
        switch (r.R11)
        {
            case (ulong)ExitReason.IoInstruction:
                return VmcallIo();
            case (ulong)ExitReason.EptViolation:
                return VmcallMmio();
            case (ulong)ExitReason.Cpuid:
                HostCpuid.Values cpuid = HostCpuid.Query((uint)r.R12, (uint)r.R13, Id, Vm.Vcpus.Length);
                (r.R12, r.R13, r.R14, r.R15) = (cpuid.Eax, cpuid.Ebx, cpuid.Ecx, cpuid.Edx);
                return Answer(VmcallSuccess);
            case (ulong)ExitReason.Hlt:
                RunState.Exit = UserExit.Hlt;
                RunState.Flags = r.R12 & 1;
                _completion = Completion.TdNothing;
                return Errno.None;
            case (ulong)ExitReason.Rdmsr:
                bool isReadable = Msrs!.TryRead((uint)r.R12, out ulong value);
                r.R11 = isReadable ? value : r.R11;
                return Answer(isReadable ? VmcallSuccess : VmcallInvalidOperand);
            case (ulong)ExitReason.Wrmsr:
                return Answer(Msrs!.TryWrite((uint)r.R12, r.R13) ? VmcallSuccess : VmcallInvalidOperand);
            case 0x10000:
                if (r.R12 > 1)
                    return Answer(VmcallInvalidOperand);
                (r.R11, r.R12, r.R13, r.R14) = (0, 0, 0, 0);
                return Answer(VmcallSuccess);
            case 0x10001:
                return MapGpa(actor);
            case 0x10002:
                return GetQuote();
            case 0x10003:
                return ReportFatalError();
            case 0x10004:
                if (r.R12 is < 32 or > 255)
                    return Answer(VmcallInvalidOperand);
                _eventNotifyVector = (byte)r.R12;
                return Answer(VmcallSuccess);
            default:
                // WBINVD (54) and PCONFIG (65) among them.
                return Answer(VmcallUnsupported);
        }
    }

    private Errno Answer(ulong status)
    {
        _registers.R10 = status;
        return Errno.None;
    }

    // R10 != 0: a hypercall of KVM's own. None of them exists for this guest: -KVM_ENOSYS.
    private Errno VendorCall() => Answer(unchecked((ulong)-1000L));

    private Errno VmcallIo()
    {
        ref SeamRegisters r = ref _registers;
        if (r.R12 is not (1 or 2 or 4) || r.R13 > 1)
            return Answer(VmcallInvalidOperand);
        RunState.Exit = UserExit.Io;
        RunState.Size = (int)r.R12;
        RunState.IsWrite = r.R13 == 1;
        RunState.Port = (ushort)r.R14;
        RunState.Value = RunState.IsWrite ? Truncate(r.R15, (int)r.R12) : 0;
        _completion = RunState.IsWrite ? Completion.TdNothing : Completion.TdIoRead;
        return Errno.None;
    }

    private Errno VmcallMmio()
    {
        ref SeamRegisters r = ref _registers;
        if (r.R12 is not (1 or 2 or 4 or 8) || r.R13 > 1)
            return Answer(VmcallInvalidOperand);

        // First and last byte must be shared, or the host would look at private memory (td-guest 6.3).
        if (!IsSharedRange(r.R14, r.R12))
            return Answer(VmcallInvalidOperand);
        RunState.Exit = UserExit.Mmio;
        RunState.Size = (int)r.R12;
        RunState.IsWrite = r.R13 == 1;
        RunState.Gpa = r.R14 & ~Vm.AliasBit.GpaMask;
        RunState.Value = RunState.IsWrite ? Truncate(r.R15, (int)r.R12) : 0;
        _completion = RunState.IsWrite ? Completion.TdNothing : Completion.TdMmioRead;
        return Errno.None;
    }

    private bool IsSharedRange(ulong gpa, ulong bytes) =>
        gpa + bytes > gpa && IsLegal(gpa) && IsLegal(gpa + bytes - 1)
        && Vm.AliasBit.Of(new Gpa(gpa)) == Alias.Shared && Vm.AliasBit.Of(new Gpa(gpa + bytes - 1)) == Alias.Shared;

    private bool IsLegal(ulong gpa) => gpa >> Vm.GpaWidth == 0;

    // Checks in KVM's order; then user space converts chunk by chunk (tdp-mmu 8.7).
    private Errno MapGpa(Actor actor)
    {
        ref SeamRegisters r = ref _registers;
        ulong gpa = r.R12, size = r.R13;
        if (!ExitsForMapGpa)
            return Answer(VmcallUnsupported);
        bool isLegal = size != 0 && gpa + size > gpa && IsLegal(gpa) && IsLegal(gpa + size - 1)
            && Vm.AliasBit.Of(new Gpa(gpa)) == Vm.AliasBit.Of(new Gpa(gpa + size - 1));
        r.R11 = gpa;
        if (!isLegal)
            return Answer(VmcallInvalidOperand);
        if (((gpa | size) & 0xFFF) != 0)
            return Answer(VmcallAlignError);
        _mapNext = gpa;
        _mapEnd = gpa + size;
        return NextMapChunk();
    }

    private Errno NextMapChunk()
    {
        RunState.Exit = UserExit.Hypercall;
        RunState.Gpa = _mapNext & ~Vm.AliasBit.GpaMask;
        RunState.Length = Math.Min(_mapEnd - _mapNext, MapChunk) >> 12;
        RunState.Flags = Vm.AliasBit.Of(new Gpa(_mapNext)) == Alias.Private ? HypercallPrivate : 0;
        RunState.Result = 0;
        _completion = Completion.TdMapGpa;
        return Errno.None;
    }

    // The call is over and the guest goes on, or the next chunk goes to user space, or KVM_RUN fails with -EINVAL.
    private Errno CompleteMapGpa()
    {
        const ulong EAgain = 11, EInval = 22;
        _registers.R11 = _mapNext;
        switch (RunState.Result)
        {
            case 0:
                _mapNext += RunState.Length << 12;
                _registers.R11 = _mapNext;
                if (_mapNext >= _mapEnd)
                {
                    return Answer(VmcallSuccess);
                }

                if (_signal.Read() || Vm.Kernel.Processors.Of(Mmu.Actor).PendingInterrupt.Read() >= 0)
                {
                    // An event is pending: the guest goes on from here itself.
                    return Answer(VmcallRetry);
                }

                return NextMapChunk();
            case EAgain:
                return Answer(VmcallRetry);
            case EInval:
                return Answer(VmcallInvalidOperand);
            default:
                return Errno.EINVAL;
        }
    }

    private Errno GetQuote()
    {
        ref SeamRegisters r = ref _registers;
        if (r.R13 == 0 || ((r.R12 | r.R13) & 0xFFF) != 0 || !IsSharedRange(r.R12, r.R13))
            return Answer(VmcallInvalidOperand);
        RunState.Exit = UserExit.Tdx;
        RunState.Flags = r.R11;
        RunState.Gpa = r.R12 & ~Vm.AliasBit.GpaMask;
        RunState.Length = r.R13;
        RunState.Result = VmcallUnsupported;
        _completion = Completion.TdUserCall;
        return Errno.None;
    }

    private Errno ReportFatalError()
    {
        ref SeamRegisters r = ref _registers;
        RunState.Exit = UserExit.SystemEvent;
        RunState.Code = r.R12;
        Span<byte> text = RunState.Text;
        ReadOnlySpan<ulong> words = [r.R14, r.R15, r.Rbx, r.Rdi, r.Rsi, r.R8, r.R9, r.Rdx];
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(text[(8 * i)..], words[i]);
        _completion = Completion.TdNothing;
        return Errno.None;
    }

    // Before the next entry: user space's answer becomes the guest's registers.
    private Errno Complete()
    {
        Completion completion = _completion;
        _completion = Completion.None;
        switch (completion)
        {
            case Completion.None:
                return Errno.None;
            case Completion.TdNothing:
                return Answer(VmcallSuccess);
            case Completion.TdIoRead:
            case Completion.TdMmioRead:
                _registers.R11 = Truncate(RunState.Value, RunState.Size);
                return Answer(VmcallSuccess);
            case Completion.TdUserCall:
                return Answer(RunState.Result);
            case Completion.TdMapGpa:
                return CompleteMapGpa();
            default:
                return CompleteEmulation(completion);
        }
    }

    private static ulong Truncate(ulong value, int size) => size >= 8 ? value : value & ((1UL << (8 * size)) - 1);
}
