using System.Numerics;

namespace Tdp.Explorer;

/// <summary>
/// Every schedule with at most c preemptions, depth first: continue the running actor if it can go on, and spend a preemption only as an alternative. Exhausting it is a
/// statement: no failure with at most c preemptions (race-explorer 7.1).
/// </summary>
internal sealed class Sweep(int preemptions) : SearchStrategy
{
    private Choice[] _path = new Choice[64];
    private int _length;
    private int _depth;
    private bool _isDone;

    public override string Name => $"sweep({preemptions})";

    public override bool Begin(Engine engine, ulong seed)
    {
        _depth = 0;
        return !_isDone;
    }

    public override int Choose(Engine engine, uint enabled, int current)
    {
        if (_depth == _length)
            Extend(engine, enabled, current);
        ref Choice choice = ref _path[_depth++];
        return choice.Taken;
    }

    public override void End(Engine engine, ExecutionEnd end)
    {
        // The deepest place with something left to try.
        for (_length = _depth; _length > 0; _length--)
        {
            ref Choice choice = ref _path[_length - 1];
            if (choice.Left == 0)
                continue;
            choice.Taken = BitOperations.TrailingZeroCount(choice.Left);
            choice.Left &= choice.Left - 1;
            return;
        }

        _isDone = true;
    }

    public override void Restart()
    {
        _length = 0;
        _isDone = false;
    }

    private void Extend(Engine engine, uint enabled, int current)
    {
        if (_length == _path.Length)
            Array.Resize(ref _path, 2 * _length);
        bool canStay = current >= 0 && (enabled >> current & 1) != 0;
        int first = canStay ? current : BitOperations.TrailingZeroCount(enabled);
        uint left = canStay && engine.Preemptions >= preemptions ? 0 : enabled & ~(1u << first);
        _path[_length++] = new Choice { Taken = first, Left = left };
    }

    private struct Choice
    {
        public int Taken;
        public uint Left;
    }
}
