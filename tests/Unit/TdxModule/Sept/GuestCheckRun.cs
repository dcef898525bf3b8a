using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>Drives one check of a guest leaf on a PENDING 4 KiB page.</summary>
internal static class GuestCheckRun
{
    /// <summary>Default HP_LOCK_TIMEOUT at the machine's 1 GHz (tdx-module 4.5, MNG.INIT).</summary>
    private const ulong OneSecond = 1_000_000_000;

    /// <summary>Returns what came, as the tables write it; it has been compared already.</summary>
    public static string Check(LeafCheck check)
    {
        using SeptScene scene = new(new SceneSetup(SeptState.PENDING, 0, SceneMode.Untracked));
        Vmcs vmcs = scene.EnterGuest();
        GuestState state = vmcs.State;
        InjectedLock? held = null;
        ulong leaf = check.Leaf switch { "TDG.MEM.PAGE.ACCEPT" => 6, "TDG.MEM.PAGE.ATTR.RD" => 23, _ => 24 };
        ulong gpa = check.Leaf == "TDG.MEM.PAGE.ATTR.RD" ? scene.Gpa + 0x10 : scene.Gpa;
        ulong rax = leaf;
        ulong rdx = 0;
        ulong r8 = 0;
        switch (check.Fault)
        {
            case "rax-reserved":
                rax |= 1UL << 40;
                break;
            case "version":
                rax |= 1UL << 16;
                break;
            case "level":
                gpa = scene.GpaAt(3) | 3;
                break;
            case "info-reserved":
                gpa |= 0x100;
                break;
            case "gpa-align":
                gpa = scene.GpaAt(1) | 0x1000 | 1;
                break;
            case "gpa-shared":
                gpa |= 1UL << 47;
                break;
            case "gpa-width":
                gpa |= 1UL << 48;
                break;
            case "attributes":
                rdx = 1;
                break;
            case "attribute-mask":
                r8 = 1;
                break;
            case "walk":
                gpa += 0x100_0000_0000;
                break;
            case "entry-held":
                held = scene.Rig.Module.TryHold(ModuleLock.SeptEntry, true, scene.Rig.Tdr, new Gpa(scene.Gpa), Level.K4);
                break;
            case "host-priority" or "priority-timeout":
                LoseOnce(scene);
                break;
            default:
                throw new ArgumentException($"nobody knows how to bring '{check.Fault}' about for a guest", nameof(check));
        }

        if (check.Fault == "priority-timeout")
        {
            Assert.True(Call(scene, vmcs, rax, gpa, rdx, r8, out _));
            scene.Rig.Lp(0).Spend(OneSecond);
        }

        ModuleState before = scene.Snapshot();
        ulong rip = state.Rip;
        bool stays = Call(scene, vmcs, rax, gpa, rdx, r8, out SeamRegisters host);
        string came = stays ? Statuses.Name(new TdxStatus(state[Gpr.Rax])) : NameOf(host);
        Assert.Equal(check.Answer, came);
        if (came != "EXIT ATTR_WR")
            Assert.Equal(rip + 4, state.Rip);
        if (came == "EXIT HOST_PRIORITY_BUSY_TIMEOUT")
            CheckTimeout(scene, vmcs, host);
        if (stays)
            Assert.Empty(ModuleState.Differences(before, scene.Snapshot()));
        if (held is { } mine)
            scene.Rig.Module.Release(mine);
        return came;
    }

    // A host leaf that loses the entry leaves its priority in it (tdx-module 7.3).
    private static void LoseOnce(SeptScene scene)
    {
        InjectedLock held = scene.Rig.Module.TryHold(ModuleLock.SeptEntry, true, scene.Rig.Tdr, new Gpa(scene.Gpa), Level.K4)!.Value;
        Assert.Equal(Statuses.Parse("OPERAND_BUSY|RCX"), scene.Rig.Call(TdhLeaf.MEM_SEPT_RD, scene.Operand, scene.Tdr, lp: 1));
        scene.Rig.Module.Release(held);
    }

    private static bool Call(SeptScene scene, Vmcs vmcs, ulong rax, ulong rcx, ulong rdx, ulong r8, out SeamRegisters host)
    {
        vmcs.State[Gpr.Rax] = rax;
        vmcs.State[Gpr.Rcx] = rcx;
        vmcs.State[Gpr.Rdx] = rdx;
        vmcs.State[Gpr.R8] = r8;
        vmcs.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 };
        host = default;
        return scene.Rig.Module.HandleExit(scene.Rig.Lp(0), ref host);
    }

    private static string NameOf(in SeamRegisters host) => (host.Rax >> 32) switch
    {
        0x9000_0205 => "EXIT HOST_PRIORITY_BUSY_TIMEOUT",
        0 when host.Rax == 48 && (host.Rdx & 15) == 5 => "EXIT ATTR_WR",
        _ => $"EXIT with RAX 0x{host.Rax:x}, RDX 0x{host.Rdx:x}",
    };

    // The guest will find the plain busy status, the host may answer with its hint (tdx-module 4.9, 7.5).
    private static void CheckTimeout(SeptScene scene, Vmcs vmcs, in SeamRegisters host)
    {
        Assert.Equal(0x9000_0205_0000_0000UL, host.Rax);
        ulong busy = Statuses.Parse("OPERAND_BUSY|RCX").Value;
        Assert.Equal(busy, vmcs.State[Gpr.Rax]);
        SeamRegisters again = new() { Rcx = scene.Rig.Vcpus[0].Value | (1UL << 52) };
        Assert.True(scene.Rig.Module.BeginEnter(scene.Rig.Lp(0), ref again));
        Assert.Equal(busy | (1UL << 60), vmcs.State[Gpr.Rax]);
        scene.Rig.Must(TdhLeaf.MEM_SEPT_RD, scene.Operand, scene.Tdr, lp: 1);
        Assert.Equal(TdxStatus.SUCCESS, scene.Rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, scene.Gpa));
    }
}
