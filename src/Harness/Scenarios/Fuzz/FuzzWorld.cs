namespace Tdp.Harness.Scenarios;

/// <summary>How far a world is when its round begins.</summary>
internal enum FuzzStage : byte
{
    /// <summary>Nothing has been called yet.</summary>
    Cold,

    /// <summary>The module is up; there is no TD.</summary>
    Ready,

    /// <summary>A TD with vCPUs and pages that is not finalized.</summary>
    Built,

    /// <summary>A TD that may run.</summary>
    Running,

    /// <summary>The same, about to be torn down.</summary>
    Ending,
}

/// <summary>
/// The machine, the module and the judge of one round of the module's stress: performs steps, and judges each answer by what holds for every call: the status is one that the leaf lists, no other
/// register changes, TDCALLs end in one of the documented ways, accepted pages are zero, added pages equal their source.
/// </summary>
/// <remarks>A processor is used by one thread at a time. The judgements of contents need that no other thread changes them meanwhile: they are made in sequential rounds only.</remarks>
internal sealed class FuzzWorld : IDisposable
{
    /// <summary>Processors, each in a package of its own.</summary>
    public const int Processors = 2;

    /// <summary>Host pages with TD_PARAMS, from page 0 on.</summary>
    public const int ParameterPages = 8;

    /// <summary>The host page whose entries a guest's shared addresses walk.</summary>
    public const int SharedRootPage = 9;

    /// <summary>The host page with the addresses of the TDMR_INFOs.</summary>
    public const int PointerPage = 10;

    private const int InfoPage = 11;
    private const ulong SharedEptPointer = 0x0024_0003_0000_203C;
    private const uint TdcallLength = 4;
    private readonly bool _isAlone;
    private readonly FindingLog _findings = new();

    /// <summary>Builds the round's world; how far it is brought up is the stream's choice.</summary>
    /// <param name="random">The stream of the setup.</param>
    /// <param name="isAlone">One thread drives all processors.</param>
    /// <param name="stage">How far it is brought up; null for the stream's choice.</param>
    public FuzzWorld(SeedStream random, bool isAlone, FuzzStage? stage = null)
    {
        _isAlone = isAlone;
        Machine = new Machine(MachineDescription.Default(1, 64UL << 20), random.Next());
        Layout = new FuzzLayout(Machine.Description);
        BehaviourProfile profile = random.Below(2) == 0 ? BehaviourProfile.Documented : BehaviourProfile.Tdx15;
        Module = new TdxModule(Machine, profile, new TdxModuleOptions { TdmrInitPages = 262144 });
        foreach (LogicalProcessor lp in Machine.Processors)
            lp.VmxOn = true;
        WriteHostPages(random);
        Stage = stage ?? random.Below(20) switch { 0 => FuzzStage.Cold, 1 or 2 => FuzzStage.Ready, < 7 => FuzzStage.Built, < 9 => FuzzStage.Ending, _ => FuzzStage.Running };
        if (Stage >= FuzzStage.Ready)
            BringUp(random);
        if (Stage >= FuzzStage.Built)
            BuildTd(random);
        if (Stage >= FuzzStage.Running)
        {
            Call(0, TdhLeaf.MR_FINALIZE, Layout.Tdr(0));
            for (int vcpu = 0; vcpu < Processors; vcpu++)
                Call(vcpu, TdhLeaf.VP_WR, Layout.Tdvpr(vcpu), SharedEptPointer, Layout.HostPage(SharedRootPage), Hpa.Mask);
        }
    }

    /// <summary>The machine.</summary>
    public Machine Machine { get; }

    /// <summary>Where things lie.</summary>
    public FuzzLayout Layout { get; }

    /// <summary>The module.</summary>
    public TdxModule Module { get; }

    /// <summary>How far it was before the first step.</summary>
    public FuzzStage Stage { get; }

    /// <summary>What was found wrong.</summary>
    public FindingLog Findings => _findings;

    /// <summary>Performs one step and judges its answer.</summary>
    /// <param name="step">The step; the processor's state decides whether it fits.</param>
    /// <returns>The status that the caller saw; success for steps that have none.</returns>
    public TdxStatus Perform(in FuzzStep step)
    {
        LogicalProcessor lp = Machine.Processors[step.Lp];
        switch (step.Kind)
        {
            case FuzzStepKind.Interrupt:
                lp.PendingInterrupt.Write(step.IsPending ? 0x20 : -1);
                return TdxStatus.SUCCESS;
            case FuzzStepKind.Seamcall:
                return Seamcall(lp, step);
            case FuzzStepKind.Access:
                Touch(lp, step);
                return TdxStatus.SUCCESS;
            default:
                return Exit(lp, step);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => Machine.Dispose();

    private TdxStatus Seamcall(LogicalProcessor lp, in FuzzStep step)
    {
        TdhLeaf leaf = (TdhLeaf)(ushort)step.Registers.Rax;
        ReadOnlySpan<byte> source = default;
        if (_isAlone)
            source = Prepare(leaf, step.Registers);
        SeamRegisters registers = step.Registers;
        if (leaf is TdhLeaf.VP_INIT && Module.Pamt(new Hpa(registers.Rcx)) is { Type: PageType.TDVPR } && _isAlone)
            Module.UseEntryState(new Hpa(registers.Rcx), GuestStart.Flat64);
        Module.Seamcall(lp, ref registers);
        TdxStatus status = registers.Status;
        if (LeafCatalogue.Of(leaf) is { } description ? !description.CanReturn(status) : !IsDispatcherRefusal(status))
            _findings.Add("STATUS", $"{leaf.FullName()} returned {status}, which it does not list: {step}");
        if (leaf is not TdhLeaf.VP_ENTER)
            JudgeRegisters(step, registers);
        if (_isAlone && leaf is TdhLeaf.MEM_PAGE_ADD && status == TdxStatus.SUCCESS)
            JudgeContent(step, new Hpa(step.Registers.R8), source);
        if (_isAlone && leaf is TdhLeaf.MEM_PAGE_REMOVE or TdhLeaf.MEM_PAGE_RELOCATE && status == TdxStatus.SUCCESS)
            JudgeTranslations(step, registers.Rcx);
        if (leaf is TdhLeaf.VP_ENTER && Module.CurrentVmcs(lp) is { } vmcs)
        {
            // There is no engine that would deliver it.
            vmcs.EntryEvent = default;
            if (_isAlone)
                GuestStart.Flat64(vmcs.State);
        }

        return status;
    }

    private static bool IsDispatcherRefusal(TdxStatus status) =>
        status == (TdxStatus.OPERAND_INVALID | OperandId.RAX) || status == TdxStatus.SYS_NOT_READY || status == TdxStatus.SYS_SHUTDOWN;

    // Registers that no leaf but VP.ENTER gives a meaning to (tdx-module 1.1).
    private void JudgeRegisters(in FuzzStep step, SeamRegisters after)
    {
        SeamRegisters before = step.Registers;
        foreach (Gpr register in (ReadOnlySpan<Gpr>)[Gpr.Rbx, Gpr.Rsp, Gpr.Rbp, Gpr.Rsi, Gpr.Rdi, Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15])
        {
            if (after[register] != before[register])
                _findings.Add("REGISTERS", $"{register} became 0x{after[register]:x}: {step}");
        }
    }

    // The target of an AUG gets content that ACCEPT must remove; the source of an ADD is remembered.
    private ReadOnlySpan<byte> Prepare(TdhLeaf leaf, SeamRegisters registers)
    {
        if (leaf is TdhLeaf.MEM_PAGE_AUG && Layout.Pools.Contains(registers.R8) && Machine.Ledger.UseOf(new Hpa(registers.R8)) is not FrameUse.Module)
            Machine.Memory.Fill(new Hpa(registers.R8 & ~0xFFFUL), 0xDEAD_BEEF_DEAD_BEEF);
        ulong source = registers.R9 & ((1UL << Machine.Description.HkidShift) - 1) & ~0xFFFUL;
        return leaf is TdhLeaf.MEM_PAGE_ADD && Machine.Memory.Exists(new Hpa(source)) ? Machine.Memory.Frame(new Hpa(source)).ToArray() : default;
    }

    private void JudgeContent(in FuzzStep step, Hpa page, ReadOnlySpan<byte> source)
    {
        // A source that is private memory of a TD reads as zeros for the host.
        Span<byte> now = Machine.Memory.Frame(page);
        if (!now.SequenceEqual(source) && now.IndexOfAnyExcept((byte)0) >= 0)
            _findings.Add("TM09", $"page {page} does not equal its source: {step}");
    }

    // TM04 at the moment at which it matters: a processor inside would go on using the page.
    private void JudgeTranslations(FuzzStep step, ulong page)
    {
        ulong end = page + (1UL << ((9 * (int)(step.Registers.Rcx & 7)) + 12));
        foreach (LogicalProcessor lp in Machine.Processors)
        {
            if (Module.CurrentVmcs(lp) is not { } vmcs)
                continue;
            lp.Tlb.ForEachLive(entry =>
            {
                if (entry.Context == vmcs.Eptp && (entry.GpaPage & vmcs.AliasBit.GpaMask) == 0 && entry.Frame >= page && entry.Frame < end)
                    _findings.Add("TM04", $"LP {lp.Id} is inside and translates GPA 0x{entry.GpaPage:x} to 0x{entry.Frame:x}: {step}");
            });
        }
    }

    private void Touch(LogicalProcessor lp, in FuzzStep step)
    {
        Vmcs vmcs = Module.CurrentVmcs(lp)!;
        vmcs.State.Rip += step.Registers.Rcx;
        if (GuestPhysical.TryTranslate(Machine, lp, vmcs, step.Exit.Gpa, step.Access, out ulong hpa))
        {
            // Through the shared EPT a hostile host could have its guest write the module's own pages, which hardware turns into a machine check.
            if (step.Access is AccessKind.Write && Layout.Pools.Contains(hpa) && (step.Exit.Gpa & vmcs.AliasBit.GpaMask) == 0)
                Machine.Memory.Word(hpa & ~7UL) = step.Exit.Gpa | 1;
            return;
        }

        GuestPhysical.DescribeLinear(vmcs, step.Exit.Gpa, isPageTable: false);
        Handle(lp, vmcs, step);
    }

    private TdxStatus Exit(LogicalProcessor lp, in FuzzStep step)
    {
        Vmcs vmcs = Module.CurrentVmcs(lp)!;
        SeamRegisters before = step.Registers;
        for (Gpr register = Gpr.Rax; register <= Gpr.R15; register++)
            vmcs.State[register] = before[register];
        vmcs.Exit = step.Exit;
        if (step.Kind is FuzzStepKind.Exit)
            return Handle(lp, vmcs, step);
        ulong rip = vmcs.State.Rip;
        bool is64Bit = vmcs.State.Cs.IsLong && (vmcs.State.Efer & (1UL << 10)) != 0;
        Hpa page = AcceptTarget(lp, before, out Level level);
        TdxStatus status = Handle(lp, vmcs, step);
        if (Module.CurrentVmcs(lp) is null)
            return status;
        JudgeTdcall(lp, vmcs, step, rip, is64Bit);
        if (_isAlone && (TdgLeaf)(ushort)before.Rax is TdgLeaf.MEM_PAGE_ACCEPT && new TdxStatus(vmcs.State[Gpr.Rax]) == TdxStatus.SUCCESS && vmcs.State.Rip != rip)
            JudgeZero(step, page, level);
        vmcs.EntryEvent = default;
        return new TdxStatus(vmcs.State[Gpr.Rax]);
    }

    // The ways in which a TDCALL that stays inside can end (tdx-module 1.3).
    private void JudgeTdcall(LogicalProcessor lp, Vmcs vmcs, in FuzzStep step, ulong rip, bool is64Bit)
    {
        GuestState state = vmcs.State;
        SeamRegisters before = step.Registers;
        if (vmcs.EntryEvent.IsValid)
        {
            if (state.Rip != rip)
                _findings.Add("REGISTERS", $"RIP moved although vector {vmcs.EntryEvent.Vector} is injected: {step}");
        }
        else if (state.Rip == rip)
        {
            if (state[Gpr.Rax] != before.Rax || lp.PendingInterrupt.Read() < 0)
                _findings.Add("REGISTERS", $"the call will be repeated, but RAX is 0x{state[Gpr.Rax]:x} and {(lp.PendingInterrupt.Read() < 0 ? "no" : "an")} interrupt waits: {step}");
        }
        else if (state.Rip != rip + TdcallLength || !is64Bit)
        {
            _findings.Add("REGISTERS", $"RIP moved by {state.Rip - rip}: {step}");
        }
        else
        {
            TdgLeaf leaf = (TdgLeaf)(ushort)before.Rax;
            TdxStatus status = new(state[Gpr.Rax]);
            if (LeafCatalogue.Of(leaf) is { } description ? !description.CanReturn(status) : status != (TdxStatus.OPERAND_INVALID | OperandId.RAX))
                _findings.Add("STATUS", $"{leaf.FullName()} returned {status}, which it does not list: {step}");
        }

        foreach (Gpr register in (ReadOnlySpan<Gpr>)[Gpr.Rbx, Gpr.Rsp, Gpr.Rbp, Gpr.Rsi, Gpr.Rdi, Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15])
        {
            if (state[register] != before[register])
                _findings.Add("REGISTERS", $"the guest's {register} became 0x{state[register]:x}: {step}");
        }
    }

    // Feeds the exit. A TD exit is judged by the registers that the host gets (tdx-module 4.10).
    private TdxStatus Handle(LogicalProcessor lp, Vmcs vmcs, in FuzzStep step)
    {
        SeamRegisters host = default;
        host.Rbx = host.R12 = host.R15 = 0x5A5A;
        if (Module.HandleExit(lp, ref host))
        {
            if (step.Kind is not FuzzStepKind.Tdcall)
                vmcs.EntryEvent = default;
            return TdxStatus.SUCCESS;
        }

        bool passes = step.Kind is FuzzStepKind.Tdcall && (TdgLeaf)(ushort)step.Registers.Rax is TdgLeaf.VP_VMCALL;
        if (!LeafCatalogue.Of(TdhLeaf.VP_ENTER)!.CanReturn(host.Status))
            _findings.Add("STATUS", $"the TD exit has status {host.Status}: {step}");
        if (!passes && (host.Rbx | host.Rbp | host.Rsi | host.Rdi | host.R10 | host.R11 | host.R12 | host.R13 | host.R14 | host.R15) != 0)
            _findings.Add("REGISTERS", $"an asynchronous TD exit shows the host registers of the guest: {step}");
        if (passes)
            JudgePassed(step, host);
        return host.Status;
    }

    private void JudgePassed(in FuzzStep step, SeamRegisters host)
    {
        SeamRegisters guest = step.Registers;
        ulong mask = guest.Rcx;
        for (Gpr register = Gpr.Rdx; register <= Gpr.R15; register++)
        {
            if (host[register] != (((mask >> (int)register) & 1) != 0 ? guest[register] : 0))
                _findings.Add("REGISTERS", $"the host sees 0x{host[register]:x} in {register}, the mask says otherwise: {step}");
        }
    }

    private Hpa AcceptTarget(LogicalProcessor lp, SeamRegisters registers, out Level level)
    {
        level = Level.K4;
        if (!_isAlone || (TdgLeaf)(ushort)registers.Rax is not TdgLeaf.MEM_PAGE_ACCEPT || (registers.Rcx & 7) > 1)
            return default;
        level = Level.FromTdx((int)(registers.Rcx & 7));
        foreach (VcpuView vcpu in Module.Vcpus())
        {
            if (vcpu.State is TdVcpuState.ACTIVE && vcpu.AssociatedLp == lp.Id && Module.FindSeptLeaf(vcpu.Tdr, new Gpa(registers.Rcx & Hpa.Mask)) is { } leaf && leaf.Level == level)
                return leaf.Hpa;
        }

        return default;
    }

    private void JudgeZero(in FuzzStep step, Hpa page, Level level)
    {
        for (ulong frame = 0; page.Value != 0 && frame < level.Pages; frame++)
        {
            if (Machine.Memory.Frame(page + (frame << 12)).IndexOfAnyExcept((byte)0) >= 0)
            {
                _findings.Add("TM09", $"page {page + (frame << 12)} is not zero after it was accepted: {step}");
                return;
            }
        }
    }

    private ulong Fixed(int number) => Layout.Tdr(16 + number);

    private void Call(int lp, TdhLeaf leaf, ulong rcx = 0, ulong rdx = 0, ulong r8 = 0, ulong r9 = 0)
    {
        SeamRegisters registers = SeamRegisters.Call(leaf, rcx, rdx, r8, r9);
        if (leaf is TdhLeaf.VP_INIT)
            Module.UseEntryState(new Hpa(rcx), GuestStart.Flat64);
        Module.Seamcall(Machine.Processors[lp], ref registers);
        if (registers.Status.IsError)
            throw new WorldException($"{leaf.FullName()} failed while the world was built: {registers.Status}");
    }

    // The first TD, so that a round need not find the way by chance: two vCPUs, tables, pages of both sizes, some of them pending.
    private void BuildTd(SeedStream random)
    {
        ulong tdr = Layout.Tdr(0);
        int next = 0;
        Call(0, TdhLeaf.MNG_CREATE, tdr, 17);
        for (int lp = 0; lp < Processors; lp++)
            Call(lp, TdhLeaf.MNG_KEY_CONFIG, tdr);
        for (int i = 0; i < 6; i++)
            Call(0, TdhLeaf.MNG_ADDCX, Fixed(next++), tdr);
        Call(0, TdhLeaf.MNG_INIT, tdr, Layout.HostPage((int)random.Below(ParameterPages - 1)));
        for (int vcpu = 0; vcpu < Processors; vcpu++)
        {
            Call(vcpu, TdhLeaf.VP_CREATE, Layout.Tdvpr(vcpu), tdr);
            for (int i = 0; i < 5; i++)
                Call(vcpu, TdhLeaf.VP_ADDCX, Fixed(next++), Layout.Tdvpr(vcpu));
            Call(vcpu, TdhLeaf.VP_INIT, Layout.Tdvpr(vcpu));
        }

        for (int level = Module.Td(new Hpa(tdr))!.RootLevel.Tdx; level >= 1; level--)
            Call(0, TdhLeaf.MEM_SEPT_ADD, (ulong)level, tdr, Fixed(96 + level));
        Call(0, TdhLeaf.MEM_SEPT_ADD, 0x20_0001, tdr, Fixed(96));
        for (ulong i = 0; i < 6; i++)
        {
            if ((i & 1) == 0)
                Call(0, TdhLeaf.MEM_PAGE_ADD, i << 12, tdr, Fixed(144 + (int)i), Layout.HostPage(SharedRootPage));
            else
                Call(0, TdhLeaf.MEM_PAGE_AUG, i << 12, tdr, Fixed(144 + (int)i));
        }

        Call(0, TdhLeaf.MEM_PAGE_AUG, 0x40_0001, tdr, Layout.LargeRange(0));
    }

    private void BringUp(SeedStream random)
    {
        Call(0, TdhLeaf.SYS_INIT);
        for (int lp = 0; lp < Processors; lp++)
            Call(lp, TdhLeaf.SYS_LP_INIT);
        Call(0, TdhLeaf.SYS_CONFIG, Layout.HostPage(PointerPage), (ulong)Machine.Description.Tdmrs.Count, (ulong)Machine.Description.FirstPrivateHkid);
        for (int lp = 0; lp < Processors; lp++)
            Call(lp, TdhLeaf.SYS_KEY_CONFIG);
        Call(0, TdhLeaf.SYS_TDMR_INIT, Machine.Description.Tdmrs[0].Range.Base);
        if (random.Below(2) == 0)
            Call(0, TdhLeaf.SYS_TDMR_INIT, Machine.Description.Tdmrs[1].Range.Base);
    }

    private void WriteHostPages(SeedStream random)
    {
        PhysicalMemory memory = Machine.Memory;
        ulong[] attributes = [0, 0, 1, 1UL << 28, 1, 1UL << 63, 0, 0];
        for (int i = 0; i < ParameterPages; i++)
        {
            ulong page = Layout.HostPage(i);
            memory.Word(page) = attributes[i];
            memory.Word(page + 8) = 3;
            memory.Word(page + 16) = 3;
            memory.Word(page + 24) = i == 6 ? 0x26UL : 0x1E;
            memory.Word(page + 32) = i == 6 ? 7UL : i == 4 ? 2UL : 4;
            memory.Word(page + 40) = 40;
            if (i == 7)
                memory.Word(page + (random.Below(128) << 3)) ^= 1UL << (int)random.Below(64);
        }

        for (int i = ParameterPages; i < FuzzLayout.HostPages; i++)
            random.Fill(memory.Frame(new Hpa(Layout.HostPage(i))));
        WriteSharedRoot(random);
        memory.Zero(new Hpa(Layout.HostPage(PointerPage)));
        memory.Zero(new Hpa(Layout.HostPage(InfoPage)));
        for (int i = 0; i < Machine.Description.Tdmrs.Count; i++)
            WriteTdmr(Machine.Description.Tdmrs[i], Layout.HostPage(PointerPage) + ((ulong)i * 8), Layout.HostPage(InfoPage) + ((ulong)i * 512));
    }

    // The page is its own table at every level, so that walks get to their end; the other entries are holes, and what only a broken or hostile host would write.
    private void WriteSharedRoot(SeedStream random)
    {
        ulong root = Layout.HostPage(SharedRootPage);
        Span<ulong> table = Machine.Memory.Table(new Hpa(root));
        for (int i = 0; i < table.Length; i++)
        {
            table[i] = random.Below(12) switch
            {
                0 => random.Next(),
                1 => 0,
                2 => 1UL << 63,
                3 => (random.Below(1UL << 20) << 12) | 0x37,
                4 => (random.Next() & Hpa.Mask) | 7,
                _ => root | (random.Below(8) == 0 ? random.Below(8) : 7) | (random.Below(2) == 0 ? 0x30UL : 0),
            };
        }

        // On the way of every shared address of a 4-level guest.
        table[256] = root | 7;
        table[0] = root | 7;
    }

    private void WriteTdmr(TdmrDescription tdmr, ulong pointer, ulong info)
    {
        PhysicalMemory memory = Machine.Memory;
        memory.Word(pointer) = info;
        ulong[] words = [tdmr.Range.Base, tdmr.Range.Size, tdmr.Pamt1G.Base, tdmr.Pamt1G.Size, tdmr.Pamt2M.Base, tdmr.Pamt2M.Size, tdmr.Pamt4K.Base, tdmr.Pamt4K.Size];
        for (int i = 0; i < words.Length; i++)
            memory.Word(info + ((ulong)i * 8)) = words[i];
        for (int i = 0; i < tdmr.Reserved.Count; i++)
        {
            memory.Word(info + 64 + ((ulong)i * 16)) = tdmr.Reserved[i].Base - tdmr.Range.Base;
            memory.Word(info + 72 + ((ulong)i * 16)) = tdmr.Reserved[i].Size;
        }
    }
}
