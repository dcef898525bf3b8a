namespace Tdp.Harness.Scenarios;

/// <summary>
/// Draws the steps of one thread of the module's stress. It goes through moods (building TDs, using them, tearing them down, bringing the module up, noise), because calls drawn without any
/// purpose would hardly ever get beyond the first check. The same stream gives the same steps as long as the module answers the same.
/// </summary>
internal sealed class FuzzGenerator
{
    private static readonly TdhLeaf[] Building =
    [
        TdhLeaf.MNG_CREATE, TdhLeaf.MNG_KEY_CONFIG, TdhLeaf.MNG_KEY_CONFIG, TdhLeaf.MNG_ADDCX, TdhLeaf.MNG_ADDCX, TdhLeaf.MNG_ADDCX, TdhLeaf.MNG_INIT, TdhLeaf.VP_CREATE, TdhLeaf.VP_ADDCX,
        TdhLeaf.VP_ADDCX, TdhLeaf.VP_ADDCX, TdhLeaf.VP_INIT, TdhLeaf.MEM_SEPT_ADD, TdhLeaf.MEM_SEPT_ADD, TdhLeaf.MEM_PAGE_ADD, TdhLeaf.MR_EXTEND, TdhLeaf.MEM_PAGE_AUG, TdhLeaf.MEM_SEPT_RD,
        TdhLeaf.MR_FINALIZE,
    ];

    private static readonly TdhLeaf[] Using =
    [
        TdhLeaf.MEM_SEPT_ADD, TdhLeaf.MEM_SEPT_ADD, TdhLeaf.MEM_PAGE_AUG, TdhLeaf.MEM_PAGE_AUG, TdhLeaf.MEM_PAGE_AUG, TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK,
        TdhLeaf.MEM_TRACK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_REMOVE, TdhLeaf.MEM_PAGE_REMOVE, TdhLeaf.MEM_SEPT_REMOVE, TdhLeaf.MEM_RANGE_UNBLOCK, TdhLeaf.MEM_PAGE_PROMOTE, TdhLeaf.MEM_PAGE_DEMOTE,
        TdhLeaf.MEM_PAGE_RELOCATE, TdhLeaf.MEM_SEPT_RD, TdhLeaf.MEM_RD, TdhLeaf.MEM_WR, TdhLeaf.VP_ENTER, TdhLeaf.VP_ENTER, TdhLeaf.VP_ENTER, TdhLeaf.VP_ENTER, TdhLeaf.VP_ENTER, TdhLeaf.VP_RD,
        TdhLeaf.VP_WR, TdhLeaf.MNG_RD, TdhLeaf.MNG_WR, TdhLeaf.VP_FLUSH, TdhLeaf.PHYMEM_PAGE_RDMD, TdhLeaf.PHYMEM_PAGE_WBINVD,
    ];

    private static readonly TdhLeaf[] TearingDown =
    [
        TdhLeaf.VP_FLUSH, TdhLeaf.VP_FLUSH, TdhLeaf.MNG_VPFLUSHDONE, TdhLeaf.PHYMEM_CACHE_WB, TdhLeaf.MNG_KEY_FREEID, TdhLeaf.PHYMEM_PAGE_RECLAIM, TdhLeaf.PHYMEM_PAGE_RECLAIM, TdhLeaf.PHYMEM_PAGE_RECLAIM,
        TdhLeaf.PHYMEM_PAGE_RECLAIM, TdhLeaf.PHYMEM_PAGE_RECLAIM, TdhLeaf.PHYMEM_PAGE_RECLAIM, TdhLeaf.PHYMEM_PAGE_RECLAIM, TdhLeaf.PHYMEM_PAGE_RDMD,
    ];

    // What a host does in a row about one place. Other calls of the same and of the other processor come in between.
    private static readonly (int Level, TdhLeaf[] Calls)[] Plans =
    [
        (0, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_REMOVE, TdhLeaf.MEM_PAGE_AUG]),
        (0, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_REMOVE]),
        (0, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_RANGE_UNBLOCK]),
        (0, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_RELOCATE]),
        (1, [TdhLeaf.MEM_PAGE_AUG, TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_DEMOTE, TdhLeaf.MEM_RANGE_UNBLOCK]),
        (1, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_DEMOTE, TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_PROMOTE, TdhLeaf.MEM_RANGE_UNBLOCK]),
        (1, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_PROMOTE, TdhLeaf.MEM_RANGE_UNBLOCK]),
        (1, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_PAGE_REMOVE, TdhLeaf.MEM_RANGE_UNBLOCK, TdhLeaf.MEM_SEPT_ADD]),
        (1, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_SEPT_REMOVE, TdhLeaf.MEM_RANGE_UNBLOCK, TdhLeaf.MEM_PAGE_AUG]),
        (1, [TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_RANGE_UNBLOCK, TdhLeaf.MEM_SEPT_ADD]),
        (2, [TdhLeaf.MEM_RANGE_UNBLOCK, TdhLeaf.MEM_SEPT_ADD, TdhLeaf.MEM_RANGE_BLOCK, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_RANGE_UNBLOCK]),
        (2, [TdhLeaf.MEM_SEPT_ADD, TdhLeaf.MEM_TRACK, TdhLeaf.MEM_RANGE_UNBLOCK]),
        (3, [TdhLeaf.MEM_TRACK, TdhLeaf.MEM_RANGE_UNBLOCK, TdhLeaf.MEM_SEPT_ADD]),
    ];

    private static readonly TdhLeaf[] BringingUp =
    [
        TdhLeaf.SYS_INIT, TdhLeaf.SYS_LP_INIT, TdhLeaf.SYS_INFO, TdhLeaf.SYS_RD, TdhLeaf.SYS_CONFIG, TdhLeaf.SYS_KEY_CONFIG, TdhLeaf.SYS_TDMR_INIT, TdhLeaf.SYS_LP_SHUTDOWN,
    ];

    private static readonly TdhLeaf[] Everything = Hosts();

    private static readonly TdgLeaf[] GuestLeaves =
    [
        TdgLeaf.MEM_PAGE_ACCEPT, TdgLeaf.MEM_PAGE_ACCEPT, TdgLeaf.MEM_PAGE_ACCEPT, TdgLeaf.MEM_PAGE_ACCEPT, TdgLeaf.MEM_PAGE_ACCEPT, TdgLeaf.VP_VMCALL, TdgLeaf.VP_INFO, TdgLeaf.MR_RTMR_EXTEND,
        TdgLeaf.VP_VEINFO_GET, TdgLeaf.VP_VEINFO_GET, TdgLeaf.MR_REPORT, TdgLeaf.VP_CPUIDVE_SET, TdgLeaf.VM_RD, TdgLeaf.VM_WR, TdgLeaf.VP_RD, TdgLeaf.VP_WR, TdgLeaf.SYS_RD, TdgLeaf.MR_VERIFYREPORT,
        TdgLeaf.MEM_PAGE_ATTR_RD, TdgLeaf.MEM_PAGE_ATTR_WR,
    ];

    private static readonly ExitReason[] Exits =
    [
        ExitReason.Cpuid, ExitReason.Cpuid, ExitReason.Rdmsr, ExitReason.Wrmsr, ExitReason.CrAccess, ExitReason.Xsetbv, ExitReason.Hlt, ExitReason.IoInstruction, ExitReason.Vmcall, ExitReason.Rdpmc,
        ExitReason.Monitor, ExitReason.Vmxon, ExitReason.Encls, ExitReason.Enclv, ExitReason.Wbinvd, ExitReason.ApicWrite, ExitReason.NmiWindow, ExitReason.EptViolation, ExitReason.EptViolation,
        ExitReason.EptMisconfiguration, ExitReason.Init, ExitReason.ExceptionOrNmi,
    ];

    private readonly SeedStream _random;
    private readonly FuzzOperands _operands;
    private readonly Queue<TdhLeaf> _plan = new();
    private readonly bool[] _wasInside = new bool[FuzzWorld.Processors];
    private readonly int[] _stuck = new int[FuzzWorld.Processors];
    private TdhLeaf[] _mood;
    private int _left;

    /// <summary>Makes a generator.</summary>
    /// <param name="layout">Where things lie.</param>
    /// <param name="machine">The machine.</param>
    /// <param name="random">The stream that decides everything.</param>
    /// <param name="stage">How far the world is when the round begins.</param>
    public FuzzGenerator(FuzzLayout layout, MachineDescription machine, SeedStream random, FuzzStage stage)
    {
        _random = random;
        _operands = new FuzzOperands(layout, machine, random);
        _mood = stage switch { FuzzStage.Cold => BringingUp, FuzzStage.Running => Using, FuzzStage.Ending => TearingDown, _ => Building };
        _left = 700;
    }

    /// <summary>Tells what a read answered as the next field id.</summary>
    public ulong NextField
    {
        set => _operands.NextField = value;
    }

    /// <summary>The next step of a processor.</summary>
    public FuzzStep Next(int lp, bool isInside)
    {
        if (_random.Below(200) == 0)
            return new FuzzStep { Kind = FuzzStepKind.Interrupt, Lp = lp, IsPending = _random.Below(3) == 0 };
        FuzzStep step = isInside ? Guest(lp) : Host(lp);
        _wasInside[lp] = isInside;
        step.Lp = lp;
        return step;
    }

    private static TdhLeaf[] Hosts()
    {
        List<TdhLeaf> hosts = [];
        foreach (LeafDescription leaf in LeafCatalogue.All)
        {
            // These two end a round: they have their own small chance.
            if (!leaf.IsGuest && (TdhLeaf)leaf.Number is not (TdhLeaf.SYS_SHUTDOWN or TdhLeaf.MNG_VPFLUSHDONE))
                hosts.Add((TdhLeaf)leaf.Number);
        }

        return [.. hosts];
    }

    private FuzzStep Host(int lp)
    {
        if (_left-- <= 0)
            ChangeMood();
        FuzzStep step = new() { Kind = FuzzStepKind.Seamcall };
        ulong dice = _random.Below(1000);
        if (dice < 40)
        {
            Garbage(ref step.Registers, Everything.Length);
            return step;
        }

        if (_plan.Count == 0 && ReferenceEquals(_mood, Using) && _random.Below(12) == 0)
            MakePlan();
        TdhLeaf leaf = _wasInside[lp] && (dice >= 250 || _stuck[lp] > 0) ? TdhLeaf.VP_ENTER
            : _plan.Count != 0 && dice >= 200 ? _plan.Dequeue()
            : dice < 41 && _random.Below(128) == 0 ? TdhLeaf.SYS_SHUTDOWN
            : dice < 42 && _random.Below(16) == 0 ? TdhLeaf.MNG_VPFLUSHDONE
            : dice < 160 ? Everything[(int)_random.Below((ulong)Everything.Length)]
            : dice < 240 ? Building[(int)_random.Below((ulong)Building.Length)]
            : _mood[(int)_random.Below((ulong)_mood.Length)];

        // A TD that is finalized cannot be built any more: not too soon.
        if (leaf is TdhLeaf.MR_FINALIZE && ReferenceEquals(_mood, Building) && _random.Below(6) != 0)
            leaf = TdhLeaf.MR_EXTEND;
        LeafDescription description = LeafCatalogue.Of(leaf)!;
        _operands.Draw(description, lp, _random.Below(7) != 0, ref step.Registers);
        step.Registers.Rax = (ulong)leaf | (_random.Below(30) == 0 ? _random.Below(4) << 16 : 0);
        return step;
    }

    private void MakePlan()
    {
        (int level, TdhLeaf[] calls) = Plans[(int)_random.Below((ulong)Plans.Length)];
        _operands.Focus(calls.Length * 2, level);
        foreach (TdhLeaf call in calls)
            _plan.Enqueue(call);
    }

    private FuzzStep Guest(int lp)
    {
        FuzzStep step = default;
        ulong dice = _random.Below(1000);
        if (_stuck[lp] == 0 && _random.Below(700) == 0)
            _stuck[lp] = 8 + (int)_random.Below(8);
        if (_stuck[lp] > 0)
        {
            // One instruction that faults again and again, at different places: zero-stepping, or a host that is up to it.
            _stuck[lp]--;
            step.Kind = FuzzStepKind.Access;
            step.Access = AccessKind.Write;
            step.Exit.Gpa = FuzzLayout.Gpa(_random, 0);
        }
        else if (dice < 500)
        {
            step.Kind = FuzzStepKind.Tdcall;
            if (_random.Below(16) == 0)
            {
                Garbage(ref step.Registers, 28);
            }
            else
            {
                TdgLeaf leaf = GuestLeaves[(int)_random.Below((ulong)GuestLeaves.Length)];
                _operands.Draw(LeafCatalogue.Of(leaf)!, lp, _random.Below(7) != 0, ref step.Registers);
                step.Registers.Rax = (ulong)leaf | (_random.Below(30) == 0 ? _random.Below(3) << 16 : 0);
            }

            step.Exit = new VmExit { Reason = ExitReason.Tdcall, InstructionLength = 4 };
        }
        else if (dice < 900)
        {
            step.Kind = FuzzStepKind.Access;
            step.Access = _random.Below(3) switch { 0 => AccessKind.Read, 1 => AccessKind.Write, _ => AccessKind.Fetch };
            step.Exit.Gpa = _random.Below(8) switch
            {
                0 => _operands.Noise(),
                1 => FuzzLayout.Gpa(_random, 0) | (1UL << (_random.Below(8) == 0 ? 51 : 47)),
                2 or 3 or 4 => _operands.FocusGpa + _random.Below(4096),
                _ => FuzzLayout.Gpa(_random, 0) + _random.Below(4096),
            };

            // Now and then the instruction is the one that faulted before: that is what zero-stepping looks like.
            step.Registers.Rcx = _random.Below(4) == 0 ? 0 : 3UL;
        }
        else
        {
            step.Kind = FuzzStepKind.Exit;
            Garbage(ref step.Registers, 64);
            step.Exit = Leave(dice);
        }

        return step;
    }

    private VmExit Leave(ulong dice)
    {
        if (dice < 950)
            return new VmExit { Reason = ExitReason.ExternalInterrupt, InterruptInfo = 0x8000_0020 };

        // Rare: they end the vCPU or the whole TD.
        ulong rare = _random.Below(400);
        ExitReason reason = rare == 0 ? ExitReason.TripleFault : rare == 1 ? ExitReason.MachineCheck : Exits[(int)_random.Below((ulong)Exits.Length)];
        VmExit exit = new()
        {
            Reason = reason,
            Qualification = _operands.Noise(),
            Gpa = _operands.Noise(),
            Gla = _operands.Noise(),
            InstructionLength = (uint)_random.Below(16),
            InstructionInfo = (uint)_random.Next(),
            InterruptInfo = (uint)_random.Next(),
            IsConvertible = _random.Below(2) == 0,
        };

        // A misconfigured private entry is a broken module, which no register can cause; hardware reports what it walked, so the alias is the shared one.
        if (reason is ExitReason.EptMisconfiguration)
            exit.Gpa |= 3UL << 50 | (1UL << 47);

        // Of the exceptions only these leave a production TD; a machine check is as rare as the others that end it.
        if (reason is ExitReason.ExceptionOrNmi)
            exit.InterruptInfo = rare == 2 ? 0x8000_0312 : 0x8000_0202;
        return exit;
    }

    private void Garbage(ref SeamRegisters registers, int leaves)
    {
        for (Gpr register = Gpr.Rax; register <= Gpr.R15; register++)
            registers[register] = _operands.Noise();
        if (_random.Below(4) != 0)
            registers.Rax = _random.Below((ulong)leaves) | (_random.Below(8) == 0 ? _random.Next() << 16 : 0);

        // Both would end the round again and again.
        if ((ushort)registers.Rax is (ushort)TdhLeaf.SYS_SHUTDOWN)
            registers.Rax |= 1UL << 40;
    }

    // What was torn down is built again, what was built is used.
    private void ChangeMood()
    {
        ulong dice = _random.Below(100);
        bool build = ReferenceEquals(_mood, TearingDown) || ReferenceEquals(_mood, BringingUp);
        _mood = build || dice < 6 ? Building
            : ReferenceEquals(_mood, Building) || dice < 82 ? Using
            : dice < 94 ? TearingDown
            : dice < 97 ? BringingUp
            : Everything;
        int length = ReferenceEquals(_mood, Using) ? 1200 : ReferenceEquals(_mood, TearingDown) ? 700 : ReferenceEquals(_mood, Building) ? 400 : 60;
        _left = length + (int)_random.Below((ulong)length / 2);
    }
}
