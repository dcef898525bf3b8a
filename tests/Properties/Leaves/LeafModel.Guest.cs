namespace Tdp.Tests.Properties.Leaves;

// vCPUs: entry, exit, accepting, touching, and how a guest and its host stay out of each other's way (tdx-module 4.9, 5.10, 6.3, 7.5, 7.6, 8.1, 8.3).
internal sealed partial class LeafModel
{
    private const ulong Violation = 48;
    private const int Threshold = 6;
    private const int FaultListSize = 32;

    public Answer Enter(int index, int lp)
    {
        ModelVcpu vcpu = Vcpus[index];
        if (!Pages.ContainsKey((LeafWorld.Vcpu(index), 0)))
            return new Answer(LeafFacts.PageMetadataIncorrect | LeafFacts.Rcx);
        ulong status = GateShared(LeafFacts.TdrId, allowed: Running);
        if (status == 0 && vcpu.Inside >= 0)
            status = LeafFacts.VcpuStateIncorrect;
        if (status == 0 && vcpu.Lp >= 0 && vcpu.Lp != lp)
            status = LeafFacts.VcpuAssociated;
        if (status != 0)
            return new Answer(status);
        bool fresh = vcpu.Lp < 0;
        vcpu.Lp = lp;
        if (Holder == HolderKind.Tracker)
            return new Answer(LeafFacts.OperandBusy | LeafFacts.TdEpoch);
        bool stale = vcpu.Epoch != Epoch && !fresh;
        vcpu.Epoch = Epoch;
        if (stale)
            Lps[lp].Tlb.Clear();
        if (vcpu.Faults.Count != 0)
        {
            if (IsTreeTaken(alone: true))
                return new Answer(LeafFacts.OperandBusy | LeafFacts.SeptTree);
            foreach (ulong gpa in vcpu.Faults)
            {
                _ = Walk(gpa, 0, out ulong at, out int level);
                if (StateOf(at, level) != EntryState.Mapped)
                {
                    vcpu.LastTrap = false;
                    return new Answer(Violation, 2, 0, gpa & ~0xFFFUL);
                }
            }
        }

        if (Lps[lp].LastRun != index)
            Lps[lp].Tlb.Clear();
        Lps[lp].LastRun = index;
        Lps[lp].Current = index;
        vcpu.Inside = lp;
        vcpu.RipAtEntry = vcpu.Rip;
        Inside[Epoch & 1]++;
        return new Answer(0, Note: "entered");
    }

    /// <summary>An external interrupt makes the vCPU leave.</summary>
    public Answer Leave(int lp)
    {
        ModelVcpu vcpu = Exiting(lp);
        GoOut(vcpu, lp, trap: false);
        return new Answer(1, Note: "exit");
    }

    public Answer Accept(int lp, ulong gpa, int level)
    {
        ModelVcpu vcpu = Exiting(lp);
        if (level > 1)
            return Answered(vcpu, lp, LeafFacts.OperandInvalid | LeafFacts.Rcx);
        bool reached = Walk(gpa, level, out ulong at, out int stop);
        EntryState state = StateOf(at, stop);
        if (!reached)
            return state == EntryState.Mapped ? Answered(vcpu, lp, LeafFacts.AlreadyAccepted | (uint)stop) : RefuseAccept(vcpu, lp, gpa, level, stop, state);
        if (IsRefused(gpa, level, out bool byPriority))
            return Answered(vcpu, lp, LeafFacts.OperandBusy | LeafFacts.Rcx, byPriority);
        if (LeafFacts.IsTable(state))
            return Answered(vcpu, lp, LeafFacts.SizeMismatch | (uint)level);
        if (state == EntryState.Mapped)
            return Answered(vcpu, lp, LeafFacts.AlreadyAccepted | (uint)level);
        if (state != EntryState.Pending)
            return RefuseAccept(vcpu, lp, gpa, level, level, state);
        ModelEntry entry = Find(gpa, level)!;
        int parts = level == 0 ? 1 : 512;
        for (int part = entry.Accepted; part < parts; part++)
        {
            SetWord(entry.Page + ((ulong)part << 12), 0);
            if (part < parts - 1 && Lps[lp].Interrupt)
            {
                entry.Accepted = part + 1;
                vcpu.PrioritySince = null;
                return new Answer(6, gpa | (uint)level, Note: "again");
            }
        }

        entry.Accepted = 0;
        entry.State = EntryState.Mapped;
        return Answered(vcpu, lp, LeafFacts.Success);
    }

    public Answer AttrRead(int lp, ulong gpa)
    {
        ModelVcpu vcpu = Exiting(lp);
        _ = Walk(gpa, 0, out ulong at, out int level);
        if (IsRefused(at, level, out bool byPriority))
            return Answered(vcpu, lp, LeafFacts.OperandBusy | LeafFacts.Rcx, byPriority);
        EntryState state = StateOf(at, level);
        if (state is not (EntryState.Mapped or EntryState.Pending))
        {
            GoOut(vcpu, lp, trap: false);
            return new Answer(Violation, 0, 0, gpa, "exit");
        }

        Answer answer = Answered(vcpu, lp, LeafFacts.Success);
        return answer with { Rcx = at | (uint)level | (state == EntryState.Pending ? 1UL << 62 : 0) };
    }

    /// <summary>One access by the processor; a write leaves <paramref name="value"/> in the first word of the page.</summary>
    public Answer Touch(int lp, ulong gpa, bool write, ulong value)
    {
        ModelLp processor = Lps[lp];
        int index = processor.Current;
        if (!Translate(processor, index, gpa, out ulong page))
            return Violate(lp, gpa, write ? 2UL : 1);
        if (write)
            SetWord(page, value);
        return new Answer(0, page, Note: "hit");
    }

    public Answer VeInfoGet(int lp)
    {
        ModelVcpu vcpu = Exiting(lp);
        ulong status = vcpu.VeValid ? LeafFacts.Success : LeafFacts.NoValidVeInfo;
        vcpu.VeValid = false;
        return Answered(vcpu, lp, status);
    }

    public Answer VpFlush(int index, int lp)
    {
        ModelVcpu vcpu = Vcpus[index];
        if (vcpu.Inside >= 0)
            return new Answer(LeafFacts.OperandBusy | LeafFacts.Rcx);
        if (!Pages.ContainsKey((LeafWorld.Vcpu(index), 0)))
            return new Answer(LeafFacts.PageMetadataIncorrect | LeafFacts.Rcx);
        if (Holder == HolderKind.TdrAlone)
            return new Answer(LeafFacts.OperandBusy | LeafFacts.TdrId);
        if (Cycle != Life.KeysConfigured)
            return new Answer(LeafFacts.KeysNotConfigured);
        if (vcpu.Lp != lp)
            return new Answer(LeafFacts.VcpuNotAssociated);
        vcpu.Lp = -1;
        Lps[lp].Tlb.Clear();
        Lps[lp].LastRun = -1;
        return new Answer(LeafFacts.Success);
    }

    private bool Translate(ModelLp processor, int vcpu, ulong gpa, out ulong page)
    {
        for (int level = 0; level <= 1; level++)
        {
            if (processor.Tlb.TryGetValue((vcpu, LeafWorld.Align(gpa, level), level), out ulong cached))
            {
                page = cached + (gpa & (LeafWorld.Size(level) - 1));
                return true;
            }
        }

        _ = Walk(gpa, 0, out ulong at, out int stop);
        page = 0;
        if (Find(at, stop) is not { State: EntryState.Mapped } entry)
            return false;
        processor.Tlb[(vcpu, at, stop)] = entry.Page;
        page = entry.Page + (gpa - at);
        return true;
    }

    private Answer Violate(int lp, ulong gpa, ulong access)
    {
        ModelVcpu vcpu = Exiting(lp);
        _ = Walk(gpa, 0, out ulong at, out int stop);
        if (StateOf(at, stop) == EntryState.Pending)
        {
            bool first = !vcpu.VeValid;
            vcpu.VeValid = true;
            return new Answer(0, Note: first ? "vector 20" : "vector 8");
        }

        if (vcpu.SameRipFaults < Threshold)
            vcpu.SameRipFaults++;
        else if (vcpu.Faults.Count < FaultListSize && !vcpu.Faults.Contains(gpa))
            vcpu.Faults.Add(gpa);
        GoOut(vcpu, lp, trap: false);
        return new Answer(Violation, access, 0, gpa, "exit");
    }

    // The guest's side of an entry: a competitor, or a host that lost before.
    private bool IsRefused(ulong gpa, int level, out bool byPriority)
    {
        bool held = Holder == HolderKind.ReaderWithEntry && HeldEntry == (gpa, level);
        byPriority = !held && Find(gpa, level) is { Priority: true };
        return held || byPriority;
    }

    // Every VM exit looks whether the guest has got on since its entry.
    private ModelVcpu Exiting(int lp)
    {
        ModelVcpu vcpu = Vcpus[Lps[lp].Current];
        if (vcpu.Rip != vcpu.RipAtEntry)
        {
            vcpu.SameRipFaults = 0;
            vcpu.Faults.Clear();
        }

        return vcpu;
    }

    private Answer Answered(ModelVcpu vcpu, int lp, ulong status, bool byPriority = false)
    {
        vcpu.Rip++;
        if (!byPriority)
        {
            vcpu.PrioritySince = null;
            return new Answer(status, Note: "stays");
        }

        _published = Lps[lp].Time = Math.Max(_published, Lps[lp].Time);
        vcpu.PrioritySince ??= Lps[lp].Time;
        if (Lps[lp].Time == vcpu.PrioritySince)
            return new Answer(status, Note: "stays");
        vcpu.PrioritySince = null;
        GoOut(vcpu, lp, trap: true);
        return new Answer(LeafFacts.HostPriorityTimeout, Note: "exit");
    }

    private Answer RefuseAccept(ModelVcpu vcpu, int lp, ulong gpa, int level, int stop, EntryState state)
    {
        ulong info = (uint)level | ((ulong)stop << 3) | (LeafFacts.Public(state) << 6) | (LeafFacts.IsLeaf(state) ? 1UL << 14 : 0);
        GoOut(vcpu, lp, trap: false);
        return new Answer(Violation, 2, 1 | (info << 32), gpa, "exit");
    }

    private void GoOut(ModelVcpu vcpu, int lp, bool trap)
    {
        vcpu.Inside = -1;
        vcpu.LastTrap = trap;
        Inside[vcpu.Epoch & 1]--;
        Lps[lp].Current = -1;
    }
}
