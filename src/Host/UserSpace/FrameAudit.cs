namespace Tdp.Host;

/// <summary>
/// The books after teardown: every frame of the machine by use, and every frame about which ledger and PAMT say different things (I34, I71, TM01). At
/// quiescence only.
/// </summary>
public sealed record FrameAudit
{
    private const int MostListed = 100;

    private FrameAudit(IReadOnlyDictionary<FrameUse, long> byUse, IReadOnlyList<string> disagreements, long disagreementCount)
    {
        ByUse = byUse;
        Disagreements = disagreements;
        DisagreementCount = disagreementCount;
    }

    /// <summary>Frames that were ever used, by use; frames never touched are not counted.</summary>
    public IReadOnlyDictionary<FrameUse, long> ByUse { get; }

    /// <summary>One line for each frame whose record is wrong, the first 100.</summary>
    public IReadOnlyList<string> Disagreements { get; }

    /// <summary>How many there are.</summary>
    public long DisagreementCount { get; }

    /// <summary>Frames of one use.</summary>
    public long this[FrameUse use] => ByUse.GetValueOrDefault(use);

    /// <summary>Looks at every frame.</summary>
    /// <param name="machine">The machine; nobody runs.</param>
    /// <param name="module">The module, or null.</param>
    /// <param name="isAfterTeardown">True: no VM is left, so a frame that belongs to one is wrong as well.</param>
    internal static FrameAudit Take(Machine machine, TdxModule? module, bool isAfterTeardown)
    {
        var byUse = new Dictionary<FrameUse, long>();
        var lines = new List<string>();
        long wrong = 0;
        foreach (HpaRange range in machine.Memory.Ranges)
        {
            for (ulong frame = range.Base >> 12; frame < range.End >> 12; frame++)
            {
                FrameRecord record = machine.Memory.Record(frame);
                if (record.Generation == 0)
                    continue;
                byUse[record.Use] = byUse.GetValueOrDefault(record.Use) + 1;
                string? problem = Judge(module, new Hpa(frame << 12), record, isAfterTeardown);
                if (problem is null && isAfterTeardown && record.Use == FrameUse.Kernel && !IsPamt(machine, frame << 12))
                    problem = "the kernel still has it after teardown";
                if (problem is null)
                    continue;
                wrong++;
                if (lines.Count < MostListed)
                    lines.Add($"frame 0x{frame:x}: {problem}");
            }
        }

        return new FrameAudit(byUse, lines, wrong);
    }

    private static bool IsPamt(Machine machine, ulong address)
    {
        foreach (TdmrDescription tdmr in machine.Description.Tdmrs)
        {
            if (tdmr.Pamt4K.Contains(address) || tdmr.Pamt2M.Contains(address) || tdmr.Pamt1G.Contains(address))
                return true;
        }

        return false;
    }

    private static string? Judge(TdxModule? module, Hpa frame, FrameRecord record, bool isAfterTeardown)
    {
        bool isModules = false;
        string type = "NDA";
        if (module is not null && module.Pamt(frame) is { } view)
        {
            type = view.Type.ToString();
            isModules = view.Type is not (PageType.NDA or PageType.RSVD);
        }

        if (isModules != (record.Use == FrameUse.Module) && !(record.Use == FrameUse.Leaked && isModules))
            return $"the ledger says {record.Use}, PAMT says {type} (TM01)";
        if (isAfterTeardown && record.Use is FrameUse.Module or FrameUse.HostTable or FrameUse.GuestMemfd or FrameUse.HostShared)
            return $"still {record.Use} after teardown (I71)";
        return null;
    }
}
