using Tdp.Module;
using Tdp.Platform;
using Tdp.Tests.Unit.Seam.Sept;

namespace Tdp.Tests.Unit.Seam.Checklist;

/// <summary>
/// The life of a TD as a host and two guests without a plan lead it: every memory leaf, entries, exits, accepts and accesses in random order, on few addresses and
/// pages, so that most calls find something and many fail.
/// </summary>
internal sealed class ModuleLife
{
    private const int HostLp = 2;
    private const int Ranges = 2;
    private const int PagesPerRange = 3;
    private readonly SeedStream _random;
    private readonly List<Hpa> _small = [];
    private readonly List<Hpa> _large = [];

    public ModuleLife(ModuleRig rig, ulong seed)
    {
        Rig = rig;
        _random = new SeedStream(seed, "program");
        for (int i = 0; i < 3; i++)
            _large.Add(rig.LargePage());
        for (int i = 0; i < 24; i++)
            _small.Add(rig.Page());
        Range = new HpaRange(rig.Machine.Description.Tdmrs[0].Range.Base, rig.PagesEnd - rig.Machine.Description.Tdmrs[0].Range.Base);
    }

    public ModuleRig Rig { get; }

    /// <summary>Where all its pages are.</summary>
    public HpaRange Range { get; }

    /// <summary>TD_EPOCH when the vCPU entered; null while it is outside.</summary>
    public ulong?[] EnteredAt { get; } = new ulong?[2];

    /// <summary>How many calls of each kind succeeded.</summary>
    public Dictionary<string, int> Successes { get; } = [];

    public int Failures { get; private set; }

    /// <summary>A TD with two vCPUs that runs.</summary>
    public static ModuleLife Begin(ulong seed)
    {
        ModuleRig rig = Steps.Running(vcpus: 2);
        return new ModuleLife(rig, seed);
    }

    public void Step()
    {
        uint what = (uint)_random.Below(24);
        ulong at = Operand();
        uint level = (uint)(at & 1);
        switch (what)
        {
            case 0 or 1:
                Host(TdhLeaf.MEM_PAGE_AUG, at, level == 0 ? Small() : Large());
                break;
            case 2:
                Host(TdhLeaf.MEM_SEPT_ADD, Address(1) | 1, Small());
                break;
            case 3:
                Host(TdhLeaf.MEM_RANGE_BLOCK, at);
                break;
            case 4:
                Host(TdhLeaf.MEM_RANGE_UNBLOCK, at);
                break;
            case 5:
                Track();
                break;
            case 6 or 7:
                Host(TdhLeaf.MEM_PAGE_REMOVE, at);
                break;
            case 8:
                Host(TdhLeaf.MEM_SEPT_REMOVE, Address(1) | 1);
                break;
            case 9:
                Host(TdhLeaf.MEM_PAGE_DEMOTE, Address(1) | 1, Small());
                break;
            case 10:
                Host(TdhLeaf.MEM_PAGE_PROMOTE, Address(1) | 1);
                break;
            case 11:
                Host(TdhLeaf.MEM_PAGE_RELOCATE, at, Small());
                break;
            case 12 or 13:
                Toggle((int)_random.Below(2));
                break;
            default:
                Guest((int)_random.Below(2), at);
                break;
        }
    }

    // Every other time the host also drives everybody out, as it must before it may take pages away.
    private void Track()
    {
        Note("TRACK", Rig.Call(TdhLeaf.MEM_TRACK, Rig.Tdr.Value, lp: HostLp));
        for (int vcpu = 0; vcpu < EnteredAt.Length && _random.Below(2) == 0; vcpu++)
        {
            if (EnteredAt[vcpu] is not null)
                Toggle(vcpu);
        }
    }

    private void Host(TdhLeaf leaf, ulong pageInfo, ulong page = 0) => Note(leaf.ToString(), Rig.Call(leaf, pageInfo, Rig.Tdr.Value, page, lp: HostLp));

    private void Note(string what, TdxStatus status)
    {
        if (status == TdxStatus.SUCCESS)
            Successes[what] = Successes.GetValueOrDefault(what) + 1;
        else
            Failures++;
    }

    private void Toggle(int vcpu)
    {
        if (EnteredAt[vcpu] is not null)
        {
            Rig.Interrupt(vcpu);
            EnteredAt[vcpu] = null;
            return;
        }

        SeamRegisters registers = new() { Rcx = Rig.Vcpus[vcpu].Value };
        ulong epoch = Rig.Td().Epoch;
        if (Rig.Module.BeginEnter(Rig.Lp(vcpu), ref registers))
            EnteredAt[vcpu] = epoch;
        Note("VP_ENTER", EnteredAt[vcpu] is null ? registers.Status : TdxStatus.SUCCESS);
    }

    // Accepts a page, or reaches for it as the processor would; what the processor cannot reach becomes a TD exit.
    private void Guest(int vcpu, ulong pageInfo)
    {
        if (EnteredAt[vcpu] is null)
            return;
        LogicalProcessor lp = Rig.Lp(vcpu);
        Vmcs vmcs = Rig.Module.CurrentVmcs(lp)!;
        SeamRegisters host = default;

        // Another instruction each time: the module suspects no stepping.
        vmcs.State.Rip += 4;
        bool accepts = _random.Below(2) == 0;
        if (accepts)
        {
            vmcs.State[Gpr.Rax] = (ulong)TdgLeaf.MEM_PAGE_ACCEPT;
            vmcs.State[Gpr.Rcx] = pageInfo;
            vmcs.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 };
        }
        else if (GuestPhysical.TryTranslate(Rig.Machine, lp, vmcs, pageInfo & ~0xFFFUL, AccessKind.Write, out _))
        {
            Note("touch", TdxStatus.SUCCESS);
            return;
        }
        else
        {
            GuestPhysical.DescribeLinear(vmcs, pageInfo & ~0xFFFUL, isPageTable: false);
        }

        bool stays = Rig.Module.HandleExit(lp, ref host);
        vmcs.EntryEvent = default;
        vmcs.VeInfo!.IsValid = false;
        if (!stays)
            EnteredAt[vcpu] = null;
        else if (accepts)
            Note("ACCEPT", new TdxStatus(vmcs.State[Gpr.Rax]));
    }

    // Mostly the size that is there, so that things go on; sometimes the other one.
    private ulong Operand()
    {
        ulong gpa = Address(0);
        bool isLarge = SeptFormat.IsLeaf(Rig.Entry(gpa, Level.M2).State);
        if (_random.Below(6) == 0)
            isLarge = !isLarge;
        return isLarge ? (gpa & ~(Steps.LargeBytes - 1)) | 1 : gpa;
    }

    private ulong Address(int level) =>
        Steps.Gpa + (_random.Below(Ranges) << 21) + (level == 0 ? _random.Below(PagesPerRange) << 12 : 0);

    private ulong Small() => _small[(int)_random.Below((ulong)_small.Count)].Value;

    private ulong Large() => _large[(int)_random.Below((ulong)_large.Count)].Value;
}
