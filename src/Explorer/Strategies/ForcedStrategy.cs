namespace Tdp.Explorer;

/// <summary>Takes the decisions of a recorded execution again, and gives up where the record ends.</summary>
internal sealed class ForcedStrategy : SearchStrategy
{
    private int[] _choices = new int[256];
    private int _count;
    private bool _isExhaustive;

    public override string Name => "forced";

    public override bool IsExhaustive => _isExhaustive;

    /// <summary>Follows the decisions of a record that <paramref name="original"/> took.</summary>
    public void Follow(ExecutionRecord record, SearchStrategy original)
    {
        _isExhaustive = original.IsExhaustive;
        _count = 0;
        for (int i = 0; i < record.Count; i++)
        {
            int decision = record[i].Decision;
            if (decision < 0)
                continue;
            while (decision >= _choices.Length)
                Array.Resize(ref _choices, 2 * _choices.Length);
            _choices[decision] = record[i].Lane;
            _count = Math.Max(_count, decision + 1);
        }
    }

    public override bool Begin(Engine engine, ulong seed) => true;

    public override int Choose(Engine engine, uint enabled, int current)
    {
        if (engine.Decision >= _count)
            return Abandon;
        int choice = _choices[engine.Decision];
        if ((enabled >> choice & 1) == 0)
            throw new ExplorationException($"NONDETERMINISM: {engine.Lane(choice).Name} cannot run at decision {engine.Decision}, where it ran before");
        return choice;
    }
}
