namespace Tdp.Harness.Invariants;

/// <summary>
/// The invariants of the TDX module that one look at a module at rest can judge: TM01 to TM06 (tdx-module 10.1). TM08 compares with the host's
/// trees (<see cref="CheckMirror"/>). TM07 and TM09 are about single calls (<see cref="ModuleReferee"/>), TM10 about sets (<see cref="SerialOrders"/>).
/// </summary>
/// <remarks>
/// At rest: no SEAMCALL and no TDCALL is in progress. vCPUs may be inside their TDs, between the two halves of VP.ENTER, as long as none executes.
/// The look costs about a millisecond per GiB of PAMT; who checks after every call names the part of memory that it uses.
/// </remarks>
public static class ModuleInvariants
{
    /// <summary>Checks everything; findings go to <paramref name="findings"/> under their number.</summary>
    /// <param name="module">A module at rest.</param>
    /// <param name="findings">Where to report.</param>
    public static void Check(TdxModule module, FindingLog findings) => Check(module, findings, new HpaRange(0, module.Machine.Memory.Top));

    /// <summary>Checks everything, with the PAMT of one range only.</summary>
    /// <param name="module">A module at rest.</param>
    /// <param name="findings">Where to report.</param>
    /// <param name="range">Contains every page that the TDs of this module have.</param>
    public static void Check(TdxModule module, FindingLog findings, HpaRange range)
    {
        ArgumentNullException.ThrowIfNull(module);
        ArgumentNullException.ThrowIfNull(findings);
        IReadOnlyList<TdView> tds = module.Tds();
        Dictionary<Hpa, Dictionary<ulong, PamtView>> owned = PagesByOwner(module, range, tds, findings);
        IReadOnlyList<VcpuView> vcpus = module.Vcpus();
        foreach (TdView td in tds)
        {
            Dictionary<ulong, PamtView> pages = owned[td.Tdr];
            CheckChildren(td, pages, findings);
            if (td.Eptp != 0 && td.Lifecycle == TdLifecycle.KEYS_CONFIGURED)
                CheckTree(module, td, pages, findings);
            CheckEpochs(td, vcpus, findings);
        }

        CheckProcessors(tds, vcpus, findings);
        CheckTranslations(module, findings);
        foreach (StrayLock stray in module.StrayLocks(range))
            findings.Add("TM06", stray.Text);
    }

    /// <summary>TM05 on views: REFCOUNT of each parity is the number of vCPUs inside that entered in it, and none is two epochs behind.</summary>
    /// <param name="td">The TD.</param>
    /// <param name="vcpus">vCPUs of this and of other TDs.</param>
    /// <param name="findings">Where to report.</param>
    public static void CheckEpochs(TdView td, IReadOnlyList<VcpuView> vcpus, FindingLog findings)
    {
        ArgumentNullException.ThrowIfNull(td);
        ArgumentNullException.ThrowIfNull(vcpus);
        ArgumentNullException.ThrowIfNull(findings);
        uint even = 0;
        uint odd = 0;
        uint associated = 0;
        foreach (VcpuView vcpu in vcpus)
        {
            associated += vcpu.Tdr == td.Tdr && vcpu.AssociatedLp >= 0 ? 1u : 0;
            if (vcpu.Tdr != td.Tdr || vcpu.InsideLp < 0)
                continue;
            even += (vcpu.Epoch & 1) == 0 ? 1u : 0;
            odd += (uint)(vcpu.Epoch & 1);
            if (vcpu.Epoch + 1 < td.Epoch)
                findings.Add("TM05", $"vCPU {vcpu.Tdvpr} is inside with VCPU_EPOCH {vcpu.Epoch}, TD_EPOCH is {td.Epoch}");
        }

        // In TEARDOWN the vCPU pages go in any order.
        if (td.Lifecycle == TdLifecycle.KEYS_CONFIGURED && associated != td.AssociatedVcpus)
            findings.Add("TM05", $"TD {td.Tdr}: NUM_ASSOC_VCPUS {td.AssociatedVcpus}, {associated} vCPUs are associated");

        // Nobody puts the counts of a dead TD right (tdx-module 4.10).
        bool isWrong = td.IsFatal ? td.RefCount0 < even || td.RefCount1 < odd : td.RefCount0 != even || td.RefCount1 != odd;
        if (isWrong)
            findings.Add("TM05", $"TD {td.Tdr}: REFCOUNT {td.RefCount0}, {td.RefCount1}; inside are {even} vCPUs of even and {odd} of odd epochs");
    }

    /// <summary>TM08: at quiescence the mirror tree and the Secure EPT agree; what differs is also reported as I13 or I19 to I21.</summary>
    /// <param name="vm">A VM at rest; the findings go to its machine's log.</param>
    public static void CheckMirror(Vm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        FindingLog findings = vm.Kernel.Machine.Findings;
        int before = findings.All.Count;
        AtRest.Check(vm);
        IReadOnlyList<Finding> all = findings.All;
        for (int i = before; i < all.Count; i++)
        {
            if (all[i].Rule is "I13" or "I19" or "I20" or "I21")
                findings.Add("TM08", $"{all[i].Rule}: {all[i].Text}");
        }
    }

    private static Dictionary<Hpa, Dictionary<ulong, PamtView>> PagesByOwner(TdxModule module, HpaRange range, IReadOnlyList<TdView> tds, FindingLog findings)
    {
        Dictionary<Hpa, Dictionary<ulong, PamtView>> owned = [];
        foreach (TdView td in tds)
            owned[td.Tdr] = [];
        module.ForEachPamtEntry(range, (Hpa page, in PamtView view) =>
        {
            if (view.Type is PageType.NDA or PageType.RSVD)
                return;
            CompareWithLedger(module, page, view, findings);
            if (view.Type == PageType.TDR)
            {
                if (!owned.ContainsKey(page))
                    findings.Add("TM01", $"page {page} is a TDR without a TD");
            }
            else if (!owned.TryGetValue(view.Owner, out Dictionary<ulong, PamtView>? pages))
            {
                findings.Add("TM01", $"page {page} is {view.Type} of {view.Owner}, which is no TD");
            }
            else
            {
                pages[page.Value] = view;
            }
        });
        return owned;
    }

    // Every frame of the page, and whose it is: the platform learns it at the hand-over, not from the PAMT.
    private static void CompareWithLedger(TdxModule module, Hpa page, in PamtView view, FindingLog findings)
    {
        Hpa owner = view.Type == PageType.TDR ? page : view.Owner;
        for (ulong frame = page.Frame; frame < page.Frame + view.Level.Pages; frame++)
        {
            FrameRecord record = module.Machine.Memory.Record(frame);
            if (record.Use == FrameUse.Module && record.Owner == owner.Frame)
                continue;
            findings.Add("TM01", $"page {page} is {view.Type} of {owner}, the ledger says that frame 0x{frame:x} is {record.Use} of frame 0x{record.Owner:x}");
            return;
        }
    }

    private static void CheckChildren(TdView td, Dictionary<ulong, PamtView> pages, FindingLog findings)
    {
        long units = 0;
        foreach (PamtView page in pages.Values)
            units += 1L << (9 * page.Level.Tdx);
        if (units != td.ChildCount)
            findings.Add("TM01", $"TD {td.Tdr}: CHLDCNT {td.ChildCount}, its PAMT entries count {units}");
    }

    // TM02 and TM03: from the entries to the pages, then what no entry points to.
    private static void CheckTree(TdxModule module, TdView td, Dictionary<ulong, PamtView> pages, FindingLog findings)
    {
        HashSet<ulong> linked = [];
        ulong root = td.Eptp & 0x000F_FFFF_FFFF_F000;
        if (!pages.TryGetValue(root, out PamtView rootPage) || rootPage.Type != PageType.TDCX)
            findings.Add("TM03", $"TD {td.Tdr}: the root 0x{root:x} is not a TDCX page of it");
        linked.Add(root);
        module.ForEachSeptEntry(td.Tdr, (in SeptView entry) =>
        {
            bool isTable = entry.State is SeptState.NL_MAPPED or SeptState.NL_BLOCKED;
            string rule = isTable ? "TM03" : "TM02";
            PageType wanted = isTable ? PageType.EPT : PageType.REG;
            Level size = isTable ? Level.K4 : entry.Level;
            string what = $"TD {td.Tdr}: GPA {entry.Gpa}, {entry.Level}, {entry.State} points to {entry.Hpa}";
            if (!linked.Add(entry.Hpa.Value))
                findings.Add(rule, $"{what}, as another entry does");
            if (!pages.TryGetValue(entry.Hpa.Value, out PamtView page))
                findings.Add(rule, $"{what}, which is not a page of this TD");
            else if (page.Type != wanted || page.Level != size)
                findings.Add(rule, $"{what}, which is {page.Type} of {page.Level}");
        });
        foreach ((ulong address, PamtView page) in pages)
        {
            if (page.Type is PageType.REG or PageType.EPT && !linked.Contains(address))
                findings.Add(page.Type == PageType.REG ? "TM02" : "TM03", $"TD {td.Tdr}: no entry points to its {page.Type} page 0x{address:x}");
        }
    }

    // The other side of TM05: a vCPU that is inside is ACTIVE and associated with its processor. Only in a dead TD is one ACTIVE that is not inside.
    private static void CheckProcessors(IReadOnlyList<TdView> tds, IReadOnlyList<VcpuView> vcpus, FindingLog findings)
    {
        foreach (VcpuView vcpu in vcpus)
        {
            bool isActive = vcpu.State == TdVcpuState.ACTIVE;
            if (vcpu.InsideLp >= 0 && (!isActive || vcpu.AssociatedLp != vcpu.InsideLp))
                findings.Add("TM05", $"LP {vcpu.InsideLp} is inside as vCPU {vcpu.Tdvpr}, which is {vcpu.State} and associated with LP {vcpu.AssociatedLp}");
            if (vcpu.InsideLp < 0 && isActive && Find(tds, vcpu.Tdr) is not { IsFatal: true })
                findings.Add("TM05", $"vCPU {vcpu.Tdvpr} is ACTIVE, and no processor is inside as it");
        }
    }

    private static TdView? Find(IReadOnlyList<TdView> tds, Hpa tdr)
    {
        foreach (TdView td in tds)
        {
            if (td.Tdr == tdr)
                return td;
        }

        return null;
    }

    // TM04. A processor outside drops what it must at its next entry.
    private static void CheckTranslations(TdxModule module, FindingLog findings)
    {
        foreach (LogicalProcessor lp in module.Machine.Processors)
        {
            if (module.CurrentVmcs(lp) is not { } vmcs)
                continue;
            TdView? td = null;
            foreach (TdView candidate in module.Tds())
            {
                if (candidate.Eptp == vmcs.Eptp)
                    td = candidate;
            }

            lp.Tlb.ForEachLive(entry =>
            {
                if (td is null || entry.Context != vmcs.Eptp || entry.Vcpu != vmcs.VcpuId || (entry.GpaPage & vmcs.AliasBit.GpaMask) != 0)
                    return;
                SeptView? leaf = module.FindSeptLeaf(td.Tdr, new Gpa(entry.GpaPage));
                ulong now = leaf is { } found ? found.Hpa.Value + (entry.GpaPage - found.Gpa.Value) : 0;

                // A page that is pending was removed and given again in between: the guest must not reach what it has not accepted.
                if (now != entry.Frame || leaf?.State is not (SeptState.MAPPED or SeptState.BLOCKED))
                    findings.Add("TM04", $"LP {lp.Id} in the guest translates GPA 0x{entry.GpaPage:x} to 0x{entry.Frame:x}; the Secure EPT has {(leaf is null ? "nothing" : $"{leaf.Value.State} 0x{now:x}")} there");
            });
        }
    }
}
