using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace Tdp.Module;

// TDG.MR.RTMR.EXTEND, TDG.MR.REPORT, TDG.MR.VERIFYREPORT (tdx-module 9.2 to 9.4).
public sealed partial class TdxModule
{
    private const int RtmrBytes = 48;
    private const int RtmrCount = 4;
    private const int ReportBytes = 1024;
    private const int MacStructBytes = 256;
    private const int MacedBytes = 224;
    private const int MacBytes = 32;
    private const int TcbInfoOffset = 256;
    private const int TdInfoOffset = 512;
    private readonly byte[] _reportKey = new byte[32];

    /// <summary>TDX report: type 0x81, the structure's first byte.</summary>
    private const byte ReportType = 0x81;

    private GuestCallEnd RtmrExtend(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r, out TdxStatus status)
    {
        GuestState state = vcpu.Vmcs.State;
        TdControl td = vcpu.Td;
        ulong gpa = state[Gpr.Rcx];
        ulong index = state[Gpr.Rdx];
        status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if ((gpa & 63) != 0 || !IsLegalPrivate(td, gpa))
            return GuestCallEnd.Answered;
        GuestCallEnd end = Reach(ctx, vcpu, gpa, write: false, ref r, out ulong address);
        if (end != GuestCallEnd.Answered)
            return end;
        status = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        if (index >= RtmrCount)
            return GuestCallEnd.Answered;
        TryLock rtmrLock = new(ref td.RtmrLock);
        LockAnswer answer = rtmrLock.TryExclusive(ctx.Slot, LockSide.Guest);
        status = BusyForGuest(answer, OperandId.RTMR);
        if (answer != LockAnswer.Taken)
            return GuestCallEnd.Answered;
        Span<byte> register = td.Rtmr.AsSpan((int)index * RtmrBytes, RtmrBytes);
        Span<byte> both = stackalloc byte[2 * RtmrBytes];
        register.CopyTo(both);
        _memory.Bytes(new Hpa(address), RtmrBytes).CopyTo(both[RtmrBytes..]);
        SHA384.HashData(both, register);
        td.HasTeeInfoHash.Write(0);
        rtmrLock.ReleaseExclusive();
        return GuestCallEnd.Answered;
    }

    private static TdxStatus BusyForGuest(LockAnswer answer, OperandId operand) => answer switch
    {
        LockAnswer.Taken => TdxStatus.SUCCESS,
        LockAnswer.Busy => TdxStatus.OPERAND_BUSY | operand,
        _ => TdxStatus.OPERAND_BUSY_HOST_PRIORITY | operand,
    };

    private GuestCallEnd MrReport(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r, out TdxStatus status)
    {
        GuestState state = vcpu.Vmcs.State;
        TdControl td = vcpu.Td;
        ulong target = state[Gpr.Rcx];
        ulong data = state[Gpr.Rdx];
        status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if ((target & (ReportBytes - 1)) != 0)
            return GuestCallEnd.Answered;
        status = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        if ((data & 63) != 0 || !IsLegalGuest(td, data))
            return GuestCallEnd.Answered;
        GuestCallEnd end = Reach(ctx, vcpu, data, write: false, ref r, out ulong dataAt);
        if (end != GuestCallEnd.Answered)
            return end;
        status = TdxStatus.OPERAND_INVALID | OperandId.R8;
        if (state[Gpr.R8] != 0)
            return GuestCallEnd.Answered;
        TryLock rtmrLock = new(ref td.RtmrLock);
        LockAnswer answer = rtmrLock.TryShared(ctx.Slot, LockSide.Guest, out int hold);
        status = BusyForGuest(answer, OperandId.RTMR);
        if (answer != LockAnswer.Taken)
            return GuestCallEnd.Answered;
        end = MakeReport(ctx, vcpu, dataAt, target, ref r, ref status);
        rtmrLock.ReleaseShared(ctx.Slot, hold);
        return end;
    }

    // Under the RTMR lock, shared.
    private GuestCallEnd MakeReport(LpContext ctx, TdVcpu vcpu, ulong dataAt, ulong target, ref SeamRegisters r, ref TdxStatus status)
    {
        TdControl td = vcpu.Td;

        // Hashing TDINFO takes long enough to look for an interrupt first; until the next RTMR.EXTEND nobody does it again.
        if (td.HasTeeInfoHash.Read() == 0)
        {
            if (IsInterruptPending(ctx.Lp))
                return GuestCallEnd.Again;
            td.HasTeeInfoHash.Write(1);
        }

        Span<byte> report = stackalloc byte[ReportBytes];
        Span<byte> data = stackalloc byte[64];
        data.Clear();
        if (!IsLost(td, vcpu.Vmcs.State[Gpr.Rdx], dataAt))
            _memory.Bytes(new Hpa(dataAt), data.Length).CopyTo(data);
        BuildReport(td, data, report);

        // Only now is it looked at where the report goes.
        if (!IsLegalGuest(td, target))
        {
            status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
            return GuestCallEnd.Answered;
        }

        GuestCallEnd end = Reach(ctx, vcpu, target, write: true, ref r, out ulong targetAt);
        if (end == GuestCallEnd.Answered && !IsLost(td, target, targetAt))
        {
            report.CopyTo(_memory.Bytes(new Hpa(targetAt), ReportBytes));
            Machine.Ledger.ContentChanged(new Hpa(targetAt & ~0xFFFUL));
        }

        return end;
    }

    // A host that maps a page of the module as shared memory: with the host's key it reads as zeros, and what is written poisons it.
    private bool IsLost(TdControl td, ulong gpa, ulong address)
    {
        if ((gpa & td.AliasBit.GpaMask) == 0 || !IsPrivatePage(address))
            return false;
        Poison(address, "TDG.MR.REPORT through the shared EPT");
        return true;
    }

    private static bool IsLegalGuest(TdControl td, ulong gpa) => gpa >> 52 == 0 && (gpa & td.IllegalGpaBits & ~td.AliasBit.GpaMask) == 0;

    private void BuildReport(TdControl td, ReadOnlySpan<byte> data, Span<byte> report)
    {
        report.Clear();
        report[0] = ReportType;
        Span<byte> tcb = report.Slice(TcbInfoOffset, 256);

        // VALID: SVN, MRSEAM, MRSIGNERSEAM, ATTRIBUTES. The simulated module has no signer.
        BinaryPrimitives.WriteUInt64LittleEndian(tcb, 0x301FF);
        tcb[8] = 5;
        tcb[9] = 1;
        SHA384.HashData(Encoding.ASCII.GetBytes("TdpMmu simulated TDX module 1.5"), tcb[24..72]);
        WriteTdInfo(td, report.Slice(TdInfoOffset, 512));
        SHA384.HashData(tcb, report[32..80]);
        SHA384.HashData(report.Slice(TdInfoOffset, 512), report[80..128]);
        data.CopyTo(report[128..192]);
        HMACSHA256.HashData(_reportKey, report[..MacedBytes], report.Slice(MacedBytes, MacBytes));
    }

    private static void WriteTdInfo(TdControl td, Span<byte> info)
    {
        TdParameters parameters = td.Parameters;
        BinaryPrimitives.WriteUInt64LittleEndian(info, parameters.Attributes);
        BinaryPrimitives.WriteUInt64LittleEndian(info[8..], parameters.Xfam);
        td.Mrtd.CopyTo(info[16..]);
        parameters.MrConfigId.CopyTo(info[64..]);
        parameters.MrOwner.CopyTo(info[112..]);
        parameters.MrOwnerConfig.CopyTo(info[160..]);
        td.Rtmr.CopyTo(info[208..]);
    }

    private GuestCallEnd VerifyReport(LpContext ctx, TdVcpu vcpu, ref SeamRegisters r, out TdxStatus status)
    {
        ulong gpa = vcpu.Vmcs.State[Gpr.Rcx];
        status = TdxStatus.OPERAND_INVALID | OperandId.RCX;
        if ((gpa & (MacStructBytes - 1)) != 0 || !IsLegalPrivate(vcpu.Td, gpa))
            return GuestCallEnd.Answered;
        GuestCallEnd end = Reach(ctx, vcpu, gpa, write: false, ref r, out ulong address);
        if (end != GuestCallEnd.Answered)
            return end;
        Span<byte> report = _memory.Bytes(new Hpa(address), MacStructBytes);
        Span<byte> mac = stackalloc byte[MacBytes];
        HMACSHA256.HashData(_reportKey, report[..MacedBytes], mac);

        // It checks only this structure: the caller compares the two hashes in it with the rest of the report.
        status = report.Slice(16, 16).IndexOfAnyExcept((byte)0) >= 0 ? TdxStatus.INVALID_CPUSVN
            : report[0] != ReportType || !CryptographicOperations.FixedTimeEquals(mac, report.Slice(MacedBytes, MacBytes)) ? TdxStatus.INVALID_REPORTMACSTRUCT
            : TdxStatus.SUCCESS;
        return GuestCallEnd.Answered;
    }

    // The platform's secret: of this machine and this run, never seen by a guest or a host.
    private void InitializeReportKey() => new SeedStream(Machine.Seed, "entropy", 1).Fill(_reportKey);
}
