using Tdp.Platform;

namespace Tdp.Tests.Unit.Platform;

public sealed class GuestPhysicalTests : IDisposable
{
    private const ulong Leaf = EptEntry.Rwx | EptEntry.WriteBack | EptEntry.SuppressVe;
    private const ulong Shared = 1UL << 47;
    private const ulong Table0 = 1UL << 30;
    private readonly Machine _machine = new(MachineDescription.Golden15());
    private readonly Vmcs _vmcs;

    public GuestPhysicalTests() => _vmcs = NewVmcs();

    private LogicalProcessor Lp => _machine.Processors[0];

    public void Dispose() => _machine.Dispose();

    [Fact]
    public void Translations_are_kept_until_they_are_flushed_and_failures_are_not()
    {
        ref ulong leaf = ref MapPage(_vmcs.Eptp, 0x5000, 0);
        Assert.False(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5008, AccessKind.Read, out _));
        leaf = Leaf | 0x5000_0000;
        Assert.True(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5008, AccessKind.Read, out ulong hpa));
        Assert.Equal(0x5000_0008UL, hpa);

        // The zap is not seen before the flush: a simulator that walks every time hides the bugs this project exists to find.
        leaf = EptEntry.SuppressVe;
        Assert.True(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5008, AccessKind.Read, out _));
        Lp.Tlb.FlushAll();
        Assert.False(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5008, AccessKind.Read, out _));
    }

    [Fact]
    public void A_page_that_changed_hands_under_a_translation_is_a_finding()
    {
        ref ulong leaf = ref MapPage(_vmcs.Eptp, 0x5000, Leaf | 0x5000_0000);
        Assert.NotEqual(0UL, leaf);
        Assert.True(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5000, AccessKind.Read, out _));
        _machine.Ledger.HandOver(new Hpa(0x5000_0000), FrameUse.Free, FrameUse.Kernel);
        Assert.True(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5000, AccessKind.Read, out _));
        Assert.Equal("I57", Assert.Single(_machine.Findings.All).Rule);
    }

    [Fact]
    [Trait("spec", "G13")]
    public void The_alias_bit_selects_the_tree_and_both_aliases_share_a_context()
    {
        MapPage(_vmcs.Eptp, 0x5000, Leaf | 0x5000_0000);
        _vmcs.SharedEptp = EptPointer.Make(NewTable(), Level.G512, false);
        MapPage(_vmcs.SharedEptp, Shared | 0x5000, Leaf | 0x5100_0000);
        Assert.True(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5000, AccessKind.Read, out ulong priv));
        Assert.True(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, Shared | 0x5000, AccessKind.Read, out ulong shared));
        Assert.Equal((0x5000_0000UL, 0x5100_0000UL), (priv, shared));
        Lp.Tlb.FlushContext(_vmcs.Eptp);
        int live = 0;
        Lp.Tlb.ForEachLive(_ => live++);
        Assert.Equal(0, live);
    }

    [Fact]
    public void A_write_through_a_read_translation_walks_again_when_the_hardware_keeps_dirty_bits()
    {
        _vmcs.Eptp |= EptPointer.AccessedDirty;
        ref ulong leaf = ref MapPage(_vmcs.Eptp, 0x5000, Leaf | 0x5000_0000);
        Assert.True(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5000, AccessKind.Read, out _));
        Assert.Equal(0UL, leaf & EptEntry.Dirty);
        Assert.True(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 0x5000, AccessKind.Write, out _));
        Assert.NotEqual(0UL, leaf & EptEntry.Dirty);
    }

    [Fact]
    public void Address_bits_above_the_guest_width_violate_and_are_not_converted()
    {
        Assert.False(GuestPhysical.TryTranslate(_machine, Lp, _vmcs, 1UL << 48, AccessKind.Read, out _));
        Assert.Equal(ExitReason.EptViolation, _vmcs.Exit.Reason);
        Assert.False(_vmcs.Exit.IsConvertible);
    }

    [Theory]
    [InlineData(TlbMode.Off)]
    [InlineData(TlbMode.Precise)]
    [InlineData(TlbMode.Adversarial)]
    [Trait("spec", "G09")]
    public void All_modes_give_the_same_translations_of_tables_that_do_not_change(TlbMode mode)
    {
        using var machine = new Machine(MachineDescription.Golden15(), seed: 3, mode);
        Vmcs vmcs = NewVmcs(machine, Table0);
        ulong next = Table0 + 0x1000;
        for (ulong page = 0; page < 600; page++)
            MapPage(machine, ref next, vmcs.Eptp, 0x10_0000 + (page << 12), Leaf | (0x5000_0000 + (page << 12)));
        var stream = new SeedStream(9, "program");
        for (int i = 0; i < 20_000; i++)
        {
            ulong gpa = 0x10_0000 + stream.Below(600UL << 12);
            Assert.True(GuestPhysical.TryTranslate(machine, machine.Processors[0], vmcs, gpa, AccessKind.Write, out ulong hpa));
            Assert.Equal(0x5000_0000 + (gpa - 0x10_0000), hpa);
        }

        Assert.Equal(mode == TlbMode.Precise ? 600UL : machine.Processors[0].Tlb.Fills, machine.Processors[0].Tlb.Fills);
        if (mode == TlbMode.Off)
            Assert.Equal(20_000UL, machine.Processors[0].Tlb.Fills);
    }

    [Fact]
    public void A_scripted_guest_faults_once_per_page_and_sees_what_it_wrote()
    {
        ref ulong leaf = ref MapPage(_vmcs.Eptp, 0x5000, EptEntry.SuppressVe);
        var guest = new ScriptedGuest(_machine, GuestStep.Write(0x5000, 77), GuestStep.Read(0x5000), GuestStep.Halt());
        ref VmExit exit = ref guest.Enter(Lp, _vmcs);
        Assert.Equal(ExitReason.EptViolation, exit.Reason);
        Assert.Equal(0x182UL, exit.Qualification);
        Assert.Equal(0x5000UL, exit.Gpa);
        leaf = Leaf | 0x5000_0000;
        Assert.Equal(ExitReason.Hlt, guest.Enter(Lp, _vmcs).Reason);
        Assert.Equal([77UL], guest.Values);
        _vmcs.State.Rip += _vmcs.Exit.InstructionLength;
        Assert.Equal(ExitReason.SimulatorScriptEnd, guest.Enter(Lp, _vmcs).Reason);
        Assert.True(guest.IsDone);
    }

    [Fact]
    [Trait("spec", "td-guest 5.3")]
    public void A_convertible_shared_violation_becomes_a_VE_unless_the_area_is_occupied()
    {
        _vmcs.SharedEptp = EptPointer.Make(NewTable(), Level.G512, false);
        MapPage(_vmcs.SharedEptp, Shared | 0x5000, 0);
        var guest = new ScriptedGuest(_machine, GuestStep.Read(Shared | 0x5010));
        Assert.Equal(ExitReason.Tdcall, guest.Enter(Lp, _vmcs).Reason);
        Assert.Equal(3UL, _vmcs.State[Gpr.Rax]);
        Assert.True(_vmcs.VeInfo!.IsValid);
        Assert.Equal(0x181UL, _vmcs.VeInfo.Qualification);
        Assert.Equal(Shared | 0x5010UL, _vmcs.VeInfo.Gpa);

        Vmcs second = NewVmcs();
        second.Eptp = _vmcs.Eptp;
        second.SharedEptp = _vmcs.SharedEptp;
        second.VeInfo!.Fill(1, 0, 0, 0, 0, 0);
        Assert.Equal(ExitReason.EptViolation, new ScriptedGuest(_machine, GuestStep.Read(Shared | 0x5010)).Enter(Lp, second).Reason);
    }

    private static Vmcs NewVmcs(Machine machine, ulong table)
    {
        machine.Memory.Fill(new Hpa(table), EptEntry.SuppressVe);
        return new Vmcs { VcpuId = 0, Eptp = EptPointer.Make(new Hpa(table), Level.G512, false), AliasBit = AliasBit.Bit47, IsTd = true, VeInfo = new VeInfo() };
    }

    private static ref ulong MapPage(Machine machine, ref ulong next, ulong pointer, ulong gpa, ulong leaf)
    {
        Hpa table = EptPointer.RootOf(pointer);
        for (Level level = Level.G512; level > Level.K4; level = level.Down)
        {
            ref ulong entry = ref machine.Memory.Table(table)[level.IndexOf(gpa >> 12)];
            if ((entry & EptEntry.Rwx) == 0)
            {
                machine.Memory.Fill(new Hpa(next), EptEntry.SuppressVe);
                entry = next | EptEntry.Rwx;
                next += 4096;
            }

            table = new Hpa(entry & Hpa.Mask);
        }

        ref ulong place = ref machine.Memory.Word(table.Value + ((ulong)Level.K4.IndexOf(gpa >> 12) * 8));
        place = leaf;
        return ref place;
    }

    private ulong _next = Table0;

    private Hpa NewTable()
    {
        var table = new Hpa(_next);
        _next += 4096;
        _machine.Memory.Fill(table, EptEntry.SuppressVe);
        return table;
    }

    private Vmcs NewVmcs() => NewVmcs(_machine, NewTable().Value);

    private ref ulong MapPage(ulong pointer, ulong gpa, ulong leaf) => ref MapPage(_machine, ref _next, pointer, gpa, leaf);
}
