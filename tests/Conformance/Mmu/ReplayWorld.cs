using System.Globalization;
using System.Text.Json;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Conformance.Mmu;

/// <summary>What one recorded sequence starts from, and what stands around the MMU while it is replayed: slots, vCPUs, an external table that only logs.</summary>
internal sealed class ReplayWorld : IGuestBacking, IVcpuSet, IExternalPageTable, IDisposable
{
    private const ulong FirstDevicePfn = 0x4000000;
    private readonly Dictionary<int, ReplaySlot> _slots = [];
    private readonly Dictionary<int, MmuVcpu> _vcpus = [];
    private (ulong Start, ulong End) _private;
    private int _callbacks;
    private int _failAt;
    private int _failWith;

    public ReplayWorld(JsonElement configuration)
    {
        bool td = Number(configuration, "td") != 0;
        Level root = new((int)Number(configuration, "level"));
        IsTd = td;
        Machine = new Machine(MachineDescription.Golden15());
        Actor = Machine.Actors.Create("replay");
        AdEnabled = Number(configuration, "ad") != 0;
        Generation = Number(configuration, "gen");
        Mmu = new TdpMmu(
            Machine,
            new MmuOptions
            {
                AliasBit = !td ? AliasBit.None : root == Level.G512 ? AliasBit.Bit47 : AliasBit.Bit51,
                HasMirror = td,
                RootLevel = root,
                AdEnabled = AdEnabled,
                ExecOnly = Number(configuration, "xo") != 0,
                IgnoreGuestPat = Number(configuration, "ipat") != 0,
                NxHugePages = Number(configuration, "nx") != 0,
                DirtyLogSize = (int)Number(configuration, "pml"),
                PhysicalAddressBits = (int)Number(configuration, "maxpa"),
            },
            this,
            this,
            td ? this : null);
        Spare = new MmuVcpu(Mmu, Actor, -1);
    }

    public Machine Machine { get; }

    public Actor Actor { get; }

    public TdpMmu Mmu { get; }

    public bool IsTd { get; }

    public bool AdEnabled { get; }

    public ulong Generation { get; set; }

    /// <summary>Caches for splits.</summary>
    public MmuVcpu Spare { get; }

    /// <summary>What the fault that is running now would find.</summary>
    public ReplayFault Current { get; set; }

    public List<string> Callbacks { get; } = [];

    public List<string> Flushes { get; } = [];

    public List<ulong> Dirty { get; } = [];

    public MmuVcpu Vcpu(int number)
    {
        if (!_vcpus.TryGetValue(number, out MmuVcpu? vcpu))
            _vcpus[number] = vcpu = new MmuVcpu(Mmu, Actor, number);
        return vcpu;
    }

    public ReplaySlot Slot(int number) => _slots[number];

    public void AddSlot(JsonElement inputs)
    {
        var slot = new ReplaySlot(inputs);
        _slots[slot.Mmu.Id] = slot;
    }

    public void SetPrivate(ulong start, ulong end) => _private = (start, end);

    /// <summary>Forgets the log and arms the failure of the n-th link or set callback.</summary>
    public void BeginOperation(int failAt, int failWith)
    {
        Callbacks.Clear();
        Flushes.Clear();
        Dirty.Clear();
        _callbacks = 0;
        _failAt = failAt;
        _failWith = failWith;
    }

    public void Dispose() => Machine.Dispose();

    FaultResult IGuestBacking.Resolve(ref Fault fault)
    {
        ReplayFault current = Current;
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

    bool IGuestBacking.IsPrivate(Gfn gfn) => gfn.Value >= _private.Start && gfn.Value < _private.End;

    Level IGuestBacking.MaxHostLevel(MmuSlot slot, Gfn gfn) => new(_slots[slot.Id].HostLevel);

    void IGuestBacking.MarkDirty(Actor actor, MmuSlot slot, Gfn gfn) => Dirty.Add(gfn.Value);

    ulong IGuestBacking.SlotGeneration(MmuVcpu vcpu) => Generation;

    void IVcpuSet.RequestAll(Actor actor, VcpuRequest request, bool wait)
    {
        if (request == VcpuRequest.TlbFlush)
            Flushes.Add("all");
    }

    void IVcpuSet.FlushRange(Actor actor, GfnRange range) => Flushes.Add(string.Create(CultureInfo.InvariantCulture, $"0x{range.Start.Value:x}+{range.Pages}"));

    void IVcpuSet.FlushSlot(Actor actor, MmuSlot slot) => Flushes.Add(string.Create(CultureInfo.InvariantCulture, $"slot {slot.Id}"));

    ExternalResult IExternalPageTable.SetEntry(Actor actor, Gfn gfn, Spte old, Spte @new, Level level, TablePage child)
    {
        if (!@new.IsPresent)
        {
            Callbacks.Add(string.Create(CultureInfo.InvariantCulture, $"remove 0x{gfn.Value:x} {level.Value} 0x{old.Pfn:x}"));
            return ExternalResult.Ok;
        }

        int result = ++_callbacks == _failAt ? _failWith : 0;
        string what = @new.IsLast(level)
            ? string.Create(CultureInfo.InvariantCulture, $"set 0x{gfn.Value:x} {level.Value} 0x{@new.Pfn:x} {result}")
            : string.Create(CultureInfo.InvariantCulture, $"link 0x{gfn.Value:x} {level.Value} {result}");
        Callbacks.Add(what);
        if (!@new.IsLast(level))
        {
            Assert.Equal(level.Down, child.Level);
            Assert.Equal(gfn, child.Gfn);
            Assert.NotEqual(0UL, child.ExternalPage.Value);
        }

        return (ExternalResult)result;
    }

    void IExternalPageTable.FreeTable(Actor actor, TablePage table)
    {
        Callbacks.Add(string.Create(CultureInfo.InvariantCulture, $"free 0x{table.Gfn.Value:x} {table.Level.Value}"));
        if (!table.IsRoot)
            Machine.Frames.Return(table.ExternalPage, FrameUse.Kernel);
    }

    public static ulong Number(JsonElement element, string name, ulong absent = 0)
    {
        if (!element.TryGetProperty(name, out JsonElement value))
            return absent;
        if (value.ValueKind == JsonValueKind.String)
            return ParseHex(value.GetString()!);
        return unchecked((ulong)value.GetInt64());
    }

    public static ulong ParseHex(string text) => ulong.Parse(text.AsSpan(2), NumberStyles.HexNumber, CultureInfo.InvariantCulture);
}

/// <summary>What the driver of the recording supplied to one fault.</summary>
internal readonly record struct ReplayFault(ReplaySlot? Slot, ulong? Pfn, bool? MapWritable, Level MaxLevel);

/// <summary>A recorded slot.</summary>
internal sealed class ReplaySlot
{
    public ReplaySlot(JsonElement inputs)
    {
        ulong start = ReplayWorld.Number(inputs, "base");
        Pfn = ReplayWorld.Number(inputs, "pfn");
        HostLevel = (int)ReplayWorld.Number(inputs, "hl");
        ReadOnly = ReplayWorld.Number(inputs, "ro") != 0;
        Mmu = new MmuSlot(
            (int)ReplayWorld.Number(inputs, "slot"),
            (int)ReplayWorld.Number(inputs, "as"),
            GfnRange.Of(new Gfn(start), ReplayWorld.Number(inputs, "n")),
            start,
            ReplayWorld.Number(inputs, "gmem") != 0)
        {
            IsDirtyLogged = ReplayWorld.Number(inputs, "dirty") != 0,
        };
    }

    public MmuSlot Mmu { get; }

    public ulong Pfn { get; }

    public int HostLevel { get; set; }

    public bool ReadOnly { get; }
}
