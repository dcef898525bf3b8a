namespace Tdp.Explorer;

/// <summary>
/// Random numbers for schedules: splitmix64, seeded by hash of (master seed, scenario, execution), so that neighbouring seeds give unrelated schedules
/// (race-explorer 4.7).
/// </summary>
internal struct ScheduleRandom
{
    private ulong _state;

    public ScheduleRandom(ulong seed) => _state = seed;

    /// <summary>The seed of one execution.</summary>
    public static ulong SeedOf(ulong master, ulong scenario, ulong execution) => Mix(Mix(Mix(master) ^ scenario) ^ execution);

    /// <summary>FNV-1a over the characters of a text.</summary>
    public static ulong HashOf(string text)
    {
        ulong hash = 0xCBF29CE484222325;
        foreach (char c in text)
            hash = (hash ^ c) * 0x100000001B3;
        return hash;
    }

    public static ulong Mix(ulong value) => Finish(value + 0x9E3779B97F4A7C15);

    public ulong Next()
    {
        _state += 0x9E3779B97F4A7C15;
        return Finish(_state);
    }

    /// <summary>A number in [0, bound).</summary>
    public int Below(int bound) => (int)(((Next() >> 32) * (ulong)(uint)bound) >> 32);

    /// <summary>One of the set bits of a mask that is not 0.</summary>
    public int OneOf(uint mask)
    {
        for (int skip = Below(System.Numerics.BitOperations.PopCount(mask)); skip > 0; skip--)
            mask &= mask - 1;
        return System.Numerics.BitOperations.TrailingZeroCount(mask);
    }

    private static ulong Finish(ulong z)
    {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }
}
