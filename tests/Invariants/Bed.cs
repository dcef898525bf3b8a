using System.Reflection;

namespace Tdp.Tests.Invariants;

/// <summary>
/// A booted host with one VM, its referees attached, everything on the test's thread. A test maps what it needs by real faults, asks the referees (silent), breaks something, and asks again.
/// </summary>
internal sealed class Bed : IDisposable
{
    private Bed(HostWorld world, Vm vm, ulong pages)
    {
        World = world;
        Vm = vm;
        Pages = pages;
        Referees = VmReferees.Attach(vm);
        Running = world.Actor;
    }

    public HostWorld World { get; }

    public Vm Vm { get; }

    public ulong Pages { get; }

    public VmReferees Referees { get; }

    /// <summary>The referee of explored runs, fed by the test; it knows the tables that are there when the test first uses it.</summary>
    public EventReferee Events => field ??= Referees.Observe(() => Running);

    /// <summary>Who performs the events that the test feeds.</summary>
    public Actor? Running { get; set; }

    public CheckedVm Checked => Referees.Vm;

    public Actor Actor => World.Actor;

    public Machine Machine => World.Machine;

    public TdxModule Module => World.Module!;

    public TdpMmu Mmu => Vm.Mmu;

    public MmuVcpu Vcpu => Vm.VcpuOf(0).Mmu;

    public GuestMemfd File { get; private set; } = null!;

    public ulong Hva { get; private set; }

    public Root Mirror => Checked.ValidRoot(mirror: true)!;

    public Root Direct => Checked.ValidRoot(mirror: false)!;

    /// <summary>A TD with one slot from guest frame 0 on, all of it private.</summary>
    /// <param name="pages">Pages of the slot; not a multiple of 512, so that its last 2M range is no whole one.</param>
    /// <param name="vcpus">How many vCPUs.</param>
    /// <param name="finalize">MR.FINALIZE was done: the TD may run.</param>
    public static Bed Td(ulong pages = 700, int vcpus = 1, bool finalize = true)
    {
        HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(vcpus + 1, 32 << 20) });
        Vm vm = Make(world, VmKind.Td);
        Ok(vm.Td!.Initialize(world.Actor, new TdConfiguration { MaxVcpus = (ushort)vcpus }));
        for (int i = 0; i < vcpus; i++)
        {
            Ok(vm.CreateVcpu(world.Actor, out Vcpu? vcpu));
            Ok(vcpu!.Initialize(world.Actor, 0, Direct64.ApplyScript));
        }

        Bed bed = new(world, vm, pages);
        Ok(GuestMemfd.Create(bed.Actor, vm, pages << 12, out GuestMemfd? file));
        bed.File = file!;
        bed.Hva = vm.UserMemory.Map(bed.Actor, pages);
        Ok(vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(0, MemslotFlags.GuestMemfd, 0, pages << 12, bed.Hva, file)));
        Ok(vm.Memory.SetAttributes(bed.Actor, 0, pages << 12, MemoryAttributes.Private));
        if (finalize)
        {
            Ok(vm.Td.Complete(bed.Actor));
        }

        bed.UseFirstProcessor();
        Assert.True(vm.Mmu.ReloadRoots(bed.Vcpu));
        return bed;
    }

    /// <summary>An ordinary VM with one slot from guest frame 0 on.</summary>
    public static Bed Ordinary(ulong pages = 2048, bool isHuge = false, MemslotFlags flags = MemslotFlags.None, VmOptions? options = null)
    {
        HostWorld world = HostWorld.Boot(new HostWorldOptions { Machine = MachineDescription.Default(2, 32 << 20) });
        Vm vm = Make(world, VmKind.Default, options);
        Ok(vm.CreateVcpu(world.Actor, out _));
        Bed bed = new(world, vm, pages) { Hva = vm.UserMemory.Map(world.Actor, pages, isHuge) };
        Ok(vm.Memory.SetUserMemoryRegion(bed.Actor, new UserMemoryRegion(0, flags, 0, pages << 12, bed.Hva)));
        bed.UseFirstProcessor();
        Assert.True(vm.Mmu.ReloadRoots(bed.Vcpu));
        return bed;
    }

    public static void Ok(Errno errno) => Assert.Equal(Errno.None, errno);

    /// <summary>Faults a private page in and returns its mirror entry.</summary>
    public EntryView MapPrivate(ulong gfn)
    {
        Assert.Equal(FaultResult.Fixed, Mmu.HandleFault(Vcpu, new Gfn(gfn).Gpa, PfErr.Write | PfErr.PrivateAccess));
        return Mirrored(gfn);
    }

    /// <summary>Makes a page shared and faults it in, or in an ordinary VM just faults it in; returns its direct entry.</summary>
    public EntryView MapShared(ulong gfn)
    {
        if (Vm.IsTd)
        {
            Ok(Vm.Memory.SetAttributes(Actor, gfn << 12, 0x1000, 0));
        }

        Assert.Equal(FaultResult.Fixed, Mmu.HandleFault(Vcpu, Mmu.Options.AliasBit.Number == 0 ? new Gfn(gfn).Gpa : Mmu.Options.AliasBit.Apply(new Gfn(gfn), Alias.Shared), PfErr.Write));
        return Shared(gfn);
    }

    /// <summary>The mirror entry of a page at 4K, or where the way there ends.</summary>
    public EntryView Mirrored(ulong gfn, int level = 1) => Checked.Find(Mirror, new Gfn(gfn), new Level(level));

    /// <summary>The direct entry of a page at 4K, or where the way there ends.</summary>
    public EntryView Shared(ulong gfn, int level = 1) => Checked.Find(Direct, new Gfn(gfn), new Level(level));

    /// <summary>The word of an entry, to write what no code writes.</summary>
    public ref ulong Word(in EntryView at) => ref Machine.Memory.Word(at.Address.Value);

    /// <summary>The word of the Secure EPT entry in the place of a mirror entry.</summary>
    public ref ulong SeptWord(in EntryView mirror)
    {
        Assert.NotEqual(0UL, mirror.Table.ExternalPage.Value);
        return ref Machine.Memory.Word(mirror.Table.ExternalPage.Value + ((ulong)mirror.Index << 3));
    }

    /// <summary>The first word of a page's 4K PAMT entry: type in bits 23:16.</summary>
    public ref ulong PamtWord(Hpa page)
    {
        TdmrDescription tdmr = Machine.Description.Tdmrs.First(t => t.Range.Contains(page.Value));
        return ref Machine.Memory.Word(tdmr.Pamt4K.Base + (((page.Value - tdmr.Range.Base) >> 12) * 16));
    }

    /// <summary>The leaf that the MMU would make for a page.</summary>
    public Spte LeafOf(Hpa page, int level = 1) => Mmu.Format.Leaf(0, level, page.Frame, Mmu.Format.WriteBackType, hostWritable: true, trackWrites: false, prefetch: false);

    /// <summary>The frame that the file has for a page, made if there is none.</summary>
    public Hpa FileFrame(ulong gfn)
    {
        Ok(File.Lookup(Actor, gfn, out Hpa frame));
        return frame;
    }

    public ref TableRecord Record(TablePage table) => ref Mmu.Tables.Record(table.Index);

    /// <summary>A leaf that no fault made: counted as if one had.</summary>
    public void Plant(in EntryView at, Spte leaf)
    {
        Word(at) = leaf.Value;
        Mmu.Statistics.AddPages(Actor, at.Level.Value, 1);
    }

    public void Write(Action body)
    {
        Mmu.MmuLock.EnterWrite(Actor);
        body();
        Mmu.MmuLock.ExitWrite(Actor);
    }

    public void Read(Action body)
    {
        Mmu.MmuLock.EnterRead(Actor);
        body();
        Mmu.MmuLock.ExitRead(Actor);
    }

    /// <summary>Everything at rest.</summary>
    public void AtRest() => Referees.AtRest(Actor);

    /// <summary>What a sample of a running VM judges.</summary>
    public void Sample() => Referees.Sweep.Sample(Actor);

    /// <summary>The rules that <paramref name="judge"/> finds broken.</summary>
    public string[] Findings(Action judge)
    {
        int before = Machine.Findings.All.Count;
        judge();
        return [.. Machine.Findings.All.Skip(before).Select(f => f.Rule).Distinct().Order(StringComparer.Ordinal)];
    }

    /// <summary>
    /// The heart of every test here: the rule is judged and silent on the sound thing; after <paramref name="break"/> the same judgement finds it broken, and besides only what the rule implies.
    /// </summary>
    public void Fires(string rule, Action judge, Action @break, params string[] implied)
    {
        long before = Checked.Verdicts.Times(Catalogue.Get(rule));
        Assert.Empty(Findings(judge));
        Assert.True(Checked.Verdicts.Times(Catalogue.Get(rule)) > before, $"{rule} was not judged on the sound thing");
        Assert.Empty(Findings(@break));
        string[] found = Findings(judge);
        Assert.Equal(((string[])[rule, .. implied]).Order(StringComparer.Ordinal), found);
        Finding finding = Machine.Findings.All.Last(f => f.Rule == rule);
        Assert.StartsWith($"VM {Vm.Number}: ", finding.Text, StringComparison.Ordinal);
    }

    /// <summary>Feeds the referee of explored runs a change of an entry, and makes it in memory.</summary>
    public void Change(in EntryView at, Spte after, Actor? by = null)
    {
        ref ulong word = ref Word(at);
        ulong before = word;
        EventReferee events = Events;
        word = after.Value;
        Assert.Same(events, Events);
        Feed(EventKind.Update, at, before, after.Value, by);
    }

    /// <summary>Feeds a load of an entry.</summary>
    public void Look(in EntryView at, Actor? by = null) => Feed(EventKind.Read, at, Word(at), Word(at), by);

    /// <summary>Feeds an event on a word of a frame.</summary>
    public void Feed(EventKind kind, in EntryView at, ulong before, ulong after, Actor? by = null)
        => Events.Occurred(new SyncEvent(kind, ObjectId.Entry(at.Table.Frame.Frame, (uint)at.Index), "Test", by ?? Actor, before != after, before, after));

    /// <summary>Feeds an event on something that is no word of a frame.</summary>
    public void Feed(EventKind kind, ObjectKind of, string name, ulong owner, ulong before, ulong after, string site = "Test", bool? changed = null)
        => Events.Occurred(new SyncEvent(kind, new ObjectId(of, name, owner, 0), site, Actor, changed ?? (before != after), before, after));

    /// <summary>A field of a class that has no way to be broken from outside.</summary>
    public static T Field<T>(object of, string name)
        => (T)(of.GetType().GetField(name, BindingFlags.Instance | BindingFlags.NonPublic)?.GetValue(of) ?? throw new InvalidOperationException($"{of.GetType().Name} has no field {name}"));

    public void Dispose() => World.Dispose();

    // vCPU 0 belongs on processor 0; the builder stands on the last one.
    private void UseFirstProcessor()
    {
        World.Kernel.Processors.Bind(Actor, 0);
        Vcpu.Actor = Actor;
    }

    private static Vm Make(HostWorld world, VmKind kind, VmOptions? options = null)
    {
        Ok(Vm.Create(world.Actor, world.Kernel, options ?? new VmOptions { Kind = kind }, out Vm? vm));
        return vm!;
    }
}
