using System.Globalization;
using System.Linq;

namespace Tdp.Harness.Conformance;

/// <content>Each recorded operation as a call of ours.</content>
internal sealed partial class MmuSequence
{
    private const int HighestVcpu = 63;

    private string Perform(string operation, TraceRecord inputs, TraceRecord record)
    {
        switch (operation)
        {
            case "slot":
                _world.AddSlot(inputs);
                return "null";
            case "slotset":
                return ChangeSlot(inputs);
            case "lpage":
                return LimitHugePage(inputs);
            case "gen":
                _world.Generation = inputs.Number("v");
                return "null";
            case "attr":
                _world.SetPrivate(inputs.Number("start"), inputs.Number("end"));
                return "null";
            case "track":
                return Track(inputs);
            case "alloc_root":
                return AllocateRoot(inputs, record);
            case "put_root":
                _mmu.UnloadRoot(VcpuOf(inputs), inputs.Integer("mirror", 0, 1) != 0);
                return "null";
            case "map":
                return Map(inputs, record);
            case "fastpf":
                _world.Current = new MmuReplayFault(_world.SlotOrNone(inputs), null, null, Level.G1);
                return NameOf(_mmu.FastFault(VcpuOf(inputs), AddressOf(inputs), ErrorCode(inputs) | (inputs.Integer("present", 0, 1) != 0 ? PfErr.Present : 0)));
            case "last" or "walk" or "mapped" or "hw":
                return Look(operation, inputs, record);
            case "inval" or "zapall" or "zapinv" or "zapleafs" or "zapsp" or "nxrecover" or "uninit" or "unmap":
                return Zap(operation, inputs, record);
            default:
                return OnSlot(operation, inputs, record);
        }
    }

    private string OnSlot(string operation, TraceRecord inputs, in TraceRecord record)
    {
        Actor actor = _world.Actor;
        switch (operation)
        {
            case "age":
                return Flag(_mmu.Age(actor, RangeOf(inputs), FilterOf(inputs), SlotOf(inputs).AddressSpace));
            case "testage":
                return Flag(_mmu.TestAge(actor, RangeOf(inputs), FilterOf(inputs), SlotOf(inputs).AddressSpace));
            case "wrprot":
                return Shared(() => Flag(_mmu.WriteProtectSlot(actor, SlotOf(inputs), LevelOf(inputs, "min"))));
            case "cdslot":
                return Shared(() =>
                {
                    _mmu.ClearDirtySlot(actor, SlotOf(inputs));
                    return "null";
                });
            case "cdmask":
                return Exclusive(() =>
                {
                    _mmu.ClearDirtyMasked(actor, SlotOf(inputs), GfnOf(inputs, "gfn"), inputs.Number("mask"), inputs.Integer("wrprot", 0, 1) != 0);
                    return "null";
                });
            case "wpgfn":
                return Exclusive(() => Flag(_mmu.WriteProtectGfn(actor, SlotOf(inputs), GfnOf(inputs, "gfn"), LevelOf(inputs, "min"))));
            case "split":
                bool shared = inputs.Integer("shared", 0, 1) != 0;
                Func<string> split = () =>
                {
                    bool done = _mmu.TrySplitHuge(actor, _world.Spare, SlotOf(inputs), RangeOf(inputs), LevelOf(inputs, "target"), shared);
                    return done ? "null" : "out of memory";
                };
                return shared ? Shared(split) : Exclusive(split);
            case "recover":
                return Shared(() =>
                {
                    _mmu.RecoverHuge(actor, SlotOf(inputs));
                    return "null";
                });
            default:
                throw record.Wrong($"unknown operation {operation}; the operations are those of a TDP MMU recording");
        }
    }

    private string Zap(string operation, TraceRecord inputs, TraceRecord record)
    {
        Actor actor = _world.Actor;
        switch (operation)
        {
            case "unmap":
                return Exclusive(() => Flag(_mmu.UnmapRange(
                    actor, RangeOf(inputs), FilterOf(inputs), inputs.Integer("block", 0, 1) != 0, inputs.Integer("flush", 0, 1, 0) != 0, SlotOf(inputs).AddressSpace)));
            case "zapleafs":
                return Exclusive(() => Flag(_mmu.ZapLeafs(actor, RangeOf(inputs), inputs.Integer("flush", 0, 1, 0) != 0)));
            case "zapall":
                _mmu.ZapAll(actor);
                return "null";
            case "inval":
                return Exclusive(() =>
                {
                    _mmu.InvalidateRoots(actor, (RootKinds)inputs.Integer("types", 0, 7));
                    return "null";
                });
            case "zapinv":
                _mmu.ZapInvalidatedRoots(actor, inputs.Integer("shared", 0, 1) != 0);
                return "null";
            case "zapsp":
                return ZapTable(inputs);
            case "nxrecover":
                return RecoverNx(record);
            default:
                _mmu.Destroy(actor);
                return "null";
        }
    }

    private string ChangeSlot(in TraceRecord inputs)
    {
        MmuReplaySlot slot = _world.Slot(inputs);
        if (inputs.Has("dirty"))
            slot.Mmu.IsDirtyLogged = inputs.Integer("dirty", 0, 1) != 0;
        if (inputs.Has("hl"))
            slot.HostLevel = inputs.Integer("hl", 1, 3);
        return "null";
    }

    private string LimitHugePage(in TraceRecord inputs)
    {
        MmuSlot slot = SlotOf(inputs);
        Gfn gfn = GfnOf(inputs, "gfn");
        Level large = new(inputs.Integer("l", 2, 3));
        slot.AddDisallow(gfn, large, inputs.Integer("d", -1000, 1000));
        return slot.DisallowCount(gfn, large).ToString(CultureInfo.InvariantCulture);
    }

    private string Track(TraceRecord inputs)
    {
        MmuSlot slot = SlotOf(inputs);
        Gfn gfn = GfnOf(inputs, "gfn");
        bool on = inputs.Integer("on", 0, 1) != 0;
        return Exclusive(() =>
        {
            slot.TrackWrites(gfn, on ? 1 : -1);
            if (!on)
                return "null";
            bool changed = _mmu.WriteProtectGfn(_world.Actor, slot, gfn, Level.K4);
            if (changed)
                _mmu.FlushRemoteTlbs(_world.Actor);
            return Flag(changed);
        });
    }

    private string AllocateRoot(in TraceRecord inputs, in TraceRecord record)
    {
        MmuVcpu vcpu = VcpuOf(inputs);
        bool mirror = inputs.Integer("mirror", 0, 1) != 0;
        if ((mirror ? vcpu.MirrorRoot : vcpu.DirectRoot) is not null)
            return "SKIP";
        vcpu.IsSmm = inputs.Integer("smm", 0, 1, 0) != 0;
        vcpu.IsGuestMode = inputs.Integer("gm", 0, 1, 0) != 0;
        if (!_mmu.LoadRoot(vcpu, mirror))
            return "out of memory";
        Root root = (mirror ? vcpu.MirrorRoot : vcpu.DirectRoot)!;
        Compare("role", Text($"0x{record.Number("role"):x}"), Text($"0x{root.PeekRole().Value:x}"));
        return root.ToString();
    }

    private string Map(in TraceRecord inputs, in TraceRecord record)
    {
        MmuVcpu vcpu = VcpuOf(inputs);
        if ((IsPrivate(inputs) ? vcpu.MirrorRoot : vcpu.DirectRoot) is null)
            return "SKIP";
        if (vcpu.DirectRoot is null)
        {
            // A fault begins with a direct root; the recording entered below that.
            return "SKIP";
        }

        if (vcpu.DirectRoot.IsInvalid)
            return "STALE";
        MmuReplaySlot? slot = _world.SlotOrNone(inputs);
        _world.Current = new MmuReplayFault(
            slot,
            inputs.OptionalNumber("pfn"),
            inputs.Has("mw") ? inputs.Integer("mw", 0, 1) != 0 : null,
            LevelOf(inputs, "max"));
        ref Fault fault = ref _mmu.Decode(vcpu, AddressOf(inputs), ErrorCode(inputs));
        fault.Prefetch = inputs.Integer("pf", 0, 1) != 0;
        FaultResult result = _mmu.ResolveSlow(ref fault);
        if (record.Find("adj") is { } adjusted)
        {
            Compare("req_level", adjusted[0].ToString(), fault.ReqLevel.Value.ToString(CultureInfo.InvariantCulture));
            Compare("huge_page_disallowed", adjusted[3].ToString(), Flag(fault.HugePageDisallowed));
            Compare("goal", Text(record.Number("goal")), fault.GoalLevel.Value.ToString(CultureInfo.InvariantCulture));
            if (slot is not null)
                Compare("pfn", Text($"0x{record.Number("pfn"):x}"), Text($"0x{fault.Pfn:x}"));
        }

        return NameOf(result);
    }

    private string Look(string operation, in TraceRecord inputs, in TraceRecord record)
    {
        MmuVcpu vcpu = VcpuOf(inputs);
        if (operation is "mapped")
            return Flag(_mmu.IsMapped(vcpu, AddressOf(inputs)));
        if (vcpu.DirectRoot is not { } root)
            return "SKIP";
        if (operation is "hw")
            return Hardware(root, inputs);
        Span<Spte> path = stackalloc Spte[5];
        int level = _mmu.GetWalk(vcpu, root, operation is "last" ? inputs.Number("gfn") : AddressOf(inputs).Value >> 12, path);
        if (operation is "last")
            return level < 0 ? Text($"[{level}]") : Text($"[{level},0x{Visible(path[root.Level.Value - level], level):x}]");
        if (level > 0)
        {
            var values = new List<string>();
            for (int l = root.Level.Value; l >= level; l--)
                values.Add(Text($"0x{Visible(path[root.Level.Value - l], l):x}"));
            Compare("path", Words(record, "path"), string.Join(",", values));
        }

        return level.ToString(CultureInfo.InvariantCulture);
    }

    // Not code of the MMU: what the processor does. It sets A and D only in leaves of A/D type "enabled".
    private string Hardware(Root root, in TraceRecord inputs)
    {
        Gpa gpa = GfnOf(inputs, "gfn").Gpa;
        AccessKind access = inputs.Integer("w", 0, 1) != 0 ? AccessKind.Write : AccessKind.Read;
        EptWalk walk = EptWalker.Walk(_world.Machine.Memory, EptPointer.Make(root.Frame, root.Level, accessedDirty: false), gpa, access);
        if (walk.Outcome == EptOutcome.Misconfiguration)
            return "MISCONFIG";
        if (walk.Outcome == EptOutcome.Violation)
            return (walk.Entry & EptEntry.Rwx) == 0 ? "MISS" : access == AccessKind.Write ? "WPROT" : "NOREAD";
        if ((walk.Entry & Spte.AdTypeMask) != Spte.AdDisabled)
            EptWalker.Walk(_world.Machine.Memory, EptPointer.Make(root.Frame, root.Level, accessedDirty: true), gpa, access);
        return "HIT";
    }

    private string ZapTable(in TraceRecord inputs)
    {
        string? root = inputs.Has("root") ? inputs.Text("root") : VcpuOf(inputs).DirectRoot?.ToString();
        TablePage table = Find(root, inputs.Integer("level", 1, 5), inputs.Number("gfn"));
        return table.IsNone ? "SKIP" : Exclusive(() => WithRcu(() => Flag(_mmu.ZapTable(_world.Actor, table))));
    }

    private string RecoverNx(TraceRecord record) => Exclusive(() => WithRcu(() =>
    {
        Root? owner = _mmu.NxList.Count > 0 ? RootOf(_mmu.NxList[0]) : null;
        if (!_mmu.RecoverNxPage(_world.Actor, static _ => false, out TablePage table))
            return "EMPTY";
        Compare("sp", record.Find("sp")?.GetRawText() ?? "none", Text($"[\"{owner}\",{table.Level.Value},\"0x{table.Gfn.Value:x}\"]"));
        _mmu.FlushRemoteTlbs(_world.Actor);
        return "1";
    }));

    // A table that was zapped may be looked at, and is flushed for, before the section ends.
    private string WithRcu(Func<string> body)
    {
        _mmu.Rcu.ReadEnter(_world.Actor);
        string result = body();
        _mmu.Rcu.ReadExit(_world.Actor);
        return result;
    }

    private TablePage Find(string? root, int level, ulong gfn)
    {
        TablePage found = TablePage.None;
        foreach (Root candidate in _mmu.Roots.Where(r => r.ToString() == root))
        {
            _mmu.ForEachSpte(candidate, visit =>
            {
                if (visit.Kind == SpteKind.Table && visit.Level.Value == level + 1 && visit.Gfn == new Gfn(gfn).AlignDown(visit.Level))
                    found = _mmu.TableOf(visit.Spte);
            });
        }

        return found;
    }

    private Root? RootOf(TablePage table)
    {
        Root? owner = null;
        foreach (Root root in _mmu.Roots)
        {
            _mmu.ForEachSpte(root, visit =>
            {
                if (visit.Kind == SpteKind.Table && _mmu.TableOf(visit.Spte) == table)
                    owner = root;
            });
        }

        return owner;
    }

    private string Exclusive(Func<string> body)
    {
        _mmu.MmuLock.EnterWrite(_world.Actor);
        string result = body();
        _mmu.MmuLock.ExitWrite(_world.Actor);
        return result;
    }

    private string Shared(Func<string> body)
    {
        _mmu.MmuLock.EnterRead(_world.Actor);
        string result = body();
        _mmu.MmuLock.ExitRead(_world.Actor);
        return result;
    }

    private MmuVcpu VcpuOf(in TraceRecord inputs) => _world.Vcpu(inputs.Integer("v", 0, HighestVcpu));

    private MmuSlot SlotOf(in TraceRecord inputs) => _world.Slot(inputs).Mmu;

    private static GfnRange RangeOf(in TraceRecord inputs) => new(GfnOf(inputs, "start"), GfnOf(inputs, "end"));

    private static AliasFilter FilterOf(in TraceRecord inputs) => (AliasFilter)inputs.Integer("filter", 0, 3);

    private static Level LevelOf(in TraceRecord inputs, string name) => new(inputs.Integer(name, 1, 5));

    private static Gfn GfnOf(in TraceRecord inputs, string name)
    {
        ulong gfn = inputs.Number(name);
        return gfn < Gfn.Limit ? new Gfn(gfn) : throw inputs.Wrong(Text($"'{name}' is 0x{gfn:x}; allowed is a frame number below 0x{Gfn.Limit:x}"));
    }

    private Gpa AddressOf(in TraceRecord inputs) =>
        new((inputs.Number("gfn") << 12) | (inputs.Integer("sh", 0, 1, 0) != 0 ? _mmu.Options.AliasBit.GpaMask : 0));

    private ulong ErrorCode(in TraceRecord inputs)
    {
        ulong access = inputs.Text("acc") switch
        {
            "r" => PfErr.User,
            "w" => PfErr.Write,
            "x" => PfErr.Fetch,
            string other => throw inputs.Wrong($"'acc' is {other}; allowed is r, w, x"),
        };
        return access | (IsPrivate(inputs) ? PfErr.PrivateAccess : 0);
    }

    private static ulong Visible(Spte spte, int level) =>
        spte.Kind(new Level(level)) == SpteKind.Table ? spte.Value & ~Spte.AddressMask : spte.Value;

    private static string NameOf(FaultResult result) => result switch
    {
        FaultResult.WriteProtected => "WRITE_PROTECTED",
        _ => result.ToString().ToUpperInvariant(),
    };
}
