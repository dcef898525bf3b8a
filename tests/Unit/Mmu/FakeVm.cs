using System.Globalization;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>
/// A VM around the MMU without host and module: one slot, an attribute per page, an external table that records calls in the module's operands, and vCPUs
/// that obey requests at once.
/// </summary>
internal sealed class FakeVm : IGuestBacking, IVcpuSet, IExternalPageTable, IDisposable
{
    public const ulong SlotStart = 0x100000;
    public const ulong SlotPages = 0x80000;
    private readonly HashSet<ulong> _shared = [];

    public FakeVm(bool td = true, MmuOptions? options = null, Func<MmuSlot>? slot = null)
    {
        Machine = new Machine(MachineDescription.Golden15());
        Slot = slot?.Invoke() ?? new MmuSlot(0, 0, GfnRange.Of(new Gfn(SlotStart), SlotPages), SlotStart, hasGuestMemfd: td);
        options ??= td ? new MmuOptions { HasMirror = true, AliasBit = AliasBit.Bit47, IgnoreGuestPat = false } : new MmuOptions();
        Mmu = new TdpMmu(Machine, options, this, this, td ? this : null);
        Main = Machine.Actors.Create("main");
        Vcpus = [NewVcpu(0), NewVcpu(1)];
    }

    public Machine Machine { get; }

    public TdpMmu Mmu { get; }

    public MmuSlot Slot { get; }

    public Actor Main { get; }

    public MmuVcpu[] Vcpus { get; }

    public bool IsTd => Mmu.Options.HasMirror;

    /// <summary>SEPT.ADD, AUG and REMOVE with RCX as the module gets it, FREE with the table's first page.</summary>
    public List<string> Calls { get; } = [];

    public List<VcpuRequest> Requests { get; } = [];

    /// <summary>Runs when a request is made, on the requester.</summary>
    public Action<VcpuRequest>? OnRequest { get; set; }

    public List<GfnRange> RangeFlushes { get; } = [];

    public List<ulong> Dirty { get; } = [];

    /// <summary>Answer to the n-th call from now (from 1); Ok when it says nothing.</summary>
    public Func<string, ExternalResult>? Answer { get; set; }

    /// <summary>Runs inside Resolve, when the page has been found and the lock not yet taken.</summary>
    public Action? AfterLookup { get; set; }

    public Func<Gfn, ulong> PfnOf { get; set; } = gfn => 0x40000 + (gfn.Value & 0x7FFFF);

    public Level HostLevel { get; set; } = Level.K4;

    public ulong Generation { get; set; }

    public bool MapWritable { get; set; } = true;

    public MmuVcpu NewVcpu(int id)
    {
        var vcpu = new MmuVcpu(Mmu, Machine.Actors.Create($"vcpu{id}"), id);
        Assert.True(Mmu.ReloadRoots(vcpu));
        return vcpu;
    }

    public void SetPrivate(Gfn gfn, bool isPrivate)
    {
        if (isPrivate)
            _shared.Remove(gfn.Value);
        else
            _shared.Add(gfn.Value);
    }

    public FaultResult Touch(MmuVcpu vcpu, Gfn gfn, Alias alias = Alias.Private, ulong access = PfErr.Write)
    {
        if (!IsTd || alias == Alias.Shared)
            return Mmu.HandleFault(vcpu, IsTd ? Mmu.Options.AliasBit.Apply(gfn, alias) : gfn.Gpa, access);
        return Mmu.HandleFault(vcpu, gfn.Gpa, access | PfErr.PrivateAccess);
    }

    /// <summary>The entry that covers a page at a level.</summary>
    public Spte Entry(Root root, Gfn gfn, int level)
    {
        ulong raw = gfn.Value | (root.IsMirror ? 0 : Mmu.Options.AliasBit.GfnMask);
        TablePage table = root.Table;
        while (true)
        {
            Spte entry = table[table.Level.IndexOf(raw)];
            if (table.Level.Value == level)
                return entry;
            Assert.Equal(SpteKind.Table, entry.Kind(table.Level));
            table = Mmu.TableOf(entry);
        }
    }

    /// <summary>The place of the entry, to forge what another actor would have written.</summary>
    public ref ulong Word(Root root, Gfn gfn, int level)
    {
        ulong raw = gfn.Value | (root.IsMirror ? 0 : Mmu.Options.AliasBit.GfnMask);
        TablePage table = root.Table;
        while (table.Level.Value > level)
            table = Mmu.TableOf(table[table.Level.IndexOf(raw)]);
        return ref Machine.Memory.Word(table.Frame.Value + ((ulong)table.Level.IndexOf(raw) << 3));
    }

    public List<SpteVisit> Leaves(Root root)
    {
        var leaves = new List<SpteVisit>();
        Mmu.ForEachSpte(root, visit =>
        {
            if (visit.Kind == SpteKind.Leaf)
                leaves.Add(visit);
        });
        return leaves;
    }

    public List<(Gfn Gfn, Level Level, Spte Spte)> Content(Root root)
    {
        var content = new List<(Gfn, Level, Spte)>();
        Mmu.ForEachSpte(root, visit => content.Add((visit.Gfn, visit.Level, visit.Spte)));
        return content;
    }

    public void Exclusive(Action body)
    {
        Mmu.MmuLock.EnterWrite(Main);
        body();
        Mmu.MmuLock.ExitWrite(Main);
    }

    /// <summary>Zaps one table; mmu_lock is the caller's.</summary>
    public bool ZapTable(TablePage table)
    {
        Mmu.Rcu.ReadEnter(Main);
        bool done = Mmu.ZapTable(Main, table);
        Mmu.Rcu.ReadExit(Main);
        return done;
    }

    /// <summary>The sum of leaves and tables over all roots equals the statistics (I48, I49).</summary>
    public void AssertCounts()
    {
        long[] pages = new long[4];
        long tables = 0;
        foreach (Root root in Mmu.Roots)
        {
            Mmu.ForEachSpte(root, visit =>
            {
                if (visit.Kind == SpteKind.Leaf)
                    pages[visit.Level.Value]++;
                else if (visit.Kind == SpteKind.Table)
                    tables++;
            });
        }

        Assert.Equal(pages[1], Mmu.Statistics.Pages(Level.K4));
        Assert.Equal(pages[2], Mmu.Statistics.Pages(Level.M2));
        Assert.Equal(pages[3], Mmu.Statistics.Pages(Level.G1));
        Assert.Equal(tables, Mmu.Statistics[MmuCounter.Tables]);
    }

    public void AssertNoFindings() => Assert.Empty(Machine.Findings.All);

    /// <summary>The whole way down: vCPUs end, roots go, and every frame is back.</summary>
    public void TearDown()
    {
        foreach (MmuVcpu vcpu in Vcpus)
            Mmu.DestroyVcpu(vcpu);
        Mmu.ZapAll(Main);
        Mmu.Destroy(Main);
        Assert.Empty(Mmu.Roots);
        Assert.Equal(0, Machine.Frames.Live);
    }

    public void Dispose() => Machine.Dispose();

    FaultResult IGuestBacking.Resolve(ref Fault fault)
    {
        bool isPrivate = IsTd && !_shared.Contains(fault.Gfn.Value);
        if (fault.IsPrivate != isPrivate)
        {
            fault.Vcpu.MemoryFault = new MemoryFaultInfo(fault.Gfn.Gpa, 4096, fault.IsPrivate);
            return FaultResult.BadAddress;
        }

        if (!Slot.Range.Contains(fault.Gfn))
        {
            fault.SlotGeneration = Generation;
            return FaultResult.Continue;
        }

        if (Mmu.Invalidation.MustRetry(fault.Seq, fault.Gfn))
            return FaultResult.Retry;
        fault.Slot = Slot;
        fault.Pfn = PfnOf(fault.Gfn);
        fault.MapWritable = MapWritable;
        if (isPrivate)
            fault.MaxLevel = Level.K4;
        AfterLookup?.Invoke();
        return FaultResult.Continue;
    }

    MmuSlot? IGuestBacking.SlotOf(MmuVcpu vcpu, Gfn gfn) => Slot.Range.Contains(gfn) ? Slot : null;

    bool IGuestBacking.IsPrivate(Gfn gfn) => IsTd && !_shared.Contains(gfn.Value);

    Level IGuestBacking.MaxHostLevel(MmuSlot slot, Gfn gfn) => HostLevel;

    void IGuestBacking.MarkDirty(Actor actor, MmuSlot slot, Gfn gfn) => Dirty.Add(gfn.Value);

    ulong IGuestBacking.SlotGeneration(MmuVcpu vcpu) => Generation;

    void IVcpuSet.RequestAll(Actor actor, VcpuRequest request, bool wait)
    {
        Requests.Add(request);
        OnRequest?.Invoke(request);
    }

    void IVcpuSet.FlushRange(Actor actor, GfnRange range) => RangeFlushes.Add(range);

    ExternalResult IExternalPageTable.SetEntry(Actor actor, Gfn gfn, Spte old, Spte @new, Level level, TablePage child)
    {
        ulong rcx = gfn.Gpa.Value;
        string call = !@new.IsPresent ? Format("REMOVE", rcx)
            : @new.IsLast(level) ? Format("AUG", rcx) + string.Create(CultureInfo.InvariantCulture, $" 0x{@new.Pfn << 12:x}")
            : Format("SEPT.ADD", rcx | (uint)level.Tdx);
        Calls.Add(call);

        // A to-present change finds its entry frozen by the caller (I23, I24); a removal is made under mmu_lock write (I25).
        if (@new.IsPresent)
            Assert.True(Mmu.MmuLock.IsReadHeld(actor));
        else
            Assert.True(Mmu.MmuLock.IsWriteHeld(actor));
        ExternalResult result = Answer?.Invoke(call) ?? ExternalResult.Ok;
        if (result == ExternalResult.Error)
            Mmu.Bug(actor, "the fake module refused");
        return result;
    }

    void IExternalPageTable.FreeTable(Actor actor, TablePage table)
    {
        Calls.Add(Format("FREE", table.Gfn.Gpa.Value | (uint)table.Level.Tdx));
        if (!table.IsRoot)
            Machine.Frames.Return(table.ExternalPage, FrameUse.Kernel);
    }

    private static string Format(string name, ulong rcx) => string.Create(CultureInfo.InvariantCulture, $"{name} 0x{rcx:x}");
}
