namespace Tdp.Platform;

/// <summary>A simulated machine: memory, processors, clock, and the books that say who has which frame (decisions D26).</summary>
public sealed class Machine : IDisposable
{
    /// <summary>Builds a machine.</summary>
    /// <param name="description">What it consists of.</param>
    /// <param name="seed">The run's master seed.</param>
    /// <param name="tlbMode">TLB retention on every processor.</param>
    /// <exception cref="UnsupportedHostException">This process cannot host it.</exception>
    public Machine(MachineDescription description, ulong seed = 1, TlbMode tlbMode = TlbMode.Precise)
    {
        Description = description;
        Seed = seed;
        Memory = new PhysicalMemory(description.Memory);
        Ledger = new FrameLedger(Memory, Findings);

        // One spare slot for a test that holds a lock as if another processor were inside a leaf (decisions D28).
        Hazards = new HazardTable(description.LogicalProcessors + 1);
        var processors = new LogicalProcessor[description.LogicalProcessors];
        for (int i = 0; i < processors.Length; i++)
            processors[i] = new LogicalProcessor(this, i, description.PackageOf(i), tlbMode, new SeedStream(seed, "tlb", (ulong)i), Hazards.Take());
        Processors = processors;
        SpareHazards = Hazards.Take();
        Frames = new FrameAllocator(this, FreeAreas(description));
        foreach (TdmrDescription tdmr in description.Tdmrs)
        {
            ClaimForKernel(tdmr.Pamt1G);
            ClaimForKernel(tdmr.Pamt2M);
            ClaimForKernel(tdmr.Pamt4K);
        }
    }

    /// <summary>What it was built from.</summary>
    public MachineDescription Description { get; }

    /// <summary>The run's master seed.</summary>
    public ulong Seed { get; }

    /// <summary>Physical memory.</summary>
    public PhysicalMemory Memory { get; }

    /// <summary>Who has which frame.</summary>
    public FrameLedger Ledger { get; }

    /// <summary>The host's page allocator.</summary>
    public FrameAllocator Frames { get; }

    /// <summary>What the ledger and the checkers found wrong.</summary>
    public FindingLog Findings { get; } = new();

    /// <summary>Logical processors, by number.</summary>
    public IReadOnlyList<LogicalProcessor> Processors { get; }

    /// <summary>Simulated time.</summary>
    public SimClock Clock { get; } = new();

    /// <summary>The actors of this world.</summary>
    public ActorTable Actors { get; } = new();

    /// <summary>Shared holders of the module's locks.</summary>
    public HazardTable Hazards { get; }

    /// <summary>A slot of no processor, for injected lock holders.</summary>
    public HazardSlot SpareHazards { get; }

    /// <summary>True when the KeyID is one that only the module may use.</summary>
    public bool IsPrivate(int hkid) => hkid >= Description.FirstPrivateHkid && hkid < Description.EndPrivateHkid;

    /// <inheritdoc/>
    public void Dispose() => Memory.Dispose();

    // Convertible memory less what the TDMRs reserve: the host could use other memory, too, but never give it to a TD.
    private static List<HpaRange> FreeAreas(MachineDescription description)
    {
        var areas = new List<HpaRange>();
        foreach (TdmrDescription tdmr in description.Tdmrs)
        {
            ulong at = tdmr.Range.Base;
            foreach (HpaRange reserved in tdmr.Reserved)
            {
                if (reserved.Base > at)
                    areas.Add(new HpaRange(at, reserved.Base - at));
                at = reserved.End;
            }

            if (at < tdmr.Range.End)
                areas.Add(new HpaRange(at, tdmr.Range.End - at));
        }

        return areas;
    }

    private void ClaimForKernel(HpaRange range)
    {
        for (ulong address = range.Base; address < range.End; address += 4096)
            Ledger.HandOver(new Hpa(address), FrameUse.Free, FrameUse.Kernel);
    }
}
