namespace Tdp.Platform;

/// <summary>
/// A stream of random numbers derived from one 64-bit master seed: splitmix64 over (master, hash of the purpose, index) (decisions section 8).
/// Neighbouring seeds give unrelated streams. Used by one actor at a time.
/// </summary>
public sealed class SeedStream
{
    private ulong _state;

    /// <summary>Makes a stream.</summary>
    /// <param name="master">The run's master seed.</param>
    /// <param name="purpose">One of schedule, program, rdrand, tlb, entropy, busy, interrupt, payload.</param>
    /// <param name="index">Number of the stream within its purpose, such as the vCPU.</param>
    public SeedStream(ulong master, string purpose, ulong index = 0)
    {
        ulong hash = 0xCBF29CE484222325;
        foreach (char c in purpose)
            hash = (hash ^ c) * 0x100000001B3;
        _state = Mix(Mix(Mix(master) ^ hash) ^ index);
    }

    /// <summary>The next 64 bits.</summary>
    public ulong Next()
    {
        _state += 0x9E3779B97F4A7C15;
        return Finish(_state);
    }

    /// <summary>A number in [0, <paramref name="bound"/>); 0 when the bound is 0.</summary>
    public ulong Below(ulong bound) => bound == 0 ? 0 : (ulong)(((UInt128)Next() * bound) >> 64);

    /// <summary>A number in [<paramref name="low"/>, <paramref name="high"/>], both included.</summary>
    public int Between(int low, int high) => low + (int)Below((ulong)(high - low + 1));

    /// <summary>True with the given probability, 0..1.</summary>
    public bool Chance(double probability) => (Next() >> 11) * (1.0 / (1UL << 53)) < probability;

    /// <summary>Fills bytes.</summary>
    public void Fill(Span<byte> bytes)
    {
        while (bytes.Length > 0)
        {
            ulong word = Next();
            for (int i = 0; i < 8 && bytes.Length > 0; i++, word >>= 8, bytes = bytes[1..])
                bytes[0] = (byte)word;
        }
    }

    private static ulong Mix(ulong value) => Finish(value + 0x9E3779B97F4A7C15);

    private static ulong Finish(ulong z)
    {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }
}
