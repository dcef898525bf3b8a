using System.Globalization;
using Tdp.Harness.Cli;

namespace Tdp.Harness.Conformance;

/// <summary>
/// What stands around the MMU while a recording of the kernel's own TDP MMU is replayed: slots, vCPUs, and an external table that only logs and fails when it is told to.
/// One thread; nothing else ever touches the MMU.
/// </summary>
internal sealed class MmuReplayWorld : IGuestBacking, IVcpuSet, IExternalPageTable, IDisposable
{
    private const ulong FirstDevicePfn = 0x4000000;
    private const int HighestSlot = 1 << 16;
    private readonly Dictionary<int, MmuReplaySlot> _slots = [];
    private readonly Dictionary<int, MmuVcpu> _vcpus = [];
    private readonly List<(ulong Start, ulong End)> _private = [];
    private int _maps;
    private int _removals;
    private InjectedFailures _failures;

    /// <summary>Makes the VM that a header describes.</summary>
    /// <exception cref="UsageException">The header makes no sense.</exception>
    public MmuReplayWorld(in TraceRecord header)
    {
        if (header.Find("cfg") is not { ValueKind: System.Text.Json.JsonValueKind.Object } found)
            throw header.Wrong("'cfg' is no object");
        TraceRecord configuration = header with { Json = found };
        IsTd = configuration.Integer("td", 0, 1) != 0;
        Level root = new(configuration.Integer("level", 4, 5));
        ulong direct = configuration.Number("direct_bits", 0);
        AliasBit alias = !IsTd ? AliasBit.None : root == Level.G512 ? AliasBit.Bit47 : AliasBit.Bit51;
        if (configuration.Has("direct_bits") && direct != alias.GfnMask)
            throw header.Wrong(string.Create(CultureInfo.InvariantCulture, $"'direct_bits' is 0x{direct:x}; of this VM it is 0x{alias.GfnMask:x}"));
        bool ad = configuration.Integer("ad", 0, 1) != 0;
        if (IsTd && !ad)
            throw header.Wrong("'ad' is 0; a TD needs EPT A/D bits");
        Generation = configuration.Number("gen", 0);
        Machine = new Machine(MachineDescription.Golden15());
        Actor = Machine.Actors.Create("replay");
        Mmu = new TdpMmu(
            Machine,
            new MmuOptions
            {
                AliasBit = alias,
                HasMirror = IsTd,
                RootLevel = root,
                AdEnabled = ad,
                ExecOnly = configuration.Integer("xo", 0, 1) != 0,
                IgnoreGuestPat = configuration.Integer("ipat", 0, 1) != 0,
                NxHugePages = configuration.Integer("nx", 0, 1) != 0,
                DirtyLogSize = configuration.Integer("pml", 0, 1 << 16),
                PhysicalAddressBits = configuration.Integer("maxpa", 36, 52),
            },
            this,
            this,
            IsTd ? this : null);
        Spare = new MmuVcpu(Mmu, Actor, -1);
    }

    /// <summary>The machine.</summary>
    public Machine Machine { get; }

    /// <summary>The one thread.</summary>
    public Actor Actor { get; }

    /// <summary>The MMU under test.</summary>
    public TdpMmu Mmu { get; }

    /// <summary>True when the VM is a TD.</summary>
    public bool IsTd { get; }

    /// <summary>Memslot generation.</summary>
    public ulong Generation { get; set; }

    /// <summary>Caches for splits.</summary>
    public MmuVcpu Spare { get; }

    /// <summary>What the fault that is running now would find.</summary>
    public MmuReplayFault Current { get; set; }

    /// <summary>External calls of the operation, in order.</summary>
    public List<string> Callbacks { get; } = [];

    /// <summary>Remote flushes that the operation asked for, in order.</summary>
    public List<string> Flushes { get; } = [];

    /// <summary>Pages that the operation marked dirty, in order.</summary>
    public List<ulong> Dirty { get; } = [];

    /// <summary>A vCPU; made when it is first named.</summary>
    public MmuVcpu Vcpu(int number)
    {
        if (!_vcpus.TryGetValue(number, out MmuVcpu? vcpu))
            _vcpus[number] = vcpu = new MmuVcpu(Mmu, Actor, number);
        return vcpu;
    }

    /// <summary>A slot that was made.</summary>
    /// <exception cref="UsageException">It was not.</exception>
    public MmuReplaySlot Slot(in TraceRecord inputs)
    {
        int number = inputs.Integer("slot", 0, HighestSlot);
        return _slots.TryGetValue(number, out MmuReplaySlot? slot) ? slot : throw inputs.Wrong(string.Create(CultureInfo.InvariantCulture, $"there is no slot {number}"));
    }

    /// <summary>A slot that was made, or none for -1.</summary>
    public MmuReplaySlot? SlotOrNone(in TraceRecord inputs) => inputs.Integer("slot", -1, HighestSlot) < 0 ? null : Slot(inputs);

    /// <summary>Makes a slot.</summary>
    public void AddSlot(in TraceRecord inputs)
    {
        var slot = new MmuReplaySlot(inputs);
        _slots[slot.Mmu.Id] = slot;
    }

    /// <summary>Frames become private.</summary>
    public void SetPrivate(ulong start, ulong end) => _private.Add((start, end));

    /// <summary>Forgets the logs and arms the failures of an operation.</summary>
    public void BeginOperation(InjectedFailures failures)
    {
        Callbacks.Clear();
        Flushes.Clear();
        Dirty.Clear();
        _maps = 0;
        _removals = 0;
        _failures = failures;
    }

    /// <inheritdoc/>
    public void Dispose() => Machine.Dispose();

    FaultResult IGuestBacking.Resolve(ref Fault fault)
    {
        MmuReplayFault current = Current;
        fault.SlotGeneration = Generation;
        fault.MaxLevel = current.MaxLevel;
        if (current.Slot is not { } slot)
            return FaultResult.Continue;
        fault.Slot = slot.Mmu;
        fault.Pfn = current.Pfn ?? slot.Pfn + (fault.Gfn - slot.Mmu.Range.Start);
        fault.IsDevice = fault.Pfn >= FirstDevicePfn;
        fault.MapWritable = current.MapWritable ?? !slot.ReadOnly;
        return FaultResult.Continue;
    }

    MmuSlot? IGuestBacking.SlotOf(MmuVcpu vcpu, Gfn gfn) => Current.Slot?.Mmu;

    bool IGuestBacking.IsPrivate(Gfn gfn) => _private.Exists(range => gfn.Value >= range.Start && gfn.Value < range.End);

    Level IGuestBacking.MaxHostLevel(MmuSlot slot, Gfn gfn) => new(_slots[slot.Id].HostLevel);

    void IGuestBacking.MarkDirty(Actor actor, MmuSlot slot, Gfn gfn) => Dirty.Add(gfn.Value);

    ulong IGuestBacking.SlotGeneration(MmuVcpu vcpu) => Generation;

    void IVcpuSet.RequestAll(Actor actor, VcpuRequest request, bool wait)
    {
        if (request == VcpuRequest.TlbFlush)
            Flushes.Add("all");
    }

    void IVcpuSet.FlushRange(Actor actor, GfnRange range) => Flushes.Add(Text($"0x{range.Start.Value:x}+{range.Pages}"));

    void IVcpuSet.FlushSlot(Actor actor, MmuSlot slot) => Flushes.Add(Text($"slot {slot.Id}"));

    ExternalResult IExternalPageTable.SetEntry(Actor actor, Gfn gfn, Spte old, Spte @new, Level level, TablePage child)
    {
        // The newest kernel has one hook; the recorded one had three. Old and new value tell which (protocol P2).
        if (!@new.IsPresent)
        {
            int removed = ++_removals == _failures.RemovalAt ? (int)ExternalResult.Error : 0;
            Callbacks.Add(Text($"remove 0x{gfn.Value:x} {level.Value} 0x{old.Pfn:x} {removed}"));
            return (ExternalResult)removed;
        }

        int result = ++_maps == _failures.MapAt ? _failures.MapError : 0;
        if (@new.IsLast(level))
        {
            Callbacks.Add(Text($"set 0x{gfn.Value:x} {level.Value} 0x{@new.Pfn:x} {result}"));
            return (ExternalResult)result;
        }

        // A table comes with the page that the external table will use in its place.
        bool whole = child.Level == level.Down && child.Gfn == gfn && child.ExternalPage.Value != 0;
        Callbacks.Add(Text($"link 0x{gfn.Value:x} {level.Value} {result}{(whole ? string.Empty : $" with a wrong table {child}")}"));
        return (ExternalResult)result;
    }

    void IExternalPageTable.FreeTable(Actor actor, TablePage table)
    {
        Callbacks.Add(Text($"free 0x{table.Gfn.Value:x} {table.Level.Value}"));
        if (!table.IsRoot)
            Machine.Frames.Return(table.ExternalPage, FrameUse.Kernel);
    }

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}

/// <summary>Which external calls of an operation fail.</summary>
/// <param name="MapAt">The n-th link or set; 0 for none.</param>
/// <param name="MapError">With this errno.</param>
/// <param name="RemovalAt">The n-th removal; 0 for none.</param>
internal readonly record struct InjectedFailures(int MapAt, int MapError, int RemovalAt);

/// <summary>What the driver of the recording supplied to one fault.</summary>
/// <param name="Slot">The slot, or none.</param>
/// <param name="Pfn">The page; the slot's own when missing.</param>
/// <param name="MapWritable">Whether the host's mapping is writable; as the slot says when missing.</param>
/// <param name="MaxLevel">The largest level allowed.</param>
internal readonly record struct MmuReplayFault(MmuReplaySlot? Slot, ulong? Pfn, bool? MapWritable, Level MaxLevel);

/// <summary>A recorded slot.</summary>
internal sealed class MmuReplaySlot
{
    /// <summary>Reads it.</summary>
    public MmuReplaySlot(in TraceRecord inputs)
    {
        ulong start = inputs.Number("base");
        ulong pages = inputs.Number("n");
        if (start >= Gfn.Limit || pages > Gfn.Limit - start || pages == 0)
            throw inputs.Wrong("'base' and 'n' are no range of frame numbers");
        Pfn = inputs.Number("pfn");
        HostLevel = inputs.Integer("hl", 1, 3);
        ReadOnly = inputs.Integer("ro", 0, 1, 0) != 0;
        Mmu = new MmuSlot(
            inputs.Integer("slot", 0, 1 << 16),
            inputs.Integer("as", 0, 1, 0),
            GfnRange.Of(new Gfn(start), pages),
            start,
            inputs.Integer("gmem", 0, 1, 0) != 0)
        {
            IsDirtyLogged = inputs.Integer("dirty", 0, 1, 0) != 0,
        };
    }

    /// <summary>As the MMU knows it.</summary>
    public MmuSlot Mmu { get; }

    /// <summary>First host frame.</summary>
    public ulong Pfn { get; }

    /// <summary>Mapping size of the host's page tables.</summary>
    public int HostLevel { get; set; }

    /// <summary>The guest may not write.</summary>
    public bool ReadOnly { get; }
}
