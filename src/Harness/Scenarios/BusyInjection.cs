namespace Tdp.Harness.Scenarios;

/// <summary>
/// Makes the module answer BUSY although nobody holds the lock: as if another processor were inside. Calls that map may meet it always; calls that remove only on their first attempt, because a second BUSY with
/// every vCPU locked out is a dead VM by design (I29).
/// </summary>
/// <remarks>One seeded stream per processor, so what a processor meets does not depend on the others.</remarks>
internal sealed class BusyInjection : IBusyInjector
{
    private const int Stride = 16;
    private readonly Vm _vm;
    private readonly ulong _perMillion;
    private readonly SeedStream[] _streams;
    private readonly long[] _injected;

    public BusyInjection(Vm vm, ulong seed, int perMillion)
    {
        _vm = vm;
        _perMillion = (ulong)perMillion;
        int processors = vm.Kernel.Machine.Processors.Count;
        _streams = new SeedStream[processors];
        _injected = new long[(processors + 1) * Stride];
        for (int i = 0; i < processors; i++)
        {
            _streams[i] = new SeedStream(seed, "busy", (ulong)i);
        }
    }

    /// <summary>How many answers were injected. Exact at rest.</summary>
    public long Injected
    {
        get
        {
            long sum = 0;
            for (int i = Stride; i < _injected.Length; i += Stride)
            {
                sum += _injected[i];
            }

            return sum;
        }
    }

    /// <inheritdoc/>
    public bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
    {
        status = default;
        bool may = leaf switch
        {
            TdhLeaf.MEM_SEPT_ADD or TdhLeaf.MEM_PAGE_ADD or TdhLeaf.MEM_PAGE_AUG => true,
            TdhLeaf.MEM_RANGE_BLOCK or TdhLeaf.MEM_TRACK or TdhLeaf.MEM_PAGE_REMOVE => !_vm.WaitForSeptZap.Peek(),
            _ => false,
        };
        if (!may || _streams[lp.Id].Below(1_000_000) >= _perMillion)
        {
            return false;
        }

        _injected[(lp.Id + 1) * Stride]++;
        status = TdxStatus.OPERAND_BUSY | (leaf is TdhLeaf.MEM_TRACK ? OperandId.TD_EPOCH : OperandId.SEPT_TREE);
        return true;
    }
}
