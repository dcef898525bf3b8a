namespace Tdp.Harness.Invariants;

/// <summary>
/// Judges single calls of the TDX module: a failed one changes nothing (TM07), PAGE.ADD copies its source and ACCEPT clears what it accepts (TM09). For a
/// driver that makes one call at a time: it copies the module's state around each.
/// </summary>
/// <remarks>
/// A TDCALL is compared with the state after the call before it, so it counts only with regard to what no coming and going of vCPUs changes. Interrupted
/// calls have not failed: what they did is part of the call that continues them (TM10).
/// </remarks>
public sealed class ModuleReferee : IModuleObserver
{
    private readonly TdxModule _module;
    private readonly FindingLog _findings;
    private readonly HpaRange _range;
    private ModulePicture _before;

    /// <summary>Makes a referee; give it to <see cref="TdxModule.Observer"/>.</summary>
    /// <param name="module">The module.</param>
    /// <param name="findings">Where to report.</param>
    /// <param name="range">The part of the page metadata to watch.</param>
    public ModuleReferee(TdxModule module, FindingLog findings, HpaRange range)
    {
        ArgumentNullException.ThrowIfNull(module);
        ArgumentNullException.ThrowIfNull(findings);
        _module = module;
        _findings = findings;
        _range = range;
        _before = ModulePicture.Of(module, range);
    }

    /// <inheritdoc/>
    public void Calling(LogicalProcessor lp, in SeamRegisters registers) => _before = ModulePicture.Of(_module, _range);

    /// <inheritdoc/>
    public void Returned(LogicalProcessor lp, in SeamRegisters before, in SeamRegisters after)
    {
        var leaf = (TdhLeaf)(ushort)before.Rax;
        ModulePicture now = ModulePicture.Of(_module, _range);
        if (after.Status.IsError && after.Status != TdxStatus.INTERRUPTED_RESUMABLE)
        {
            // TD_PARAMS are looked at after the first of the TDCS is written.
            if (leaf == TdhLeaf.MNG_INIT)
                _before = _before.WithEpochOf(now, new Hpa(before.Rcx));
            Report($"{leaf.FullName()} answered {after.Status}", _before.DifferencesTo(now));
        }

        if (leaf == TdhLeaf.MEM_PAGE_ADD && after.Status.IsSuccess)
            CompareWithSource(new Hpa(before.R8), new Hpa(before.R9));
        _before = now;
    }

    /// <inheritdoc/>
    public void GuestCalled(LogicalProcessor lp, TdgLeaf leaf, TdxStatus status, bool exited)
    {
        ArgumentNullException.ThrowIfNull(lp);
        ModulePicture now = ModulePicture.Of(_module, _range);
        if (!exited && status.IsError)
            Report($"{leaf.FullName()} answered {status}", _before.DifferencesTo(now, memoryOnly: true));
        if (!exited && leaf == TdgLeaf.MEM_PAGE_ACCEPT && status == TdxStatus.SUCCESS)
            CheckAccepted(lp);
        _before = now;
    }

    private void Report(string call, IReadOnlyList<string> differences)
    {
        foreach (string difference in differences)
            _findings.Add("TM07", $"{call}, but {difference}");
    }

    private void CompareWithSource(Hpa page, Hpa source)
    {
        PhysicalMemory memory = _module.Machine.Memory;
        Hpa plain = new(source.Value & ((1UL << _module.Machine.Description.HkidShift) - 1));
        int same = memory.Frame(page).CommonPrefixLength(memory.Frame(plain));
        if (same != memory.Frame(page).Length)
            _findings.Add("TM09", $"PAGE.ADD of {page}: byte {same} is not that of its source {plain}");
    }

    // What the guest named is in RCX still; the leaf is what it can reach now.
    private void CheckAccepted(LogicalProcessor lp)
    {
        Vmcs vmcs = _module.CurrentVmcs(lp)!;
        ulong asked = vmcs.State[Gpr.Rcx];
        Gpa gpa = new(asked & 0x000F_FFFF_FFFF_F000);
        foreach (TdView td in _module.Tds())
        {
            if (td.Eptp != vmcs.Eptp || _module.FindSeptLeaf(td.Tdr, gpa) is not { } leaf)
                continue;
            for (ulong frame = leaf.Hpa.Frame; frame < leaf.Hpa.Frame + leaf.Level.Pages; frame++)
            {
                if (_module.Machine.Memory.Frame(new Hpa(frame << 12)).IndexOfAnyExcept((byte)0) is int at and >= 0)
                    _findings.Add("TM09", $"TD {td.Tdr} accepted GPA {gpa}: byte {at} of frame 0x{frame:x} is not zero");
            }
        }
    }
}
