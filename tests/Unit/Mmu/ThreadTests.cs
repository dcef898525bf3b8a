using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;

namespace Tdp.Tests.Unit.Mmu;

/// <summary>Real threads on one MMU: what holds when they have ended (I13, I48, I49) and what no thread may have seen (I23 to I25, I45, I46).</summary>
public sealed class ThreadTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    [Trait("spec", "I13")]
    [Trait("spec", "I48")]
    [Trait("spec", "I49")]
    public void Faults_zaps_fast_zaps_and_aging_together_leave_a_consistent_tree(bool td)
    {
        const ulong Pages = 700;
        using var vm = new FakeVm(td);
        var machine = new QuietExternal(vm);
        Actor[] faulters = [.. vm.Vcpus.Select(v => v.Actor)];
        var stop = new SharedCell<bool>("stop");
        for (int i = 0; i < faulters.Length; i++)
        {
            MmuVcpu vcpu = machine.Vcpus[i];
            ulong stream = (ulong)i;
            faulters[i].Start(_ =>
            {
                var random = new SeedStream(7, "program", stream);
                for (int n = 0; n < 60_000; n++)
                {
                    if (machine.Mmu.FreeObsoleteRoots(vcpu))
                        machine.Mmu.ReloadRoots(vcpu);
                    Gfn gfn = new(FakeVm.SlotStart + random.Below(Pages));
                    bool isPrivate = td && (gfn.Value & 1) == 0;
                    Gpa addr = td ? machine.Mmu.Options.AliasBit.Apply(gfn, isPrivate ? Alias.Private : Alias.Shared) : gfn.Gpa;
                    FaultResult result = machine.Mmu.HandleFault(vcpu, addr, PfErr.Write | (isPrivate ? PfErr.PrivateAccess : 0));
                    if (result is not (FaultResult.Fixed or FaultResult.Spurious or FaultResult.Retry))
                        throw new InvalidOperationException(result.ToString());
                }
            });
        }

        Actor zapper = vm.Machine.Actors.Create("zapper");
        zapper.Start(actor =>
        {
            var random = new SeedStream(7, "program", 9);
            while (!stop.Peek())
            {
                GfnRange range = GfnRange.Of(new Gfn(FakeVm.SlotStart + random.Below(Pages)), 1 + random.Below(40));
                switch (random.Below(8))
                {
                    case 0:
                        machine.Mmu.ZapAllFast(actor);
                        break;
                    case 1:
                        machine.Mmu.Age(actor, range, AliasFilter.Shared);
                        break;
                    default:
                        machine.Mmu.MmuLock.EnterWrite(actor);
                        machine.Mmu.Invalidation.Begin(actor);
                        machine.Mmu.Invalidation.AddRange(actor, range);
                        machine.Mmu.UnmapAndFlush(actor, range, td && random.Chance(0.5) ? AliasFilter.Private : AliasFilter.Shared);
                        machine.Mmu.MmuLock.ExitWrite(actor);
                        machine.Mmu.MmuLock.EnterWrite(actor);
                        machine.Mmu.Invalidation.End(actor);
                        machine.Mmu.MmuLock.ExitWrite(actor);
                        break;
                }
            }
        });
        foreach (Actor faulter in faulters)
            faulter.Join();
        stop.Write(true);
        zapper.Join();
        machine.AssertConsistent();
        machine.TearDown(vm.Main);
        Assert.Empty(vm.Machine.Findings.All);
    }

    [Fact]
    [Trait("spec", "I02")]
    public void Threads_on_one_range_install_every_page_exactly_once()
    {
        using var vm = new FakeVm(td: true);
        var machine = new QuietExternal(vm);
        const ulong Pages = 4096;
        for (int i = 0; i < 2; i++)
        {
            MmuVcpu vcpu = machine.Vcpus[i];
            vcpu.Actor.Start(_ =>
            {
                for (ulong n = 0; n < Pages; n++)
                {
                    Gfn gfn = new(FakeVm.SlotStart + (2 * n));
                    while (machine.Mmu.HandleFault(vcpu, gfn.Gpa, PfErr.Write | PfErr.PrivateAccess) == FaultResult.Retry)
                    {
                    }
                }
            });
        }

        foreach (MmuVcpu vcpu in machine.Vcpus)
            vcpu.Actor.Join();
        Assert.Equal((long)Pages, machine.Maps);
        Assert.Equal((long)Pages, machine.Mmu.Statistics.Pages(Level.K4));
        Assert.Equal((long)Pages, machine.Mmu.Statistics[MmuCounter.PfFixed]);
        machine.AssertConsistent();
        machine.TearDown(vm.Main);
    }

    /// <summary>The environment for threads: odd pages are shared, even ones private; the external table keeps a set and knows when it is told twice.</summary>
    private sealed class QuietExternal : IGuestBacking, IVcpuSet, IExternalPageTable
    {
        private readonly FakeVm _vm;
        private readonly SyncGate _gate = new();
        private readonly HashSet<ulong> _mapped = [];
        private readonly HashSet<(ulong, int)> _linked = [];

        public QuietExternal(FakeVm vm)
        {
            _vm = vm;
            Mmu = new TdpMmu(vm.Machine, vm.Mmu.Options with { VmNumber = 2 }, this, this, vm.IsTd ? this : null);
            Vcpus = [new MmuVcpu(Mmu, vm.Vcpus[0].Actor, 0), new MmuVcpu(Mmu, vm.Vcpus[1].Actor, 1)];
            foreach (MmuVcpu vcpu in Vcpus)
                Assert.True(Mmu.ReloadRoots(vcpu));
        }

        public TdpMmu Mmu { get; }

        public MmuVcpu[] Vcpus { get; }

        public long Maps { get; private set; }

        public void AssertConsistent()
        {
            long leaves = 0;
            long tables = 0;
            var mirrored = new HashSet<ulong>();
            foreach (Root root in Mmu.Roots)
            {
                Mmu.ForEachSpte(root, visit =>
                {
                    Assert.False(visit.Spte.IsFrozen);
                    if (visit.Kind == SpteKind.Leaf)
                        leaves++;
                    else if (visit.Kind == SpteKind.Table)
                        tables++;
                    if (visit.Kind == SpteKind.Leaf && root.IsMirror)
                        mirrored.Add(visit.Gfn.Value);
                });
            }

            Assert.Equal(leaves, Mmu.Statistics.Pages(Level.K4));
            Assert.Equal(tables, Mmu.Statistics[MmuCounter.Tables]);
            Assert.True(mirrored.SetEquals(_mapped));
            Assert.Empty(_vm.Machine.Findings.All);
        }

        public void TearDown(Actor actor)
        {
            foreach (MmuVcpu vcpu in Vcpus)
                Mmu.DestroyVcpu(vcpu);
            Mmu.ZapAll(actor);
            Mmu.Destroy(actor);
            Assert.Empty(_mapped);
            Assert.Empty(_linked);
        }

        public FaultResult Resolve(ref Fault fault)
        {
            fault.Slot = _vm.Slot;
            fault.Pfn = 0x40000 + (fault.Gfn.Value & 0x7FFFF);
            fault.MapWritable = true;
            fault.MaxLevel = Level.K4;
            return FaultResult.Continue;
        }

        public MmuSlot? SlotOf(MmuVcpu vcpu, Gfn gfn) => _vm.Slot;

        public bool IsPrivate(Gfn gfn) => _vm.IsTd && (gfn.Value & 1) == 0;

        public Level MaxHostLevel(MmuSlot slot, Gfn gfn) => Level.K4;

        public void MarkDirty(Actor actor, MmuSlot slot, Gfn gfn)
        {
        }

        public ulong SlotGeneration(MmuVcpu vcpu) => 0;

        public void RequestAll(Actor actor, VcpuRequest request, bool wait)
        {
        }

        public ExternalResult SetEntry(Actor actor, Gfn gfn, Spte old, Spte @new, Level level, TablePage child)
        {
            using (_gate.Hold())
            {
                // The module would refuse each of these: a page mapped twice, a table linked twice, a removal of nothing (I23, I24, I80).
                bool ok = !@new.IsPresent ? _mapped.Remove(gfn.Value)
                    : @new.IsLast(level) ? _mapped.Add(gfn.Value) && _linked.Contains((gfn.Value >> 9, 2))
                    : _linked.Add((gfn.Value >> (9 * (level.Value - 1)), level.Value));
                if (!ok)
                    _vm.Machine.Findings.Add("I80", $"{old} to {@new} at gfn {gfn}, {level}");
                if (@new.IsLeaf(level))
                    Maps++;
            }

            return ExternalResult.Ok;
        }

        public void FreeTable(Actor actor, TablePage table)
        {
            using (_gate.Hold())
            {
                if (!table.IsRoot && !_linked.Remove((table.Gfn.Value >> (9 * table.Level.Value), table.Level.Value + 1)))
                    _vm.Machine.Findings.Add("I80", $"{table} was not linked");
            }

            _vm.Machine.Frames.Return(table.ExternalPage, FrameUse.Kernel);
        }
    }
}
