using System.Security.Cryptography;

namespace Tdp.Module;

// TDH.MNG.INIT (tdx-module 4.6).
public sealed partial class TdxModule
{
    private const ulong TscUnit = 25_000_000;
    private const ulong XfamOfProcessor = TdParameters.XfamFixed0;

    private TdxStatus MngInit(LpContext ctx, ref SeamRegisters r)
    {
        ulong tdr = r.Rcx;
        ulong parameters = r.Rdx;
        r.Rcx = 0;
        TdxStatus status = EnterTdAlone(ctx, tdr, OperandId.RCX, OpStates.Uninitialized, out MemGate gate);
        if (status.IsError)
            return status;
        if (!IsSharedHpa(parameters, TdParameters.Bytes))
        {
            status = TdxStatus.OPERAND_INVALID | OperandId.RDX;
        }
        else
        {
            // A refused TD_PARAMS leaves what was written before it was looked at (tdx-module 4.6).
            gate.Td.Epoch.Write(EpochWord.Initial);

            // The host may write the page while it is read: a copy is judged and kept.
            Span<byte> copy = stackalloc byte[TdParameters.Bytes];
            copy.Clear();
            ShowControlPage(WithoutHkid(parameters));
            if (Options.MemoryIsFlat || !IsPrivatePage(WithoutHkid(parameters)))
                _memory.Bytes(new Hpa(WithoutHkid(parameters)), TdParameters.Bytes).CopyTo(copy);
            status = TdParameters.Parse(copy, XfamOfProcessor, Machine.Description.PhysicalAddressBits, out TdParameters? accepted, out ulong? leaf);
            r.Rcx = leaf ?? 0;
            if (accepted is not null)
                Initialize(ctx, gate.Td, accepted);
        }

        Leave(ctx, ref gate);
        return status;
    }

    private void Initialize(LpContext ctx, TdControl td, TdParameters parameters)
    {
        td.Parameters = parameters;
        td.RootLevel = parameters.RootLevel;
        td.Eptp = td.Pages[3].Value | parameters.EptpControls;
        td.GpaWidth = parameters.HasGpaw ? 52 : 48;
        td.AliasBit = parameters.HasGpaw ? AliasBit.Bit51 : AliasBit.Bit47;
        td.IllegalGpaBits = td.AliasBit.GpaMask | (parameters.HasGpaw ? 0 : 0xFUL << 48) | (0xFFFUL << 52);
        td.TdCtls.Write((parameters.Attributes & TdParameters.SeptVeDisable) != 0 ? 1UL : 0);
        td.NotifyEnables.Write(0);
        td.HpLockTimeout.Write((uint)Machine.Description.TscHz);
        td.HasTeeInfoHash.Write(0);
        td.TscMultiplier = (ulong)(((UInt128)((ulong)parameters.TscFrequency * TscUnit) << 48) / Machine.Description.TscHz);
        ulong now = (ulong)(((UInt128)ctx.Lp.ReadTime() * td.TscMultiplier) >> 48);
        td.TscOffset = unchecked(0UL - now);
        td.Cpuid = new CpuidTable(parameters);
        td.MsrBitmap = MsrPolicy.BuildBitmap(parameters);
        td.VcpuCounts.Write(0);
        td.MrtdStream?.Dispose();
        td.MrtdStream = IncrementalHash.CreateHash(HashAlgorithmName.SHA384);
        Array.Clear(td.Mrtd);
        Array.Clear(td.Rtmr);
        td.SetOpState(TdOpState.INITIALIZED);
    }
}
