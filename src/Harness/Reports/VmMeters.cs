using System.Diagnostics.Metrics;
using System.Linq;

namespace Tdp.Harness.Reports;

/// <summary>
/// The statistics that KVM keeps of a VM, as instruments of <see cref="System.Diagnostics.Metrics"/>: any listener, such as dotnet-counters, can watch them while the VM runs. All are observable:
/// the VM counts per actor anyway, and the sums are made only when somebody looks.
/// </summary>
internal sealed class VmMeters : IDisposable
{
    /// <summary>Name of the meter.</summary>
    public const string MeterName = "TdpMmu.Kvm";

    private readonly Meter _meter = new(MeterName);

    /// <summary>Publishes a VM's statistics under a tag with its number. Any thread; the VM must outlive the meters.</summary>
    /// <param name="vm">The VM.</param>
    /// <param name="module">Its module; null for none.</param>
    public VmMeters(Vm vm, TdxModule? module)
    {
        MmuStatistics mmu = vm.Mmu.Statistics;
        Counter("pf_taken", "faults that took the normal path", () => mmu.PfTaken);
        Counter("pf_fixed", "faults that installed or repaired an entry", () => mmu[MmuCounter.PfFixed]);
        Counter("pf_spurious", "faults that somebody else had fixed", () => mmu[MmuCounter.PfSpurious]);
        Counter("pf_fast", "faults served without mmu_lock", () => mmu[MmuCounter.PfFast]);
        Counter("pf_emulate", "accesses to be emulated", () => mmu[MmuCounter.PfEmulate] + mmu[MmuCounter.MmioCached]);
        Counter("pf_retry", "faults that answered RETRY", () => mmu[MmuCounter.PfRetry]);
        Counter("pf_mmio_spte_created", "MMIO entries written", () => mmu[MmuCounter.MmioCreated]);
        Counter("remote_tlb_flush", "remote TLB flushes", () => mmu[MmuCounter.FlushAll] + mmu[MmuCounter.FlushRange]);
        Counter("mmu_lock_yields", "times a walk gave mmu_lock up because somebody waited", () => mmu[MmuCounter.Yields]);
        Counter("zapped", "leaves removed", () => mmu[MmuCounter.Zapped]);
        Gauge("pages_4k", "leaves at 4K", () => mmu.Pages(Level.K4));
        Gauge("pages_2m", "leaves at 2M", () => mmu.Pages(Level.M2));
        Gauge("pages_1g", "leaves at 1G", () => mmu.Pages(Level.G1));
        Gauge("tables", "linked tables", () => mmu[MmuCounter.Tables]);
        Gauge("nx_lpage_splits", "tables that the NX workaround caused", () => mmu[MmuCounter.NxSplits]);
        if (vm.Glue is { } glue)
        {
            Counter("tdx_busy_maps", "mapping SEAMCALLs that answered BUSY", () => glue[TdxGlue.GlueCounter.BusyMaps]);
            Counter("tdx_kick_retries", "removals that needed the vCPUs locked out", () => glue[TdxGlue.GlueCounter.KickRetries]);
            Counter("tdx_tracks", "TLB trackings", () => glue[TdxGlue.GlueCounter.Tracks]);
        }

        if (module is not null)
        {
            Counter("seamcalls", "SEAMCALLs, whatever their answer", () => module.Counts().Where(c => !c.IsGuest).Sum(c => c.Times));
        }

        void Counter(string name, string description, Func<long> value) =>
            _meter.CreateObservableCounter("kvm." + name, () => new Measurement<long>(value(), new KeyValuePair<string, object?>("vm", vm.Number)), description: description);

        void Gauge(string name, string description, Func<long> value) =>
            _meter.CreateObservableUpDownCounter("kvm." + name, () => new Measurement<long>(value(), new KeyValuePair<string, object?>("vm", vm.Number)), description: description);
    }

    /// <summary>All values now, by name, as a listener sees them.</summary>
    public SortedDictionary<string, long> Read()
    {
        var values = new SortedDictionary<string, long>(StringComparer.Ordinal);
        using var listener = new MeterListener
        {
            InstrumentPublished = (instrument, self) =>
            {
                if (ReferenceEquals(instrument.Meter, _meter))
                {
                    self.EnableMeasurementEvents(instrument);
                }
            },
        };
        listener.SetMeasurementEventCallback<long>((instrument, value, _, _) => values[instrument.Name["kvm.".Length..]] = value);
        listener.Start();
        listener.RecordObservableInstruments();
        return values;
    }

    /// <summary>Withdraws the instruments.</summary>
    public void Dispose() => _meter.Dispose();
}
