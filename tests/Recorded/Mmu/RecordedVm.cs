using System.Globalization;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Recorded.Mmu;

/// <summary>
/// A TD around the MMU whose host side does nothing but announce itself: an attribute cell, a page cell, one vCPU's kick, and marks where the module would work.
/// Events are printed with pretty names, so that a list of them reads like the algorithm.
/// </summary>
internal sealed class RecordedVm : IGuestBacking, IVcpuSet, IExternalPageTable, IDisposable
{
    private readonly EventRecorder _recorder = new();
    private readonly MmuSlot _slot = new(0, 0, GfnRange.Of(new Gfn(0x100000), 0x80000), 0x100000, hasGuestMemfd: true);
    private readonly SharedCell<bool> _attribute = new("attribute", 1, true);
    private readonly SharedCell<ulong> _page = new("gmem", 1, 0x7ABCD);

    public RecordedVm()
    {
        Machine = new Machine(MachineDescription.Golden15());
        Mmu = new TdpMmu(Machine, new MmuOptions { VmNumber = 1, HasMirror = true, AliasBit = AliasBit.Bit47, IgnoreGuestPat = false }, this, this, this);
        Actor actor = Machine.Actors.Create("vcpu0");
        Zapper = Machine.Actors.Create("zapper");
        Vcpu = new MmuVcpu(Mmu, actor, 0);
        Assert.True(Mmu.ReloadRoots(Vcpu));
        Hook.Install(null, _recorder);
    }

    public Machine Machine { get; }

    public TdpMmu Mmu { get; }

    public MmuVcpu Vcpu { get; }

    public Actor Zapper { get; }

    public Kick Kick { get; } = new("vcpu", 0);

    public FaultResult Touch(ulong gfn) => Mmu.HandleFault(Vcpu, new Gfn(gfn).Gpa, PfErr.Write | PfErr.PrivateAccess);

    /// <summary>The events since the last call, one line each.</summary>
    public IReadOnlyList<string> TakeEvents()
    {
        string[] lines = [.. _recorder.Events.Select(Line)];
        _recorder.Clear();
        return lines;
    }

    public void Dispose()
    {
        Hook.Install(null, null);
        Machine.Dispose();
    }

    FaultResult IGuestBacking.Resolve(ref Fault fault)
    {
        Assert.Equal(fault.IsPrivate, _attribute.Read("Attribute"));
        fault.Pfn = _page.Read("Lookup");
        fault.Slot = _slot;
        fault.MapWritable = true;
        fault.MaxLevel = Level.K4;
        return FaultResult.Continue;
    }

    MmuSlot? IGuestBacking.SlotOf(MmuVcpu vcpu, Gfn gfn) => _slot;

    bool IGuestBacking.IsPrivate(Gfn gfn) => true;

    Level IGuestBacking.MaxHostLevel(MmuSlot slot, Gfn gfn) => Level.K4;

    void IGuestBacking.MarkDirty(Actor actor, MmuSlot slot, Gfn gfn)
    {
    }

    ulong IGuestBacking.SlotGeneration(MmuVcpu vcpu) => 0;

    void IVcpuSet.RequestAll(Actor actor, VcpuRequest request, bool wait)
    {
        Kick.Post(actor, (int)request, request.ToString());
        ulong ticket = Kick.Send(actor, wait, "Kick");
        if (ticket != 0)
            Kick.AwaitAck(actor, ticket, "Kick");
    }

    ExternalResult IExternalPageTable.SetEntry(Actor actor, Gfn gfn, Spte old, Spte @new, Level level, TablePage child)
    {
        if (@new.IsPresent)
        {
            Call(actor, @new.IsLast(level) ? "TDH.MEM.PAGE.AUG" : "TDH.MEM.SEPT.ADD");
            return ExternalResult.Ok;
        }

        Call(actor, "TDH.MEM.RANGE.BLOCK");
        Call(actor, "TDH.MEM.TRACK");
        ((IVcpuSet)this).RequestAll(actor, VcpuRequest.OutsideGuestMode, wait: true);
        Call(actor, "TDH.MEM.PAGE.REMOVE");
        return ExternalResult.Ok;
    }

    void IExternalPageTable.FreeTable(Actor actor, TablePage table) => Machine.Frames.Return(table.ExternalPage, FrameUse.Kernel);

    private static void Call(Actor actor, string leaf)
    {
        Mark.At(actor, leaf);
        Mark.At(actor, leaf + " returned");
    }

    private string Line(SyncEvent e)
    {
        if (e.Kind == EventKind.Mark)
            return e.Site;
        string name = Mmu.Describe(e.Object) ?? e.Object.Kind switch
        {
            ObjectKind.Lock => e.Object.Name!,
            ObjectKind.Rcu => "rcu",
            ObjectKind.Seq => "invalidate",
            _ => e.Object.Name ?? e.Object.ToString(),
        };
        string line = $"{e.Kind} {name} in {e.Site}";
        return e.Object.Kind == ObjectKind.Entry && e.Kind != EventKind.Read
            ? string.Create(CultureInfo.InvariantCulture, $"{line}: {Value(e.Before)} -> {Value(e.After)}")
            : line;
    }

    private static string Value(ulong bits)
    {
        var spte = new Spte(bits);
        return spte.IsPresent ? spte.Pfn == 0x7ABCD ? "leaf" : "table" : spte.ToString();
    }
}
