using System.Linq;
using System.Text;
using Tdp.Harness.Invariants;
using Tdp.Module;
using Tdp.Platform;

namespace Tdp.Tests.Properties.Leaves;

/// <summary>
/// Runs a program on the module and on the model side by side. After each call it compares the answer, everything that the module keeps, and its invariants;
/// after a call that failed also every word of the Secure EPT and of the PAMT with those before.
/// </summary>
internal sealed class LeafRun : IDisposable
{
    private readonly LeafMachine _machine;
    private readonly LeafModel _model;
    private readonly StringBuilder _wrong = new();
    private readonly Dictionary<string, int> _answers = new(StringComparer.Ordinal);
    private Dictionary<(ulong Gpa, int Level), ulong> _entries = [];
    private List<(ulong, ulong)> _pamt = [];
    private int _step;

    private LeafRun(bool running)
    {
        _machine = new LeafMachine(running);
        _model = new LeafModel(running);
        (_entries, _pamt) = Words();
    }

    /// <summary>Text in, text out, so that a copy of the module that was compiled in memory can be asked as well: <c>ok</c>, or what differs first.</summary>
    public static string Execute(string program) => Execute(LeafProgram.Parse(program), null);

    /// <summary>Runs a program; <paramref name="answers"/> counts what came, by kind of step and status.</summary>
    public static string Execute(LeafProgram program, Dictionary<string, int>? answers)
    {
        using LeafRun run = new(program.Running);
        for (int i = 0; i < program.Steps.Count; i++)
        {
            run._step = i + 1;
            run.Step(program.Steps[i]);
            run.CompareState();
            if (run._wrong.Length != 0)
                return $"step {i + 1}, {program.Steps[i]}:{Environment.NewLine}{run._wrong}";
        }

        foreach ((string key, int count) in run._answers)
        {
            if (answers is not null)
                answers[key] = answers.GetValueOrDefault(key) + count;
        }

        return "ok";
    }

    public void Dispose()
    {
        _machine.Release();
        _machine.Dispose();
    }

    private void Step(LeafStep step)
    {
        ulong gpa = LeafWorld.Align(LeafWorld.Gpas[step.A % LeafWorld.Gpas.Length], Math.Min(step.Level, 3));
        ulong page = LeafWorld.Pages[step.B % LeafWorld.Pages.Length];
        ulong operand = gpa | (uint)step.Level;
        int vcpu = step.A % LeafWorld.VcpuCount;
        int lp = step.Lp % LeafWorld.Lps;

        // A processor that is inside cannot call for the host: the last one, which never enters, does.
        int host = _machine.IsInside(lp) ? LeafWorld.HostLp : lp;
        switch (step.Kind)
        {
            case StepKind.PageAdd:
                Compare(step, _model.PageAdd(gpa, step.Level, page), _machine.Host(host, TdhLeaf.MEM_PAGE_ADD, operand, LeafWorld.Tdr, page, LeafWorld.Source));
                break;
            case StepKind.PageAug:
                Compare(step, _model.PageAug(gpa, step.Level, page), _machine.Host(host, TdhLeaf.MEM_PAGE_AUG, operand, LeafWorld.Tdr, page));
                break;
            case StepKind.SeptAdd:
                bool allow = step.Lp > LeafWorld.HostLp;
                Compare(step, _model.SeptAdd(gpa, step.Level, page, allow), _machine.Host(host, TdhLeaf.MEM_SEPT_ADD, operand, LeafWorld.Tdr | (allow ? 1UL : 0), page));
                break;
            case StepKind.RangeBlock:
                Compare(step, _model.RangeBlock(gpa, step.Level), _machine.Host(host, TdhLeaf.MEM_RANGE_BLOCK, operand, LeafWorld.Tdr));
                break;
            case StepKind.RangeUnblock:
                Compare(step, _model.RangeUnblock(gpa, step.Level), _machine.Host(host, TdhLeaf.MEM_RANGE_UNBLOCK, operand, LeafWorld.Tdr));
                break;
            case StepKind.PageRemove:
                Compare(step, _model.PageRemove(gpa, step.Level), _machine.Host(host, TdhLeaf.MEM_PAGE_REMOVE, operand, LeafWorld.Tdr));
                break;
            case StepKind.SeptRemove:
                Compare(step, _model.SeptRemove(gpa, step.Level), _machine.Host(host, TdhLeaf.MEM_SEPT_REMOVE, operand, LeafWorld.Tdr));
                break;
            case StepKind.PagePromote:
                Compare(step, _model.PagePromote(gpa, step.Level, host), _machine.Host(host, TdhLeaf.MEM_PAGE_PROMOTE, operand, LeafWorld.Tdr));
                break;
            case StepKind.PageDemote:
                Compare(step, _model.PageDemote(gpa, step.Level, page, host), _machine.Host(host, TdhLeaf.MEM_PAGE_DEMOTE, operand, LeafWorld.Tdr, page));
                break;
            case StepKind.PageRelocate:
                Compare(step, _model.PageRelocate(gpa, step.Level, page), _machine.Host(host, TdhLeaf.MEM_PAGE_RELOCATE, operand, LeafWorld.Tdr, page));
                break;
            case StepKind.SeptRead:
                Compare(step, _model.SeptRead(gpa, step.Level), _machine.Host(host, TdhLeaf.MEM_SEPT_RD, operand, LeafWorld.Tdr));
                break;
            case StepKind.Track:
                Track(step, host);
                break;
            case StepKind.Retire:
                Compare(step, _model.RangeBlock(gpa, step.Level), _machine.Host(host, TdhLeaf.MEM_RANGE_BLOCK, operand, LeafWorld.Tdr));
                Track(step, host);
                break;
            case StepKind.Fill:
                Fill(step, LeafWorld.Align(gpa, 1), LeafWorld.Align(page, 1), host);
                break;
            default:
                StepElsewhere(step, vcpu, lp, host, gpa, page);
                break;
        }
    }

    private void StepElsewhere(LeafStep step, int vcpu, int lp, int host, ulong gpa, ulong page)
    {
        bool inside = _machine.IsInside(lp);
        switch (step.Kind)
        {
            case StepKind.Finalize:
                Compare(step, _model.Finalize(), _machine.Host(host, TdhLeaf.MR_FINALIZE, LeafWorld.Tdr) with { Rcx = 0 });
                break;
            case StepKind.Rdmd:
                Compare(step, _model.Rdmd(page), Metadata(TdhLeaf.PHYMEM_PAGE_RDMD, host, page));
                break;
            case StepKind.Wbinvd:
                Compare(step, _model.Wbinvd(page), new Answer(_machine.Host(host, TdhLeaf.PHYMEM_PAGE_WBINVD, page | ((ulong)LeafWorld.Hkid << 46)).Rax));
                break;
            case StepKind.Reclaim:
                Compare(step, _model.Reclaim(page), Metadata(TdhLeaf.PHYMEM_PAGE_RECLAIM, host, page));
                break;
            case StepKind.ReclaimAll:
                foreach ((ulong owned, int _) in _model.Pages.Keys.OrderBy(p => p == (LeafWorld.Tdr, 0)).ThenBy(p => p.Page).ToList())
                    Compare(step, _model.Reclaim(owned), Metadata(TdhLeaf.PHYMEM_PAGE_RECLAIM, host, owned));
                break;
            case StepKind.VpFlush:
                Compare(step, _model.VpFlush(vcpu, host), new Answer(_machine.Host(host, TdhLeaf.VP_FLUSH, LeafWorld.Vcpu(vcpu)).Rax));
                break;
            case StepKind.VpFlushDone:
                Compare(step, _model.VpFlushDone(), new Answer(_machine.Host(host, TdhLeaf.MNG_VPFLUSHDONE, LeafWorld.Tdr).Rax));
                break;
            case StepKind.CacheWb:
                Compare(step, _model.CacheWb(host), new Answer(_machine.Host(host, TdhLeaf.PHYMEM_CACHE_WB, 0).Rax));
                break;
            case StepKind.KeyFreeId:
                Compare(step, _model.KeyFreeId(), new Answer(_machine.Host(host, TdhLeaf.MNG_KEY_FREEID, LeafWorld.Tdr).Rax));
                break;
            case StepKind.Enter when !inside && lp != LeafWorld.HostLp:
                Compare(step, _model.Enter(vcpu, lp), _machine.Enter(vcpu, lp));
                break;
            case StepKind.Leave when inside:
                Compare(step, _model.Leave(lp), _machine.Leave(lp));
                break;
            case StepKind.Accept when inside:
                Compare(step, _model.Accept(lp, gpa, step.Level), _machine.Guest(lp, TdgLeaf.MEM_PAGE_ACCEPT, gpa | (uint)step.Level));
                break;
            case StepKind.AcceptAll when inside:
                AcceptAll(step, lp, LeafWorld.Align(gpa, 1));
                break;
            case StepKind.AttrRead when inside:
                Compare(step, _model.AttrRead(lp, gpa), _machine.Guest(lp, TdgLeaf.MEM_PAGE_ATTR_RD, gpa, shows: true));
                break;
            case StepKind.Touch when inside:
                bool write = step.B % 2 != 0;
                Compare(step, _model.Touch(lp, gpa, write, (ulong)_step), _machine.Touch(lp, gpa, write, (ulong)_step));
                break;
            case StepKind.VeInfoGet when inside:
                Compare(step, _model.VeInfoGet(lp), _machine.Guest(lp, TdgLeaf.VP_VEINFO_GET, 0));
                break;
            case StepKind.Interrupt:
                _model.SetInterrupt(lp, step.B % 2 != 0);
                _machine.SetInterrupt(lp, step.B % 2 != 0);
                break;
            case StepKind.Wait:
                _model.Wait(lp);
                _machine.Wait(lp);
                break;
            case StepKind.Hold:
                Hold(step, page);
                break;
            case StepKind.Release:
                _model.Release();
                _machine.Release();
                break;
            default:
                break;
        }
    }

    private void Track(LeafStep step, int host) =>
        Compare(step, _model.Track(), new Answer(_machine.Host(host, TdhLeaf.MEM_TRACK, LeafWorld.Tdr).Rax), "Track");

    // 512 small pages of one large range, in order: what PROMOTE wants.
    private void Fill(LeafStep step, ulong gpa, ulong page, int host)
    {
        for (ulong i = 0; i < 512 && _wrong.Length == 0; i++)
            Compare(step, _model.PageAug(gpa + (i << 12), 0, page + (i << 12)), _machine.Host(host, TdhLeaf.MEM_PAGE_AUG, gpa + (i << 12), LeafWorld.Tdr, page + (i << 12)));
    }

    private void AcceptAll(LeafStep step, int lp, ulong gpa)
    {
        for (ulong i = 0; i < 512 && _wrong.Length == 0 && _machine.IsInside(lp); i++)
            Compare(step, _model.Accept(lp, gpa + (i << 12), 0), _machine.Guest(lp, TdgLeaf.MEM_PAGE_ACCEPT, gpa + (i << 12)));
    }

    private void Hold(LeafStep step, ulong page)
    {
        // Which holder is in the processor's number, so that page and entry are still free to choose.
        HolderKind kind = (HolderKind)(1 + (step.Lp % (int)HolderKind.Large));
        ulong gpa = LeafWorld.Align(LeafWorld.Gpas[step.A % LeafWorld.Gpas.Length], step.Level);
        if (_model.Hold(kind, page, gpa, step.Level) && !_machine.Hold(kind, page, gpa, step.Level))
            _wrong.AppendLine($"{kind}: another processor could not have its locks");
    }

    private Answer Metadata(TdhLeaf leaf, int lp, ulong page)
    {
        SeamRegisters after = _machine.Call(lp, SeamRegisters.Call(leaf, page));

        // The owner of a page that is none may be an old one (tdx-module 11, quirk 11).
        return new Answer(after.Rax, after.Rcx, after.Rcx == 0 ? 0 : after.Rdx, after.R8);
    }

    private void Compare(LeafStep step, Answer expected, Answer actual, string? name = null)
    {
        string key = $"{name ?? step.Kind.ToString()} {new TdxStatus(expected.Rax)} {expected.Note}".TrimEnd();
        _answers[key] = _answers.GetValueOrDefault(key) + 1;
        if (expected != actual)
            _wrong.AppendLine($"answered {actual}, the model {expected}");
        (Dictionary<(ulong Gpa, int Level), ulong> entries, List<(ulong, ulong)> pamt) = Words();
        if (new TdxStatus(actual.Rax).IsError && actual.Note is "" or "stays")
            CompareWords(entries, pamt);
        (_entries, _pamt) = (entries, pamt);
    }

    // TM07, without the model: whatever failed has changed no word but for host priority, which winners clear and losers set (tdx-module 7.3).
    private void CompareWords(Dictionary<(ulong Gpa, int Level), ulong> entries, List<(ulong, ulong)> pamt)
    {
        const ulong mask = ~LeafFacts.PriorityBit;
        foreach ((ulong Gpa, int Level) key in entries.Keys.Union(_entries.Keys))
        {
            ulong before = _entries.GetValueOrDefault(key, LeafFacts.FreeWord) & mask;
            ulong after = entries.GetValueOrDefault(key, LeafFacts.FreeWord) & mask;
            if (before != after)
                _wrong.AppendLine($"a failed call changed the entry 0x{key.Gpa:x}/{key.Level} from 0x{before:x16} to 0x{after:x16}");
        }

        for (int i = 0; i < pamt.Count; i++)
        {
            if (pamt[i] != _pamt[i])
                _wrong.AppendLine($"a failed call changed PAMT entry {i} of the look from {_pamt[i]} to {pamt[i]}");
        }
    }

    private (Dictionary<(ulong Gpa, int Level), ulong> Entries, List<(ulong, ulong)> Pamt) Words()
    {
        Dictionary<(ulong Gpa, int Level), ulong> entries = [];
        if (_model.Cycle == LeafModel.Life.KeysConfigured)
            SecureEptMemory.Read(_machine.Machine, _machine.Eptp, entries);
        List<(ulong, ulong)> pamt = new(2200);
        for (ulong page = LeafWorld.Start; page < LeafWorld.End; page += 4096)
            pamt.Add(Masked(SecureEptMemory.Pamt(_machine.Machine, page, 0)));
        for (ulong page = LeafWorld.Start; page < LeafWorld.End; page += LeafWorld.Small2M)
            pamt.Add(Masked(SecureEptMemory.Pamt(_machine.Machine, page, 1)));
        return (entries, pamt);
    }

    // Lock bits 15:0 are looked at by the invariants, which know who may hold what.
    private static (ulong, ulong) Masked((ulong First, ulong Bepoch) entry) => (entry.First & ~0xFFFFUL, entry.Bepoch);

    private void CompareState()
    {
        (_entries, _pamt) = Words();
        CompareEntries();
        ComparePages();
        CompareTd();
        foreach ((ulong page, ulong word) in _model.Words)
        {
            ulong found = _machine.Machine.Memory.Word(page);
            if (found != word)
                _wrong.AppendLine($"page 0x{page:x} begins with 0x{found:x}, not 0x{word:x}");
        }

        if (_model.Holder != HolderKind.None)
            return;
        FindingLog findings = new();
        ModuleInvariants.Check(_machine.Module, findings, new HpaRange(LeafWorld.Start, LeafWorld.End - LeafWorld.Start));
        foreach (Finding finding in findings.All)
            _wrong.AppendLine($"{finding.Rule}: {finding.Text}");
    }

    private void CompareEntries()
    {
        if (_model.Cycle != LeafModel.Life.KeysConfigured)
            return;
        foreach ((ulong Gpa, int Level) key in _model.Entries.Keys.Union(_entries.Keys))
        {
            ModelEntry? entry = _model.Find(key.Gpa, key.Level);

            // Below a blocked table the model keeps the children, and so does memory.
            ulong expected = entry is null ? LeafFacts.FreeWord
                : LeafFacts.Word(entry.State) | entry.Page | ((ulong)entry.Accepted << 12) | (entry.Priority ? LeafFacts.PriorityBit : 0);
            if (_model.Holder == HolderKind.ReaderWithEntry && _model.HeldEntry == key)
                expected |= LeafFacts.LockBit;
            ulong found = _entries.GetValueOrDefault(key, LeafFacts.FreeWord);
            if (found != expected)
                _wrong.AppendLine($"entry 0x{key.Gpa:x}/{key.Level} is 0x{found:x16}, not 0x{expected:x16}");
        }
    }

    private void ComparePages()
    {
        ulong owner = LeafWorld.Tdr >> 12;
        for (int level = 0; level <= 1; level++)
        {
            for (ulong page = LeafWorld.Start; page < LeafWorld.End; page += LeafWorld.Size(level))
            {
                (ulong first, ulong bepoch) = SecureEptMemory.Pamt(_machine.Machine, page, level);
                int type = _model.Pages.GetValueOrDefault((page, level));
                bool owned = type is not (LeafFacts.NoType or LeafFacts.TdrType);
                bool same = (int)((first >> 16) & 0xFF) == type
                    && (!owned || first >> 24 == owner)
                    && (type is not (LeafFacts.Reg or LeafFacts.Ept) || bepoch == _model.Bepoch(page, level));
                if (!same)
                    _wrong.AppendLine($"PAMT of 0x{page:x}/{level} is 0x{first:x}, BEPOCH {bepoch}; the model has type {type}, BEPOCH {_model.Bepoch(page, level)}");
            }
        }
    }

    private void CompareTd()
    {
        TdView? td = _machine.Module.Td(new Hpa(LeafWorld.Tdr));
        if ((td is null) != (_model.Cycle == LeafModel.Life.Gone))
            _wrong.AppendLine(td is null ? "the TD is gone" : "the TD is still there");
        if (td is null)
            return;
        TdLifecycle cycle = _model.Cycle switch
        {
            LeafModel.Life.KeysConfigured => TdLifecycle.KEYS_CONFIGURED,
            LeafModel.Life.Blocked => TdLifecycle.BLOCKED,
            _ => TdLifecycle.TEARDOWN,
        };
        TdOpState state = _model.Running ? TdOpState.RUNNABLE : TdOpState.INITIALIZED;
        (TdLifecycle, TdOpState, ulong, uint, uint, long) expected = (cycle, state, _model.Epoch, (uint)_model.Inside[0], (uint)_model.Inside[1], _model.Children);
        (TdLifecycle, TdOpState, ulong, uint, uint, long) actual = (td.Lifecycle, td.OpState, td.Epoch, td.RefCount0, td.RefCount1, td.ChildCount);
        if (expected != actual)
            _wrong.AppendLine($"TD {actual}, the model {expected}");
        foreach (VcpuView view in _machine.Module.Vcpus())
            CompareVcpu(view);
    }

    private void CompareVcpu(VcpuView view)
    {
        ModelVcpu vcpu = _model.Vcpus[(int)((view.Tdvpr.Value - LeafWorld.FirstVcpu) / LeafWorld.VcpuStride)];
        (TdVcpuState, int, ulong, bool) expected = (vcpu.Inside >= 0 ? TdVcpuState.ACTIVE : TdVcpuState.READY, vcpu.Lp, vcpu.Epoch, vcpu.LastTrap);
        (TdVcpuState, int, ulong, bool) actual = (view.State, view.AssociatedLp, view.Epoch, view.LastExit == TdExitKind.ASYNC_TRAP);
        if (expected != actual)
            _wrong.AppendLine($"vCPU {view.Tdvpr} {actual}, the model {expected}");
    }
}
