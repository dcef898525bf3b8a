using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Unit.Seam;

/// <summary>A module brought up with nothing but SEAMCALLs, and TDs built the same way: no room of the host is involved.</summary>
internal sealed class ModuleRig : IDisposable
{
    private ulong _next;

    public ModuleRig(BehaviourProfile? profile = null, TdxModuleOptions? options = null, int vcpus = 3, bool bringUp = true, MachineDescription? machine = null)
    {
        Machine = new Machine(machine ?? MachineDescription.Default(vcpus, 64 << 20));
        Module = new TdxModule(Machine, profile ?? BehaviourProfile.Documented, options ?? new TdxModuleOptions { TdmrInitPages = 262144 });
        foreach (LogicalProcessor lp in Machine.Processors)
            lp.VmxOn = true;
        _next = Machine.Description.Tdmrs[0].Range.Base;
        if (bringUp)
            BringUp();
    }

    public Machine Machine { get; }

    public TdxModule Module { get; }

    public Hpa Tdr { get; private set; }

    public List<Hpa> Vcpus { get; } = [];

    public LogicalProcessor Lp(int number) => Machine.Processors[number];

    public void Dispose() => Machine.Dispose();

    /// <summary>A page that nobody used yet.</summary>
    public Hpa Page()
    {
        Hpa page = new(_next);
        _next += 4096;
        return page;
    }

    /// <summary>One past the last page that was handed out.</summary>
    public ulong PagesEnd => _next;

    /// <summary>A free 2 MiB range.</summary>
    public Hpa LargePage()
    {
        _next = (_next + 0x1F_FFFF) & ~0x1F_FFFFUL;
        Hpa page = new(_next);
        _next += 0x20_0000;
        return page;
    }

    public SeamRegisters Raw(int lp, SeamRegisters registers)
    {
        Module.Seamcall(Lp(lp), ref registers);
        return registers;
    }

    public TdxStatus Call(TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0, int lp = 0, int version = 0) =>
        Raw(lp, SeamRegisters.Call(leaf, rcx, rdx, r8, r9, version)).Status;

    public SeamRegisters Must(TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0, int lp = 0, int version = 0)
    {
        SeamRegisters after = Raw(lp, SeamRegisters.Call(leaf, rcx, rdx, r8, r9, version));
        Assert.True(after.Status.IsSuccess, $"{leaf.FullName()}: {after.Status}");
        return after;
    }

    /// <summary>SYS.INIT to SYS.TDMR.INIT; of the TDMRs, which are all configured, only the first <paramref name="tdmrs"/> become usable.</summary>
    public void BringUp(ulong hkid = 16, int tdmrs = int.MaxValue)
    {
        Must(TdhLeaf.SYS_INIT);
        for (int i = 0; i < Machine.Processors.Count; i++)
            Must(TdhLeaf.SYS_LP_INIT, lp: i);
        Must(TdhLeaf.SYS_CONFIG, WriteTdmrs().Value, (ulong)Machine.Description.Tdmrs.Count, hkid);
        OnEachPackage(lp => Must(TdhLeaf.SYS_KEY_CONFIG, lp: lp));
        foreach (TdmrDescription tdmr in Machine.Description.Tdmrs.Take(tdmrs))
        {
            while (Must(TdhLeaf.SYS_TDMR_INIT, tdmr.Range.Base).Rdx < tdmr.Range.End)
            {
            }
        }
    }

    /// <summary>Writes the TDMR_INFO structures and the array of pointers to them; returns the array.</summary>
    public Hpa WriteTdmrs()
    {
        Hpa array = Page();
        Hpa info = Page();
        for (int i = 0; i < Machine.Description.Tdmrs.Count; i++)
        {
            TdmrDescription tdmr = Machine.Description.Tdmrs[i];
            ulong at = info.Value + ((ulong)i * 512);
            Machine.Memory.Word(array.Value + ((ulong)i * 8)) = at;
            ulong[] words = [tdmr.Range.Base, tdmr.Range.Size, tdmr.Pamt1G.Base, tdmr.Pamt1G.Size, tdmr.Pamt2M.Base, tdmr.Pamt2M.Size, tdmr.Pamt4K.Base, tdmr.Pamt4K.Size];
            for (int w = 0; w < words.Length; w++)
                Machine.Memory.Word(at + ((ulong)w * 8)) = words[w];
            for (int r = 0; r < tdmr.Reserved.Count; r++)
            {
                Machine.Memory.Word(at + 64 + ((ulong)r * 16)) = tdmr.Reserved[r].Base - tdmr.Range.Base;
                Machine.Memory.Word(at + 72 + ((ulong)r * 16)) = tdmr.Reserved[r].Size;
            }
        }

        return array;
    }

    public void OnEachPackage(Action<int> what)
    {
        ulong done = 0;
        foreach (LogicalProcessor lp in Machine.Processors)
        {
            if ((done & (1UL << lp.Package)) == 0)
                what(lp.Id);
            done |= 1UL << lp.Package;
        }
    }

    /// <summary>Writes TD_PARAMS: XFAM 3, 8 vCPUs, 4 levels, NO_RBP_MOD, 1 GHz.</summary>
    public Hpa Parameters(ulong attributes = 0, ulong flags = 4, ulong eptp = 0x1E)
    {
        Hpa page = Page();
        Machine.Memory.Zero(page);
        Machine.Memory.Word(page.Value) = attributes;
        Machine.Memory.Word(page.Value + 8) = 3;
        Machine.Memory.Word(page.Value + 16) = 8;
        Machine.Memory.Word(page.Value + 24) = eptp;
        Machine.Memory.Word(page.Value + 32) = flags;
        Machine.Memory.Word(page.Value + 40) = 40;
        return page;
    }

    /// <summary>MNG.CREATE to MNG.INIT and <paramref name="vcpus"/> vCPUs, vCPU n initialised on processor n.</summary>
    public Hpa BuildTd(int vcpus = 1, ulong attributes = 0, ulong flags = 4, ulong hkid = 17, ulong eptp = 0x1E) =>
        BuildTd(Parameters(attributes, flags, eptp), vcpus, hkid);

    /// <summary>The same with TD_PARAMS that a test has written.</summary>
    public Hpa BuildTd(Hpa parameters, int vcpus = 1, ulong hkid = 17)
    {
        Tdr = Page();
        Must(TdhLeaf.MNG_CREATE, Tdr.Value, hkid);
        OnEachPackage(lp => Must(TdhLeaf.MNG_KEY_CONFIG, Tdr.Value, lp: lp));
        for (int i = 0; i < 6; i++)
            Must(TdhLeaf.MNG_ADDCX, Page().Value, Tdr.Value);
        Must(TdhLeaf.MNG_INIT, Tdr.Value, parameters.Value);
        for (int i = 0; i < vcpus; i++)
            AddVcpu(i);
        return Tdr;
    }

    public Hpa AddVcpu(int lp, int version = 0)
    {
        Hpa vcpu = Page();
        Must(TdhLeaf.VP_CREATE, vcpu.Value, Tdr.Value, lp: lp);
        for (int i = 0; i < 5; i++)
            Must(TdhLeaf.VP_ADDCX, Page().Value, vcpu.Value, lp: lp);
        Module.UseEntryState(vcpu, GuestStart.Flat64);
        Must(TdhLeaf.VP_INIT, vcpu.Value, lp: lp, version: version);
        Vcpus.Add(vcpu);
        return vcpu;
    }

    /// <summary>Secure EPT pages for one GPA down to the table of its 4 KiB (or 2 MiB) entries.</summary>
    public void AddTables(ulong gpa, int lowest = 1)
    {
        for (int level = 3; level >= lowest; level--)
        {
            ulong at = gpa & ~((1UL << (12 + (9 * level))) - 1);
            TdxStatus status = Call(TdhLeaf.MEM_SEPT_ADD, at | (uint)level, Tdr.Value, Page().Value);
            Assert.True(status.IsSuccess || status.Class == TdxStatus.EPT_ENTRY_STATE_INCORRECT, status.ToString());
        }
    }

    public Hpa Aug(ulong gpa, int level = 0)
    {
        Hpa page = level == 0 ? Page() : LargePage();
        Must(TdhLeaf.MEM_PAGE_AUG, gpa | (uint)level, Tdr.Value, page.Value);
        return page;
    }

    /// <summary>BLOCK and TRACK, so that the entry may be removed.</summary>
    public void Block(ulong pageInfo)
    {
        Must(TdhLeaf.MEM_RANGE_BLOCK, pageInfo, Tdr.Value);
        Must(TdhLeaf.MEM_TRACK, Tdr.Value);
    }

    public Vmcs EnterTd(int vcpu, int? lp = null)
    {
        SeamRegisters registers = new() { Rcx = Vcpus[vcpu].Value };
        Assert.True(Module.BeginEnter(Lp(lp ?? vcpu), ref registers), registers.Status.ToString());
        return Module.CurrentVmcs(Lp(lp ?? vcpu))!;
    }

    public SeamRegisters Interrupt(int lp) => Exit(lp, new VmExit { Reason = ExitReason.ExternalInterrupt, InterruptInfo = 0x8000_0020 });

    /// <summary>Feeds an exit that must become a TD exit.</summary>
    public SeamRegisters Exit(int lp, VmExit exit)
    {
        Module.CurrentVmcs(Lp(lp))!.Exit = exit;
        SeamRegisters registers = default;
        Assert.False(Module.HandleExit(Lp(lp), ref registers), "the module served the exit itself");
        return registers;
    }

    /// <summary>Feeds an exit that the module must serve itself; returns the event it injected.</summary>
    public VmEvent Serve(int lp, VmExit exit)
    {
        Vmcs vmcs = Module.CurrentVmcs(Lp(lp))!;
        vmcs.Exit = exit;
        SeamRegisters registers = default;
        Assert.True(Module.HandleExit(Lp(lp), ref registers), $"TD exit: {registers.Status}");
        VmEvent injected = vmcs.EntryEvent;
        vmcs.EntryEvent = default;
        return injected;
    }

    /// <summary>A TDCALL of the vCPU on a processor; returns RAX.</summary>
    public TdxStatus Tdcall(int lp, TdgLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0)
    {
        GuestState state = Module.CurrentVmcs(Lp(lp))!.State;
        state[Gpr.Rax] = (ulong)leaf;
        state[Gpr.Rcx] = rcx;
        state[Gpr.Rdx] = rdx;
        state[Gpr.R8] = r8;
        state[Gpr.R9] = r9;
        Serve(lp, new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 });
        return new TdxStatus(state[Gpr.Rax]);
    }
}
