using System.Buffers.Binary;

namespace Tdp.Host;

/// <summary>
/// Writes the TDMR_INFO structures that TDH.SYS.CONFIG reads, into simulated memory: 64 bytes of base, size and PAMT areas, then up to 16 reserved areas
/// as (offset, size) (tdx-module 2.3). Each structure and the array of their addresses are 512-byte aligned.
/// </summary>
internal static class TdmrInfo
{
    public const int Alignment = 512;
    public const int MaxReserved = 16;
    public const int MaxTdmrs = 64;
    private const int PerFrame = 4096 / Alignment;

    /// <summary>Frames needed: one for the array, one for every eight structures.</summary>
    public static int FramesFor(int tdmrs) => 1 + ((tdmrs + PerFrame - 1) / PerFrame);

    /// <summary>Fills the frames; the first one gets the array.</summary>
    /// <returns>False when a TDMR has more reserved areas than the structure can hold (-ENOSPC).</returns>
    public static bool Write(PhysicalMemory memory, ReadOnlySpan<Hpa> frames, IReadOnlyList<TdmrDescription> tdmrs)
    {
        foreach (Hpa frame in frames)
            memory.Zero(frame);
        Span<byte> array = memory.Frame(frames[0]);
        for (int i = 0; i < tdmrs.Count; i++)
        {
            Hpa place = frames[1 + (i / PerFrame)] + (ulong)(i % PerFrame * Alignment);
            BinaryPrimitives.WriteUInt64LittleEndian(array[(8 * i)..], place.Value);
            if (!WriteOne(memory.Bytes(place, Alignment), tdmrs[i]))
                return false;
        }

        return true;
    }

    /// <summary>Bytes of the three PAMT areas of a TDMR.</summary>
    public static ulong PamtBytes(TdmrDescription tdmr) => tdmr.Pamt1G.Size + tdmr.Pamt2M.Size + tdmr.Pamt4K.Size;

    private static bool WriteOne(Span<byte> info, TdmrDescription tdmr)
    {
        if (tdmr.Reserved.Count > MaxReserved)
            return false;
        Put(info, 0, tdmr.Range.Base);
        Put(info, 8, tdmr.Range.Size);
        Put(info, 16, tdmr.Pamt1G.Base);
        Put(info, 24, tdmr.Pamt1G.Size);
        Put(info, 32, tdmr.Pamt2M.Base);
        Put(info, 40, tdmr.Pamt2M.Size);
        Put(info, 48, tdmr.Pamt4K.Base);
        Put(info, 56, tdmr.Pamt4K.Size);
        for (int i = 0; i < tdmr.Reserved.Count; i++)
        {
            Put(info, 64 + (16 * i), tdmr.Reserved[i].Base - tdmr.Range.Base);
            Put(info, 72 + (16 * i), tdmr.Reserved[i].Size);
        }

        return true;
    }

    private static void Put(Span<byte> info, int at, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(info[at..], value);
}
