using System.Globalization;
using System.Text.Json;
using Tdp.Mmu;
using Tdp.Platform;
using Tdp.Sync;
using static Tdp.Tests.Conformance.Mmu.ReplayWorld;

namespace Tdp.Tests.Conformance.Mmu;

/// <content>Each recorded operation as a call of ours.</content>
internal sealed partial class ReplayedSequence
{
    private string Perform(string operation, JsonElement inputs, JsonElement record)
    {
        Actor actor = _world.Actor;
        MmuVcpu VcpuOf() => _world.Vcpu((int)Number(inputs, "v"));
        MmuSlot SlotOf() => _world.Slot((int)Number(inputs, "slot")).Mmu;
        GfnRange RangeOf() => new(new Gfn(Number(inputs, "start")), new Gfn(Number(inputs, "end")));
        switch (operation)
        {
            case "slot":
                _world.AddSlot(inputs);
                return "null";
            case "slotset":
                if (inputs.TryGetProperty("dirty", out _))
                    SlotOf().IsDirtyLogged = Number(inputs, "dirty") != 0;
                if (inputs.TryGetProperty("hl", out _))
                    _world.Slot((int)Number(inputs, "slot")).HostLevel = (int)Number(inputs, "hl");
                return "null";
            case "lpage":
                Level large = new((int)Number(inputs, "l"));
                SlotOf().AddDisallow(new Gfn(Number(inputs, "gfn")), large, (int)unchecked((long)Number(inputs, "d")));
                return SlotOf().DisallowCount(new Gfn(Number(inputs, "gfn")), large).ToString(CultureInfo.InvariantCulture);
            case "gen":
                _world.Generation = Number(inputs, "v");
                return "null";
            case "attr":
                _world.SetPrivate(Number(inputs, "start"), Number(inputs, "end"));
                return "null";
            case "track":
                return Track(inputs, SlotOf());
            case "alloc_root":
                return AllocateRoot(inputs, VcpuOf(), record);
            case "put_root":
                _mmu.UnloadRoot(VcpuOf(), Number(inputs, "mirror") != 0);
                return "null";
            case "map":
                return Map(inputs, VcpuOf(), record);
            case "fastpf":
                _world.Current = new ReplayFault(SlotOrNone(inputs), null, null, Level.G1);
                return NameOf(_mmu.FastFault(VcpuOf(), AddressOf(inputs), ErrorCode(inputs) | (Number(inputs, "present") != 0 ? PfErr.Present : 0)));
            case "last":
                return Last(VcpuOf(), Number(inputs, "gfn"));
            case "walk":
                return Walk(VcpuOf(), inputs, record);
            case "mapped":
                return Flag(_mmu.IsMapped(VcpuOf(), AddressOf(inputs)));
            case "unmap":
                return Exclusive(() => Flag(_mmu.UnmapRange(
                    actor, RangeOf(), (AliasFilter)Number(inputs, "filter"), Number(inputs, "block") != 0, Number(inputs, "flush") != 0, SlotOf().AddressSpace)));
            case "zapleafs":
                return Exclusive(() => Flag(_mmu.ZapLeafs(actor, RangeOf(), Number(inputs, "flush") != 0)));
            case "zapall":
                _mmu.ZapAll(actor);
                return "null";
            case "inval":
                return Exclusive(() =>
                {
                    _mmu.InvalidateRoots(actor, (RootKinds)Number(inputs, "types"));
                    return "null";
                });
            case "zapinv":
                _mmu.ZapInvalidatedRoots(actor, Number(inputs, "shared") != 0);
                return "null";
            case "zapsp":
                return ZapTable(inputs);
            case "nxrecover":
                return RecoverNx(record);
            case "uninit":
                _mmu.Destroy(actor);
                return "null";
            case "age":
                return Flag(_mmu.Age(actor, RangeOf(), (AliasFilter)Number(inputs, "filter"), SlotOf().AddressSpace));
            case "testage":
                return Flag(_mmu.TestAge(actor, RangeOf(), (AliasFilter)Number(inputs, "filter"), SlotOf().AddressSpace));
            case "wrprot":
                return Shared(() => Flag(_mmu.WriteProtectSlot(actor, SlotOf(), new Level((int)Number(inputs, "min")))));
            case "cdslot":
                return Shared(() =>
                {
                    _mmu.ClearDirtySlot(actor, SlotOf());
                    return "null";
                });
            case "cdmask":
                return Exclusive(() =>
                {
                    _mmu.ClearDirtyMasked(actor, SlotOf(), new Gfn(Number(inputs, "gfn")), Number(inputs, "mask"), Number(inputs, "wrprot") != 0);
                    return "null";
                });
            case "wpgfn":
                return Exclusive(() => Flag(_mmu.WriteProtectGfn(actor, SlotOf(), new Gfn(Number(inputs, "gfn")), new Level((int)Number(inputs, "min")))));
            case "split":
                bool shared = Number(inputs, "shared") != 0;
                Func<string> split = () => Flag(_mmu.TrySplitHuge(actor, _world.Spare, SlotOf(), RangeOf(), new Level((int)Number(inputs, "target")), shared));
                return shared ? Shared(split) : Exclusive(split);
            case "recover":
                return Shared(() =>
                {
                    _mmu.RecoverHuge(actor, SlotOf());
                    return "null";
                });
            case "hw":
                return Hardware(VcpuOf(), inputs);
            default:
                throw new InvalidOperationException($"unknown operation {operation}");
        }
    }

    private string Track(JsonElement inputs, MmuSlot slot)
    {
        Gfn gfn = new(Number(inputs, "gfn"));
        bool on = Number(inputs, "on") != 0;
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

    private string AllocateRoot(JsonElement inputs, MmuVcpu vcpu, JsonElement record)
    {
        bool mirror = Number(inputs, "mirror") != 0;
        if ((mirror ? vcpu.MirrorRoot : vcpu.DirectRoot) is not null)
            return "SKIP";
        vcpu.IsSmm = Number(inputs, "smm") != 0;
        vcpu.IsGuestMode = Number(inputs, "gm") != 0;
        Assert.True(_mmu.LoadRoot(vcpu, mirror));
        Root root = (mirror ? vcpu.MirrorRoot : vcpu.DirectRoot)!;
        Compare(record, "role", $"0x{Number(record, "role"):x}", $"0x{root.PeekRole().Value:x}");
        return root.ToString();
    }

    private string Map(JsonElement inputs, MmuVcpu vcpu, JsonElement record)
    {
        bool isPrivate = _world.IsTd && Number(inputs, "sh") == 0;
        if ((isPrivate ? vcpu.MirrorRoot : vcpu.DirectRoot) is null)
            return "SKIP";
        if (vcpu.DirectRoot is null)
        {
            // The recording called the map function without a direct root, which no fault does.
            vcpu.IsSmm = vcpu.IsGuestMode = false;
            return "SKIP";
        }

        if (vcpu.DirectRoot.IsInvalid)
            return "STALE";
        bool prefetch = Number(inputs, "pf") != 0;
        ulong error = ErrorCode(inputs);
        _world.Current = new ReplayFault(
            SlotOrNone(inputs),
            inputs.TryGetProperty("pfn", out _) ? Number(inputs, "pfn") : null,
            inputs.TryGetProperty("mw", out _) ? Number(inputs, "mw") != 0 : null,
            new Level((int)Number(inputs, "max")));
        ref Fault fault = ref _mmu.Decode(vcpu, AddressOf(inputs), error);
        fault.Prefetch = prefetch;
        FaultResult result = _mmu.ResolveSlow(ref fault);
        if (record.TryGetProperty("adj", out JsonElement adjusted))
        {
            Compare(record, "req", adjusted[0].ToString(), fault.ReqLevel.Value.ToString(CultureInfo.InvariantCulture));
            Compare(record, "nx", adjusted[3].ToString(), Flag(fault.HugePageDisallowed));
            Compare(record, "goal", Number(record, "goal").ToString(CultureInfo.InvariantCulture), fault.GoalLevel.Value.ToString(CultureInfo.InvariantCulture));
            if (SlotOrNone(inputs) is not null)
                Compare(record, "pfn", $"0x{Number(record, "pfn"):x}", $"0x{fault.Pfn:x}");
        }

        return NameOf(result);
    }

    private string Last(MmuVcpu vcpu, ulong gfn)
    {
        Span<Spte> path = stackalloc Spte[5];
        int level = _mmu.GetWalk(vcpu, vcpu.DirectRoot!, gfn, path);
        return $"[{level},0x{Masked(path[vcpu.DirectRoot!.Level.Value - level], level):x}]";
    }

    private string Walk(MmuVcpu vcpu, JsonElement inputs, JsonElement record)
    {
        Span<Spte> path = stackalloc Spte[5];
        Root root = vcpu.DirectRoot!;
        int level = _mmu.GetWalk(vcpu, root, AddressOf(inputs).Value >> 12, path);
        if (level > 0)
        {
            var values = new List<string>();
            for (int l = root.Level.Value; l >= level; l--)
                values.Add($"0x{Masked(path[root.Level.Value - l], l):x}");
            Compare(record, "path", List(record, "path"), string.Join(",", values));
        }

        // The recording walks natural numbers through the alias bit of the direct root.
        return level.ToString(CultureInfo.InvariantCulture);
    }

    private string ZapTable(JsonElement inputs)
    {
        string root = inputs.TryGetProperty("root", out JsonElement name)
            ? name.GetString()!
            : _world.Vcpu((int)Number(inputs, "v")).DirectRoot?.ToString() ?? "-";
        TablePage table = Find(root, (int)Number(inputs, "level"), Number(inputs, "gfn"));
        if (table.IsNone)
            return "SKIP";
        return Exclusive(() => WithRcu(() => Flag(_mmu.ZapTable(_world.Actor, table))));
    }

    private string RecoverNx(JsonElement record)
    {
        return Exclusive(() => WithRcu(() =>
        {
            Root? owner = null;
            if (_mmu.NxList.Count > 0)
                owner = RootOf(_mmu.NxList[0]);
            if (!_mmu.RecoverNxPage(_world.Actor, static _ => false, out TablePage table))
                return "EMPTY";
            Compare(record, "sp", record.GetProperty("sp").GetRawText(), $"[\"{owner}\",{table.Level.Value},\"0x{table.Gfn.Value:x}\"]");
            _mmu.FlushRemoteTlbs(_world.Actor);
            return "1";
        }));
    }

    // A table that was zapped may be looked at, and is flushed for, before the section ends.
    private string WithRcu(Func<string> body)
    {
        _mmu.Rcu.ReadEnter(_world.Actor);
        string result = body();
        _mmu.Rcu.ReadExit(_world.Actor);
        return result;
    }

    // Not code of the MMU: what the processor does. It sets A and D only in leaves of A/D type "enabled".
    private string Hardware(MmuVcpu vcpu, JsonElement inputs)
    {
        if (vcpu.DirectRoot is not { } root)
            return "SKIP";
        Gpa gpa = new(Number(inputs, "gfn") << 12);
        AccessKind access = Number(inputs, "w") != 0 ? AccessKind.Write : AccessKind.Read;
        EptWalk walk = EptWalker.Walk(_world.Machine.Memory, EptPointer.Make(root.Frame, root.Level, accessedDirty: false), gpa, access);
        if (walk.Outcome == EptOutcome.Misconfiguration)
            return "MISCONFIG";
        if (walk.Outcome == EptOutcome.Violation)
            return (walk.Entry & EptEntry.Rwx) == 0 ? "MISS" : access == AccessKind.Write ? "WPROT" : "NOREAD";
        if ((walk.Entry & Spte.AdTypeMask) != Spte.AdDisabled)
            EptWalker.Walk(_world.Machine.Memory, EptPointer.Make(root.Frame, root.Level, accessedDirty: true), gpa, access);
        return "HIT";
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

    private ReplaySlot? SlotOrNone(JsonElement inputs)
    {
        int slot = (int)unchecked((long)Number(inputs, "slot"));
        return slot < 0 ? null : _world.Slot(slot);
    }

    private Gpa AddressOf(JsonElement inputs) =>
        new((Number(inputs, "gfn") << 12) | (Number(inputs, "sh") != 0 ? _mmu.Options.AliasBit.GpaMask : 0));

    private ulong ErrorCode(JsonElement inputs)
    {
        ulong access = inputs.GetProperty("acc").GetString() switch { "w" => PfErr.Write, "x" => PfErr.Fetch, _ => PfErr.User };
        return access | (_world.IsTd && Number(inputs, "sh") == 0 ? PfErr.PrivateAccess : 0);
    }

    private static string NameOf(FaultResult result) => result switch
    {
        FaultResult.WriteProtected => "WRITE_PROTECTED",
        _ => result.ToString().ToUpperInvariant(),
    };
}
