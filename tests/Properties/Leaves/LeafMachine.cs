using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Properties.Leaves;

/// <summary>The real module in the world of <see cref="LeafWorld"/>, driven by SEAMCALLs, TDCALLs and accesses of a guest.</summary>
internal sealed class LeafMachine : IDisposable
{
    private readonly Machine _machine = new(LeafWorld.Machine());
    private readonly List<InjectedLock> _held = [];
    private ulong _heldEntry;

    public LeafMachine(bool running)
    {
        Module = new TdxModule(_machine, BehaviourProfile.Tdx15, new TdxModuleOptions { TdmrInitPages = 262144 });
        foreach (LogicalProcessor lp in _machine.Processors)
            lp.VmxOn = true;
        BringUp();
        BuildTd();
        if (running)
            Must(TdhLeaf.MR_FINALIZE, LeafWorld.Tdr);
    }

    public TdxModule Module { get; }

    public Machine Machine => _machine;

    public bool IsInside(int lp) => Module.CurrentVmcs(_machine.Processors[lp]) is not null;

    public SeamRegisters Call(int lp, SeamRegisters registers)
    {
        Module.Seamcall(_machine.Processors[lp], ref registers);
        return registers;
    }

    public Answer Host(int lp, TdhLeaf leaf, ulong rcx, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0)
    {
        SeamRegisters after = Call(lp, SeamRegisters.Call(leaf, rcx, rdx, r8, r9));
        return new Answer(after.Rax, after.Rcx, after.Rdx);
    }

    public Answer Enter(int vcpu, int lp)
    {
        SeamRegisters registers = new() { Rcx = LeafWorld.Vcpu(vcpu) };
        if (Module.BeginEnter(_machine.Processors[lp], ref registers))
            return new Answer(0, Note: "entered");
        return registers.Rax == 48 ? new Answer(48, registers.Rcx, registers.Rdx, registers.R8) : new Answer(registers.Rax);
    }

    public Answer Leave(int lp)
    {
        Vmcs vmcs = Module.CurrentVmcs(_machine.Processors[lp])!;
        vmcs.Exit = new VmExit { Reason = ExitReason.ExternalInterrupt };
        return Handle(lp, vmcs);
    }

    /// <summary>TDCALL. RCX of the answer is the guest's only where <paramref name="shows"/> says that the leaf defines it.</summary>
    public Answer Guest(int lp, TdgLeaf leaf, ulong rcx, bool shows = false)
    {
        Vmcs vmcs = Module.CurrentVmcs(_machine.Processors[lp])!;
        vmcs.State[Gpr.Rax] = (ulong)leaf;
        vmcs.State[Gpr.Rcx] = rcx;
        vmcs.State[Gpr.Rdx] = 0;
        vmcs.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 };
        ulong rip = vmcs.State.Rip;
        Answer answer = Handle(lp, vmcs);
        if (answer.Note != "stays")
            return answer;
        if (vmcs.State.Rip == rip)
            return new Answer(vmcs.State[Gpr.Rax], vmcs.State[Gpr.Rcx], Note: "again");
        return new Answer(vmcs.State[Gpr.Rax], shows && vmcs.State[Gpr.Rax] == 0 ? vmcs.State[Gpr.Rcx] : 0, Note: "stays");
    }

    public Answer Touch(int lp, ulong gpa, bool write, ulong value)
    {
        LogicalProcessor processor = _machine.Processors[lp];
        Vmcs vmcs = Module.CurrentVmcs(processor)!;
        if (GuestPhysical.TryTranslate(_machine, processor, vmcs, gpa, write ? AccessKind.Write : AccessKind.Read, out ulong hpa))
        {
            if (write)
                _machine.Memory.Word(hpa) = value;
            return new Answer(0, hpa, Note: "hit");
        }

        GuestPhysical.DescribeLinear(vmcs, gpa, isPageTable: false);
        return Handle(lp, vmcs);
    }

    public void SetInterrupt(int lp, bool pending) => _machine.Processors[lp].PendingInterrupt.Write(pending ? 0x40 : -1);

    public void Wait(int lp) => _machine.Processors[lp].Spend(2_000_000_000);

    /// <summary>Takes what another processor inside a leaf would hold; false, and nothing taken, when one of the locks cannot be had.</summary>
    public bool Hold(HolderKind kind, ulong page, ulong gpa, int level)
    {
        bool inLeaf = kind is HolderKind.Reader or HolderKind.ReaderWithEntry or HolderKind.Blocker or HolderKind.Tracker;
        bool all = true;
        if (inLeaf || kind == HolderKind.TdrAlone)
            all &= Take(ModuleLock.Page, kind == HolderKind.TdrAlone, LeafWorld.Tdr);
        if (inLeaf || kind == HolderKind.OpStateAlone)
            all = all && Take(ModuleLock.OpState, kind == HolderKind.OpStateAlone, LeafWorld.Tdr);
        all = all && kind switch
        {
            HolderKind.Reader or HolderKind.ReaderWithEntry => Take(ModuleLock.SeptTree, false, LeafWorld.Tdr),
            HolderKind.Blocker => Take(ModuleLock.SeptTree, true, LeafWorld.Tdr),
            HolderKind.Tracker => Take(ModuleLock.Epoch, true, LeafWorld.Tdr),
            HolderKind.Page => Take(ModuleLock.Page, false, LeafWorld.Align(page, 1), 1) && Take(ModuleLock.Page, true, page),
            HolderKind.Large => Take(ModuleLock.Page, true, page, 1),
            _ => true,
        };
        if (all && kind == HolderKind.ReaderWithEntry)
        {
            all = Module.TryHold(ModuleLock.SeptEntry, true, new Hpa(LeafWorld.Tdr), new Gpa(gpa), Level.FromTdx(level)) is not null;
            _heldEntry = all ? SecureEptMemory.EntryAt(_machine, Eptp, gpa, level) : 0;
        }

        if (!all)
            Release();
        return all;
    }

    public void Release()
    {
        if (_heldEntry != 0)
            _machine.Memory.Word(_heldEntry) &= ~LeafFacts.LockBit;
        _heldEntry = 0;
        for (int i = _held.Count - 1; i >= 0; i--)
            Module.Release(_held[i]);
        _held.Clear();
    }

    public ulong Eptp => Module.Td(new Hpa(LeafWorld.Tdr))!.Eptp;

    public void Dispose() => _machine.Dispose();

    private bool Take(ModuleLock kind, bool exclusive, ulong where, int level = 0)
    {
        if (Module.TryHold(kind, exclusive, new Hpa(where), level: Level.FromTdx(level)) is not { } held)
            return false;
        _held.Add(held);
        return true;
    }

    private Answer Handle(int lp, Vmcs vmcs)
    {
        SeamRegisters host = default;
        bool stays = Module.HandleExit(_machine.Processors[lp], ref host);
        VmEvent injected = vmcs.EntryEvent;
        vmcs.EntryEvent = default;
        if (!stays)
            return new Answer(host.Rax, host.Rcx, host.Rdx, host.R8, "exit");
        return new Answer(0, Note: injected.IsValid ? $"vector {injected.Vector}" : "stays");
    }

    private void Must(TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, int lp = 0)
    {
        SeamRegisters after = Call(lp, SeamRegisters.Call(leaf, rcx, rdx, r8));
        if (after.Rax != 0)
            throw new InvalidOperationException($"{leaf.FullName()} at the start: {after.Status}");
    }

    private void BringUp()
    {
        Must(TdhLeaf.SYS_INIT);
        for (int i = 0; i < LeafWorld.Lps; i++)
            Must(TdhLeaf.SYS_LP_INIT, lp: i);
        TdmrDescription tdmr = _machine.Description.Tdmrs[0];
        ulong[] info =
        [
            tdmr.Range.Base, tdmr.Range.Size, tdmr.Pamt1G.Base, tdmr.Pamt1G.Size, tdmr.Pamt2M.Base, tdmr.Pamt2M.Size, tdmr.Pamt4K.Base, tdmr.Pamt4K.Size,
        ];
        for (int i = 0; i < info.Length; i++)
            _machine.Memory.Word(LeafWorld.HostPages + 0x1000 + ((ulong)i * 8)) = info[i];
        _machine.Memory.Word(LeafWorld.HostPages) = LeafWorld.HostPages + 0x1000;
        Must(TdhLeaf.SYS_CONFIG, LeafWorld.HostPages, 1, 16);
        Must(TdhLeaf.SYS_KEY_CONFIG);
        Must(TdhLeaf.SYS_KEY_CONFIG, lp: LeafWorld.HostLp);
        Must(TdhLeaf.SYS_TDMR_INIT, LeafWorld.Start);
    }

    private void BuildTd()
    {
        Must(TdhLeaf.MNG_CREATE, LeafWorld.Tdr, LeafWorld.Hkid);
        Must(TdhLeaf.MNG_KEY_CONFIG, LeafWorld.Tdr);
        Must(TdhLeaf.MNG_KEY_CONFIG, LeafWorld.Tdr, lp: LeafWorld.HostLp);
        for (ulong i = 0; i < 6; i++)
            Must(TdhLeaf.MNG_ADDCX, LeafWorld.FirstControl + (i << 12), LeafWorld.Tdr);
        ulong parameters = LeafWorld.HostPages + 0x2000;
        _machine.Memory.Word(parameters + 8) = 3;
        _machine.Memory.Word(parameters + 16) = LeafWorld.VcpuCount;
        _machine.Memory.Word(parameters + 24) = 0x1E;
        _machine.Memory.Word(parameters + 40) = 40;
        Must(TdhLeaf.MNG_INIT, LeafWorld.Tdr, parameters);
        for (int v = 0; v < LeafWorld.VcpuCount; v++)
        {
            Must(TdhLeaf.VP_CREATE, LeafWorld.Vcpu(v), LeafWorld.Tdr);
            for (ulong i = 1; i < 6; i++)
                Must(TdhLeaf.VP_ADDCX, LeafWorld.Vcpu(v) + (i << 12), LeafWorld.Vcpu(v));
            Module.UseEntryState(new Hpa(LeafWorld.Vcpu(v)), GuestStart.Flat64);
            Must(TdhLeaf.VP_INIT, LeafWorld.Vcpu(v), lp: v);
        }

        for (int level = 3; level >= 1; level--)
            Must(TdhLeaf.MEM_SEPT_ADD, LeafWorld.Align(LeafWorld.Region, level) | (uint)level, LeafWorld.Tdr, LeafWorld.Tables + ((ulong)(3 - level) << 12));
        _machine.Memory.Word(LeafWorld.Source) = LeafWorld.SourceWord;
        foreach (ulong page in LeafWorld.Watched)
            _machine.Memory.Word(page) = page;
    }
}

/// <summary>The Secure EPT and the PAMT as bytes in memory, read without the module.</summary>
internal static class SecureEptMemory
{
    private const ulong Address = 0x000F_FFFF_FFFF_F000;

    /// <summary>Where the word of an entry lies.</summary>
    public static ulong EntryAt(Machine machine, ulong eptp, ulong gpa, int level)
    {
        ulong table = eptp & Address;
        for (int at = 3; ; at--)
        {
            ulong word = table + (((gpa >> (12 + (9 * at))) & 511) * 8);
            if (at == level)
                return word;
            table = machine.Memory.Word(word) & Address;
        }
    }

    /// <summary>Every word that is not a plain FREE one, by address of what it covers.</summary>
    public static void Read(Machine machine, ulong eptp, Dictionary<(ulong Gpa, int Level), ulong> into) => Read(machine, eptp & Address, 3, 0, into);

    /// <summary>The two words of a PAMT entry.</summary>
    public static (ulong First, ulong Bepoch) Pamt(Machine machine, ulong page, int level)
    {
        TdmrDescription tdmr = machine.Description.Tdmrs[0];
        ulong table = level == 0 ? tdmr.Pamt4K.Base : level == 1 ? tdmr.Pamt2M.Base : tdmr.Pamt1G.Base;
        ulong at = table + (((page - tdmr.Range.Base) / LeafWorld.Size(level)) * 16);
        return (machine.Memory.Word(at), machine.Memory.Word(at + 8));
    }

    private static void Read(Machine machine, ulong table, int level, ulong start, Dictionary<(ulong Gpa, int Level), ulong> into)
    {
        for (int i = 0; i < 512; i++)
        {
            ulong word = machine.Memory.Word(table + ((ulong)i * 8));
            if (word == LeafFacts.FreeWord)
                continue;
            ulong gpa = start + ((ulong)i * LeafWorld.Size(level));
            into[(gpa, level)] = word;

            // A table is what is neither a leaf nor FREE (tdx-module 5.1: PS in every leaf; TDEX in FREE).
            if (level > 0 && (word & 0x80) == 0 && (word & (1UL << 53)) == 0)
                Read(machine, word & Address, level - 1, gpa, into);
        }
    }
}
