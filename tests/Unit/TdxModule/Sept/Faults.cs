using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>The faults of host leaves by name.</summary>
internal static class Faults
{
    private const ulong Hkid = 1UL << 46;
    private const ulong NoTdmr = 6UL << 30;
    private const ulong OtherSlot = 0x100_0000_0000;

    /// <summary>The situation in which a leaf succeeds.</summary>
    public static SceneSetup LegalSetup(string leaf) => leaf switch
    {
        "TDH.MEM.PAGE.ADD" => new SceneSetup(SeptState.FREE, 0, SceneMode.Built),
        "TDH.MEM.PAGE.AUG" => new SceneSetup(SeptState.FREE, 0, SceneMode.Untracked),
        "TDH.MEM.SEPT.ADD" => new SceneSetup(SeptState.FREE, 1, SceneMode.Untracked),
        "TDH.MEM.RANGE.BLOCK" => new SceneSetup(SeptState.MAPPED, 0, SceneMode.Untracked),
        "TDH.MEM.RANGE.UNBLOCK" or "TDH.MEM.PAGE.REMOVE" or "TDH.MEM.PAGE.RELOCATE" => new SceneSetup(SeptState.BLOCKED, 0, SceneMode.Tracked),
        "TDH.MEM.SEPT.REMOVE" => new SceneSetup(SeptState.NL_BLOCKED, 1, SceneMode.Tracked),
        "TDH.MEM.PAGE.PROMOTE" => new SceneSetup(SeptState.NL_BLOCKED, 1, SceneMode.Tracked, SceneChildren.Pending),
        "TDH.MEM.PAGE.DEMOTE" => new SceneSetup(SeptState.PENDING_BLOCKED, 1, SceneMode.Tracked),
        "TDH.MEM.RD" or "TDH.MEM.WR" => new SceneSetup(SeptState.MAPPED, 0, SceneMode.Untracked, Attributes: SeptScene.Debug),
        "TDH.MR.EXTEND" => new SceneSetup(SeptState.MAPPED, 0, SceneMode.Built),
        _ => new SceneSetup(SeptState.MAPPED, 0, SceneMode.Untracked),
    };

    public static Fault Of(string name) => Dispatcher(name) ?? Gate(name) ?? Operand(name) ?? Entry(name) ?? Offered(name) ?? Specific(name)
        ?? throw new ArgumentException($"nobody knows how to bring '{name}' about", nameof(name));

    private static Fault? Dispatcher(string name) => name switch
    {
        "rax-reserved" => new Fault(FaultSubject.Rax) { Information = FaultInformation.Operands, Registers = f => f.Call.Rax |= 1UL << 24 },
        "version" => new Fault(FaultSubject.Rax) { Information = FaultInformation.Operands, Registers = f => f.Call.Rax |= 1UL << 16 },
        "version-2" => new Fault(FaultSubject.Rax) { Registers = f => f.Call.Rax |= 2UL << 16 },
        "shut-down" => new Fault(FaultSubject.System) { Information = FaultInformation.Operands, Finally = f => f.Rig.Must(TdhLeaf.SYS_SHUTDOWN, lp: 2) },
        _ => null,
    };

    private static Fault? Gate(string name) => name switch
    {
        "rdx-reserved" => new Fault(FaultSubject.Td) { Registers = f => f.Call.Rdx |= 0x40 },
        "tdr-illegal" => new Fault(FaultSubject.Td) { Registers = f => f.Td |= Hkid },
        "tdr-outside" => new Fault(FaultSubject.Td) { Registers = f => f.Td = NoTdmr },
        "tdr-type" => new Fault(FaultSubject.Td) { Registers = f => f.Td = f.Rig.Vcpus[0].Value },
        "tdr-held" => new Fault(FaultSubject.Td) { Hold = f => f.Hold(ModuleLock.Page, true, f.Scene.Tdr) },
        "tdr-shared" => new Fault(FaultSubject.Td) { Hold = f => f.Hold(ModuleLock.Page, false, f.Scene.Tdr) },
        "td-fatal" => new Fault(FaultSubject.Td) { Prepare = Kill },
        "td-keys" => new Fault(FaultSubject.Td) { Registers = f => f.Td = Unfinished(f.Rig, packages: 1, pages: 0) },
        "td-pages" => new Fault(FaultSubject.Td) { Registers = f => f.Td = Unfinished(f.Rig, packages: 2, pages: 5) },
        "op-state-held" => new Fault(FaultSubject.Td) { Hold = f => f.Hold(ModuleLock.OpState, true, f.Scene.Tdr) },
        "op-state" => new Fault(FaultSubject.Td) { Registers = f => f.Td = Unfinished(f.Rig, packages: 2, pages: 6) },
        "op-state-runs" => new Fault(FaultSubject.Td) { Prepare = f => f.Rig.Must(TdhLeaf.MR_FINALIZE, f.Scene.Tdr) },
        "l2-of-production" => new Fault(FaultSubject.Td) { Registers = f => f.Call.Rdx |= 1 },
        "production" => new Fault(FaultSubject.Attributes) { Setup = s => s with { Attributes = 0 } },
        _ => null,
    };

    private static Fault? Operand(string name) => name switch
    {
        "level" => new Fault(FaultSubject.Gpa) { Registers = f => f.Call.Rcx = f.Scene.GpaAt(3) | 6 },
        "info-reserved" => new Fault(FaultSubject.Gpa) { Registers = f => f.Call.Rcx |= 0x20 },
        "gpa-align" => new Fault(FaultSubject.Gpa) { Registers = f => f.Call.Rcx = f.Scene.GpaAt(1) | 0x1000 | 1 },
        "gpa-unaligned" => new Fault(FaultSubject.Gpa) { Registers = f => f.Call.Rcx |= 4 },
        "gpa-shared" => new Fault(FaultSubject.Gpa) { Registers = f => f.Call.Rcx |= 1UL << 47 },
        "gpa-width" => new Fault(FaultSubject.Gpa) { Registers = f => f.Call.Rcx |= 1UL << 48 },
        "walk" => new Fault(FaultSubject.Gpa) { Information = FaultInformation.Root, Registers = f => f.Call.Rcx += OtherSlot },
        _ => null,
    };

    private static Fault? Entry(string name) => name switch
    {
        "tree-held" => new Fault(FaultSubject.Tree) { Hold = f => f.Hold(ModuleLock.SeptTree, true, f.Scene.Tdr) },
        "tree-shared" => new Fault(FaultSubject.Tree) { Hold = f => f.Hold(ModuleLock.SeptTree, false, f.Scene.Tdr) },
        "entry-held" => new Fault(FaultSubject.Entry) { Information = FaultInformation.Entry, Hold = f => f.Hold(ModuleLock.SeptEntry, true, f.Scene.Tdr, f.HeldGpa, f.Level) },
        "state" => new Fault(FaultSubject.Gpa) { Information = FaultInformation.Entry, Prepare = FillFree, Registers = ToFreeNeighbour },
        "no-leaf" => new Fault(FaultSubject.Gpa) { Information = FaultInformation.Entry, Setup = s => s with { State = SeptState.PENDING } },
        "blocked" => new Fault(FaultSubject.Mode) { Information = FaultInformation.Entry, Setup = s => s with { State = SeptEffect.Blocked(s.State) } },
        "not-blocked" => new Fault(FaultSubject.Mode) { Information = FaultInformation.Entry, Setup = s => s with { State = SeptEffect.Open(s.State), Mode = SceneMode.Untracked } },
        "untracked" => new Fault(FaultSubject.Mode) { Setup = s => s with { Mode = SceneMode.Untracked } },
        "still-inside" => new Fault(FaultSubject.Mode) { NeedsGuest = true, Setup = s => s with { Mode = SceneMode.Busy } },
        _ => null,
    };

    private static Fault? Offered(string name) => name switch
    {
        "page-none" => new Fault(FaultSubject.Offered) { Registers = f => f.Call.R8 = ulong.MaxValue },
        "page-illegal" => new Fault(FaultSubject.Offered) { Registers = f => f.Call.R8 |= 0x10 },
        "page-outside" => new Fault(FaultSubject.Offered) { Registers = f => f.Call.R8 = NoTdmr + 0x3000 },
        "page-used" => new Fault(FaultSubject.Offered) { Registers = f => f.Call.R8 = f.Rig.Vcpus[1].Value },
        "page-same" => new Fault(FaultSubject.Offered) { Registers = f => f.Call.R8 = f.Scene.Page },
        "page-held" => new Fault(FaultSubject.Offered) { Hold = f => f.Hold(ModuleLock.Page, true, f.Call.R8) },
        "page-above-held" => new Fault(FaultSubject.Offered)
        {
            Registers = f => f.Call.R8 = f.Rig.LargePage().Value + 0x5000,
            Hold = f => f.Hold(ModuleLock.Page, true, f.Call.R8 & ~0x1F_FFFFUL, level: 1),
        },
        "source" => new Fault(FaultSubject.Source) { Registers = f => f.Call.R9 |= 8 },
        _ => null,
    };

    private static Fault? Specific(string name) => name switch
    {
        "target-held" => new Fault(FaultSubject.Target) { Hold = f => f.Hold(ModuleLock.Page, true, f.Scene.Table != 0 ? f.Scene.Table : f.Scene.Page) },
        "child-in-use" => new Fault(FaultSubject.Children) { Information = FaultInformation.Entry, Setup = s => s with { Children = SceneChildren.One } },
        "children-differ" => new Fault(FaultSubject.Children) { Information = FaultInformation.Entry, Setup = s => s with { Children = SceneChildren.Hole } },
        "child-held" => new Fault(FaultSubject.Child) { Information = FaultInformation.Entry, Prepare = HoldChild },
        "interrupt" => new Fault(FaultSubject.Interrupt) { Information = FaultInformation.Operands, Finally = f => f.Rig.Lp(0).PendingInterrupt.Write(0x40) },
        "large-held" => new Fault(FaultSubject.Large) { Hold = f => f.Hold(ModuleLock.Page, true, f.Scene.Page, level: 1) },
        "epoch-held" => new Fault(FaultSubject.Epoch) { Hold = f => f.Hold(ModuleLock.Epoch, true, f.Scene.Tdr) },
        "epoch-shared" => new Fault(FaultSubject.Epoch) { Hold = f => f.Hold(ModuleLock.Epoch, false, f.Scene.Tdr) },
        "epoch-busy" => new Fault(FaultSubject.Mode) { NeedsGuest = true, Prepare = TrackUnderGuest },
        _ => null,
    };

    // An exit that no table lists is the end of a production TD; a debug TD dies of nothing that a test could send, so it is asked as a production one.
    private static void Kill(FaultScene f)
    {
        if (f.Rig.Module.Td(f.Rig.Tdr)!.OpState == TdOpState.INITIALIZED)
            f.Rig.Must(TdhLeaf.MR_FINALIZE, f.Scene.Tdr);
        if (f.Leaf is "TDH.MEM.RD" or "TDH.MEM.WR")
        {
            f.Rig.BuildTd(vcpus: 0, hkid: 20);
            Hpa vcpu = f.Rig.AddVcpu(2);
            f.Rig.Must(TdhLeaf.MR_FINALIZE, f.Rig.Tdr.Value);
            Die(f.Rig, f.Rig.Vcpus.IndexOf(vcpu), 2);
            f.Td = f.Rig.Tdr.Value;
            return;
        }

        Die(f.Rig, 0, 0);
    }

    private static void Die(ModuleRig rig, int vcpu, int lp)
    {
        rig.EnterTd(vcpu, lp);
        Assert.Equal(TdxStatus.NON_RECOVERABLE_TD, rig.Exit(lp, new VmExit { Reason = (ExitReason)63 }).Status.Class);
    }

    private static ulong Unfinished(ModuleRig rig, int packages, int pages)
    {
        ulong tdr = rig.Page().Value;
        rig.Must(TdhLeaf.MNG_CREATE, tdr, 18);
        int keyed = 0;
        rig.OnEachPackage(lp =>
        {
            if (keyed++ < packages)
                rig.Must(TdhLeaf.MNG_KEY_CONFIG, tdr, lp: lp);
        });
        for (int i = 0; i < pages; i++)
            rig.Must(TdhLeaf.MNG_ADDCX, rig.Page().Value, tdr);
        return tdr;
    }

    // Leaves that need a FREE entry find it used; the others are sent to a FREE one beside it.
    private static void FillFree(FaultScene f)
    {
        if (NeedsFree(f.Leaf))
            f.Rig.Must(HostCalls.LeafOf(f.Leaf), f.Call.Rcx, f.Call.Rdx, f.Rig.Page().Value, f.Call.R9);
    }

    private static void ToFreeNeighbour(FaultScene f)
    {
        if (!NeedsFree(f.Leaf))
            f.Call.Rcx = f.NeighbourGpa | (uint)f.Level;
    }

    private static bool NeedsFree(string leaf) => leaf is "TDH.MEM.PAGE.ADD" or "TDH.MEM.PAGE.AUG" or "TDH.MEM.SEPT.ADD";

    // Below a blocked table nobody can walk, so the holder came before the block.
    private static void HoldChild(FaultScene f) => f.Rig.Machine.Memory.Word(f.Scene.Table + (5 * 8)) |= SeptFormat.Lock;

    private static void TrackUnderGuest(FaultScene f)
    {
        f.Rig.EnterTd(1);
        f.Rig.Must(TdhLeaf.MEM_TRACK, f.Scene.Tdr);
    }
}
