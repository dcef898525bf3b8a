using Tdp.Harness.Invariants;
using Tdp.Host;
using Tdp.Mmu;
using Tdp.Module;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Recorded.Invariants;

/// <summary>
/// The referee of explored runs on real events: whatever the host does on the way, every rule that is bound to an event holds after each event, and each of them is judged by something.
/// </summary>
public sealed class EventRefereeTests
{
    [Fact]
    [Trait("spec", "I14")]
    [Trait("spec", "I15")]
    [Trait("spec", "I23")]
    [Trait("spec", "I53")]
    [Trait("spec", "I54")]
    public void The_whole_life_of_a_TD_is_judged_event_by_event()
    {
        using WatchedVm td = WatchedVm.Td();
        Vm vm = td.Vm;
        td.Run(GuestStep.Accept(5 << 12), GuestStep.Write(5 << 12, 1), GuestStep.Accept(600 << 12), GuestStep.Write(1 << 12, 2));
        td.Referees.AtRest(td.Actor);

        // Refused by the module, then not: the fault is repeated inside.
        td.World.Module!.BusyInjector = new BusyOnce();
        td.Run(GuestStep.Accept(1030 << 12), GuestStep.Accept(6 << 12));
        td.World.Module.BusyInjector = null;

        // Conversions both ways; the shared alias; a hole; a notifier; aging; a fast zap.
        WatchedVm.Ok(vm.Memory.SetAttributes(td.Actor, 4 << 12, 4 << 12, 0));
        td.Run(GuestStep.Write(td.Shared(5), 3), GuestStep.Read(td.Shared(6)));
        Assert.Equal(FaultResult.BadAddress, vm.Mmu.HandleFault(vm.VcpuOf(0).Mmu, new Gfn(7).Gpa, PfErr.Write | PfErr.PrivateAccess));
        vm.Mmu.Age(td.Actor, GfnRange.Of(new Gfn(0), 16), AliasFilter.Shared);
        td.Referees.AtRest(td.Actor);
        vm.UserMemory.Migrate(td.Actor, td.Hva + (5 << 12), 1);
        td.Run(GuestStep.Read(td.Shared(5)));
        vm.Memory.ZapAllFast(td.Actor);
        td.Run(GuestStep.Read(td.Shared(5)));
        WatchedVm.Ok(td.File!.PunchHole(td.Actor, 600, 2));
        WatchedVm.Ok(vm.Memory.SetAttributes(td.Actor, 4 << 12, 4 << 12, MemoryAttributes.Private));
        td.Run(GuestStep.Accept(5 << 12), GuestStep.Write(5 << 12, 4), GuestStep.Accept(600 << 12));

        // Shared memory large enough for a huge page, then a conversion across its edge.
        WatchedVm.Ok(vm.Memory.SetAttributes(td.Actor, 512 << 12, 512 << 12, 0));
        td.Run(GuestStep.Write(td.Shared(700), 5));
        Assert.Equal(1, vm.Mmu.Statistics.Pages(Level.M2));
        td.Referees.AtRest(td.Actor);
        WatchedVm.Ok(vm.Memory.SetAttributes(td.Actor, 800 << 12, 8 << 12, MemoryAttributes.Private));
        Assert.Equal(0, vm.Mmu.Statistics.Pages(Level.M2));
        td.Run(GuestStep.Accept(801 << 12), GuestStep.Write(td.Shared(700), 6));
        td.Referees.AtRest(td.Actor);
        td.Silent();

        vm.Destroy(td.Actor);
        td.Referees.AfterTeardown(td.World.Kernel.Audit(isAfterTeardown: true), td.World.Kernel);
        td.Silent();
        Assert.Empty(td.Unjudged("I01 I02 I03 I04 I05 I06 I07 I08 I09 I10 I11 I12 I14 I15 I16 I22 I23 I24 I25 I26 I27 I28 I31 I32 I33 I34 I35 I36 I37 I38 I39 I40 I41 I42 I45 I47 I48 I53 I54 I55 I63 I64 I65 I66 I68 I69 I70 I72 I73 I77 I78 I80 I30"));
    }

    [Fact]
    [Trait("spec", "I17")]
    [Trait("spec", "I18")]
    [Trait("spec", "I46")]
    [Trait("spec", "I47")]
    public void Huge_pages_dirty_logging_and_recovery_of_an_ordinary_VM_are_judged_event_by_event()
    {
        using WatchedVm vm = WatchedVm.Ordinary(isHuge: true);
        MmuSlot slot = vm.Vm.SlotsOf(0).Active.ById(0)!.Mmu;
        vm.Run(GuestStep.Write(5 << 12, 1), GuestStep.Write(600 << 12, 1));
        Assert.Equal(2, vm.Vm.Mmu.Statistics.Pages(Level.M2));
        vm.Referees.AtRest(vm.Actor);

        // Logging splits; a write is trapped and comes back by the fast path; logging ends and the pages become huge again.
        UserMemoryRegion region = new(0, MemslotFlags.LogDirtyPages, 0, 2048 << 12, vm.Hva);
        WatchedVm.Ok(vm.Vm.Memory.SetUserMemoryRegion(vm.Actor, region));
        vm.Run(GuestStep.Write(5 << 12, 2), GuestStep.Read(6 << 12), GuestStep.Write(6 << 12, 2));
        vm.Vm.Mmu.MmuLock.EnterWrite(vm.Actor);
        vm.Vm.Mmu.ClearDirtyMasked(vm.Actor, slot, new Gfn(0), 0xFF, writeProtect: true);
        vm.Vm.Mmu.FlushRemoteTlbs(vm.Actor);
        vm.Vm.Mmu.MmuLock.ExitWrite(vm.Actor);
        vm.Run(GuestStep.Write(5 << 12, 3));
        Assert.True(vm.Vm.Mmu.Statistics[MmuCounter.PfFast] > 0);
        vm.Referees.AtRest(vm.Actor);
        WatchedVm.Ok(vm.Vm.Memory.SetUserMemoryRegion(vm.Actor, region with { Flags = MemslotFlags.None }));
        vm.Vm.Mmu.Age(vm.Actor, GfnRange.Of(new Gfn(0), 2048), AliasFilter.Shared);
        vm.Run(GuestStep.Write(5 << 12, 4));
        vm.Referees.AtRest(vm.Actor);
        vm.Vm.UserMemory.Discard(vm.Actor, vm.Hva + (600 << 12), 3);
        vm.Run(GuestStep.Read(600 << 12));
        vm.Vm.Memory.ZapAllFast(vm.Actor);
        vm.Run(GuestStep.Read(600 << 12), GuestStep.Read(6 << 12));
        vm.Referees.AtRest(vm.Actor);
        WatchedVm.Ok(vm.Vm.Memory.SetUserMemoryRegion(vm.Actor, region with { Flags = MemslotFlags.None, MemorySize = 0 }));
        vm.Vm.Destroy(vm.Actor);
        vm.Silent();
        Assert.Empty(vm.Unjudged("I01 I02 I03 I04 I05 I11 I16 I17 I18 I37 I38 I39 I40 I45 I47 I48 I53 I54 I57 I82"));
    }

    [Fact]
    [Trait("spec", "I34")]
    public void A_private_page_may_be_touched_by_the_guest_and_by_the_module_and_by_nobody_else()
    {
        using WatchedVm td = WatchedVm.Td();
        td.Run(GuestStep.Accept(5 << 12), GuestStep.Write(5 << 12, 7));
        Assert.True(td.Times("I34") > 0);
        td.Silent();
        Root mirror = td.Referees.Vm.ValidRoot(mirror: true)!;
        Hpa page = td.Referees.Vm.Find(mirror, new Gfn(5), Level.K4).Value.Address;
        td.World.Machine.Memory.Entry(page, 0).Read();
        Assert.Equal("I34", Assert.Single(td.World.Machine.Findings.All).Rule);
    }

    [Fact]
    [Trait("spec", "I15")]
    public void A_real_write_to_somebody_else_s_frozen_entry_is_seen()
    {
        using WatchedVm td = WatchedVm.Td();
        td.Run(GuestStep.Accept(5 << 12));
        Root mirror = td.Referees.Vm.ValidRoot(mirror: true)!;
        EntryView hole = td.Referees.Vm.Find(mirror, new Gfn(6), Level.K4);
        Actor stranger = td.World.Machine.Actors.Create("stranger");
        ref ulong word = ref td.World.Machine.Memory.Word(hole.Address.Value);
        td.Vm.Mmu.MmuLock.EnterRead(td.Actor);
        ulong seen = Spte.NonPresent.Value;
        Assert.True(new AtomicWord(ref word).CompareExchange(ref seen, Spte.Frozen.Value));
        td.Silent();
        td.Running = stranger;
        new AtomicWord(ref word).Write(Spte.NonPresent.Value);
        td.Running = null;
        Assert.Equal("I15", Assert.Single(td.World.Machine.Findings.All).Rule);
        td.Vm.Mmu.MmuLock.ExitRead(td.Actor);
    }

    [Fact]
    public void Judging_causes_no_event()
    {
        using WatchedVm td = WatchedVm.Td();
        td.Run(GuestStep.Accept(5 << 12), GuestStep.Write(td.Vm.AliasBit.Apply(new Gfn(6), Alias.Private).Value, 1));
        WatchedVm.Ok(td.Vm.Memory.SetAttributes(td.Actor, 4 << 12, 1 << 12, 0));
        td.Run(GuestStep.Write(td.Shared(4), 1));
        int before = td.Events.Count;

        // With the iterator's own walk, which is an operation, left out.
        td.Referees.AtRest(null);
        TlbSweep.Check(td.Referees.Vm, null);
        td.Referees.Watch.Judge(isStuck: false);
        Assert.Equal(before, td.Events.Count);
        td.Silent();
    }

    [Fact]
    public void Judging_an_event_allocates_nothing()
    {
        using WatchedVm td = WatchedVm.Td();
        td.Run(GuestStep.Accept(5 << 12), GuestStep.Write(5 << 12, 1));
        WatchedVm.Ok(td.Vm.Memory.SetAttributes(td.Actor, 4 << 12, 4 << 12, 0));
        td.Run(GuestStep.Write(td.Shared(5), 3));

        // Events that do not fit the state any more are findings, and those do allocate: loads of the host's own tables and locks that did not change fit any state.
        PhysicalMemory memory = td.World.Machine.Memory;
        td.Events.RemoveAll(e => e.Changed || e.Kind is EventKind.Mark || (e.Object.Kind is ObjectKind.Entry && (!memory.TryFindNamed(e.Object.Owner, out Hpa frame) || td.Vm.Mmu.TableIn(frame).IsNone)));
        Assert.True(td.Events.Count > 100);
        td.JudgeAgain();
        Assert.Null(td.JudgeAgain());
    }

    [Fact]
    public void Judging_a_fault_allocates_nothing()
    {
        using WatchedVm td = WatchedVm.Td();
        td.Run(GuestStep.Accept(5 << 12), GuestStep.Accept(6 << 12));
        Hook.Install(null, null);
        long without = Fault(td, 7);
        long again = Fault(td, 8);
        Hook.Install(null, td);
        td.Events.Capacity = 10_000;
        Fault(td, 9);
        long with = Fault(td, 10);

        // What the hook itself costs (closures for what a lock waits for) is the same.
        Assert.Equal(again, without);
        Assert.Equal(without, with);
        td.Silent();
    }

    private static long Fault(WatchedVm td, ulong gfn)
    {
        long before = GC.GetAllocatedBytesForCurrentThread();
        FaultResult result = td.Vm.Mmu.HandleFault(td.Vm.VcpuOf(0).Mmu, new Gfn(gfn).Gpa, PfErr.Write | PfErr.PrivateAccess);
        long after = GC.GetAllocatedBytesForCurrentThread();
        Assert.Equal(FaultResult.Fixed, result);
        return after - before;
    }

    // Every second call that adds something is answered BUSY, and every second first attempt to take something away.
    private sealed class BusyOnce : IBusyInjector
    {
        private int _calls;

        public bool TryInject(LogicalProcessor lp, TdhLeaf leaf, out TdxStatus status)
        {
            status = TdxStatus.OPERAND_BUSY | OperandId.SEPT_TREE;
            return leaf is TdhLeaf.MEM_PAGE_AUG or TdhLeaf.MEM_SEPT_ADD && ++_calls % 2 == 1;
        }
    }
}
