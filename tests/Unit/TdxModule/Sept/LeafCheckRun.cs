using Tdp.Module;

namespace Tdp.Tests.Unit.Seam.Sept;

/// <summary>Drives one check of a host leaf: alone, and again with everything else wrong that the leaf looks at later.</summary>
internal static class LeafCheckRun
{
    /// <summary>Returns the status that came; it has been compared already.</summary>
    public static TdxStatus Check(LeafCheck check)
    {
        if (check.Fault == "not-ready")
            return NotReady(check);
        TdxStatus alone = Drive(check, []);
        List<LeafCheck> later = [];
        HashSet<FaultSubject> taken = [Faults.Of(check.Fault).Subject];
        foreach (LeafCheck other in check.Later())
        {
            if (other.Fault == "not-ready")
                continue;
            Fault fault = Faults.Of(other.Fault);

            // With a vCPU inside, nobody has the TDR alone and nobody shuts the module down; a dead TD is not entered.
            if (fault.NeedsGuest && (ExcludesGuest(check) || later.Exists(ExcludesGuest)))
                continue;
            if (taken.Add(fault.Subject))
                later.Add(other);
        }

        if (later.Count != 0)
            Drive(check, later);
        return alone;
    }

    private static bool ExcludesGuest(LeafCheck check) => check.Fault is "tdr-held" or "shut-down" or "td-fatal";

    private static TdxStatus Drive(LeafCheck check, IReadOnlyList<LeafCheck> later)
    {
        Fault[] faults = [Faults.Of(check.Fault), .. later.Select(c => Faults.Of(c.Fault))];
        SceneSetup setup = Faults.LegalSetup(check.Leaf);
        foreach (Fault fault in faults)
            setup = fault.Setup?.Invoke(setup) ?? setup;
        using SeptScene scene = new(setup);
        FaultScene call = new(scene, check.Leaf, setup.Level);
        foreach (Fault fault in faults)
            fault.Prepare?.Invoke(call);
        foreach (Fault fault in faults)
            fault.Registers?.Invoke(call);
        List<InjectedLock> held = [];
        foreach (Fault fault in faults)
        {
            if (fault.Hold is { } hold)
                held.Add(hold(call) ?? throw new InvalidOperationException($"{check}: a lock of the test could not be had"));
        }

        foreach (Fault fault in faults)
            fault.Finally?.Invoke(call);
        string what = $"{check}{(later.Count == 0 ? string.Empty : $", with {string.Join(", ", later.Select(c => c.Fault))}")}";
        ModuleState before = scene.Snapshot();
        SeamRegisters after = scene.Rig.Raw(0, call.Call);
        Assert.True(after.Status == Statuses.Parse(check.Answer), $"{what}: {after.Status}, not {check.Answer}");
        AssertRegisters(what, call, faults[0], before, after);

        // What 7.3 allows to stay behind: host priority in the entry that was busy, and in PAMT locks.
        ModuleState expected = before.WithoutPagePriority();
        if (check.Fault == "entry-held")
            expected.Entries[(scene.Tdr, call.HeldGpa, setup.Level)] |= SeptFormat.HostPriority;
        if (check.Fault == "child-held")
            expected.Entries[(scene.Tdr, scene.Gpa + (5UL << (3 + (9 * setup.Level))), setup.Level - 1)] |= SeptFormat.HostPriority;
        List<string> differences = ModuleState.Differences(expected, scene.Snapshot().WithoutPagePriority());
        Assert.True(differences.Count == 0, $"{what}:{Environment.NewLine}{string.Join(Environment.NewLine, differences)}");
        foreach (InjectedLock each in held)
            scene.Rig.Module.Release(each);
        return after.Status;
    }

    private static void AssertRegisters(string what, FaultScene call, Fault fault, ModuleState before, in SeamRegisters after)
    {
        ulong operand = call.Leaf is "TDH.MEM.RD" or "TDH.MEM.WR" or "TDH.MR.EXTEND" ? call.Call.Rcx & ~0xFFFUL : call.Call.Rcx & ~7UL;
        ulong word = before.Entries.TryGetValue((call.Scene.Tdr, operand, call.Level), out ulong found) ? found : SeptFormat.Free;
        bool isTrack = call.Leaf == "TDH.MEM.TRACK";
        (ulong rcx, ulong rdx) = fault.Information switch
        {
            FaultInformation.Operands => (call.Call.Rcx, call.Call.Rdx),
            FaultInformation.Entry => (SeptFormat.Shown(word), SeptFormat.Described(word, call.Level)),
            FaultInformation.Root => (0x8000_0000_0000_0000, 3UL),
            _ when isTrack => (call.Call.Rcx, call.Call.Rdx),
            _ => (0UL, 0UL),
        };
        Assert.True((rcx, rdx) == (after.Rcx, after.Rdx), $"{what}: RCX 0x{after.Rcx:x}, RDX 0x{after.Rdx:x}; expected 0x{rcx:x}, 0x{rdx:x}");
    }

    // Before SYS_READY no TD can exist, so the operands do not matter.
    private static TdxStatus NotReady(LeafCheck check)
    {
        using ModuleRig rig = new(machine: SeptMachine.Describe(), bringUp: false);
        SeamRegisters call = SeamRegisters.Call(HostCalls.LeafOf(check.Leaf), 0x1234, 0x5678, 0x9ABC);
        SeamRegisters after = rig.Raw(0, call);
        Assert.Equal(Statuses.Parse(check.Answer), after.Status);
        Assert.Equal((call.Rcx, call.Rdx, call.R8), (after.Rcx, after.Rdx, after.R8));
        return after.Status;
    }
}
