namespace Tdp.Harness.Scenarios;

/// <summary>The BUSY answers that a scenario declares. A second BUSY with every vCPU locked out is never injected (decisions D34, I29).</summary>
internal sealed class ScenarioBusyInjector : IBusyInjector
{
    private readonly IReadOnlyList<ScenarioBusy> _rules;
    private readonly int[][] _left;
    private readonly SeedStream[] _streams;
    private readonly SyncGate _gate = new();
    private readonly Func<bool> _isLockedOut;

    public ScenarioBusyInjector(IReadOnlyList<ScenarioBusy> rules, int processors, ulong seed, Func<bool> isLockedOut)
    {
        _rules = rules;
        _isLockedOut = isLockedOut;
        _left = new int[rules.Count][];
        for (int i = 0; i < rules.Count; i++)
        {
            _left[i] = new int[rules[i].Leaves.Count];
            Array.Fill(_left[i], rules[i].Times);
        }

        _streams = new SeedStream[processors];
        for (int i = 0; i < processors; i++)
        {
            _streams[i] = new SeedStream(seed, "busy", (ulong)i);
        }
    }

    /// <inheritdoc/>
    public bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
    {
        status = default;
        bool removes = leaf is TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_TRACK or TdhLeaf.MEM_PAGE_REMOVE;
        if (removes && _isLockedOut())
        {
            return false;
        }

        bool hit = false;
        for (int i = 0; i < _rules.Count && !hit; i++)
        {
            for (int j = 0; j < _rules[i].Leaves.Count && !hit; j++)
            {
                hit = _rules[i].Leaves[j] == leaf && (_rules[i].Times > 0 ? Take(ref _left[i][j]) : _streams[lp.Id].Below(1000) < (ulong)_rules[i].PerMille);
            }
        }

        status = TdxStatus.OPERAND_BUSY | (leaf is TdhLeaf.MEM_TRACK ? OperandId.TD_EPOCH : OperandId.SEPT_TREE);
        return hit;
    }

    private bool Take(ref int left)
    {
        using (_gate.Hold())
        {
            return left > 0 && left-- > 0;
        }
    }
}
