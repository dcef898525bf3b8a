using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>What the tests of the checklist have in common (tdx-module 10).</summary>
internal static class Steps
{
    /// <summary>A private address whose tables <see cref="Initialized"/> and <see cref="Running"/> have.</summary>
    public const ulong Gpa = 0x4000_0000;

    public const ulong LargeBytes = 0x20_0000;

    private const ulong Address = 0x000F_FFFF_FFFF_F000;

    /// <summary>A module that did SYS.INIT and LP.INIT everywhere: the next step is SYS.CONFIG.</summary>
    public static ModuleRig Configurable(TdxModuleOptions? options = null)
    {
        ModuleRig rig = new(options: options, bringUp: false);
        rig.Must(TdhLeaf.SYS_INIT);
        for (int i = 0; i < rig.Machine.Processors.Count; i++)
            rig.Must(TdhLeaf.SYS_LP_INIT, lp: i);
        return rig;
    }

    /// <summary>A TD in OP_STATE INITIALIZED with tables for 2 MiB at <see cref="Gpa"/> (or down to another level).</summary>
    public static ModuleRig Initialized(int vcpus = 1, int lowestTable = 1, ulong attributes = 0, BehaviourProfile? profile = null)
    {
        ModuleRig rig = new(profile);
        rig.BuildTd(vcpus, attributes);
        rig.AddTables(Gpa, lowestTable);
        return rig;
    }

    /// <summary>The same in OP_STATE RUNNABLE.</summary>
    public static ModuleRig Running(int vcpus = 1, int lowestTable = 1, ulong attributes = 0, BehaviourProfile? profile = null)
    {
        ModuleRig rig = Initialized(vcpus, lowestTable, attributes, profile);
        rig.Must(TdhLeaf.MR_FINALIZE, rig.Tdr.Value);
        return rig;
    }

    public static TdView Td(this ModuleRig rig) => rig.Module.Td(rig.Tdr)!;

    public static SeptView Entry(this ModuleRig rig, ulong gpa, Level? level = null) => rig.Module.FindSeptEntry(rig.Tdr, new Gpa(gpa), level ?? Level.K4);

    /// <summary>The call as the host made it, with every register of its answer.</summary>
    public static SeamRegisters Ask(this ModuleRig rig, TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0, int lp = 0, int version = 0) =>
        rig.Raw(lp, SeamRegisters.Call(leaf, rcx, rdx, r8, r9, version));

    /// <summary>The word of an entry, lock bits and all, read by a walk of the test's own.</summary>
    public static ref ulong Word(this ModuleRig rig, ulong gpa, int level = 0)
    {
        ulong eptp = rig.Td().Eptp;
        ulong table = eptp & Address;
        for (int at = (int)((eptp >> 3) & 7); ; at--)
        {
            ref ulong word = ref rig.Machine.Memory.Word(table + (((gpa >> (12 + (9 * at))) & 0x1FF) << 3));
            if (at == level)
                return ref word;
            table = word & Address;
        }
    }

    /// <summary>512 consecutive pages of one free 2 MiB range under 512 consecutive addresses; the guest accepts those that <paramref name="accept"/> names.</summary>
    public static Hpa AugConsecutive(this ModuleRig rig, Predicate<int> accept)
    {
        Hpa large = rig.LargePage();
        for (int i = 0; i < 512; i++)
            rig.Must(TdhLeaf.MEM_PAGE_AUG, Gpa + ((ulong)i << 12), rig.Tdr.Value, large.Value + ((ulong)i << 12));
        rig.EnterTd(0);
        for (int i = 0; i < 512; i++)
        {
            if (accept(i))
                Assert.Equal(TdxStatus.SUCCESS, rig.Tdcall(0, TdgLeaf.MEM_PAGE_ACCEPT, Gpa + ((ulong)i << 12)));
        }

        rig.Interrupt(0);
        return large;
    }

    /// <summary>A TDCALL that must become a TD exit; returns what the host sees.</summary>
    public static SeamRegisters ExitingTdcall(this ModuleRig rig, int lp, TdgLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0)
    {
        GuestState state = rig.Module.CurrentVmcs(rig.Lp(lp))!.State;
        state[Gpr.Rax] = (ulong)leaf;
        state[Gpr.Rcx] = rcx;
        state[Gpr.Rdx] = rdx;
        state[Gpr.R8] = r8;
        return rig.Exit(lp, new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 });
    }

    /// <summary>VP.FLUSH of every vCPU and VPFLUSHDONE; with <paramref name="free"/> also the write-back and KEY.FREEID.</summary>
    public static void Stop(this ModuleRig rig, bool free = false)
    {
        for (int i = 0; i < rig.Vcpus.Count; i++)
            rig.Must(TdhLeaf.VP_FLUSH, rig.Vcpus[i].Value, lp: i);
        rig.Must(TdhLeaf.MNG_VPFLUSHDONE, rig.Tdr.Value);
        if (!free)
            return;
        rig.OnEachPackage(lp => rig.Must(TdhLeaf.PHYMEM_CACHE_WB, lp: lp));
        rig.Must(TdhLeaf.MNG_KEY_FREEID, rig.Tdr.Value);
    }
}
