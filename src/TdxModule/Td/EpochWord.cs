namespace Tdp.Module;

/// <summary>
/// TD_EPOCH and REFCOUNT[2] in one word, so that the snapshot of tdx-module 6.4 is one load (decisions D15): epoch 31:0, counts 47:32 and 63:48. The
/// count of an epoch is the number of vCPUs that entered in it and have not left.
/// </summary>
internal static class EpochWord
{
    public const ulong Initial = 1;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Epoch(ulong word) => (uint)word;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Count(ulong word, ulong epoch) => (ushort)(word >> (32 + (16 * (int)(epoch & 1))));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong OneVcpu(ulong epoch) => 1UL << (32 + (16 * (int)(epoch & 1)));

    /// <summary>True when no processor can still use a translation older than the block at <paramref name="bepoch"/> (tdx-module 6.4).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsTracked(ulong word, ulong bepoch)
    {
        ulong epoch = Epoch(word);
        if ((bepoch >> 63) != 0)
            return false;
        return bepoch + 1 < epoch || (bepoch + 1 == epoch && Count(word, bepoch) == 0);
    }
}
