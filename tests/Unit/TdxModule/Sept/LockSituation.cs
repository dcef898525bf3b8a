using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>
/// One leaf in a situation in which it succeeds, with the places of the locks around it. Variants of a leaf carry a suffix: <c>.1</c> a version, <c>.2M</c> a
/// size, <c>.faults</c> a recorded fault list.
/// </summary>
internal sealed class LockSituation : IDisposable
{
    private const ulong HpLockTimeout = 0x9110_0003_0000_0011;
    private const ulong PostedVector = 0x0024_0001_0000_0002;
    private const ulong PendNmi = 0x2020_0000_0000_000B;
    private readonly Func<string> _call;
    private ulong _tdr;
    private ulong _tdvpr;
    private ulong _offered;
    private ulong _target;
    private ulong _large;
    private SeptScene? _scene;

    public LockSituation(string leaf)
    {
        Leaf = leaf;
        string name = leaf.Split('.')[^1] is "1" or "2M" or "faults" ? leaf[..leaf.LastIndexOf('.')] : leaf;
        _call = name switch
        {
            _ when leaf.StartsWith("TDH.SYS", StringComparison.Ordinal) => System(name),
            _ when leaf.StartsWith("TDH.PHYMEM", StringComparison.Ordinal) => Physical(name),
            _ when leaf.StartsWith("TDH.MNG", StringComparison.Ordinal) => Manage(name),
            _ when leaf.StartsWith("TDH.VP", StringComparison.Ordinal) => Vcpu(name),
            _ when leaf.StartsWith("TDG", StringComparison.Ordinal) => Guest(name),
            "TDH.MR.FINALIZE" => Finalize(),
            _ => Memory(name),
        };
    }

    public string Leaf { get; }

    public ModuleRig Rig { get; private set; } = null!;

    public ulong Tdr => _tdr;

    /// <summary>Calls the leaf; returns what came.</summary>
    public string Call() => _call();

    /// <summary>Takes one of the locks as another processor would; null when it cannot be had at all, because of what the situation itself holds.</summary>
    public InjectedLock? Hold(string name, bool exclusive)
    {
        LockPlace place = name switch
        {
            "TDR" => new(ModuleLock.Page, _tdr),
            "TDVPR" => new(ModuleLock.Page, _tdvpr),
            "OFFERED" => new(ModuleLock.Page, _offered),
            "TARGET" => new(ModuleLock.Page, _target),
            "LARGE" => new(ModuleLock.Page, _large, Level: 1),
            "OP_STATE" => new(ModuleLock.OpState, _tdr),
            "SEPT_TREE" => new(ModuleLock.SeptTree, _tdr),
            "EPOCH" => new(ModuleLock.Epoch, _tdr),
            "RTMR" => new(ModuleLock.Rtmr, _tdr),
            "KOT" => new(ModuleLock.Kot),
            "SYS" => new(ModuleLock.System),
            "TDMR" => new(ModuleLock.Tdmr, SeptMachine.Whole),
            "WRITEBACK" => new(ModuleLock.WriteBack),
            "ENTRY" => new(ModuleLock.SeptEntry, _tdr, _scene!.Gpa, _scene.EntryLevel.Value - 1),
            "CHILD" => new(ModuleLock.SeptEntry, _tdr, _scene!.Gpa + (511UL << 12)),
            _ => throw new ArgumentException($"there is no lock '{name}'", nameof(name)),
        };
        return Rig.Module.TryHold(place.Kind, exclusive, new Hpa(place.Where), new Gpa(place.Gpa), Level.FromTdx(place.Level));
    }

    public void Dispose()
    {
        if (_scene is not null)
            _scene.Dispose();
        else
            Rig.Dispose();
    }

    private Func<string> Seamcall(TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0, int version = 0) =>
        () => Statuses.Name(Rig.Call(leaf, rcx, rdx, r8, r9, version: version));

    private void Ready(bool bringUp = true)
    {
        Rig = new ModuleRig(options: new TdxModuleOptions { TdmrInitPages = 262144 }, machine: SeptMachine.Describe(), bringUp: false);
        if (bringUp)
            Rig.BringUp(tdmrs: 1);
    }

    private Func<string> System(string name)
    {
        Ready(bringUp: name is "TDH.SYS.TDMR.INIT" or "TDH.SYS.SHUTDOWN");
        switch (name)
        {
            case "TDH.SYS.TDMR.INIT":
                return Seamcall(TdhLeaf.SYS_TDMR_INIT, SeptMachine.Whole);
            case "TDH.SYS.SHUTDOWN":
                return Seamcall(TdhLeaf.SYS_SHUTDOWN);
            case "TDH.SYS.INIT":
                return Seamcall(TdhLeaf.SYS_INIT);
            default:
                break;
        }

        Rig.Must(TdhLeaf.SYS_INIT);
        if (name == "TDH.SYS.LP.INIT")
            return Seamcall(TdhLeaf.SYS_LP_INIT);
        for (int i = 0; i < Rig.Machine.Processors.Count; i++)
            Rig.Must(TdhLeaf.SYS_LP_INIT, lp: i);
        ulong array = Rig.WriteTdmrs().Value;
        ulong count = (ulong)Rig.Machine.Description.Tdmrs.Count;
        if (name == "TDH.SYS.CONFIG")
            return Seamcall(TdhLeaf.SYS_CONFIG, array, count, 16);
        Rig.Must(TdhLeaf.SYS_CONFIG, array, count, 16);
        return Seamcall(TdhLeaf.SYS_KEY_CONFIG);
    }

    private Func<string> Physical(string name)
    {
        Ready();
        if (name == "TDH.PHYMEM.PAGE.WBINVD")
        {
            _offered = Rig.Page().Value;
            return Seamcall(TdhLeaf.PHYMEM_PAGE_WBINVD, _offered);
        }

        _tdr = Rig.BuildTd(vcpus: 1).Value;
        _tdvpr = Rig.Vcpus[0].Value;
        _target = _tdvpr;
        if (name == "TDH.PHYMEM.PAGE.RDMD")
            return Seamcall(TdhLeaf.PHYMEM_PAGE_RDMD, _target);
        Rig.Must(TdhLeaf.VP_FLUSH, _tdvpr);
        Rig.Must(TdhLeaf.MNG_VPFLUSHDONE, _tdr);
        if (name == "TDH.PHYMEM.CACHE.WB")
            return Seamcall(TdhLeaf.PHYMEM_CACHE_WB);
        Rig.OnEachPackage(lp => Rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: lp));
        Rig.Must(TdhLeaf.MNG_KEY_FREEID, _tdr);
        return Seamcall(TdhLeaf.PHYMEM_PAGE_RECLAIM, _target);
    }

    private Func<string> Manage(string name)
    {
        Ready();
        if (name is "TDH.MNG.CREATE")
        {
            _offered = Rig.Page().Value;
            return Seamcall(TdhLeaf.MNG_CREATE, _offered, 17);
        }

        if (name is "TDH.MNG.KEY.CONFIG" or "TDH.MNG.ADDCX" or "TDH.MNG.INIT")
            return Construct(name);
        _tdr = Rig.BuildTd(vcpus: 0).Value;
        switch (name)
        {
            case "TDH.MNG.RD":
                return Seamcall(TdhLeaf.MNG_RD, _tdr, HpLockTimeout);
            case "TDH.MNG.WR":
                return Seamcall(TdhLeaf.MNG_WR, _tdr, HpLockTimeout, 20_000, ulong.MaxValue);
            case "TDH.MNG.VPFLUSHDONE":
                return Seamcall(TdhLeaf.MNG_VPFLUSHDONE, _tdr);
            default:
                Rig.Must(TdhLeaf.MNG_VPFLUSHDONE, _tdr);
                Rig.OnEachPackage(lp => Rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: lp));
                return Seamcall(TdhLeaf.MNG_KEY_FREEID, _tdr);
        }
    }

    private Func<string> Construct(string name)
    {
        _tdr = Rig.Page().Value;
        Rig.Must(TdhLeaf.MNG_CREATE, _tdr, 17);
        if (name == "TDH.MNG.KEY.CONFIG")
            return Seamcall(TdhLeaf.MNG_KEY_CONFIG, _tdr);
        Rig.OnEachPackage(lp => Rig.Must(TdhLeaf.MNG_KEY_CONFIG, _tdr, lp: lp));
        for (int i = 0; i < 6; i++)
        {
            _offered = Rig.Page().Value;
            if (name == "TDH.MNG.ADDCX")
                return Seamcall(TdhLeaf.MNG_ADDCX, _offered, _tdr);
            Rig.Must(TdhLeaf.MNG_ADDCX, _offered, _tdr);
        }

        return Seamcall(TdhLeaf.MNG_INIT, _tdr, Rig.Parameters().Value);
    }

    private Func<string> Vcpu(string name)
    {
        Ready();
        _tdr = Rig.BuildTd(vcpus: 0).Value;
        _tdvpr = Rig.Page().Value;
        _offered = _tdvpr;
        if (name == "TDH.VP.CREATE")
            return Seamcall(TdhLeaf.VP_CREATE, _tdvpr, _tdr);
        Rig.Must(TdhLeaf.VP_CREATE, _tdvpr, _tdr);
        for (int i = 0; i < 5; i++)
        {
            _offered = Rig.Page().Value;
            if (name == "TDH.VP.ADDCX")
                return Seamcall(TdhLeaf.VP_ADDCX, _offered, _tdvpr);
            Rig.Must(TdhLeaf.VP_ADDCX, _offered, _tdvpr);
        }

        Rig.Module.UseEntryState(new Hpa(_tdvpr), GuestStart.Flat64);
        if (name == "TDH.VP.INIT")
            return Seamcall(TdhLeaf.VP_INIT, _tdvpr, version: Leaf.EndsWith(".1", StringComparison.Ordinal) ? 1 : 0);
        Rig.Must(TdhLeaf.VP_INIT, _tdvpr);
        Rig.Must(TdhLeaf.MR_FINALIZE, _tdr);
        switch (name)
        {
            case "TDH.VP.FLUSH":
                return Seamcall(TdhLeaf.VP_FLUSH, _tdvpr);
            case "TDH.VP.RD":
                return Seamcall(TdhLeaf.VP_RD, _tdvpr, PostedVector);
            case "TDH.VP.WR":
                return Seamcall(TdhLeaf.VP_WR, _tdvpr, PendNmi, 1, 1);
            default:
                if (Leaf.EndsWith(".faults", StringComparison.Ordinal))
                    RecordFault();
                return Enter;
        }
    }

    // Seven violations at one RIP, then the page is there and accepted by another vCPU: the filter will look, and let the guest in.
    private void RecordFault()
    {
        const ulong gpa = 0x4000_0000;
        Rig.Vcpus.Add(new Hpa(_tdvpr));
        for (int i = 0; i < 7; i++)
        {
            Rig.EnterTd(0);
            Rig.Exit(0, new VmExit { Reason = ExitReason.EptViolation, Qualification = 2, Gpa = gpa });
        }

        Rig.AddTables(gpa);
        Rig.Aug(gpa);
    }

    private string Enter()
    {
        SeamRegisters registers = new() { Rcx = _tdvpr };
        if (!Rig.Module.BeginEnter(Rig.Lp(0), ref registers))
            return Statuses.Name(registers.Status);
        Rig.Vcpus.Add(new Hpa(_tdvpr));
        Rig.Interrupt(0);
        return "SUCCESS";
    }

    private Func<string> Finalize()
    {
        Ready();
        _tdr = Rig.BuildTd(vcpus: 1).Value;
        return Seamcall(TdhLeaf.MR_FINALIZE, _tdr);
    }

    private Func<string> Memory(string name)
    {
        bool large = Leaf.EndsWith(".2M", StringComparison.Ordinal);
        SceneSetup setup = Faults.LegalSetup(name);

        // Below a blocked table the test could not reach the child that it is to hold.
        if (name == "TDH.MEM.PAGE.PROMOTE")
            setup = setup with { State = SeptState.NL_MAPPED, Mode = SceneMode.Built };
        _scene = new SeptScene(large ? setup with { Level = 1 } : setup);
        Rig = _scene.Rig;
        _tdr = _scene.Tdr;
        _target = _scene.Table != 0 ? _scene.Table : _scene.Page;
        SeamRegisters call = HostCalls.Legal(name, _scene, _scene.EntryLevel.Value - 1);
        _offered = call.R8;
        _large = large ? call.R8 : _scene.Page;
        return () => Statuses.Name(Rig.Raw(0, call).Status);
    }

    private Func<string> Guest(string name)
    {
        bool measures = name.StartsWith("TDG.MR", StringComparison.Ordinal);
        _scene = new SeptScene(new SceneSetup(measures ? SeptState.MAPPED : SeptState.PENDING, 0, SceneMode.Untracked));
        Rig = _scene.Rig;
        _tdr = _scene.Tdr;
        _scene.EnterGuest();
        return () => Statuses.Name(name switch
        {
            "TDG.MEM.PAGE.ACCEPT" => Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, _scene.Gpa),
            "TDG.MEM.PAGE.ATTR.RD" => Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ATTR_RD, _scene.Gpa),
            "TDG.MEM.PAGE.ATTR.WR" => Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ATTR_WR, _scene.Gpa),
            "TDG.MR.RTMR.EXTEND" => Rig.Tdcall(0, TdgLeaf.MR_RTMR_EXTEND, _scene.Gpa),
            _ => Rig.Tdcall(0, TdgLeaf.MR_REPORT, _scene.Gpa, _scene.Gpa + 0x400),
        });
    }

    private readonly record struct LockPlace(ModuleLock Kind, ulong Where = 0, ulong Gpa = 0, int Level = 0);
}
