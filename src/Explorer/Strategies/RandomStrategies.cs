using System.Numerics;

namespace Tdp.Explorer;

/// <summary>A random walk: stays with the running actor with probability 1 - p, else any enabled one (race-explorer 7.2, 7.3). p = 1 is the uniform walk.</summary>
internal sealed class RandomWalk(double change = 1) : SearchStrategy
{
    private readonly uint _change = (uint)(change * uint.MaxValue);
    private ScheduleRandom _random;

    public override string Name => change >= 1 ? "random" : string.Create(System.Globalization.CultureInfo.InvariantCulture, $"sticky({change})");

    public override bool Begin(Engine engine, ulong seed)
    {
        _random = new ScheduleRandom(seed);
        return true;
    }

    public override int Choose(Engine engine, uint enabled, int current)
    {
        if (BitOperations.IsPow2(enabled))
            return BitOperations.TrailingZeroCount(enabled);
        if (_change != uint.MaxValue && current >= 0 && (enabled >> current & 1) != 0 && (uint)(_random.Next() >> 32) >= _change)
            return current;
        return _random.OneOf(enabled);
    }
}
